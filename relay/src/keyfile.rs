//! The relay's key on disk: `{"PrivateKey":"privkey:<64 hex>"}`, readable by its owner only.

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use derp::NodeSecret;
use serde::{Deserialize, Serialize};

const MAX_FILE: u64 = 4096;
const PREFIX: &str = "privkey:";

/// Why a key file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read or made.
    #[error("the key file {} cannot be read or made: {source}; correct --key or the folder's permissions", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It holds something else.
    #[error(
        "the key file {} does not hold {{\"PrivateKey\":\"privkey:<64 hex digits>\"}}; restore it, or remove it for a new key",
        path.display()
    )]
    Content {
        /// The file.
        path: PathBuf,
    },
}

#[derive(Serialize, Deserialize)]
struct KeyFile {
    #[serde(rename = "PrivateKey")]
    private_key: String,
}

/// Reads the key, or makes one if there is no file.
pub(crate) fn load_or_make(path: &Path) -> Result<NodeSecret, KeyFileError> {
    let io_error = |source| KeyFileError::Io {
        path: path.to_owned(),
        source,
    };
    match read(path) {
        Ok(text) => parse(&text).ok_or_else(|| KeyFileError::Content {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(path).map_err(io_error),
        Err(error) => Err(io_error(error)),
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(MAX_FILE)
        .read_to_string(&mut text)?;
    Ok(text)
}

fn parse(text: &str) -> Option<NodeSecret> {
    let file: KeyFile = serde_json::from_str(text).ok()?;
    let mut bytes = [0; derp::KEY_LEN];
    hex::decode_to_slice(file.private_key.strip_prefix(PREFIX)?, &mut bytes).ok()?;
    Some(NodeSecret::from_bytes(bytes))
}

/// A half-written file never has the final name.
fn make(path: &Path) -> io::Result<NodeSecret> {
    let secret = NodeSecret::generate();
    let private_key = format!("{PREFIX}{}", hex::encode(secret.to_bytes()));
    let text = serde_json::to_string(&KeyFile { private_key })?;
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}", std::process::id()));
    let draft = PathBuf::from(draft);
    let made = write_new(&draft, &text).and_then(|()| std::fs::rename(&draft, path));
    if made.is_err() {
        // It may not be there at all.
        let _ = std::fs::remove_file(&draft);
    }
    made.map(|()| secret)
}

/// Never writes into a file that is there already: others might be able to read it.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.json");
        let made = load_or_make(&path).unwrap();
        assert_eq!(load_or_make(&path).unwrap().public(), made.public());
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_crash_left_behind_does_not_make_the_key_readable() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.json");
        let draft = folder
            .path()
            .join(format!("key.json.{}", std::process::id()));
        std::fs::write(&draft, "half").unwrap();
        std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o644)).unwrap();
        load_or_make(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn known_files_are_read_and_others_refused() {
        let key = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e5f";
        let secret = parse(&format!("{{\"PrivateKey\":\"privkey:{key}\"}}")).unwrap();
        assert_eq!(
            secret.public().to_hex(),
            "8f40c5adb68f25624ae5b214ea767a6ec94d829d3d7b5e1ad1ba6f3e2138285f"
        );
        for text in [
            "",
            "{}",
            r#"{"PrivateKey":"privkey:00"}"#,
            &format!("{{\"PrivateKey\":\"{key}\"}}"),
        ] {
            assert!(parse(text).is_none(), "{text}");
        }
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            load_or_make(folder.path()),
            Err(KeyFileError::Io { .. })
        ));
    }
}
