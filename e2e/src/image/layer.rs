//! Layers: tar files, each with its digest.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ring::digest::{self as hash, SHA256};
use serde_json::{Value, json};

use super::{Archive, plain_header};

/// A layer on disk, not compressed.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The tar file.
    pub path: PathBuf,
    /// `sha256:` and hexadecimal digits.
    pub digest: String,
    /// Bytes.
    pub size: u64,
}

impl Layer {
    /// Reads a tar file to learn its digest.
    pub fn of(path: &Path) -> Result<Self> {
        let mut sum = Sum(hash::Context::new(&SHA256));
        let size = io::copy(&mut File::open(path)?, &mut sum)?;
        Ok(Self {
            path: path.to_owned(),
            digest: shown(&sum.0.finish()),
            size,
        })
    }

    pub(super) fn descriptor(&self) -> Value {
        json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": self.digest,
            "size": self.size,
        })
    }
}

/// The digest of some bytes as images write it.
pub(super) fn digest(bytes: &[u8]) -> String {
    shown(&hash::digest(&SHA256, bytes))
}

fn shown(digest: &hash::Digest) -> String {
    let digits: Vec<_> = digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{}", digits.concat())
}

/// Digests what is written to it.
struct Sum(hash::Context);

impl Write for Sum {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A layer in the making. Entries have to come in the same order each time.
pub struct LayerWriter {
    path: PathBuf,
    archive: Archive<BufWriter<File>>,
}

impl LayerWriter {
    /// Starts a tar file.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            archive: Archive::to(BufWriter::new(file)),
        })
    }

    /// Adds `/etc/passwd` and `/etc/group` with root and one user without rights, 65532, and `/tmp`.
    pub fn accounts(&mut self) -> Result<()> {
        self.folder("etc", 0o755)?;
        self.archive.file(
            "etc/passwd",
            b"root:x:0:0:root:/:/none\nnonroot:x:65532:65532:nonroot:/:/none\n",
        )?;
        self.archive
            .file("etc/group", b"root:x:0:\nnonroot:x:65532:\n")?;
        self.folder("tmp", 0o1777)
    }

    /// Adds a folder.
    pub fn folder(&mut self, path: &str, mode: u32) -> Result<()> {
        self.archive
            .entry(path, &mut io::empty(), (tar::EntryType::Directory, mode, 0))
    }

    /// Adds a file that can be run.
    pub fn program(&mut self, path: &str, source: &Path) -> Result<()> {
        let size = fs::metadata(source)
            .with_context(|| format!("no program {}", source.display()))?
            .len();
        let mut content = File::open(source)?;
        self.archive
            .entry(path, &mut content, (tar::EntryType::Regular, 0o755, size))
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let mut header = plain_header(tar::EntryType::Symlink, 0o777, 0);
        Ok(self.archive.tar.append_link(&mut header, path, target)?)
    }

    /// Adds what another tar file holds at a path, under another path; its owner and its time are not kept.
    pub(super) fn copy<R: Read>(&mut self, path: &str, mut entry: tar::Entry<'_, R>) -> Result<()> {
        let kind = entry.header().entry_type();
        let mut header = plain_header(kind, entry.header().mode()?, entry.header().size()?);
        match entry.link_name()? {
            Some(target) => Ok(self.archive.tar.append_link(&mut header, path, target)?),
            None => Ok(self
                .archive
                .tar
                .append_data(&mut header, path, &mut entry)?),
        }
    }

    /// Ends the file.
    pub fn finish(self) -> Result<Layer> {
        self.archive.finish()?;
        Layer::of(&self.path)
    }
}
