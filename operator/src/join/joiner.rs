//! When this cluster tries to join, and what it makes of the outcome.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use api::{ConditionStatus, ExternalRelay, Finding, Peer, PeerSpec, check_prefix};
use derp::pass::Membership;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use sync::{Audience, ClusterName, MAX_PREFIXES, Token, Welcome};

use super::private::is_private;
use crate::action::{Action, JoinOrder, Note};
use crate::plan::covers::checksum;
use crate::plan::draft::{Draft, find, later};
use crate::plan::ground::Ground;
use crate::plan::invites::read_token;
use crate::plan::names::{JOIN_SECRET, JOINED, JOINED_TOKEN};
use crate::plan::peers::{Verdict, rival};
use crate::plan::relays::Site;
use crate::world::{JoinAttempt, JoinCode, JoinFailure, JoinOutcome};

const KIND: &str = "Joined";

/// What is to be done about joining.
#[derive(Debug, Default)]
pub(crate) struct Joining {
    /// For the status of the Mesh; `None` if nobody asked this cluster to join.
    pub(crate) finding: Option<Finding>,
    /// An attempt that is due.
    pub(crate) order: Option<JoinOrder>,
    /// What the inviter gave for its relays.
    pub(crate) membership: Option<Membership>,
}

/// Decides about joining.
pub(crate) fn plan_join(
    ground: Ground<'_>,
    sites: &[Site],
    peers: &[Verdict<'_>],
    draft: &mut Draft,
) -> Joining {
    let Some(secret) = find::<Secret>(&ground.world.owned.secrets, JOIN_SECRET) else {
        return Joining::default();
    };
    let Some(text) = read_token(secret)
        .map(str::trim)
        .filter(|text| !text.is_empty())
    else {
        return Joining::default();
    };
    let sum = checksum(text.as_bytes());
    if annotation(secret, JOINED_TOKEN) == Some(&sum) {
        let peer = annotation(secret, JOINED).map_or("", String::as_str);
        let is_there = peers.iter().any(|verdict| verdict.name == peer);
        return Joining::said(true, "Joined", led_to(peer, is_there));
    }
    let token: Token = match text.parse() {
        Ok(token) => token,
        Err(error) => return Joining::failed(JoinCode::BadToken, format!("{error}")),
    };
    let application = Application {
        ground,
        sites,
        peers,
        secret,
        text,
        sum,
        token,
    };
    application.proceed(draft)
}

/// A token that has not been used up.
struct Application<'a> {
    ground: Ground<'a>,
    sites: &'a [Site],
    peers: &'a [Verdict<'a>],
    secret: &'a Secret,
    text: &'a str,
    sum: String,
    token: Token,
}

impl Joining {
    fn said(
        status: impl Into<ConditionStatus>,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            finding: Some(Finding::new(KIND, status, reason, message)),
            ..Self::default()
        }
    }

    fn failed(code: JoinCode, message: String) -> Self {
        Self::said(false, code.reason(), message)
    }
}

