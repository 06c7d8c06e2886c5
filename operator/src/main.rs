//! `culvert-operator`: see `culvert-operator --help`.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    culvert_operator::Args::parse().run()
}
