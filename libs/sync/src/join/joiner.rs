//! The joiner's side: dials the relays of a token, and asks the inviter.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use derp::{ClusterIdentity, ClusterSecret, RelayUrl};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::message::{Ask, MAX_BYTES, Refused, RefusedCode, Welcome};
use super::{JoinAnswer, JoinError, JoinOffer, JoinTiming, is_final};
use crate::channel::{Backoff, Relay, RelayState, Relays};
use crate::message::CloseReason;
use crate::quic::{self, Endpoint, FrameError, Link, LinkEnd, LinkTiming};
use crate::token::Token;

/// The longest wait between two attempts.
const RETRY: Duration = Duration::from_secs(2);
/// Between two signs of life.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// How long nothing may arrive on a connection.
const IDLE: Duration = Duration::from_secs(5);

/// Asks the token's inviter to let us in, through any of the token's relays, until there is an answer or the time is over.
/// Whether the token has expired is for the caller to look at before.
///
/// When the answer is lost, the inviter may have let us in all the same: asking again with the same identity gives its
/// answer. That happens here by itself while there is time.
///
/// # Errors
/// When there is no consent; [`JoinError::may_pass`] says whether to try again.
///
/// # Panics
/// Outside a tokio runtime.
pub async fn join(
    token: &Token,
    us: &ClusterSecret,
    offer: JoinOffer,
    timing: JoinTiming,
) -> Result<Welcome, JoinError> {
    if us.identity().relay_key() == token.inviter.relay_key() {
        return Err(JoinError::Ourselves);
    }
    let ask = Ask::new(us, offer, token.inviter, token.secret.identity());
    let ask = ask.encode().ok_or(JoinError::TooMuch)?;
    let (joiner, mut relays) = Joiner::start(token, ask, timing)?;
    let mut last = None;
    let outcome = timeout(timing.total, joiner.run(&mut relays, &mut last)).await;
    let outcome = outcome.unwrap_or_else(|_| Err(joiner.why_late(last)));
    joiner.leave(relays);
    outcome
}

struct Joiner {
    inviter: ClusterIdentity,
    /// Of the inviter.
    address: SocketAddr,
    endpoint: Endpoint,
    /// The message to send.
    ask: Vec<u8>,
    timing: JoinTiming,
    /// In the token's order.
    urls: Vec<RelayUrl>,
    states: watch::Receiver<BTreeMap<RelayUrl, RelayState>>,
}

impl Joiner {
    fn start(token: &Token, ask: Vec<u8>, timing: JoinTiming) -> Result<(Self, Relays), JoinError> {
        let link_timing = LinkTiming {
            keep_alive: KEEP_ALIVE,
            idle: IDLE,
            handshake: timing.handshake,
        };
        let endpoint = Endpoint::new(&token.secret, link_timing)?;
        let mut relays = Relays::new(token.secret.clone(), endpoint.switch().clone());
        relays.set(token.relays.iter().map(|one| relay(token, one)).collect());
        let joiner = Self {
            inviter: token.inviter,
            address: endpoint.switch().pin(token.inviter.relay_key()),
            endpoint,
            ask,
            timing,
            urls: token.relays.iter().map(|one| one.url.clone()).collect(),
            states: relays.views(),
        };
        Ok((joiner, relays))
    }

    /// Asks until there is an answer, or no relay takes the token's pass.
    async fn run(
        &self,
        relays: &mut Relays,
        last: &mut Option<JoinError>,
    ) -> Result<Welcome, JoinError> {
        let mut asking = pin!(self.ask_until_answered(last));
        let mut is_told = false;
        loop {
            tokio::select! {
                outcome = &mut asking => return outcome,
                _ = relays.next() => self.check_refusals()?,
            }
            if !is_told && let Some((url, problem)) = trouble(&self.states.borrow()) {
                let trying_for = self.timing.total;
                tracing::info!(%url, problem, ?trying_for, "the relay cannot be used yet");
                is_told = true;
            }
        }
    }

    /// Asks as often as it may help; keeps the error that led to the last repetition.
    async fn ask_until_answered(&self, last: &mut Option<JoinError>) -> Result<Welcome, JoinError> {
        let mut states = self.states.clone();
        let mut backoff = Backoff::new(RETRY);
        loop {
            let connected = states.wait_for(|all| all.values().any(|one| one.connected));
            if connected.await.is_err() {
                return Err(JoinError::InviterUnreachable);
            }
            match self.ask_once().await {
                Err(error) if error.may_pass() => *last = Some(error),
                outcome => return outcome,
            }
            sleep(backoff.next_delay(rand::random())).await;
        }
    }

