//! Logs: to stderr, and nowhere else.

use std::io::{self, IsTerminal};

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// Flags for the log.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// What to log, to stderr: error, warn, info, debug, trace, or a filter such as info,derp=debug.
    #[arg(long = "log-level", global = true, value_name = "FILTER", default_value = "info", env = "CULVERT_LOG_LEVEL", value_parser = check_filter)]
    filter: String,
    /// How to log.
    #[arg(
        long = "log-format",
        global = true,
        value_name = "FORMAT",
        default_value = "plain",
        env = "CULVERT_LOG_FORMAT"
    )]
    format: LogFormat,
}

/// How log lines look.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Plain,
    /// One JSON object a line.
    Json,
}

impl LogArgs {
    /// Starts logging. `quiet` is a filter of what is not worth hearing unless somebody asks for it. A second call in one
    /// process changes nothing.
    pub fn start(&self, quiet: &str) {
        let builder = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(format!("{quiet},{}", self.filter)))
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal());
        let started = match self.format {
            LogFormat::Plain => builder.try_init(),
            LogFormat::Json => builder.json().try_init(),
        };
        // Only a test that starts two commands in one process comes here twice.
        drop(started);
    }
}

/// Checks a filter as the command line is read, so that a wrong one is wrong usage.
fn check_filter(text: &str) -> Result<String, String> {
    match EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{error}; use for instance info or info,derp=debug")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser, Debug)]
    struct Line {
        #[command(flatten)]
        log: LogArgs,
    }

    #[test]
    fn flags_are_checked() {
        let parse = |more: &[&str]| Line::try_parse_from([&["program"], more].concat());
        let log = parse(&["--log-level", "info,derp=debug", "--log-format", "json"]);
        let log = log.expect("parses").log;
        assert_eq!(
            (log.filter.as_str(), log.format),
            ("info,derp=debug", LogFormat::Json)
        );
        for wrong in [["--log-level", "a=b=c"], ["--log-format", "xml"]] {
            let refused = parse(&wrong).expect_err("refused");
            assert_eq!(refused.exit_code(), 2, "{wrong:?}");
        }
    }
}
