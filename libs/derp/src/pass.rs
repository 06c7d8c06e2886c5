//! Passes: signed statements that a key may use a relay, and the lists that take them back.
//!
//! A relay knows its owners' identities and nothing else. An owner admits a cluster ([`Membership`]), a cluster admits a
//! node key ([`Pass`]); a pass carries the membership behind it, so that one text proves all of it. An owner admits its
//! own nodes without a membership.
//!
//! Each is binary in base64url without padding (RFC 4648 section 5), of a fixed length. Numbers are big-endian, times are
//! seconds since 1970, signatures are Ed25519 (RFC 8032) over the label and the fields in front of them:
//!
//! | text | label | fields |
//! |---|---|---|
//! | membership | `culvert membership v1` | `0x21`, owner 32, cluster 32, scope 1, expiry 8, owner's signature 64 |
//! | pass | `culvert pass v1` | `0x11`, cluster 32, key 32, expiry 8, cluster's signature 64 |
//! | pass of a member | | the same, then owner 32, scope 1, expiry 8, owner's signature 64 |
//!
//! A pass for the lobby is good for one key: the relay key of its cluster, which is the temporary identity of an invite.
//! So who holds an invite has one key on a relay and not as many as it likes.
//!
//! A membership that has expired still opens the lobby, for [`RETURN`], to the relay key of its cluster: from there it can
//! ask the owner for another one.
//!
//! What parses here is signed by whom it names; whether that is an owner, and whether it is still time, is for
//! [`Pass::verify`] to say.

mod deny;
mod wire;

#[cfg(test)]
mod tests;

pub use deny::{
    DENY_LIST_SERIAL, DenyError, DenyList, MAX_DENIED_CLUSTERS, MAX_DENIED_NODES, MAX_DENY_LIST,
};

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::identity::{ClusterIdentity, ClusterSecret};
use crate::key::NodeKey;
use wire::{Expiry, Fields, Signature};

/// How long memberships and passes are issued for; they are renewed when half of it is left.
pub const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// How wrong clocks may be: relays take what has expired no longer ago than this.
pub const SKEW: Duration = Duration::from_secs(600);
/// How long a membership that has expired opens the lobby: whoever was away for longer than it lasts can come back for
/// another one.
pub const RETURN: Duration = Duration::from_secs(90 * 24 * 3600);
/// Characters of the longest pass.
pub const MAX_PASS_TEXT: usize = 323;

const MEMBERSHIP_LABEL: &[u8] = b"culvert membership v1";
const PASS_LABEL: &[u8] = b"culvert pass v1";
const MEMBERSHIP_TAG: u8 = 0x21;
const PASS_TAG: u8 = 0x11;

/// Why something is no pass, or none for this relay, key and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PassError {
    /// Not the text form.
    #[error("this is not the text of a pass")]
    Malformed,
    /// It is not signed by the cluster that it names.
    #[error("a signature is wrong")]
    Signature,
    /// It is for another node key; in the lobby, for one that is not the relay key of its cluster.
    #[error("this pass is for another key")]
    WrongKey,
    /// Neither an owner of the relay nor admitted by one.
    #[error("this pass comes from no owner of the relay")]
    UnknownOwner,
    /// The membership is for another cluster, or from another owner.
    #[error("this membership is of other clusters")]
    OtherCluster,
    /// Its time is over.
    #[error("this pass has expired")]
    Expired,
}

/// What a pass lets its holder do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Exchange packets with everybody on the relay.
    Mesh,
    /// Exchange packets with the owner's relay key and nobody else, and only by the relay key of the cluster that is
    /// admitted. What invites carry.
    Lobby,
}

/// An owner's word that a cluster may use its relays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Membership {
    owner: ClusterIdentity,
    cluster: ClusterIdentity,
    scope: Scope,
    expires: Expiry,
    signature: Signature,
}

/// A cluster's word that a node key may use a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pass {
    cluster: ClusterIdentity,
    key: NodeKey,
    expires: Expiry,
    signature: Signature,
    /// Of this cluster.
    membership: Option<Membership>,
}

/// What a pass has proved to a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// The owner at the root of the chain.
    pub owner: ClusterIdentity,
    /// The cluster that vouches for the key; the owner itself, or one that it admits.
    pub cluster: ClusterIdentity,
    /// What the key may do.
    pub scope: Scope,
    /// When the first link of the chain ends; of a key that comes back, when it no longer may.
    pub expires: SystemTime,
}

/// Reads a pass and asks whether it admits a key to a relay of these owners.
///
/// # Errors
///
/// As [`Pass::from_str`] and [`Pass::verify`].
pub fn verify(
    text: &str,
    owners: &HashSet<ClusterIdentity>,
    key: &NodeKey,
    now: SystemTime,
) -> Result<Admitted, PassError> {
    text.parse::<Pass>()?.verify(owners, key, now)
}

