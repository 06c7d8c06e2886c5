//! The journal: what was programmed, written before it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::desired::Names;
use crate::report::JournalError;
use crate::sysctl;

/// Most prefixes remembered beyond those the caller names.
const MAX_HELD: usize = 16_384;

/// Contents of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entries {
    /// The owner marks in use.
    pub(crate) names: Names,
    /// Every prefix ever held.
    #[serde(default)]
    pub(crate) held: BTreeSet<IpNet>,
    /// Sysctls turned by us: the switch, and what it and its followers were before.
    #[serde(default)]
    pub(crate) sysctls: BTreeMap<String, Turned>,
    /// The boot in which `sysctls` were turned; they mean nothing in another.
    #[serde(default)]
    pub(crate) boot: String,
    /// Digest of our nftables table as the kernel lists it, without its elements.
    #[serde(default)]
    pub(crate) table_digest: Option<u64>,
    /// Translated flows are about to be forgotten.
    #[serde(default)]
    pub(crate) flows_pending: bool,
}

/// A switch turned by us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Turned {
    /// The value written.
    pub(crate) to: String,
    /// Values from before, the switch among them.
    pub(crate) before: BTreeMap<String, String>,
}

/// The file and what it holds.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    written: Option<Entries>,
    pub(crate) entries: Entries,
}

impl Journal {
    /// Reads `path`; no file is an empty journal, and one that makes no sense is moved aside, because
    /// owner marks on the host say the same except for old sysctl values.
    pub(crate) fn open(path: PathBuf, names: &Names) -> Result<Self, JournalError> {
        let written = read(&path)?;
        let mut entries = written.clone().unwrap_or_default();
        entries.names = names.clone();
        let boot = sysctl::boot_id();
        if entries.boot != boot {
            entries.boot = boot;
            entries.sysctls.clear();
        }
        Ok(Self {
            path,
            written,
            entries,
        })
    }

    /// Makes the file hold `entries`, durably; does nothing if it already does.
    pub(crate) fn save(&mut self) -> Result<(), JournalError> {
        if self.written.as_ref() == Some(&self.entries) {
            return Ok(());
        }
        write(&self.path, &self.entries).map_err(|source| JournalError::Write {
            path: self.path.clone(),
            source,
        })?;
        self.written = Some(self.entries.clone());
        Ok(())
    }

    /// Adds to the prefixes that are held, up to a limit: `held`, and what of `remote` lies in none of those, because pods' own
    /// addresses come and go, and would fill the journal.
    pub(crate) fn hold(&mut self, held: &[IpNet], remote: &[IpNet]) {
        let room = MAX_HELD.saturating_sub(self.entries.held.len());
        let wide: BTreeSet<IpNet> = held.iter().map(IpNet::trunc).collect();
        let others = remote.iter().filter(|net| !covers(&wide, net.trunc()));
        let fresh: Vec<_> = held
            .iter()
            .chain(others)
            .map(IpNet::trunc)
            .filter(|net| !self.entries.held.contains(net))
            .take(room)
            .collect();
        self.entries.held.extend(fresh);
    }

    /// Removes the file.
    pub(crate) fn remove(self) -> Result<bool, JournalError> {
        match fs::remove_file(&self.path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(source) => Err(JournalError::Write {
                path: self.path,
                source,
            }),
        }
    }
}

/// Whether one of the nets holds all of this one.
fn covers(nets: &BTreeSet<IpNet>, net: IpNet) -> bool {
    let mut wider = std::iter::successors(Some(net), IpNet::supernet);
    wider.any(|wider| nets.contains(&wider))
}

fn read(path: &Path) -> Result<Option<Entries>, JournalError> {
    let failed = |source| JournalError::Read {
        path: path.to_owned(),
        source,
    };
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    match serde_json::from_slice(&text) {
        Ok(entries) => Ok(Some(entries)),
        Err(error) => {
            let aside = path.with_extension("broken");
            tracing::warn!(%error, aside = %aside.display(), "the journal makes no sense; moved aside");
            fs::rename(path, aside).map_err(failed)?;
            Ok(None)
        }
    }
}

