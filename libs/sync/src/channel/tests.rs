//! A peer that says exactly what it is told to.

use culvert_relay::{AdmitRule, Server};
use derp::client::{self, Client};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::quic::{Endpoint, Link, LinkEnd, LinkInbox, LinkTiming};

const PATIENCE: Duration = Duration::from_secs(10);

fn secret(seed: u8) -> ClusterSecret {
    ClusterSecret::from_seed([seed; 32]).unwrap()
}

/// A cluster that waits for the peer of seed 2.
struct Waiting {
    sync: Sync,
}

impl Waiting {
    fn start(server: &Server) -> Self {
        let mut config = Config::new("waiting".parse().unwrap(), 1);
        config.timing.handshake = Duration::from_secs(1);
        // It does not dial in the middle of a test.
        config.timing.retry = Duration::from_secs(60);
        let url = format!("http://{}", server.address()).parse().unwrap();
        // Nothing changes, so nobody has to be there to change it.
        let inputs = Inputs {
            relays: watch::channel(vec![Relay::new(url)]).1,
            peers: watch::channel([secret(2).identity()].into()).1,
            records: watch::channel(Arc::default()).1,
            memberships: watch::channel(BTreeMap::new()).1,
            invites: watch::channel(BTreeSet::new()).1,
        };
        Self {
            sync: Sync::spawn(config, secret(1), inputs).unwrap(),
        }
    }

    async fn until(&self, what: &str, holds: impl Fn(&PeerView) -> bool) -> PeerView {
        let peer = secret(2).identity();
        let mut views = self.sync.peers();
        let wait = views.wait_for(|views| views.get(&peer).is_some_and(&holds));
        let views = timeout(PATIENCE, wait).await;
        views.unwrap_or_else(|_| panic!("never: {what}")).unwrap()[&peer].clone()
    }
}

/// The peer of seed 2.
struct Raw {
    _client: Client,
    endpoint: Endpoint,
    link: Link,
}

impl Raw {
    async fn dial(server: &Server) -> Self {
        let timing = LinkTiming {
            keep_alive: Duration::from_secs(1),
            idle: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
        };
        let endpoint = Endpoint::new(&secret(2), timing).unwrap();
        let switch = endpoint.switch();
        let url = format!("http://{}", server.address()).parse().unwrap();
        let (events_in, mut events) = mpsc::channel(64);
        let inbox = Arc::new(LinkInbox::new(Arc::clone(switch), 1));
        let config = client::Config::new(url, secret(2).relay_secret());
        let client = Client::spawn(config, inbox, events_in);
        switch.add_relay(1, client.outbox());
        let event = timeout(PATIENCE, events.recv()).await.unwrap();
        assert!(
            matches!(event, Some(client::Event::Connected { .. })),
            "{event:?}"
        );
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        switch.set_connected(1, true);
        let peer = secret(1).identity();
        let address = switch.pin(peer.relay_key());
        let link = endpoint.dial(peer, address).await.unwrap();
        Self {
            _client: client,
            endpoint,
            link,
        }
    }

    async fn say(&mut self, text: &str) {
        let length = u32::try_from(text.len()).unwrap().to_be_bytes();
        self.link.send.write_all(&length).await.unwrap();
        self.link.send.write_all(text.as_bytes()).await.unwrap();
    }

    async fn end(&self) -> LinkEnd {
        let end = timeout(PATIENCE, self.link.connection.closed()).await;
        (&end.expect("no end")).into()
    }
}

async fn relay() -> Server {
    let address = "127.0.0.1:0".parse().unwrap();
    Server::start(culvert_relay::Config::new(address, AdmitRule::Any))
        .await
        .unwrap()
}

const HELLO: &str = r#"{"hello": {"version": 9, "clusterName": "newer", "generation": 3,
    "capabilities": ["x"]}, "trace": {"id": 1}}"#;

