//! What an inviter answers.

use std::sync::Arc;

use api::{Invite, InviteStatus, Peer, PeerSpec, Redeemed, check_prefix};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::{Resource, ResourceExt};
use sync::{Audience, JoinAnswer, MAX_PREFIXES, Refused, RefusedCode, Welcome};

use super::failure::of_refusal;
use super::private::is_private;
use crate::action::{Action, Answer, Note, Redemption};
use crate::plan::draft::{Draft, later};
use crate::plan::footing::Footing;
use crate::plan::ground::Ground;
use crate::plan::invites::{self, State};
use crate::plan::passes::Passes;
use crate::plan::peers::{Verdict, judge, rival};
use crate::plan::relays::{Site, own_sites};
use crate::plan::revocation::{is_denied, remember_also};
use crate::world::{JoinAsk, World};

/// What an inviter answers to one that wants to join, and what it writes for that. Asked again by the same one, the answer
/// is the same.
#[must_use]
pub fn answer(world: &World, ask: &JoinAsk) -> (Answer, Vec<Action>) {
    let Ok(footing) = Footing::of(world) else {
        return refused(Refused::new(RefusedCode::Busy, "not ready yet"));
    };
    let ground = footing.ground(world, Draft::new(world.now).now());
    let Some(invite) = invites::by_identity(world, ask.invite) else {
        let text = "this invite is not there any more";
        return refused(Refused::new(RefusedCode::Expired, text));
    };
    let sites = own_sites(ground);
    let peers = judge(ground, &sites);
    let desk = Desk {
        ground,
        invite,
        ask,
        sites: &sites,
        peers: &peers,
    };
    match desk.decide() {
        Ok(Consent { is_new }) => desk.welcome(is_new),
        Err(refusal) => {
            let (answer, mut actions) = refused(refusal.clone());
            actions.push(desk.note_refusal(&refusal));
            (answer, actions)
        }
    }
}

/// One that wants to join, and everything to decide by.
struct Desk<'a> {
    ground: Ground<'a>,
    invite: &'a Invite,
    ask: &'a JoinAsk,
    sites: &'a [Site],
    peers: &'a [Verdict<'a>],
}

/// That it may join.
struct Consent {
    /// Whether this uses the invite.
    is_new: bool,
}

