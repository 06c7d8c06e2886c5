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
pub(crate) const BROKEN: &str = "Secret culvert-identity has no seed; put back the one that it had, or delete the Secret to become another cluster";
