//! The data path: pod packets between a TUN device and remote nodes, in WireGuard, over a relay or directly.
//!
//! Two plain threads move packets (`outbound`, `inbound`); one async task, the driver, decides. It feeds the
//! sans-IO cores of `traversal` with what happens and carries out what they ask for. The threads read snapshots that
//! the driver publishes; per packet nothing crosses between them but the lock of one peer.

mod batch;
mod device;
mod driver;
mod inbound;
mod initiation;
mod outbound;
mod packet;
mod peer;
mod relay_link;
mod shared;
mod sockets;
mod table;
mod tunnel;
mod vital;
mod wireguard;

pub use tunnel::{
    Config, Endpoint, NodeSpec, NodeStatus, RelaySpec, RelayStatus, StartError, Status, Stopped,
    Tunnel, Wanted,
};
