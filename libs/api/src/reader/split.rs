//! Splits a YAML stream into documents, so that a syntax error in one spoils no other.
//!
//! A line that begins with `---` or `...`, followed by white space or nothing, is a marker wherever it stands, also
//! inside a block or a quoted text (YAML 1.2.2, section 9.1.2, "forbidden"). So lines alone decide.

/// The documents of a stream, in order. Text in front of the first marker counts if there is any besides comments and
/// directives; what a `---` begins always counts, so that indexes agree with those of other YAML readers.
pub(super) fn documents(text: &str) -> Vec<&str> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let mut marked = false;
    let mut start = 0;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let end = at + line.len();
        if let Some(marker) = marker(line) {
            push(&mut documents, text.get(start..at), marked);
            marked = marker == Marker::Begin;
            // Text may follow the marker on its own line.
            start = at + 3;
        }
        at = end;
    }
    push(&mut documents, text.get(start..), marked);
    documents
}

#[derive(PartialEq, Eq)]
enum Marker {
    Begin,
    End,
}

fn marker(line: &str) -> Option<Marker> {
    let (marker, rest) = line.split_at_checked(3)?;
    if !rest.is_empty() && !rest.starts_with([' ', '\t', '\r', '\n']) {
        return None;
    }
    match marker {
        "---" => Some(Marker::Begin),
        "..." => Some(Marker::End),
        _ => None,
    }
}

fn push<'a>(documents: &mut Vec<&'a str>, part: Option<&'a str>, marked: bool) {
    let Some(part) = part else { return };
    if marked || part.lines().any(has_content) {
        documents.push(part);
    }
}

fn has_content(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with('#') && !line.starts_with('%')
}

#[cfg(test)]
mod tests {
    use super::documents;

    #[test]
    fn markers_split_and_nothing_else_does() {
        let cases: [(&str, &[&str]); 9] = [
            ("", &[]),
            ("# nothing\n", &[]),
            ("a: 1\n", &["a: 1\n"]),
            ("# c\n---\na: 1\n---\nb: 2", &["\na: 1\n", "\nb: 2"]),
            ("a: 1\n---\n---\nb: 2\n", &["a: 1\n", "\n", "\nb: 2\n"]),
            (
                "%YAML 1.2\n---\na: 1\n...\n---\nb: 2\n...\n",
                &["\na: 1\n", "\nb: 2\n"],
            ),
            ("--- {a: 1}\n--- {b: 2}\n", &[" {a: 1}\n", " {b: 2}\n"]),
            (
                "a: |\n  ---\n  x\n-----BEGIN\n",
                &["a: |\n  ---\n  x\n-----BEGIN\n"],
            ),
            (
                "\u{feff}a: 1\r\n---\r\nb: 2\r\n",
                &["a: 1\r\n", "\r\nb: 2\r\n"],
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(documents(text), expected, "{text:?}");
        }
    }
}
