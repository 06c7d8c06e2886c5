//! The deny list: who was let in and is no longer, until their passes have run out.
//!
//! A `ConfigMap` remembers who is let in, so that it shows when somebody no longer is, also to an operator that was away
//! meanwhile. Relays are told the list as it is remembered: a serial is never used for two lists.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use derp::NodeKey;
use derp::pass::{DenyList, LIFETIME, MAX_DENIED_CLUSTERS, MAX_DENIED_NODES, SKEW};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use sync::ClusterIdentity;

use super::draft::{Draft, find, later};
use super::ground::Ground;
use super::names::{self, DENY_MAP, OPERATOR};
use super::peers::Verdict;
use super::relays::Site;
use crate::action::DenyPush;

const SERIAL: &str = "serial";
const ADMITTED: &str = "admitted";
const DENIED: &str = "denied";
/// Most keys in an admit file.
const MAX_LISTED: usize = 8192;
/// Seconds until every relay has read its admit file anew.
const ADMIT_FILE_DELAY: i64 = 900;

/// Who may be let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    /// All node keys of a cluster.
    Cluster(ClusterIdentity),
    /// A node key in the admit files.
    Node(NodeKey),
}

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Register {
    serial: u64,
    admitted: BTreeSet<Who>,
    denied: BTreeMap<Who, Timestamp>,
}

/// The admit file of relays: this cluster is their owner. Nodes given by hand have no passes, and neither have operators
/// of peers before anybody has spoken to them.
pub(crate) fn admit_file(ground: Ground<'_>, peers: &[Verdict<'_>]) -> String {
    let lines = listed_keys(peers)
        .into_iter()
        .map(|key| format!("node:{key}\n"));
    std::iter::once(format!("{}\n", ground.identity()))
        .chain(lines)
        .collect()
}

/// Remembers who is let in and who no longer is.
pub(crate) fn remember(ground: Ground<'_>, peers: &[Verdict<'_>], draft: &mut Draft) {
    let found = find::<ConfigMap>(&ground.world.owned.config_maps, DENY_MAP);
    let before = found.map(Register::read).unwrap_or_default();
    let admitted = peers.iter().filter(|peer| peer.is_admitted());
    let clusters = admitted.filter_map(|peer| peer.identity).map(Who::Cluster);
    let nodes = listed_keys(peers).into_iter().map(Who::Node);
    let admitted = clusters.chain(nodes).collect();
    let register = before.next(admitted, ground.now);
    if found.is_none() && register == Register::default() {
        return;
    }
    if let Some(end) = register.denied.values().min() {
        draft.wake_at(*end);
    }
    let map = ConfigMap {
        metadata: names::metadata(&ground.world.release, OPERATOR, DENY_MAP),
        data: Some(register.write()),
        ..ConfigMap::default()
    };
    draft.apply(map, found);
}

/// Whether a cluster was let in, no longer is, and its passes have not run out yet.
pub(crate) fn is_denied(ground: Ground<'_>, cluster: ClusterIdentity) -> bool {
    let found = find::<ConfigMap>(&ground.world.owned.config_maps, DENY_MAP);
    found.is_some_and(|map| {
        Register::read(map)
            .denied
            .contains_key(&Who::Cluster(cluster))
    })
}

/// The lists that connected relays of this cluster have not taken yet.
pub(crate) fn pushes(ground: Ground<'_>, sites: &[Site]) -> Vec<DenyPush> {
    let found = find::<ConfigMap>(&ground.world.owned.config_maps, DENY_MAP);
    let register = found.map(Register::read).unwrap_or_default();
    let Some(list) = register.list(ground).filter(|_| register.serial > 0) else {
        return Vec::new();
    };
    let json = list.to_json();
    let own = sites
        .iter()
        .filter(|site| site.owner == Some(ground.identity()));
    let push = |site: &Site| {
        let relay = site.url.clone()?;
        let taken = ground.world.denied.get(&relay).copied().unwrap_or_default();
        let due = ground.is_connected(&relay) && taken < register.serial;
        due.then(|| DenyPush {
            dial: site.dial.clone().unwrap_or_else(|| relay.clone()),
            relay,
            ca_bundle: site.ca_bundle.clone(),
            serial: register.serial,
            json: json.clone(),
        })
    };
    own.filter_map(push).collect()
}

impl Register {
    /// After another look at who is let in.
    fn next(&self, admitted: BTreeSet<Who>, now: Timestamp) -> Self {
        let mut denied = self.denied.clone();
        for gone in self.admitted.difference(&admitted) {
            denied.insert(*gone, gone.denied_until(now));
        }
        denied.retain(|who, until| *until > now && !admitted.contains(who));
        let changed = !denied.keys().eq(self.denied.keys());
        // Above whatever a register that was lost has reached.
        let least = u64::try_from(now.as_second()).unwrap_or_default();
        let serial = if changed {
            least.max(self.serial + 1)
        } else {
            self.serial
        };
        Self {
            serial,
            admitted,
            denied,
        }
    }

