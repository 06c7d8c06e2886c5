//! The task that holds the host as wanted: applies orders, repairs what others change, tells the tunnel of new networks.

use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::anyhow;
use api::Surroundings;
use arc_swap::ArcSwap;
use netconf::{Condition, Desired, Netconf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tunnel::{Tunnel, Wanted};

use super::names::RelayNames;
use crate::{Health, HostReport};

/// Pause after a failed repair: a host that refuses is not asked in a loop. Orders do not wait for its end.
const RETRY: Duration = Duration::from_secs(1);
/// Time between two signs of life.
const BEAT: Duration = Duration::from_secs(5);

/// What shall be.
pub(super) struct Order {
    /// The tunnel, if there is a Mesh. It is not kept alive from here: its successor needs its device and port.
    pub(super) tunnel: Option<Weak<Tunnel>>,
    /// For the tunnel; the host's addresses and networks are filled in here.
    pub(super) wanted: Wanted,
    /// For the host.
    pub(super) desired: Desired,
}

/// Handle of the task; it ends with the handle.
pub(super) struct Keeper {
    orders: mpsc::Sender<(Order, oneshot::Sender<anyhow::Result<()>>)>,
    surroundings: Arc<ArcSwap<Surroundings>>,
    report: Arc<ArcSwap<HostReport>>,
}

impl Keeper {
    pub(super) fn spawn(netconf: Netconf, health: Arc<Health>) -> Self {
        let (orders, received) = mpsc::channel(1);
        let surroundings = Arc::<ArcSwap<Surroundings>>::default();
        let report = Arc::<ArcSwap<HostReport>>::default();
        let task = Task {
            netconf,
            order: None,
            hosts: Vec::new(),
            retry_at: None,
            report: Arc::clone(&report),
            health,
            relay_names: RelayNames::new(),
            surroundings: Arc::clone(&surroundings),
        };
        tokio::spawn(task.run(received));
        Self {
            orders,
            surroundings,
            report,
        }
    }

    /// Carries an order out, and keeps to it until the next.
    pub(super) async fn obey(&self, order: Order) -> anyhow::Result<()> {
        let (done, outcome) = oneshot::channel();
        self.orders
            .send((order, done))
            .await
            .map_err(|_| anyhow!("the host's keeper has ended"))?;
        outcome
            .await
            .map_err(|_| anyhow!("the host's keeper has ended"))?
    }

    pub(super) fn surroundings(&self) -> Surroundings {
        Surroundings::clone(&self.surroundings.load())
    }

    /// How the host is, now and from now on.
    pub(super) fn report(&self) -> Arc<ArcSwap<HostReport>> {
        Arc::clone(&self.report)
    }
}

struct Task {
    netconf: Netconf,
    order: Option<Order>,
    /// Addresses at which others may reach this host.
    hosts: Vec<IpAddr>,
    /// When to repair again what could not be repaired.
    retry_at: Option<Instant>,
    report: Arc<ArcSwap<HostReport>>,
    health: Arc<Health>,
    relay_names: RelayNames,
    surroundings: Arc<ArcSwap<Surroundings>>,
}

impl Task {
    async fn run(
        mut self,
        mut orders: mpsc::Receiver<(Order, oneshot::Sender<anyhow::Result<()>>)>,
    ) {
        let mut beats = interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.observe().await;
        loop {
            self.health.beat("host", std::time::Instant::now());
            let retry_at = self.retry_at;
            tokio::select! {
                order = orders.recv() => match order {
                    Some((order, done)) => {
                        let _ = done.send(self.obey(order).await);
                    }
                    None => return,
                },
                () = self.netconf.changed(), if retry_at.is_none() => self.repair().await,
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => self.repair().await,
                () = self.relay_names.changed() => self.publish_relays(),
                _ = beats.tick() => {}
            }
        }
    }

    /// The tunnel first: relays connect while the host is configured.
    async fn obey(&mut self, order: Order) -> anyhow::Result<()> {
        self.relay_names.watch(
            order
                .wanted
                .relays
                .iter()
                .flat_map(|relay| std::iter::once(&relay.url).chain(&relay.dial).cloned()),
        );
        self.order = Some(order);
        self.retry_at = None;
        // What counts as a network around depends on what is our own.
        self.observe().await;
        self.tell_tunnel(false).await;
        self.program().await
    }

    async fn repair(&mut self) {
        if self.observe().await {
            self.tell_tunnel(true).await;
        }
        self.retry_at = None;
        if let Err(error) = self.program().await {
            tracing::warn!(
                error = format!("{error:#}"),
                "the host is not as wanted; trying again"
            );
            self.retry_at = Some(Instant::now() + RETRY);
        }
    }

    async fn program(&mut self) -> anyhow::Result<()> {
        let Some(order) = &self.order else {
            return Ok(());
        };
        let applied = self.netconf.apply(&order.desired).await;
        let before = self.report.load_full();
        let now = match &applied {
            Ok(report) => {
                if report.changed > 0 {
                    tracing::debug!(changes = report.changed, "host configured");
                }
                warn_of_new(&before.conditions, &report.conditions);
                HostReport {
                    programmed: Some(true),
                    problem: None,
                    conditions: report.conditions.clone(),
                }
            }
            Err(error) => HostReport {
                programmed: Some(false),
                problem: Some(error.to_string()),
                conditions: before.conditions.clone(),
            },
        };
        if *before != now {
            self.report.store(Arc::new(now));
        }
        applied?;
        Ok(())
    }

    async fn tell_tunnel(&mut self, changed: bool) {
        let Some(Order {
            tunnel: Some(tunnel),
            wanted,
            desired,
        }) = &self.order
        else {
            return;
        };
        let Some(tunnel) = tunnel.upgrade() else {
            return;
        };
        let own = |address: &IpAddr| desired.local.iter().any(|prefix| prefix.contains(address));
        let wanted = Wanted {
            host_addresses: self
                .hosts
                .iter()
                .filter(|address| !own(address))
                .copied()
                .collect(),
            connected: self.surroundings.load().connected.clone(),
            ..wanted.clone()
        };
        if tunnel.apply(wanted).await.is_ok() && changed {
            // Only a stopped tunnel refuses, and then there is nothing to tell.
            let _ = tunnel.network_changed().await;
        }
    }

    /// Looks at the networks around and at this host's addresses; `true` when either has changed.
    async fn observe(&mut self) -> bool {
        let own = self
            .order
            .as_ref()
            .map_or(&[][..], |order| &order.desired.local);
        let read = async {
            let connected = self.netconf.connected(own).await?;
            Ok::<_, netconf::ReadError>((connected, self.netconf.host_addresses().await?))
        };
        let (connected, hosts) = match read.await {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(%error, "networks and addresses of this host");
                return false;
            }
        };
        let mut hosts: Vec<IpAddr> = hosts.iter().map(|host| host.address).collect();
        hosts.sort_unstable();
        let moved = std::mem::replace(&mut self.hosts, hosts) != self.hosts;
        let before = self.surroundings.load();
        let changed = before.connected != connected;
        if changed {
            self.surroundings.store(Arc::new(Surroundings {
                connected,
                ..Surroundings::clone(&before)
            }));
        }
        changed || moved
    }

    fn publish_relays(&self) {
        let before = self.surroundings.load();
        let relay_addresses = self.relay_names.addresses();
        self.surroundings.store(Arc::new(Surroundings {
            relay_addresses,
            ..Surroundings::clone(&before)
        }));
    }
}

fn warn_of_new(before: &[Condition], now: &[Condition]) {
    for condition in now.iter().filter(|condition| !before.contains(condition)) {
        tracing::warn!(code = %condition.code, "{}", condition.message);
    }
}
