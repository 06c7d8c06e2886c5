//! Nodes, as one cluster describes them to another.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use derp::{KeyError, NodeKey, RelayUrl, UrlError};
use ipnet::IpNet;
use thiserror::Error;

use super::name::{NameError, NodeName};

/// Ranges of one cluster.
pub const MAX_PREFIXES: usize = 64;
/// Prefixes of one node, which may be the addresses of its pods.
pub const MAX_NODE_PREFIXES: usize = 256;
/// Nodes of one cluster.
pub const MAX_NODES: usize = 8192;
/// Text of a name that is repeated when its record is refused.
const MAX_SHOWN: usize = 253;
/// What all records of one cluster may weigh together.
const MAX_WEIGHT: usize = 8 << 20;
/// What a record weighs besides its name, relay and prefixes.
const BASE_WEIGHT: usize = 128;
const PREFIX_WEIGHT: usize = 18;

/// Why a record is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RecordError {
    /// Its name.
    #[error("the node's name: {0}")]
    Name(NameError),
    /// Its key.
    #[error("the node's key: {0}")]
    Key(KeyError),
    /// Its home relay.
    #[error("the node's home relay: {0}")]
    Relay(UrlError),
    /// One of its prefixes.
    #[error("prefix {index}: expected ADDRESS/LENGTH")]
    Prefix {
        /// Which, from 0.
        index: usize,
    },
    /// Too many of them.
    #[error("more than {MAX_NODE_PREFIXES} prefixes")]
    Prefixes,
}

/// More nodes than one cluster may have: [`MAX_NODES`], or 8 MiB of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("more than {MAX_NODES} nodes, or 8 MiB of them")]
pub struct TooMuch;

/// A record that was sent and is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The beginning of its name, with everything but letters, digits, `-` and `.` replaced by `?`.
    pub name: String,
    /// What is wrong.
    pub error: RecordError,
}

/// A node of a cluster. Parsed, bounded, and a proposal all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    public_key: NodeKey,
    home_relay: Option<RelayUrl>,
    prefixes: Vec<IpNet>,
    generation: u64,
}

/// All nodes of a cluster by name, bounded in number and size. Cloning costs a pointer or two per node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    nodes: BTreeMap<NodeName, Arc<NodeRecord>>,
    weight: usize,
}

impl NodeRecord {
    /// A node. `generation` counts what its sender wants counted; records are compared by what is in them.
    ///
    /// # Errors
    /// [`RecordError::Prefixes`] for more than [`MAX_NODE_PREFIXES`].
    pub fn new(
        public_key: NodeKey,
        home_relay: Option<RelayUrl>,
        prefixes: Vec<IpNet>,
        generation: u64,
    ) -> Result<Self, RecordError> {
        if prefixes.len() > MAX_NODE_PREFIXES {
            return Err(RecordError::Prefixes);
        }
        Ok(Self {
            public_key,
            home_relay,
            prefixes,
            generation,
        })
    }

    /// Its WireGuard key.
    #[must_use]
    pub fn public_key(&self) -> NodeKey {
        self.public_key
    }

    /// The relay where it listens.
    #[must_use]
    pub fn home_relay(&self) -> Option<&RelayUrl> {
        self.home_relay.as_ref()
    }

    /// What it serves.
    #[must_use]
    pub fn prefixes(&self) -> &[IpNet] {
        &self.prefixes
    }

    /// Counts its changes.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    fn weight(&self, name: &NodeName) -> usize {
        let relay = self.home_relay.as_ref().map_or(0, |url| url.host().len());
        BASE_WEIGHT + name.as_str().len() + relay + self.prefixes.len() * PREFIX_WEIGHT
    }
}

impl Records {
    /// Adds a node, or replaces the one of that name.
    ///
    /// # Errors
    /// When there would be too many; then nothing has changed.
    pub fn insert(&mut self, name: NodeName, record: Arc<NodeRecord>) -> Result<(), TooMuch> {
        let old = self.nodes.get(&name);
        let count = self.nodes.len() + usize::from(old.is_none());
        let weight = self.weight - old.map_or(0, |old| old.weight(&name)) + record.weight(&name);
        if count > MAX_NODES || weight > MAX_WEIGHT {
            return Err(TooMuch);
        }
        self.nodes.insert(name, record);
        self.weight = weight;
        Ok(())
    }

    /// Removes a node; says whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        let Some((name, old)) = self.nodes.remove_entry(name) else {
            return false;
        };
        self.weight -= old.weight(&name);
        true
    }

    /// The node of this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Arc<NodeRecord>> {
        self.nodes.get(name)
    }

    /// All of them by name.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeName, &Arc<NodeRecord>)> {
        self.nodes.iter()
    }

    /// Those that come behind this name; all for none.
    pub(crate) fn after(
        &self,
        name: Option<&NodeName>,
    ) -> impl Iterator<Item = (&NodeName, &Arc<NodeRecord>)> {
        let start = name.map_or(Bound::Unbounded, Bound::Excluded);
        self.nodes.range::<NodeName, _>((start, Bound::Unbounded))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}

impl Refusal {
    pub(super) fn new(name: &str, error: RecordError) -> Self {
        let shown = name.chars().take(MAX_SHOWN);
        let harmless = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '.');
        Self {
            name: shown
                .map(|char| if harmless(char) { char } else { '?' })
                .collect(),
            error,
        }
    }
}

#[cfg(test)]
mod tests {
    use derp::NodeSecret;

    use super::*;

    fn record(prefixes: usize) -> Arc<NodeRecord> {
        let key = NodeSecret::from_bytes([9; 32]).public();
        let prefixes = vec!["10.0.0.0/24".parse().unwrap(); prefixes];
        Arc::new(NodeRecord::new(key, None, prefixes, 1).unwrap())
    }

    fn name(number: usize) -> NodeName {
        format!("n{number}").parse().unwrap()
    }

    #[test]
    fn the_number_of_nodes_is_bounded() {
        let mut records = Records::default();
        for number in 0..MAX_NODES {
            records.insert(name(number), record(0)).unwrap();
        }
        assert_eq!(records.insert(name(MAX_NODES), record(0)), Err(TooMuch));
        assert_eq!(records.insert(name(0), record(1)), Ok(()), "replaces");
        assert!(records.remove("n1"));
        assert!(!records.remove("n1"));
        assert_eq!(records.insert(name(MAX_NODES), record(0)), Ok(()));
        assert_eq!(records.len(), MAX_NODES);
    }

    #[test]
    fn the_weight_of_nodes_is_bounded_and_kept() {
        let mut records = Records::default();
        let taken = (0..MAX_NODES)
            .take_while(|number| records.insert(name(*number), record(64)).is_ok())
            .count();
        assert!((5000..MAX_NODES).contains(&taken), "{taken}");
        for number in 0..taken {
            assert!(records.remove(name(number).as_str()));
        }
        assert_eq!(records, Records::default());
    }

    #[test]
    fn the_number_of_prefixes_is_bounded() {
        let key = NodeSecret::from_bytes([9; 32]).public();
        let prefixes = vec!["10.0.0.0/24".parse().unwrap(); MAX_NODE_PREFIXES + 1];
        assert_eq!(
            NodeRecord::new(key, None, prefixes, 1),
            Err(RecordError::Prefixes)
        );
    }

    #[test]
    fn a_refused_name_is_shown_harmlessly() {
        let refusal = Refusal::new(&"a\n'$".repeat(100), RecordError::Prefixes);
        assert_eq!(refusal.name, format!("{}a", "a???".repeat(63)));
    }
}
