//! The programs under test, as processes in the lab.

mod agent;
mod daemon;
mod proxy;
mod relay;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

pub use agent::Agent;
pub use daemon::{Daemon, DaemonSpec};
pub use proxy::{ProxyProgram, ReverseProxy, ReverseProxySpec};
pub use relay::{Relay, RelayOptions};

/// Finds a program of this workspace beside the running test or tool.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("where is this program?")?;
    // A test lives in target/<profile>/deps, a tool in target/<profile>.
    let beside = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name));
    beside
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "no {name} beside {}: run cargo build (with the same profile) first",
                own.display()
            )
        })
}

/// Lines of a folder's logs that no good run has: errors of our own code, and panics.
pub(crate) fn log_complaints(folder: &Path) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for entry in fs::read_dir(folder)?.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let bad = text.lines().filter(|line| is_complaint(line));
        complaints.extend(bad.map(|line| format!("{}: {line}", entry.file_name().display())));
    }
    Ok(complaints)
}

/// Crates whose errors are ours.
const OWN_TARGETS: [&str; 9] = [
    "culvert_agent",
    "culvert_relay",
    "culvert_",
    "tunnel",
    "traversal",
    "derp",
    "netconf",
    "api",
    "e2e",
];

fn is_complaint(line: &str) -> bool {
    if line.contains("panicked at") {
        return true;
    }
    let Ok(event) = serde_json::from_str::<Value>(line) else {
        return false;
    };
    let text = |key| event.get(key).and_then(Value::as_str).unwrap_or_default();
    let krate = text("target").split("::").next().unwrap_or_default();
    text("level") == "ERROR"
        && OWN_TARGETS
            .iter()
            .any(|own| krate == *own || own.ends_with('_') && krate.starts_with(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_ours_only() {
        assert!(is_complaint(
            r#"{"level":"ERROR","target":"tunnel::driver","fields":{}}"#
        ));
        assert!(is_complaint("thread 'main' panicked at src/main.rs:1:1:"));
        assert!(!is_complaint(
            r#"{"level":"WARN","target":"tunnel::driver","fields":{}}"#
        ));
        assert!(!is_complaint(
            r#"{"level":"ERROR","target":"hyper::proto","fields":{}}"#
        ));
        assert!(!is_complaint("plain words about an ERROR"));
    }
}
