//! An agent against an API server, with an engine that only notes what it is told.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::{Store, Surroundings};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch as channel};
use tokio::time::timeout;

use super::super::*;
use super::fake::Fake;
use crate::{
    Agent, Engine, Health, ManifestBoard, Plan, Reporter, Snapshot, StateFolder, StatusSource,
    agent,
};

struct Probe(mpsc::UnboundedSender<Plan>);

impl Engine for Probe {
    async fn surroundings(&mut self) -> Surroundings {
        Surroundings::default()
    }

    async fn apply(&mut self, plan: &Plan) -> anyhow::Result<()> {
        self.0.send(plan.clone())?;
        Ok(())
    }

    fn reporter(&self) -> Arc<dyn Reporter> {
        Arc::new(Silent)
    }

    async fn stop(&mut self) {}
}

struct Silent;

impl Reporter for Silent {
    fn snapshot(&self) -> Pin<Box<dyn Future<Output = Snapshot> + Send + '_>> {
        Box::pin(async { Snapshot::default() })
    }
}

/// A running agent on node `n1`.
struct Running {
    plans: mpsc::UnboundedReceiver<Plan>,
    health: Arc<Health>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Running {
    fn start(fake: &Fake, state: &StateFolder) -> Self {
        let (sender, plans) = mpsc::unbounded_channel();
        let health = Arc::<Health>::default();
        let key = state.key().expect("a key").public();
        let source = StatusSource {
            started_at: jiff::Timestamp::now(),
            public_key: key,
            port: 20_443,
            manifests: Arc::new(ManifestBoard::default()),
            reporter: Arc::new(Silent),
        };
        let (objects, objects_out) = channel::channel(None);
        let (own, own_out) = channel::channel(None);
        let writer = Writer::new(
            fake.client(),
            "n1".to_owned(),
            own_out,
            source.clone(),
            Arc::clone(&health),
        );
        let agent = Agent {
            store: Store::new(key, state.saved().expect("readable")),
            state: state.clone(),
            source: Kubernetes::new(objects_out),
            board: source.manifests,
            health: Arc::clone(&health),
            engine: Probe(sender),
        };
        let outlets = Outlets { objects, own };
        let tasks = vec![
            tokio::spawn(watch(fake.client(), "n1".to_owned(), outlets)),
            tokio::spawn(writer.run()),
            tokio::spawn(agent::run(agent, std::future::pending())),
        ];
        Self {
            plans,
            health,
            tasks,
        }
    }

    async fn next(&mut self) -> Plan {
        timeout(Duration::from_secs(20), self.plans.recv())
            .await
            .expect("in time")
            .expect("running")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn mesh(fake: &Fake) {
    fake.put("meshes", "Mesh", "default", json!({"clusterName": "a"}));
}

fn node(fake: &Fake) {
    let spec = json!({
        "prefixes": ["10.1.1.0/24"], "reserved": ["10.1.0.0/16"], "probes": ["p"],
        "admitted": [{"name": "p", "uid": "Peer-p", "allowedCIDRs": ["10.2.0.0/16"]}],
        "relays": [{"url": "https://r.example", "pass": "abc"}]
    });
    fake.put("meshnodes", "MeshNode", "n1", spec);
}

fn peer(fake: &Fake) {
    let spec = json!({"allowedCIDRs": ["10.2.0.0/16"]});
    fake.put("peers", "Peer", "p", spec);
    let node = json!({"name": "t1", "publicKey": format!("nodekey:01{}", "5a".repeat(31)), "prefixes": ["10.2.1.0/24"]});
    fake.put(
        "peerslices",
        "PeerSlice",
        "p-0",
        json!({"peer": "p", "nodes": [node]}),
    );
}

/// Waits for something that the server has seen.
async fn seen(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "waiting for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_reach_the_engine_and_the_status_goes_back() {
    let folder = TempDir::new().expect("a folder");
    let state = StateFolder::open(folder.path()).expect("opens");
    let fake = Fake::start().await;
    mesh(&fake);
    let mut running = Running::start(&fake, &state);
    assert_eq!(
        running.next().await,
        Plan::default(),
        "a Mesh without MeshNode"
    );
    assert!(fake.applied().is_empty(), "nothing to write to");
    let ready = running.health.clone();
    seen("the reason", || ready.ready_line().contains("MeshNode n1")).await;

    let start = Instant::now();
    node(&fake);
    seen("the key", || !fake.applied().is_empty()).await;
    let to_key = start.elapsed();
    let (target, body) = fake.applied().remove(0);
    assert!(
        target.starts_with("/apis/culvert.dev/v1alpha1/meshnodes/n1/status?")
            && target.contains("fieldManager=culvert-agent")
            && target.contains("force=true"),
        "{target}"
    );
    let key = state.key().expect("a key").public().to_string();
    assert_eq!(body["status"]["publicKey"], key);
    assert!(body.get("spec").is_none());
    let plan = running.next().await;
    let of = |plan: &Plan| {
        plan.accepted.mesh.as_ref().expect("in force").relays[0]
            .pass
            .clone()
    };
    assert_eq!(of(&plan).as_deref(), Some("abc"));
    seen("readiness", || ready.ready_line() == "programmed").await;

    let start = Instant::now();
    peer(&fake);
    let plan = loop {
        let plan = running.next().await;
        if !plan.probed.is_empty() {
            break plan;
        }
    };
    let to_plan = start.elapsed();
    assert_eq!(plan.accepted.peers[0].nodes.len(), 1);
    // Far more than is meant, for a machine that does much else.
    let most = Duration::from_millis(1500);
    assert!(to_key < most && to_plan < most, "{to_key:?}, {to_plan:?}");

    let start = Instant::now();
    fake.delete("peers", "p");
    let plan = running.next().await;
    assert!(plan.accepted.peers.is_empty() && plan.probed.is_empty());
    assert!(start.elapsed() < most, "{:?}", start.elapsed());
    println!(
        "key {to_key:?}, plan {to_plan:?}, revoked {:?}",
        start.elapsed()
    );
    fake.delete("meshes", "default");
    assert_eq!(running.next().await, Plan::default());
    let foreign = |target: &String| {
        ["meshes", "peers", "peerslices", "meshnodes"]
            .iter()
            .all(|plural| !target.starts_with(&format!("/apis/culvert.dev/v1alpha1/{plural}")))
            || target.contains("/meshnodes?") && !target.contains("metadata.name%3Dn1")
    };
    let asked = fake.asked();
    assert!(!asked.iter().any(foreign), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_api_server_the_saved_state_stays() {
    let folder = TempDir::new().expect("a folder");
    let state = StateFolder::open(folder.path()).expect("opens");
    let fake = Fake::start().await;
    mesh(&fake);
    node(&fake);
    peer(&fake);
    let mut running = Running::start(&fake, &state);
    let before = loop {
        let plan = running.next().await;
        if !plan.probed.is_empty() {
            break plan;
        }
    };
    fake.stop();
    seen("the saved state", || {
        let saved = state.saved().expect("readable");
        saved.is_some_and(|saved| {
            serde_json::to_string(&saved)
                .expect("serialises")
                .contains("t1")
        })
    })
    .await;
    drop(running);
    let mut running = Running::start(&fake, &state);
    let plan = running.next().await;
    assert_eq!(plan.accepted, before.accepted);
    let ready = running.health.clone();
    seen("readiness", || ready.ready_line() == "programmed").await;
    let more = timeout(Duration::from_millis(1200), running.plans.recv()).await;
    assert!(more.is_err(), "nothing changes: {more:?}");
}
