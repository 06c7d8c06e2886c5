//! Invites: their tokens, and what became of them.

mod token;
mod ttl;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use api::{Finding, Invite, InviteStatus, conditions, find_condition};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Resource, ResourceExt};
use sync::{ClusterIdentity, Token};

use super::draft::{Draft, by_age, find, later};
use super::ground::Ground;
use super::names::{self, INVITE};
use super::relays::Site;
use crate::action::{Action, Kind, Note, StatusOf};
use crate::world::World;

/// Invites that are heard at once.
const MAX_HEARD: usize = 256;
/// Seconds for which whoever comes too late is still told so.
const LATE: i64 = 600;
/// Seconds for which whoever has used an invite may be helped to a Peer that has not come to be.
pub(crate) const GRACE: i64 = 120;

/// What became of an invite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It can be used until then.
    Open(Timestamp),
    /// It was used as often as it may be.
    Used,
    /// Its time is over.
    Expired,
    /// Its `ttl` is none.
    BadTtl,
}

/// Sees to all invites: makes tokens, takes back those that are over, writes the status. One token a look, for there is one
/// fresh key.
pub(crate) fn write(ground: Ground<'_>, sites: &[Site], draft: &mut Draft) {
    let mut made = false;
    for invite in by_age(&ground.world.invites) {
        let status = match state(invite, ground.now) {
            State::Open(until) => open(ground, sites, invite, until, &mut made, draft),
            closed @ (State::Used | State::Expired | State::BadTtl) => {
                close(ground.world, invite, draft);
                tell_end(invite, closed, draft);
                with_finding(invite, base(invite), &said(closed), ground.now)
            }
        };
        put(invite, &status, draft);
    }
    delete_orphans(ground.world, draft);
}

/// Says of every invite that there is no Mesh to join.
pub(crate) fn without_mesh(world: &World, draft: &mut Draft) {
    for invite in &world.invites {
        let finding = Finding::new("Ready", false, "UnknownMesh", "there is no Mesh");
        let status = with_finding(invite, base(invite), &finding, draft.now());
        put(invite, &status, draft);
    }
}

/// Temporary identities that are heard: those that may come, and those that are to be told that they come too late.
pub(crate) fn heard(world: &World, now: Timestamp) -> BTreeSet<ClusterIdentity> {
    let invites = by_age(&world.invites).into_iter().rev();
    let heard = invites.filter(|invite| expires(invite).is_some_and(|end| now < later(end, LATE)));
    heard.filter_map(identity).take(MAX_HEARD).collect()
}

/// The invite of this temporary identity.
pub(crate) fn by_identity(world: &World, wanted: ClusterIdentity) -> Option<&Invite> {
    let mut invites = world.invites.iter().map(Arc::as_ref);
    invites.find(|invite| identity(invite) == Some(wanted))
}

/// Clusters that have just used an invite, each with the time at which its [`GRACE`] ends.
pub(crate) fn newcomers(
    world: &World,
    now: Timestamp,
) -> impl Iterator<Item = (ClusterIdentity, Timestamp)> {
    let statuses = world.invites.iter().filter_map(|one| one.status.as_ref());
    let redeemed = statuses.flat_map(|status| &status.redeemed);
    let ends =
        redeemed.filter_map(|one| Some((one.identity.parse().ok()?, later(one.at.0, GRACE))));
    ends.filter(move |(_, end)| now < *end)
}

/// What became of an invite by now.
pub(crate) fn state(invite: &Invite, now: Timestamp) -> State {
    let Some(end) = expires(invite) else {
        return State::BadTtl;
    };
    let uses = usize::try_from(invite.spec.uses.unwrap_or(1)).unwrap_or(1);
    let status = invite.status.as_ref();
    if status.is_some_and(|status| status.redeemed.len() >= uses) {
        return State::Used;
    }
    if now < end {
        State::Open(end)
    } else {
        State::Expired
    }
}

/// The status of an invite with the condition that this state calls for.
pub(crate) fn with_state(invite: &Invite, status: InviteStatus, now: Timestamp) -> InviteStatus {
    let after = Invite {
        status: Some(status.clone()),
        ..invite.clone()
    };
    let finding = said(state(&after, now));
    with_finding(invite, status, &finding, now)
}

