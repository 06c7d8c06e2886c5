use std::collections::VecDeque;
use std::fs;
use std::pin::Pin;
use std::sync::Mutex;

use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::{Reporter, Snapshot, Watcher};

/// Tells the test what it is asked to apply; fails as often as it is told to.
struct Probe {
    applied: mpsc::UnboundedSender<Vec<String>>,
    failures: VecDeque<&'static str>,
    surroundings: Arc<Mutex<Surroundings>>,
}

impl Engine for Probe {
    async fn surroundings(&mut self) -> Surroundings {
        self.surroundings.lock().expect("not poisoned").clone()
    }

    async fn apply(&mut self, plan: &Plan) -> anyhow::Result<()> {
        if let Some(failure) = self.failures.pop_front() {
            anyhow::bail!(failure);
        }
        let names = plan
            .accepted
            .peers
            .iter()
            .map(|peer| peer.name.clone())
            .collect();
        self.applied.send(names)?;
        Ok(())
    }

    fn reporter(&self) -> Arc<dyn Reporter> {
        Arc::new(Silent)
    }

    async fn stop(&mut self) {
        // The test may have gone already.
        let _ = self.applied.send(vec!["stopped".to_owned()]);
    }
}

struct Silent;

impl Reporter for Silent {
    fn snapshot(&self) -> Pin<Box<dyn Future<Output = Snapshot> + Send + '_>> {
        Box::pin(async { Snapshot::default() })
    }
}

const MESH: &str = "{apiVersion: culvert.dev/v1alpha1, kind: Mesh, metadata: {name: m}, spec: {clusterName: a, podCIDRs: [10.1.0.0/16]}}";
const PEER: &str = "{apiVersion: culvert.dev/v1alpha1, kind: Peer, metadata: {name: p}, spec: {allowedCIDRs: [10.2.0.0/16]}}";

#[tokio::test(start_paused = true)]
async fn manifests_and_surroundings_reach_the_engine() {
    let folder = TempDir::new().expect("a folder");
    let manifests = folder.path().join("manifests");
    fs::create_dir(&manifests).expect("made");
    fs::write(manifests.join("a.yaml"), format!("{MESH}\n---\n{PEER}")).expect("written");
    let state = StateFolder::open(&folder.path().join("state")).expect("opens");
    let (sender, mut applied) = mpsc::unbounded_channel();
    let surroundings = Arc::new(Mutex::new(Surroundings::default()));
    let agent = Agent {
        store: Store::new(state.key().expect("a key").public(), None),
        state: state.clone(),
        source: Watcher::new(&manifests),
        health: Arc::default(),
        board: Arc::default(),
        engine: Probe {
            applied: sender,
            failures: VecDeque::from(["not now", "nor now"]),
            surroundings: Arc::clone(&surroundings),
        },
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(run(agent, async {
        // Also a dropped sender ends the agent.
        let _ = stopped.await;
    }));
    let mut next = async || {
        timeout(Duration::from_secs(30), applied.recv())
            .await
            .expect("in time")
            .expect("running")
    };
    assert_eq!(next().await, ["p"], "after two failures");
    surroundings
        .lock()
        .expect("not poisoned")
        .connected
        .push("10.2.3.0/24".parse().expect("prefix"));
    assert!(next().await.is_empty());
    *surroundings.lock().expect("not poisoned") = Surroundings::default();
    assert_eq!(next().await, ["p"]);
    fs::write(manifests.join("a.yaml"), MESH).expect("written");
    assert!(next().await.is_empty());
    assert!(state.saved().expect("readable").is_some());
    drop(stop);
    assert_eq!(next().await, ["stopped"]);
    running.await.expect("ends");
}
