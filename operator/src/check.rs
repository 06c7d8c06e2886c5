//! `culvert-operator check`: whether everything is ready, for `helm test`.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use api::{Mesh, MeshNode, Peer};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use tokio::time::{Instant, sleep};

use crate::args::CheckArgs;
use crate::output::progress;
use crate::run::{client, install_crypto};

/// Between two looks.
const POLL: Duration = Duration::from_secs(1);

/// Looks until all are ready, or the time is up.
pub(crate) fn check(args: &CheckArgs) -> anyhow::Result<()> {
    install_crypto();
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(async {
        let client = client().await?;
        let until = Instant::now() + args.wait;
        loop {
            let wanting = wanting(&look(&client).await?);
            if wanting.is_empty() {
                progress("the Mesh, all Peers and all nodes are ready");
                return Ok(());
            }
            if Instant::now() >= until {
                bail!("not ready: {}", wanting.join("; "));
            }
            sleep(POLL).await;
        }
    })
}

/// An object and its `Ready` condition.
struct Seen {
    kind: &'static str,
    name: String,
    ready: Option<Condition>,
}

async fn look(client: &Client) -> anyhow::Result<Vec<Seen>> {
    let all = ListParams::default();
    let meshes = Api::<Mesh>::all(client.clone()).list(&all).await;
    let peers = Api::<Peer>::all(client.clone()).list(&all).await;
    let nodes = Api::<MeshNode>::all(client.clone()).list(&all).await;
    let mut seen = Vec::new();
    for mesh in meshes.map_err(|error| explain("Meshes", error))? {
        let status = mesh.status.as_ref();
        seen.push(Seen::new(
            "Mesh",
            &mesh,
            status.map(|status| status.conditions.as_slice()),
        ));
    }
    for peer in peers.map_err(|error| explain("Peers", error))? {
        let status = peer.status.as_ref();
        seen.push(Seen::new(
            "Peer",
            &peer,
            status.map(|status| status.conditions.as_slice()),
        ));
    }
    for node in nodes.map_err(|error| explain("MeshNodes", error))? {
        let status = node.status.as_ref();
        seen.push(Seen::new(
            "MeshNode",
            &node,
            status.map(|status| status.conditions.as_slice()),
        ));
    }
    Ok(seen)
}

/// Why these cannot be listed, and what to do about it.
fn explain(what: &str, error: kube::Error) -> anyhow::Error {
    let kube::Error::Api(status) = &error else {
        return anyhow!(
            "cannot list {what}: {}; run in a pod of the cluster (helm test does), or set KUBECONFIG to a cluster that answers",
            innermost(&error)
        );
    };
    let hint = match status.code {
        401 | 403 => "use an account that may list them, as the chart's test has",
        404 => "install the chart first",
        _ => "try again",
    };
    anyhow!("cannot list {what}: {}; {hint}", status.message)
}

/// The text of the error that all others around it repeat.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

impl Seen {
    fn new(
        kind: &'static str,
        object: &impl ResourceExt,
        conditions: Option<&[Condition]>,
    ) -> Self {
        Self {
            kind,
            name: object.name_any(),
            ready: conditions
                .and_then(|conditions| api::find_condition(conditions, "Ready").cloned()),
        }
    }
}

/// What is not ready, for people.
fn wanting(seen: &[Seen]) -> Vec<String> {
    let mut wanting: Vec<String> = ["Mesh", "MeshNode"]
        .into_iter()
        .filter(|kind| !seen.iter().any(|seen| seen.kind == *kind))
        .map(|kind| format!("there is no {kind}"))
        .collect();
    for one in seen {
        match &one.ready {
            Some(ready) if ready.status == "True" => {}
            Some(ready) => wanting.push(format!(
                "{} {}: {}: {}",
                one.kind, one.name, ready.reason, ready.message
            )),
            None => wanting.push(format!(
                "{} {} has not been looked at yet",
                one.kind, one.name
            )),
        }
    }
    wanting
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn seen(kind: &'static str, status: Option<&str>) -> Seen {
        let condition = |status| {
            serde_json::from_value(
                json!({"type": "Ready", "status": status, "reason": "Why", "message": "words",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}),
            )
            .expect("a condition")
        };
        Seen {
            kind,
            name: "a".to_owned(),
            ready: status.map(condition),
        }
    }

    #[test]
    fn whoever_cannot_look_is_told_what_to_do() {
        let api = |code| {
            let status = kube::core::Status::failure("words", "Reason").with_code(code);
            explain("Meshes", kube::Error::Api(status.boxed())).to_string()
        };
        assert_eq!(
            api(404),
            "cannot list Meshes: words; install the chart first"
        );
        assert!(api(403).contains("account"));
        let away = explain("Peers", kube::Error::Service("connection refused".into())).to_string();
        assert!(
            away.starts_with("cannot list Peers: connection refused; ")
                && away.contains("KUBECONFIG"),
            "{away}"
        );
    }

    #[test]
    fn what_is_not_ready_is_named() {
        let both = [seen("Mesh", Some("True")), seen("MeshNode", Some("True"))];
        assert!(wanting(&both).is_empty());
        assert_eq!(wanting(&[]), ["there is no Mesh", "there is no MeshNode"]);
        let some = [
            seen("Mesh", Some("True")),
            seen("MeshNode", None),
            seen("Peer", Some("Unknown")),
        ];
        assert_eq!(
            wanting(&some),
            [
                "MeshNode a has not been looked at yet",
                "Peer a: Why: words"
            ]
        );
    }
}
