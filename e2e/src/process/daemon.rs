//! One long-lived child process with its log.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::exec;
use crate::namespace::Namespace;
use crate::wait::wait_for;

/// How a daemon is to run.
#[derive(Clone, Debug)]
pub struct DaemonSpec {
    /// Where.
    pub ns: Namespace,
    /// Which program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Where its output goes, behind what is there.
    pub log: PathBuf,
    /// Whether it outlives this process.
    pub keep: bool,
}

/// A running child. Killed when dropped, unless it is to be kept.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
    keep: bool,
}

impl Daemon {
    /// Starts it.
    pub fn start(spec: &DaemonSpec) -> Result<Self> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&spec.log)?;
        let mut command = if spec.keep {
            let mut command = spec.ns.command(&spec.program);
            // The terminal's Ctrl-C and hang-up are not for what stays up.
            command.process_group(0);
            command
        } else {
            let mut command = spec.ns.command("setpriv");
            command
                .args(["--pdeathsig", "KILL", "--"])
                .arg(&spec.program);
            command
        };
        command.args(&spec.arguments);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = exec::spawn(command)
            .with_context(|| format!("cannot start {}", spec.program.display()))?;
        Ok(Self {
            child,
            log: spec.log.clone(),
            keep: spec.keep,
        })
    }

    /// Its process id: the launchers replace themselves by the program.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Fails, with the end of the log, if it has ended.
    pub fn ensure_running(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!(
                "{} has ended, {status}:\n{}",
                self.log.display(),
                self.tail()
            );
        }
        Ok(())
    }

    /// Ends it by SIGTERM and waits.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        kill(self.os_pid()?, Signal::SIGTERM)?;
        wait_for(Duration::from_secs(10), "end after SIGTERM", || {
            self.child
                .try_wait()
                .context("wait")?
                .context("still running")
        })
    }

    /// Ends it by SIGKILL and waits.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Open file descriptors now.
    pub fn open_files(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }

    /// Resident memory now, in KiB.
    pub fn resident_kib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    fn os_pid(&self) -> Result<Pid> {
        let pid = i32::try_from(self.pid())?;
        ensure!(pid > 1, "no pid of a child");
        Ok(Pid::from_raw(pid))
    }

    fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines
            .iter()
            .skip(lines.len().saturating_sub(20))
            .copied()
            .collect::<Vec<_>>()
            .join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.keep {
            let _ = self.kill();
        }
    }
}
