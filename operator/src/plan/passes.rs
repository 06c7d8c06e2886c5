//! Memberships and passes: what this cluster gives to peers and to its nodes, and what it has got from peers.
//!
//! What is given has a text that stays the same until half of its life is over, without being kept anywhere: it ends at a
//! multiple of half a life, shifted by the key it is for, so that not all are renewed at once.

use std::collections::BTreeMap;
use std::time::SystemTime;

use derp::pass::{LIFETIME, Membership, Pass, Scope};
use derp::{NodeKey, RelayUrl};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use sync::{ClusterIdentity, ClusterSecret};

use super::draft::{Draft, find};
use super::ground::Ground;
use super::names::{self, MEMBERSHIPS_SECRET, OPERATOR};

/// Key in [`MEMBERSHIPS_SECRET`]: a JSON object from an owner's identity to the text of its membership for us.
const RECEIVED: &str = "received";

/// Everything that passes are made of.
#[derive(Clone, Debug)]
pub(crate) struct Passes<'a> {
    secret: &'a ClusterSecret,
    now: Timestamp,
    /// From owners of other relays.
    received: BTreeMap<ClusterIdentity, Membership>,
}

impl<'a> Passes<'a> {
    /// Takes what is kept, and what peers send now. `new` is from an inviter.
    pub(crate) fn collect(ground: Ground<'a>, new: Option<Membership>) -> Self {
        let mut passes = Self {
            secret: ground.secret,
            now: ground.now,
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

    /// The pass with which a key of this cluster is let in by relays of that owner; `None` if the owner admits us not.
    pub(crate) fn for_key(&self, owner: ClusterIdentity, key: NodeKey) -> Option<String> {
        let membership = self.received.get(&owner).copied();
        if owner != self.secret.identity() && membership.is_none() {
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
        let good = membership.verify(&owner, &own, SystemTime::from(self.now));
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

    use super::*;
    use crate::plan::fixture::Fixture;

    fn passes(ground: Ground<'_>, seconds: i64) -> Passes<'_> {
        let ground = Ground {
            now: Timestamp::from_second(seconds).expect("a time"),
            ..ground
        };
        Passes::collect(ground, None)
    }

    #[test]
    fn a_text_stays_for_half_a_life_and_never_ends_sooner() {
        let fixture = Fixture::new();
        let half = i64::try_from(LIFETIME.as_secs() / 2).expect("fits");
        let key = derp::NodeSecret::from_bytes([9; 32]).public();
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
        let key = derp::NodeSecret::from_bytes([9; 32]).public();
        Fixture::new().with_ground(|ground| {
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
}
