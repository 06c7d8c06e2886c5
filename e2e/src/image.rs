//! Container images as OCI archives, written without an engine: the same inputs give the same bytes.
//!
//! Shapes: OCI image specification 1.1 (image-layout, manifest, config). `ctr images import`, `skopeo` and `docker load`
//! read them.

mod debian;
mod layer;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

pub use debian::debian_root;
pub use layer::{Layer, LayerWriter};

/// What goes into an image.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its full name, such as `ghcr.io/culvert-dev/relay:0.1.0`.
    pub name: String,
    /// Its layers, the lowest first.
    pub layers: Vec<Layer>,
    /// The program that a container runs.
    pub entrypoint: Vec<String>,
    /// The user that it runs as, `uid:gid`.
    pub user: String,
}

impl Image {
    /// An image of one static program, which is its entry point.
    pub fn of_program(name: &str, program: &Path, user: &str, folder: &Path) -> Result<Self> {
        let own = program
            .file_name()
            .and_then(|name| name.to_str())
            .context("no name of a program")?;
        let mut layer = LayerWriter::create(&folder.join(format!("{own}.layer")))?;
        layer.accounts()?;
        layer.program(own, program)?;
        Ok(Self {
            name: name.to_owned(),
            layers: vec![layer.finish()?],
            entrypoint: vec![format!("/{own}")],
            user: user.to_owned(),
        })
    }

    /// Writes the archive, and replaces the file only once it is whole.
    pub fn write(&self, path: &Path) -> Result<()> {
        let unfinished = path.with_extension("unfinished");
        self.write_to(&unfinished)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(fs::rename(unfinished, path)?)
    }

    fn write_to(&self, path: &Path) -> Result<()> {
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "User": self.user,
                "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin:/"],
                "WorkingDir": "/",
            },
            "rootfs": {
                "type": "layers",
                "diff_ids": self.layers.iter().map(|layer| layer.digest.clone()).collect::<Vec<_>>(),
            },
        })
        .to_string();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": blob("config.v1+json", &config),
            "layers": self.layers.iter().map(Layer::descriptor).collect::<Vec<_>>(),
        })
        .to_string();
        let mut archive = Archive::create(path)?;
        archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        archive.file("index.json", self.index(&manifest).to_string().as_bytes())?;
        for text in [&config, &manifest] {
            archive.file(&place(&layer::digest(text.as_bytes())), text.as_bytes())?;
        }
        for layer in &self.layers {
            archive.stream(
                &place(&layer.digest),
                &mut File::open(&layer.path)?,
                layer.size,
            )?;
        }
        archive.finish()
    }

    fn index(&self, manifest: &str) -> Value {
        let mut entry = blob("manifest.v1+json", manifest);
        let tag = self.name.rsplit(':').next();
        entry["annotations"] = json!({
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": tag,
        });
        json!({"schemaVersion": 2, "manifests": [entry]})
    }
}

/// One image of the product.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// The last part of the image's name.
    pub name: &'static str,
    /// The program in it.
    pub program: &'static str,
    user: &'static str,
    /// Debian packages that its program calls.
    packages: &'static [&'static str],
}

/// All images of the product.
pub const PRODUCTS: [Product; 3] = [
    Product {
        name: "operator",
        program: "culvert-operator",
        user: "65532:65532",
        packages: &[],
    },
    Product {
        name: "relay",
        program: "culvert-relay",
        user: "65532:65532",
        packages: &[],
    },
    // The agent runs with capabilities of root only, and these come to root alone.
    Product {
        name: "agent",
        program: "culvert-agent",
        user: "0:0",
        packages: &["nftables", "iptables", "conntrack"],
    },
];

impl Product {
    /// The image's full name, with the version of this workspace.
    pub fn image(&self) -> String {
        format!(
            "ghcr.io/culvert-dev/{}:{}",
            self.name,
            env!("CARGO_PKG_VERSION")
        )
    }

    /// The file that [`Product::write`] makes in a folder.
    pub fn archive(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.tar", self.name))
    }

    /// Writes the image of a program that lies in `programs`, into the folder `out`.
    pub fn write(&self, programs: &Path, out: &Path) -> Result<PathBuf> {
        fs::create_dir_all(out)?;
        let mut image = Image::of_program(
            &self.image(),
            &programs.join(self.program),
            self.user,
            &scratch(out)?,
        )?;
        if !self.packages.is_empty() {
            image.layers.insert(0, debian_root(self.packages)?);
        }
        let path = self.archive(out);
        image.write(&path)?;
        fs::remove_dir_all(scratch(out)?)?;
        Ok(path)
    }
}

/// The folder with the images that were made for this build, beside the profiles' folders.
pub fn made() -> Result<PathBuf> {
    let own = std::env::current_exe().context("where is this program?")?;
    let mut folders = own.ancestors().skip(1).take(3);
    let found = folders.find_map(|folder| Some(folder.join("images")).filter(|path| path.is_dir()));
    found.context("no images have been made: run scripts/images.sh first")
}

fn scratch(out: &Path) -> Result<PathBuf> {
    let folder = out.join(format!(".layers-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// The name of this machine's architecture in images.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn blob(kind: &str, text: &str) -> Value {
    json!({
        "mediaType": format!("application/vnd.oci.image.{kind}"),
        "digest": layer::digest(text.as_bytes()),
        "size": text.len(),
    })
}

fn place(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

/// A tar file whose entries have no owner and no time.
pub(crate) struct Archive<W: Write> {
    tar: tar::Builder<W>,
}

impl Archive<io::BufWriter<File>> {
    fn create(path: &Path) -> Result<Self> {
        Ok(Self::to(io::BufWriter::new(File::create(path)?)))
    }

    fn finish(self) -> Result<()> {
        Ok(self.tar.into_inner()?.into_inner()?.sync_all()?)
    }
}

impl<W: Write> Archive<W> {
    fn to(out: W) -> Self {
        Self {
            tar: tar::Builder::new(out),
        }
    }

    fn file(&mut self, path: &str, content: &[u8]) -> Result<()> {
        self.stream(path, &mut &*content, u64::try_from(content.len())?)
    }

    fn stream(&mut self, path: &str, content: &mut dyn io::Read, size: u64) -> Result<()> {
        self.entry(path, content, (tar::EntryType::Regular, 0o644, size))
    }

    fn entry(
        &mut self,
        path: &str,
        content: &mut dyn io::Read,
        (kind, mode, size): (tar::EntryType, u32, u64),
    ) -> Result<()> {
        let mut header = plain_header(kind, mode, size);
        Ok(self.tar.append_data(&mut header, path, content)?)
    }
}

fn plain_header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_program_gives_the_same_archive() -> Result<()> {
        let folder = std::env::temp_dir().join(format!("culvert-image-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("program"), "not a program")?;
        let mut archives = Vec::new();
        for name in ["a.tar", "b.tar"] {
            let image =
                Image::of_program("test/a:1", &folder.join("program"), "65532:65532", &folder)?;
            image.write(&folder.join(name))?;
            archives.push(fs::read(folder.join(name))?);
        }
        let names = names(&archives[0])?;
        fs::remove_dir_all(&folder)?;
        assert_eq!(archives[0], archives[1]);
        assert_eq!(names.len(), 5, "{names:?}");
        assert_eq!(&names[..2], ["oci-layout", "index.json"]);
        Ok(())
    }

    fn names(archive: &[u8]) -> Result<Vec<String>> {
        let mut archive = tar::Archive::new(archive);
        let paths = archive
            .entries()?
            .map(|entry| Ok(entry?.path()?.display().to_string()));
        paths.collect()
    }
}