fn write(path: &Path, entries: &Entries) -> std::io::Result<()> {
    let text = serde_json::to_vec_pretty(entries)?;
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    match path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("temporary folder")
    }

    #[test]
    fn what_was_saved_is_read_again() {
        let folder = folder();
        let path = folder.path().join("journal.json");
        let mut journal = Journal::open(path.clone(), &Names::default()).expect("opens");
        journal.hold(&["10.2.0.0/16".parse().expect("prefix")], &[]);
        journal.entries.table_digest = Some(u64::MAX);
        journal.save().expect("saves");
        let again = Journal::open(path.clone(), &Names::default()).expect("opens");
        assert_eq!(again.entries, journal.entries);
        assert!(again.remove().expect("removes"));
        assert!(!path.exists());
    }

    #[test]
    fn a_broken_file_is_moved_aside() {
        let folder = folder();
        let path = folder.path().join("journal.json");
        fs::write(&path, b"{\"names\": 3").expect("writes");
        let journal = Journal::open(path.clone(), &Names::default()).expect("opens");
        assert!(journal.entries.held.is_empty());
        assert!(!path.exists() && path.with_extension("broken").exists());
    }

    #[test]
    fn sysctls_of_another_boot_are_not_restored() {
        let folder = folder();
        let path = folder.path().join("journal.json");
        let mut journal = Journal::open(path.clone(), &Names::default()).expect("opens");
        let turned = Turned {
            to: "1".to_owned(),
            before: BTreeMap::new(),
        };
        journal
            .entries
            .sysctls
            .insert(sysctl::FORWARD_V4.to_owned(), turned);
        journal.save().expect("saves");
        let same = Journal::open(path.clone(), &Names::default()).expect("opens");
        assert_eq!(same.entries.sysctls.len(), 1);
        journal.entries.boot = "another".to_owned();
        journal.save().expect("saves");
        let other = Journal::open(path, &Names::default()).expect("opens");
        assert!(other.entries.sysctls.is_empty());
    }

    #[test]
    fn what_lies_in_a_held_prefix_takes_no_memory() {
        let folder = folder();
        let mut journal =
            Journal::open(folder.path().join("journal.json"), &Names::default()).expect("opens");
        let nets = |texts: &[&str]| -> Vec<IpNet> {
            let parse = |text: &&str| text.parse().expect("prefix");
            texts.iter().map(parse).collect()
        };
        let held = nets(&["10.2.0.0/16", "fd00:2::/48"]);
        let remote = ["10.2.7.9/32", "10.2.0.0/16", "fd00:2::7/128", "10.3.0.1/32"];
        journal.hold(&held, &nets(&remote));
        let known =
            |journal: &Journal| -> Vec<IpNet> { journal.entries.held.iter().copied().collect() };
        let kept = nets(&["10.2.0.0/16", "10.3.0.1/32", "fd00:2::/48"]);
        assert_eq!(known(&journal), kept);
        // What was held once may be this host's own by now, and holds nothing.
        journal.hold(&[], &nets(&["10.2.8.0/24"]));
        assert_eq!(known(&journal).len(), 4);
    }

    #[test]
    fn memory_of_prefixes_is_bounded() {
        let folder = folder();
        let mut journal =
            Journal::open(folder.path().join("journal.json"), &Names::default()).expect("opens");
        let prefixes: Vec<IpNet> = (0..MAX_HELD as u32 + 10)
            .map(|n| IpNet::new(std::net::Ipv4Addr::from(n << 8).into(), 24).expect("prefix"))
            .collect();
        journal.hold(&prefixes, &[]);
        assert_eq!(journal.entries.held.len(), MAX_HELD);
    }
}