    /// The list for relays, of those whose passes last longest if there are too many.
    fn list(&self, ground: Ground<'_>) -> Option<DenyList> {
        let mut latest: Vec<_> = self.denied.iter().collect();
        latest.sort_by_key(|(who, until)| (std::cmp::Reverse(**until), **who));
        let (mut nodes, mut clusters) = (BTreeSet::new(), BTreeSet::new());
        for (who, _) in latest {
            match who {
                Who::Cluster(identity) if clusters.len() < MAX_DENIED_CLUSTERS => {
                    clusters.insert(*identity);
                }
                Who::Node(key) if nodes.len() < MAX_DENIED_NODES => {
                    nodes.insert(*key);
                }
                Who::Cluster(_) | Who::Node(_) => {}
            }
        }
        DenyList::issue(ground.secret, self.serial, nodes, clusters).ok()
    }

    fn read(map: &ConfigMap) -> Self {
        let text = |key: &str| {
            let data = map.data.as_ref();
            data.and_then(|data| data.get(key))
                .map_or("", String::as_str)
        };
        let denied = |line: &str| {
            let (who, until) = line.split_once(' ')?;
            Some((who.parse().ok()?, until.parse().ok()?))
        };
        Self {
            serial: text(SERIAL).parse().unwrap_or_default(),
            admitted: text(ADMITTED)
                .lines()
                .filter_map(|line| line.parse().ok())
                .collect(),
            denied: text(DENIED).lines().filter_map(denied).collect(),
        }
    }

    fn write(&self) -> BTreeMap<String, String> {
        let admitted = self.admitted.iter().map(|who| format!("{who}\n"));
        let denied = self
            .denied
            .iter()
            .map(|(who, until)| format!("{who} {until}\n"));
        BTreeMap::from([
            (SERIAL.to_owned(), self.serial.to_string()),
            (ADMITTED.to_owned(), admitted.collect()),
            (DENIED.to_owned(), denied.collect()),
        ])
    }
}

impl Who {
    /// When nothing that lets it in can be left.
    fn denied_until(self, now: Timestamp) -> Timestamp {
        let pass = i64::try_from((LIFETIME + SKEW).as_secs()).unwrap_or(i64::MAX);
        match self {
            Self::Cluster(_) => later(now, pass),
            Self::Node(_) => later(now, ADMIT_FILE_DELAY),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(identity) => write!(f, "{identity}"),
            Self::Node(key) => write!(f, "node:{key}"),
        }
    }
}

impl FromStr for Who {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.strip_prefix("node:") {
            Some(key) => key.parse().map(Self::Node).map_err(|_| ()),
            None => text.parse().map(Self::Cluster).map_err(|_| ()),
        }
    }
}

/// Keys in the admit file, sorted.
fn listed_keys(peers: &[Verdict<'_>]) -> BTreeSet<NodeKey> {
    let operators = peers.iter().filter(|peer| peer.is_admitted());
    let operators = operators.filter_map(|peer| Some(peer.identity?.relay_key()));
    let in_force = peers.iter().filter(|peer| peer.is_in_force());
    let nodes = in_force.flat_map(|peer| &peer.peer.spec.nodes);
    let nodes = nodes.filter_map(|node| node.public_key.parse().ok());
    operators.chain(nodes).take(MAX_LISTED).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn cluster(seed: u8) -> Who {
        let secret = sync::ClusterSecret::from_seed([seed; 32]).expect("a seed");
        Who::Cluster(secret.identity())
    }

    fn node(seed: u8) -> Who {
        Who::Node(derp::NodeSecret::from_bytes([seed; 32]).public())
    }

    #[test]
    fn who_goes_is_denied_until_the_passes_are_over() {
        let both = Register::default().next([cluster(1), node(2)].into(), at(0));
        assert_eq!((both.serial, both.denied.len()), (0, 0));
        let gone = both.next([].into(), at(100));
        assert_eq!((gone.serial, gone.denied.len()), (100, 2));
        assert_eq!(gone.next([].into(), at(200)), gone, "nothing new");
        let node_over = gone.next([].into(), at(100 + ADMIT_FILE_DELAY));
        assert!(node_over.serial > gone.serial);
        assert!(node_over.denied.keys().eq([&cluster(1)]));
        let week = i64::try_from(LIFETIME.as_secs()).expect("fits");
        assert_eq!(gone.next([].into(), at(week)).denied.len(), 1);
        assert_eq!(gone.next([].into(), at(week + 700)).denied.len(), 0);
    }

    #[test]
    fn who_comes_back_is_let_in_again() {
        let gone = Register::default()
            .next([cluster(1)].into(), at(0))
            .next([].into(), at(1));
        let back = gone.next([cluster(1)].into(), at(2));
        assert_eq!((back.serial, back.denied.len()), (2, 0));
    }

    #[test]
    fn a_register_that_was_lost_begins_above_what_it_had_reached() {
        let kept = Register::default().next([cluster(1)].into(), at(50));
        let at_the_same_second = kept
            .next([].into(), at(60))
            .next([cluster(1)].into(), at(60));
        assert_eq!(at_the_same_second.serial, 61);
        let lost = Register::default().next([cluster(2)].into(), at(70));
        assert!(lost.next([].into(), at(80)).serial > at_the_same_second.serial);
    }

    #[test]
    fn what_is_remembered_is_read_back() {
        let register = Register {
            serial: 7,
            admitted: [cluster(1), node(1)].into(),
            denied: [(cluster(2), at(5)), (node(3), at(6))].into(),
        };
        let map = ConfigMap {
            data: Some(register.write()),
            ..ConfigMap::default()
        };
        assert_eq!(Register::read(&map), register);
        assert_eq!(Register::read(&ConfigMap::default()), Register::default());
    }
}
