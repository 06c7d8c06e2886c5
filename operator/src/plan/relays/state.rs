//! How relays are, for the status of the Mesh.

use api::{Finding, RelayFound};
use derp::RelayUrl;
use sync::PeerView;

use super::{Origin, Site};
use crate::plan::ground::Ground;

/// Most text of a problem.
const MAX_PROBLEM: usize = 1024;

/// A relay as it stands in the status.
pub(crate) fn found(ground: Ground<'_>, site: &Site) -> RelayFound {
    let url = site.url.as_ref();
    let inside = url.is_some_and(|url| ground.is_connected(url));
    RelayFound {
        name: site.name.chars().take(63).collect(),
        url: url.map(RelayUrl::to_string),
        dial: site.dial.as_ref().map(RelayUrl::to_string),
        stun_port: Some(i64::from(site.stun_port)),
        ca_bundle: site.ca_bundle.clone(),
        inside,
        outside: outside(ground, site),
        problem: problem(ground, site, inside),
    }
}

/// What `RelaysReady` is, given how all of them are.
pub(crate) fn findings(relays: &[RelayFound]) -> Finding {
    const KIND: &str = "RelaysReady";
    if relays.is_empty() {
        let message = "there is no relay; add one to the Mesh, or join a cluster that has one";
        return Finding::new(KIND, false, "NoRelay", message);
    }
    let down: Vec<String> = relays
        .iter()
        .filter(|relay| !relay.inside)
        .map(|relay| {
            let problem = relay.problem.as_deref().unwrap_or("not connected");
            format!("{}: {problem}", relay.name)
        })
        .collect();
    if down.is_empty() {
        return Finding::new(KIND, true, "Connected", "connected to every relay");
    }
    Finding::new(KIND, false, "RelayDown", down.join("; "))
}

/// That a relay works from outside is what a peer shows that is heard over it. It is remembered while its URL stays.
fn outside(ground: Ground<'_>, site: &Site) -> Option<bool> {
    let url = site.url.as_ref()?;
    if site.origin == Origin::Managed && is_heard_over(ground, url) {
        return Some(true);
    }
    let status = ground.mesh.status.as_ref()?;
    let before = status.relays.iter().find(|relay| relay.name == site.name)?;
    let same = before.url.as_ref() == Some(&url.to_string());
    before.outside.filter(|_| same)
}

/// A peer that speaks to us has come over a relay: over this one, if its nodes listen there or there is no other.
fn is_heard_over(ground: Ground<'_>, url: &RelayUrl) -> bool {
    let sync = &ground.world.sync;
    let is_only = sync.relays.keys().all(|other| other == url);
    sync.peers
        .values()
        .any(|peer| peer.is_up() && (is_only || listens_at(peer, url)))
}

fn listens_at(peer: &PeerView, url: &RelayUrl) -> bool {
    let records = peer.records.iter();
    records
        .flat_map(|records| records.iter())
        .any(|(_, record)| record.home_relay() == Some(url))
}

fn problem(ground: Ground<'_>, site: &Site, inside: bool) -> Option<String> {
    let seen = || {
        let state = ground.world.sync.relays.get(site.url.as_ref()?)?;
        state.problem.clone().filter(|_| !inside)
    };
    let problem = site.problem.clone().or_else(seen)?;
    Some(problem.chars().take(MAX_PROBLEM).collect())
}
