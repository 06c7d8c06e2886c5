//! Two clusters with the product's images on every node, a relay on a public host, and a pod of the tests on each node.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::product::{self, NAMESPACE};
use e2e::{Cluster, ClusterSpec, Clusters, Host, HostDump, Lab, Relay, RelayOptions, exec, figure};
use serde_json::Value;

use crate::tell;

/// The namespace of the tests' pods.
pub(crate) const TEST: &str = "test";
/// What the clusters are called in the mesh.
pub(crate) const A: &str = "berlin";
/// See [`A`].
pub(crate) const B: &str = "tokyo";

pub(crate) struct Scene {
    pub(crate) lab: Lab,
    pub(crate) relay: Relay,
    pub(crate) clusters: Clusters,
    pub(crate) dumps: Vec<(String, HostDump)>,
}

impl Scene {
    pub(crate) fn new(name: &str, specs: &[ClusterSpec]) -> Result<Self> {
        let mut lab = Lab::new(name)?;
        let host: Host = lab.relay_host()?;
        let relay = Relay::start(&lab, &host, RelayOptions::default())?;
        let mut clusters = Clusters::up(&mut lab, specs)?;
        tell(&clusters);
        product::load(&mut clusters)?;
        for cluster in clusters.all() {
            cluster.namespace(TEST)?;
            for node in cluster.nodes() {
                cluster.run(TEST, &pod(node.name()), Some(node.name()), &["echo"])?;
            }
        }
        let mut scene = Self {
            lab,
            relay,
            clusters,
            dumps: Vec::new(),
        };
        scene.dumps = scene.dump()?;
        Ok(scene)
    }

    pub(crate) fn a(&self) -> &Cluster {
        &self.clusters.all()[0]
    }

    pub(crate) fn b(&self) -> &Cluster {
        &self.clusters.all()[1]
    }

    /// What there is on every node of what the product must not leave behind.
    pub(crate) fn dump(&self) -> Result<Vec<(String, HostDump)>> {
        let nodes = self.clusters.all().iter().flat_map(Cluster::nodes);
        nodes
            .map(|node| {
                let dump = HostDump::take(Some(node.netns()), &[])?;
                Ok((node.name().to_owned(), dump))
            })
            .collect()
    }

    /// `helm install` on A, an invite, `helm install` on B. Returns when the token and all of B's agents were there.
    pub(crate) fn link(&self) -> Result<Instant> {
        self.link_with(&[])
    }

    /// The same with more values for A.
    pub(crate) fn link_with(&self, more: &[String]) -> Result<Instant> {
        let values = [self.values(A), more.to_vec()].concat();
        product::install(self.a(), &as_strs(&values), None)?;
        product::await_ready(self.a(), &["mesh", "default"], Duration::from_secs(90))?;
        let token = product::plugin(self.a(), &["invite"])?;
        product::install(self.b(), &as_strs(&self.values(B)), Some(&token))?;
        self.b().await_rollout(NAMESPACE, product::AGENTS)?;
        Ok(Instant::now())
    }

    /// What a cluster's release is installed with. The ranges are given, so that nodes may come later.
    pub(crate) fn values(&self, name: &str) -> Vec<String> {
        let cluster = if name == A { self.a() } else { self.b() };
        let mut values = vec![
            format!("mesh.clusterName={name}"),
            format!("mesh.podCIDRs[0]={}", cluster.pods()),
        ];
        if name == A {
            values.push(format!("externalRelays[0].url={}", self.relay.url()));
        }
        values
    }

    /// Work in all clusters, side by side.
    pub(crate) fn in_each(&self, work: impl Fn(&Cluster) -> Result<()> + Sync) -> Result<()> {
        thread::scope(|scope| {
            let clusters = self.clusters.all().iter();
            let started: Vec<_> = clusters
                .map(|cluster| scope.spawn(|| work(cluster)))
                .collect();
            let mut ended = started.into_iter().map(|one| {
                one.join()
                    .unwrap_or_else(|cause| std::panic::resume_unwind(cause))
            });
            ended.try_for_each(|result| result)
        })
    }

