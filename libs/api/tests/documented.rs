//! docs/troubleshooting.md has every reason that a path or a condition may have.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use api::Reason;

/// What decides conditions: files, and folders with all below them.
const DECIDING: [&str; 4] = [
    "operator/src/plan",
    "operator/src/join",
    "node-agent/src/kubernetes/status.rs",
    "libs/netconf/src/report.rs",
];
/// Words in there that are no reasons: they are Kubernetes' own, or the action of an Event.
const OTHERS: [&str; 12] = [
    "ClusterIP",
    "Expire",
    "FallbackToLogsOnError",
    "Join",
    "LoadBalancer",
    "Local",
    "NodePort",
    "Peer",
    "Prefix",
    "Recreate",
    "RuntimeDefault",
    "Services",
];

#[test]
fn every_reason_is_in_the_troubleshooting_guide() {
    let guide = fs::read_to_string(root().join("docs/troubleshooting.md")).expect("the guide");
    let mut reasons = conditions();
    for reason in Reason::ALL {
        reasons.insert(reason.to_string(), PathBuf::from("api::Reason"));
    }
    assert!(reasons.len() > 80, "only {} were found", reasons.len());
    let missing: Vec<_> = reasons
        .iter()
        .filter(|(reason, _)| !guide.contains(&format!("`{reason}`")))
        .collect();
    assert!(missing.is_empty(), "say what to do about {missing:?}");
}

/// Reasons of conditions, each with a file that has it.
fn conditions() -> BTreeMap<String, PathBuf> {
    let mut reasons = BTreeMap::new();
    for place in DECIDING {
        for file in sources(&root().join(place)) {
            let text = fs::read_to_string(&file).expect("a source");
            let code = text.split("#[cfg(test)]\nmod tests {").next();
            let words = code.into_iter().flat_map(|code| code.split('"'));
            for word in words.filter(|word| is_reason(word)) {
                reasons.insert(word.to_owned(), file.clone());
            }
        }
    }
    reasons
}

/// Reasons are words in CamelCase.
fn is_reason(word: &str) -> bool {
    word.starts_with(|first: char| first.is_ascii_uppercase())
        && word.contains(|any: char| any.is_ascii_lowercase())
        && word.chars().all(|any| any.is_ascii_alphanumeric())
        && !OTHERS.contains(&word)
}

/// The sources of a file or folder, without those of tests.
fn sources(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.to_owned()];
    }
    let name = |path: &Path| path.file_stem().unwrap_or_default().to_owned();
    let is_test = |path: &PathBuf| ["tests", "fixture"].iter().any(|one| name(path) == *one);
    let entries = fs::read_dir(place).expect("a folder").flatten();
    let entries = entries
        .map(|entry| entry.path())
        .filter(|path| !is_test(path));
    entries.flat_map(|path| sources(&path)).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
