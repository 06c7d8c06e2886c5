//! What is counted, in the text format of OpenMetrics. All names begin with `culvert_relay_`; counters end with `_total`.
//!
//! | name | labels | what |
//! |---|---|---|
//! | `connections` | | clients that are connected |
//! | `queue_bytes` | | bytes of packets that wait for receivers |
//! | `accepts` | | TCP connections accepted |
//! | `admitted` | | clients let in |
//! | `rejected` | `reason` | connections not served, see [`Reject`] |
//! | `closed` | `reason` | connections ended because the rules or the time let the client in no longer, see [`Reject`] |
//! | `packets_in`, `bytes_in` | | packets received from clients |
//! | `packets_out` | | packets queued for clients |
//! | `bytes_out` | | bytes written to clients, frames of all kinds |
//! | `packets_dropped` | `reason` | packets dropped, see [`DropReason`] |
//! | `stun_requests` | `result` | datagrams on STUN sockets, see [`Stun`] |

use std::sync::atomic::AtomicI64;

use derp::Refusal;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// All counters of a relay.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    connections: Gauge<i64, AtomicI64>,
    queued_bytes: Gauge<i64, AtomicI64>,
    pub(crate) accepted: Counter,
    pub(crate) admitted: Counter,
    pub(crate) packets_in: Counter,
    pub(crate) bytes_in: Counter,
    pub(crate) packets_out: Counter,
    pub(crate) bytes_out: Counter,
    rejected: Family<RejectLabel, Counter>,
    closed: Family<RejectLabel, Counter>,
    dropped: Family<DropLabel, Counter>,
    stun: Family<StunLabel, Counter>,
}

/// Why a connection was not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the label values as they are written")]
pub(crate) enum Reject {
    /// The key is not in the admit list, and no owner vouches for it.
    not_admitted,
    /// The pass has expired.
    pass_expired,
    /// The pass cannot be read, is for another key, or is not signed.
    bad_pass,
    /// The key or its cluster is on a deny list.
    denied,
    /// As many connections as are allowed.
    too_many_connections,
    /// Too many connections on which the handshake is not done, in total or of this source.
    too_many_half_open,
    /// Too many new connections of this source.
    too_fast,
    /// No HTTP request.
    bad_http,
    /// No TLS handshake.
    bad_tls,
    /// No ClientInfo, or one that does not open.
    bad_handshake,
    /// TLS, HTTP or the handshake was not done in time.
    timeout,
}

/// Why a packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the label values as they are written")]
pub(crate) enum DropReason {
    /// Nobody is connected with the key, or only in the lobby of somebody else.
    unknown_dest,
    /// The receiver's queue was full, and the oldest gave way; or its connection was about to be closed.
    queue_head,
    /// The receiver left before it was written to.
    gone_disconnected,
    /// The sender is in the lobby, and may not meet the receiver or has had its share.
    lobby,
}

/// What became of a datagram on a STUN socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the label values as they are written")]
pub(crate) enum Stun {
    /// A binding request, answered.
    answered,
    /// It asked for what cannot be done here: error 420, or nothing where that would be longer than the request.
    refused,
    /// No binding request.
    malformed,
    /// Too many requests, of this source or in total.
    limited,
    /// The answer could not be sent.
    failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RejectLabel {
    reason: Reject,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabel {
    reason: DropReason,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StunLabel {
    result: Stun,
}

impl Reject {
    /// The label for a refusal.
    pub(crate) fn of(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::PassExpired => Self::pass_expired,
            Refusal::BadPass => Self::bad_pass,
            Refusal::Denied => Self::denied,
            Refusal::NotAdmitted | Refusal::Other(_) => Self::not_admitted,
        }
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("culvert_relay"),
            connections: Gauge::default(),
            queued_bytes: Gauge::default(),
            accepted: Counter::default(),
            admitted: Counter::default(),
            packets_in: Counter::default(),
            bytes_in: Counter::default(),
            packets_out: Counter::default(),
            bytes_out: Counter::default(),
            rejected: Family::default(),
            closed: Family::default(),
            dropped: Family::default(),
            stun: Family::default(),
        };
        metrics.register();
        metrics
    }

    pub(crate) fn count_rejected(&self, reason: Reject) {
        self.rejected.get_or_create(&RejectLabel { reason }).inc();
    }

    pub(crate) fn count_closed(&self, reason: Reject) {
        self.closed.get_or_create(&RejectLabel { reason }).inc();
    }

    pub(crate) fn count_dropped(&self, reason: DropReason, packets: u64) {
        if packets > 0 {
            self.dropped
                .get_or_create(&DropLabel { reason })
                .inc_by(packets);
        }
    }

    pub(crate) fn count_stun(&self, result: Stun) {
        self.stun.get_or_create(&StunLabel { result }).inc();
    }

    /// The text of a scrape, with the load of that moment.
    pub(crate) fn text(&self, (connections, queued_bytes): (usize, usize)) -> String {
        self.connections
            .set(i64::try_from(connections).unwrap_or(i64::MAX));
        self.queued_bytes
            .set(i64::try_from(queued_bytes).unwrap_or(i64::MAX));
        let mut out = String::new();
        if let Err(error) = text::encode(&mut out, &self.registry) {
            tracing::warn!(%error, "metrics cannot be written");
        }
        out
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "connections",
            "Clients that are connected",
            self.connections.clone(),
        );
        registry.register(
            "queue_bytes",
            "Bytes of packets that wait for receivers",
            self.queued_bytes.clone(),
        );
        registry.register("accepts", "TCP connections accepted", self.accepted.clone());
        registry.register("admitted", "Clients let in", self.admitted.clone());
        registry.register(
            "packets_in",
            "Packets received from clients",
            self.packets_in.clone(),
        );
        registry.register(
            "bytes_in",
            "Bytes of packets received from clients",
            self.bytes_in.clone(),
        );
        registry.register(
            "packets_out",
            "Packets queued for clients",
            self.packets_out.clone(),
        );
        registry.register(
            "bytes_out",
            "Bytes written to clients",
            self.bytes_out.clone(),
        );
        registry.register("rejected", "Connections not served", self.rejected.clone());
        registry.register(
            "closed",
            "Connections ended because the client may use the relay no longer",
            self.closed.clone(),
        );
        registry.register("packets_dropped", "Packets dropped", self.dropped.clone());
        registry.register(
            "stun_requests",
            "Datagrams on STUN sockets",
            self.stun.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_appear_with_their_labels() {
        let metrics = Metrics::new();
        metrics.count_dropped(DropReason::queue_head, 3);
        metrics.count_rejected(Reject::not_admitted);
        let text = metrics.text((7, 0));
        assert!(
            text.contains("culvert_relay_packets_dropped_total{reason=\"queue_head\"} 3"),
            "{text}"
        );
        assert!(
            text.contains("culvert_relay_rejected_total{reason=\"not_admitted\"} 1"),
            "{text}"
        );
        assert!(text.contains("culvert_relay_connections 7"), "{text}");
    }
}
