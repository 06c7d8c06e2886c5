//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use serve::LogArgs;
use zeroize::Zeroizing;

use crate::{cleanup, join, output, ping, run, state::StateFolder, status};

/// The WireGuard engine calls an expired session an error; what matters of it, the tunnel says itself.
const QUIET: &str = "boringtun=off";

const EXAMPLES: &str = "\
A host joins with a token, which `kubectl culvert invite --host` prints on a cluster:
  culvert-agent join --token-file token --state /var/lib/culvert --address 10.99.0.7/32
  culvert-agent run --state /var/lib/culvert

Or by hand in three steps:
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
  culvert-agent run --manifests /etc/culvert --state /var/lib/culvert --metrics 127.0.0.1:9464

A host that has joined by token needs no --manifests; those that it has are taken together with what was agreed:
  culvert-agent run --state /var/lib/culvert

On Kubernetes the objects of the API server take the place of manifests, and the status of this node's MeshNode tells how it
goes. While the API server is away, what was last in force stays, also over a restart:
  culvert-agent run --kubernetes --node $NODE_NAME --state /var/lib/culvert --health 127.0.0.1:9465";

const JOIN_EXAMPLES: &str = "\
Make the token on a cluster of the mesh with `kubectl culvert invite --host`. It is good once, and for a few minutes. This
makes an identity for the host, asks the cluster to be let in, and keeps what was agreed in DIR/joined. A second token, of
another cluster, adds that cluster.

A token on the command line can be seen by other users of this host and stays in the shell's history; a file or standard
input (-) keeps it out of both:
  culvert-agent join --token-file token --state /var/lib/culvert --name db1 --address 10.99.0.7/32
  ssh admin@jump cat token | culvert-agent join - --state /var/lib/culvert --address 10.99.0.7/32

When it fails, the message says what to do; running it again with the same token is safe.";

const CLEANUP_EXAMPLES: &str = "\
Works whether the last agent ended well or was killed; an agent that still runs has to be stopped first.

  culvert-agent cleanup --state /var/lib/culvert           # keeps the key: the other sites need not be told anything
  culvert-agent cleanup --state /var/lib/culvert --purge   # forgets the key, too

As the last step of a DaemonSet that is to clean every node, whose container must not end:
  culvert-agent cleanup --state /var/lib/culvert --purge --then-wait --health 127.0.0.1:9465";

/// Links this node to the nodes of other sites, with WireGuard: over a relay at once, directly as soon as possible.
#[derive(Parser, Debug)]
#[command(name = "culvert-agent", version, propagate_version = true, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make this node's key if there is none, and print the public half.
    ///
    /// Prints one line, 44 characters of base64, and the same again when called again. The private half never leaves
    /// the state folder.
    Keygen(StateArgs),
    /// Join a mesh with a token.
    #[command(after_help = JOIN_EXAMPLES)]
    Join(JoinArgs),
    /// Run the agent.
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Show how this node's peers are reached, and which manifests were refused and why.
    Status(StatusArgs),
    /// Remove everything that the agent has configured on this host.
    #[command(after_help = CLEANUP_EXAMPLES)]
    Cleanup(CleanupArgs),
    /// Ask an address for answers, without any rights.
    Ping(ping::PingArgs),
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
    /// Folder with the manifests: *.yaml and *.yml, not below it. May be left out on a host that has joined by token.
    #[arg(long, value_name = "DIR", env = "CULVERT_MANIFESTS")]
    pub(crate) manifests: Option<PathBuf>,
    /// Take the objects of the API server instead of manifests, and report to this node's MeshNode. In a pod, the API
    /// server and the right to read from it are found by themselves; elsewhere by KUBECONFIG.
    #[arg(long, conflicts_with = "manifests", requires = "node")]
    pub(crate) kubernetes: bool,
    /// Name of the Node that this is.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub(crate) node: Option<String>,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Serve http://ADDR:PORT/livez (all loops turn) and /readyz (this host is programmed). Default: not at all.
    #[arg(long, value_name = "ADDR:PORT", env = "CULVERT_HEALTH")]
    pub(crate) health: Option<SocketAddr>,
    /// Serve metrics for Prometheus at http://ADDR:PORT/metrics. Default: not at all.
    #[arg(long, value_name = "ADDR:PORT", env = "CULVERT_METRICS")]
    pub(crate) metrics: Option<SocketAddr>,
    /// Whether packets may pass through the device in bundles. Faster; off is for kernels that have trouble with it.
    #[arg(long, value_name = "on|off", default_value = "on", action = ArgAction::Set, value_parser = parse_switch, env = "CULVERT_OFFLOAD")]
    pub(crate) offload: bool,
}

