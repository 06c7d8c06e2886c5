use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use culvert_relay::{AdmitRule, Config, Server};
use derp::client::{self, Client, Event};
use derp::pass::{Membership, Pass, Scope};
use derp::{ClusterIdentity, ClusterSecret, Message, NodeKey, PeerGoneReason, Refusal};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::client::{Collected, next_event};
use crate::support::{Raw, config, key, secret, until};

/// A relay of these owners that lets in these nodes without a pass.
pub(crate) struct Owned {
    _folder: tempfile::TempDir,
    path: PathBuf,
    pub(crate) config: Config,
}

impl Owned {
    pub(crate) fn by(owners: &[u8], nodes: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admit");
        let mut config = config();
        config.admit = AdmitRule::File(path.clone());
        config.timing.reload = Duration::from_millis(20);
        config.metrics = Some("127.0.0.1:0".parse().unwrap());
        let owned = Self {
            _folder: folder,
            path,
            config,
        };
        owned.admit(owners, nodes);
        owned
    }

    fn admit(&self, owners: &[u8], nodes: &[u8]) {
        let mut text = String::new();
        for owner in owners {
            writeln!(text, "{}", identity(*owner)).unwrap();
        }
        for node in nodes {
            writeln!(text, "node:{}", key(*node)).unwrap();
        }
        std::fs::write(&self.path, text).unwrap();
    }

    pub(crate) async fn start(&self) -> Server {
        Server::start(self.config.clone()).await.unwrap()
    }
}

pub(crate) fn cluster(seed: u8) -> ClusterSecret {
    ClusterSecret::from_seed([seed; 32]).unwrap()
}

pub(crate) fn identity(seed: u8) -> ClusterIdentity {
    cluster(seed).identity()
}

fn in_seconds(seconds: u64) -> SystemTime {
    SystemTime::now() + Duration::from_secs(seconds)
}

/// For a node of the owner itself.
pub(crate) fn own_pass(owner: u8, node: NodeKey) -> Pass {
    Pass::issue(&cluster(owner), node, in_seconds(3600), None).unwrap()
}

/// For a node of `member`, which `owner` admits.
pub(crate) fn pass_of(owner: u8, member: u8, node: NodeKey, scope: Scope) -> Pass {
    let until = in_seconds(3600);
    let membership = Membership::issue(&cluster(owner), identity(member), scope, until);
    Pass::issue(&cluster(member), node, until, Some(membership)).unwrap()
}

/// As an invite has it: of a key made for the occasion, good for the lobby of owner 10.
async fn lobby(server: &Server) -> Raw {
    let temporary = cluster(30).relay_secret();
    let pass = pass_of(10, 30, temporary.public(), Scope::Lobby);
    Raw::shown(server, &temporary, Some(&pass)).await
}

async fn send(from: &mut Raw, to: NodeKey, packet: &[u8]) {
    from.send(Message::SendPacket {
        destination: to,
        packet,
    })
    .await;
}

/// Packets whose sender waits for an answer.
fn initiation() -> Vec<u8> {
    let mut packet = vec![0; 148];
    packet[0] = 1;
    packet
}

#[tokio::test]
async fn passes_let_in_where_no_line_does() {
    let owned = Owned::by(&[10], &[1]);
    let server = owned.start().await;
    let mut member = Raw::shown(&server, &secret(1), None).await;
    member.settle().await;
    let own = own_pass(10, key(2));
    let mut own = Raw::shown(&server, &secret(2), Some(&own)).await;
    own.settle().await;
    let chain = pass_of(10, 20, key(3), Scope::Mesh);
    let mut chain = Raw::shown(&server, &secret(3), Some(&chain)).await;
    chain.send_packet(2, b"from a member").await;
    own.expect_packet(3, b"from a member").await;
    let mut owner = Raw::shown(&server, &cluster(10).relay_secret(), None).await;
    send(&mut owner, key(3), b"from the owner").await;
    chain
        .expect(Message::RecvPacket {
            source: identity(10).relay_key(),
            packet: b"from the owner",
        })
        .await;
}

