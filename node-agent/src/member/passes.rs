//! Passes that a host issues to itself, for relays whose owners have admitted it. Pure.

use std::collections::BTreeMap;
use std::time::SystemTime;

use api::RelayConfig;
use derp::pass::{LIFETIME, Membership, Pass};
use derp::{ClusterIdentity, NodeKey, RelayUrl};
use sync::ClusterSecret;

/// The passes of one host.
pub(super) struct Passes {
    secret: ClusterSecret,
    node_key: NodeKey,
    issued: BTreeMap<RelayUrl, Issued>,
}

struct Issued {
    /// What it was issued with; `None` for a relay of our own.
    membership: Option<String>,
    renew_at: SystemTime,
    node: String,
    identity: String,
}

impl Passes {
    pub(super) fn new(secret: ClusterSecret, node_key: NodeKey) -> Self {
        Self {
            secret,
            node_key,
            issued: BTreeMap::new(),
        }
    }

    /// Issues what is missing, half over, or based on a membership that has been replaced; forgets what is not needed.
    pub(super) fn renew(
        &mut self,
        relays: &[RelayConfig],
        memberships: &BTreeMap<ClusterIdentity, String>,
        now: SystemTime,
    ) {
        let wanted: BTreeMap<&RelayUrl, Option<&String>> = relays
            .iter()
            .filter_map(|relay| {
                let owner = relay.owner?;
                let own = owner == self.secret.identity();
                let membership = memberships.get(&owner);
                (own || membership.is_some()).then_some((&relay.url, membership.filter(|_| !own)))
            })
            .collect();
        self.issued.retain(|url, _| wanted.contains_key(url));
        for (url, membership) in wanted {
            let good = self.issued.get(url).is_some_and(|issued| {
                issued.membership.as_ref() == membership && now < issued.renew_at
            });
            if good {
                continue;
            }
            match self.issue(membership, now) {
                Some(issued) => self.issued.insert(url.clone(), issued),
                None => self.issued.remove(url),
            };
        }
    }

    /// The pass of the node's own key.
    pub(super) fn of_node(&self, relay: &RelayUrl) -> Option<String> {
        Some(self.issued.get(relay)?.node.clone())
    }

    /// The pass of the key by which relays know the host's identity.
    pub(super) fn of_identity(&self, relay: &RelayUrl) -> Option<String> {
        Some(self.issued.get(relay)?.identity.clone())
    }

    /// `None` if the membership is none of ours.
    fn issue(&self, membership: Option<&String>, now: SystemTime) -> Option<Issued> {
        let parsed: Option<Membership> = membership.map(|text| text.parse()).transpose().ok()?;
        let issue = |key| Pass::issue(&self.secret, key, now + LIFETIME, parsed).ok();
        let node = issue(self.node_key)?;
        Some(Issued {
            membership: membership.cloned(),
            renew_at: node.renew_at(),
            node: node.to_string(),
            identity: issue(self.secret.identity().relay_key())?.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::{Duration, UNIX_EPOCH};

    use derp::NodeSecret;
    use derp::pass::Scope;

    use super::*;

    fn secret(seed: u8) -> ClusterSecret {
        ClusterSecret::from_seed([seed; 32]).expect("a seed")
    }

    fn relay(owner: Option<ClusterIdentity>) -> RelayConfig {
        RelayConfig {
            url: url(),
            stun_port: None,
            ca_bundle: None,
            dial: None,
            owner,
            pass: None,
        }
    }

    fn url() -> RelayUrl {
        "https://r.example".parse().expect("a URL")
    }

    #[test]
    fn both_keys_are_admitted_and_passes_are_renewed() {
        let (owner, us) = (secret(1), secret(2));
        let node = NodeSecret::generate().public();
        let now = UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        let membership = Membership::issue(&owner, us.identity(), Scope::Mesh, now + 2 * LIFETIME);
        let memberships = BTreeMap::from([(owner.identity(), membership.to_string())]);
        let owners = HashSet::from([owner.identity()]);
        let mut passes = Passes::new(us.clone(), node);
        let relays = [relay(Some(owner.identity()))];
        passes.renew(&relays, &memberships, now);
        let first = passes.of_node(&url()).expect("issued");
        assert!(derp::pass::verify(&first, &owners, &node, now).is_ok());
        let identity = passes.of_identity(&url()).expect("issued");
        let relay_key = us.identity().relay_key();
        assert!(derp::pass::verify(&identity, &owners, &relay_key, now).is_ok());

        passes.renew(&relays, &memberships, now + LIFETIME / 3);
        assert_eq!(passes.of_node(&url()), Some(first.clone()));
        passes.renew(&relays, &memberships, now + LIFETIME * 2 / 3);
        assert_ne!(passes.of_node(&url()), Some(first));
        passes.renew(&[], &memberships, now);
        assert_eq!(passes.of_node(&url()), None);
    }

    #[test]
    fn without_an_owner_or_its_word_there_is_no_pass() {
        let now = UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        let mut passes = Passes::new(secret(2), NodeSecret::generate().public());
        passes.renew(&[relay(None)], &BTreeMap::new(), now);
        assert_eq!(passes.of_node(&url()), None);
        passes.renew(&[relay(Some(secret(1).identity()))], &BTreeMap::new(), now);
        assert_eq!(passes.of_node(&url()), None);
        let other = Membership::issue(
            &secret(1),
            secret(3).identity(),
            Scope::Mesh,
            now + LIFETIME,
        );
        let memberships = BTreeMap::from([(secret(1).identity(), other.to_string())]);
        passes.renew(&[relay(Some(secret(1).identity()))], &memberships, now);
        assert_eq!(passes.of_node(&url()), None);
        passes.renew(&[relay(Some(secret(2).identity()))], &BTreeMap::new(), now);
        assert!(passes.of_node(&url()).is_some(), "a relay of our own");
    }
}