#[tokio::test]
async fn that_its_task_has_failed_is_seen() {
    let server = relay().await;
    let waiting = Waiting::start(&server);
    assert!(!waiting.sync.has_failed());
    // As a panic would.
    waiting.sync.task.abort();
    let mut peers = waiting.sync.peers();
    let ended = timeout(PATIENCE, async { while peers.changed().await.is_ok() {} });
    assert!(ended.await.is_ok(), "who watches it is told");
    while !waiting.sync.has_failed() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_newer_peer_is_understood() {
    let server = relay().await;
    let waiting = Waiting::start(&server);
    let mut raw = Raw::dial(&server).await;
    raw.say(HELLO).await;
    raw.say(r#"{"weather": {"rain": true}}"#).await;
    let key = secret(3).identity().relay_key();
    raw.say(&format!(
        r#"{{"state": {{"sequence": 1, "first": true, "last": true, "services": [{{"name": "s"}}],
            "nodes": [{{"name": "n1", "publicKey": "{key}", "prefixes": ["10.7.0.0/24"], "zone": "z"}},
                      {{"name": "n2", "publicKey": "later:abc"}}]}}}}"#
    ))
    .await;
    let view = waiting
        .until("records", |view| view.records.is_some())
        .await;
    assert_eq!(
        view.state,
        PeerState::Up {
            cluster_name: "newer".parse().unwrap(),
            generation: 3,
            version: 9
        }
    );
    let records = view.records.unwrap();
    assert_eq!(records.len(), 1);
    assert_eq!(records.find("n1").unwrap().public_key(), key);
    assert_eq!(view.refused.len(), 1);
    assert_eq!(view.refused[0].name, "n2");
    assert!(!view.synced, "it has acknowledged nothing");
    raw.say(r#"{"ack": {"sequence": 1, "at": "now"}}"#).await;
    waiting.until("synced", |view| view.synced).await;
    raw.endpoint.close(CloseReason::Other(77)).await;
    let reason = DownReason::Told(CloseReason::Other(77));
    let view = waiting.until("down", |view| !view.is_up()).await;
    assert_eq!(view.state, PeerState::Down { reason });
}

#[tokio::test]
async fn what_is_no_message_ends_it() {
    let server = relay().await;
    let waiting = Waiting::start(&server);
    for (text, reason, told) in [
        ("{nonsense", DownReason::BadMessage, CloseReason::Protocol),
        (
            HELLO,
            DownReason::Misbehaved(SessionError::Greeting),
            CloseReason::Protocol,
        ),
    ] {
        let mut raw = Raw::dial(&server).await;
        raw.say(HELLO).await;
        waiting.until("up", PeerView::is_up).await;
        raw.say(text).await;
        assert_eq!(raw.end().await, LinkEnd::Told(told));
        let down = PeerState::Down { reason };
        waiting.until("down", |view| view.state == down).await;
    }
}

#[tokio::test]
async fn whoever_floods_is_told_to_stop() {
    let server = relay().await;
    let waiting = Waiting::start(&server);
    let mut raw = Raw::dial(&server).await;
    raw.say(HELLO).await;
    let flood = b"\0\0\0\x02{}".repeat(2000);
    // It may be over before all of it is written.
    let _ = raw.link.send.write_all(&flood).await;
    assert_eq!(raw.end().await, LinkEnd::Told(CloseReason::TooFast));
    let reason = DownReason::Misbehaved(SessionError::TooFast);
    let down = PeerState::Down { reason };
    waiting.until("down", |view| view.state == down).await;
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_not_up() {
    let server = relay().await;
    let waiting = Waiting::start(&server);
    let raw = Raw::dial(&server).await;
    // The handshake is done on both sides, and that is all.
    raw.end().await;
    let view = waiting
        .until("a reason", |view| view.state != PeerView::default().state)
        .await;
    assert!(!view.is_up());
    assert_eq!(view.records, None);
}
