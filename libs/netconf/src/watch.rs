//! Noticing that somebody changed the host.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use rtnetlink::MulticastGroup;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::desired::Names;
use crate::iptables::in_use;
use crate::netfilter;
use crate::nft::digest;
use crate::report::ReadError;
use crate::sysctl;

/// How long events are gathered before the caller is told.
const GATHER: Duration = Duration::from_millis(150);
/// The same while the host does not come to rest: somebody undoes what we do, or rewrites rules of his own all the time.
const GATHER_RESTLESS: Duration = Duration::from_secs(1);
/// Times in a row, without a rest in between, after which it counts as restless.
const RESTLESS: u32 = 4;
const REST: Duration = Duration::from_secs(1);
/// How often that is looked at which sends no events.
const POLL: Duration = Duration::from_millis(600);

const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// Marks of the things that send no events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pulse {
    generation: Option<u32>,
    legacy: Vec<u64>,
    sysctls: BTreeMap<String, String>,
}

impl Pulse {
    /// Takes the pulse now. Take it *before* reading the host, so that no change falls in between.
    pub(crate) async fn take(names: &Names) -> Self {
        let mut legacy = Vec::new();
        for backend in in_use(&[]) {
            let listing = backend.list().await.unwrap_or_default();
            legacy.push(digest(&listing));
        }
        Self {
            generation: netfilter::generation().await.ok(),
            legacy,
            sysctls: sysctl::read_all(names),
        }
    }
}

/// Events of the kernel, and the last pulse.
#[derive(Debug)]
pub(crate) struct Watch {
    notify: Arc<Notify>,
    tasks: Vec<JoinHandle<()>>,
    /// A change was seen that the caller has not been told of: `changed` may be cancelled while it gathers.
    pending: bool,
    pulse: Pulse,
    /// When the caller was told last, and how often in a row.
    told: Option<Instant>,
    in_a_row: u32,
    /// Kept over calls of `changed`, so that one cancelled often does not look more often.
    poll: Interval,
}

impl Watch {
    /// Subscribes, in the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Self, ReadError> {
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watch = Self {
            notify: Arc::new(Notify::new()),
            tasks: Vec::new(),
            pending: false,
            pulse: Pulse::default(),
            told: None,
            in_a_row: 0,
            poll,
        };
        watch.subscribe()?;
        Ok(watch)
    }

    /// A reading of the host starts: what happened until now will be in it.
    pub(crate) fn reading(&mut self, pulse: Pulse) {
        self.pending = false;
        self.pulse = pulse;
    }

    /// Resolves when something changed since the last reading.
    pub(crate) async fn changed(&mut self, names: &Names) {
        while !self.pending {
            tokio::select! {
                () = self.notify.notified() => self.pending = true,
                _ = self.poll.tick() => self.pending = self.look(names).await,
            }
        }
        tokio::time::sleep(self.gather(Instant::now())).await;
        self.pending = false;
        self.told = Some(Instant::now());
    }

    fn gather(&mut self, now: Instant) -> Duration {
        let rested = self.told.is_none_or(|told| now >= told + REST);
        self.in_a_row = if rested {
            0
        } else {
            self.in_a_row.saturating_add(1)
        };
        if self.in_a_row < RESTLESS {
            GATHER
        } else {
            GATHER_RESTLESS
        }
    }

    async fn look(&mut self, names: &Names) -> bool {
        if self.tasks.iter().any(JoinHandle::is_finished) {
            // Without its socket the subscription is blind: start another and read everything anew.
            if let Err(error) = self.subscribe() {
                tracing::debug!(%error, "cannot subscribe to changes");
            }
            return true;
        }
        let pulse = Pulse::take(names).await;
        let changed = pulse != self.pulse;
        self.pulse = pulse;
        changed
    }

    fn subscribe(&mut self) -> Result<(), ReadError> {
        self.stop();
        let (connection, handle, mut messages) =
            rtnetlink::new_multicast_connection(&GROUPS).map_err(ReadError::Socket)?;
        let notify = Arc::clone(&self.notify);
        self.tasks.push(tokio::spawn(connection));
        self.tasks.push(tokio::spawn(async move {
            // The connection lives as long as its handle. An overrun is a message too: whatever was lost, all is read again.
            let _handle = handle;
            while messages.next().await.is_some() {
                notify.notify_one();
            }
        }));
        Ok(())
    }

    fn stop(&mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iptables::{BACKENDS, Flavour};

    #[test]
    fn without_nft_chains_only_legacy_backends_are_in_use() {
        assert_eq!(BACKENDS.len(), 4);
        assert!(
            in_use(&[])
                .iter()
                .all(|backend| backend.flavour == Flavour::Legacy)
        );
    }
}
