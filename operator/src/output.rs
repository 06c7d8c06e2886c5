//! What the commands print.

use std::io::{self, Write};

/// Tells how far a command is. Nothing depends on somebody reading it.
pub(crate) fn progress(text: &str) {
    let _ = writeln!(io::stdout().lock(), "{text}");
}

/// Prints why a command failed, with all causes on one line.
pub(crate) fn complain(error: &anyhow::Error) {
    // There is nobody left to tell if stderr is gone.
    let _ = writeln!(io::stderr().lock(), "culvert-operator: {error:#}");
}
