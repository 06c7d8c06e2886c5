//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgAction, Parser, Subcommand, ValueEnum};

use crate::{cleanup, logging, output, run, state::StateFolder, status};

const EXAMPLES: &str = "\
A host joins by hand in three steps:
  culvert-agent keygen --state /var/lib/culvert          # give the printed key to the other site
  editor /etc/culvert/mesh.yaml                          # one Mesh and one Peer a remote site
  culvert-agent run --manifests /etc/culvert --state /var/lib/culvert

Then look how it goes:
  culvert-agent status --state /var/lib/culvert

Exit codes: 0 done, 1 failed (the message says what to do), 2 wrong usage.";

const RUN_EXAMPLES: &str = "\
Runs in the foreground until SIGTERM or SIGINT. What it has configured on this host stays in place then, so that a
restart disturbs nothing; `culvert-agent cleanup` removes it. Manifests are *.yaml and *.yml, many documents a file, and
are read again whenever they change. A bad one is reported by `culvert-agent status` and harms no other.

  culvert-agent run --manifests /etc/culvert --state /var/lib/culvert
  culvert-agent run --manifests /etc/culvert --state /var/lib/culvert --metrics 127.0.0.1:9464";

const CLEANUP_EXAMPLES: &str = "\
Works whether the last agent ended well or was killed; an agent that still runs has to be stopped first.

  culvert-agent cleanup --state /var/lib/culvert           # keeps the key: the other sites need not be told anything
  culvert-agent cleanup --state /var/lib/culvert --purge   # forgets the key, too";

/// Links this node to the nodes of other sites, with WireGuard: over a relay at once, directly as soon as possible.
#[derive(Parser, Debug)]
#[command(name = "culvert-agent", version, propagate_version = true, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    /// What to log, to stderr: error, warn, info, debug, trace, or a filter such as info,tunnel=debug.
    #[arg(long, global = true, value_name = "FILTER", default_value = "info", env = "CULVERT_LOG_LEVEL", value_parser = logging::check_filter)]
    log_level: String,
    /// How to log.
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "plain",
        env = "CULVERT_LOG_FORMAT"
    )]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

/// How log lines look.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Plain,
    /// One JSON object a line.
    Json,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make this node's key if there is none, and print the public half.
    ///
    /// Prints one line, 44 characters of base64, and the same again when called again. The private half never leaves
    /// the state folder.
    Keygen(StateArgs),
    /// Run the agent.
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Show how this node's peers are reached, and which manifests were refused and why.
    Status(StatusArgs),
    /// Remove everything that the agent has configured on this host.
    #[command(after_help = CLEANUP_EXAMPLES)]
    Cleanup(CleanupArgs),
}

/// Where the agent keeps what has to outlive it.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct StateArgs {
    /// Folder for the key and what else has to outlive the process; made with mode 0700 if it is missing.
    #[arg(long = "state", value_name = "DIR", env = "CULVERT_STATE")]
    pub(crate) folder: PathBuf,
}

/// What `run` needs.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct RunArgs {
    /// Folder with the manifests: *.yaml and *.yml, not below it.
    #[arg(long, value_name = "DIR", env = "CULVERT_MANIFESTS")]
    pub(crate) manifests: PathBuf,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Serve metrics for Prometheus at http://ADDR:PORT/metrics. Default: not at all.
    #[arg(long, value_name = "ADDR:PORT", env = "CULVERT_METRICS")]
    pub(crate) metrics: Option<SocketAddr>,
    /// Whether packets may pass through the device in bundles. Faster; off is for kernels that have trouble with it.
    #[arg(long, value_name = "on|off", default_value = "on", action = ArgAction::Set, value_parser = parse_switch, env = "CULVERT_OFFLOAD")]
    pub(crate) offload: bool,
}

#[derive(clap::Args, Clone, Debug)]
struct StatusArgs {
    #[command(flatten)]
    state: StateArgs,
    /// As a table for people, or as JSON.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: StatusFormat,
}

/// How the status is printed.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum StatusFormat {
    /// A table for people.
    Text,
    /// One JSON document.
    Json,
}

/// What `cleanup` needs.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct CleanupArgs {
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Remove the key and everything else in the state folder, too.
    #[arg(long)]
    pub(crate) purge: bool,
}

impl Args {
    /// Does what the command line says.
    pub fn run(self) -> ExitCode {
        logging::start(&self.log_level, self.log_format);
        let done = match self.command {
            Command::Keygen(args) => keygen(&args),
            Command::Run(args) => run::run(&args),
            Command::Status(args) => show_status(&args),
            Command::Cleanup(args) => cleanup::cleanup(&args),
        };
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                output::complain(&error);
                ExitCode::FAILURE
            }
        }
    }
}

fn keygen(args: &StateArgs) -> anyhow::Result<()> {
    let state = StateFolder::open(&args.folder)?;
    let key = state.key()?;
    output::print(&format!("{}\n", key.public()))
}

fn show_status(args: &StatusArgs) -> anyhow::Result<()> {
    let status = status::fetch(&args.state.folder)?;
    let text = match args.output {
        StatusFormat::Text => status::text(&status, jiff::Timestamp::now()),
        StatusFormat::Json => format!("{}\n", serde_json::to_string_pretty(&status)?),
    };
    output::print(&text)
}

fn parse_switch(text: &str) -> Result<bool, &'static str> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("use on or off"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn offload_is_on_unless_told_otherwise() {
        let parse = |more: &[&str]| {
            let line = ["culvert-agent", "run", "--manifests", "m", "--state", "s"]
                .iter()
                .chain(more);
            Args::try_parse_from(line)
        };
        let offload = |args: Args| match args.command {
            Command::Run(run) => run.offload,
            Command::Keygen(_) | Command::Status(_) | Command::Cleanup(_) => panic!("not run"),
        };
        assert!(offload(parse(&[]).expect("parses")));
        assert!(!offload(parse(&["--offload", "off"]).expect("parses")));
        assert_eq!(
            parse(&["--offload", "maybe"])
                .expect_err("refused")
                .exit_code(),
            2
        );
        assert_eq!(
            parse(&["--metrics", "9464"])
                .expect_err("refused")
                .exit_code(),
            2
        );
        assert_eq!(
            parse(&["--log-level", "a=b=c"])
                .expect_err("refused")
                .exit_code(),
            2
        );
    }
}
