//! Who may use the relay.

use std::collections::HashSet;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use derp::{KeyError, NodeKey};

const MAX_FILE: u64 = 8 << 20;

/// Who is let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdmitRule {
    /// Whoever proves its key.
    Any,
    /// The keys in this file, which is read again when it changes.
    File(PathBuf),
}

/// Why a list of keys is of no use.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// It cannot be read.
    #[error("the admit file {} cannot be read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A line is not what it should be.
    #[error("the admit file {}: {bad}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, and why.
        bad: BadLine,
    },
}

/// A line that names no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadLine {
    /// Not a node key.
    #[error("line {number}: {error}")]
    Node {
        /// The line's number, from 1.
        number: usize,
        /// Why it is none.
        error: KeyError,
    },
    /// Not a cluster identity.
    #[error("line {number}: expected `cluster:` and 44 base64 characters")]
    Cluster {
        /// The line's number, from 1.
        number: usize,
    },
}

/// The rule in force.
#[derive(Debug)]
pub(crate) struct Admission {
    source: Option<Source>,
}

#[derive(Debug)]
struct Source {
    path: PathBuf,
    list: ArcSwap<List>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct List {
    text: String,
    nodes: HashSet<NodeKey>,
    clusters: usize,
}

impl Admission {
    /// Reads the list, if the rule is one.
    pub(crate) fn new(rule: &AdmitRule) -> Result<Self, AdmitError> {
        let AdmitRule::File(path) = rule else {
            return Ok(Self { source: None });
        };
        let list = List::parse(read(path)?).map_err(|bad| AdmitError::Line {
            path: path.clone(),
            bad,
        })?;
        list.announce();
        Ok(Self {
            source: Some(Source {
                path: path.clone(),
                list: ArcSwap::from_pointee(list),
            }),
        })
    }

    /// Whether a key may use the relay.
    pub(crate) fn admits(&self, key: &NodeKey) -> bool {
        self.source
            .as_ref()
            .is_none_or(|source| source.list.load().nodes.contains(key))
    }

    /// Whether there is a file to look at.
    pub(crate) fn can_change(&self) -> bool {
        self.source.is_some()
    }

    /// Reads the file again. Says whether another list is in force now; on an error the list in force stays.
    pub(crate) fn reload(&self) -> Result<bool, AdmitError> {
        let Some(source) = &self.source else {
            return Ok(false);
        };
        let text = read(&source.path)?;
        if text == source.list.load().text {
            return Ok(false);
        }
        let list = List::parse(text).map_err(|bad| AdmitError::Line {
            path: source.path.clone(),
            bad,
        })?;
        list.announce();
        source.list.store(Arc::new(list));
        Ok(true)
    }
}

impl List {
    fn parse(text: String) -> Result<Self, BadLine> {
        let mut list = Self::default();
        for (index, line) in text.lines().enumerate() {
            list.add(index + 1, line)?;
        }
        list.text = text;
        Ok(list)
    }

    fn add(&mut self, number: usize, line: &str) -> Result<(), BadLine> {
        let entry = line.split('#').next().unwrap_or_default().trim();
        if entry.is_empty() {
            return Ok(());
        }
        if let Some(cluster) = entry.strip_prefix("cluster:") {
            // The key is of another curve, but the same 32 bytes in base64; which points are weak differs.
            match cluster.parse::<NodeKey>() {
                Ok(_) | Err(KeyError::Weak) if !cluster.starts_with("nodekey:") => {
                    self.clusters += 1
                }
                Ok(_) | Err(_) => return Err(BadLine::Cluster { number }),
            }
            return Ok(());
        }
        let node = entry.strip_prefix("node:").unwrap_or(entry);
        let key = node
            .parse()
            .map_err(|error| BadLine::Node { number, error })?;
        self.nodes.insert(key);
        Ok(())
    }

    fn announce(&self) {
        tracing::info!(
            nodes = self.nodes.len(),
            clusters = self.clusters,
            "admit list in force"
        );
        if self.clusters > 0 {
            tracing::info!(
                "passes are not read yet, so the clusters in the admit list admit no node"
            );
        }
    }
}

fn read(path: &Path) -> Result<String, AdmitError> {
    let read = || {
        let mut text = String::new();
        std::fs::File::open(path)?
            .take(MAX_FILE)
            .read_to_string(&mut text)?;
        Ok(text)
    };
    read().map_err(|source| AdmitError::Io {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use derp::NodeSecret;

    use super::*;

    fn key(seed: u8) -> NodeKey {
        NodeSecret::from_bytes([seed; 32]).public()
    }

    fn parse(text: &str) -> Result<List, BadLine> {
        List::parse(text.to_owned())
    }

    #[test]
    fn all_forms_are_read() {
        let text = format!(
            "# who\n\n{}\nnode:{} # berlin\n  nodekey:{}\ncluster:{}\n",
            key(1),
            key(2),
            key(3).to_hex(),
            key(4)
        );
        let list = parse(&text).unwrap();
        assert_eq!(list.nodes, HashSet::from([key(1), key(2), key(3)]));
        assert_eq!(list.clusters, 1);
    }

    #[test]
    fn bad_lines_are_named_by_number() {
        for (text, number) in [("x", 1), ("\n\nnode:AAAA", 3), ("node:nodekey:00", 1)] {
            assert!(
                matches!(parse(text), Err(BadLine::Node { number: at, .. }) if at == number),
                "{text}"
            );
        }
        let weak = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        assert_eq!(
            parse(weak),
            Err(BadLine::Node {
                number: 1,
                error: KeyError::Weak
            })
        );
        assert_eq!(
            parse("#\ncluster:short"),
            Err(BadLine::Cluster { number: 2 })
        );
    }

    #[test]
    fn a_bad_change_leaves_the_list_in_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admit");
        std::fs::write(&path, key(1).to_string()).unwrap();
        let admission = Admission::new(&AdmitRule::File(path.clone())).unwrap();
        assert!(!admission.reload().unwrap());
        std::fs::write(&path, "nonsense").unwrap();
        assert!(admission.reload().is_err());
        assert!(admission.admits(&key(1)));
        std::fs::write(&path, key(2).to_string()).unwrap();
        assert!(admission.reload().unwrap());
        assert!(admission.admits(&key(2)) && !admission.admits(&key(1)));
        std::fs::remove_file(&path).unwrap();
        assert!(admission.reload().is_err());
        assert!(admission.admits(&key(2)));
    }

    #[test]
    fn any_admits_all() {
        let admission = Admission::new(&AdmitRule::Any).unwrap();
        assert!(admission.admits(&key(1)) && !admission.can_change());
    }
}
