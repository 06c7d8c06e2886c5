//! One network namespace: made, entered, configured.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use crate::exec;

/// Where named namespaces are mounted.
pub(crate) const MOUNTS: &str = "/run/netns";

/// A handle to a named network namespace. Copies are cheap; whoever made it removes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace with its loopback up, IPv6 duplicate address detection off, and bridges that do not call netfilter.
    pub fn create(name: &str) -> Result<Self> {
        let mut command = Command::new("ip");
        command.args(["netns", "add", name]);
        exec::output(command)?;
        let made = Self::named(name);
        made.run(|| quieten().context("cannot set the namespace's sysctls"))??;
        made.ip(&["link set lo up"])?;
        Ok(made)
    }

    /// The handle of a namespace that exists.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
        }
    }

    /// The name under `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace.
    pub fn path(&self) -> PathBuf {
        Path::new(MOUNTS).join(&self.name)
    }

    /// Runs `work` on a thread inside the namespace. Sockets opened and threads started there stay there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file =
            File::open(self.path()).with_context(|| format!("no namespace {}", self.name))?;
        let inside = || {
            setns(&file, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
            Ok(work())
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|cause| panic::resume_unwind(cause))
    }

    /// A command that will run inside the namespace, under this process's mounts.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program.as_ref());
        command
    }

    /// Runs a program inside to its end and returns what it printed.
    pub fn exec(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(program);
        command.args(arguments);
        exec::output(command)
    }

    /// Runs `ip` once with many commands, each given without the leading `ip`.
    pub fn ip(&self, lines: &[&str]) -> Result<()> {
        let mut command = self.command("ip");
        command.args(["-batch", "-"]);
        exec::feed(command, &(lines.join("\n") + "\n")).map(drop)
    }

    /// Loads nftables rules in one transaction.
    pub fn nft(&self, rules: &str) -> Result<()> {
        let mut command = self.command("nft");
        command.args(["-f", "-"]);
        exec::feed(command, rules).map(drop)
    }

    /// Writes a sysctl, given as a path such as `net/ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| write_sysctl(key, value))?
    }

    /// Ids of the processes whose main thread lives in the namespace.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let wanted = identity(&self.path())?;
        let inside = |pid: &i32| {
            identity(&PathBuf::from(format!("/proc/{pid}/ns/net")))
                .is_ok_and(|found| found == wanted)
        };
        Ok(processes().filter(inside).collect())
    }
}

/// Ids of all processes.
fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn identity(path: &Path) -> Result<(u64, u64)> {
    let found = fs::metadata(path)?;
    Ok((found.dev(), found.ino()))
}

fn quieten() -> Result<()> {
    for kind in ["all", "default"] {
        write_sysctl(&format!("net/ipv6/conf/{kind}/accept_dad"), "0")?;
        write_sysctl(&format!("net/ipv6/conf/{kind}/accept_ra"), "0")?;
        write_sysctl(&format!("net/ipv4/conf/{kind}/rp_filter"), "0")?;
    }
    write_sysctl("net/ipv4/ip_forward", "0")?;
    for family in ["iptables", "ip6tables"] {
        let key = format!("net/bridge/bridge-nf-call-{family}");
        if Path::new("/proc/sys").join(&key).exists() {
            write_sysctl(&key, "0")?;
        }
    }
    Ok(())
}

/// `/proc/sys/net` is that of the calling thread's namespace.
fn write_sysctl(key: &str, value: &str) -> Result<()> {
    fs::write(Path::new("/proc/sys").join(key), value)
        .with_context(|| format!("cannot set {key} to {value}"))
}
