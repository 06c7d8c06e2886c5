//! Names, labels and annotations of everything that the operator makes.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;

use crate::world::Release;

/// Secret with the cluster's identity, under [`SEED_KEY`]. Made once, never changed.
pub const IDENTITY_SECRET: &str = "culvert-identity";
/// Key of the seed in [`IDENTITY_SECRET`]: the text of [`sync::ClusterSecret::to_base64`].
pub const SEED_KEY: &str = "seed";
/// Secret with what peers have sent: memberships for their relays.
pub const MEMBERSHIPS_SECRET: &str = "culvert-memberships";
/// `ConfigMap` with the deny list.
pub const DENY_MAP: &str = "culvert-denylist";
/// Secret with the token to join with, under [`TOKEN_KEY`]. Made by a person or by the chart.
pub const JOIN_SECRET: &str = "culvert-join";
/// Key of a token in a Secret.
pub const TOKEN_KEY: &str = "token";
/// Annotation of [`JOIN_SECRET`]: the Peer that came of it.
pub const JOINED: &str = "culvert.dev/joined";
/// Annotation of [`JOIN_SECRET`]: checksum of the token that was used.
pub const JOINED_TOKEN: &str = "culvert.dev/joined-token";
/// Label of everything that belongs to one relay.
pub const RELAY_LABEL: &str = "culvert.dev/relay";
/// Label of everything that belongs to one Peer, where its name fits into a label.
pub const PEER_LABEL: &str = "culvert.dev/peer";
/// Label, with the value `true`, of Nodes that may serve the cluster's ranges for all others.
pub const GATEWAY_LABEL: &str = "culvert.dev/gateway";
/// Annotation: checksum of what the operator wants of an object.
pub const CHECKSUM: &str = "culvert.dev/checksum";

/// `app.kubernetes.io/component` of relays' objects.
pub(crate) const RELAY: &str = "relay";
/// The same of tokens.
pub(crate) const INVITE: &str = "invite";
/// The same of what the operator keeps for itself.
pub(crate) const OPERATOR: &str = "operator";

const COMPONENT: &str = "app.kubernetes.io/component";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const INSTANCE: &str = "app.kubernetes.io/instance";
/// Longest value of a label.
const MAX_LABEL_VALUE: usize = 63;
/// Longest name of an object.
const MAX_NAME: usize = 253;

/// The labels of a component.
pub(crate) fn labels(release: &Release, component: &str) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "culvert"),
        ("app.kubernetes.io/part-of", "culvert"),
        (INSTANCE, &release.instance),
        (MANAGED_BY, "culvert-operator"),
        (COMPONENT, component),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

/// Whether an object is of this component and made by this operator.
pub(crate) fn is_ours(release: &Release, component: &str, metadata: &ObjectMeta) -> bool {
    let Some(found) = &metadata.labels else {
        return false;
    };
    let labels = labels(release, component);
    [COMPONENT, MANAGED_BY, INSTANCE]
        .iter()
        .all(|key| found.get(*key) == labels.get(*key))
}

/// Metadata of an object in the operator's namespace.
pub(crate) fn metadata(release: &Release, component: &str, name: impl Into<String>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: Some(release.namespace.clone()),
        labels: Some(labels(release, component)),
        ..ObjectMeta::default()
    }
}

/// What makes an object go with its owner. `None` for an owner that the API server has not seen.
pub(crate) fn owner_reference<K: Resource<DynamicType = ()>>(owner: &K) -> Option<OwnerReference> {
    owner.owner_ref(&())
}

/// The label of a Peer, where its name fits.
pub(crate) fn peer_label(peer: &str) -> Option<(String, String)> {
    (peer.len() <= MAX_LABEL_VALUE).then(|| (PEER_LABEL.to_owned(), peer.to_owned()))
}

/// `prefix`, `name` and `suffix` joined by `-`, with `name` cut so that all of it is a name.
pub(crate) fn joined(prefix: &str, name: &str, suffix: &str) -> String {
    let parts = [prefix, name, suffix];
    let fixed = prefix.len() + suffix.len() + 2;
    let room = MAX_NAME.saturating_sub(fixed);
    let cut: String = name.chars().take(room).collect();
    let cut = cut.trim_end_matches(['-', '.']);
    let text = [parts[0], cut, parts[2]].map(str::to_owned);
    text.into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_to_what_fits() {
        assert_eq!(joined("culvert-invite", "a", ""), "culvert-invite-a");
        assert_eq!(joined("", "tokyo", "0"), "tokyo-0");
        let long = joined("culvert-invite", &"a".repeat(253), "0");
        assert!(long.len() <= MAX_NAME && long.ends_with("a-0"), "{long}");
    }

    #[test]
    fn what_others_made_is_not_ours() {
        let release = Release {
            namespace: "culvert".to_owned(),
            instance: "one".to_owned(),
            ..Release::default()
        };
        let own = metadata(&release, RELAY, "x");
        assert!(is_ours(&release, RELAY, &own));
        assert!(!is_ours(&release, INVITE, &own));
        let other = Release {
            instance: "two".to_owned(),
            ..release
        };
        assert!(!is_ours(&other, RELAY, &own));
        assert!(!is_ours(&other, RELAY, &ObjectMeta::default()));
    }
}
