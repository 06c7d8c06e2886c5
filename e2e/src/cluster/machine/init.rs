//! What the first process of a machine does.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::sethostname;

use super::{MachineSpec, Step};
use crate::cluster::cgroup;

/// How often ended children are looked for.
const INTERVAL: Duration = Duration::from_millis(50);
/// How long a program that has ended stays so.
const REST: Duration = Duration::from_millis(300);
const NOTHING: Option<&str> = None;

/// Becomes the machine that a file describes. To be run as the first process of new PID, mount, UTS and IPC namespaces.
pub fn init(description: &Path) -> Result<Infallible> {
    let text =
        fs::read(description).with_context(|| format!("cannot read {}", description.display()))?;
    let spec: MachineSpec = serde_json::from_slice(&text)?;
    isolate(&spec)?;
    let mut keeper = Keeper {
        spec: &spec,
        running: BTreeMap::new(),
    };
    for step in &spec.steps {
        keeper.take(step)?;
    }
    loop {
        keeper.tend()?;
        thread::sleep(INTERVAL);
    }
}

fn isolate(spec: &MachineSpec) -> Result<()> {
    cgroup::join(&spec.group)?;
    let groups = cgroup::layout()?;
    unshare(CloneFlags::CLONE_NEWCGROUP).context("cannot have a cgroup namespace")?;
    sethostname(&spec.name)?;
    // The one that is there shows the links of the network namespace that it was mounted in.
    fresh("/sys", "sysfs", None)?;
    cgroup::mount_own(&groups)?;
    fresh("/run", "tmpfs", Some("mode=755"))?;
    for (folder, changes) in &spec.overlays {
        overlay(folder, changes)?;
    }
    for (what, target) in &spec.binds {
        bind(what, target)?;
    }
    // Volumes of pods have to appear in their containers.
    let shared = MsFlags::MS_REC | MsFlags::MS_SHARED;
    mount(NOTHING, "/", NOTHING, shared, NOTHING).context("cannot share mounts")
}

fn fresh(target: &str, kind: &str, options: Option<&str>) -> Result<()> {
    mount(Some(kind), target, Some(kind), MsFlags::empty(), options)
        .with_context(|| format!("cannot mount {kind} on {target}"))
}

fn overlay(folder: &Path, changes: &Path) -> Result<()> {
    let (upper, work) = (changes.join("upper"), changes.join("work"));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        folder.display(),
        upper.display(),
        work.display()
    );
    fresh(&folder.display().to_string(), "overlay", Some(&options))
}

fn bind(what: &Path, target: &Path) -> Result<()> {
    if what.is_dir() {
        fs::create_dir_all(target)?;
    }
    mount(Some(what), target, NOTHING, MsFlags::MS_BIND, NOTHING)
        .with_context(|| format!("cannot mount {} on {}", what.display(), target.display()))
}

/// Keeps daemons running, and reaps whatever else ends: orphans come to the first process.
struct Keeper<'a> {
    spec: &'a MachineSpec,
    /// By process id.
    running: BTreeMap<i32, (&'a str, &'a [String])>,
}

impl<'a> Keeper<'a> {
    fn take(&mut self, step: &'a Step) -> Result<()> {
        match step {
            Step::Daemon { name, words } => self.start(name, words),
            Step::Until { words } => self.until(words),
        }
    }

    fn start(&mut self, name: &'a str, words: &'a [String]) -> Result<()> {
        let child = self.spawn(name, words)?;
        self.running
            .insert(i32::try_from(child.id())?, (name, words));
        Ok(())
    }

    fn until(&mut self, words: &[String]) -> Result<()> {
        loop {
            if self.spawn("steps", words)?.wait()?.success() {
                return Ok(());
            }
            self.tend()?;
            thread::sleep(INTERVAL);
        }
    }

    /// Takes note of all children that have ended, and starts those again that should run.
    fn tend(&mut self) -> Result<()> {
        while !self.running.is_empty() {
            match waitpid(None, Some(WaitPidFlag::WNOHANG))? {
                WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _) => {
                    self.ended(pid.as_raw())?;
                }
                WaitStatus::StillAlive => break,
                other @ (WaitStatus::Stopped(..)
                | WaitStatus::PtraceEvent(..)
                | WaitStatus::PtraceSyscall(_)
                | WaitStatus::Continued(_)) => {
                    bail!("unexpected: {other:?}")
                }
            }
        }
        Ok(())
    }

    fn ended(&mut self, pid: i32) -> Result<()> {
        let Some((name, words)) = self.running.remove(&pid) else {
            return Ok(());
        };
        thread::sleep(REST);
        self.start(name, words)
    }

    fn spawn(&self, name: &str, words: &[String]) -> Result<Child> {
        let (program, arguments) = words.split_first().context("no program")?;
        let log = self.log(name)?;
        let path = format!(
            "{}:/usr/sbin:/usr/bin:/sbin:/bin",
            self.spec.programs.display()
        );
        Command::new(program)
            .args(arguments)
            .env_clear()
            .env("PATH", path)
            .env("HOME", "/run")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {program}"))
    }

    fn log(&self, name: &str) -> Result<File> {
        let path = self
            .spec
            .logs
            .join(format!("{}-{name}.log", self.spec.name));
        Ok(OpenOptions::new().create(true).append(true).open(path)?)
    }
}
