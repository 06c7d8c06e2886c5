use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use culvert_relay::Server;
use derp::RelayUrl;
use sync::{
    Audience, ClusterIdentity, JoinAnswer, JoinError, JoinOffer, JoinRequest, JoinTiming, Refused,
    RefusedCode, Token, TokenRelay, Welcome, join,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::support::{Cluster, PATIENCE, identity, relay, secret, url_of};

/// The inviter, the invite.
pub(crate) const INVITER: u8 = 1;
pub(crate) const INVITE: u8 = 77;

/// Times that make a failure short.
const HASTY: JoinTiming = JoinTiming {
    total: Duration::from_secs(3),
    handshake: Duration::from_millis(800),
    answer: Duration::from_secs(2),
};

pub(crate) fn inviter(relays: &[&Server]) -> (Cluster, mpsc::Receiver<JoinRequest>) {
    let mut cluster = Cluster::start(INVITER, relays, &[]);
    cluster.invites.send_replace([identity(INVITE)].into());
    let requests = cluster.sync.join_requests().unwrap();
    assert!(cluster.sync.join_requests().is_none());
    (cluster, requests)
}

fn token(relays: &[RelayUrl]) -> Token {
    let relays = relays.iter().map(|url| TokenRelay {
        url: url.clone(),
        stun_port: None,
        ca_bundle: None,
    });
    Token {
        inviter: identity(INVITER),
        secret: secret(INVITE),
        pass: "pass".into(),
        relays: relays.collect(),
        expires: SystemTime::now() + Duration::from_secs(900),
        audience: Audience::Cluster,
        cluster_name: "cluster-1".parse().unwrap(),
        cidrs: Vec::new(),
    }
}

pub(crate) fn token_for(server: &Server) -> Token {
    token(&[url_of(server.address())])
}

fn offer(seed: u8) -> JoinOffer {
    JoinOffer {
        audience: Audience::Cluster,
        cluster_name: format!("cluster-{seed}").parse().unwrap(),
        cidrs: vec![format!("10.{seed}.0.0/16").parse().unwrap()],
    }
}

pub(crate) fn welcome() -> Welcome {
    Welcome {
        cluster_name: "cluster-1".parse().unwrap(),
        cidrs: vec!["10.1.0.0/16".parse().unwrap()],
        accepted: vec!["10.2.0.0/17".parse().unwrap()],
        membership: Some("membership".into()),
    }
}

pub(crate) async fn ask(token: &Token, seed: u8, timing: JoinTiming) -> Result<Welcome, JoinError> {
    timeout(PATIENCE, join(token, &secret(seed), offer(seed), timing))
        .await
        .expect("it ends by itself")
}

async fn next(requests: &mut mpsc::Receiver<JoinRequest>) -> JoinRequest {
    timeout(PATIENCE, requests.recv())
        .await
        .expect("a request")
        .unwrap()
}

/// Lets the first identity in, and nobody after it. Says who asked.
pub(crate) fn first_come(requests: mpsc::Receiver<JoinRequest>) -> (JoinSet<()>, Asked) {
    first_come_slowly(requests, Duration::ZERO)
}

/// The same by an operator that takes so long for each.
fn first_come_slowly(
    mut requests: mpsc::Receiver<JoinRequest>,
    takes: Duration,
) -> (JoinSet<()>, Asked) {
    let asked = Asked::default();
    let mut tasks = JoinSet::new();
    let noted = asked.clone();
    tasks.spawn(async move {
        while let Some(request) = requests.recv().await {
            sleep(takes).await;
            let mut asked = noted.0.lock().unwrap();
            asked.push(request.identity);
            let answer = if asked[0] == request.identity {
                JoinAnswer::Welcome(welcome())
            } else {
                JoinAnswer::Refused(Refused::new(RefusedCode::Used, "by another cluster"))
            };
            let _ = request.answer.send(answer);
        }
    });
    (tasks, asked)
}

#[derive(Clone, Default)]
pub(crate) struct Asked(Arc<Mutex<Vec<ClusterIdentity>>>);

impl Asked {
    fn all(&self) -> Vec<ClusterIdentity> {
        self.0.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn a_token_is_all_that_is_needed() {
    let relay = relay().await;
    let (_cluster, mut requests) = inviter(&[&relay]);
    let text = token_for(&relay).to_text().unwrap();
    let token: Token = text.parse().unwrap();
    let started = Instant::now();
    let joining = tokio::spawn(async move { ask(&token, 2, JoinTiming::default()).await });
    let request = next(&mut requests).await;
    assert_eq!(request.invite, identity(INVITE));
    assert_eq!(request.identity, identity(2));
    assert_eq!(request.cluster_name, offer(2).cluster_name);
    assert_eq!(request.cidrs, offer(2).cidrs);
    request.answer.send(JoinAnswer::Welcome(welcome())).unwrap();
    assert_eq!(joining.await.unwrap().unwrap(), welcome());
    println!("joined in {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn every_refusal_arrives_as_it_is() {
    let relay = relay().await;
    let (_cluster, mut requests) = inviter(&[&relay]);
    let token = token_for(&relay);
    for code in [
        RefusedCode::Expired,
        RefusedCode::Used,
        RefusedCode::NameTaken,
        RefusedCode::Overlap,
        RefusedCode::NotAllowed,
    ] {
        let refused = Refused::new(code, "10.2.0.0/16 is of cluster-3");
        let (outcome, ()) = tokio::join!(ask(&token, 2, HASTY), async {
            let answer = JoinAnswer::Refused(refused.clone());
            next(&mut requests).await.answer.send(answer).unwrap();
        });
        let error = outcome.unwrap_err();
        assert!(!error.may_pass(), "{error}");
        assert!(matches!(error, JoinError::Refused(told) if told == refused));
    }
}

#[tokio::test]
async fn whoever_lost_the_answer_asks_again() {
    let relay = relay().await;
    let (_cluster, mut requests) = inviter(&[&relay]);
    let token = token_for(&relay);
    // The joiner is gone while the decision is made.
    let request = tokio::select! {
        outcome = ask(&token, 2, HASTY) => panic!("{outcome:?}"),
        request = next(&mut requests) => request,
    };
    let _ = request.answer.send(JoinAnswer::Welcome(welcome()));
    let (_tasks, asked) = first_come(requests);
    assert_eq!(ask(&token, 2, HASTY).await.unwrap(), welcome());
    assert_eq!(asked.all(), [identity(2)]);
}

#[tokio::test]
async fn while_nobody_decides_the_joiner_goes_on_asking() {
    let relay = relay().await;
    let (cluster, mut requests) = inviter(&[&relay]);
    let token = token_for(&relay);
    let (outcome, ()) = tokio::join!(ask(&token, 2, JoinTiming::default()), async {
        drop(next(&mut requests).await.answer);
        let request = next(&mut requests).await;
        // Closed by now, which does not take the answer away.
        cluster.invites.send_replace([].into());
        request.answer.send(JoinAnswer::Welcome(welcome())).unwrap();
    });
    assert_eq!(outcome.unwrap(), welcome());
    drop(requests);
    cluster.invites.send_replace([identity(INVITE)].into());
    let error = ask(&token, 2, HASTY).await.unwrap_err();
    assert!(error.may_pass(), "{error}");
    assert!(matches!(error, JoinError::Refused(told) if told.code == RefusedCode::Busy));
}

#[tokio::test]
async fn of_two_joiners_with_one_token_one_is_let_in() {
    // Both have one key, so what is for one may reach the other.
    for takes in [0, 100, 400] {
        let relay = relay().await;
        let (_cluster, requests) = inviter(&[&relay]);
        let (_tasks, asked) = first_come_slowly(requests, Duration::from_millis(takes));
        let token = token_for(&relay);
        let timing = JoinTiming::default();
        let started = Instant::now();
        let outcomes: [_; 2] = tokio::join!(ask(&token, 2, timing), ask(&token, 3, timing)).into();
        println!("{takes} ms each, both knew in {:?}", started.elapsed());
        let welcomed = outcomes.iter().filter(|one| one.is_ok()).count();
        let used = outcomes.iter().filter(|one| is_used(one)).count();
        assert_eq!((welcomed, used), (1, 1), "{takes} ms: {outcomes:?}");
        let winner = if outcomes[0].is_ok() { 2 } else { 3 };
        assert_eq!(asked.all()[0], identity(winner));
    }
}

fn is_used(outcome: &Result<Welcome, JoinError>) -> bool {
    matches!(outcome, Err(JoinError::Refused(told)) if told.code == RefusedCode::Used)
}

#[tokio::test]
async fn another_key_than_the_inviters_is_refused() {
    let relay = relay().await;
    let (_cluster, mut requests) = inviter(&[&relay]);
    let mut token = token_for(&relay);
    let mut bytes = *token.inviter.as_bytes();
    bytes[31] ^= 0x80;
    token.inviter = ClusterIdentity::from_bytes(bytes).unwrap();
    let error = ask(&token, 2, HASTY).await.unwrap_err();
    assert!(matches!(error, JoinError::WrongKey), "{error}");
    token.inviter = identity(9);
    let error = ask(&token, 2, HASTY).await.unwrap_err();
    assert!(matches!(error, JoinError::InviterUnreachable), "{error}");
    token.inviter = identity(2);
    let error = ask(&token, 2, HASTY).await.unwrap_err();
    assert!(matches!(error, JoinError::Ourselves), "{error}");
    assert!(requests.try_recv().is_err());
}

#[tokio::test]
async fn an_invite_that_is_not_open_gets_no_answer_until_it_is() {
    let relay = relay().await;
    let (cluster, requests) = inviter(&[&relay]);
    let (_tasks, asked) = first_come(requests);
    let token = token_for(&relay);
    cluster.invites.send_replace([identity(78)].into());
    let error = ask(&token, 2, HASTY).await.unwrap_err();
    assert!(matches!(error, JoinError::InviterUnreachable), "{error}");
    assert_eq!(asked.all(), []);
    let (outcome, ()) = tokio::join!(ask(&token, 2, JoinTiming::default()), async {
        cluster.invites.send_replace([identity(INVITE)].into());
    });
    assert_eq!(outcome.unwrap(), welcome());
}

#[tokio::test]
async fn a_key_that_is_in_use_opens_no_invite() {
    let relay = relay().await;
    let (cluster, requests) = inviter(&[&relay]);
    let (_tasks, asked) = first_come(requests);
    cluster.invites.send_replace([].into());
    cluster.peers.send_replace([identity(INVITE)].into());
    let peer = Cluster::start(INVITE, &[&relay], &[identity(INVITER)]);
    cluster.until_up(peer.identity).await;
    cluster
        .invites
        .send_replace([identity(INVITE), identity(INVITER)].into());
    drop(peer);
    let error = ask(&token_for(&relay), 2, HASTY).await.unwrap_err();
    assert!(
        error.may_pass() || matches!(error, JoinError::Misbehaved),
        "{error}"
    );
    assert_eq!(asked.all(), []);
}

#[tokio::test]
async fn without_a_relay_the_error_names_it() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let token = token(&[url_of(address)]);
    let started = Instant::now();
    let error = ask(&token, 2, HASTY).await.unwrap_err();
    assert!(started.elapsed() < HASTY.total + Duration::from_secs(1));
    assert!(error.may_pass());
    let JoinError::RelayUnreachable { url, problem, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(url, url_of(address));
    assert!(problem.contains("refused"), "{problem}");
}

#[tokio::test]
async fn one_relay_that_works_is_enough() {
    let (used, other) = (relay().await, relay().await);
    let (_cluster, requests) = inviter(&[&used]);
    let (_tasks, _asked) = first_come(requests);
    // One takes connections and says nothing, one does not exist, at one nobody is.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let addresses = [
        silent.local_addr().unwrap(),
        nobody,
        other.address(),
        used.address(),
    ];
    let started = Instant::now();
    let outcome = ask(&token(&addresses.map(url_of)), 2, JoinTiming::default()).await;
    assert_eq!(outcome.unwrap(), welcome());
    println!("joined among dead relays in {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(6));
}
