//! A relay, and a cluster that is driven like an operator drives it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_relay::{AdmitRule, Server, StartError};
use derp::pass::{Membership, Pass, Scope};
use derp::{NodeSecret, RelayUrl};
use sync::{
    ClusterIdentity, ClusterSecret, Config, Inputs, NodeRecord, PeerState, PeerView, Records,
    Relay, RelayState, Sync, Timing,
};
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
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

/// A relay that this cluster owns: it lets in whoever has a pass from it.
pub(crate) async fn relay_owned_by(owner: ClusterIdentity) -> (Server, NamedTempFile) {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{owner}\n")).unwrap();
    let rule = AdmitRule::File(file.path().to_owned());
    let config = culvert_relay::Config::new("127.0.0.1:0".parse().unwrap(), rule);
    (Server::start(config).await.unwrap(), file)
}

/// What lets a cluster come to the relays of an owner.
pub(crate) fn pass(owner: u8, cluster: u8, scope: Scope, expires: SystemTime) -> String {
    let cluster = secret(cluster);
    let membership = Membership::issue(&secret(owner), cluster.identity(), scope, expires);
    let key = cluster.identity().relay_key();
    let pass = Pass::issue(&cluster, key, expires, Some(membership));
    pass.unwrap().to_string()
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
    pub(crate) memberships: watch::Sender<BTreeMap<ClusterIdentity, String>>,
    pub(crate) invites: watch::Sender<BTreeSet<ClusterIdentity>>,
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
        let relays = relays.iter().map(|server| relay_of(server)).collect();
        Self::start_with(seed, generation, timing, relays, peers)
    }

    pub(crate) fn start_with(
        seed: u8,
        generation: u64,
        timing: Timing,
        relays: Vec<Relay>,
        peers: &[ClusterIdentity],
    ) -> Self {
        let mut config = Config::new(format!("cluster-{seed}").parse().unwrap(), generation);
        config.timing = timing;
        let (records, records_out) = watch::channel(records([usize::from(seed)], 1));
        let (peers, peers_out) = watch::channel(peers.iter().copied().collect());
        let (relays, relays_out) = watch::channel(relays);
        let (memberships, memberships_out) = watch::channel(BTreeMap::new());
        let (invites, invites_out) = watch::channel(BTreeSet::new());
        let secret = secret(seed);
        let inputs = Inputs {
            relays: relays_out,
            peers: peers_out,
            records: records_out,
            memberships: memberships_out,
            invites: invites_out,
        };
        Self {
            identity: secret.identity(),
            sync: Sync::spawn(config, secret, inputs).unwrap(),
            records,
            peers,
            relays,
            memberships,
            invites,
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
    Relay::new(url_of(server.address()))
}

pub(crate) fn url_of(address: SocketAddr) -> RelayUrl {
    format!("http://{address}").parse().unwrap()
}

/// A wire to a relay that can be frozen: connections stand, and nothing comes through.
pub(crate) struct Wire {
    address: SocketAddr,
    frozen: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Wire {
    pub(crate) async fn to(relay: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (frozen, is_frozen) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut copies = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let relay = TcpStream::connect(relay).await.unwrap();
                let (client_in, client_out) = client.into_split();
                let (relay_in, relay_out) = relay.into_split();
                copies.spawn(copy(client_in, relay_out, is_frozen.clone()));
                copies.spawn(copy(relay_in, client_out, is_frozen.clone()));
            }
        });
        Self {
            address,
            frozen,
            _tasks: tasks,
        }
    }

    pub(crate) fn url(&self) -> RelayUrl {
        url_of(self.address)
    }

    pub(crate) fn freeze(&self) {
        self.frozen.send_replace(true);
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, frozen: watch::Receiver<bool>) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if !*frozen.borrow() && to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
