//! Tables of text, aligned, coloured where that is wanted.

/// What a cell's colour says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Nothing.
    #[default]
    Plain,
    /// All is well.
    Good,
    /// It works, not as well as it could; or nobody knows.
    Middling,
    /// It does not work.
    Bad,
    /// Of little interest.
    Faint,
}

/// A text with a tone. Control characters, which others may have put into names and messages, are replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

/// Rows under headings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Cell {
    /// A cell. Empty text shows as `-`.
    pub(crate) fn new(text: impl AsRef<str>, tone: Tone) -> Self {
        let text: String = text.as_ref().chars().map(harmless).collect();
        let text = if text.is_empty() { "-".into() } else { text };
        Self { text, tone }
    }

    /// A cell without tone.
    pub(crate) fn plain(text: impl AsRef<str>) -> Self {
        Self::new(text, Tone::Plain)
    }

    /// A cell for a value that may be absent.
    pub(crate) fn maybe(text: Option<impl AsRef<str>>) -> Self {
        text.map_or_else(|| Self::new("", Tone::Faint), Self::plain)
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }

    fn render(&self, width: usize, colours: bool) -> String {
        let text = paint(&self.text, self.tone, colours);
        let padding = width.saturating_sub(self.width());
        format!("{text}{:padding$}", "")
    }
}

impl Table {
    /// A table without rows.
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        Self {
            headings: headings.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub(crate) fn push(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    /// The table as text: a line for the headings and one a row, three spaces between columns, none at the end of a line.
    pub(crate) fn render(&self, colours: bool) -> String {
        let headings: Vec<Cell> = self.headings.iter().map(Cell::plain).collect();
        let rows = || std::iter::once(&headings).chain(&self.rows);
        let widths: Vec<usize> = (0..headings.len())
            .map(|column| {
                let cells = rows().filter_map(|row| row.get(column));
                cells.map(Cell::width).max().unwrap_or_default()
            })
            .collect();
        rows().map(|row| line(row, &widths, colours)).collect()
    }
}

/// Colours a text.
pub(crate) fn paint(text: &str, tone: Tone, colours: bool) -> String {
    let code = match tone {
        Tone::Plain => return text.to_owned(),
        Tone::Good => 32,
        Tone::Middling => 33,
        Tone::Bad => 31,
        Tone::Faint => 2,
    };
    if colours {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

fn line(row: &[Cell], widths: &[usize], colours: bool) -> String {
    let cells: Vec<String> = row
        .iter()
        .zip(widths)
        .map(|(cell, width)| cell.render(*width, colours))
        .collect();
    format!("{}\n", cells.join("   ").trim_end())
}

fn harmless(c: char) -> char {
    if c.is_control() { '?' } else { c }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["NAME", "PATH", "MESSAGE"]);
        table.push(vec![
            Cell::plain("tokyo"),
            Cell::new("direct", Tone::Good),
            Cell::maybe(None::<&str>),
        ]);
        table.push(vec![
            Cell::plain("új-york"),
            Cell::new("none", Tone::Bad),
            Cell::plain("its \x1b[31moperator\nis away"),
        ]);
        table
    }

    #[test]
    fn columns_are_aligned_and_lines_end_without_spaces() {
        let expected = "\
NAME      PATH     MESSAGE
tokyo     direct   -
új-york   none     its ?[31moperator?is away
";
        assert_eq!(table().render(false), expected);
    }

    #[test]
    fn colours_do_not_move_columns() {
        let coloured = table().render(true);
        assert!(coloured.contains("\x1b[32mdirect\x1b[0m   \x1b[2m-\x1b[0m\n"));
        let plain: String =
            coloured
                .split("\x1b[")
                .enumerate()
                .fold(String::new(), |text, (n, part)| match n {
                    0 => part.to_owned(),
                    _ => text + part.split_once('m').map_or("", |(_, rest)| rest),
                });
        assert_eq!(plain, table().render(false));
    }
}
