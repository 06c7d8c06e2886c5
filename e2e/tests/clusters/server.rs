//! An API server alone.

use std::time::Instant;

use anyhow::Result;
use e2e::{ApiServer, Lab, figure};

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
