//! Talking to an API server as an administrator.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::kit::Kit;
use crate::exec;
use crate::namespace::Namespace;
use crate::wait::wait_for;

/// An administrator's view of one cluster.
#[derive(Clone, Debug)]
pub struct Kubectl {
    pub(super) ns: Namespace,
    pub(super) kit: Kit,
    pub(super) kubeconfig: PathBuf,
    pub(super) url: String,
    /// Where programs keep what they remember.
    pub(super) home: PathBuf,
}

impl Kubectl {
    /// The administrator's kubeconfig. It works in [`Kubectl::netns`] only.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A folder for what programs write.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The namespace from which the API server is reached.
    pub fn netns(&self) -> &Namespace {
        &self.ns
    }

    /// Runs `kubectl` and returns what it printed.
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        exec::output(self.command("kubectl", words))
    }

    /// Runs `helm` and returns what it printed.
    pub fn helm(&self, words: &[&str]) -> Result<String> {
        exec::output(self.command("helm", words))
    }

    /// Applies objects given as YAML or JSON, by server-side apply.
    pub fn apply(&self, objects: &str) -> Result<String> {
        let words = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        exec::feed(self.command("kubectl", &words), objects)
    }

    /// Asks the API server to check objects as strictly as it can, without keeping them.
    pub fn validate(&self, objects: &str) -> Result<String> {
        let words = [
            "apply",
            "--server-side",
            "--dry-run=server",
            "--validate=strict",
            "-f",
            "-",
        ];
        exec::feed(self.command("kubectl", &words), objects)
    }

    /// `kubectl get` with these words, as an object.
    pub fn get(&self, words: &[&str]) -> Result<Value> {
        let words: Vec<_> = ["get", "-o", "json"].iter().chain(words).copied().collect();
        Ok(serde_json::from_str(&self.kubectl(&words)?)?)
    }

    /// A program of the kit, or any other, that finds this cluster by `KUBECONFIG`.
    pub fn command(&self, program: &str, words: &[&str]) -> Command {
        let mut command = self.ns.command(self.program(program));
        command
            .args(words)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", &self.home);
        command
    }

    /// Where a program of the kit is. Any other name stays as it is.
    pub fn program(&self, name: &str) -> PathBuf {
        let own = self.kit.program(name);
        if own.exists() { own } else { name.into() }
    }

    /// Waits until the API server says that it is ready.
    pub fn await_ready(&self, patience: Duration) -> Result<()> {
        let url = format!("{}/readyz", self.url);
        wait_for(patience, "the API server is ready", || {
            exec::output(self.command("podtool", &["get", "-k", "-t", "1", &url]))
        })?;
        self.kubectl(&["get", "--raw", "/readyz"]).map(drop)
    }

    /// Waits until a Deployment or DaemonSet has what it should, for two minutes.
    pub fn await_rollout(&self, namespace: &str, what: &str) -> Result<()> {
        let words = ["-n", namespace, "rollout", "status", what, "--timeout=120s"];
        self.kubectl(&words).map(drop)
    }

    /// Makes a namespace for a test, and waits until pods are allowed in it.
    pub fn namespace(&self, name: &str) -> Result<()> {
        self.kubectl(&["create", "namespace", name])?;
        wait_for(
            Duration::from_secs(20),
            "the default service account",
            || self.kubectl(&["-n", name, "get", "serviceaccount", "default"]),
        )
        .map(drop)
    }

    /// Starts a pod of the tests' tool with these arguments, on a node if one is named, and waits until it is Ready.
    pub fn run(
        &self,
        namespace: &str,
        name: &str,
        node: Option<&str>,
        arguments: &[&str],
    ) -> Result<String> {
        let pod = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "tool", "image": super::PODTOOL, "args": arguments}],
            },
        });
        self.apply(&pod.to_string())?;
        let pod = format!("pod/{name}");
        let ready = "--for=condition=Ready";
        self.kubectl(&["-n", namespace, "wait", ready, &pod, "--timeout=60s"])?;
        self.pod_ip(namespace, name)
    }

    /// A pod's address.
    pub fn pod_ip(&self, namespace: &str, name: &str) -> Result<String> {
        let path = "jsonpath={.status.podIP}";
        let ip = self.kubectl(&["-n", namespace, "get", "pod", name, "-o", path])?;
        ensure!(!ip.is_empty(), "{name} has no address yet");
        Ok(ip)
    }

    /// Runs a program in a pod and returns what it printed.
    pub fn exec(&self, namespace: &str, pod: &str, words: &[&str]) -> Result<String> {
        let words: Vec<_> = ["-n", namespace, "exec", pod, "--"]
            .iter()
            .chain(words)
            .copied()
            .collect();
        self.kubectl(&words)
    }

    /// Gets a URL from a pod of the tests' tool.
    pub fn fetch(&self, namespace: &str, pod: &str, url: &str) -> Result<String> {
        self.exec(namespace, pod, &["/podtool", "get", "-t", "2", url])
    }

    /// The status of an object's condition: `True`, `False` or `Unknown`, with its reason and its message.
    pub fn condition(&self, words: &[&str], kind: &str) -> Result<(String, String, String)> {
        let object = self.get(words)?;
        let conditions = object
            .pointer("/status/conditions")
            .and_then(Value::as_array);
        let found = conditions
            .into_iter()
            .flatten()
            .find(|one| one.get("type").and_then(Value::as_str) == Some(kind));
        let Some(found) = found else {
            bail!("no condition {kind}: {object}");
        };
        let text = |key| found.get(key).and_then(Value::as_str).map(str::to_owned);
        Ok((
            text("status").context("no status")?,
            text("reason").unwrap_or_default(),
            text("message").unwrap_or_default(),
        ))
    }
}
