//! A host joins a cluster over the cluster's own relay, then syncs with its operator.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use culvert_relay::{AdmitRule, Server};
use derp::pass::{LIFETIME, Membership, Pass, Scope};
use derp::{NodeSecret, RelayUrl};
use sync::{
    ClusterSecret, Config, Inputs, JoinAnswer, JoinRequest, NodeRecord, Records, Relay, Sync,
    TokenRelay,
};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::folders::Folders;
use crate::member::Member;
use crate::{Reporter, Snapshot, Source};

const PATIENCE: Duration = Duration::from_secs(30);

/// The inviting cluster: its relay, and what its operator does.
struct Berlin {
    secret: ClusterSecret,
    invite: ClusterSecret,
    relay: Server,
    peers: watch::Sender<BTreeSet<ClusterIdentity>>,
    sync: Sync,
    _memberships: watch::Sender<BTreeMap<ClusterIdentity, String>>,
}

impl Berlin {
    async fn start(folder: &Path) -> Self {
        let secret = ClusterSecret::from_seed([1; 32]).expect("a seed");
        let invite = ClusterSecret::from_seed([2; 32]).expect("a seed");
        let admit = folder.join("admit");
        std::fs::write(&admit, format!("{}\n", secret.identity())).expect("written");
        let rule = AdmitRule::File(admit);
        let config = culvert_relay::Config::new("127.0.0.1:0".parse().expect("address"), rule);
        let relay = Server::start(config).await.expect("starts");
        let (peers, peers_out) = watch::channel(BTreeSet::new());
        let (memberships, memberships_out) = watch::channel(BTreeMap::new());
        let inputs = Inputs {
            relays: watch::channel(vec![Relay::new(url(&relay))]).1,
            peers: peers_out,
            records: watch::channel(Arc::new(records())).1,
            memberships: memberships_out,
            invites: watch::channel(BTreeSet::from([invite.identity()])).1,
        };
        let config = Config::new("berlin".parse().expect("a name"), 1);
        let sync = Sync::spawn(config, secret.clone(), inputs).expect("starts");
        Self {
            secret,
            invite,
            relay,
            peers,
            sync,
            _memberships: memberships,
        }
    }

    fn token(&self) -> Token {
        let expires = SystemTime::now() + Duration::from_secs(900);
        let guest = self.invite.identity();
        let lobby = Membership::issue(&self.secret, guest, Scope::Lobby, expires);
        let pass = Pass::issue(&self.invite, guest.relay_key(), expires, Some(lobby));
        Token {
            inviter: self.secret.identity(),
            secret: self.invite.clone(),
            pass: pass.expect("a pass").to_string(),
            relays: vec![TokenRelay {
                url: url(&self.relay),
                stun_port: None,
                ca_bundle: None,
            }],
            expires,
            audience: Audience::Host,
            cluster_name: "berlin".parse().expect("a name"),
            cidrs: Vec::new(),
        }
    }

    /// Lets the first one in who asks.
    async fn admit(&mut self) -> ClusterIdentity {
        let mut requests = self.sync.join_requests().expect("not taken");
        let request: JoinRequest = timeout(PATIENCE, requests.recv())
            .await
            .expect("in time")
            .expect("running");
        let expires = SystemTime::now() + LIFETIME;
        let membership = Membership::issue(&self.secret, request.identity, Scope::Mesh, expires);
        let identity = request.identity;
        let answer = JoinAnswer::Welcome(Welcome {
            cluster_name: "berlin".parse().expect("a name"),
            cidrs: vec![net("10.1.0.0/16")],
            accepted: request.cidrs,
            membership: Some(membership.to_string()),
        });
        self.peers.send_replace(BTreeSet::from([identity]));
        request.answer.send(answer).expect("waited for");
        identity
    }
}

fn url(relay: &Server) -> RelayUrl {
    let address = relay.address();
    format!("http://{address}").parse().expect("a URL")
}

fn records() -> Records {
    let mut records = Records::default();
    let key = NodeSecret::from_bytes([7; 32]).public();
    for (name, prefix) in [("b1", "10.1.1.0/24"), ("greedy", "10.9.0.0/16")] {
        let key = if name == "b1" {
            key
        } else {
            NodeSecret::from_bytes([8; 32]).public()
        };
        let record = NodeRecord::new(key, None, vec![net(prefix)], 1).expect("a record");
        records
            .insert(name.parse().expect("a name"), Arc::new(record))
            .expect("room");
    }
    records
}

struct Silent;

impl Reporter for Silent {
    fn snapshot(&self) -> Pin<Box<dyn Future<Output = Snapshot> + Send + '_>> {
        Box::pin(async { Snapshot::default() })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_joins_and_learns_the_nodes_of_the_cluster() {
    let folder = TempDir::new().expect("a folder");
    let mut berlin = Berlin::start(folder.path()).await;
    let path = folder.path().join("state");
    let mut args = args(&path, Some("db1"), &["10.99.0.7/32"]);
    let text = berlin.token().to_text().expect("a token");
    args.token = Some(TokenText(text));
    let joining = tokio::task::spawn_blocking(move || join(&args));
    let identity = berlin.admit().await;
    timeout(PATIENCE, joining)
        .await
        .expect("in time")
        .expect("ends")
        .expect("joins");

    let state = StateFolder::open(&path).expect("opens");
    let secret = state.identity().expect("reads").expect("made");
    assert_eq!(secret.identity(), identity);
    let key = state.key().expect("a key").public();
    let member = Member::new(state.clone(), key, Arc::new(Silent));
    let mut source = Folders::new(None, state.joined(), member);
    let mut store = Store::new(key, None);
    let end = Instant::now() + PATIENCE;
    let nodes = |store: &Store| {
        let peers = store.accepted().peers.iter();
        let nodes = peers.flat_map(|peer| &peer.nodes);
        nodes
            .map(|node| (node.name.clone(), node.prefixes.clone()))
            .collect::<Vec<_>>()
    };
    while nodes(&store).is_empty() {
        assert!(Instant::now() < end, "no nodes: {:?}", store.statuses());
        if let Some(read) = source.look() {
            for told in read.told {
                store.learn(&told.peer, Some(told.identity), told.nodes);
            }
            source.in_force(store.update(&read.folder, &Surroundings::default()));
        }
        sleep(Duration::from_millis(20)).await;
    }
    let expected = [
        ("b1".to_owned(), vec![net("10.1.1.0/24")]),
        ("greedy".to_owned(), Vec::new()),
    ];
    assert_eq!(nodes(&store), expected, "outside allowedCIDRs is refused");
    assert_eq!(store.refused().len(), 1);

    let pass = source.pass(&url(&berlin.relay)).expect("a pass");
    let owners = HashSet::from([berlin.secret.identity()]);
    let admitted = derp::pass::verify(&pass, &owners, &key, SystemTime::now()).expect("admitted");
    assert_eq!(admitted.cluster, identity);

    let mut views = berlin.sync.peers();
    let ours = |views: &BTreeMap<ClusterIdentity, sync::PeerView>| {
        let records = views.get(&identity)?.records.clone()?;
        Some(records.find("db1")?.prefixes().to_vec())
    };
    let told = timeout(PATIENCE, async {
        loop {
            if let Some(prefixes) = ours(&views.borrow_and_update()) {
                return prefixes;
            }
            views.changed().await.expect("running");
        }
    });
    assert_eq!(told.await.expect("in time"), [net("10.99.0.7/32")]);
}
