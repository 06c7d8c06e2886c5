//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::output::{Format, Terminal};
use crate::{identity, invite, output, peers, ping, status};

const EXAMPLES: &str = "\
Two clusters are linked by three commands:
  helm install culvert charts/culvert ...                      # in the first, with a relay that others can reach
  kubectl culvert invite --output token                        # in the first
  helm install culvert charts/culvert ... --set-file join.token=token      # in the second, within 15 minutes

Then look how it goes:
  kubectl culvert status

Exit codes: 0 done, 1 failed (the message says what to do), 2 wrong usage.";

const INVITE_EXAMPLES: &str = "\
The token is the only thing on stdout. It is good once, for 15 minutes; whoever has it can join, so do not let it lie about.

  kubectl culvert invite --output token             # into a file that only you can read
  kubectl culvert invite --cidrs 10.2.0.0/16        # whoever joins may bring this prefix and no other
  kubectl culvert invite --host | ssh laptop sudo culvert-agent join - --state /var/lib/culvert --address 10.99.0.7/32";

const STATUS_EXAMPLES: &str = "\
  kubectl culvert status                 # tables: mesh, relays, peers, nodes, paths, and what to do about each reason
  kubectl culvert status -o json | jq '.paths[] | select(.path != \"direct\")'";

const PING_EXAMPLES: &str = "\
It starts a pod that sends echo requests, shows the answers, and removes the pod. With --from POD it adds a short-lived
container to that pod instead, so that the requests come from the pod's own address.

  kubectl culvert ping 10.2.0.15
  kubectl culvert ping 10.2.0.15 --from node/worker-2
  kubectl culvert ping 10.2.0.15 --from shop/web-0
  kubectl culvert ping shop/db-0 --to-context tokyo        # a pod of the other cluster, by name";

/// Links pods across clusters behind NAT: invites, peers, paths.
#[derive(Parser, Debug)]
#[command(
    name = "kubectl-culvert",
    bin_name = "kubectl culvert",
    version,
    propagate_version = true,
    after_help = EXAMPLES,
    arg_required_else_help = true
)]
pub struct Args {
    #[command(flatten)]
    connection: ConnectionArgs,
    #[command(subcommand)]
    command: Command,
}

/// Which cluster, and where in it.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct ConnectionArgs {
    /// Path of the kubeconfig file. Default: $KUBECONFIG, else ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig to use. Default: the current one.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Namespace where Culvert is installed. Default: it is looked for.
    #[arg(short, long, global = true, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make an invite and print its token, with which one cluster or host can join.
    #[command(after_help = INVITE_EXAMPLES)]
    Invite(InviteArgs),
    /// Print the identity of this cluster: what the Peer for it in another cluster names.
    Identity,
    /// Show the peers: whether they are ready, by which path, how far away.
    Peers(PeersArgs),
    /// Show everything: mesh, relays, peers, nodes, and per pair of nodes the path and why it is not direct.
    #[command(after_help = STATUS_EXAMPLES)]
    Status(StatusArgs),
    /// Ping a pod of a peer from a pod of this cluster.
    #[command(after_help = PING_EXAMPLES)]
    Ping(PingArgs),
}

/// What `invite` needs.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct InviteArgs {
    /// Prefixes that whoever joins may bring. Default: what it names, if that passes every check.
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',', value_parser = invite::check_prefix)]
    pub(crate) cidrs: Vec<String>,
    /// How long the token is good: 90s, 15m, 24h; at most 168h.
    #[arg(long, value_name = "DURATION", default_value = api::DEFAULT_TTL, value_parser = invite::check_ttl)]
    pub(crate) ttl: String,
    /// For a host without Kubernetes.
    #[arg(long)]
    pub(crate) host: bool,
    /// Name of the Invite. Default: a random one.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Write the token to this new file, readable by you only, instead of to stdout.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// How many seconds to wait for the operator.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) timeout: u64,
}

/// What `peers` needs.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct PeersArgs {
    /// As a table for people, or as JSON: the list that `status` has under `peers`.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: Format,
}

/// What `status` needs.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct StatusArgs {
    /// As tables for people, or as JSON.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: Format,
}

/// What `ping` needs.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct PingArgs {
    /// Address to ping, or [NAMESPACE/]POD.
    #[arg(value_name = "POD|IP")]
    pub(crate) target: ping::Target,
    /// Where to ping from: node/NAME or [NAMESPACE/]POD. Default: any node.
    #[arg(long, value_name = "POD|node/NAME")]
    pub(crate) from: Option<ping::Source>,
    /// Context of the cluster where the pod to ping is. Default: this cluster.
    #[arg(long, value_name = "NAME")]
    pub(crate) to_context: Option<String>,
    /// How many requests to send.
    #[arg(short, long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) count: u16,
    /// Image of the pod, which has to hold culvert-agent. Default: that of this cluster's agents.
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
}

impl Args {
    /// Does what the command line says.
    pub fn run(self) -> ExitCode {
        let terminal = Terminal::detect();
        let done = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(anyhow::Error::from)
            .and_then(|runtime| runtime.block_on(self.command.run(&self.connection, terminal)));
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                output::complain(&error);
                ExitCode::FAILURE
            }
        }
    }
}

impl Command {
    async fn run(&self, connection: &ConnectionArgs, terminal: Terminal) -> anyhow::Result<()> {
        match self {
            Self::Invite(args) => invite::run(connection, args, terminal).await,
            Self::Identity => identity::run(connection).await,
            Self::Peers(args) => peers::run(connection, args, terminal).await,
            Self::Status(args) => status::run(connection, args, terminal).await,
            Self::Ping(args) => ping::run(connection, args, terminal).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &[&str]) -> Result<Args, i32> {
        Args::try_parse_from(["kubectl-culvert"].iter().chain(line)).map_err(|e| e.exit_code())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn what_is_wrong_is_wrong_usage() {
        for line in [
            &["invite", "--ttl", "15"][..],
            &["invite", "--ttl", "169h"],
            &["invite", "--cidrs", "10.2.0.1/16"],
            &["invite", "--cidrs", "10.2.0.0/16,0.0.0.0/0"],
            &["ping"],
            &["ping", "Not/A_Pod"],
            &["ping", "10.2.0.5", "--count", "0"],
            &["status", "-o", "yaml"],
            &["peers", "-o", "wide"],
            &["nothing"],
        ] {
            assert_eq!(parse(line).expect_err("refused"), 2, "{line:?}");
        }
    }

    #[test]
    fn connection_options_may_stand_anywhere() {
        for line in [
            &["--context", "tokyo", "peers"][..],
            &["peers", "--context", "tokyo"],
        ] {
            let args = parse(line).expect("parses");
            assert_eq!(args.connection.context.as_deref(), Some("tokyo"));
        }
    }

    #[test]
    fn prefixes_are_split_at_commas() {
        let args = parse(&["invite", "--cidrs", "10.2.0.0/16,fd00:2::/64"]).expect("parses");
        let Command::Invite(invite) = args.command else {
            panic!("not invite");
        };
        assert_eq!(invite.cidrs, ["10.2.0.0/16", "fd00:2::/64"]);
    }
}
