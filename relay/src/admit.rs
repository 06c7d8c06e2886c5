//! Who may use the relay.

use std::collections::HashSet;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use derp::{ClusterKey, ClusterKeyError, KeyError, NodeKey};

/// The largest file in bytes: room for some 100,000 keys with comments.
const MAX_FILE: usize = 8 << 20;

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
    #[error("the admit file {} cannot be read: {source}; make it (it may be empty), or correct --admit or its permissions", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is too large.
    #[error("the admit file {} is larger than {MAX_FILE} bytes; take out keys that are gone", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
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
    #[error("line {number}: {error}")]
    Cluster {
        /// The line's number, from 1.
        number: usize,
        /// Why it is none.
        error: ClusterKeyError,
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
    /// What the file held when it was last read, if that is not what is in force.
    changed: Mutex<Option<Vec<u8>>>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct List {
    text: Vec<u8>,
    nodes: HashSet<NodeKey>,
    clusters: HashSet<ClusterKey>,
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
                changed: Mutex::default(),
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
    ///
    /// A change counts when it is read the same twice: a file that is being written holds too few keys for a moment,
    /// and nobody is to be disconnected for that.
    pub(crate) fn reload(&self) -> Result<bool, AdmitError> {
        let Some(source) = &self.source else {
            return Ok(false);
        };
        let text = read(&source.path)?;
        if !source.has_settled(&text) {
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

impl Source {
    /// Whether the text is another than that in force, and the same as when the file was read before.
    fn has_settled(&self, text: &[u8]) -> bool {
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        if text == self.list.load().text {
            *changed = None;
            return false;
        }
        let settled = changed.as_deref() == Some(text);
        if !settled {
            *changed = Some(text.to_owned());
        }
        settled
    }
}

impl List {
    fn parse(text: Vec<u8>) -> Result<Self, BadLine> {
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
            let cluster = entry
                .parse()
                .map_err(|error| BadLine::Cluster { number, error })?;
            self.clusters.insert(cluster);
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
            clusters = self.clusters.len(),
            "admit list in force"
        );
        if !self.clusters.is_empty() {
            tracing::info!(
                "passes are not read yet, so the clusters in the admit list admit no node"
            );
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, AdmitError> {
    let read = || {
        let mut text = Vec::new();
        let limit = u64::try_from(MAX_FILE + 1).unwrap_or(u64::MAX);
        std::fs::File::open(path)?
            .take(limit)
            .read_to_end(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(|source| AdmitError::Io {
        path: path.to_owned(),
        source,
    })?;
    if text.len() > MAX_FILE {
        let path = path.to_owned();
        return Err(AdmitError::TooLarge { path });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use derp::NodeSecret;

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
            "# who\n\n{}\nnode:{} # berlin\n  nodekey:{}\ncluster:{}\n",
            key(1),
            key(2),
            key(3).to_hex(),
            key(4)
        );
        let list = parse(&text).unwrap();
        assert_eq!(list.nodes, HashSet::from([key(1), key(2), key(3)]));
        assert_eq!(list.clusters.len(), 1);
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
        let weak = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        assert_eq!(
            parse(weak),
            Err(BadLine::Node {
                number: 1,
                error: KeyError::Weak
            })
        );
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
            ("short", ClusterKeyError::Form),
            (
                "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
                ClusterKeyError::Weak,
            ),
        ] {
            assert_eq!(
                parse(&format!("#\ncluster:{cluster}")),
                Err(BadLine::Cluster { number: 2, error })
            );
        }
    }

    #[test]
    fn a_file_that_is_too_large_is_refused_and_not_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admit");
        let comments = "#".repeat(MAX_FILE);
        std::fs::write(&path, format!("{comments}\n{}", key(1))).unwrap();
        let refused = Admission::new(&AdmitRule::File(path));
        assert!(matches!(refused, Err(AdmitError::TooLarge { .. })));
    }

    #[test]
    fn a_file_that_is_being_written_disconnects_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admit");
        std::fs::write(&path, key(1).to_string()).unwrap();
        let admission = Admission::new(&AdmitRule::File(path.clone())).unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(!admission.reload().unwrap());
        std::fs::write(&path, format!("{}\n{}", key(1), key(2))).unwrap();
        assert!(!admission.reload().unwrap());
        assert!(admission.admits(&key(1)) && !admission.admits(&key(2)));
        assert!(admission.reload().unwrap());
        assert!(admission.admits(&key(1)) && admission.admits(&key(2)));
    }

    #[test]
    fn a_bad_change_leaves_the_list_in_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admit");
        std::fs::write(&path, key(1).to_string()).unwrap();
        let admission = Admission::new(&AdmitRule::File(path.clone())).unwrap();
        assert!(!admission.reload().unwrap());
        std::fs::write(&path, "nonsense").unwrap();
        assert!(!admission.reload().unwrap());
        assert!(admission.reload().is_err());
        assert!(admission.admits(&key(1)));
        std::fs::write(&path, key(2).to_string()).unwrap();
        assert!(!admission.reload().unwrap());
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
