//! The task that holds the host as wanted: applies orders, repairs what others change, tells the tunnel of new networks.

use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::anyhow;
use api::Surroundings;
use arc_swap::ArcSwap;
use netconf::{Condition, Desired, Netconf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tunnel::{Tunnel, Wanted};

use super::names::RelayNames;

/// Pause after a failed repair: a host that refuses is not asked in a loop. Orders do not wait for its end.
const RETRY: Duration = Duration::from_secs(1);

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
}

impl Keeper {
    pub(super) fn spawn(netconf: Netconf) -> Self {
        let (orders, received) = mpsc::channel(1);
        let surroundings = Arc::<ArcSwap<Surroundings>>::default();
        let task = Task {
            netconf,
            order: None,
            hosts: Vec::new(),
            retry_at: None,
            conditions: Vec::new(),
            relay_names: RelayNames::new(),
            surroundings: Arc::clone(&surroundings),
        };
        tokio::spawn(task.run(received));
        Self {
            orders,
            surroundings,
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
}

struct Task {
    netconf: Netconf,
    order: Option<Order>,
    /// Addresses at which others may reach this host.
    hosts: Vec<IpAddr>,
    /// When to repair again what could not be repaired.
    retry_at: Option<Instant>,
    conditions: Vec<Condition>,
    relay_names: RelayNames,
    surroundings: Arc<ArcSwap<Surroundings>>,
}

impl Task {
    async fn run(
        mut self,
        mut orders: mpsc::Receiver<(Order, oneshot::Sender<anyhow::Result<()>>)>,
    ) {
        self.observe().await;
        loop {
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
            }
        }
    }

    /// The tunnel first: relays connect while the host is configured.
    async fn obey(&mut self, order: Order) -> anyhow::Result<()> {
        self.relay_names
            .watch(order.wanted.relays.iter().map(|relay| relay.url.clone()));
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
        let report = self.netconf.apply(&order.desired).await?;
        if report.changed > 0 {
            tracing::debug!(changes = report.changed, "host configured");
        }
        for condition in report
            .conditions
            .iter()
            .filter(|condition| !self.conditions.contains(condition))
        {
            tracing::warn!(code = %condition.code, "{}", condition.message);
        }
        self.conditions = report.conditions;
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
