//! What the commands print: results on stdout, progress and hints on stderr.

use std::io::{self, IsTerminal, Write};

use anyhow::Context;
use clap::ValueEnum;
use serde::Serialize;

/// How a result is printed.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Tables for people.
    Text,
    /// One JSON document.
    Json,
}

/// How to print on the two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terminal {
    /// Whether stdout takes colours.
    pub(crate) colours: bool,
    /// Whether stderr is read by a person as it comes.
    pub(crate) progress: bool,
}

/// One line on stderr that says what is going on; on a terminal each text replaces the one before.
#[derive(Debug)]
pub(crate) struct Progress {
    live: bool,
    last: String,
}

impl Terminal {
    /// Of this process. `NO_COLOR` and `TERM=dumb` turn colours off.
    pub(crate) fn detect() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self {
            colours: wanted && io::stdout().is_terminal(),
            progress: io::stderr().is_terminal(),
        }
    }
}

impl Progress {
    /// Nothing yet.
    pub(crate) fn new(terminal: Terminal) -> Self {
        Self {
            live: terminal.progress,
            last: String::new(),
        }
    }

    /// What is going on now. Said once, however often it is told.
    pub(crate) fn say(&mut self, text: &str) {
        if self.last == text {
            return;
        }
        text.clone_into(&mut self.last);
        if self.live {
            hint_raw(&format!("\r\x1b[K{text} ..."));
        } else {
            hint_raw(&format!("{text}\n"));
        }
    }

    /// The line is not needed any more.
    pub(crate) fn end(&mut self) {
        if self.live && !self.last.is_empty() {
            hint_raw("\r\x1b[K");
        }
        self.last.clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// Prints a result.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        // Whoever reads has seen enough, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to stdout"),
    }
}

/// Prints a result as a JSON document.
pub(crate) fn print_json(document: &impl Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(document)?))
}

/// Prints a line for people, to stderr.
pub(crate) fn hint(text: &str) {
    hint_raw(&format!("{text}\n"));
}

/// Prints why a command failed, with all causes on one line.
pub(crate) fn complain(error: &anyhow::Error) {
    hint(&format!("error: {error:#}"));
}

fn hint_raw(text: &str) {
    let mut stderr = io::stderr().lock();
    // There is nobody left to tell if stderr is gone.
    let _ = stderr
        .write_all(text.as_bytes())
        .and_then(|()| stderr.flush());
}
