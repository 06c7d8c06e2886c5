//! An agent on a site's node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::binary;
use super::daemon::{Daemon, DaemonSpec};
use crate::exec;
use crate::lab::Lab;
use crate::site::Site;
use crate::status::Status;
use crate::wait::wait_for;

/// An agent with its folders; running or not.
#[derive(Debug)]
pub struct Agent {
    spec: DaemonSpec,
    manifests: PathBuf,
    state: PathBuf,
    daemon: Option<Daemon>,
    started: Option<Instant>,
}

impl Agent {
    /// Prepares an agent on a site's node: folders, no manifests, not running.
    pub fn new(lab: &Lab, site: &Site) -> Result<Self> {
        let folder = lab.folder().join(format!("agent-{}", site.name));
        let (manifests, state) = (folder.join("manifests"), folder.join("state"));
        fs::create_dir_all(&manifests)?;
        let log_level = std::env::var("LAB_LOG_LEVEL").unwrap_or_else(|_| "info".to_owned());
        let arguments = vec![
            "run".to_owned(),
            format!("--manifests={}", manifests.display()),
            format!("--state={}", state.display()),
            format!("--log-level={log_level}"),
            "--log-format=json".to_owned(),
        ];
        let spec = DaemonSpec {
            ns: site.node.clone(),
            program: binary("culvert-agent")?,
            arguments,
            log: lab.folder().join(format!("logs/agent-{}.log", site.name)),
            keep: lab.is_kept(),
        };
        Ok(Self {
            spec,
            manifests,
            state,
            daemon: None,
            started: None,
        })
    }

    /// Adds an argument of `run` for the starts to come.
    pub fn argument(&mut self, argument: &str) {
        self.spec.arguments.push(argument.to_owned());
    }

    /// The node's public key; made when there is none.
    pub fn key(&self) -> Result<String> {
        self.key_in(&self.state)
    }

    /// The public key in another state folder; made when there is none.
    pub fn key_in(&self, state: &Path) -> Result<String> {
        Ok(exec::output(self.command_in(&["keygen"], state))?
            .trim()
            .to_owned())
    }

    /// Writes a manifest file. It appears whole.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        let (hidden, path) = (
            self.manifests.join(format!(".{file}.new")),
            self.manifests.join(file),
        );
        fs::write(&hidden, text)?;
        fs::rename(&hidden, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Deletes a manifest file.
    pub fn delete(&self, file: &str) -> Result<()> {
        Ok(fs::remove_file(self.manifests.join(file))?)
    }

    /// The manifest folder.
    pub fn manifests(&self) -> &Path {
        &self.manifests
    }

    /// The state folder.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Starts it, and returns at once.
    pub fn start(&mut self) -> Result<Instant> {
        let at = Instant::now();
        self.daemon = Some(Daemon::start(&self.spec)?);
        self.started = Some(at);
        Ok(at)
    }

    /// When it was last started.
    pub fn started(&self) -> Result<Instant> {
        self.started.context("the agent was never started")
    }

    /// Ends it by SIGTERM.
    pub fn stop(&mut self) -> Result<()> {
        let status = self
            .daemon
            .take()
            .context("the agent is not running")?
            .terminate()?;
        anyhow::ensure!(status.success(), "the agent ended with {status}");
        Ok(())
    }

    /// Ends it by SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon
            .take()
            .context("the agent is not running")?
            .kill()
    }

    /// Its process.
    pub fn daemon(&mut self) -> Result<&mut Daemon> {
        self.daemon.as_mut().context("the agent is not running")
    }

    /// Its status.
    pub fn status(&self) -> Result<Status> {
        Status::parse(&exec::output(self.command(&["status", "-o", "json"]))?)
    }

    /// Its status in words.
    pub fn status_text(&self) -> Result<String> {
        exec::output(self.command(&["status"]))
    }

    /// Waits until it answers.
    pub fn ready(&mut self) -> Result<Status> {
        wait_for(Duration::from_secs(10), "the agent answers", || {
            self.daemon()?.ensure_running()?;
            self.status()
        })
    }

    /// Removes all it programmed.
    pub fn cleanup(&self, purge: bool) -> Result<String> {
        let arguments: &[&str] = if purge {
            &["cleanup", "--purge"]
        } else {
            &["cleanup"]
        };
        exec::output(self.command(arguments))
    }

    /// The shell command that shows the status, for a person.
    pub fn status_line(&self) -> String {
        format!(
            "{} status --state {}",
            self.spec.program.display(),
            self.state.display()
        )
    }

    fn command(&self, arguments: &[&str]) -> Command {
        self.command_in(arguments, &self.state)
    }

    fn command_in(&self, arguments: &[&str], state: &Path) -> Command {
        let mut command = self.spec.ns.command(&self.spec.program);
        command
            .args(arguments)
            .arg(format!("--state={}", state.display()));
        command
    }
}
