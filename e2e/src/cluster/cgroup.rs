//! Control groups of machines: one in every hierarchy, below one folder per lab.
//!
//! Proven with the hierarchies of cgroup v1; for v2 this follows the kernel's rules (cgroup-v2.rst, "no internal processes").

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};

/// Where the hierarchies are mounted, seen from a machine.
const MOUNT: &str = "/sys/fs/cgroup";
/// How long processes may take to leave a group after they were killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    folder: PathBuf,
    /// What mounts it again; none for v2.
    options: Option<String>,
}

/// Makes a group such as `lab/machine` in every hierarchy, and moves the calling process into it.
pub(super) fn join(group: &str) -> Result<()> {
    let all = hierarchies()?;
    ensure!(!all.is_empty(), "no control groups are mounted here");
    for hierarchy in all {
        let leaf = hierarchy.make(group)?;
        fs::write(leaf.join("cgroup.procs"), "0")
            .with_context(|| format!("cannot join {}", leaf.display()))?;
    }
    Ok(())
}

/// Mounts the hierarchies anew for a process that has a cgroup namespace and a `/sys` of its own.
pub(super) fn mount_own(all: &[(String, Option<String>)]) -> Result<()> {
    if let [(_, None)] = all {
        mount_one(Path::new(MOUNT), "cgroup2", None)?;
        return open_subtree();
    }
    mount_one(Path::new(MOUNT), "tmpfs", Some("mode=755"))?;
    for (name, options) in all {
        let folder = Path::new(MOUNT).join(name);
        fs::create_dir(&folder)?;
        mount_one(&folder, "cgroup", options.as_deref())?;
    }
    Ok(())
}

/// Names and mount options of what [`mount_own`] is to mount.
pub(super) fn layout() -> Result<Vec<(String, Option<String>)>> {
    let name = |folder: &Path| {
        folder
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
    };
    let all = hierarchies()?.into_iter();
    all.map(|one| Ok((name(&one.folder).context("a nameless mount")?, one.options)))
        .collect()
}

/// Folders of groups directly below the root whose name fits, in all hierarchies.
pub(crate) fn groups(fits: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let all = hierarchies().unwrap_or_default().into_iter();
    let inside = all.flat_map(|one| fs::read_dir(one.folder).into_iter().flatten().flatten());
    let fitting = inside.filter(|entry| entry.file_name().to_str().is_some_and(&fits));
    fitting.map(|entry| entry.path()).collect()
}

/// Removes groups with all below them. Their processes have been killed; waits until they are gone.
pub(crate) fn remove(groups: &[PathBuf]) {
    let start = Instant::now();
    let mut left = groups.to_vec();
    while !left.is_empty() && start.elapsed() < PATIENCE {
        left.retain(|group| remove_tree(group).is_err());
        thread::sleep(Duration::from_millis(20));
    }
}

/// The files of a group cannot be removed, only its folder, once it is empty of groups and processes.
fn remove_tree(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

impl Hierarchy {
    fn make(&self, group: &str) -> Result<PathBuf> {
        let mut folder = self.folder.clone();
        for name in group.split('/') {
            let parent = folder.clone();
            folder.push(name);
            self.make_below(&parent, &folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(folder)
    }

    fn make_below(&self, parent: &Path, folder: &Path) -> io::Result<()> {
        if self.options.is_none() {
            delegate(parent)?;
        }
        // Machines of one lab start side by side, and share the group above theirs.
        match fs::create_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        // A new cpuset of v1 allows no processor and no memory, and then no process may enter.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if self.options.is_some() && parent.join(file).exists() {
                fs::write(folder.join(file), fs::read(parent.join(file))?)?;
            }
        }
        Ok(())
    }
}

/// Lets the children of a v2 group have every controller that it has.
fn delegate(group: &Path) -> io::Result<()> {
    let controllers = fs::read_to_string(group.join("cgroup.controllers"))?;
    let wanted: Vec<_> = controllers
        .split_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    fs::write(group.join("cgroup.subtree_control"), wanted.join(" "))
}

/// Moves the calling process out of the root of its v2 namespace, which can then have groups with controllers.
fn open_subtree() -> Result<()> {
    let root = Path::new(MOUNT);
    fs::create_dir_all(root.join("init"))?;
    fs::write(root.join("init/cgroup.procs"), "0")?;
    delegate(root).context("cannot delegate controllers")
}

fn mount_one(target: &Path, kind: &str, options: Option<&str>) -> Result<()> {
    mount(Some(kind), target, Some(kind), MsFlags::empty(), options)
        .with_context(|| format!("cannot mount {kind} on {}", target.display()))
}

fn hierarchies() -> Result<Vec<Hierarchy>> {
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(parse(&groups, &mounts))
}

/// With any v1 hierarchy, v2 has no controllers of use and is left out.
fn parse(groups: &str, mounts: &str) -> Vec<Hierarchy> {
    let first: Vec<_> = groups
        .lines()
        .filter_map(|line| v1(line.split(':').nth(1)?, mounts))
        .collect();
    if !first.is_empty() {
        return first;
    }
    let second = mounts.lines().find_map(|line| match fields(line) {
        Some((folder, "cgroup2", _)) => Some(folder),
        Some(_) | None => None,
    });
    let second = second.map(|folder| Hierarchy {
        folder: folder.into(),
        options: None,
    });
    second.into_iter().collect()
}

/// `controllers` is the second field of a line of `/proc/self/cgroup`: `cpu,cpuacct` or `name=systemd`.
fn v1(controllers: &str, mounts: &str) -> Option<Hierarchy> {
    if controllers.is_empty() {
        return None;
    }
    let fits = |options: &str| {
        let mut wanted = controllers.split(',');
        wanted.all(|one| options.split(',').any(|option| option == one))
    };
    let folder = mounts.lines().find_map(|line| match fields(line) {
        Some((folder, "cgroup", options)) if fits(options) => Some(folder),
        Some(_) | None => None,
    })?;
    let none = if controllers.starts_with("name=") {
        "none,"
    } else {
        ""
    };
    Some(Hierarchy {
        folder: folder.into(),
        options: Some(format!("{none}{controllers}")),
    })
}

/// Folder, kind and options of a line of `/proc/self/mounts`.
fn fields(line: &str) -> Option<(&str, &str, &str)> {
    let mut words = line.split(' ').skip(1);
    Some((words.next()?, words.next()?, words.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(folder: &str, options: Option<&str>) -> Hierarchy {
        Hierarchy {
            folder: folder.into(),
            options: options.map(str::to_owned),
        }
    }

    #[test]
    fn hierarchies_of_v1_are_found_by_their_controllers() {
        let groups = "3:cpu,cpuacct:/\n2:name=systemd:/\n1:rdma:/\n0::/\n";
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
             cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\n\
             cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n\
             cgroup /sys/fs/cgroup/systemd cgroup rw,xattr,name=systemd 0 0\n\
             cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let expected = [
            hierarchy("/sys/fs/cgroup/cpu,cpuacct", Some("cpu,cpuacct")),
            hierarchy("/sys/fs/cgroup/systemd", Some("none,name=systemd")),
        ];
        assert_eq!(parse(groups, mounts), expected);
    }

    #[test]
    fn v2_alone_is_one_hierarchy() {
        let mounts = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";
        assert_eq!(
            parse("0::/user.slice\n", mounts),
            [hierarchy("/sys/fs/cgroup", None)]
        );
    }
}