#[tokio::test]
async fn each_refusal_says_why() {
    let owned = Owned::by(&[10], &[]);
    let server = owned.start().await;
    let long_ago = SystemTime::now() - Duration::from_secs(601);
    let expired = Pass::issue(&cluster(10), key(2), long_ago, None).unwrap();
    let old = Membership::issue(&cluster(10), identity(20), Scope::Mesh, long_ago);
    let expired_chain = Pass::issue(&cluster(20), key(2), in_seconds(60), Some(old)).unwrap();
    for (pass, refusal) in [
        (None, Refusal::NotAdmitted),
        (Some(own_pass(11, key(2))), Refusal::NotAdmitted),
        (
            Some(pass_of(11, 20, key(2), Scope::Mesh)),
            Refusal::NotAdmitted,
        ),
        (Some(own_pass(10, key(3))), Refusal::BadPass),
        (
            Some(pass_of(10, 30, key(2), Scope::Lobby)),
            Refusal::BadPass,
        ),
        (Some(expired), Refusal::PassExpired),
        (Some(expired_chain), Refusal::PassExpired),
    ] {
        let mut raw = Raw::shown(&server, &secret(2), pass.as_ref()).await;
        raw.expect_refusal(refusal).await;
    }
    let metrics = server.metrics_address().unwrap();
    until("all are counted by reason", async || {
        let text = crate::http::ask(metrics, "GET / HTTP/1.1\r\n\r\n").await;
        let counted = |line: &str| text.contains(&format!("culvert_relay_rejected_total{line}"));
        counted("{reason=\"not_admitted\"} 3")
            && counted("{reason=\"bad_pass\"} 2")
            && counted("{reason=\"pass_expired\"} 2")
    })
    .await;
}

#[tokio::test]
async fn a_clock_may_be_wrong_by_some_minutes() {
    let owned = Owned::by(&[10], &[]);
    let server = owned.start().await;
    let recently = SystemTime::now() - Duration::from_secs(500);
    let pass = Pass::issue(&cluster(10), key(2), recently, None).unwrap();
    let mut raw = Raw::shown(&server, &secret(2), Some(&pass)).await;
    raw.settle().await;
}

#[tokio::test]
async fn the_lobby_reaches_the_owner_and_nobody_else() {
    let owned = Owned::by(&[10, 11], &[1]);
    let server = owned.start().await;
    let mut guest = lobby(&server).await;
    let mut owner = Raw::shown(&server, &cluster(10).relay_secret(), None).await;
    let mut other_owner = Raw::shown(&server, &cluster(11).relay_secret(), None).await;
    let mut node = Raw::joined(&server, 1).await;
    let (guest_key, owner_key) = (identity(30).relay_key(), identity(10).relay_key());
    for stranger in [key(1), identity(11).relay_key(), key(9)] {
        send(&mut guest, stranger, &initiation()).await;
    }
    send(&mut guest, owner_key, b"may I").await;
    let asked = Message::RecvPacket {
        source: guest_key,
        packet: b"may I",
    };
    owner.expect(asked).await;
    // To strangers it is as absent as a key that is not here.
    for stranger in [&mut node, &mut other_owner] {
        for key in [guest_key, key(9)] {
            send(stranger, key, &initiation()).await;
            let reason = PeerGoneReason::NotHere;
            stranger.expect(Message::PeerGone { key, reason }).await;
        }
        stranger.settle().await;
    }
    send(&mut owner, guest_key, b"you may").await;
    // The first thing that the guest hears: nothing of those who are here, or not.
    let told = Message::RecvPacket {
        source: owner_key,
        packet: b"you may",
    };
    guest.expect(told).await;
    guest.settle().await;
    drop(node);
    let mut late = Raw::joined(&server, 1).await;
    late.settle().await;
    guest.settle().await;
}

#[tokio::test]
async fn the_lobby_hears_of_its_owner() {
    let owned = Owned::by(&[10], &[]);
    let server = owned.start().await;
    let mut guest = lobby(&server).await;
    let key = identity(10).relay_key();
    send(&mut guest, key, &initiation()).await;
    let reason = PeerGoneReason::NotHere;
    guest.expect(Message::PeerGone { key, reason }).await;
    let _owner = Raw::shown(&server, &cluster(10).relay_secret(), None).await;
    let present = Message::PeerPresent {
        key,
        address: None,
        flags: 0,
    };
    guest.expect(present).await;
}

#[tokio::test]
async fn the_lobby_is_no_place_for_traffic() {
    let owned = Owned::by(&[10], &[]);
    let server = owned.start().await;
    let mut guest = lobby(&server).await;
    let _owner = Raw::shown(&server, &cluster(10).relay_secret(), None).await;
    for _ in 0..20 {
        let mut flight = Vec::new();
        for _ in 0..100 {
            Message::SendPacket {
                destination: identity(10).relay_key(),
                packet: &[4; 100],
            }
            .encode(&mut flight);
        }
        guest.send_bytes(&flight).await;
    }
    guest.settle().await;
    assert_some_dropped_in_the_lobby(&server).await;
}

