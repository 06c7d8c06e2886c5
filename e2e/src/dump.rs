//! Everything of a namespace's configuration that a program of ours might change, in a form that can be compared.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::exec;
use crate::namespace::Namespace;
use crate::wait::wait_for;

/// A dump. Counters, handles and lifetimes are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDump {
    /// Text by what it was asked for: a command, `sysctl` and a key, or `file` and a path.
    entries: BTreeMap<String, String>,
}

/// Commands whose output says it all. The last word of the first three is a family of addresses.
const LISTINGS: [&str; 9] = [
    "nft -s list ruleset",
    "ip -j link",
    "ip -j addr",
    "ip -4 -j route show table all",
    "ip -6 -j route show table all",
    "ip -4 -j rule",
    "ip -6 -j rule",
    "iptables-nft-save",
    "ip6tables-nft-save",
];

/// Fields of `ip -j` that change by themselves.
const RESTLESS: [&str; 6] = [
    "valid_life_time",
    "preferred_life_time",
    "expires",
    "stats",
    "stats64",
    "used",
];

impl HostDump {
    /// Dumps a namespace, or the one this process lives in, and the names and sizes of all files in some folders.
    /// Waits until the kernel is done with what was configured last, a bridge's state for instance.
    pub fn take(ns: Option<&Namespace>, folders: &[&Path]) -> Result<Self> {
        let mut last = Self::once(ns, folders)?;
        wait_for(Duration::from_secs(5), "a host at rest", || {
            thread::sleep(Duration::from_millis(150));
            let now = Self::once(ns, folders)?;
            let changes = now.diff(&last);
            last = now.clone();
            if changes.is_empty() {
                Ok(now)
            } else {
                bail!(changes)
            }
        })
    }

    fn once(ns: Option<&Namespace>, folders: &[&Path]) -> Result<Self> {
        let mut entries = BTreeMap::new();
        for listing in LISTINGS {
            if let Some(text) = run(ns, listing)? {
                entries.insert(listing.to_owned(), settled(listing, &text));
            }
        }
        legacy(ns, &mut entries)?;
        let sysctls = match ns {
            Some(ns) => ns.run(sysctls)?,
            None => sysctls(),
        };
        entries.extend(sysctls);
        for folder in folders {
            files(folder, &mut entries);
        }
        entries.insert("files named culvert".to_owned(), named_files());
        Ok(Self { entries })
    }

    /// What differs from an earlier dump, a line each; empty when nothing does. Sysctls of kernel modules that were not
    /// loaded before do not count.
    pub fn diff(&self, before: &Self) -> String {
        let mut text = String::new();
        for (key, new) in &self.entries {
            match before.entries.get(key) {
                Some(old) => lines_that_differ(key, old, new, &mut text),
                None if is_of_a_module(key) => {}
                None => lines_that_differ(key, "", new, &mut text),
            }
        }
        for (key, old) in &before.entries {
            if !self.entries.contains_key(key) {
                lines_that_differ(key, old, "", &mut text);
            }
        }
        text
    }
}

