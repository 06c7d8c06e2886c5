//! How relays are, for the status of the Mesh.

use std::collections::BTreeSet;

use api::{ConditionStatus, Finding, RelayFound};
use derp::RelayUrl;

use super::{Origin, Site};
use crate::plan::draft::{Draft, later};
use crate::plan::ground::Ground;
use crate::plan::revocation;

/// Seconds for which a peer that has come over a relay shows that others reach it.
const FRESH: i64 = 600;
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

/// What `RelayReachable` is: whether others reach the relays that run here; `None` if none does. When to look again goes
/// to `draft`.
pub(crate) fn reachable(
    ground: Ground<'_>,
    sites: &[Site],
    relays: &[RelayFound],
    draft: &mut Draft,
) -> Option<Finding> {
    const KIND: &str = "RelayReachable";
    let managed = sites.iter().filter(|site| site.origin == Origin::Managed);
    let managed: BTreeSet<&str> = managed.map(|site| site.name.as_str()).collect();
    for used in ground.world.sync.used.values() {
        draft.wake_at(later(*used, FRESH + 1));
    }
    let own = relays
        .iter()
        .filter(|relay| managed.contains(relay.name.as_str()));
    let (seen, unseen): (Vec<_>, Vec<_>) = own.partition(|relay| relay.outside == Some(true));
    let names = |relays: &[&RelayFound]| {
        let names = relays.iter().map(|relay| relay.name.as_str());
        names.collect::<Vec<_>>().join(", ")
    };
    match (seen.as_slice(), unseen.as_slice()) {
        ([], []) => None,
        (seen, []) => {
            let message = format!("peers come over {}", names(seen));
            Some(Finding::new(KIND, true, "PeerConnected", message))
        }
        (_, unseen) => {
            let message = format!(
                "no peer has come over {} for {} minutes, so nobody knows whether others reach it",
                names(unseen),
                FRESH / 60
            );
            Some(Finding::new(
                KIND,
                ConditionStatus::Unknown,
                "NotSeen",
                message,
            ))
        }
    }
}

/// What `RelaysReady` is, given how all of them are. It is about the relays of this cluster; those of a peer are that peer's,
/// and count only where there are no others.
pub(crate) fn findings(ground: Ground<'_>, sites: &[Site], relays: &[RelayFound]) -> Finding {
    const KIND: &str = "RelaysReady";
    if relays.is_empty() {
        let message = "there is no relay; add one to the Mesh, or join a cluster that has one";
        return Finding::new(KIND, false, "NoRelay", message);
    }
    let own = sites.iter().filter(|site| site.is_own());
    let own: BTreeSet<&str> = own.map(|site| site.name.as_str()).collect();
    let is_own = |relay: &&RelayFound| own.contains(relay.name.as_str());
    let connected = relays.iter().filter(|relay| relay.inside).count();
    if own.is_empty() && connected > 0 {
        let message = format!(
            "this cluster has no relay of its own; of its peers' {} it is connected to {connected}",
            relays.len()
        );
        return Finding::new(KIND, true, "OfPeers", message);
    }
    let counting = relays
        .iter()
        .filter(|relay| own.is_empty() || is_own(relay));
    let down: Vec<String> = counting.filter(|relay| !relay.inside).map(told).collect();
    if !down.is_empty() {
        return Finding::new(KIND, false, "RelayDown", down.join("; "));
    }
    let open = sites.iter().filter_map(|site| {
        let problem = revocation::problem(ground, site)?;
        Some(format!("{}: {problem}", site.name))
    });
    let open: Vec<String> = open.collect();
    if open.is_empty() {
        return Finding::new(KIND, true, "Connected", "connected to every own relay");
    }
    let message = format!("who was sent away can go on using {}", open.join("; "));
    Finding::new(KIND, false, "DenyListNotTaken", message)
}

fn told(relay: &RelayFound) -> String {
    let problem = relay.problem.as_deref().unwrap_or("not connected");
    format!("{}: {problem}", relay.name)
}

/// That a relay works from outside is what peers show that come over it; what was shown long ago says nothing.
fn outside(ground: Ground<'_>, site: &Site) -> Option<bool> {
    let used = ground.world.sync.used.get(site.url.as_ref()?)?;
    let fresh = later(*used, FRESH) > ground.now;
    (site.origin == Origin::Managed && fresh).then_some(true)
}

fn problem(ground: Ground<'_>, site: &Site, inside: bool) -> Option<String> {
    let seen = || {
        let state = ground.world.sync.relays.get(site.url.as_ref()?)?;
        state.problem.clone().filter(|_| !inside)
    };
    let open = || revocation::problem(ground, site);
    let problem = site.problem.clone().or_else(seen).or_else(open)?;
    Some(problem.chars().take(MAX_PROBLEM).collect())
}