impl Membership {
    /// Admits a cluster; the expiry is cut to whole seconds.
    #[must_use]
    pub fn issue(
        owner: &ClusterSecret,
        cluster: ClusterIdentity,
        scope: Scope,
        expires: SystemTime,
    ) -> Self {
        let expires = Expiry::at(expires);
        let body = Self::body(owner.identity(), cluster, scope, expires);
        Self {
            owner: owner.identity(),
            cluster,
            scope,
            expires,
            signature: Signature::by(owner, MEMBERSHIP_LABEL, &body),
        }
    }

    /// Whether this admits `cluster` to relays of `owner`.
    ///
    /// # Errors
    ///
    /// [`PassError::OtherCluster`], [`PassError::Expired`].
    pub fn verify(
        &self,
        owner: &ClusterIdentity,
        cluster: &ClusterIdentity,
        now: SystemTime,
    ) -> Result<(), PassError> {
        if (self.owner, self.cluster) != (*owner, *cluster) {
            return Err(PassError::OtherCluster);
        }
        self.expires.check(now)
    }

    /// Whose relays it is for.
    #[must_use]
    pub fn owner(&self) -> ClusterIdentity {
        self.owner
    }

    /// Who is admitted.
    #[must_use]
    pub fn cluster(&self) -> ClusterIdentity {
        self.cluster
    }

    /// What for.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// From when on it is void.
    #[must_use]
    pub fn expires(&self) -> SystemTime {
        self.expires.time()
    }

    /// When to issue the next one, if this was issued for [`LIFETIME`].
    #[must_use]
    pub fn renew_at(&self) -> SystemTime {
        self.expires.renew_at()
    }

    fn body(
        owner: ClusterIdentity,
        cluster: ClusterIdentity,
        scope: Scope,
        expires: Expiry,
    ) -> Vec<u8> {
        let mut bytes = vec![MEMBERSHIP_TAG];
        bytes.extend(owner.as_bytes());
        bytes.extend(cluster.as_bytes());
        bytes.push(scope.code());
        bytes.extend(expires.bytes());
        bytes
    }

    /// Checks the signature.
    fn signed(self) -> Result<Self, PassError> {
        let body = Self::body(self.owner, self.cluster, self.scope, self.expires);
        self.signature.check(&self.owner, MEMBERSHIP_LABEL, &body)?;
        Ok(self)
    }
}

impl Pass {
    /// Admits a node key; the expiry is cut to whole seconds.
    ///
    /// # Errors
    ///
    /// [`PassError::OtherCluster`] if the membership is not this cluster's.
    pub fn issue(
        cluster: &ClusterSecret,
        key: NodeKey,
        expires: SystemTime,
        membership: Option<Membership>,
    ) -> Result<Self, PassError> {
        let identity = cluster.identity();
        if membership.is_some_and(|membership| membership.cluster != identity) {
            return Err(PassError::OtherCluster);
        }
        let expires = Expiry::at(expires);
        let body = Self::body(identity, &key, expires);
        Ok(Self {
            cluster: identity,
            key,
            expires,
            signature: Signature::by(cluster, PASS_LABEL, &body),
            membership,
        })
    }

    /// Asks whether it admits this key to a relay of these owners. Give an earlier `now` to allow for wrong clocks. A key
    /// that comes back ([`RETURN`]) is admitted to the lobby.
    ///
    /// # Errors
    ///
    /// [`PassError::UnknownOwner`], [`PassError::WrongKey`], [`PassError::Expired`].
    pub fn verify(
        &self,
        owners: &HashSet<ClusterIdentity>,
        key: &NodeKey,
        now: SystemTime,
    ) -> Result<Admitted, PassError> {
        let owner = self.owner();
        if !owners.contains(&owner) {
            return Err(PassError::UnknownOwner);
        }
        let may_name = self.scope() == Scope::Mesh || self.key == self.cluster.relay_key();
        if self.key != *key || !may_name {
            return Err(PassError::WrongKey);
        }
        let admitted = Admitted {
            owner,
            cluster: self.cluster,
            scope: self.scope(),
            expires: self.expires(),
        };
        match (self.first_expiry().check(now), self.returns_until()) {
            (Ok(()), _) => Ok(admitted),
            (Err(_), Some(end)) if now < end => Ok(Admitted {
                scope: Scope::Lobby,
                expires: end,
                ..admitted
            }),
            (Err(error), _) => Err(error),
        }
    }

    /// Until when the lobby is open whatever the membership's expiry.
    fn returns_until(&self) -> Option<SystemTime> {
        let membership = self.membership.filter(|given| given.scope == Scope::Mesh)?;
        let end = membership.expires().checked_add(RETURN)?;
        (self.key == self.cluster.relay_key()).then(|| end.min(self.expires.time()))
    }

