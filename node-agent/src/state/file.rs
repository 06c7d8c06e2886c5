//! Small files: read, made and replaced in one step.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::StateError;

/// Largest file that is read, in bytes. The saved manifests are the largest.
const MAX_BYTES: u64 = 256 << 20;

/// The text of a file; `None` if there is none. Bytes that are not UTF-8 are replaced, which spoils the content for
/// whoever parses it.
pub(super) fn read(path: &Path) -> Result<Option<String>, StateError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(StateError::Read {
            path: path.to_owned(),
            cause,
        }),
    }
}

/// Makes a file with mode 0600, whole or not at all; leaves one that is there already.
pub(super) fn create(path: &Path, content: &[u8]) -> Result<(), StateError> {
    let temporary = write_temporary(path, content)?;
    let linked = match fs::hard_link(&temporary, path) {
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    };
    let removed = fs::remove_file(&temporary);
    linked
        .and(removed)
        .and_then(|()| sync_folder(path))
        .map_err(|cause| failed(path, cause))
}

/// Replaces a file, mode 0600, in one step.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), StateError> {
    let temporary = write_temporary(path, content)?;
    fs::rename(&temporary, path)
        .and_then(|()| sync_folder(path))
        .map_err(|cause| failed(path, cause))
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), StateError> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(failed(path, cause)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes what a process that died in the middle of writing has left in a folder, as far as that goes.
pub(super) fn remove_left_over(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == "tmp") {
            // Who looks at the folder next says that it is not empty.
            let _ = fs::remove_file(path);
        }
    }
}

/// Sets apart the temporary files of one process.
static NUMBER: AtomicU64 = AtomicU64::new(0);

fn write_temporary(path: &Path, content: &[u8]) -> Result<PathBuf, StateError> {
    let mut name = path.as_os_str().to_owned();
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    name.push(format!(".{}.{number}.tmp", std::process::id()));
    let temporary = PathBuf::from(name);
    let removed = match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    };
    let written = removed.and_then(|()| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()
    });
    written
        .map(|()| temporary)
        .map_err(|cause| failed(path, cause))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent()
        .map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn failed(path: &Path, cause: io::Error) -> StateError {
    StateError::Write {
        path: path.to_owned(),
        cause,
    }
}