#[tokio::test]
async fn who_comes_again_has_no_larger_share_of_the_lobby() {
    let owned = Owned::by(&[10], &[]);
    let server = owned.start().await;
    for _ in 0..6 {
        let mut guest = lobby(&server).await;
        let mut flight = Vec::new();
        for _ in 0..900 {
            Message::SendPacket {
                destination: identity(10).relay_key(),
                packet: &[4],
            }
            .encode(&mut flight);
        }
        guest.send_bytes(&flight).await;
        guest.settle().await;
    }
    assert_some_dropped_in_the_lobby(&server).await;
}

async fn assert_some_dropped_in_the_lobby(server: &Server) {
    let metrics = server.metrics_address().unwrap();
    let text = crate::http::ask(metrics, "GET / HTTP/1.1\r\n\r\n").await;
    assert!(
        text.contains("packets_dropped_total{reason=\"lobby\"}"),
        "{text}"
    );
}

#[tokio::test]
async fn a_connection_ends_with_its_pass() {
    let mut owned = Owned::by(&[10], &[1]);
    owned.config.timing.pass_skew = Duration::from_millis(1500);
    let server = owned.start().await;
    let ends = SystemTime::now();
    let pass = |node| Pass::issue(&cluster(10), key(node), ends, None).unwrap();
    let mut short = Raw::shown(&server, &secret(2), Some(&pass(2))).await;
    let mut listed = Raw::shown(&server, &secret(1), Some(&pass(1))).await;
    short.settle().await;
    short.expect_refusal(Refusal::PassExpired).await;
    // Expiry is in whole seconds, and up to one of them is over already.
    let lasted = SystemTime::now().duration_since(ends).unwrap();
    let expected = Duration::from_millis(450)..Duration::from_secs(4);
    assert!(expected.contains(&lasted), "{lasted:?}");
    listed.settle().await;
    let mut again = Raw::shown(&server, &secret(2), Some(&pass(2))).await;
    again.expect_refusal(Refusal::PassExpired).await;
}

#[tokio::test]
async fn an_owner_takes_along_whom_it_let_in() {
    let owned = Owned::by(&[10, 11], &[1]);
    let server = owned.start().await;
    let of = |owner| pass_of(owner, 20, key(owner), Scope::Mesh);
    let mut gone = Raw::shown(&server, &secret(10), Some(&of(10))).await;
    let mut stays = Raw::shown(&server, &secret(11), Some(&of(11))).await;
    let mut owner = Raw::shown(&server, &cluster(10).relay_secret(), None).await;
    let mut listed = Raw::joined(&server, 1).await;
    owned.admit(&[11], &[1]);
    gone.expect_refusal(Refusal::NotAdmitted).await;
    owner.expect_refusal(Refusal::NotAdmitted).await;
    stays.settle().await;
    listed.settle().await;
}

#[tokio::test]
async fn without_its_line_a_node_comes_back_by_its_pass() {
    let owned = Owned::by(&[10], &[]);
    let node = identity(30).relay_key();
    std::fs::write(&owned.path, format!("{}\nnode:{node}\n", identity(10))).unwrap();
    let server = owned.start().await;
    let mut raw = lobby(&server).await;
    raw.settle().await;
    owned.admit(&[10], &[]);
    assert_eq!(raw.next().await.unwrap()[0], 0x15, "Restarting");
    raw.expect_end().await;
    let mut raw = lobby(&server).await;
    raw.settle().await;
}

#[tokio::test]
async fn a_renewed_pass_outlives_the_connection_of_the_one_before() {
    let mut owned = Owned::by(&[10], &[1]);
    owned.config.timing.pass_skew = Duration::from_millis(2500);
    let server = owned.start().await;
    let ending = Pass::issue(&cluster(10), key(2), SystemTime::now(), None).unwrap();
    let mut before = Raw::shown(&server, &secret(2), Some(&ending)).await;
    let mut renewed = Raw::shown(&server, &secret(2), Some(&own_pass(10, key(2)))).await;
    let frame = before.next().await.unwrap();
    assert_eq!(frame[0], 0x14, "told of the other connection");
    before.expect_refusal(Refusal::PassExpired).await;
    let mut node = Raw::joined(&server, 1).await;
    node.send_packet(2, b"still there").await;
    renewed.expect_packet(1, b"still there").await;
}