/// What `join` needs.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct JoinArgs {
    /// The token, or - to read it from standard input.
    #[arg(
        value_name = "TOKEN",
        required_unless_present = "token_file",
        conflicts_with = "token_file"
    )]
    pub(crate) token: Option<TokenText>,
    /// Read the token from this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Name of this host in the mesh, a DNS label. Default: what the host is called.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Address of this host in the mesh, outside all clusters' ranges; may be given several times.
    #[arg(long = "address", value_name = "ADDRESS", value_parser = parse_address)]
    pub(crate) addresses: Vec<IpNet>,
}

/// The text of a token, which is never shown.
#[derive(Clone)]
pub(crate) struct TokenText(pub(crate) Zeroizing<String>);

impl std::str::FromStr for TokenText {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(Zeroizing::new(text.to_owned())))
    }
}

impl std::fmt::Debug for TokenText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenText")
    }
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
    /// Afterwards wait for SIGTERM instead of ending; and before that, up to a minute for an agent that is just ending.
    #[arg(long)]
    pub(crate) then_wait: bool,
    /// With --then-wait: serve http://ADDR:PORT/readyz, which says yes once this host is clean.
    #[arg(
        long,
        value_name = "ADDR:PORT",
        env = "CULVERT_HEALTH",
        requires = "then_wait"
    )]
    pub(crate) health: Option<SocketAddr>,
}

/// The command line is well formed and yet cannot be meant so.
#[derive(Debug, thiserror::Error)]
#[error("{0}; see --help")]
pub(crate) struct WrongUsage(pub(crate) &'static str);

impl Args {
    /// Does what the command line says.
    pub fn run(self) -> ExitCode {
        self.log.start(QUIET);
        let done = match self.command {
            Command::Keygen(args) => keygen(&args),
            Command::Join(args) => join::join(&args),
            Command::Run(args) => run::run(&args),
            Command::Status(args) => show_status(&args),
            Command::Cleanup(args) => cleanup::cleanup(&args),
            Command::Ping(args) => ping::ping(&args),
        };
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                output::complain(&error);
                if error.is::<WrongUsage>() {
                    ExitCode::from(2)
                } else {
                    ExitCode::FAILURE
                }
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

/// One address, with or without its full length.
fn parse_address(text: &str) -> Result<IpNet, String> {
    let parsed = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let whole = parsed
        .ok()
        .filter(|net| net.prefix_len() == net.max_prefix_len());
    let net = whole.ok_or("use one address, such as 10.99.0.7/32 or fd00:99::7/128")?;
    api::check_prefix("", &net.to_string()).map_err(|problem| problem.message)
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
            Command::Keygen(_)
            | Command::Join(_)
            | Command::Status(_)
            | Command::Cleanup(_)
            | Command::Ping(_) => {
                panic!("not run")
            }
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

    #[test]
    fn the_source_of_run_is_one_of_two() {
        let parse = |more: &[&str]| {
            let line = ["culvert-agent", "run", "--state", "s"].iter().chain(more);
            Args::try_parse_from(line)
        };
        assert!(parse(&["--kubernetes", "--node", "n1"]).is_ok());
        assert!(parse(&["--health", "127.0.0.1:0"]).is_ok());
        for wrong in [
            &["--kubernetes", "--node", "n1", "--manifests", "m"][..],
            &["--health", "9465"],
        ] {
            assert_eq!(
                parse(wrong).expect_err("refused").exit_code(),
                2,
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn join_takes_one_token_and_whole_addresses() {
        let parse = |more: &[&str]| {
            let line = ["culvert-agent", "join", "--state", "s"].iter().chain(more);
            Args::try_parse_from(line)
        };
        assert!(parse(&["-", "--address", "10.99.0.7", "--address", "fd00:99::7/128"]).is_ok());
        assert!(parse(&["--token-file", "t"]).is_ok());
        for wrong in [
            &[][..],
            &["cvt1.x", "--token-file", "t"],
            &["-", "--address", "10.99.0.0/24"],
            &["-", "--address", "127.0.0.1"],
        ] {
            assert_eq!(
                parse(wrong).expect_err("refused").exit_code(),
                2,
                "{wrong:?}"
            );
        }
        let secret = format!("{:?}", parse(&["cvt1.secret"]).expect("parses"));
        assert!(!secret.contains("cvt1"), "{secret}");
    }

    #[test]
    fn the_systemd_unit_starts_what_there_is() {
        let unit = include_str!("../../packaging/systemd/culvert-agent.service");
        let start = unit
            .lines()
            .find_map(|line| line.strip_prefix("ExecStart="))
            .expect("starts something");
        let args = Args::try_parse_from(start.split(' ')).expect("parses");
        assert!(matches!(args.command, Command::Run(run) if !run.kubernetes));
    }
}
