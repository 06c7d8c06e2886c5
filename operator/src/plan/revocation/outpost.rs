//! A relay that takes deny lists.

use derp::RelayUrl;
use serde::{Deserialize, Serialize};

use crate::plan::relays::Site;

/// Longest bundle that is kept, in bytes: all of it has to fit into one `ConfigMap`.
const MAX_BUNDLE: usize = 8 << 10;

/// How to reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Outpost {
    /// How it is known.
    pub(super) url: RelayUrl,
    /// Where it is dialled, if not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) dial: Option<RelayUrl>,
    /// Certificates (PEM) to trust for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ca_bundle: Option<String>,
    /// Whether it is a guess that it is ours.
    #[serde(default)]
    pub(super) is_assumed: bool,
}

impl Outpost {
    /// `None` while its URL is not known.
    pub(super) fn of(site: &Site) -> Option<Self> {
        Some(Self {
            url: site.url.clone()?,
            dial: site.dial.clone(),
            ca_bundle: site.ca_bundle.clone(),
            is_assumed: site.is_assumed,
        })
    }

    /// Without a bundle that is too long to be kept.
    pub(super) fn trimmed(self) -> Self {
        let bundle = self.ca_bundle.filter(|pem| pem.len() <= MAX_BUNDLE);
        Self {
            ca_bundle: bundle,
            ..self
        }
    }
}
