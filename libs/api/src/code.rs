//! What can be wrong with a manifest.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One thing that is wrong in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path of the field, such as `spec.nodes[0].publicKey`; empty for a document or a file as a whole.
    pub field: String,
    /// Which rule is broken.
    pub code: Code,
    /// What was found, what was expected, and how to put it right.
    pub message: String,
}

impl Problem {
    /// A problem of one field, or of the whole document where `field` is empty.
    pub fn new(field: impl Into<String>, code: Code, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            code,
            message: message.into(),
        }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Why a manifest, or a field of one, was refused.
        #[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            /// Every code there is.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The code as it stands in the status.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

codes! {
    /// The manifest folder cannot be listed. Everything read from it before stays in force.
    FolderUnreadable,
    /// The API server, or this node's MeshNode, has not been read yet. Everything in force stays.
    NotReadYet,
    /// The operator has not admitted this Peer, or no longer does; its conditions say why.
    NotAdmitted,
    /// The file cannot be read. Everything read from it before stays in force.
    FileUnreadable,
    /// The file is larger than [`MAX_FILE_BYTES`](crate::MAX_FILE_BYTES).
    FileTooLarge,
    /// The file is not text in UTF-8.
    NotUtf8,
    /// The file has more than [`MAX_DOCUMENTS`](crate::MAX_DOCUMENTS) documents.
    TooManyDocuments,
    /// The document is not YAML.
    BadYaml,
    /// The document is nested too deeply, or its aliases expand to too much.
    TooComplex,
    /// A field occurs twice in one mapping.
    DuplicateField,
    /// The document is not a mapping.
    NotAnObject,
    /// `apiVersion` is missing or is not `culvert.dev/v1alpha1`.
    BadApiVersion,
    /// `kind` is missing or is neither `Mesh` nor `Peer`.
    UnknownKind,
    /// The kind has no such field.
    UnknownField,
    /// A field without default is missing.
    MissingField,
    /// The value has another type, for instance a number where a string is expected.
    WrongType,
    /// The value is none of those that the field knows.
    UnknownValue,
    /// The list has more items than allowed.
    TooMany,
    /// The text is longer than allowed.
    TooLong,
    /// A name is not made of DNS labels.
    BadName,
    /// A prefix is not of the form `address/length`.
    BadCidr,
    /// A prefix has bits set behind its length.
    HostBitsSet,
    /// A prefix of length 0.
    DefaultRoute,
    /// A prefix touches the IPv4-mapped range of IPv6, `::ffff:0:0/96`.
    MappedAddress,
    /// A prefix touches `127.0.0.0/8` or `::1`.
    Loopback,
    /// A prefix touches `169.254.0.0/16` or `fe80::/10`.
    LinkLocal,
    /// A prefix touches `224.0.0.0/4` or `ff00::/8`.
    Multicast,
    /// A prefix touches `0.0.0.0/8`, `240.0.0.0/4` or `::`.
    Reserved,
    /// An entry of `addresses` is a network and not one address.
    NotOneAddress,
    /// Neither `podCIDRs` nor `addresses` holds anything.
    NothingServed,
    /// A cluster's identity is malformed or weak.
    BadIdentity,
    /// Only an operator can do this, and a host without Kubernetes has none.
    NeedsKubernetes,
    /// A public key is malformed, all zero or weak.
    BadKey,
    /// A public key is that of this node.
    OwnKey,
    /// A public key belongs to two nodes.
    DuplicateKey,
    /// A relay's URL is malformed or has parts that it must not have.
    BadUrl,
    /// A relay's URL occurs twice.
    DuplicateRelay,
    /// A port is out of range.
    BadPort,
    /// The MTU is out of range, or too small for IPv6.
    BadMtu,
    /// `caBundle` is not made of PEM certificates.
    BadCaBundle,
    /// Two nodes of a Peer have the same name.
    DuplicateName,
    /// Two nodes have the same prefix, or a list holds one twice.
    DuplicatePrefix,
    /// A node's prefix is outside `allowedCIDRs`.
    PrefixOutsideAllowed,
    /// `allowedCIDRs` overlaps with that of another Peer.
    OverlapsPeer,
    /// `allowedCIDRs` overlaps with what this site serves itself.
    OverlapsOwn,
    /// `allowedCIDRs` overlaps with a directly connected network.
    OverlapsConnected,
    /// `allowedCIDRs` holds the address of a relay: its packets would go into the tunnel that needs them.
    HoldsRelay,
    /// `homeRelay` is none of the Mesh's relays.
    UnknownRelay,
    /// `meshRef` names no Mesh there is.
    UnknownMesh,
    /// Another document has the same kind and name.
    DuplicateObject,
    /// There is another Mesh already.
    SecondMesh,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.iter().find(|code| code.name() == text);
        found.copied().ok_or_else(|| UnknownCode(text.to_owned()))
    }
}

/// The text names no [`Code`].
#[derive(Debug, thiserror::Error)]
#[error("unknown code {0:?}")]
pub struct UnknownCode(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_named_the_same_everywhere() {
        assert!(Code::ALL.len() >= 25);
        for &code in Code::ALL {
            let json = serde_json::to_string(&code).expect("serialises");
            assert_eq!(json, format!("{:?}", code.to_string()));
            assert_eq!(code.name().parse::<Code>().expect("known"), code);
        }
        assert!("Nonsense".parse::<Code>().is_err());
    }
}
