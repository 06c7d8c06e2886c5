//! Lines for people: when, what, and whether it is good.

use std::io::{self, Write};
use std::time::Instant;

/// Where the demonstration is shown. Plain text unless in colour.
pub struct Screen {
    out: Box<dyn Write>,
    colour: bool,
    start: Instant,
}

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31;1";
const GREEN: &str = "32";
const CYAN: &str = "36";

impl Screen {
    /// A screen whose clock starts now.
    pub fn new(out: Box<dyn Write>, colour: bool) -> Self {
        Self {
            out,
            colour,
            start: Instant::now(),
        }
    }

    /// Starts the clock that stands before each step.
    pub fn start_clock(&mut self) -> Instant {
        self.start = Instant::now();
        self.start
    }

    /// A heading.
    pub fn title(&mut self, text: &str) -> io::Result<()> {
        let text = self.paint(BOLD, text);
        self.line(&format!("\n{text}"))
    }

    /// A step that succeeded, now.
    pub fn step(&mut self, text: &str) -> io::Result<()> {
        self.step_at(Instant::now(), text)
    }

    /// A step that succeeded at an instant.
    pub fn step_at(&mut self, at: Instant, text: &str) -> io::Result<()> {
        let seconds = at.saturating_duration_since(self.start).as_secs_f64();
        let (mark, clock) = (
            self.paint(GREEN, "✓"),
            self.paint(DIM, &format!("{seconds:7.2} s")),
        );
        self.line(&format!("  {mark} {clock}  {text}"))
    }

    /// What is going on, for as long as it takes.
    pub fn note(&mut self, text: &str) -> io::Result<()> {
        let text = self.paint(DIM, &format!("... {text}"));
        self.line(&format!("  {text}"))
    }

    /// What went wrong.
    pub fn failed(&mut self, text: &str) -> io::Result<()> {
        let mark = self.paint(RED, "✗ failed:");
        self.line(&format!("\n  {mark} {text}"))
    }

    /// Text of its own shape, indented.
    pub fn block(&mut self, text: &str) -> io::Result<()> {
        for line in text.trim_end().lines() {
            self.line(format!("      {line}").trim_end())?;
        }
        Ok(())
    }

    /// A word that matters.
    pub fn strong(&self, text: &str) -> String {
        self.paint(CYAN, text)
    }

    /// Words that matter less.
    pub fn dim(&self, text: &str) -> String {
        self.paint(DIM, text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut paper = self.0.lock().map_err(|_| io::Error::other("torn"))?;
            paper.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn plain_text_has_no_escapes() {
        let paper = Paper::default();
        let mut screen = Screen::new(Box::new(paper.clone()), false);
        let word = screen.strong("direct");
        screen.step(&format!("the path is {word}")).expect("writes");
        screen.failed("nothing").expect("writes");
        let text = String::from_utf8(paper.0.lock().expect("no panic").clone()).expect("text");
        assert!(
            text.contains("the path is direct") && !text.contains('\x1b'),
            "{text:?}"
        );
    }
}
