//! The clusters of the lab are real, are apart from each other, and leave nothing behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{
    Cluster, ClusterSpec, Clusters, Firewall, HostDump, Lab, Masquerade, Profile, Proxy, exec,
    figure, wait_for,
};

use crate::{tell, turn};

const TEST: &str = "test";
/// What kubelets would set for the whole machine.
const SETTINGS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// What a machine-wide trace of clusters would show up in.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    mounts: Vec<String>,
    settings: BTreeMap<&'static str, String>,
    folders: Vec<&'static str>,
}

impl Traces {
    fn now() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let setting = |key| Ok((key, fs::read_to_string(Path::new("/proc/sys").join(key))?));
        let folders = [
            "/var/lib/kubelet",
            "/etc/kubernetes",
            "/etc/cni/net.d/10-bridge.conflist",
            "/run/containerd/containerd.sock",
            "/var/log/pods",
        ];
        Ok(Self {
            mounts: mounts
                .lines()
                .filter(|line| !line.contains("/run/netns"))
                .map(str::to_owned)
                .collect(),
            settings: SETTINGS.into_iter().map(setting).collect::<Result<_>>()?,
            folders: folders
                .into_iter()
                .filter(|path| Path::new(path).exists())
                .collect(),
        })
    }
}

#[test]
fn two_clusters_are_whole_and_apart_and_leave_nothing() -> Result<()> {
    let _turn = turn();
    let (before, host) = (Traces::now()?, HostDump::take(None, &[])?);
    let mut lab = Lab::new("pair")?;
    let overlapping = "10.244.0.0/16".parse()?;
    let specs = [
        ClusterSpec::new("a", Profile::PortRestricted).nodes(2),
        ClusterSpec {
            pods: Some(overlapping),
            services: Some("10.96.0.0/16".parse()?),
            ..ClusterSpec::new("b", Profile::PortRestricted)
        },
    ];
    let mut clusters = Clusters::up(&mut lab, &specs)?;
    tell(&clusters);
    let [a, b] = clusters.all() else {
        anyhow::bail!("two clusters");
    };
    for cluster in [a, b] {
        cluster.namespace(TEST)?;
        cluster.run(TEST, "client", Some(&last(cluster)?), &["pause"])?;
        echo(cluster)?;
    }
    pods_reach_pods(a)?;
    programs_work(a)?;
    are_apart(a, b)?;
    are_apart(b, a)?;
    nodes_come_and_go(clusters.cluster("a")?)?;
    api_comes_and_goes(clusters.cluster("b")?)?;
    let census = lab.census()?;
    ensure!(
        census
            .left()
            .iter()
            .any(|line| line.starts_with("control group"))
    );
    let start = Instant::now();
    drop(clusters);
    lab.finish()?;
    figure(
        "taken down",
        format!("{:.1} s", start.elapsed().as_secs_f32()),
    );
    wait_for(Duration::from_secs(5), "nothing is left", || {
        let left = census.left();
        if left.is_empty() {
            Ok(())
        } else {
            Err(left.join(", "))
        }
    })?;
    assert_eq!(Traces::now()?, before);
    let changes = HostDump::take(None, &[])?.diff(&host);
    assert!(changes.is_empty(), "{changes}");
    Ok(())
}

fn last(cluster: &Cluster) -> Result<String> {
    Ok(cluster
        .nodes()
        .last()
        .context("no nodes")?
        .name()
        .to_owned())
}

/// A pod `echo` on the first node, behind a Service of the same name.
fn echo(cluster: &Cluster) -> Result<String> {
    let first = cluster.node(1)?.name();
    let ip = cluster.run(TEST, "echo", Some(first), &["echo"])?;
    let words = [
        "-n",
        TEST,
        "expose",
        "pod/echo",
        "--port=80",
        "--target-port=8080",
    ];
    cluster.kubectl(&words)?;
    Ok(ip)
}

/// Also from node to node nobody takes the source away.
fn pods_reach_pods(cluster: &Cluster) -> Result<()> {
    let (client, echo) = (
        cluster.pod_ip(TEST, "client")?,
        cluster.pod_ip(TEST, "echo")?,
    );
    let seen = cluster.fetch(TEST, "client", &format!("http://{echo}:8080/"))?;
    assert!(seen.contains(&format!("from={client}:")), "{seen}");
    let get = [
        "/podtool",
        "get",
        "-n",
        "20",
        "-t",
        "2",
        "http://echo.test.svc.cluster.local/",
    ];
    let seen = cluster.exec(TEST, "client", &get)?;
    assert!(seen.contains("host=echo"), "{seen}");
    let datagram = cluster.exec(
        TEST,
        "client",
        &["/podtool", "udp", &format!("{echo}:8080")],
    )?;
    assert!(datagram.contains(&format!("from={client}:")), "{datagram}");
    Ok(())
}

fn programs_work(cluster: &Cluster) -> Result<()> {
    let version = cluster.helm(&["version", "--short"])?;
    assert!(version.starts_with("v4."), "{version}");
    let denied = cluster.exec(TEST, "client", &["/podtool", "api", "/api/v1/nodes"]);
    let denied = format!("{:#}", denied.expect_err("a pod may not list nodes"));
    assert!(denied.contains("403"), "{denied}");
    Ok(())
}

/// No node of one site reaches API server, nodes or pods of the other. Its own it does.
fn are_apart(from: &Cluster, to: &Cluster) -> Result<()> {
    let echo = to.pod_ip(TEST, "echo")?;
    let url = |host: String, rest: &str| format!("https://{host}:{rest}");
    let foreign = [
        url(to.api_address()?.to_string(), "6443/readyz"),
        url(format!("10.255.0.{}", to.link().number()), "6443/readyz"),
        url(to.wan().to_string(), "6443/readyz"),
        url(to.node(1)?.address().to_string(), "10250/healthz"),
        format!("http://{echo}:8080/"),
    ];
    for target in foreign {
        assert!(
            get_on_node(from, &target).is_err(),
            "a node reaches {target}"
        );
    }
    let own = url(from.api_address()?.to_string(), "6443/readyz");
    assert_eq!(get_on_node(from, &own)?, "ok");
    Ok(())
}

