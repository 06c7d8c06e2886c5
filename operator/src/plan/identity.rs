//! Who this cluster is: made once, and never changed by anybody here.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use sync::ClusterSecret;

use super::draft::{Draft, find};
use super::names::{self, IDENTITY_SECRET, OPERATOR, SEED_KEY};
use crate::action::Action;
use crate::world::World;

/// What is known of the identity.
#[derive(Debug)]
pub(crate) enum Identity {
    /// There it is.
    Known(ClusterSecret),
    /// There is none yet.
    Missing,
    /// There is a Secret without one. It is nobody's to overwrite: a person may have it elsewhere.
    Broken,
}

impl Identity {
    /// If it is known.
    pub(crate) fn known(self) -> Option<ClusterSecret> {
        match self {
            Self::Known(secret) => Some(secret),
            Self::Missing | Self::Broken => None,
        }
    }
}

/// Reads the identity.
pub(crate) fn read(world: &World) -> Identity {
    let Some(secret) = find::<Secret>(&world.owned.secrets, IDENTITY_SECRET) else {
        return Identity::Missing;
    };
    let data = secret.data.as_ref().and_then(|data| data.get(SEED_KEY));
    let text = data.and_then(|data| std::str::from_utf8(&data.0).ok());
    match text.map(|text| ClusterSecret::from_base64(text.trim())) {
        Some(Ok(secret)) => Identity::Known(secret),
        Some(Err(_)) | None => Identity::Broken,
    }
}

/// Makes the identity.
pub(crate) fn create(world: &World, draft: &mut Draft) {
    let seed = world.fresh.identity.to_base64();
    let seed = ByteString(seed.as_bytes().to_vec());
    let secret = Secret {
        metadata: names::metadata(&world.release, OPERATOR, IDENTITY_SECRET),
        data: Some(BTreeMap::from([(SEED_KEY.to_owned(), seed)])),
        ..Secret::default()
    };
    draft.push(Action::Create(secret.into()));
}

/// What is wrong with a broken identity.
pub(crate) const BROKEN: &str = "the Secret culvert-identity is damaged; put its key `seed` back from a backup, or delete the Secret to become \
    another cluster, which every peer has to admit anew";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::plan::fixture::{Fixture, condition, secret};
    use crate::plan::plan;

    fn put(fixture: &mut Fixture, seed: Option<&[u8]>) {
        let kept = Arc::make_mut(&mut fixture.world.owned.secrets[0]);
        let seed = seed.map(|seed| (SEED_KEY.to_owned(), ByteString(seed.to_vec())));
        kept.data = Some(seed.into_iter().collect());
    }

    #[test]
    fn a_damaged_identity_is_said_and_picked_up_again_when_it_is_repaired() {
        let mut fixture = Fixture::new();
        fixture.settle();
        for seed in [None, Some(b"".as_slice()), Some(b"\xff"), Some(b"AAAA")] {
            put(&mut fixture, seed);
            let damaged = fixture.settle();
            assert!(damaged.sync.is_none());
            assert!(read(&fixture.world).known().is_none());
            let status = fixture.mesh_status();
            let ready = condition(&status.conditions, "Ready");
            assert_eq!(ready, ("False", "BadIdentitySecret"));
            let kept = fixture.world.owned.secrets[0].data.clone();
            let kept = kept.expect("data").get(SEED_KEY).cloned();
            assert_eq!(kept.map(|seed| seed.0), seed.map(<[u8]>::to_vec));
        }
        let text = secret(1).to_base64();
        put(&mut fixture, Some(format!("{}\n", &*text).as_bytes()));
        assert!(fixture.settle().sync.is_some());
        let identity = fixture.mesh_status().identity;
        assert_eq!(identity, Some(secret(1).identity().to_string()));
    }

    #[test]
    fn an_identity_that_is_replaced_is_followed() {
        let mut fixture = Fixture::new();
        fixture.settle();
        let text = secret(7).to_base64();
        put(&mut fixture, Some(text.as_bytes()));
        fixture.settle();
        let identity = fixture.mesh_status().identity;
        assert_eq!(identity, Some(secret(7).identity().to_string()));
        let known = read(&fixture.world).known().expect("known");
        assert_eq!(known.identity(), secret(7).identity());
        assert!(plan(&fixture.world).actions.is_empty());
    }
}