fn open(
    ground: Ground<'_>,
    sites: &[Site],
    invite: &Invite,
    until: Timestamp,
    made: &mut bool,
    draft: &mut Draft,
) -> InviteStatus {
    draft.wake_at(until);
    let name = secret_name(invite);
    if let Some(token) = token_of(ground.world, &name) {
        let status = InviteStatus {
            identity: Some(token.secret.identity().to_string()),
            secret_name: Some(name),
            ..base(invite)
        };
        return with_finding(invite, status, &said(State::Open(until)), ground.now);
    }
    let finding = match token::secret(ground, sites, invite, name, until) {
        Err(message) => Finding::new("Ready", false, "NoRelay", message),
        Ok(secret) => {
            if !*made {
                *made = true;
                draft.push(Action::Create(secret.into()));
            }
            Finding::new("Ready", false, "Preparing", "the token is being made")
        }
    };
    with_finding(invite, base(invite), &finding, ground.now)
}

fn put(invite: &Invite, status: &InviteStatus, draft: &mut Draft) {
    let (name, version) = (invite.name_any(), invite.resource_version());
    let write = StatusOf::Invite(name, version, Box::new(status.clone()));
    draft.status(status, invite.status.as_ref(), write);
}

/// What stands in the status in any case.
fn base(invite: &Invite) -> InviteStatus {
    InviteStatus {
        expires_at: expires(invite).map(Time),
        secret_name: None,
        ..invite.status.clone().unwrap_or_default()
    }
}

fn said(state: State) -> Finding {
    match state {
        State::Open(until) => {
            let message = format!("the token can be used until {until}");
            Finding::new("Ready", true, "Pending", message)
        }
        State::Used => Finding::new("Ready", false, "Used", "the token has been used"),
        State::Expired => {
            let message = "the token was not used in time; make a new invite";
            Finding::new("Ready", false, "Expired", message)
        }
        State::BadTtl => {
            let message = "spec.ttl is no time from 1s to 168h, such as 15m; make a new invite";
            Finding::new("Ready", false, "BadTtl", message)
        }
    }
}

fn with_finding(
    invite: &Invite,
    status: InviteStatus,
    finding: &Finding,
    now: Timestamp,
) -> InviteStatus {
    let before = invite.status.as_ref();
    let before = before.map_or(&[][..], |status| &status.conditions);
    let findings = std::slice::from_ref(finding);
    InviteStatus {
        conditions: conditions(findings, before, invite.metadata.generation, now),
        ..status
    }
}

fn close(world: &World, invite: &Invite, draft: &mut Draft) {
    if let Some(secret) = find::<Secret>(&world.owned.secrets, &secret_name(invite)) {
        draft.delete(Kind::Secret, secret);
    }
}

/// A joiner sees by itself that its token has expired, and asks nobody; so whoever has invited hears of it from here.
fn tell_end(invite: &Invite, state: State, draft: &mut Draft) {
    let said = said(state);
    let before = invite.status.as_ref();
    let before = before.and_then(|status| find_condition(&status.conditions, said.kind));
    let is_known = before.is_some_and(|before| before.reason == said.reason);
    if state == State::Expired && !is_known {
        draft.push(Action::Event(Note {
            about: invite.object_ref(&()),
            warning: false,
            reason: said.reason,
            action: "Expire",
            note: said.message,
        }));
    }
}

fn delete_orphans(world: &World, draft: &mut Draft) {
    let names: BTreeSet<String> = world.invites.iter().map(|one| secret_name(one)).collect();
    for secret in &world.owned.secrets {
        let orphan = names::is_ours(&world.release, INVITE, &secret.metadata)
            && !names.contains(&secret.name_any());
        if orphan {
            draft.delete(Kind::Secret, secret.as_ref());
        }
    }
}

fn token_of(world: &World, name: &str) -> Option<Token> {
    let secret = find::<Secret>(&world.owned.secrets, name)?;
    token::read(secret)?.trim().parse().ok()
}

fn identity(invite: &Invite) -> Option<ClusterIdentity> {
    invite.status.as_ref()?.identity.as_ref()?.parse().ok()
}

/// From when it was made: nothing here depends on when anybody looks.
fn expires(invite: &Invite) -> Option<Timestamp> {
    let made = invite.metadata.creation_timestamp.as_ref()?.0;
    let ttl = invite.spec.ttl.as_deref().unwrap_or(api::DEFAULT_TTL);
    Some(later(made, ttl::seconds(ttl)?))
}

fn secret_name(invite: &Invite) -> String {
    names::joined("culvert-invite", &invite.name_any(), "")
}

pub(crate) use token::read as read_token;
