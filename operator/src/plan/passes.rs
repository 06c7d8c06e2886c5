//! Memberships and passes: what this cluster gives to peers and to its nodes, and what it has got from peers.
//!
//! What is given has a text that stays the same until half of its life is over, without being kept anywhere: it ends at a
//! multiple of half a life, shifted by the key it is for, so that not all are renewed at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use api::MeshNode;
use derp::pass::{LIFETIME, Membership, Pass, RETURN, Scope};
use derp::{NodeKey, RelayUrl};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use sync::{ClusterIdentity, ClusterSecret};

use super::draft::{Draft, find};
use super::ground::Ground;
use super::names::{self, MEMBERSHIPS_SECRET, OPERATOR};
use super::revocation::{Remembered, remembered};

/// Key in [`MEMBERSHIPS_SECRET`]: a JSON object from an owner's identity to the text of its membership for us.
const RECEIVED: &str = "received";

/// Everything that passes are made of.
#[derive(Clone, Debug)]
pub(crate) struct Passes<'a> {
    secret: &'a ClusterSecret,
    now: Timestamp,
    /// Who stands in the register of those that are let in.
    remembered: Remembered,
    /// Nodes that hold a pass and do not stand there: the register is lost, or older than they are, and is about to have them.
    holders: BTreeSet<NodeKey>,
    /// From owners of other relays.
    received: BTreeMap<ClusterIdentity, Membership>,
}

impl<'a> Passes<'a> {
    /// Takes what is kept, and what peers send now. `new` is from an inviter.
    pub(crate) fn collect(ground: Ground<'a>, new: Option<Membership>) -> Self {
        let remembered = remembered(ground.world);
        let mut passes = Self {
            secret: ground.secret,
            now: ground.now,
            holders: holders(ground, &remembered),
            remembered,
            received: BTreeMap::new(),
        };
        let kept = kept(ground).into_values();
        let peers = ground.world.sync.peers.iter();
        let sent = peers.filter_map(|(peer, view)| {
            let membership: Membership = view.membership.as_ref()?.parse().ok()?;
            (membership.owner() == *peer).then_some(membership)
        });
        for membership in kept.chain(sent).chain(new) {
            passes.take(membership);
        }
        passes
    }

    /// Whether it is written down that a cluster is let in.
    pub(crate) fn remembers(&self, cluster: ClusterIdentity) -> bool {
        self.remembered.clusters.contains(&cluster)
    }

    /// The pass with which a key of this cluster is let in by relays of that owner; `None` if the owner admits us not, or
    /// if it is not written down yet that the key is let in.
    pub(crate) fn for_key(&self, owner: ClusterIdentity, key: NodeKey) -> Option<String> {
        let is_operator = key == self.secret.identity().relay_key();
        let may_have = is_operator || self.remembered.nodes.contains(&key);
        if !may_have && !self.holders.contains(&key) {
            return None;
        }
        let membership = self.received.get(&owner).copied();
        let valid = membership.is_some_and(|given| given.expires() > SystemTime::from(self.now));
        // One that has expired opens the lobby to the operator, where it gets the next one.
        if owner != self.secret.identity() && (membership.is_none() || !(is_operator || valid)) {
            return None;
        }
        let pass = Pass::issue(self.secret, key, self.expiry(key.as_bytes()), membership);
        pass.ok().map(|pass| pass.to_string())
    }

    /// The pass of this operator itself; its own relays know it without.
    pub(crate) fn for_operator(&self, owner: ClusterIdentity) -> Option<String> {
        let own = self.secret.identity();
        (owner != own)
            .then(|| self.for_key(owner, own.relay_key()))
            .flatten()
    }

    /// The membership that a peer is given.
    pub(crate) fn for_cluster(&self, cluster: ClusterIdentity) -> Membership {
        let expires = self.expiry(cluster.as_bytes());
        Membership::issue(self.secret, cluster, Scope::Mesh, expires)
    }

    /// Keeps what peers have sent, while they are peers.
    pub(crate) fn keep(&self, ground: Ground<'_>, owners: &[ClusterIdentity], draft: &mut Draft) {
        let received: BTreeMap<String, String> = self
            .received
            .iter()
            .filter(|(owner, _)| owners.contains(owner))
            .map(|(owner, membership)| (owner.to_string(), membership.to_string()))
            .collect();
        let found = find::<Secret>(&ground.world.owned.secrets, MEMBERSHIPS_SECRET);
        if received.is_empty() && found.is_none() {
            return;
        }
        let json = serde_json::to_vec(&received).unwrap_or_default();
        let release = &ground.world.release;
        let secret = Secret {
            metadata: names::metadata(release, OPERATOR, MEMBERSHIPS_SECRET),
            data: Some(BTreeMap::from([(RECEIVED.to_owned(), ByteString(json))])),
            ..Secret::default()
        };
        draft.apply(secret, found);
    }

