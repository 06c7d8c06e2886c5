//! The Secret with an invite's token.

use std::collections::BTreeMap;
use std::time::SystemTime;

use api::Invite;
use derp::pass::{Membership, Pass, Scope};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use sync::{Audience, MAX_PREFIXES, MAX_TOKEN_RELAYS, Token, TokenRelay};

use crate::plan::ground::Ground;
use crate::plan::names::{self, INVITE, TOKEN_KEY};
use crate::plan::relays::{Origin, Site};

/// The Secret with a new token, or why there can be none.
pub(super) fn secret(
    ground: Ground<'_>,
    sites: &[Site],
    invite: &Invite,
    name: String,
    until: Timestamp,
) -> Result<Secret, String> {
    let relays = relays(ground, sites);
    if relays.is_empty() {
        let message = "there is no relay of this cluster that others can reach; add one to the Mesh, and wait until its URL is in the status";
        return Err(message.to_owned());
    }
    let token = token(ground, relays, invite, until)?;
    let text = token.to_text().map_err(|error| error.to_string())?;
    let mut metadata = names::metadata(&ground.world.release, INVITE, name);
    metadata.owner_references = names::owner_reference(invite).map(|owner| vec![owner]);
    let text = ByteString(text.as_bytes().to_vec());
    Ok(Secret {
        metadata,
        data: Some(BTreeMap::from([(TOKEN_KEY.to_owned(), text)])),
        ..Secret::default()
    })
}

/// The text of the token in a Secret.
pub(crate) fn read(secret: &Secret) -> Option<&str> {
    let data = secret.data.as_ref()?.get(TOKEN_KEY)?;
    std::str::from_utf8(&data.0).ok()
}

/// Relays that let the token's holder in: those that take our word, or anybody's.
fn relays(ground: Ground<'_>, sites: &[Site]) -> Vec<TokenRelay> {
    let own = sites.iter().filter(|site| match site.origin {
        Origin::Managed => true,
        Origin::External => site.owner.is_none_or(|owner| owner == ground.identity()),
        Origin::Peer(_) => false,
    });
    let relay = |site: &Site| {
        Some(TokenRelay {
            url: site.url.clone()?,
            stun_port: (site.stun_port != 0).then_some(site.stun_port),
            ca_bundle: site.ca_bundle.clone(),
        })
    };
    own.filter_map(relay).take(MAX_TOKEN_RELAYS).collect()
}

fn token(
    ground: Ground<'_>,
    relays: Vec<TokenRelay>,
    invite: &Invite,
    until: Timestamp,
) -> Result<Token, String> {
    let secret = ground.world.fresh.invite.clone();
    let expires = SystemTime::from(until);
    let identity = secret.identity();
    let membership = Membership::issue(ground.secret, identity, Scope::Lobby, expires);
    let pass = Pass::issue(&secret, identity.relay_key(), expires, Some(membership));
    let cluster_name = &ground.mesh.spec.cluster_name;
    let pods = ground.ranges.pods.iter().copied();
    Ok(Token {
        inviter: ground.identity(),
        secret,
        pass: pass.map_err(|error| error.to_string())?.to_string(),
        relays,
        expires,
        audience: match invite.spec.audience {
            api::Audience::Cluster => Audience::Cluster,
            api::Audience::Host => Audience::Host,
        },
        cluster_name: cluster_name.parse().map_err(|error| format!("{error}"))?,
        cidrs: pods.take(MAX_PREFIXES).collect(),
    })
}
