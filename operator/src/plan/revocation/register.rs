//! What is written down.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use derp::NodeKey;
use derp::pass::{DenyList, LIFETIME, MAX_DENIED_CLUSTERS, MAX_DENIED_NODES, RETURN, SKEW};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use sync::{ClusterIdentity, ClusterSecret};

use super::Outpost;
use crate::plan::draft::later;

const SERIAL: &str = "serial";
const ADMITTED: &str = "admitted";
const DENIED: &str = "denied";
const RELAYS: &str = "relays";
/// Most that are remembered as denied; no more could be told to a relay.
const MAX_DENIED: usize = MAX_DENIED_NODES + MAX_DENIED_CLUSTERS;
/// Seconds until every relay has read its admit file anew.
const ADMIT_FILE_DELAY: i64 = 900;

/// Who may be let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    /// All node keys of a cluster.
    Cluster(ClusterIdentity),
    /// A node key in the admit files.
    Node(NodeKey),
    /// A node of this cluster, by its pass.
    Own(NodeKey),
}

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Register {
    pub(super) serial: u64,
    pub(super) admitted: BTreeSet<Who>,
    /// Until when.
    pub(super) denied: BTreeMap<Who, Timestamp>,
    /// Relays that are to be told if the Mesh goes.
    pub(super) outposts: Vec<Outpost>,
}

impl Register {
    /// After another look at who is let in; `elsewhere` is the serial of a list that a relay has instead of ours.
    pub(super) fn next(
        &self,
        admitted: BTreeSet<Who>,
        now: Timestamp,
        elsewhere: Option<u64>,
    ) -> Self {
        let mut denied = self.denied.clone();
        for gone in self.admitted.difference(&admitted) {
            denied.insert(*gone, later(now, gone.life()));
        }
        denied.retain(|who, until| *until > now && !admitted.contains(who));
        let denied = latest(&denied, MAX_DENIED);
        let elsewhere = elsewhere.filter(|serial| *serial >= self.serial);
        let serial = if elsewhere.is_some() || !denied.keys().eq(self.denied.keys()) {
            // Above whatever a register that was lost has reached.
            let least = u64::try_from(now.as_second()).unwrap_or_default();
            let last = elsewhere.unwrap_or(self.serial);
            least.max(last.saturating_add(1))
        } else {
            self.serial
        };
        Self {
            serial,
            admitted,
            denied,
            outposts: self.outposts.clone(),
        }
    }

    /// The list for relays, of those whose passes last longest if there are too many. A key that is let in for another
    /// reason is not on it.
    pub(super) fn list(&self, secret: &ClusterSecret) -> Option<DenyList> {
        let mut latest: Vec<_> = self.denied.iter().collect();
        latest.sort_by_key(|(who, until)| (std::cmp::Reverse(**until), **who));
        let (mut nodes, mut clusters) = (BTreeSet::new(), BTreeSet::new());
        for (who, _) in latest {
            match who {
                Who::Cluster(identity) if clusters.len() < MAX_DENIED_CLUSTERS => {
                    clusters.insert(*identity);
                }
                Who::Node(key) | Who::Own(key)
                    if nodes.len() < MAX_DENIED_NODES && !self.lets_in(*key) =>
                {
                    nodes.insert(*key);
                }
                Who::Cluster(_) | Who::Node(_) | Who::Own(_) => {}
            }
        }
        DenyList::issue(secret, self.serial, nodes, clusters).ok()
    }

    /// Whether somebody has been denied after that time.
    pub(super) fn has_denied_since(&self, time: Timestamp) -> bool {
        let mut denied = self.denied.iter();
        denied.any(|(who, until)| later(*until, -who.life()) > time)
    }

    pub(super) fn read(map: &ConfigMap) -> Self {
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
            outposts: serde_json::from_str(text(RELAYS)).unwrap_or_default(),
        }
    }

    pub(super) fn write(&self) -> BTreeMap<String, String> {
        let admitted = self.admitted.iter().map(|who| format!("{who}\n"));
        let denied = self
            .denied
            .iter()
            .map(|(who, until)| format!("{who} {until}\n"));
        // URLs and texts are never refused.
        let relays = serde_json::to_string(&self.outposts).unwrap_or_default();
        BTreeMap::from([
            (SERIAL.to_owned(), self.serial.to_string()),
            (ADMITTED.to_owned(), admitted.collect()),
            (DENIED.to_owned(), denied.collect()),
            (RELAYS.to_owned(), relays),
        ])
    }

    fn lets_in(&self, key: NodeKey) -> bool {
        let admitted = &self.admitted;
        admitted.contains(&Who::Node(key)) || admitted.contains(&Who::Own(key))
    }
}

impl Who {
    /// Seconds after which nothing that lets it in can be left.
    fn life(self) -> i64 {
        let seconds = |life: std::time::Duration| i64::try_from(life.as_secs()).unwrap_or(i64::MAX);
        match self {
            Self::Cluster(_) => seconds(LIFETIME + SKEW + RETURN),
            Self::Own(_) => seconds(LIFETIME + SKEW),
            Self::Node(_) => ADMIT_FILE_DELAY,
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(identity) => write!(f, "{identity}"),
            Self::Node(key) => write!(f, "node:{key}"),
            Self::Own(key) => write!(f, "own:{key}"),
        }
    }
}

