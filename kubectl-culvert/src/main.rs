//! `kubectl culvert`: see `kubectl culvert --help`.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    kubectl_culvert::Args::parse().run()
}