    async fn ask_once(&self) -> Result<Welcome, JoinError> {
        let link = self.endpoint.dial(self.inviter, self.address).await;
        let mut link = link.map_err(|error| meaning(LinkEnd::from(&error)))?;
        let answer = timeout(self.timing.answer, self.exchange(&mut link)).await;
        quic::close(&link.connection, CloseReason::Shutdown);
        match answer.unwrap_or(Err(JoinError::InviterUnreachable))? {
            JoinAnswer::Welcome(welcome) => Ok(welcome),
            JoinAnswer::Refused(refused) => Err(JoinError::Refused(refused)),
        }
    }

    async fn exchange(&self, link: &mut Link) -> Result<JoinAnswer, JoinError> {
        // If this fails, reading fails too, and knows why.
        let _ = link.send.write_all(&self.ask).await;
        let bytes = link.read_frame(MAX_BYTES).await.map_err(|error| {
            tracing::debug!(%error, "no answer of the inviter");
            match error {
                FrameError::Lost(end) => meaning(end),
                FrameError::Decode(_) | FrameError::Finished => JoinError::Misbehaved,
            }
        })?;
        JoinAnswer::decode(&bytes).map_err(|error| {
            tracing::debug!(%error, "the inviter's answer is none");
            JoinError::Misbehaved
        })
    }

    /// An error if all relays have refused us. More time would not change that.
    fn check_refusals(&self) -> Result<(), JoinError> {
        let states = self.states.borrow();
        let is_refused = |state: &RelayState| state.refusal.as_ref().is_some_and(is_final);
        if states.values().all(is_refused)
            && let Some(error) = self.relay_error(&states)
        {
            return Err(error);
        }
        Ok(())
    }

    /// Why there is no answer although the time is over.
    fn why_late(&self, last: Option<JoinError>) -> JoinError {
        let states = self.states.borrow();
        let relay_error = if states.values().any(|state| state.connected) {
            None
        } else {
            self.relay_error(&states)
        };
        last.or(relay_error)
            .unwrap_or(JoinError::InviterUnreachable)
    }

    /// What is wrong with the first relay.
    fn relay_error(&self, states: &BTreeMap<RelayUrl, RelayState>) -> Option<JoinError> {
        let url = self.urls.first()?.clone();
        let state = states.get(&url)?;
        let problem = state.refusal.as_ref().map(ToString::to_string);
        Some(JoinError::RelayUnreachable {
            url,
            problem: problem
                .or_else(|| state.problem.clone())
                .unwrap_or_else(|| "no answer".into()),
            refusal: state.refusal.clone(),
        })
    }

    /// Goes away, behind the caller's back: the inviter should hear of it, and nobody has to wait for that.
    fn leave(self, relays: Relays) {
        tokio::spawn(async move {
            self.endpoint.close(CloseReason::Shutdown).await;
            drop(relays);
        });
    }
}

/// A relay that has failed, if none is connected.
fn trouble(states: &BTreeMap<RelayUrl, RelayState>) -> Option<(&RelayUrl, &str)> {
    if states.values().any(|state| state.connected) {
        return None;
    }
    let mut problems = states
        .iter()
        .filter_map(|(url, state)| Some((url, state.problem.as_deref()?)));
    problems.next()
}

fn relay(token: &Token, one: &crate::token::TokenRelay) -> Relay {
    Relay {
        url: one.url.clone(),
        dial: None,
        ca_bundle: one.ca_bundle.clone(),
        pass: Some(token.pass.clone()),
    }
}