    /// The one that ends last counts.
    fn take(&mut self, membership: Membership) {
        let (owner, own) = (membership.owner(), self.secret.identity());
        let then = SystemTime::from(self.now).checked_sub(RETURN);
        let then = then.unwrap_or(SystemTime::UNIX_EPOCH);
        let good = membership.verify(&owner, &own, then);
        let longer = self
            .received
            .get(&owner)
            .is_none_or(|old| old.expires() < membership.expires());
        if good.is_ok() && membership.scope() == Scope::Mesh && owner != own && longer {
            self.received.insert(owner, membership);
        }
    }

    /// Between half a life and a whole one from now.
    fn expiry(&self, key: &[u8; 32]) -> SystemTime {
        let half = LIFETIME.as_secs() / 2;
        let [a, b, c, d, ..] = *key;
        let shift = u64::from(u32::from_be_bytes([a, b, c, d])) % half;
        let now = u64::try_from(self.now.as_second()).unwrap_or_default();
        let end = ((now + shift) / half + 2) * half - shift;
        SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(end)
    }
}

/// The pass in a relay of a node: its owner's, for the node's key.
pub(crate) fn relay_pass(
    passes: &Passes<'_>,
    owner: Option<ClusterIdentity>,
    key: Option<NodeKey>,
) -> Option<String> {
    passes.for_key(owner?, key?)
}

/// Whether a relay lets a cluster in at once: it belongs to it, or there is a pass.
pub(crate) fn sync_relay(
    passes: &Passes<'_>,
    site: &super::relays::Site,
    url: RelayUrl,
) -> sync::Relay {
    sync::Relay {
        url,
        dial: site.dial.clone(),
        ca_bundle: site.ca_bundle.clone(),
        pass: site.owner.and_then(|owner| passes.for_operator(owner)),
    }
}

/// Whoever has a pass of ours keeps it: without it, its next connection to a relay would fail.
fn holders(ground: Ground<'_>, remembered: &Remembered) -> BTreeSet<NodeKey> {
    let nodes = ground.world.mesh_nodes.iter();
    let holder = |node: &MeshNode| {
        let key = node.status.as_ref()?.public_key.as_ref()?.parse().ok()?;
        let mut passes = node
            .spec
            .relays
            .iter()
            .filter(|_| !remembered.nodes.contains(&key))
            .filter_map(|relay| relay.pass.as_ref()?.parse::<Pass>().ok());
        let is_own = |pass: Pass| pass.cluster() == ground.identity() && pass.key() == key;
        passes.any(is_own).then_some(key)
    };
    nodes.filter_map(|node| holder(node)).collect()
}

