//! A machine: namespaces and a control group of its own, and a first process that starts the rest and keeps it running.
//!
//! Ending that first process ends everything inside, mounts and containers too, because its PID and mount namespaces end.

mod init;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::cgroup;
use crate::namespace::Namespace;
use crate::process::{Daemon, DaemonSpec, binary};
use crate::wait::wait_for;

pub use init::init;

/// What runs in a machine, and what of the file system it has for itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct MachineSpec {
    /// Its host name, and the start of the names of its logs.
    pub(super) name: String,
    /// Its control group, as `lab/machine`.
    pub(super) group: String,
    /// Where its logs go.
    pub(super) logs: PathBuf,
    /// The folder of the kit's programs, searched before the system's.
    pub(super) programs: PathBuf,
    /// Folders that it sees as they are outside, but whose changes stay in a folder of its own: (folder, for the changes).
    pub(super) overlays: Vec<(PathBuf, PathBuf)>,
    /// Files and folders that stand in for others: (what, where).
    pub(super) binds: Vec<(PathBuf, PathBuf)>,
    /// What to do, in order.
    pub(super) steps: Vec<Step>,
}

/// One thing that a machine does when it starts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Step {
    /// Starts a program, and again whenever it ends.
    Daemon {
        /// The end of its log's name.
        name: String,
        /// Program and arguments.
        words: Vec<String>,
    },
    /// Runs a program until it ends well.
    Until {
        /// Program and arguments.
        words: Vec<String>,
    },
}

impl Step {
    pub(super) fn daemon(name: &str, words: impl IntoIterator<Item = String>) -> Self {
        Self::Daemon {
            name: name.to_owned(),
            words: words.into_iter().collect(),
        }
    }

    pub(super) fn until<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        Self::Until {
            words: words.into_iter().map(str::to_owned).collect(),
        }
    }
}

/// A machine that runs. Dropping it is pulling its plug, unless it is to be kept.
#[derive(Debug)]
pub(super) struct Machine {
    group: String,
    first: Daemon,
    keep: bool,
}

impl Machine {
    /// Starts it in a network namespace. `folder` takes its description.
    pub(super) fn start(
        ns: &Namespace,
        spec: &MachineSpec,
        folder: &Path,
        keep: bool,
    ) -> Result<Self> {
        let description = folder.join("machine.json");
        fs::write(&description, serde_json::to_vec_pretty(spec)?)?;
        let mut arguments: Vec<_> = [
            "--mount",
            "--pid",
            "--fork",
            "--uts",
            "--ipc",
            "--propagation=private",
            "--mount-proc",
            "--kill-child",
        ]
        .map(str::to_owned)
        .to_vec();
        arguments.push(binary("culvert-lab")?.display().to_string());
        arguments.extend(["machine".to_owned(), description.display().to_string()]);
        let first = Daemon::start(&DaemonSpec {
            ns: ns.clone(),
            program: "unshare".into(),
            arguments,
            log: spec.logs.join(format!("{}-machine.log", spec.name)),
            keep,
        })?;
        Ok(Self {
            group: spec.group.clone(),
            first,
            keep,
        })
    }

    /// Fails, with the end of its log, if it could not start or has ended.
    pub(super) fn ensure_running(&mut self) -> Result<()> {
        self.first.ensure_running()
    }

    /// A command inside, with the machine's own view of files, processes and networks.
    pub(super) fn command(&self, program: impl AsRef<Path>) -> Result<Command> {
        let first = wait_for(
            Duration::from_secs(5),
            "the machine's first process",
            || self.first_process(),
        )?;
        let mut command = Command::new("nsenter");
        command
            .args([
                "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--target",
            ])
            .arg(first)
            .arg("--")
            .arg(program.as_ref());
        Ok(command)
    }

    /// Ends everything inside at once, and waits until it is gone.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.first.kill()?;
        let group = self.group.clone();
        let (lab, machine) = group.split_once('/').context("a group of a lab")?;
        let folders = cgroup::groups(|name| name == lab);
        cgroup::remove(
            &folders
                .iter()
                .map(|lab| lab.join(machine))
                .filter(|group| group.exists())
                .collect::<Vec<_>>(),
        );
        Ok(())
    }

    /// The process id, seen from outside, of the first process inside: the child of the one that made the namespaces.
    fn first_process(&self) -> Result<String> {
        let pid = self.first.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let first = children.split_whitespace().next();
        Ok(first.context("it has not started yet")?.to_owned())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if !self.keep {
            let _ = self.kill();
        }
    }
}
