//! `culvert-agent`: see `culvert-agent --help`.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    culvert_agent::Args::parse().run()
}