fn kept(ground: Ground<'_>) -> BTreeMap<ClusterIdentity, Membership> {
    let secret = find::<Secret>(&ground.world.owned.secrets, MEMBERSHIPS_SECRET);
    let data = secret.and_then(|secret| secret.data.as_ref());
    let json = data.and_then(|data| data.get(RECEIVED));
    json.and_then(|json| serde_json::from_slice::<BTreeMap<String, String>>(&json.0).ok())
        .unwrap_or_default()
        .into_iter()
        .filter_map(|(owner, text)| Some((owner.parse().ok()?, text.parse().ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::json;

    use super::*;
    use crate::plan::fixture::{Fixture, key};

    /// With a node whose key is remembered: number 9.
    fn fixture() -> Fixture {
        let mut fixture = Fixture::new();
        fixture.settle();
        fixture.report("n1", json!({"publicKey": key(9).to_string()}));
        fixture.settle();
        fixture
    }

    fn passes(ground: Ground<'_>, seconds: i64) -> Passes<'_> {
        let ground = Ground {
            now: Timestamp::from_second(seconds).expect("a time"),
            ..ground
        };
        Passes::collect(ground, None)
    }

    #[test]
    fn a_text_stays_for_half_a_life_and_never_ends_sooner() {
        let fixture = fixture();
        let half = i64::try_from(LIFETIME.as_secs() / 2).expect("fits");
        let key = key(9);
        fixture.with_ground(|ground| {
            let owner = ground.identity();
            let mut texts = HashSet::new();
            for step in 0..100 {
                let second = 1_800_000_000 + step * half / 50;
                let passes = passes(ground, second);
                let text = passes.for_key(owner, key).expect("a pass");
                let pass: Pass = text.parse().expect("a pass");
                let left = pass.expires().duration_since(SystemTime::from(passes.now));
                let left = left.expect("not over").as_secs();
                assert!((u64::try_from(half).expect("fits")..=LIFETIME.as_secs()).contains(&left));
                texts.insert(text);
            }
            assert_eq!(texts.len(), 3, "two renewals in one life");
        });
    }

    #[test]
    fn relays_of_others_need_their_membership() {
        let owner = ClusterSecret::from_seed([42; 32]).expect("a seed");
        let key = key(9);
        fixture().with_ground(|ground| {
            let bare = Passes::collect(ground, None);
            assert_eq!(bare.for_key(owner.identity(), key), None);
            let end = SystemTime::from(ground.now) + LIFETIME;
            let lobby = Membership::issue(&owner, ground.identity(), Scope::Lobby, end);
            let other = Membership::issue(&owner, owner.identity(), Scope::Mesh, end);
            for useless in [lobby, other] {
                let passes = Passes::collect(ground, Some(useless));
                assert_eq!(passes.for_key(owner.identity(), key), None);
            }
            let good = Membership::issue(&owner, ground.identity(), Scope::Mesh, end);
            let passes = Passes::collect(ground, Some(good));
            let text = passes.for_key(owner.identity(), key).expect("a pass");
            let owners = HashSet::from([owner.identity()]);
            let admitted = derp::pass::verify(&text, &owners, &key, SystemTime::from(ground.now));
            assert_eq!(admitted.expect("admitted").cluster, ground.identity());
            assert_eq!(passes.for_operator(ground.identity()), None);
            assert!(passes.for_operator(owner.identity()).is_some());
        });
    }

    #[test]
    fn a_membership_that_has_expired_still_leads_the_operator_to_the_lobby() {
        let owner = ClusterSecret::from_seed([42; 32]).expect("a seed");
        let mut fixture = fixture();
        let end = SystemTime::from(fixture.now()) + LIFETIME;
        let own = fixture.with_ground(|ground| ground.identity());
        let given = Membership::issue(&owner, own, Scope::Mesh, end);
        let owners = HashSet::from([owner.identity()]);
        let mut after = |days: i64| {
            fixture.pass_seconds(days * 24 * 3600);
            fixture.with_ground(|ground| {
                let passes = Passes::collect(ground, Some(given));
                let operator = passes.for_operator(owner.identity());
                let admitted = operator.and_then(|text| {
                    let now = SystemTime::from(ground.now);
                    derp::pass::verify(&text, &owners, &own.relay_key(), now).ok()
                });
                let node = passes.for_key(owner.identity(), key(9));
                (admitted.map(|admitted| admitted.scope), node.is_some())
            })
        };
        assert_eq!(after(6), (Some(Scope::Mesh), true));
        assert_eq!(after(2), (Some(Scope::Lobby), false));
        assert_eq!(after(88), (Some(Scope::Lobby), false));
        assert_eq!(after(2), (None, false));
    }

    #[test]
    fn what_nobody_has_written_down_gets_no_pass() {
        fixture().with_ground(|ground| {
            let passes = Passes::collect(ground, None);
            let owner = ground.identity();
            assert!(passes.for_key(owner, key(9)).is_some());
            assert_eq!(passes.for_key(owner, key(10)), None);
            let stranger = ClusterSecret::from_seed([42; 32]).expect("a seed");
            assert!(!passes.remembers(stranger.identity()));
        });
    }

    #[test]
    fn a_node_keeps_its_pass_when_the_register_is_lost() {
        let mut fixture = fixture();
        let relay = json!({"url": "https://relay.example", "stunPort": 0});
        let spec = json!({"clusterName": "berlin", "podCIDRs": ["10.1.0.0/16"], "relays": {"external": [relay]}});
        fixture.mesh(spec);
        fixture.settle();
        let pass = |fixture: &Fixture| {
            let node = find(&fixture.world.mesh_nodes, "n1").expect("there");
            node.spec.relays[0].pass.clone()
        };
        let before = pass(&fixture);
        assert!(before.is_some());
        let maps = &mut fixture.world.owned.config_maps;
        maps.retain(|map| map.metadata.name.as_deref() != Some(names::DENY_MAP));
        assert!(remembered(&fixture.world).nodes.is_empty());
        fixture.with_ground(|ground| {
            let passes = Passes::collect(ground, None);
            assert_eq!(passes.for_key(ground.identity(), key(9)), before);
        });
        // A pass of another key is none for this one.
        fixture.report("n1", json!({"publicKey": key(10).to_string()}));
        fixture.with_ground(|ground| {
            let passes = Passes::collect(ground, None);
            assert_eq!(passes.for_key(ground.identity(), key(10)), None);
        });
    }
}