impl Application<'_> {
    fn proceed(&self, draft: &mut Draft) -> Joining {
        if self.token.audience == Audience::Host {
            let message = "the token is for a host; make an invite of type Cluster";
            return Joining::failed(JoinCode::WrongAudience, message.to_owned());
        }
        let Some(attempt) = self.attempt() else {
            let message = "waiting until the ranges of this cluster are known";
            return Joining::said(ConditionStatus::Unknown, "Waiting", message);
        };
        let outcome = self.ground.world.join.as_ref();
        let outcome = outcome.filter(|outcome| self.is_ours(&outcome.attempt));
        if let Some(Ok(welcome)) = outcome.map(|outcome| &outcome.result) {
            return self.settle(welcome, draft);
        }
        // Whoever would refuse the inviter afterwards must not use the token up.
        if let Err(failure) = self.foresee(&attempt) {
            return Joining::failed(failure.code, failure.message);
        }
        let same = outcome.filter(|outcome| outcome.attempt == attempt);
        match same.map(|outcome| (outcome, &outcome.result)) {
            Some((outcome, Err(failure))) => self.again(outcome, failure, attempt, draft),
            Some((_, Ok(_))) | None => self.first(attempt),
        }
    }

    fn first(&self, attempt: JoinAttempt) -> Joining {
        if self.is_expired() {
            let message = "the token was not used in time; ask for a new one";
            return Joining::failed(JoinCode::Expired, message.to_owned());
        }
        Joining {
            order: Some(self.order(attempt)),
            ..Joining::said(
                ConditionStatus::Unknown,
                "Joining",
                "asking the inviting cluster",
            )
        }
    }

    fn again(
        &self,
        outcome: &JoinOutcome,
        failure: &JoinFailure,
        attempt: JoinAttempt,
        draft: &mut Draft,
    ) -> Joining {
        let mut joining = Joining::failed(failure.code, failure.message.clone());
        let wait = failure.code.wait(outcome.failures);
        let Some(wait) = wait.filter(|_| !self.is_expired()) else {
            return joining;
        };
        let due = later(outcome.at, wait);
        if due <= self.ground.now {
            joining.order = Some(self.order(attempt));
        } else {
            // A look comes with whole seconds, and the outcome has parts of one.
            draft.wake_at(later(due, 1));
        }
        joining
    }

    /// Sees to it that there is a Peer for the inviter, and then that the token is not used again.
    fn settle(&self, welcome: &Welcome, draft: &mut Draft) -> Joining {
        let membership = welcome.membership.as_ref();
        let membership = membership.and_then(|text| text.parse().ok());
        let joining = match self.inviter_peer() {
            Some(peer) => {
                self.use_up(&peer.name_any(), draft);
                Joining::said(true, "Joined", led_to(&peer.name_any(), true))
            }
            None => match self.check(&welcome.cluster_name, &welcome.cidrs) {
                Ok(()) => {
                    draft.push(Action::Create(self.peer(welcome).into()));
                    let message = "the inviting cluster has let us in";
                    Joining::said(ConditionStatus::Unknown, "Joining", message)
                }
                Err(failure) => Joining::failed(failure.code, failure.message),
            },
        };
        Joining {
            membership,
            ..joining
        }
    }

    /// Whether we could have the inviter as a peer, by what the token says of it. What the inviter refuses by itself is left
    /// to it: that uses nothing up, and people hear of it on its side, too.
    fn foresee(&self, attempt: &JoinAttempt) -> Result<(), JoinFailure> {
        let (name, ranges) = (&self.token.cluster_name, &self.token.cidrs);
        let meets = |own: &IpNet| ranges.iter().any(|range| overlap(*own, *range));
        let is_refused = *name == attempt.cluster_name || attempt.cidrs.iter().any(meets);
        if is_refused || self.inviter_peer().is_some() {
            return Ok(());
        }
        self.check(name, ranges)
    }

    /// What the inviter says of itself is a proposal, too.
    fn check(&self, name: &ClusterName, ranges: &[IpNet]) -> Result<(), JoinFailure> {
        let refuse = |code, message| Err(JoinFailure { code, message });
        let name = name.as_str();
        let own = &self.ground.mesh.spec.cluster_name;
        if name == own || find(&self.ground.world.peers, name).is_some() {
            let message = format!(
                "the inviting cluster is called {name}, as this one or another Peer; make a Peer for it by hand, with identity {}",
                self.token.inviter
            );
            return refuse(JoinCode::NameTaken, message);
        }
        for range in ranges {
            if let Err(problem) = check_prefix("", &range.to_string()) {
                return refuse(JoinCode::NotAllowed, problem.message);
            }
            if !is_private(*range) {
                let message = format!(
                    "{range} of the inviting cluster is not private; if it is meant, make a Peer by hand, with identity {}",
                    self.token.inviter
                );
                return refuse(JoinCode::NotAllowed, message);
            }
            if let Some(problem) = rival(self.ground, self.sites, self.peers, *range) {
                return refuse(JoinCode::Overlap, problem.message);
            }
        }
        Ok(())
    }

    fn peer(&self, welcome: &Welcome) -> Peer {
        let relays = self.token.relays.iter().map(|relay| ExternalRelay {
            url: relay.url.to_string(),
            stun_port: Some(i64::from(relay.stun_port.unwrap_or_default())),
            ca_bundle: relay.ca_bundle.clone(),
            owner: Some(self.token.inviter.to_string()),
            ..ExternalRelay::default()
        });
        Peer {
            metadata: ObjectMeta {
                name: Some(welcome.cluster_name.to_string()),
                ..ObjectMeta::default()
            },
            spec: PeerSpec {
                mesh_ref: None,
                identity: Some(self.token.inviter.to_string()),
                allowed_cidrs: welcome.cidrs.iter().map(IpNet::to_string).collect(),
                relays: relays.collect(),
                nodes: Vec::new(),
            },
            status: None,
        }
    }

    /// Only if the Secret is still this one; its other fields stay whose they are.
    fn use_up(&self, peer: &str, draft: &mut Draft) {
        let annotations = [(JOINED, peer), (JOINED_TOKEN, &self.sum)];
        let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(JOIN_SECRET.to_owned()),
                namespace: Some(self.ground.world.release.namespace.clone()),
                uid: self.secret.metadata.uid.clone(),
                annotations: Some(BTreeMap::from(annotations)),
                ..ObjectMeta::default()
            },
            ..Secret::default()
        };
        draft.push(Action::Apply(secret.into()));
        draft.push(Action::Event(Note {
            about: kube::Resource::object_ref(self.ground.mesh, &()),
            warning: false,
            reason: "Joined",
            action: "Join",
            note: format!("joined {peer}"),
        }));
    }

    /// What we would say now; `None` while we do not know it.
    fn attempt(&self) -> Option<JoinAttempt> {
        let cidrs = &self.ground.ranges.pods;
        let cluster_name = self.ground.mesh.spec.cluster_name.parse().ok()?;
        (!cidrs.is_empty()).then(|| JoinAttempt {
            token: self.sum.clone(),
            secret: self.secret_uid().to_owned(),
            cluster_name,
            cidrs: cidrs.iter().copied().take(MAX_PREFIXES).collect(),
        })
    }

    fn is_ours(&self, attempt: &JoinAttempt) -> bool {
        attempt.token == self.sum && attempt.secret == self.secret_uid()
    }

    fn secret_uid(&self) -> &str {
        self.secret.metadata.uid.as_deref().unwrap_or_default()
    }

    fn order(&self, attempt: JoinAttempt) -> JoinOrder {
        JoinOrder {
            token: self.text.to_owned(),
            attempt,
        }
    }

    fn is_expired(&self) -> bool {
        self.token.expires <= SystemTime::from(self.ground.now)
    }

    fn inviter_peer(&self) -> Option<&Peer> {
        let inviter = self.token.inviter.to_string();
        let mut peers = self.ground.world.peers.iter().map(Arc::as_ref);
        peers.find(|peer| peer.spec.identity.as_ref() == Some(&inviter))
    }
}

fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

fn led_to(peer: &str, is_there: bool) -> String {
    let gone = "; it has been deleted since, and a new link takes a new token";
    format!(
        "the token has led to Peer {peer}{}",
        if is_there { "" } else { gone }
    )
}

fn annotation<'a>(secret: &'a Secret, key: &str) -> Option<&'a String> {
    secret.metadata.annotations.as_ref()?.get(key)
}
