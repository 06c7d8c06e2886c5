//! An API server alone: what it keeps, and what it takes of the chart and the examples.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::product::text;
use e2e::{ApiServer, Lab, exec, figure};
use serde_json::Value;

use crate::scene::seconds;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

const LEASE: &str = "\
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: one, namespace: default}
spec: {holderIdentity: me, leaseTransitions: 1}
";

#[test]
fn an_api_server_alone_keeps_objects_and_refuses_nonsense() -> Result<()> {
    let lab = Lab::new("api")?;
    let start = Instant::now();
    let mut api = ApiServer::start(&lab, "alone")?;
    figure(
        "API server alone",
        format!("{:.1} s", start.elapsed().as_secs_f32()),
    );
    api.apply(LEASE)?;
    let unknown = LEASE.replace("holderIdentity", "holder");
    let refused = format!("{:#}", api.validate(&unknown).expect_err("no such field"));
    assert!(refused.contains("spec.holder"), "{refused}");
    api.stop_api()?;
    api.start_api()?;
    let lease = api.get(&["lease", "one"])?;
    assert_eq!(lease.pointer("/spec/holderIdentity"), Some(&"me".into()));
    drop(api);
    lab.finish()
}

#[test]
fn chart_and_examples_pass_the_strictest_checks() -> Result<()> {
    let lab = Lab::new("strict")?;
    let api = ApiServer::start(&lab, "strict")?;
    chart_is_accepted(&api)?;
    for example in examples()? {
        example_is_kept(&api, &example).with_context(|| example.display().to_string())?;
    }
    mistakes_are_refused(&api)?;
    drop(api);
    lab.finish()
}

/// `scripts/chart.sh --server`: lint, every rendering, and that the server takes them and refuses a misspelt field.
fn chart_is_accepted(api: &ApiServer) -> Result<()> {
    let start = Instant::now();
    let script = Path::new(ROOT).join("scripts/chart.sh");
    let script = script.to_str().context("the script's path")?;
    let mut command = api.command(script, &["--server"]);
    command
        .env("CULVERT_HELM", api.program("helm"))
        .env("CULVERT_KUBECTL", api.program("kubectl"));
    let said = exec::output(command)?;
    ensure!(said.trim() == "chart: good", "{said}");
    seconds("the chart, checked by an API server", start);
    Ok(())
}

/// Every manifest of `examples/`.
fn examples() -> Result<Vec<PathBuf>> {
    let mut folders = vec![Path::new(ROOT).join("examples")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path
                .extension()
                .is_some_and(|extension| extension == "yaml")
            {
                found.push(path);
            }
        }
    }
    ensure!(found.len() >= 12, "there are more examples than {found:?}");
    found.sort();
    Ok(found)
}

/// Applied and read back, everything that the file says is there.
fn example_is_kept(api: &ApiServer, path: &Path) -> Result<()> {
    let path = path.to_str().context("a path")?;
    let words = ["create", "--dry-run=client", "-o", "json", "-f", path];
    let wanted: Value = serde_json::from_str(&api.kubectl(&words)?)?;
    api.kubectl(&["apply", "--server-side", "--validate=strict", "-f", path])?;
    let kind = text(&wanted, "/kind").context("a kind")?;
    let name = text(&wanted, "/metadata/name").context("a name")?;
    let kept = api.get(&[&kind, &name])?;
    ensure!(kept["apiVersion"] == wanted["apiVersion"], "{kept}");
    ensure!(holds(&kept["spec"], &wanted["spec"]), "{kept} is kept");
    // The next one may have the same name and another cluster.
    api.kubectl(&["delete", "-f", path]).map(drop)
}

