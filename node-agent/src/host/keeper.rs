//! The task that holds the host as wanted: applies orders, repairs what others change, tells the tunnel of new networks.

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use api::Surroundings;
use arc_swap::ArcSwap;
use netconf::{Condition, Desired, Netconf};
use tokio::sync::{mpsc, oneshot};
use tunnel::{Tunnel, Wanted};

use super::names::RelayNames;

/// Pause after a failed repair; a host that refuses is not asked in a loop.
const RETRY: Duration = Duration::from_secs(1);

/// What shall be.
pub(super) struct Order {
    /// The tunnel, if there is a Mesh.
    pub(super) tunnel: Option<Arc<Tunnel>>,
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
            tokio::select! {
                order = orders.recv() => match order {
                    Some((order, done)) => {
                        let _ = done.send(self.obey(order).await);
                    }
                    None => return,
                },
                () = self.netconf.changed() => self.repair().await,
                () = self.relay_names.changed() => self.publish_relays(),
            }
        }
    }

    /// The tunnel first: relays connect while the host is configured.
    async fn obey(&mut self, order: Order) -> anyhow::Result<()> {
        self.relay_names
            .watch(order.wanted.relays.iter().map(|relay| relay.url.clone()));
        self.order = Some(order);
        self.tell_tunnel(false).await;
        self.program().await
    }

    async fn repair(&mut self) {
        if self.observe().await {
            self.tell_tunnel(true).await;
        }
        if let Err(error) = self.program().await {
            tracing::warn!(
                error = format!("{error:#}"),
                "the host is not as wanted; trying again"
            );
            tokio::time::sleep(RETRY).await;
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
        let hosts = self.netconf.host_addresses().await.unwrap_or_default();
        let own = |address| desired.local.iter().any(|prefix| prefix.contains(&address));
        let wanted = Wanted {
            host_addresses: hosts
                .iter()
                .map(|host| host.address)
                .filter(|&address| !own(address))
                .collect(),
            connected: self.surroundings.load().connected.clone(),
            ..wanted.clone()
        };
        if tunnel.apply(wanted).await.is_ok() && changed {
            // Only a stopped tunnel refuses, and then there is nothing to tell.
            let _ = tunnel.network_changed().await;
        }
    }

    /// Looks at the networks around; `true` when they have changed.
    async fn observe(&mut self) -> bool {
        let own = self
            .order
            .as_ref()
            .map_or(&[][..], |order| &order.desired.local);
        let connected = match self.netconf.connected(own).await {
            Ok(connected) => connected,
            Err(error) => {
                tracing::warn!(%error, "connected networks");
                return false;
            }
        };
        let before = self.surroundings.load();
        let changed = before.connected != connected;
        if changed {
            self.surroundings.store(Arc::new(Surroundings {
                connected,
                ..Surroundings::clone(&before)
            }));
        }
        changed
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
