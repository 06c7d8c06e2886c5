//! Logs: to stderr, and nowhere else.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::args::LogFormat;

/// What the client of the API server is made of says much and means little; whoever asked says what matters.
const QUIET: &str = "kube_client=warn,kube_runtime=off,hyper_util=warn,rustls=warn,tower=warn";

/// Checks a filter as the command line is read, so that a wrong one is wrong usage.
pub(crate) fn check_filter(text: &str) -> Result<String, String> {
    match EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{error}; use for instance info or info,sync=debug")),
    }
}

/// Starts logging. A second call in one process changes nothing.
pub(crate) fn start(filter: &str, format: LogFormat) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(format!("{QUIET},{filter}")))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    let started = match format {
        LogFormat::Plain => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    // Only a test that starts two commands in one process comes here twice.
    drop(started);
}
