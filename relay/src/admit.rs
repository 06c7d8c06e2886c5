//! Who may use the relay.
//!
//! Let in is whoever proves a key that is on a line of the admit file, is the relay key of an owner (a `cluster:` line),
//! or shows a pass that leads back to an owner. An owner's deny list takes out whom its own passes let in, and the lines
//! of nodes, but neither passes by way of another owner nor the owners themselves.

mod list;

#[cfg(test)]
mod tests;

pub use list::BadLine;

use std::collections::HashMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use derp::pass::{self, Admitted, DenyList, PassError, Scope};
use derp::{ClusterIdentity, NodeKey, Refusal};

use list::List;

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

/// The rule in force.
#[derive(Debug)]
pub(crate) struct Admission {
    source: Option<Source>,
    denied: RwLock<HashMap<ClusterIdentity, DenyList>>,
    /// How wrong clocks may be.
    skew: Duration,
}

#[derive(Debug)]
struct Source {
    path: PathBuf,
    list: ArcSwap<List>,
    /// What the file held when it was last read, if that is not what is in force.
    changed: Mutex<Option<Vec<u8>>>,
}

/// How a client was let in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Grant {
    pass: Option<Admitted>,
    /// The only key that it may exchange packets with; any if there is none.
    pub(crate) only: Option<NodeKey>,
    /// When it has to go.
    pub(crate) ends: Option<SystemTime>,
}

/// Why a deny list is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DenyRefused {
    #[error("who has signed this deny list is no owner of this relay")]
    UnknownOwner,
    #[error("a deny list of serial {in_force} is in force; give a higher one")]
    Stale { in_force: u64 },
}

impl Admission {
    /// Reads the list, if the rule is one.
    pub(crate) fn new(rule: &AdmitRule, skew: Duration) -> Result<Self, AdmitError> {
        let source = match rule {
            AdmitRule::Any => None,
            AdmitRule::File(path) => Some(Source::open(path)?),
        };
        Ok(Self {
            source,
            denied: RwLock::default(),
            skew,
        })
    }

    /// Whether a key may use the relay, with the pass that it shows.
    pub(crate) fn judge(
        &self,
        key: &NodeKey,
        pass: Option<&str>,
        now: SystemTime,
    ) -> Result<Grant, Refusal> {
        let Some(list) = self.list() else {
            return Ok(Grant::default());
        };
        let shown = pass.map(|text| pass::verify(text, &list.owners, key, self.lenient(now)));
        self.decide(&list, key, shown)
    }

    /// Asks again about a client that was let in.
    pub(crate) fn judge_again(
        &self,
        key: &NodeKey,
        grant: &Grant,
        now: SystemTime,
    ) -> Result<Grant, Refusal> {
        let Some(list) = self.list() else {
            return Ok(Grant::default());
        };
        let shown = grant.pass.map(|pass| {
            if !list.owners.contains(&pass.owner) {
                return Err(PassError::UnknownOwner);
            }
            let holds = self.lenient(now) < pass.expires;
            holds.then_some(pass).ok_or(PassError::Expired)
        });
        self.decide(&list, key, shown)
    }

    /// Puts an owner's deny list into force.
    pub(crate) fn deny(&self, list: DenyList) -> Result<(), DenyRefused> {
        let owner = list.owner();
        let known = self.list().is_some_and(|list| list.owners.contains(&owner));
        if !known {
            return Err(DenyRefused::UnknownOwner);
        }
        let mut denied = self.denied.write().unwrap_or_else(PoisonError::into_inner);
        let present = denied.get(&owner);
        if present == Some(&list) {
            // Whoever has not heard the answer says it again.
            return Ok(());
        }
        if let Some(present) = present
            && present.serial() >= list.serial()
        {
            let in_force = present.serial();
            return Err(DenyRefused::Stale { in_force });
        }
        denied.insert(owner, list);
        Ok(())
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

    fn list(&self) -> Option<Arc<List>> {
        self.source.as_ref().map(|source| source.list.load_full())
    }

    /// The time at which a clock may be that made the pass.
    fn lenient(&self, now: SystemTime) -> SystemTime {
        now.checked_sub(self.skew).unwrap_or(UNIX_EPOCH)
    }

    fn decide(
        &self,
        list: &List,
        key: &NodeKey,
        shown: Option<Result<Admitted, PassError>>,
    ) -> Result<Grant, Refusal> {
        if list.owner_keys.contains(key) {
            return Ok(Grant::default());
        }
        let denied = self.denied.read().unwrap_or_else(PoisonError::into_inner);
        let is_listed = list.nodes.contains(key);
        let mut of_owners = denied
            .values()
            .filter(|by| list.owners.contains(&by.owner()));
        if is_listed && !of_owners.any(|by| by.nodes().contains(key)) {
            return Ok(Grant {
                pass: shown.and_then(Result::ok),
                ..Grant::default()
            });
        }
        match shown {
            Some(Ok(pass))
                if denied
                    .get(&pass.owner)
                    .is_some_and(|by| denies(by, key, &pass)) =>
            {
                Err(Refusal::Denied)
            }
            Some(Ok(pass)) => Ok(self.grant(pass)),
            Some(Err(_)) | None if is_listed => Err(Refusal::Denied),
            Some(Err(error)) => Err(refusal(error)),
            None => Err(Refusal::NotAdmitted),
        }
    }

    fn grant(&self, pass: Admitted) -> Grant {
        Grant {
            pass: Some(pass),
            only: match pass.scope {
                Scope::Mesh => None,
                Scope::Lobby => Some(pass.owner.relay_key()),
            },
            ends: pass.expires.checked_add(self.skew),
        }
    }
}

impl Grant {
    /// In the lobby of the owner with this relay key.
    #[cfg(test)]
    pub(crate) fn lobby(owner: NodeKey) -> Self {
        Self {
            only: Some(owner),
            ..Self::default()
        }
    }

    /// Whether it may come to an end, or another scope, by time alone.
    pub(crate) fn has_pass(&self) -> bool {
        self.pass.is_some()
    }
}

impl Source {
    fn open(path: &Path) -> Result<Self, AdmitError> {
        let list = List::parse(read(path)?).map_err(|bad| AdmitError::Line {
            path: path.to_owned(),
            bad,
        })?;
        list.announce();
        Ok(Self {
            path: path.to_owned(),
            list: ArcSwap::from_pointee(list),
            changed: Mutex::default(),
        })
    }

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

fn denies(list: &DenyList, key: &NodeKey, pass: &Admitted) -> bool {
    list.nodes().contains(key) || list.clusters().contains(&pass.cluster)
}

fn refusal(error: PassError) -> Refusal {
    match error {
        PassError::Expired => Refusal::PassExpired,
        PassError::UnknownOwner => Refusal::NotAdmitted,
        PassError::Malformed
        | PassError::Signature
        | PassError::WrongKey
        | PassError::OtherCluster => Refusal::BadPass,
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
