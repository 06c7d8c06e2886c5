//! Accepts in the iptables flavour that holds a DROP.
//!
//! A flavour is only ever spoken to when it is in use, because even listing an unused one leaves an empty table
//! behind. An accept goes as late as possible: after everything a policy engine put there, before the first rule
//! that drops the rest.

mod analysis;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;

use crate::desired::{Desired, Names};
use crate::exec::Program;
use crate::nft::{BaseChain, Hook};
use crate::report::CommandError;

pub(crate) use analysis::analyse;

/// The file that all users of legacy iptables on a host lock, and the only one it knows.
pub(crate) const LOCK: &str = "/run/xtables.lock";
/// What is locked instead where that file is out of reach: it always exists, and keeps at least our own runs apart.
const OWN_LOCK: (&str, &str) = ("XTABLES_LOCKFILE", "/dev/null");

/// Which of the two incompatible kernels interfaces holds a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flavour {
    /// The old xtables interface.
    Legacy,
    /// iptables on top of nftables.
    Nft,
}

/// One iptables: a flavour and a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// The flavour.
    pub flavour: Flavour,
    /// IPv6.
    pub v6: bool,
}

/// All of them.
pub(crate) const BACKENDS: [Backend; 4] = [
    Backend {
        flavour: Flavour::Nft,
        v6: false,
    },
    Backend {
        flavour: Flavour::Nft,
        v6: true,
    },
    Backend {
        flavour: Flavour::Legacy,
        v6: false,
    },
    Backend {
        flavour: Flavour::Legacy,
        v6: true,
    },
];

/// What an accept of ours lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Accept {
    /// Forwarded packets from the device.
    FromDevice,
    /// Forwarded packets into the device.
    IntoDevice,
    /// Datagrams to the tunnel's port.
    ToPort(u16),
    /// Datagrams of the tunnel's port.
    FromPort(u16),
}

/// A built-in chain of the filter table of one backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Where it is.
    pub backend: Backend,
    /// Which chain.
    pub hook: Hook,
    /// It can drop what no rule before its end accepts.
    pub drops: bool,
    /// Our accepts in it, copies included.
    pub ours: Vec<Accept>,
    /// Ours come before the drop and after every policy engine.
    pub placed: bool,
    /// Where ours belong, counted from 1 as if none were there; `None`: at the end.
    pub position: Option<usize>,
}

/// The accepts that `desired` asks of `chain`.
pub(crate) fn wanted(chain: &Chain, desired: &Desired) -> BTreeSet<Accept> {
    if !chain.drops || !desired.device {
        return BTreeSet::new();
    }
    let port = desired.listen_port;
    let accepts: &[Accept] = match chain.hook {
        Hook::Forward => &[Accept::FromDevice, Accept::IntoDevice],
        Hook::Input if port != 0 => &[Accept::ToPort(port)],
        Hook::Output if port != 0 => &[Accept::FromPort(port)],
        Hook::Input | Hook::Output => &[],
    };
    accepts.iter().copied().collect()
}

/// The backends in use: legacy ones whose filter table the kernel names, and nft ones that hold a base chain.
pub(crate) fn in_use(chains: &[BaseChain]) -> Vec<Backend> {
    BACKENDS
        .into_iter()
        .filter(|backend| match backend.flavour {
            Flavour::Legacy => has_legacy_filter(backend.v6),
            Flavour::Nft => chains
                .iter()
                .any(|chain| chain.is_iptables() && chain.family == backend.family()),
        })
        .collect()
}

fn has_legacy_filter(v6: bool) -> bool {
    let file = if v6 {
        "ip6_tables_names"
    } else {
        "ip_tables_names"
    };
    fs::read_to_string(format!("/proc/thread-self/net/{file}"))
        .is_ok_and(|names| names.lines().any(|name| name == "filter"))
}

impl Backend {
    /// Its family as nftables calls it.
    pub(crate) fn family(self) -> &'static str {
        if self.v6 { "ip6" } else { "ip" }
    }

    /// Its program.
    pub(crate) fn program(self) -> Program {
        let name = match (self.flavour, self.v6) {
            (Flavour::Legacy, false) => "iptables-legacy",
            (Flavour::Legacy, true) => "ip6tables-legacy",
            (Flavour::Nft, false) => "iptables-nft",
            (Flavour::Nft, true) => "ip6tables-nft",
        };
        Program {
            name,
            package: "iptables",
        }
    }

    /// Whether it needs the lock and cannot have it: legacy iptables then does nothing at all.
    pub(crate) fn lacks_lock(self) -> bool {
        self.flavour == Flavour::Legacy
            && File::open(LOCK).is_err()
            && OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(LOCK)
                .is_err()
    }

    async fn run(self, args: &[&str]) -> Result<String, CommandError> {
        let variables: &[_] = if self.lacks_lock() { &[OWN_LOCK] } else { &[] };
        self.program().run_with(args, "", variables).await
    }

    /// The filter table as `-S` prints it.
    pub(crate) async fn list(self) -> Result<String, CommandError> {
        self.run(&["-w", "10", "-S"]).await
    }

    /// Puts an accept at `position`, or at the end.
    pub(crate) async fn insert(
        self,
        hook: Hook,
        accept: Accept,
        position: Option<usize>,
        names: &Names,
    ) -> Result<(), CommandError> {
        let position = position.map(|position| position.to_string());
        let mut args = match &position {
            Some(position) => vec!["-w", "10", "-I", hook.chain(), position],
            None => vec!["-w", "10", "-A", hook.chain()],
        };
        let spec = accept.spec(names);
        args.extend(spec.iter().map(String::as_str));
        self.run(&args).await.map(drop)
    }

    /// Removes one accept.
    pub(crate) async fn delete(
        self,
        hook: Hook,
        accept: Accept,
        names: &Names,
    ) -> Result<(), CommandError> {
        let spec = accept.spec(names);
        let mut args = vec!["-w", "10", "-D", hook.chain()];
        args.extend(spec.iter().map(String::as_str));
        self.run(&args).await.map(drop)
    }
}

impl Accept {
    fn spec(self, names: &Names) -> Vec<String> {
        let device = names.device.as_str();
        let port;
        let matches: &[&str] = match self {
            Self::FromDevice => &["-i", device],
            Self::IntoDevice => &["-o", device],
            Self::ToPort(number) => {
                port = number.to_string();
                &["-p", "udp", "--dport", &port]
            }
            Self::FromPort(number) => {
                port = number.to_string();
                &["-p", "udp", "--sport", &port]
            }
        };
        let tail = [
            "-m",
            "comment",
            "--comment",
            names.comment(),
            "-j",
            "ACCEPT",
        ];
        matches
            .iter()
            .copied()
            .chain(tail)
            .map(str::to_owned)
            .collect()
    }
}
