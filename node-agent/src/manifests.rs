//! Watches the manifest folder.
//!
//! By looking twice a second: that works on every file system, and is at most a few dozen `stat` calls. A file that
//! changes is read when it has stood still from one look to the next, so that one that is just being written is not
//! taken for what it is halfway, and one that is replaced by removing and making it is not taken for deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use api::{FileRead, FolderRead, MAX_FILE_BYTES};
use nix::fcntl::OFlag;

use crate::{Read as SourceRead, Source};

/// Looks after which a file is taken as it is, though it still changes.
const PATIENCE: u8 = 3;

/// Watches the manifest folder.
#[derive(Debug)]
pub struct Watcher {
    folder: PathBuf,
    files: BTreeMap<String, Watched>,
    last: Option<FolderRead>,
}

/// One file that is, or was, in the folder.
#[derive(Debug)]
struct Watched {
    /// As it was when read; `None` if it was never read.
    taken: Option<Taken>,
    /// As it was at the last look; `None` if it was not there.
    seen: Option<Stamp>,
    /// Looks since it was last taken and unchanged.
    restless: u8,
}

#[derive(Debug)]
struct Taken {
    stamp: Stamp,
    read: FileRead,
}

/// What changes when a file does.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stamp {
    File {
        inode: (u64, u64),
        size: u64,
        modified: (i64, i64),
        changed: (i64, i64),
    },
    /// It cannot be looked at; what the system says.
    Broken(String),
}

impl Watcher {
    /// Watches `folder`, which need not be there.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            files: BTreeMap::new(),
            last: None,
        }
    }

    /// Looks once. Returns the folder if it is not as it was at the last call that returned it.
    ///
    /// The first call always returns it, without waiting for files to stand still.
    pub fn look(&mut self) -> Option<FolderRead> {
        let read = match self.list() {
            Err(error) => FolderRead::Unreadable {
                folder: self.folder.display().to_string(),
                error: error.to_string(),
            },
            Ok(stamps) => {
                self.note(stamps);
                let taken = self.files.values().filter_map(|file| file.taken.as_ref());
                FolderRead::Files(taken.map(|taken| taken.read.clone()).collect())
            }
        };
        let changed = self.last.as_ref() != Some(&read);
        changed.then(|| self.last.insert(read).clone())
    }

    fn list(&self) -> io::Result<BTreeMap<String, Stamp>> {
        let mut stamps = BTreeMap::new();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if is_manifest(&name) {
                let stamp = Stamp::of(&self.folder.join(&name));
                stamps.insert(name, stamp);
            }
        }
        Ok(stamps)
    }

    fn note(&mut self, mut stamps: BTreeMap<String, Stamp>) {
        let first = self.last.is_none();
        let names: BTreeSet<String> = self.files.keys().chain(stamps.keys()).cloned().collect();
        for name in names {
            let stamp = stamps.remove(&name);
            let file = self.files.entry(name.clone()).or_insert(Watched {
                taken: None,
                seen: None,
                restless: 0,
            });
            if !file.settles(stamp.as_ref(), first) {
                file.seen = stamp;
                continue;
            }
            match stamp {
                None => {
                    self.files.remove(&name);
                }
                Some(stamp) => file.take(&self.folder, name, stamp),
            }
        }
    }
}

impl Source for Watcher {
    async fn changed(&mut self) {
        std::future::pending().await
    }

    fn look(&mut self) -> Option<SourceRead> {
        Self::look(self).map(SourceRead::from)
    }
}

impl Watched {
    /// Whether the file is to be taken as it is now.
    fn settles(&mut self, stamp: Option<&Stamp>, first: bool) -> bool {
        let taken = self.taken.as_ref();
        // What could not be read may be readable now without a change of the file.
        let as_taken =
            taken.is_some_and(|taken| Some(&taken.stamp) == stamp && taken.read.content.is_ok());
        if as_taken {
            self.restless = 0;
            return false;
        }
        self.restless = self.restless.saturating_add(1);
        first || self.seen.as_ref() == stamp || self.restless >= PATIENCE
    }

    fn take(&mut self, folder: &Path, name: String, stamp: Stamp) {
        let content = match &stamp {
            Stamp::Broken(error) => Err(error.clone()),
            Stamp::File { .. } => read(&folder.join(&name)),
        };
        self.restless = 0;
        self.seen = Some(stamp.clone());
        self.taken = Some(Taken {
            stamp,
            read: FileRead { name, content },
        });
    }
}

impl Stamp {
    /// Links are followed: a mounted ConfigMap is made of them.
    fn of(path: &Path) -> Self {
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => Self::of_file(&metadata),
            Ok(_) => Self::Broken("not a regular file".to_owned()),
            Err(error) => Self::Broken(error.to_string()),
        }
    }

    fn of_file(metadata: &Metadata) -> Self {
        Self::File {
            inode: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

fn is_manifest(name: &str) -> bool {
    !name.starts_with('.') && (name.ends_with(".yaml") || name.ends_with(".yml"))
}

/// One byte more than allowed is enough to refuse a file.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let most = u64::try_from(MAX_FILE_BYTES)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    let mut bytes = Vec::new();
    // Non-blocking, in case it has become a pipe since it was looked at.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path);
    file.and_then(|file| file.take(most).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