impl FromStr for Who {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once(':') {
            Some(("node", key)) => key.parse().map(Self::Node).map_err(|_| ()),
            Some(("own", key)) => key.parse().map(Self::Own).map_err(|_| ()),
            Some(_) | None => text.parse().map(Self::Cluster).map_err(|_| ()),
        }
    }
}

/// Those that end last.
fn latest(denied: &BTreeMap<Who, Timestamp>, most: usize) -> BTreeMap<Who, Timestamp> {
    let mut sorted: Vec<_> = denied.iter().map(|(who, until)| (*who, *until)).collect();
    sorted.sort_by_key(|(who, until)| (std::cmp::Reverse(*until), *who));
    sorted.into_iter().take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn cluster(seed: u8) -> Who {
        Who::Cluster(secret(seed).identity())
    }

    fn secret(seed: u8) -> ClusterSecret {
        ClusterSecret::from_seed([seed; 32]).expect("a seed")
    }

    fn key(seed: u8) -> NodeKey {
        derp::NodeSecret::from_bytes([seed; 32]).public()
    }

    fn node(seed: u8) -> Who {
        Who::Node(key(seed))
    }

    fn own(seed: u8) -> Who {
        Who::Own(key(seed))
    }

    fn admit(who: &[Who], at: Timestamp) -> Register {
        Register::default().next(who.iter().copied().collect(), at, None)
    }

    #[test]
    fn who_goes_is_denied_until_the_passes_are_over() {
        let all = admit(&[cluster(1), node(2), own(3)], at(0));
        assert_eq!((all.serial, all.denied.len()), (0, 0));
        let gone = all.next([].into(), at(100), None);
        assert_eq!((gone.serial, gone.denied.len()), (100, 3));
        assert_eq!(gone.next([].into(), at(200), None), gone, "nothing new");
        let left = |seconds: i64| {
            let later = gone.next([].into(), at(100 + seconds), None);
            later.denied.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(left(ADMIT_FILE_DELAY), [cluster(1), own(3)]);
        let week = i64::try_from((LIFETIME + SKEW).as_secs()).expect("fits");
        assert_eq!(left(week - 1), [cluster(1), own(3)]);
        assert_eq!(left(week), [cluster(1)]);
        let comes_back = i64::try_from(RETURN.as_secs()).expect("fits");
        assert_eq!(left(week + comes_back - 1), [cluster(1)]);
        assert_eq!(left(week + comes_back), []);
    }

    #[test]
    fn who_comes_back_is_let_in_again() {
        let gone = admit(&[cluster(1)], at(0)).next([].into(), at(1), None);
        let back = gone.next([cluster(1)].into(), at(2), None);
        assert_eq!((back.serial, back.denied.len()), (2, 0));
    }

    #[test]
    fn a_key_that_is_let_in_otherwise_is_not_on_the_list() {
        let both = admit(&[node(1), own(1), own(2)], at(0));
        let one = both.next([node(1)].into(), at(1), None);
        let list = one.list(&secret(1)).expect("a list");
        assert_eq!(list.nodes(), &BTreeSet::from([key(2)]));
    }

    #[test]
    fn a_register_that_was_lost_begins_above_what_it_had_reached() {
        let kept = admit(&[cluster(1)], at(50));
        let at_the_same_second =
            kept.next([].into(), at(60), None)
                .next([cluster(1)].into(), at(60), None);
        assert_eq!(at_the_same_second.serial, 61);
        let lost = admit(&[cluster(2)], at(70));
        assert!(lost.next([].into(), at(80), None).serial > at_the_same_second.serial);
    }

    #[test]
    fn a_list_that_a_relay_has_instead_is_outdone() {
        let gone = admit(&[cluster(1)], at(0)).next([].into(), at(100), None);
        let next = |elsewhere| gone.next([].into(), at(200), Some(elsewhere)).serial;
        assert_eq!(next(99), 100, "an older one is none of our business");
        assert_eq!(next(100), 200, "another list with our serial");
        assert_eq!(next(500), 501, "of a clock that was wrong");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let many = (0..MAX_DENIED + 10).map(|number| {
            let mut bytes = [1; 32];
            bytes[..8].copy_from_slice(&u64::try_from(number).expect("fits").to_be_bytes());
            Who::Own(derp::NodeSecret::from_bytes(bytes).public())
        });
        let all = Register::default().next(many.collect(), at(0), None);
        let gone = all.next([].into(), at(1), None);
        assert_eq!(gone.denied.len(), MAX_DENIED);
        let list = gone.list(&secret(1)).expect("a list");
        assert_eq!(list.nodes().len(), MAX_DENIED_NODES);
    }

    #[test]
    fn what_is_remembered_is_read_back() {
        let register = Register {
            serial: 7,
            admitted: [cluster(1), node(1), own(2)].into(),
            denied: [(cluster(2), at(5)), (node(3), at(6)), (own(4), at(7))].into(),
            outposts: vec![Outpost {
                url: "https://relay.example".parse().expect("a URL"),
                dial: None,
                ca_bundle: Some("pem".to_owned()),
                is_assumed: true,
            }],
        };
        let map = ConfigMap {
            data: Some(register.write()),
            ..ConfigMap::default()
        };
        assert_eq!(Register::read(&map), register);
        assert_eq!(Register::read(&ConfigMap::default()), Register::default());
    }
}
