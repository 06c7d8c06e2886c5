//! A small internet in network namespaces, and the tools to send, watch and judge traffic in it.
//!
//! ```text
//!  pod-a0 ─┐                                                        ┌─ pod-b0
//!  pod-a1 ─┤ cni0 [node-a] eth0 ── lan [nat-a] wan ── site4 ┐       │
//!                                                         [core] ── … the same for site b
//!                            relay (two addresses) ── relay ┤
//!                            public host ──────────── public ┘
//! ```
//!
//! Every wide-area link is a subnet of its own out of `203.0.113.0/24`, and the core *routes* between them: a packet with
//! TTL 2 from a node behind a router dies there. A [`Lab`] owns all of it and removes all of it when dropped.
//!
//! The lab itself needs root, `ip`, `nft`, `nsenter` and `setpriv`; flushing a router's state needs `conntrack`, and hosts
//! with an iptables firewall need `iptables`. What real clusters need besides is said at [`cluster`].

pub mod capture;
pub mod classify;
pub mod cluster;
pub mod demo;
pub mod dump;
pub mod exec;
pub mod firewall;
pub mod image;
pub mod impair;
pub mod lab;
pub mod manifest;
pub mod namespace;
pub mod pair;
pub mod process;
pub mod product;
pub mod profile;
pub mod site;
pub mod status;
pub mod traffic;
pub mod wait;

pub use capture::{Capture, Class, Sniffed};
pub use cluster::{ApiServer, Cluster, ClusterSpec, Clusters, Kit, Proxy};
pub use dump::HostDump;
pub use firewall::Firewall;
pub use lab::{Host, Lab};
pub use namespace::Namespace;
pub use pair::{Pair, Side};
pub use process::{Agent, Relay, RelayOptions};
pub use profile::Profile;
pub use site::{Masquerade, Pod, Site, SiteSpec};
pub use status::{PathState, Status};
pub use wait::{figure, wait_for};
