//! The list with which an owner takes passes back at once.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::wire::Signature;
use crate::identity::{self, ClusterIdentity, ClusterSecret};
use crate::key::NodeKey;

/// Bytes of the largest list.
pub const MAX_DENY_LIST: usize = 128 << 10;
/// Node keys that one list can name. What has expired anyway need not be named.
pub const MAX_DENIED_NODES: usize = 2000;
/// Clusters that one list can name.
pub const MAX_DENIED_CLUSTERS: usize = 256;

/// HTTP header of a relay's answer to a list that comes too late: the serial that is in force.
pub const DENY_LIST_SERIAL: &str = "Deny-List-Serial";

const LABEL: &[u8] = b"culvert deny list v1";

/// Why something is no deny list.
#[derive(Debug, Error)]
pub enum DenyError {
    /// More than fits.
    #[error(
        "a deny list has at most {MAX_DENIED_NODES} nodes, {MAX_DENIED_CLUSTERS} clusters and {MAX_DENY_LIST} bytes; leave out those whose passes have expired"
    )]
    TooLong,
    /// Not the JSON expected.
    #[error("this is no deny list: {0}")]
    Malformed(#[from] serde_json::Error),
    /// No signature, or not the owner's.
    #[error("this deny list is not signed by the owner that it names")]
    Signature,
}

/// Whom an owner lets in no longer. A list of a higher serial replaces all before it.
///
/// As JSON: `{"serial": 1, "owner": "cluster:...", "nodes": ["<base64>"], "clusters": ["cluster:..."], "signature":
/// "<base64url>"}`. The signature is over the label `culvert deny list v1`, the owner, the serial (8 bytes), and for
/// nodes and clusters each the number of keys (4 bytes) and the keys in rising order. Numbers are big-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DenyList {
    owner: ClusterIdentity,
    serial: u64,
    nodes: BTreeSet<NodeKey>,
    clusters: BTreeSet<ClusterIdentity>,
    signature: Signature,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    serial: u64,
    owner: ClusterIdentity,
    nodes: Vec<NodeKey>,
    /// Points cost more to read than other text.
    clusters: Vec<String>,
    #[serde(default)]
    signature: String,
}

impl DenyList {
    /// Makes a list.
    ///
    /// # Errors
    ///
    /// [`DenyError::TooLong`].
    pub fn issue(
        owner: &ClusterSecret,
        serial: u64,
        nodes: BTreeSet<NodeKey>,
        clusters: BTreeSet<ClusterIdentity>,
    ) -> Result<Self, DenyError> {
        if nodes.len() > MAX_DENIED_NODES || clusters.len() > MAX_DENIED_CLUSTERS {
            return Err(DenyError::TooLong);
        }
        let raw = clusters.iter().map(|cluster| *cluster.as_bytes()).collect();
        let body = body(owner.identity(), serial, &nodes, &raw);
        Ok(Self {
            owner: owner.identity(),
            serial,
            signature: Signature::by(owner, LABEL, &body),
            nodes,
            clusters,
        })
    }

    /// Reads a list and checks that its owner has signed it. Whom it names is looked at only then: strangers make nobody
    /// compute many points on a curve.
    ///
    /// # Errors
    ///
    /// [`DenyError`].
    pub fn parse(json: &[u8]) -> Result<Self, DenyError> {
        if json.len() > MAX_DENY_LIST {
            return Err(DenyError::TooLong);
        }
        let document: Document = serde_json::from_slice(json)?;
        if document.nodes.len() > MAX_DENIED_NODES || document.clusters.len() > MAX_DENIED_CLUSTERS
        {
            return Err(DenyError::TooLong);
        }
        let (owner, serial) = (document.owner, document.serial);
        let signature = read_signature(&document.signature)?;
        let nodes = document.nodes.into_iter().collect();
        let clusters = read_clusters(&document.clusters)?;
        let checked = signature.check(&owner, LABEL, &body(owner, serial, &nodes, &clusters));
        checked.map_err(|_| DenyError::Signature)?;
        Ok(Self {
            owner,
            serial,
            nodes,
            clusters: clusters
                .into_iter()
                .map(ClusterIdentity::from_bytes)
                .collect::<Result<_, _>>()
                .map_err(serde_json::Error::custom)?,
            signature,
        })
    }

    /// What [`Self::parse`] reads, on one line.
    #[must_use]
    pub fn to_json(&self) -> String {
        let document = Document {
            serial: self.serial,
            owner: self.owner,
            nodes: self.nodes.iter().copied().collect(),
            clusters: self.clusters.iter().map(ToString::to_string).collect(),
            signature: URL_SAFE_NO_PAD.encode(self.signature.bytes()),
        };
        // Numbers and strings in lists are never refused.
        serde_json::to_string(&document).unwrap_or_default()
    }

    /// Whose relays it is for.
    #[must_use]
    pub fn owner(&self) -> ClusterIdentity {
        self.owner
    }

    /// The higher one counts.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Node keys that are denied.
    #[must_use]
    pub fn nodes(&self) -> &BTreeSet<NodeKey> {
        &self.nodes
    }

    /// Clusters whose node keys are all denied.
    #[must_use]
    pub fn clusters(&self) -> &BTreeSet<ClusterIdentity> {
        &self.clusters
    }
}

/// The bytes, whether or not they are points.
fn read_clusters(texts: &[String]) -> Result<BTreeSet<[u8; 32]>, serde_json::Error> {
    let clusters = texts.iter().map(|text| identity::read_text(text));
    clusters
        .collect::<Result<_, _>>()
        .map_err(serde_json::Error::custom)
}

fn read_signature(text: &str) -> Result<Signature, DenyError> {
    let bytes = URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| DenyError::Signature)?;
    let bytes = bytes.as_slice().try_into();
    bytes
        .map(Signature::from_bytes)
        .map_err(|_| DenyError::Signature)
}

fn body(
    owner: ClusterIdentity,
    serial: u64,
    nodes: &BTreeSet<NodeKey>,
    clusters: &BTreeSet<[u8; 32]>,
) -> Vec<u8> {
    let mut bytes = owner.as_bytes().to_vec();
    bytes.extend(serial.to_be_bytes());
    put_keys(&mut bytes, nodes.iter().map(NodeKey::as_bytes));
    put_keys(&mut bytes, clusters.iter());
    bytes
}

fn put_keys<'a>(bytes: &mut Vec<u8>, keys: impl ExactSizeIterator<Item = &'a [u8; 32]>) {
    bytes.extend(u32::try_from(keys.len()).unwrap_or(u32::MAX).to_be_bytes());
    keys.for_each(|key| bytes.extend(key));
}