    /// Who vouches for the key.
    #[must_use]
    pub fn cluster(&self) -> ClusterIdentity {
        self.cluster
    }

    /// The node key.
    #[must_use]
    pub fn key(&self) -> NodeKey {
        self.key
    }

    /// What admits the cluster, unless it is an owner of the relay itself.
    #[must_use]
    pub fn membership(&self) -> Option<&Membership> {
        self.membership.as_ref()
    }

    /// Whose relays it is for: the owner in the membership, else the cluster itself.
    #[must_use]
    pub fn owner(&self) -> ClusterIdentity {
        self.membership
            .map_or(self.cluster, |membership| membership.owner)
    }

    /// What the key may do.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.membership
            .map_or(Scope::Mesh, |membership| membership.scope)
    }

    /// From when on it is void: it or its membership, whichever is first.
    #[must_use]
    pub fn expires(&self) -> SystemTime {
        self.first_expiry().time()
    }

    /// When to issue the next one, if this was issued for [`LIFETIME`]. Says nothing about the membership, which is
    /// replaced when the owner has sent another.
    #[must_use]
    pub fn renew_at(&self) -> SystemTime {
        self.expires.renew_at()
    }

    fn first_expiry(&self) -> Expiry {
        self.membership.map_or(self.expires, |membership| {
            self.expires.min(membership.expires)
        })
    }

    fn body(cluster: ClusterIdentity, key: &NodeKey, expires: Expiry) -> Vec<u8> {
        let mut bytes = vec![PASS_TAG];
        bytes.extend(cluster.as_bytes());
        bytes.extend(key.as_bytes());
        bytes.extend(expires.bytes());
        bytes
    }

    /// Checks its own signature; that of the membership has been.
    fn signed(self) -> Result<Self, PassError> {
        let body = Self::body(self.cluster, &self.key, self.expires);
        self.signature.check(&self.cluster, PASS_LABEL, &body)?;
        Ok(self)
    }
}

impl Scope {
    fn code(self) -> u8 {
        match self {
            Self::Mesh => 1,
            Self::Lobby => 2,
        }
    }

    fn from_code(code: u8) -> Result<Self, PassError> {
        match code {
            1 => Ok(Self::Mesh),
            2 => Ok(Self::Lobby),
            _ => Err(PassError::Malformed),
        }
    }
}

impl FromStr for Membership {
    type Err = PassError;

    fn from_str(text: &str) -> Result<Self, PassError> {
        let bytes = wire::decode(text)?;
        let mut fields = Fields::new(&bytes, MEMBERSHIP_TAG)?;
        let membership = Self {
            owner: fields.identity()?,
            cluster: fields.identity()?,
            scope: Scope::from_code(fields.byte()?)?,
            expires: fields.expiry()?,
            signature: fields.signature()?,
        };
        fields.end()?;
        membership.signed()
    }
}

impl FromStr for Pass {
    type Err = PassError;

    fn from_str(text: &str) -> Result<Self, PassError> {
        let bytes = wire::decode(text)?;
        let mut fields = Fields::new(&bytes, PASS_TAG)?;
        let cluster = fields.identity()?;
        let mut pass = Self {
            cluster,
            key: fields.node_key()?,
            expires: fields.expiry()?,
            signature: fields.signature()?,
            membership: None,
        };
        if !fields.is_empty() {
            let membership = Membership {
                owner: fields.identity()?,
                cluster,
                scope: Scope::from_code(fields.byte()?)?,
                expires: fields.expiry()?,
                signature: fields.signature()?,
            };
            pass.membership = Some(membership.signed()?);
        }
        fields.end()?;
        pass.signed()
    }
}

impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Self::body(self.owner, self.cluster, self.scope, self.expires);
        bytes.extend(self.signature.bytes());
        f.write_str(&wire::encode(&bytes))
    }
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Self::body(self.cluster, &self.key, self.expires);
        bytes.extend(self.signature.bytes());
        if let Some(membership) = &self.membership {
            bytes.extend(membership.owner.as_bytes());
            bytes.push(membership.scope.code());
            bytes.extend(membership.expires.bytes());
            bytes.extend(membership.signature.bytes());
        }
        f.write_str(&wire::encode(&bytes))
    }
}

impl TryFrom<String> for Membership {
    type Error = PassError;

    fn try_from(text: String) -> Result<Self, PassError> {
        text.parse()
    }
}

impl From<Membership> for String {
    fn from(membership: Membership) -> Self {
        membership.to_string()
    }
}

impl TryFrom<String> for Pass {
    type Error = PassError;

    fn try_from(text: String) -> Result<Self, PassError> {
        text.parse()
    }
}

impl From<Pass> for String {
    fn from(pass: Pass) -> Self {
        pass.to_string()
    }
}
