//! What the commands print.

use std::io::{self, Write};

use anyhow::Context;

/// Prints a result.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("cannot write to stdout")
}

/// Prints why a command failed, with all causes on one line.
pub(crate) fn complain(error: &anyhow::Error) {
    // There is nobody left to tell if stderr is gone.
    let _ = writeln!(io::stderr().lock(), "culvert-agent: {error:#}");
}