fn get_on_node(cluster: &Cluster, url: &str) -> Result<String> {
    let mut command = cluster.node(1)?.command(cluster.program("podtool"))?;
    command.args(["get", "-k", "-t", "1", url]);
    exec::output(command)
}

fn nodes_come_and_go(cluster: &mut Cluster) -> Result<()> {
    let start = Instant::now();
    let added = cluster.add_node()?;
    cluster.await_nodes()?;
    figure(
        "a node added",
        format!("{:.1} s", start.elapsed().as_secs_f32()),
    );
    assert_eq!(added, 3);
    cluster.delete_node(added)?;
    let start = Instant::now();
    let links = cluster.node(1)?.netns().exec("ip", &["-o", "link"])?;
    assert!(links.contains("cni0"), "{links}");
    cluster.stop_node(1)?;
    cluster.start_node(1)?;
    let echo = cluster.pod_ip(TEST, "echo")?;
    assert!(!echo.is_empty());
    wait_for(
        Duration::from_secs(90),
        "the restarted node's pod answers",
        || {
            let ip = cluster.pod_ip(TEST, "echo")?;
            cluster.fetch(TEST, "client", &format!("http://{ip}:8080/"))
        },
    )?;
    figure(
        "a node restarted, its pod answers",
        format!("{:.1} s", start.elapsed().as_secs_f32()),
    );
    Ok(())
}

fn api_comes_and_goes(cluster: &mut Cluster) -> Result<()> {
    cluster.stop_api()?;
    let gone = cluster.kubectl(&["get", "nodes", "--request-timeout=1s"]);
    assert!(gone.is_err(), "{gone:?}");
    let start = Instant::now();
    cluster.start_api()?;
    figure(
        "API server back",
        format!("{:.1} s", start.elapsed().as_secs_f32()),
    );
    cluster.await_nodes()?;
    assert!(
        !cluster.pod_ip(TEST, "echo")?.is_empty(),
        "its state is kept"
    );
    Ok(())
}

/// Each kind of masquerade, firewall and kube-proxy that the product has to live with.
#[test]
fn other_ways_to_forward_work_too() -> Result<()> {
    let _turn = turn();
    let mut lab = Lab::new("ways")?;
    let spec = |name, masquerade| ClusterSpec::new(name, Profile::Symmetric).masquerade(masquerade);
    let specs = [
        spec("c", Masquerade::IptablesNft)
            .proxy(Proxy::Iptables)
            .forward_drop(Firewall::IptablesNft),
        spec("d", Masquerade::IptablesLegacy)
            .forward_drop(Firewall::IptablesLegacy)
            .nodes(2),
    ];
    let clusters = Clusters::up(&mut lab, &specs)?;
    tell(&clusters);
    for cluster in clusters.all() {
        cluster.namespace(TEST)?;
        cluster.run(TEST, "client", Some(&last(cluster)?), &["pause"])?;
        echo(cluster)?;
        pods_reach_pods(cluster)?;
    }
    drop(clusters);
    lab.finish()
}

/// A maker of clusters that is killed: this test again, in a process of its own.
const VICTIM: &str = "CLUSTERS_VICTIM";

#[test]
fn a_killed_run_leaves_nothing() -> Result<()> {
    if let Some(told) = std::env::var_os(VICTIM) {
        let mut lab = Lab::new("victim")?;
        let clusters = Clusters::up(&mut lab, &[ClusterSpec::new("e", Profile::Public)])?;
        let folder = lab.folder().display();
        fs::write(
            told,
            format!("{} {folder} {}.", lab.prefix(), clusters.all().len()),
        )?;
        loop {
            std::thread::park();
        }
    }
    let _turn = turn();
    let before = Traces::now()?;
    let told = std::env::temp_dir().join(format!("clusters-victim-{}", std::process::id()));
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["--exact", "harness::a_killed_run_leaves_nothing"])
        .env(VICTIM, &told)
        .stdout(Stdio::null());
    let mut victim = command.spawn()?;
    let words = wait_for(
        Duration::from_secs(120),
        "the victim's cluster is up",
        || {
            let words = fs::read_to_string(&told)?;
            ensure!(words.ends_with('.'), "half a line: {words:?}");
            Ok(words)
        },
    );
    victim.kill()?;
    victim.wait()?;
    fs::remove_file(&told)?;
    let words = words?;
    let [prefix, folder, _] = words.split(' ').collect::<Vec<_>>()[..] else {
        anyhow::bail!("{words:?}");
    };
    wait_for(Duration::from_secs(20), "everything is gone", || {
        let left = [
            named("/run/netns", prefix)?,
            named("/sys/fs/cgroup/pids", prefix)?,
        ]
        .concat();
        ensure!(left.is_empty(), "{left:?}");
        ensure!(!Path::new(folder).exists(), "the folder {folder}");
        Ok(())
    })?;
    assert_eq!(Traces::now()?, before);
    Ok(())
}

/// What a folder holds whose name begins like a lab's.
fn named(folder: &str, prefix: &str) -> Result<Vec<String>> {
    if !Path::new(folder).exists() {
        return Ok(Vec::new());
    }
    let names = fs::read_dir(folder)?.flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names
        .filter(|name| name.starts_with(prefix.trim_end_matches('-')))
        .collect())
}