    /// `helm uninstall` in both, after which every node is as it was before the product came.
    pub(crate) fn remove_without_a_trace(&self) -> Result<()> {
        self.in_each(|cluster| {
            let start = Instant::now();
            product::uninstall(cluster)?;
            seconds(&format!("{}: removed", cluster.name()), start);
            Ok(())
        })?;
        let after = self.dump()?;
        for ((node, before), (_, after)) in self.dumps.iter().zip(&after) {
            let changes = after.diff(before);
            ensure!(changes.is_empty(), "{node} is not as it was:\n{changes}");
        }
        for node in self.clusters.all().iter().flat_map(Cluster::nodes) {
            let mut state = node.command("sh")?;
            state.args(["-c", "test ! -e /var/lib/culvert"]);
            exec::output(state).with_context(|| format!("{}: files are left", node.name()))?;
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<()> {
        for cluster in self.clusters.all() {
            let complaints = cluster.complaints()?;
            ensure!(complaints.is_empty(), "{complaints:#?}");
        }
        drop(self.clusters);
        drop(self.relay);
        self.lab.finish()
    }
}

pub(crate) fn as_strs(values: &[String]) -> Vec<&str> {
    values.iter().map(String::as_str).collect()
}

/// The name of the test's pod on a node.
pub(crate) fn pod(node: &str) -> String {
    format!("echo-{node}")
}

/// The test's pod on a node, and its address.
pub(crate) fn pod_on(cluster: &Cluster, node: u8) -> Result<(String, IpAddr)> {
    let pod = pod(cluster.node(node)?.name());
    let address = cluster.pod_ip(TEST, &pod)?;
    Ok((pod, address.parse()?))
}

/// Each side's pod gets a page of the other's, which has seen the pod's own address.
pub(crate) fn pods_see_each_other(scene: &Scene) -> Result<()> {
    for (from, to) in [(scene.a(), scene.b()), (scene.b(), scene.a())] {
        let ((pod, own), (_, target)) = (pod_on(from, 1)?, pod_on(to, 1)?);
        let page = from.fetch(TEST, &pod, &format!("http://{target}:8080/"))?;
        ensure!(page.contains(&format!("from={own}:")), "{page}");
    }
    Ok(())
}

/// A pod that asks another a hundred times a second.
pub(crate) struct Pinger {
    name: String,
}

impl Pinger {
    /// Starts on a node, for so many seconds.
    pub(crate) fn start(
        cluster: &Cluster,
        (node, name): (u8, &str),
        to: IpAddr,
        seconds: u64,
    ) -> Result<Self> {
        let count = (seconds * 100).to_string();
        let target = format!("{to}:8080");
        let words = ["ping", "-n", &count, "-i", "10", &target];
        let manifest = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": TEST},
            "spec": {
                "nodeName": cluster.node(node)?.name(),
                "restartPolicy": "Never",
                "containers": [{"name": "tool", "image": e2e::cluster::PODTOOL, "args": words}],
            },
        });
        cluster.apply(&manifest.to_string())?;
        let pod = format!("pod/{name}");
        cluster.kubectl(&[
            "-n",
            TEST,
            "wait",
            "--for=condition=Ready",
            &pod,
            "--timeout=30s",
        ])?;
        Ok(Self {
            name: name.to_owned(),
        })
    }

    /// Waits for its end: how many questions had no answer, and the longest time without one, in seconds.
    pub(crate) fn report(&self, cluster: &Cluster, patience: Duration) -> Result<(u64, f64)> {
        let (pod, timeout) = (
            format!("pod/{}", self.name),
            format!("--timeout={}s", patience.as_secs()),
        );
        let done = "--for=jsonpath={.status.phase}=Succeeded";
        cluster.kubectl(&["-n", TEST, "wait", done, &pod, &timeout])?;
        let text = cluster.kubectl(&["-n", TEST, "logs", &self.name])?;
        let report: Value = serde_json::from_str(text.trim())?;
        let number = |key| report.get(key).and_then(Value::as_u64).context("a number");
        let (sent, received) = (number("sent")?, number("received")?);
        let gap = report.get("gapMillis").and_then(Value::as_f64);
        let gap = gap.context("a gap")? / 1000.0;
        figure(
            &format!("pinger {}", self.name),
            format!(
                "{sent} asked, {} lost, longest gap {gap:.2} s",
                sent - received
            ),
        );
        Ok((sent - received, gap))
    }
}

pub(crate) fn seconds(what: &str, since: Instant) {
    figure(what, format!("{:.1} s", since.elapsed().as_secs_f32()));
}
