//! The command line.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use serve::LogArgs;

use crate::{check, cleanup, output, run};

/// What the client of the API server is made of says much and means little; whoever asked says what matters.
const QUIET: &str = "kube_client=warn,kube_runtime=off,hyper_util=warn,rustls=warn,tower=warn";
/// Where every failure ends the command, and is what it says then.
const QUIETER: &str = "kube_client=off,kube_runtime=off,hyper_util=off,rustls=warn,tower=off";

const EXAMPLES: &str = "\
The chart runs it with two replicas; one leads, the other waits for its lease. By hand, against the cluster of your
kubeconfig, for instance to see what it would say:
  KUBECONFIG=~/.kube/config culvert-operator run --namespace culvert --log-level debug

Exit codes: 0 done, 1 failed (the message says what to do), 2 wrong usage.";

const RUN_EXAMPLES: &str = "\
Runs in the foreground until SIGTERM or SIGINT, which hand the lease to the other replica at once. Without its lease the
process ends, too, so that two never act at a time. What agents have programmed stays whatever becomes of the operator.

  culvert-operator run --namespace culvert --health 127.0.0.1:8081";

const CLEANUP_EXAMPLES: &str = "\
The chart runs it before `helm uninstall` removes the rest. It stops the agents, has every node cleaned, and deletes the
objects that the operator made. Nodes that do not answer within the deadline are named; clean them by hand with
`culvert-agent cleanup --state DIR --purge`.

  culvert-operator cleanup --namespace culvert --template culvert-cleanup --deadline 120s";

/// Links this cluster to others: runs relays, admits nodes and peers, and tells peers about the nodes here.
#[derive(Parser, Debug)]
#[command(name = "culvert-operator", version, propagate_version = true, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the operator.
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Take back everything that was done to the cluster and its nodes.
    #[command(after_help = CLEANUP_EXAMPLES)]
    Cleanup(CleanupArgs),
    /// Tell whether the Mesh, every Peer and every node are ready.
    Check(CheckArgs),
}

/// What `check` needs.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct CheckArgs {
    /// How long it may take until they are, such as 60s.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    pub(crate) wait: Duration,
}

/// What `run` needs.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct RunArgs {
    /// Namespace of the operator, of its Secrets and of the relays that it runs.
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE")]
    pub(crate) namespace: String,
    /// Name of this replica's pod, for the lease and events. Unique: its earlier processes are taken to have ended.
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub(crate) name: Option<String>,
    /// Name of the installation: the label app.kubernetes.io/instance of everything that the operator makes.
    #[arg(
        long,
        value_name = "NAME",
        env = "CULVERT_INSTANCE",
        default_value = "culvert"
    )]
    pub(crate) instance: String,
    /// Image of the relays that the operator runs.
    #[arg(long, value_name = "IMAGE", env = "CULVERT_RELAY_IMAGE", default_value = concat!("ghcr.io/culvert-dev/relay:", env!("CARGO_PKG_VERSION")))]
    pub(crate) relay_image: String,
    /// When nodes pull that image.
    #[arg(
        long,
        value_name = "POLICY",
        env = "CULVERT_IMAGE_PULL_POLICY",
        default_value = "IfNotPresent"
    )]
    pub(crate) image_pull_policy: PullPolicy,
    /// Secrets with which nodes pull it; several joined by commas.
    #[arg(
        long,
        value_name = "NAME",
        env = "CULVERT_IMAGE_PULL_SECRETS",
        value_delimiter = ','
    )]
    pub(crate) image_pull_secret: Vec<String>,
    /// Serve /livez and /readyz here.
    #[arg(
        long,
        value_name = "ADDR:PORT",
        env = "CULVERT_HEALTH",
        default_value = "127.0.0.1:8081"
    )]
    pub(crate) health: SocketAddr,
    /// Serve metrics for Prometheus at http://ADDR:PORT/metrics. Default: not at all.
    #[arg(long, value_name = "ADDR:PORT", env = "CULVERT_METRICS")]
    pub(crate) metrics: Option<SocketAddr>,
}

/// When an image is pulled.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PullPolicy {
    /// With every start.
    #[value(name = "Always")]
    Always,
    /// Where it is missing.
    #[value(name = "IfNotPresent")]
    IfNotPresent,
    /// Never: somebody puts it there.
    #[value(name = "Never")]
    Never,
}

impl PullPolicy {
    /// As a pod has it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// What `cleanup` needs.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct CleanupArgs {
    /// Namespace that culvert is installed in.
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE")]
    pub(crate) namespace: String,
    /// Deployment of the operator, which goes first so that it makes nothing anew.
    #[arg(long, value_name = "NAME", default_value = "culvert-operator")]
    pub(crate) operator: String,
    /// DaemonSet of the agents.
    #[arg(long, value_name = "NAME", default_value = "culvert-agent")]
    pub(crate) agent: String,
    /// ConfigMap whose key daemonset.json holds the DaemonSet that cleans the nodes.
    #[arg(long, value_name = "NAME", default_value = "culvert-cleanup")]
    pub(crate) template: String,
    /// How long everything may take, such as 90s or 2m.
    #[arg(long, value_name = "DURATION", default_value = "120s", value_parser = parse_duration)]
    pub(crate) deadline: Duration,
}

impl Args {
    /// Does what the command line says.
    pub fn run(self) -> ExitCode {
        self.log.start(match &self.command {
            Command::Check(_) => QUIETER,
            Command::Run(_) | Command::Cleanup(_) => QUIET,
        });
        let done = match self.command {
            Command::Run(args) => run::run(&args),
            Command::Cleanup(args) => cleanup::cleanup(&args),
            Command::Check(args) => check::check(&args),
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

fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    const EXPECTED: &str = "use seconds or minutes, such as 90s or 2m";
    let (digits, unit) = match text.strip_suffix('m') {
        Some(digits) => (digits, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let number: u16 = digits.parse().map_err(|_| EXPECTED)?;
    Ok(Duration::from_secs(u64::from(number) * unit))
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
    fn durations() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("5"), Ok(Duration::from_secs(5)));
        for bad in ["", "m", "-1s", "1h", "1.5s", "99999999s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn wrong_usage_exits_with_2() {
        let parse = |line: &[&str]| Args::try_parse_from(line);
        let line = ["culvert-operator", "run", "--namespace", "culvert"];
        assert!(parse(&line).is_ok());
        let with = |more: &[&str]| parse(&[line.as_slice(), more].concat());
        for more in [
            ["--health", "8081"],
            ["--image-pull-policy", "Sometimes"],
            ["--log-level", "a=b=c"],
        ] {
            assert_eq!(with(&more).expect_err("refused").exit_code(), 2, "{more:?}");
        }
    }
}
