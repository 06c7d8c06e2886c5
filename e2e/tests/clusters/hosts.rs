//! A host without Kubernetes that joins by token, over an external relay that only the cluster owns.

use std::fs;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::process::{Daemon, DaemonSpec, binary};
use e2e::product;
use e2e::{
    Cluster, ClusterSpec, Clusters, Host, Lab, Profile, Relay, RelayOptions, exec, figure, wait_for,
};

use crate::scene::{A, TEST, pod, seconds};
use crate::{tell, turn};

const PATIENCE: Duration = Duration::from_secs(60);
const HOST: &str = "10.99.0.7";

#[test]
fn a_host_joins_with_a_token_over_an_owned_relay() -> Result<()> {
    let _turn = turn();
    let mut lab = Lab::new("host")?;
    let place = lab.relay_host()?;
    // Nobody is let in until the cluster's identity is known.
    let admit = RelayOptions {
        admit: Some(vec!["# nobody yet".to_owned()]),
        ..RelayOptions::default()
    };
    let relay = Relay::start(&lab, &place, admit)?;
    let machine = lab.public_host()?;
    let specs = [ClusterSpec::new("a", Profile::PortRestricted)];
    let mut clusters = Clusters::up(&mut lab, &specs)?;
    tell(&clusters);
    product::load(&mut clusters)?;
    let cluster = &clusters.all()[0];
    cluster.namespace(TEST)?;
    let node = cluster.node(1)?.name();
    let own: IpAddr = cluster
        .run(TEST, &pod(node), Some(node), &["echo"])?
        .parse()?;
    let url = format!("externalRelays[0].url={}", relay.url());
    product::install(cluster, &[&format!("mesh.clusterName={A}"), &url], None)?;
    relay.admit(&lab, &[product::identity(cluster)?])?;
    product::await_ready(cluster, &["mesh", "default"], PATIENCE)?;
    let start = Instant::now();
    let agent = join(&lab, cluster, &machine)?;
    let echo = echo_on(&lab, cluster, &machine)?;
    product::first_ping(cluster, (TEST, &pod(node)), HOST.parse()?, PATIENCE)?;
    seconds("invite, join and the first ping to the host", start);
    let mut fetch = machine.ns.command(cluster.program("podtool"));
    fetch.args(["get", "-t", "2", &format!("http://{own}:8080/")]);
    let page = exec::output(fetch)?;
    ensure!(page.contains(&format!("from={HOST}:")), "{page}");
    wait_for(PATIENCE, "the cluster shows the host as Ready", || {
        let (status, reason, message) = cluster.condition(&["peer", "db1"], "Ready")?;
        ensure!(status == "True", "{reason}: {message}");
        Ok(())
    })?;
    figure("peers", cluster.kubectl(&["get", "peers"])?);
    drop((agent, echo));
    drop(clusters);
    drop(relay);
    lab.finish()
}

/// What a person does on the host: a token from a file, `join`, then the agent as a service.
fn join(lab: &Lab, cluster: &Cluster, machine: &Host) -> Result<Daemon> {
    let state = lab.folder().join("host-state");
    let state = state.display().to_string();
    let token = lab.folder().join("host-token");
    fs::write(&token, product::plugin(cluster, &["invite", "--host"])?)?;
    let file = token.display().to_string();
    let address = format!("{HOST}/32");
    let agent = binary("culvert-agent")?;
    let mut join = machine.ns.command(&agent);
    join.args(["join", "--token-file", &file, "--state", &state]);
    join.args(["--name", "db1", "--address", &address]);
    figure("join", exec::output(join)?);
    Daemon::start(&DaemonSpec {
        ns: machine.ns.clone(),
        program: agent,
        arguments: ["run", "--state", &state].map(str::to_owned).to_vec(),
        log: lab.folder().join("logs/host-agent.log"),
        keep: false,
    })
}

fn echo_on(lab: &Lab, cluster: &Cluster, machine: &Host) -> Result<Daemon> {
    Daemon::start(&DaemonSpec {
        ns: machine.ns.clone(),
        program: cluster.program("podtool"),
        arguments: vec!["echo".to_owned()],
        log: lab.folder().join("logs/host-echo.log"),
        keep: false,
    })
}
