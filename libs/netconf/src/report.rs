//! What the caller is told: counts, conditions and errors.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

/// Outcome of [`apply`](crate::Netconf::apply).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Number of changes made; 0 on a host that was already as wanted.
    pub changed: usize,
    /// What could not be had, each with what to do about it.
    pub conditions: Vec<Condition>,
}

/// Something on the host that is in the way or missing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// Stable identifier.
    pub code: ConditionCode,
    /// One sentence with the fix in it.
    pub message: String,
}

impl Condition {
    pub(crate) fn new(code: ConditionCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// Kinds of [`Condition`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionCode {
    /// The device is wanted and not there yet.
    DeviceMissing,
    /// A sysctl on our device could not be written.
    DeviceSysctl,
    /// A firewall in a native nftables table drops, and only its owner can let the tunnel through.
    ForeignDrop,
    /// A rule of somebody else has our priority.
    ForeignRule,
    /// A routing table, nftables table or device of our name belongs to somebody else.
    Conflict,
    /// Packet forwarding is off and may not be turned on from here.
    ForwardingOff,
    /// Turning IPv6 forwarding on ends router advertisements on interfaces with `accept_ra=1`.
    Ipv6Forwarding,
    /// The kernel skips routes of a device without carrier.
    LinkdownRoutesIgnored,
    /// The `nft` program is missing or does not work.
    NftMissing,
    /// The iptables flavour that holds a DROP has no program here.
    IptablesMissing,
    /// Legacy iptables is in use, and the lock that its users share is out of reach.
    IptablesUnlocked,
    /// Translated flows from before could not be removed from connection tracking.
    OldFlows,
}

impl ConditionCode {
    /// The identifier as text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DeviceMissing => "DeviceMissing",
            Self::DeviceSysctl => "DeviceSysctl",
            Self::ForeignDrop => "ForeignDrop",
            Self::ForeignRule => "ForeignRule",
            Self::Conflict => "Conflict",
            Self::ForwardingOff => "ForwardingOff",
            Self::Ipv6Forwarding => "Ipv6Forwarding",
            Self::LinkdownRoutesIgnored => "LinkdownRoutesIgnored",
            Self::NftMissing => "NftMissing",
            Self::IptablesMissing => "IptablesMissing",
            Self::IptablesUnlocked => "IptablesUnlocked",
            Self::OldFlows => "OldFlows",
        }
    }
}

impl fmt::Display for ConditionCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An address of the host that others may be able to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAddress {
    /// The address.
    pub address: IpAddr,
    /// The network it is in.
    pub network: IpNet,
    /// Name of the interface that carries it.
    pub interface: String,
}

/// Outcome of [`cleanup`](crate::Netconf::cleanup).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CleanupReport {
    /// What was removed or restored, one description each; empty when nothing of ours was there.
    pub removed: Vec<String>,
    /// What of ours could not be removed, or was left because it is somebody else's.
    pub left: Vec<Condition>,
}

/// Why [`open`](crate::Netconf::open) failed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The names hold characters that must not reach a rule.
    #[error("device and table names must be 1 to 15 of a-z and 0-9")]
    Names,
    /// Something on the host has our name and is not ours.
    #[error("{0}")]
    Conflict(String),
    /// The journal cannot be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The state of the host cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Why [`apply`](crate::Netconf::apply) failed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The state of the host cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The journal cannot be written; nothing was changed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Some changes failed; all others were made.
    #[error("{failed} of {planned} host changes failed, the first: {first}")]
    Changes {
        /// How many failed.
        failed: usize,
        /// How many there were.
        planned: usize,
        /// The first failure.
        first: ChangeError,
    },
}

/// Why [`cleanup`](crate::Netconf::cleanup) failed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// The names hold characters that must not reach a rule.
    #[error("device and table names must be 1 to 15 of a-z and 0-9")]
    Names,
    /// The state of the host cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The journal cannot be removed.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// A failure to read host state.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Socket(#[source] std::io::Error),
    /// A netlink dump failed.
    #[error("cannot list {what}: {source}")]
    Netlink {
        /// What was listed.
        what: &'static str,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// A program failed.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// One change that failed.
#[derive(Debug, thiserror::Error)]
#[error("{change}: {source}")]
pub struct ChangeError {
    /// The change.
    pub change: String,
    /// Why.
    pub source: ChangeCause,
}

/// The cause of a [`ChangeError`].
#[derive(Debug, thiserror::Error)]
pub enum ChangeCause {
    /// The kernel refused over netlink.
    #[error(transparent)]
    Netlink(#[from] rtnetlink::Error),
    /// A program failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A file under `/proc/sys` cannot be written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// A program that could not be run, or failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// There is no such program.
    #[error("{program} is not installed; on Debian: apt-get install {package}")]
    Missing {
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// It could not be started or talked to.
    #[error("cannot run {program}: {source}")]
    Run {
        /// The program.
        program: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// It did not end in time and was killed.
    #[error("{program} did not end within {seconds} s; see whether another one holds its lock")]
    TimedOut {
        /// The program.
        program: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// It said no.
    #[error("{program} failed: {stderr}")]
    Failed {
        /// The program.
        program: &'static str,
        /// The first line it wrote to its standard error.
        stderr: String,
    },
}

/// A failure of the journal file.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It cannot be read.
    #[error("cannot read the journal {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It cannot be written.
    #[error("cannot write the journal {path}: {source}; its folder must be writable and have room")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}
