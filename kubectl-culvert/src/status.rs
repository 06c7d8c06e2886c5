//! `kubectl culvert status`.

pub(crate) mod report;
mod text;

use api::{Mesh, MeshNode, Peer};
use jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use crate::args::{ConnectionArgs, StatusArgs};
use crate::cluster::{Cluster, explain};
use crate::identity::mesh;
use crate::output::{self, Format, Terminal};
use crate::peers;

/// What there is in the cluster.
#[derive(Debug)]
struct Found {
    mesh: Mesh,
    peers: Vec<Peer>,
    nodes: Vec<MeshNode>,
}

/// Prints everything.
pub(crate) async fn run(
    connection: &ConnectionArgs,
    args: &StatusArgs,
    terminal: Terminal,
) -> anyhow::Result<()> {
    let cluster = Cluster::connect(connection).await?;
    let found = Found {
        mesh: mesh(&cluster).await?,
        peers: peers::list(&cluster).await?,
        nodes: nodes(&cluster).await?,
    };
    match args.output {
        Format::Text => output::print(&text::text(&found, Timestamp::now(), terminal.colours)),
        Format::Json => output::print_json(&report::report(&found)),
    }
}

async fn nodes(cluster: &Cluster) -> anyhow::Result<Vec<MeshNode>> {
    let nodes = Api::<MeshNode>::all(cluster.client.clone());
    let mut found = nodes
        .list(&ListParams::default())
        .await
        .map_err(explain)?
        .items;
    found.sort_by_key(ResourceExt::name_any);
    Ok(found)
}

#[cfg(test)]
mod fixture {
    use serde_json::{Value, json};

    use super::Found;

    fn ready(status: &str, reason: &str) -> Value {
        json!([{"type": "Ready", "status": status, "reason": reason, "message": "words",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}])
    }

    fn object(kind: &str, name: &str, spec: &Value, status: &Value) -> Value {
        json!({"apiVersion": api::API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec, "status": status})
    }

    /// Two nodes, of which one is direct to one remote node and relayed to another, and one has refused a peer.
    pub(super) fn found() -> Found {
        let parse = |value: Value| serde_json::from_value(value).expect("a Mesh");
        let mesh = parse(object(
            "Mesh",
            "default",
            &json!({"clusterName": "berlin", "relays": {
                "managed": [{"name": "main", "exposure": {"type": "LoadBalancer"}}], "external": [{"url": "https://s.example.com"}]}}),
            &json!({"identity": "cluster:x", "peers": "1/1", "nodes": "1/2", "conditions": ready("True", "Ready"),
                "ranges": {"podCIDRs": ["10.1.0.0/16"], "serviceCIDRs": [], "source": "Nodes"},
                "relays": [{"name": "main", "url": "https://r.example.com", "inside": true, "problem": "nobody has come from outside yet"},
                    {"name": "external-0", "url": "https://s.example.com", "inside": false, "stunPort": 3478}]}),
        ));
        let peers = serde_json::from_value(json!([object(
            "Peer",
            "tokyo",
            &json!({"allowedCIDRs": ["10.2.0.0/16"]}),
            &json!({"clusterName": "tokyo", "path": "direct", "rttMicros": 5000, "nodes": "3/3", "conditions": ready("True", "Connected"),
                "refused": [{"node": "tokyo-9", "code": "OutsideAllowed", "message": "10.9.0.0/24 is not in allowedCIDRs"}]}),
        )]))
        .expect("Peers");
        let nodes = serde_json::from_value(json!([
            object("MeshNode", "worker-1", &json!({"prefixes": ["10.1.1.0/24"]}), &json!({
                "publicKey": "k", "heartbeatAt": "2026-01-01T00:00:00Z", "homeRelay": "https://r.example.com", "agentVersion": "0.1.0",
                "nat": {"mapping": "EDM", "filtering": "APDF", "reflexive": []},
                "conditions": ready("True", "Programmed"),
                "peers": [{"name": "tokyo", "accepted": true, "nodeCount": 3, "nodes": [
                    {"name": "tokyo-1", "path": "direct", "rttMicros": 5000, "endpoint": "203.0.113.9:4000"},
                    {"name": "tokyo-2", "path": "relay", "reason": "BothNatsHard", "rttMicros": 41_000, "endpoint": "https://r.example.com"}]}]})),
            object("MeshNode", "worker-2", &json!({}), &json!({
                "conditions": ready("False", "TunMissing"),
                "peers": [{"name": "tokyo", "accepted": false, "problem": "10.2.0.0/16 is eth1's network", "nodes": []}]})),
        ]))
        .expect("MeshNodes");
        Found { mesh, peers, nodes }
    }
}