#[tokio::test]
async fn a_client_with_a_renewed_pass_is_not_refused_when_the_old_one_ends() {
    let mut owned = Owned::by(&[10], &[]);
    owned.config.timing.pass_skew = Duration::from_millis(2500);
    let server = owned.start().await;
    let url = format!("http://{}", server.address());
    let mut config = client::Config::new(url.parse().unwrap(), secret(2));
    let ending = Pass::issue(&cluster(10), key(2), SystemTime::now(), None).unwrap();
    config.pass = Some(ending.to_string());
    let (inbox, _packets) = Collected::new();
    let (events_in, mut events) = mpsc::channel(64);
    let client = Client::spawn(config, inbox, events_in);
    let event = next_that_is_no_measurement(&mut events).await;
    assert!(matches!(event, Event::Connected { .. }), "{event:?}");
    client.set_pass(Some(own_pass(10, key(2)).to_string()));
    let event = next_that_is_no_measurement(&mut events).await;
    assert!(matches!(event, Event::Health(_)), "{event:?}");
    let event = next_that_is_no_measurement(&mut events).await;
    assert!(matches!(event, Event::Disconnected { .. }), "{event:?}");
    assert_eq!(client.refusal(), None);
    let event = next_that_is_no_measurement(&mut events).await;
    assert!(matches!(event, Event::Connected { .. }), "{event:?}");
}

#[tokio::test]
async fn a_pass_that_comes_during_a_dial_is_shown_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let config = client::Config::new(url.parse().unwrap(), secret(2));
    let (inbox, _packets) = Collected::new();
    let (events_in, _events) = mpsc::channel(64);
    let client = Client::spawn(config, inbox, events_in);
    for _ in 0..5 {
        drop(listener.accept().await.unwrap());
    }
    let dial = listener.accept().await.unwrap();
    client.set_pass(Some(own_pass(10, key(2)).to_string()));
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    drop(dial);
    // After so many failures in a row the next attempt would wait for 800 ms at least.
    let next = timeout(Duration::from_millis(600), listener.accept()).await;
    assert!(next.is_ok(), "the new pass has to wait");
}

async fn next_that_is_no_measurement(events: &mut mpsc::Receiver<Event>) -> Event {
    loop {
        let event = next_event(events).await;
        if !matches!(event, Event::Rtt(_)) {
            return event;
        }
    }
}

#[tokio::test]
async fn a_client_shows_its_pass_and_a_new_one_when_it_gets_it() {
    let owned = Owned::by(&[10], &[]);
    let server = owned.start().await;
    let url = format!("http://{}", server.address());
    let mut config = client::Config::new(url.parse().unwrap(), secret(2));
    config.pass = Some(own_pass(10, key(3)).to_string());
    let (inbox, _packets) = Collected::new();
    let (events_in, mut events) = mpsc::channel(64);
    let client = Client::spawn(config, inbox, events_in);
    let event = next_that_is_no_measurement(&mut events).await;
    assert!(
        matches!(&event, Event::Health(text) if Refusal::from_health(text) == Some(Refusal::BadPass)),
        "{event:?}"
    );
    let event = next_that_is_no_measurement(&mut events).await;
    assert!(matches!(event, Event::Disconnected { .. }), "{event:?}");
    assert_eq!(client.refusal(), Some(Refusal::BadPass));
    client.set_pass(Some(own_pass(10, key(2)).to_string()));
    until("the new pass lets it in", async || client.is_connected()).await;
    assert_eq!(client.refusal(), None);
    let before = next_rtt(&mut events).await;
    client.set_pass(Some(own_pass(10, key(2)).to_string()));
    client.check_now();
    let after = next_rtt(&mut events).await;
    assert!(before && after, "the connection stands");
    owned.admit(&[], &[]);
    until("it is told why it is out", async || {
        client.refusal() == Some(Refusal::NotAdmitted)
    })
    .await;
}

/// Whether the next event, but for those of getting in, is a round trip.
async fn next_rtt(events: &mut mpsc::Receiver<Event>) -> bool {
    loop {
        match next_event(events).await {
            Event::Rtt(_) => return true,
            Event::Connected { .. } | Event::Health(_) => {}
            Event::Disconnected { error } if error.contains("not admitted") => {}
            Event::Disconnected { .. }
            | Event::PeerGone { .. }
            | Event::PeerPresent { .. }
            | Event::Restarting { .. } => return false,
        }
    }
}
