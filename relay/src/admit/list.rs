//! The lines of an admit file.

use std::collections::HashSet;

use derp::{ClusterIdentity, IdentityError, KeyError, NodeKey};

/// A line that names no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadLine {
    /// Not a node key.
    #[error("line {number}: {error}{}", owner_form(*.error))]
    Node {
        /// The line's number, from 1.
        number: usize,
        /// Why it is none.
        error: KeyError,
    },
    /// Not a cluster identity.
    #[error("line {number}: {error}")]
    Cluster {
        /// The line's number, from 1.
        number: usize,
        /// Why it is none.
        error: IdentityError,
    },
}

/// What else a line may be that is no key at all.
fn owner_form(error: KeyError) -> &'static str {
    match error {
        KeyError::Form => "; or, for an owner, cluster: and 44 characters of base64",
        KeyError::Weak | KeyError::NotReduced => "",
    }
}

/// What an admit file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct List {
    pub(super) text: Vec<u8>,
    pub(super) nodes: HashSet<NodeKey>,
    pub(super) owners: HashSet<ClusterIdentity>,
    /// The addresses of the owners on relays.
    pub(super) owner_keys: HashSet<NodeKey>,
}

impl List {
    pub(super) fn parse(text: Vec<u8>) -> Result<Self, BadLine> {
        let mut list = Self::default();
        for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let number = index + 1;
            let line = std::str::from_utf8(line).map_err(|_| BadLine::Node {
                number,
                error: KeyError::Form,
            })?;
            list.add(number, line)?;
        }
        list.text = text;
        Ok(list)
    }

    fn add(&mut self, number: usize, line: &str) -> Result<(), BadLine> {
        let entry = line.split('#').next().unwrap_or_default().trim();
        if entry.is_empty() {
            return Ok(());
        }
        if entry.starts_with("cluster:") {
            let owner: ClusterIdentity = entry
                .parse()
                .map_err(|error| BadLine::Cluster { number, error })?;
            self.owner_keys.insert(owner.relay_key());
            self.owners.insert(owner);
            return Ok(());
        }
        let node = entry.strip_prefix("node:").unwrap_or(entry);
        let key = node
            .parse()
            .map_err(|error| BadLine::Node { number, error })?;
        self.nodes.insert(key);
        Ok(())
    }

    pub(super) fn announce(&self) {
        tracing::info!(
            nodes = self.nodes.len(),
            owners = self.owners.len(),
            "admit list in force"
        );
    }
}

#[cfg(test)]
mod tests {
    use derp::{ClusterSecret, NodeSecret};

    use super::*;

    fn key(seed: u8) -> NodeKey {
        NodeSecret::from_bytes([seed; 32]).public()
    }

    fn parse(text: &str) -> Result<List, BadLine> {
        List::parse(text.as_bytes().to_vec())
    }

    #[test]
    fn all_forms_are_read() {
        let text = format!(
            "# who\n\n{}\nnode:{} # berlin\n  nodekey:{}\n{}\n",
            key(1),
            key(2),
            key(3).to_hex(),
            ClusterSecret::from_seed([4; 32]).unwrap().identity()
        );
        let list = parse(&text).unwrap();
        assert_eq!(list.nodes, HashSet::from([key(1), key(2), key(3)]));
        let owner = ClusterSecret::from_seed([4; 32]).unwrap().identity();
        assert_eq!(list.owners, HashSet::from([owner]));
        assert_eq!(list.owner_keys, HashSet::from([owner.relay_key()]));
        let windows = parse(&format!("{}\r\n{}\r\n", key(1), key(2))).unwrap();
        assert_eq!(windows.nodes.len(), 2);
    }

    #[test]
    fn bad_lines_are_named_by_number() {
        for (text, number) in [("x", 1), ("\n\nnode:AAAA", 3), ("node:nodekey:00", 1)] {
            assert!(
                matches!(parse(text), Err(BadLine::Node { number: at, .. }) if at == number),
                "{text}"
            );
        }
        let told = parse("x").unwrap_err().to_string();
        assert!(told.contains("line 1: expected 44 characters"), "{told}");
        assert!(
            told.ends_with("for an owner, cluster: and 44 characters of base64"),
            "{told}"
        );
        let weak = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        assert_eq!(
            parse(weak),
            Err(BadLine::Node {
                number: 1,
                error: KeyError::Weak
            })
        );
        assert!(!parse(weak).unwrap_err().to_string().contains("owner"));
        let not_text = [b"# \n".as_slice(), &[0xff, b'\n']].concat();
        assert_eq!(
            List::parse(not_text),
            Err(BadLine::Node {
                number: 2,
                error: KeyError::Form
            })
        );
    }

    #[test]
    fn bad_clusters_are_named_by_number_and_reason() {
        for (cluster, error) in [
            ("short", IdentityError::Form),
            (
                "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
                IdentityError::Weak,
            ),
        ] {
            assert_eq!(
                parse(&format!("#\ncluster:{cluster}")),
                Err(BadLine::Cluster { number: 2, error })
            );
        }
    }
}
