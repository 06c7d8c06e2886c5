//! The host plan: what a node's kernel must be told so that mesh prefixes lead into the tunnel device, and nothing
//! else on the host notices.
//!
//! [`plan()`] is pure: it compares a [`Desired`] with an [`Actual`] reading and lists [`Change`]s. [`Netconf`] reads,
//! applies and watches through rtnetlink, `nft`, iptables and sysctl files.
//!
//! What is *not* here: the device is made by the tunnel, not here; no policy of anybody is loosened, our own filter
//! chains never have policy drop; no string from outside reaches a program, only typed values; nothing that is not
//! marked as ours is removed.
//!
//! Nothing here outlives a reboot but the journal. From the start of the pods to the first [`Netconf::apply`] after
//! it there is neither route nor guard, and a pod's packet for a mesh prefix takes the default route; where that
//! matters, the agent has to start before the pods. From that `apply` on every prefix ever held is guarded again.
//!
//! What is programmed:
//! * the device: MTU, queue, addresses, its own sysctls, and the host's forwarding switches where pods need them;
//! * one routing table with a live route per reachable prefix and an unreachable one behind every prefix ever held,
//!   and one rule per family that leads to it;
//! * one nftables table: identity source NAT, tunnel port without connection tracking, source filter, egress guard, MSS clamp;
//! * accepts in the iptables flavour that holds a DROP.

mod actual;
mod apply;
mod cleanup;
mod condition;
mod desired;
mod exec;
mod iptables;
mod journal;
mod netconf;
mod netfilter;
mod netlink;
mod nft;
mod plan;
mod read;
mod report;
mod sysctl;
mod watch;

pub use crate::actual::{Actual, Device, Route, Rule, Target};
pub use crate::desired::{Desired, Names};
pub use crate::iptables::{Accept, Backend, Chain, Flavour};
pub use crate::netconf::Netconf;
pub use crate::nft::{Hook, NativeDrop, Sets, Table};
pub use crate::plan::{Change, plan};
pub use crate::report::{
    ApplyError, ChangeCause, ChangeError, CleanupError, CleanupReport, CommandError, Condition,
    ConditionCode, HostAddress, JournalError, OpenError, ReadError, Report,
};