/// Output of a command given as words, or nothing when there is no such program.
fn run(ns: Option<&Namespace>, line: &str) -> Result<Option<String>> {
    let mut words = line.split(' ');
    let program = words.next().context("no command")?;
    if !is_installed(program) {
        return Ok(None);
    }
    let mut command = match ns {
        Some(ns) => ns.command(program),
        None => std::process::Command::new(program),
    };
    command.args(words);
    exec::output(command).map(Some)
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

/// Legacy tables, only those that exist: asking for another one would make it.
fn legacy(ns: Option<&Namespace>, entries: &mut BTreeMap<String, String>) -> Result<()> {
    for (family, program) in [
        ("ip", "iptables-legacy-save"),
        ("ip6", "ip6tables-legacy-save"),
    ] {
        let list = format!("/proc/thread-self/net/{family}_tables_names");
        let read = || fs::read_to_string(&list).unwrap_or_default();
        let names = match ns {
            Some(ns) => ns.run(read)?,
            None => read(),
        };
        let mut sorted: Vec<_> = names.lines().collect();
        sorted.sort_unstable();
        for table in &sorted {
            let line = format!("{program} -t {table}");
            if let Some(text) = run(ns, &line)? {
                entries.insert(line.clone(), settled(&line, &text));
            }
        }
        entries.insert(format!("{family}_tables_names"), sorted.join("\n"));
    }
    Ok(())
}

/// Without what changes by itself.
fn settled(listing: &str, text: &str) -> String {
    if listing.contains("-save") {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        return lines.map(without_counters).collect::<Vec<_>>().join("\n");
    }
    match serde_json::from_str::<Vec<Value>>(text) {
        Ok(list) => {
            let mut lines: Vec<_> = list
                .into_iter()
                .map(|entry| calm(entry).to_string())
                .collect();
            lines.sort_unstable();
            lines.join("\n")
        }
        Err(_) => text.to_owned(),
    }
}

/// `:INPUT ACCEPT [12:3456]` without the numbers.
fn without_counters(line: &str) -> &str {
    let is_policy = line.starts_with(':');
    line.split_once(" [")
        .filter(|_| is_policy)
        .map_or(line, |(head, _)| head)
}

fn calm(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields
                .into_iter()
                .filter(|(key, _)| !RESTLESS.contains(&key.as_str()));
            Value::Object(kept.map(|(key, value)| (key, calm(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(calm).collect()),
        plain @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => plain,
    }
}

/// Every readable `net.*` sysctl of the calling thread's namespace, counts aside.
fn sysctls() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    walk(Path::new("/proc/sys/net"), &mut |path| {
        let name = path
            .strip_prefix("/proc/sys")
            .unwrap_or(path)
            .display()
            .to_string();
        // Counts, and what the kernel derives or draws anew.
        let restless = name.ends_with("_count")
            || name.ends_with("stable_secret")
            || name.ends_with("tcp_fastopen_key");
        if let Ok(text) = fs::read_to_string(path)
            && !restless
        {
            found.insert(format!("sysctl {name}"), text.trim().to_owned());
        }
    });
    found
}

/// Where programs leave things on a host. Other programs do too, so only names that hold ours count.
const USUAL_PLACES: [&str; 8] = [
    "/run",
    "/run/lock",
    "/var/lib",
    "/var/cache",
    "/var/log",
    "/var/tmp",
    "/usr/local/bin",
    "/usr/local/sbin",
];

fn named_files() -> String {
    let entries = USUAL_PLACES
        .iter()
        .filter_map(|place| fs::read_dir(place).ok())
        .flatten()
        .flatten();
    let ours = entries
        .map(|entry| entry.path().display().to_string())
        .filter(|path| path.contains("culvert"));
    let mut ours: Vec<_> = ours.collect();
    ours.sort_unstable();
    ours.join("\n")
}

fn files(folder: &Path, entries: &mut BTreeMap<String, String>) {
    walk(folder, &mut |path| {
        let size = fs::symlink_metadata(path).map_or(0, |data| data.len());
        entries.insert(format!("file {}", path.display()), format!("{size} bytes"));
    });
}

fn walk(folder: &Path, visit: &mut dyn FnMut(&Path)) {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    paths.sort_unstable();
    for path in paths {
        if path.is_dir() && !path.is_symlink() {
            walk(&path, visit);
        } else {
            visit(&path);
        }
    }
}

/// Sysctls that appear when a module is loaded.
fn is_of_a_module(key: &str) -> bool {
    [
        "sysctl net/netfilter/",
        "sysctl net/bridge/",
        "sysctl net/nf_conntrack",
    ]
    .iter()
    .any(|start| key.starts_with(start))
}

fn lines_that_differ(key: &str, old: &str, new: &str, text: &mut String) {
    let count = |lines: &str, wanted: &str| lines.lines().filter(|line| *line == wanted).count();
    let only_in = |lines: &str, others: &str, sign: char, text: &mut String| {
        for line in lines
            .lines()
            .filter(|line| count(lines, line) > count(others, line))
        {
            let _ = writeln!(text, "{key}: {sign} {line}");
        }
    };
    only_in(old, new, '-', text);
    only_in(new, old, '+', text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump(entries: &[(&str, &str)]) -> HostDump {
        let entries = entries
            .iter()
            .map(|&(key, text)| (key.to_owned(), settled(key, text)))
            .collect();
        HostDump { entries }
    }

    #[test]
    fn restless_things_do_not_differ() {
        let before = dump(&[
            (
                "iptables-nft-save",
                "# now\n:INPUT ACCEPT [1:2]\n-A INPUT -j DROP",
            ),
            (
                "ip -j addr",
                r#"[{"ifname":"a","addr_info":[{"local":"10.0.0.1","valid_life_time":5}]}]"#,
            ),
        ]);
        let after = dump(&[
            (
                "iptables-nft-save",
                "# later\n:INPUT ACCEPT [3:4]\n-A INPUT -j DROP",
            ),
            (
                "ip -j addr",
                r#"[{"ifname":"a","addr_info":[{"local":"10.0.0.1","valid_life_time":4}]}]"#,
            ),
            ("sysctl net/netfilter/nf_log", "1"),
        ]);
        assert_eq!(after.diff(&before), "");
    }

    #[test]
    fn every_change_is_told() {
        let before = dump(&[("nft -s list ruleset", "a\nb"), ("sysctl net/ipv4/x", "0")]);
        let after = dump(&[("nft -s list ruleset", "a\nc"), ("sysctl net/ipv4/y", "0")]);
        let told = after.diff(&before);
        for line in [
            "nft -s list ruleset: - b",
            "nft -s list ruleset: + c",
            "sysctl net/ipv4/x: - 0",
            "sysctl net/ipv4/y: + 0",
        ] {
            assert!(told.contains(line), "{line:?} in {told}");
        }
    }
}