/// What the end of a connection means for a joiner.
fn meaning(end: LinkEnd) -> JoinError {
    match end {
        LinkEnd::WrongKey => JoinError::WrongKey,
        LinkEnd::Full => JoinError::Refused(Refused::new(RefusedCode::Busy, "")),
        LinkEnd::Told(CloseReason::Protocol | CloseReason::Other(_)) => JoinError::Misbehaved,
        LinkEnd::Told(_)
        | LinkEnd::RefusedKey
        | LinkEnd::Closed
        | LinkEnd::Lost
        | LinkEnd::Broken => JoinError::InviterUnreachable,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::SystemTime;

    use culvert_relay::{AdmitRule, Server};

    use super::*;
    use crate::channel::{Config, Inputs, Sync};
    use crate::token::{Audience, TokenRelay};

    fn secret(seed: u8) -> ClusterSecret {
        ClusterSecret::from_seed([seed; 32]).unwrap()
    }

    fn offer() -> JoinOffer {
        JoinOffer {
            audience: Audience::Cluster,
            cluster_name: "tokyo".parse().unwrap(),
            cidrs: Vec::new(),
        }
    }

    /// Cluster 1 with invite 2, and the token for it.
    async fn inviter() -> (Server, Sync, Token) {
        let config = culvert_relay::Config::new("127.0.0.1:0".parse().unwrap(), AdmitRule::Any);
        let server = Server::start(config).await.unwrap();
        let url: RelayUrl = format!("http://{}", server.address()).parse().unwrap();
        let inputs = Inputs {
            relays: watch::channel(vec![Relay::new(url.clone())]).1,
            peers: watch::channel(BTreeSet::new()).1,
            records: watch::channel(Default::default()).1,
            memberships: watch::channel(BTreeMap::new()).1,
            invites: watch::channel([secret(2).identity()].into()).1,
        };
        let config = Config::new("berlin".parse().unwrap(), 1);
        let sync = Sync::spawn(config, secret(1), inputs).unwrap();
        let token = Token {
            inviter: secret(1).identity(),
            secret: secret(2),
            pass: "pass".into(),
            relays: vec![TokenRelay {
                url,
                stun_port: None,
                ca_bundle: None,
            }],
            expires: SystemTime::UNIX_EPOCH,
            audience: Audience::Cluster,
            cluster_name: "berlin".parse().unwrap(),
            cidrs: Vec::new(),
        };
        (server, sync, token)
    }

    /// Sends these bytes instead of a request.
    async fn say(token: &Token, bytes: Vec<u8>) -> JoinError {
        let timing = JoinTiming::default();
        let (joiner, mut relays) = Joiner::start(token, bytes, timing).unwrap();
        let mut last = None;
        let outcome = timeout(timing.total, joiner.run(&mut relays, &mut last)).await;
        outcome.expect("it takes too long").unwrap_err()
    }

    #[test]
    fn trouble_is_a_failure_while_nothing_is_connected() {
        let url = |text: &str| text.parse::<RelayUrl>().unwrap();
        let failed = RelayState {
            problem: Some("connection refused".to_owned()),
            ..RelayState::default()
        };
        let connected = RelayState {
            connected: true,
            ..RelayState::default()
        };
        let mut states = BTreeMap::from([(url("https://a.example"), RelayState::default())]);
        assert_eq!(trouble(&states), None, "still dialling");
        states.insert(url("https://b.example"), failed);
        let expected = (&url("https://b.example"), "connection refused");
        assert_eq!(trouble(&states), Some(expected));
        states.insert(url("https://c.example"), connected);
        assert_eq!(trouble(&states), None);
    }

    #[tokio::test]
    async fn without_a_proof_nobody_is_asked() {
        let (_server, mut sync, token) = inviter().await;
        let invite = token.secret.identity();
        let other = secret(9).identity();
        for ask in [
            Ask::new(&secret(3), offer(), other, invite),
            Ask::new(&secret(3), offer(), token.inviter, other),
            Ask::new(&secret(2), offer(), token.inviter, invite),
        ] {
            let error = say(&token, ask.encode().unwrap()).await;
            assert!(
                matches!(&error, JoinError::Refused(told) if told.code == RefusedCode::BadProof),
                "{error}"
            );
        }
        assert!(sync.join_requests().unwrap().try_recv().is_err());
    }

    #[tokio::test]
    async fn what_is_no_request_is_told_so() {
        let (_server, mut sync, token) = inviter().await;
        for bytes in [
            b"\0\0\0\x02{}".to_vec(),
            b"\0\0\0\x02{]".to_vec(),
            b"\xff\0\0\0".to_vec(),
        ] {
            let error = say(&token, bytes).await;
            assert!(matches!(error, JoinError::Misbehaved), "{error}");
        }
        assert!(sync.join_requests().unwrap().try_recv().is_err());
    }
}
