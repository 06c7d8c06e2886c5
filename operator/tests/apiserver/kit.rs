//! Where `etcd` and `kube-apiserver` are.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Whether CULVERT_NO_KUBE=1 asks to do without them.
pub(crate) fn declined() -> bool {
    env::var_os("CULVERT_NO_KUBE").is_some_and(|value| value == "1")
}

/// The folder of the programs: CULVERT_KUBE_BIN, or the newest that has been built into the cache.
pub(crate) fn programs() -> Option<PathBuf> {
    let named = env::var_os("CULVERT_KUBE_BIN").filter(|path| !path.is_empty());
    named
        .map(PathBuf::from)
        .or_else(|| newest(&cache_folder()?))
}

/// Follows `XDG_CACHE_HOME`, as whatever fills this folder does.
fn cache_folder() -> Option<PathBuf> {
    let of = |name| env::var_os(name).filter(|path| !path.is_empty());
    let base = of("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&of("HOME")?).join(".cache")));
    Some(base?.join("culvert"))
}

/// A folder whose name has a dot is still being filled.
fn newest(cache: &Path) -> Option<PathBuf> {
    let built = fs::read_dir(cache).ok()?.flatten().filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("kubernetes-") && !name.contains('.')
    });
    let programs = built
        .map(|entry| entry.path().join("bin"))
        .filter(|bin| bin.join("kube-apiserver").exists());
    programs.max_by_key(|bin| modified(bin))
}

fn modified(folder: &Path) -> Option<SystemTime> {
    fs::metadata(folder).ok()?.modified().ok()
}