impl Desk<'_> {
    fn decide(&self) -> Result<Consent, Refused> {
        self.check_audience()?;
        if let Some(used) = self.redeemed() {
            return match self.own_peer() {
                Some(_) => Ok(Consent { is_new: false }),
                // Redeemed, and then the Peer was not written.
                None if self.ground.now <= later(used.at.0, invites::GRACE)
                    && !is_denied(self.ground, self.ask.identity) =>
                {
                    self.check_offer()?;
                    Ok(Consent { is_new: false })
                }
                None => Err(Refused::new(
                    RefusedCode::Used,
                    "by this cluster, whose Peer has been deleted since",
                )),
            };
        }
        match invites::state(self.invite, self.ground.now) {
            State::Open(_) => {}
            State::Used => return Err(Refused::new(RefusedCode::Used, "")),
            State::Expired | State::BadTtl => return Err(Refused::new(RefusedCode::Expired, "")),
        }
        self.check_offer()?;
        Ok(Consent { is_new: true })
    }

    fn check_audience(&self) -> Result<(), Refused> {
        let Some(asking) = self.ask.audience else {
            return Ok(());
        };
        let text = match (self.invite.spec.audience, asking) {
            (api::Audience::Cluster, Audience::Cluster) | (api::Audience::Host, Audience::Host) => {
                return Ok(());
            }
            (api::Audience::Host, Audience::Cluster) => {
                "it is for a host, and a cluster asks; make one of type Cluster: kubectl culvert invite"
            }
            (api::Audience::Cluster, Audience::Host) => {
                "it is for a cluster, and a host asks; make one of type Host: kubectl culvert invite --host"
            }
        };
        Err(Refused::new(RefusedCode::WrongAudience, text))
    }

    fn check_offer(&self) -> Result<(), Refused> {
        self.check_name()?;
        if self.ask.cidrs.is_empty() || self.ask.cidrs.len() > MAX_PREFIXES {
            let text =
                format!("1 to {MAX_PREFIXES} ranges are needed; set spec.podCIDRs of the Mesh");
            return Err(Refused::new(RefusedCode::NotAllowed, &text));
        }
        self.ask
            .cidrs
            .iter()
            .try_for_each(|range| self.check_range(*range))
    }

    fn check_name(&self) -> Result<(), Refused> {
        let name = self.ask.cluster_name.as_str();
        let taken = |text: String| Err(Refused::new(RefusedCode::NameTaken, &text));
        if self.ask.identity.relay_key() == self.ground.identity().relay_key() {
            return Err(Refused::new(
                RefusedCode::NotAllowed,
                "a cluster cannot join itself",
            ));
        }
        // A host says by itself how it gets another name.
        let is_host = self.invite.spec.audience == api::Audience::Host;
        if name == self.ground.mesh.spec.cluster_name {
            return taken(if is_host {
                format!("this cluster is called {name} itself")
            } else {
                format!(
                    "both clusters are called {name}; delete the Mesh of one and make it anew with another clusterName"
                )
            });
        }
        let others = self.ground.world.peers.iter().map(Arc::as_ref);
        let other = others
            .filter(|peer| !self.is_own(peer))
            .find(|peer| calls_itself(peer, name));
        match other {
            Some(other) => {
                let way_out = if is_host {
                    ""
                } else {
                    "; take another clusterName"
                };
                taken(format!(
                    "Peer {} is called {name} already{way_out}",
                    other.name_any()
                ))
            }
            None => Ok(()),
        }
    }

    fn check_range(&self, range: IpNet) -> Result<(), Refused> {
        if let Err(problem) = check_prefix("", &range.to_string()) {
            return Err(Refused::new(RefusedCode::NotAllowed, &problem.message));
        }
        let within = |texts: &[String]| {
            let mut allowed = texts.iter().filter_map(|text| text.parse::<IpNet>().ok());
            allowed.any(|allowed| allowed.contains(&range))
        };
        let invited = &self.invite.spec.cidrs;
        if !invited.is_empty() && !within(invited) {
            let text = format!(
                "{range} is not in what the invite allows: {}",
                invited.join(", ")
            );
            return Err(Refused::new(RefusedCode::NotAllowed, &text));
        }
        if invited.is_empty() && self.own_peer().is_none() && !is_private(range) {
            let text = format!(
                "{range} is not private; if it is meant, name it in the invite: kubectl culvert invite --cidrs {range}"
            );
            return Err(Refused::new(RefusedCode::NotAllowed, &text));
        }
        if let Some(peer) = self.own_peer() {
            if !within(&peer.spec.allowed_cidrs) {
                let text = format!("{range} is not in allowedCIDRs of Peer {}", peer.name_any());
                return Err(Refused::new(RefusedCode::NotAllowed, &text));
            }
            return Ok(());
        }
        match rival(self.ground, self.sites, self.peers, range) {
            Some(problem) => Err(Refused::new(RefusedCode::Overlap, &problem.message)),
            None => Ok(()),
        }
    }

    fn welcome(&self, is_new: bool) -> (Answer, Vec<Action>) {
        let peer = self.own_peer();
        let accepted = match peer {
            Some(peer) => crate::plan::discovery::usable(&peer.spec.allowed_cidrs),
            None => self.ask.cidrs.clone(),
        };
        let mut actions = Vec::new();
        if is_new {
            actions.push(Action::Redeem(self.redemption()));
        }
        if peer.is_none() {
            actions.push(Action::Create(self.peer().into()));
        }
        // The membership must not be in the world before it is remembered whom it lets in.
        actions.extend(remember_also(self.ground, self.ask.identity));
        if is_new {
            actions.push(self.note(
                "Joined",
                false,
                format!("{} has joined", self.ask.cluster_name),
            ));
        }
        let cluster_name = self.ground.mesh.spec.cluster_name.parse();
        let Ok(cluster_name) = cluster_name else {
            return refused(Refused::new(RefusedCode::Busy, "the Mesh has no name"));
        };
        let passes = Passes::collect(self.ground, None);
        let mut ranges = self.ground.ranges.pods.clone();
        ranges.truncate(MAX_PREFIXES);
        let welcome = Welcome {
            cluster_name,
            cidrs: ranges,
            accepted: accepted.into_iter().take(MAX_PREFIXES).collect(),
            membership: Some(passes.for_cluster(self.ask.identity).to_string()),
        };
        let answer = Answer {
            reply: JoinAnswer::Welcome(welcome),
            redeems: is_new,
        };
        (answer, actions)
    }

    fn redemption(&self) -> Redemption {
        let mut status = self.invite.status.clone().unwrap_or_default();
        status.redeemed.push(Redeemed {
            identity: self.ask.identity.to_string(),
            cluster_name: self.ask.cluster_name.to_string(),
            at: Time(self.ground.now),
        });
        let status: InviteStatus = invites::with_state(self.invite, status, self.ground.now);
        Redemption {
            name: self.invite.name_any(),
            resource_version: self
                .invite
                .metadata
                .resource_version
                .clone()
                .unwrap_or_default(),
            status: Box::new(status),
        }
    }

    fn peer(&self) -> Peer {
        let ranges = self.ask.cidrs.iter().map(IpNet::to_string);
        Peer {
            metadata: ObjectMeta {
                name: Some(self.ask.cluster_name.to_string()),
                ..ObjectMeta::default()
            },
            spec: PeerSpec {
                mesh_ref: None,
                identity: Some(self.ask.identity.to_string()),
                allowed_cidrs: ranges.collect(),
                relays: Vec::new(),
                nodes: Vec::new(),
            },
            status: None,
        }
    }

    fn redeemed(&self) -> Option<&Redeemed> {
        let status = self.invite.status.as_ref()?;
        let own = self.ask.identity.to_string();
        status.redeemed.iter().find(|one| one.identity == own)
    }

    /// The Peer of whoever asks.
    fn own_peer(&self) -> Option<&Peer> {
        let mut peers = self.ground.world.peers.iter().map(Arc::as_ref);
        peers.find(|peer| self.is_own(peer))
    }

    fn is_own(&self, peer: &Peer) -> bool {
        peer.spec.identity.as_ref() == Some(&self.ask.identity.to_string())
    }

    fn note_refusal(&self, refusal: &Refused) -> Action {
        let note = format!("{} was refused: {refusal}", self.ask.cluster_name);
        self.note(of_refusal(refusal.code).reason(), true, note)
    }

    fn note(&self, reason: &'static str, warning: bool, note: String) -> Action {
        Action::Event(Note {
            about: self.invite.object_ref(&()),
            warning,
            reason,
            action: "Join",
            note,
        })
    }
}

fn calls_itself(peer: &Peer, name: &str) -> bool {
    let status = peer.status.as_ref();
    let called = status.and_then(|status| status.cluster_name.as_deref());
    peer.name_any() == name || called == Some(name)
}

fn refused(refusal: Refused) -> (Answer, Vec<Action>) {
    let answer = Answer {
        reply: JoinAnswer::Refused(refusal),
        redeems: false,
    };
    (answer, Vec::new())
}
