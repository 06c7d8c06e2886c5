//! Real Kubernetes clusters behind routers.
//!
//! A pair of clusters takes 1.6 GiB and both processors for some 15 s, so the tests take turns.

use std::sync::{Mutex, MutexGuard, PoisonError};

use e2e::{Clusters, figure};

mod exposure;
mod harness;
mod hosts;
mod images;
mod ingress;
mod joining;
mod lasting;
mod linked;
mod scene;
mod server;

/// One test with clusters at a time, whatever number of threads the tests have.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tell(clusters: &Clusters) {
    for one in clusters.milestones() {
        let seconds = one.after.as_secs_f32();
        figure(
            &format!("{}: {}", one.cluster, one.what),
            format!("{seconds:.1} s"),
        );
    }
}
