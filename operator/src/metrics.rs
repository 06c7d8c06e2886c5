//! What can be measured about the operator.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// Counts and measures; all of it from when the process began.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    runs: Counter,
    failures: Family<Failures, Counter>,
    duration: Histogram,
    leader: Gauge,
    peers: Gauge,
    connected: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failures {
    /// What was tried, never on which object: names would be without bounds.
    action: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("culvert_operator"),
            runs: Counter::<u64, AtomicU64>::default(),
            failures: Family::default(),
            duration: Histogram::new([0.005, 0.02, 0.1, 0.5, 2.0, 10.0]),
            leader: Gauge::default(),
            peers: Gauge::default(),
            connected: Gauge::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    /// Notes one look at the world and what it led to.
    pub(crate) fn reconciled(&self, took: Duration) {
        self.runs.inc();
        self.duration.observe(took.as_secs_f64());
    }

    /// Notes an action that failed.
    pub(crate) fn failed(&self, action: &'static str) {
        self.failures.get_or_create(&Failures { action }).inc();
    }

    /// Notes that this replica leads from now on.
    pub(crate) fn leads(&self) {
        self.leader.set(1);
    }

    /// Notes how many peers there are to speak to, and to how many we do.
    pub(crate) fn peers(&self, all: usize, connected: usize) {
        self.peers.set(i64::try_from(all).unwrap_or(i64::MAX));
        self.connected
            .set(i64::try_from(connected).unwrap_or(i64::MAX));
    }

    /// All of it as Prometheus reads it.
    pub(crate) fn render(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    fn register(&mut self) {
        let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        let registry = &mut self.registry;
        registry.register("build", "The operator", version);
        registry.register("reconciles", "Looks at the whole state", self.runs.clone());
        registry.register(
            "action_failures",
            "Writes that failed",
            self.failures.clone(),
        );
        registry.register_with_unit(
            "reconcile_duration",
            "How long a look and its writes take",
            Unit::Seconds,
            self.duration.clone(),
        );
        registry.register("leader", "Whether this replica leads", self.leader.clone());
        registry.register("peers", "Peers to speak to", self.peers.clone());
        registry.register(
            "peers_connected",
            "Peers that are spoken to",
            self.connected.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_rendered() {
        let metrics = Metrics::default();
        metrics.reconciled(Duration::from_millis(3));
        metrics.failed("apply");
        metrics.leads();
        metrics.peers(3, 2);
        let text = metrics.render().expect("renders");
        for line in [
            "culvert_operator_reconciles_total 1",
            "culvert_operator_action_failures_total{action=\"apply\"} 1",
            "culvert_operator_reconcile_duration_seconds_count 1",
            "culvert_operator_leader 1",
            "culvert_operator_peers 3",
            "culvert_operator_peers_connected 2",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
