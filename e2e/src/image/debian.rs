//! The least of Debian that a few packages need, as a layer: their files and those of what they depend on, straight out of
//! the packages. Nothing is installed and no script is run.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::layer::{self, Layer, LayerWriter};
use crate::exec;

/// Raised when the same packages shall give another layer.
const RECIPE: &str = "2";

/// Folders that Debian has merged into `/usr`.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// What `iptables`' installation script would have set up.
const ALTERNATIVES: [(&str, &str); 4] = [
    ("usr/sbin/iptables", "iptables-nft"),
    ("usr/sbin/iptables-save", "iptables-nft-save"),
    ("usr/sbin/ip6tables", "ip6tables-nft"),
    ("usr/sbin/ip6tables-save", "ip6tables-nft-save"),
];

/// The layer with these packages in the versions that apt offers now. Kept in a cache by those versions.
pub fn debian_root(packages: &[&str]) -> Result<Layer> {
    let files = candidates(&closure(packages)?)?;
    let key = layer::digest(format!("{RECIPE} {files:?}").as_bytes());
    let folder = cache()?;
    let digits = key.trim_start_matches("sha256:").get(..16);
    let path = folder.join(format!("debian-{}.tar", digits.context("a digest")?));
    if !path.exists() {
        build(&files, &path)?;
    }
    Layer::of(&path)
}

fn cache() -> Result<PathBuf> {
    let folder = crate::cluster::cache_folder()?.join("images");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// The packages, and all that they depend on.
fn closure(packages: &[&str]) -> Result<Vec<String>> {
    let mut command = Command::new("apt-cache");
    command.args(["depends", "--recurse"]);
    let kinds = [
        "recommends",
        "suggests",
        "conflicts",
        "breaks",
        "replaces",
        "enhances",
    ];
    command.args(kinds.map(|kind| format!("--no-{kind}")));
    command.args(packages);
    let text = exec::output(command).context("the packages' lists are needed: apt-get update")?;
    Ok(names(&text).into_iter().map(str::to_owned).collect())
}

/// Dependencies are indented, virtual packages stand in angle brackets, other architectures behind a colon.
fn names(text: &str) -> BTreeSet<&str> {
    let real = |line: &&str| {
        line.starts_with(|first: char| first.is_ascii_alphanumeric()) && !line.contains(':')
    };
    text.lines().filter(real).collect()
}

/// Names of the files, which hold versions, of the packages that apt would download.
fn candidates(packages: &[String]) -> Result<Vec<String>> {
    let mut command = Command::new("apt-get");
    command.args(["download", "--print-uris"]).args(packages);
    let text = exec::output(command).context("the packages' lists are needed: apt-get update")?;
    let mut files: Vec<_> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(str::to_owned)
        .collect();
    files.sort();
    ensure!(
        files.len() >= packages.len(),
        "apt offers only {files:?} of {packages:?}"
    );
    Ok(files)
}

fn build(files: &[String], path: &Path) -> Result<()> {
    let folder = path.with_extension(format!("{}.building", std::process::id()));
    fs::create_dir_all(&folder)?;
    let built = download(files, &folder).and_then(|()| write(files, &folder));
    let moved = built.and_then(|made| Ok(fs::rename(made, path)?));
    fs::remove_dir_all(&folder)?;
    moved
}

fn download(files: &[String], folder: &Path) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .current_dir(folder)
        .args(["download", "-q", "-o", "APT::Sandbox::User=root"]);
    let wanted = files.iter().filter_map(|file| file.split('_').next());
    exec::output({
        command.args(wanted);
        command
    })?;
    Ok(())
}

fn write(files: &[String], folder: &Path) -> Result<PathBuf> {
    let path = folder.join("layer.tar");
    let mut layer = LayerWriter::create(&path)?;
    let mut seen = BTreeSet::from(["usr".to_owned()]);
    layer.folder("usr", 0o755)?;
    for name in MERGED {
        let merged = format!("usr/{name}");
        layer.folder(&merged, 0o755)?;
        layer.link(name, &merged)?;
        seen.insert(merged);
    }
    for file in files {
        unpack(&folder.join(file), &mut layer, &mut seen)
            .with_context(|| format!("cannot read {file}"))?;
    }
    for (path, target) in ALTERNATIVES {
        if seen.contains(&format!("usr/sbin/{target}")) {
            layer.link(path, target)?;
        }
    }
    layer.finish()?;
    Ok(path)
}

fn unpack(package: &Path, layer: &mut LayerWriter, seen: &mut BTreeSet<String>) -> Result<()> {
    let mut child = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut archive = tar::Archive::new(child.stdout.take().context("no output")?);
    for entry in archive.entries()? {
        let entry = entry?;
        if let Some(path) = place(&entry.path()?)
            && seen.insert(path.clone())
        {
            copy(entry, &path, layer)?;
        }
    }
    ensure!(child.wait()?.success(), "dpkg-deb has failed");
    Ok(())
}

fn copy<R: Read>(entry: tar::Entry<'_, R>, path: &str, layer: &mut LayerWriter) -> Result<()> {
    if entry.header().entry_type() == tar::EntryType::Link {
        let target = place(&entry.link_name()?.context("a link to nothing")?);
        let up = path.split('/').skip(1).map(|_| "../").collect::<String>();
        return layer.link(
            path,
            &format!("{up}{}", target.context("a link to nothing")?),
        );
    }
    layer.copy(path, entry)
}

/// Where a package's file goes, if it goes into the layer: documentation does not, licences do.
fn place(path: &Path) -> Option<String> {
    let parts: Vec<_> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => name.to_str(),
            Component::Prefix(_)
            | Component::RootDir
            | Component::CurDir
            | Component::ParentDir => None,
        })
        .collect();
    let first = *parts.first()?;
    let path = parts.join("/");
    if MERGED.contains(&first) {
        return (parts.len() > 1).then(|| format!("usr/{path}"));
    }
    let dull = ["doc", "man", "locale", "lintian", "bug", "gcc"];
    let licence = path.ends_with("/copyright");
    match parts.as_slice() {
        [.., "gconv", _] => None,
        ["usr", "share", kind, ..] if dull.contains(kind) && !licence => None,
        _ => Some(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_go_where_merged_usr_has_them() {
        let at = |path: &str| place(Path::new(path));
        let expected = "usr/lib/x86_64-linux-gnu/libc.so.6";
        assert_eq!(
            at("./lib/x86_64-linux-gnu/libc.so.6").as_deref(),
            Some(expected)
        );
        assert_eq!(at("./usr/sbin/nft").as_deref(), Some("usr/sbin/nft"));
        assert_eq!(at("./lib/"), None);
        assert_eq!(at("./"), None);
        assert_eq!(at("./usr/share/man/man8/nft.8.gz"), None);
        assert!(at("./usr/share/doc/nftables/copyright").is_some());
    }

    #[test]
    fn packages_are_the_lines_at_the_margin() {
        let text =
            "nftables\n  Depends: libc6\n |Depends: <virtual>\nlibc6\n<virtual>\nlibc6:i386\n";
        assert_eq!(names(text), BTreeSet::from(["libc6", "nftables"]));
    }
}
