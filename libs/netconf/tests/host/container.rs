//! The same from inside a container: `/proc/sys`, the root and `/run` cannot be written, and of root's rights two are left.

use std::path::{Path, PathBuf};

use netconf::ConditionCode;

use crate::lab::{Site, State, converge, desired};
use crate::{clean, pretty_equal};

/// Names the state folder to the process inside, which is this very test.
const INSIDE: &str = "CULVERT_TEST_CONTAINER_STATE";
const CLEANUP: &str = "CULVERT_TEST_CONTAINER_CLEANUP";

/// Runs the test `name` once more as an agent's container would run it on the node, and returns what it printed.
fn inside(site: &Site, state: &State, name: &str, extra: &str) -> String {
    let test = std::env::current_exe().expect("this test");
    let (test, state) = (test.display(), state.folder().display().to_string());
    site.node.sh(&format!(
        "unshare -m sh -ec '
            mount --make-rprivate /
            mount --bind {state} {state}
            mount --bind /proc/sys /proc/sys
            mount -o remount,bind,ro /proc/sys
            mount -t tmpfs -o ro tmpfs /run
            mount -o remount,bind,ro /
            exec setpriv --bounding-set=-all,+net_admin,+net_raw --inh-caps=-all \\
                env {INSIDE}={state} {extra} {test} --exact {name} --nocapture --test-threads=1'"
    ))
}

fn inside_state() -> Option<State> {
    let folder = std::env::var_os(INSIDE)?;
    assert!(std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").is_err());
    assert!(std::fs::write("/run/probe", "").is_err());
    Some(State::at(PathBuf::from(folder)))
}

/// Applies until nothing changes, or cleans up, and lists the conditions, one a line.
fn act(state: &State) -> String {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().expect("runtime");
    let conditions = runtime.block_on(async {
        if std::env::var_os(CLEANUP).is_some() {
            return clean(state).await.left;
        }
        let report = converge(&mut state.open().await, &desired()).await;
        report.conditions
    });
    let lines = conditions
        .iter()
        .map(|one| format!("\ncondition {}: {}\n", one.code, one.message));
    lines.collect()
}

/// Messages of the conditions of one kind that were printed.
fn messages(output: &str, code: ConditionCode) -> Vec<&str> {
    let head = format!("condition {code}: ");
    output
        .lines()
        .filter_map(|line| line.strip_prefix(&head))
        .collect()
}

fn all(output: &str) -> usize {
    output
        .lines()
        .filter(|line| line.starts_with("condition "))
        .count()
}

/// Does what a condition says, on the host.
fn obey(site: &Site, message: &str) {
    let (_, remedy) = message.split_once("run on the host: ").expect("remedy");
    site.node.sh(remedy);
}

#[test]
fn a_node_that_forwards_is_programmed_without_a_word() {
    const NAME: &str = "container::a_node_that_forwards_is_programmed_without_a_word";
    if let Some(state) = inside_state() {
        return print!("{}", act(&state));
    }
    let (site, state) = (Site::new(), State::new());
    site.node
        .sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.default.rp_filter=1");
    site.node.sh("iptables-nft -P FORWARD DROP");
    let before = site.node.dump();
    site.add_device();
    let output = inside(&site, &state, NAME, "");
    assert_eq!(all(&output), 0, "{output}");
    let set = site
        .node
        .sh("sysctl -n net.ipv4.conf.culvert0.rp_filter net.ipv6.conf.culvert0.addr_gen_mode net.ipv4.conf.culvert0.forwarding");
    assert_eq!(set, "2\n1\n1\n");
    site.send("10.2.0.9");
    assert!(site.flow("10.2.0.9").is_some(), "not forwarded");
    assert_eq!(
        all(&inside(&site, &state, NAME, &format!("{CLEANUP}=1"))),
        0
    );
    pretty_equal(&before, &site.node.dump());
    assert!(!Path::new(&state.journal()).exists());
}

#[test]
fn what_cannot_be_set_is_told_with_its_remedy_and_stops_nothing_else() {
    const NAME: &str =
        "container::what_cannot_be_set_is_told_with_its_remedy_and_stops_nothing_else";
    if let Some(state) = inside_state() {
        return print!("{}", act(&state));
    }
    let (site, state) = (Site::new(), State::new());
    site.node
        .sh("sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
    site.add_device();
    let output = inside(&site, &state, NAME, "");
    let off = messages(&output, ConditionCode::ForwardingOff);
    let device = messages(&output, ConditionCode::DeviceSysctl);
    assert_eq!(
        (off.len(), device.len(), all(&output)),
        (2, 1, 3),
        "{output}"
    );
    let table = site
        .node
        .sh("ip route show table 24370; ip -6 route show table 24370");
    assert!(table.contains("10.2.0.0/16 dev culvert0"), "{table}");
    assert!(table.contains("unreachable fd00:2::/64"), "{table}");
    assert!(!table.contains("fd00:2::/64 dev culvert0"), "{table}");
    off.iter()
        .chain(&device)
        .for_each(|message| obey(&site, message));
    let output = inside(&site, &state, NAME, "");
    assert_eq!(all(&output), 0, "{output}");
    let table = site.node.sh("ip -6 route show table 24370");
    assert!(table.contains("fd00:2::/64 dev culvert0"), "{table}");
}

#[test]
fn legacy_iptables_works_without_its_lock_and_says_so() {
    const NAME: &str = "container::legacy_iptables_works_without_its_lock_and_says_so";
    if let Some(state) = inside_state() {
        return print!("{}", act(&state));
    }
    let (site, state) = (Site::new(), State::new());
    site.node
        .sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    site.node.sh("iptables-legacy -P FORWARD DROP");
    site.add_device();
    let output = inside(&site, &state, NAME, "");
    let unlocked = messages(&output, ConditionCode::IptablesUnlocked);
    assert_eq!((unlocked.len(), all(&output)), (1, 1), "{output}");
    site.send("10.2.0.9");
    assert!(site.flow("10.2.0.9").is_some(), "not forwarded");
    let tables = site.node.sh("nft list tables");
    assert!(
        !tables.contains("ip filter"),
        "the other flavour was touched: {tables}"
    );
}