/// Whether there is everything that is wanted; defaults may have come on top.
fn holds(kept: &Value, wanted: &Value) -> bool {
    match (kept, wanted) {
        (Value::Object(kept), Value::Object(wanted)) => wanted.iter().all(|(key, value)| {
            let found = kept.get(key);
            found.is_some_and(|found| holds(found, value))
        }),
        (Value::Array(kept), Value::Array(wanted)) => {
            kept.len() == wanted.len() && kept.iter().zip(wanted).all(|(a, b)| holds(a, b))
        }
        (kept, wanted) => kept == wanted,
    }
}

/// What is there when the mistakes are made: kind, name and spec.
const GIVEN: [(&str, &str, &str); 3] = [
    ("Mesh", "default", "{clusterName: berlin}"),
    (
        "Peer",
        "tokyo",
        "{identity: 'cluster:skXefOj4huEswB74GVoH0XPjth4pmC9bE3iVDbhwoUY=', allowedCIDRs: [10.2.0.0/16]}",
    ),
    ("Invite", "lima", "{type: Cluster}"),
];

/// Kind and name, the spec, and words of the refusal.
const MISTAKES: [(&str, &str, &str, &str); 15] = [
    (
        "Mesh",
        "default",
        "{clusterName: munich}",
        "clusterName cannot be changed",
    ),
    (
        "Peer",
        "tokyo",
        "{identity: 'cluster:44PbbTrAxqZxi9STn0WPxS+scgQ8OkP94oawJBReT7E=', allowedCIDRs: [10.2.0.0/16]}",
        "identity cannot be changed",
    ),
    (
        "Peer",
        "tokyo",
        "{allowedCIDRs: [10.2.0.0/16]}",
        "identity cannot be changed",
    ),
    (
        "Invite",
        "lima",
        "{type: Host}",
        "an invite cannot be changed",
    ),
    (
        "Peer",
        "new",
        "{allowedCIDRs: [10.2.0.1/16]}",
        "no bits set behind the length",
    ),
    (
        "Peer",
        "new",
        "{allowedCIDRs: [10.2.0.0/33]}",
        "write address/length",
    ),
    (
        "Peer",
        "new",
        "{allowedCIDRs: [0.0.0.0/0]}",
        "a default route",
    ),
    (
        "Mesh",
        "new",
        "{clusterName: a, podCIDRs: ['fe80::/64']}",
        "link-local",
    ),
    (
        "Invite",
        "new",
        "{cidrs: [224.0.0.0/8]}",
        "multicast cannot be reached",
    ),
    ("Mesh", "new", "{clusterName: Berlin}", "spec.clusterName"),
    (
        "Mesh",
        "new",
        "{clusterName: a, relays: {managed: [{name: m, exposure: {type: NodePort}}]}}",
        "a NodePort needs host",
    ),
    (
        "Mesh",
        "new",
        "{clusterName: a, relays: {managed: [{name: m, exposure: {type: HostPort}}]}}",
        "a HostPort needs host",
    ),
    (
        "Mesh",
        "new",
        "{clusterName: a, relays: {managed: [{name: m, exposure: {type: Ingress}}]}}",
        "an Ingress needs host",
    ),
    (
        "Mesh",
        "new",
        "{clusterName: a, relays: {managed: [{name: m, exposure: {type: LoadBalancer}, tls: {type: Secret}}]}}",
        "secretName names the Secret",
    ),
    (
        "Mesh",
        "new",
        "{clusterName: a, podCIDR: [10.1.0.0/16]}",
        "spec.podCIDR",
    ),
];

fn mistakes_are_refused(api: &ApiServer) -> Result<()> {
    for (kind, name, spec) in GIVEN {
        api.apply(&object(kind, name, spec))?;
    }
    for (kind, name, spec, words) in MISTAKES {
        let done = api.validate(&object(kind, name, spec));
        let refused = done.err().with_context(|| format!("{spec} is accepted"))?;
        // The object itself is in the message as well, and holds no such words.
        let refused = format!("{refused:#}");
        ensure!(refused.contains(words), "{words:?} is not in: {refused}");
    }
    Ok(())
}

fn object(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: culvert.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}
