//! A relay, and a cluster that is driven like an operator drives it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_relay::{AdmitRule, Server, StartError};
use derp::NodeSecret;
use sync::{
    ClusterIdentity, ClusterSecret, Config, NodeRecord, PeerState, PeerView, Records, Relay,
    RelayState, Sync, Timing,
};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// Longer than anything should take, shorter than a person waits.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Times that make an outage short.
pub(crate) const HASTY: Timing = Timing {
    keep_alive: Duration::from_millis(400),
    idle: Duration::from_millis(1500),
    handshake: Duration::from_millis(1500),
    retry: Duration::from_secs(1),
};

pub(crate) async fn relay() -> Server {
    relay_at("127.0.0.1:0".parse().unwrap()).await
}

/// A relay at an address that the one before it may be about to give up.
pub(crate) async fn relay_at(address: SocketAddr) -> Server {
    let config = culvert_relay::Config::new(address, AdmitRule::Any);
    let start = async {
        loop {
            match Server::start(config.clone()).await {
                Err(StartError::Bind { .. }) => sleep(Duration::from_millis(5)).await,
                started => return started.unwrap(),
            }
        }
    };
    timeout(PATIENCE, start)
        .await
        .expect("the address is not given up")
}

pub(crate) fn secret(seed: u8) -> ClusterSecret {
    ClusterSecret::from_seed([seed; 32]).unwrap()
}

pub(crate) fn identity(seed: u8) -> ClusterIdentity {
    secret(seed).identity()
}

pub(crate) fn records(numbers: impl IntoIterator<Item = usize>, generation: u64) -> Arc<Records> {
    let key = NodeSecret::from_bytes([9; 32]).public();
    let mut records = Records::default();
    for number in numbers {
        let prefix = format!("10.{}.{}.0/24", number / 256, number % 256);
        let relay = Some("https://relay.example.org".parse().unwrap());
        let record = NodeRecord::new(key, relay, vec![prefix.parse().unwrap()], generation);
        let name = format!("node-{number}.example.org").parse().unwrap();
        records.insert(name, Arc::new(record.unwrap())).unwrap();
    }
    Arc::new(records)
}

pub(crate) struct Cluster {
    pub(crate) identity: ClusterIdentity,
    pub(crate) records: watch::Sender<Arc<Records>>,
    pub(crate) peers: watch::Sender<BTreeSet<ClusterIdentity>>,
    pub(crate) relays: watch::Sender<Vec<Relay>>,
    pub(crate) sync: Sync,
}

impl Cluster {
    /// The cluster of this seed: it has one node, `node-SEED`.
    pub(crate) fn start(seed: u8, relays: &[&Server], peers: &[ClusterIdentity]) -> Self {
        Self::start_as(seed, 1, HASTY, relays, peers)
    }

    pub(crate) fn start_as(
        seed: u8,
        generation: u64,
        timing: Timing,
        relays: &[&Server],
        peers: &[ClusterIdentity],
    ) -> Self {
        let mut config = Config::new(format!("cluster-{seed}").parse().unwrap(), generation);
        config.timing = timing;
        let relays = relays.iter().map(|server| relay_of(server)).collect();
        let (records, records_out) = watch::channel(records([usize::from(seed)], 1));
        let (peers, peers_out) = watch::channel(peers.iter().copied().collect());
        let (relays, relays_out) = watch::channel(relays);
        let secret = secret(seed);
        Self {
            identity: secret.identity(),
            sync: Sync::spawn(config, secret, relays_out, peers_out, records_out).unwrap(),
            records,
            peers,
            relays,
        }
    }

    /// What is shown of a peer now.
    pub(crate) fn view(&self, peer: ClusterIdentity) -> Option<PeerView> {
        self.sync.peers().borrow().get(&peer).cloned()
    }

    /// Waits until what is shown of a peer is as it should be.
    pub(crate) async fn until(
        &self,
        what: &str,
        peer: ClusterIdentity,
        holds: impl Fn(&PeerView) -> bool,
    ) -> PeerView {
        let mut views = self.sync.peers();
        let wait = views.wait_for(|views| views.get(&peer).is_some_and(&holds));
        let Ok(views) = timeout(PATIENCE, wait).await else {
            panic!(
                "never: {what}; {:?}",
                self.view(peer).map(|view| view.state)
            )
        };
        views.unwrap()[&peer].clone()
    }

    pub(crate) async fn until_records(&self, peer: ClusterIdentity, wanted: &Arc<Records>) {
        let holds = |view: &PeerView| view.is_up() && view.records.as_ref() == Some(wanted);
        self.until("the records", peer, holds).await;
    }

    pub(crate) async fn until_up(&self, peer: ClusterIdentity) -> PeerView {
        let holds = |view: &PeerView| view.is_up() && view.records.is_some() && view.synced;
        self.until("up", peer, holds).await
    }

    /// Waits until a relay finds this wrong.
    pub(crate) async fn until_relay_says(&self, what: &str) {
        let says = |state: &RelayState| {
            state
                .problem
                .as_ref()
                .is_some_and(|text| text.contains(what))
        };
        let mut relays = self.sync.relays();
        let wait = relays.wait_for(|relays| relays.values().any(says));
        let heard = timeout(PATIENCE, wait).await;
        assert!(
            heard.is_ok(),
            "never: {what}; {:?}",
            *self.sync.relays().borrow()
        );
    }

    pub(crate) async fn until_down(&self, peer: ClusterIdentity, reason: sync::DownReason) {
        let down = PeerState::Down { reason };
        self.until("down", peer, |view| view.state == down).await;
    }
}

pub(crate) fn relay_of(server: &Server) -> Relay {
    Relay {
        url: format!("http://{}", server.address()).parse().unwrap(),
        ca_bundle: None,
    }
}
