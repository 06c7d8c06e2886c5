//! One node: containerd, kubelet and kube-proxy in a machine of its own.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::ClusterSpec;
use super::grounds::Grounds;
use super::kit::{Kit, PAUSE};
use super::machine::{Machine, MachineSpec, Step};
use super::network::Network;
use super::pki::Pki;
use crate::exec;
use crate::namespace::Namespace;
use crate::site::nth;

const SOCKET: &str = "/run/containerd/containerd.sock";
const CONFIG: &str = "/etc/kubernetes";

/// What the kubelet sets for the whole machine, although it only looks after a namespace here. It leaves alone what has the
/// value already, so its own view of `/proc/sys` gets files that have.
const SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// A node of a cluster.
#[derive(Debug)]
pub struct Node {
    pub(super) number: u8,
    name: String,
    ns: Namespace,
    address: Ipv4Addr,
    pods: Ipv4Net,
    folder: PathBuf,
    machine: Machine,
}

/// What a node needs to know about its cluster to start.
pub(super) struct Surroundings<'a> {
    pub(super) grounds: &'a Grounds,
    pub(super) kit: &'a Kit,
    pub(super) network: &'a Network,
    pub(super) pki: &'a Pki,
    pub(super) spec: &'a ClusterSpec,
    /// Archives of images that it has from the start.
    pub(super) images: &'a [PathBuf],
}

impl Node {
    /// Its name as an object.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace. Its interfaces are `eth0` and `cni0`. It is another one after a restart, with the same name.
    pub fn netns(&self) -> &Namespace {
        &self.ns
    }

    /// Its address on the LAN.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The prefix of its pods.
    pub fn pods(&self) -> Ipv4Net {
        self.pods
    }

    /// The folder that holds, outside, what the node sees as a folder of `/var/lib`, such as an agent's state.
    pub fn state(&self, name: &str) -> PathBuf {
        self.folder.join("lib/upper").join(name)
    }

    /// The folder with the logs of its pods.
    pub fn pod_logs(&self) -> PathBuf {
        self.folder.join("log/pods")
    }

    /// A command on the node, which sees the node's files, processes and networks.
    pub fn command(&self, program: impl AsRef<Path>) -> Result<Command> {
        self.machine.command(program)
    }

    /// Loads an image's archive.
    pub fn load(&self, archive: &Path) -> Result<()> {
        let mut command = self.command("ctr")?;
        command.args(["-a", SOCKET, "-n", "k8s.io", "images", "import"]);
        command.arg(archive);
        exec::output(command).map(drop)
    }

    /// Boots a node. Its state on disk, if there is some, is that of a node of the same number that was switched off.
    pub(super) fn start(number: u8, around: &Surroundings<'_>) -> Result<Self> {
        let name = format!("{}-{number}", around.network.name);
        let ns = around.network.add_node(around.grounds, number)?;
        let folder = around.grounds.folder.join("nodes").join(&name);
        configure(number, &name, &folder, around)?;
        let address = around.network.node(number)?;
        let spec = machine(&name, address, &folder, around);
        let machine = Machine::start(&ns, &spec, &folder, around.grounds.keep)?;
        Ok(Self {
            number,
            name,
            ns,
            address,
            pods: around.network.node_pods(number)?,
            folder,
            machine,
        })
    }

    /// Ends all processes, and removes the namespace with every link and rule.
    pub(super) fn stop(&mut self, network: &Network) -> Result<()> {
        self.machine.kill()?;
        network.unplug(self.number)?;
        let mut command = Command::new("ip");
        command.args(["netns", "del", self.ns.name()]);
        exec::output(command).map(drop)
    }

    pub(super) fn ensure_running(&mut self) -> Result<()> {
        self.machine.ensure_running()
    }
}

/// The object that stands for a node, made before the node: its prefix is then known before anything starts.
pub(super) fn object(network: &Network, spec: &ClusterSpec, number: u8) -> Result<Value> {
    let pods = network.node_pods(number)?.to_string();
    let spec = match spec.node_ranges {
        true => json!({"podCIDR": pods, "podCIDRs": [pods]}),
        false => json!({}),
    };
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": format!("{}-{number}", network.name)},
        "spec": spec,
    }))
}

fn machine(name: &str, address: Ipv4Addr, folder: &Path, around: &Surroundings<'_>) -> MachineSpec {
    let path = |name: &str| folder.join(name);
    let mut binds: Vec<_> = [
        ("kubelet", "/var/lib/kubelet"),
        ("containerd", "/var/lib/containerd"),
        ("log", "/var/log"),
    ]
    .map(|(own, seen)| (path(own), PathBuf::from(seen)))
    .to_vec();
    let setting =
        |(key, _): (&str, &str)| (path("settings").join(key), Path::new("/proc/sys").join(key));
    binds.extend(SETTINGS.map(setting));
    MachineSpec {
        name: name.to_owned(),
        group: around.grounds.group(name),
        logs: around.grounds.folder.join("logs"),
        programs: around.kit.programs(),
        overlays: vec![
            ("/etc".into(), path("etc")),
            ("/var/lib".into(), path("lib")),
        ],
        binds,
        steps: steps(around.images, address),
    }
}

/// No pod may start before the images are there: the kubelet would wait long before it looked again.
fn steps(images: &[PathBuf], address: Ipv4Addr) -> Vec<Step> {
    let own = |words: String| {
        words
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let config = format!("containerd --config={CONFIG}/containerd.toml");
    let mut steps = vec![
        Step::daemon("containerd", own(config)),
        Step::until(["ctr", "-a", SOCKET, "version"]),
    ];
    steps.extend(images.iter().map(|image| {
        let image = image.display().to_string();
        Step::until([
            "ctr", "-a", SOCKET, "-n", "k8s.io", "images", "import", &image,
        ])
    }));
    steps.extend([
        Step::daemon(
            "kubelet",
            own(format!(
                "kubelet --config={CONFIG}/kubelet.json --kubeconfig={CONFIG}/kubelet.conf --node-ip={address}"
            )),
        ),
        Step::daemon(
            "kube-proxy",
            own(format!("kube-proxy --config={CONFIG}/kube-proxy.json")),
        ),
    ]);
    steps
}

fn configure(number: u8, name: &str, folder: &Path, around: &Surroundings<'_>) -> Result<()> {
    let network = around.network;
    let (etc, cni) = (
        folder.join("etc/upper/kubernetes"),
        folder.join("etc/upper/cni/net.d"),
    );
    for inner in [
        &etc,
        &cni,
        &folder.join("kubelet"),
        &folder.join("containerd"),
        &folder.join("log/pods"),
    ] {
        fs::create_dir_all(inner)?;
    }
    for (key, value) in SETTINGS {
        let path = folder.join("settings").join(key);
        fs::create_dir_all(path.parent().context("a folder of settings")?)?;
        fs::write(path, value)?;
    }
    let write = |name: &str, value: Value| -> Result<()> {
        Ok(fs::write(etc.join(name), value.to_string())?)
    };
    write("kubelet.json", kubelet(number, name, network)?)?;
    write("kube-proxy.json", kube_proxy(name, around))?;
    fs::write(etc.join("containerd.toml"), containerd())?;
    fs::write(
        etc.join("resolv.conf"),
        format!("nameserver {}\n", nth(network.lan, 1)?),
    )?;
    fs::write(
        cni.join("10-bridge.conflist"),
        bridge(network.node_pods(number)?).to_string(),
    )?;
    credentials(name, &etc, around)
}

fn credentials(name: &str, etc: &Path, around: &Surroundings<'_>) -> Result<()> {
    let url = format!(
        "https://{}:{}",
        around.network.control()?,
        super::control::PORT
    );
    let user = format!("system:node:{name}");
    for (file, user, group) in [
        ("kubelet", user.as_str(), Some("system:nodes")),
        ("kube-proxy", "system:kube-proxy", None),
    ] {
        let made =
            around
                .pki
                .kubeconfig(&format!("{file}-{name}"), "cluster", &url, (user, group))?;
        fs::copy(made, etc.join(format!("{file}.conf")))?;
    }
    fs::copy(around.pki.path("ca.crt"), etc.join("ca.crt"))?;
    Ok(())
}

fn kubelet(number: u8, name: &str, network: &Network) -> Result<Value> {
    Ok(json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": format!("{CONFIG}/ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "address": network.node(number)?.to_string(),
        "clusterDNS": [nth(network.services, 10)?.to_string()],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
        "resolvConf": format!("{CONFIG}/resolv.conf"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": "/",
        "enforceNodeAllocatable": [],
        "failCgroupV1": false,
        "failSwapOn": false,
        // The disk is everybody's; that it is full is not for a node to act on.
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "kubeAPIBurst": 200,
        "kubeAPIQPS": 100,
        "maxPods": 100,
        "nodeStatusUpdateFrequency": "4s",
        "registryPullQPS": 0,
        "serializeImagePulls": false,
        "syncFrequency": "10s",
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "volumeStatsAggPeriod": "10m",
        "registerNode": true,
        "nodeLeaseDurationSeconds": 12,
        "providerID": format!("lab://{name}"),
    }))
}

/// Connection tracking keeps the namespace's own settings.
fn kube_proxy(name: &str, around: &Surroundings<'_>) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": around.spec.proxy.name(),
        "hostnameOverride": name,
        "clientConnection": {"kubeconfig": format!("{CONFIG}/kube-proxy.conf")},
        "clusterCIDR": around.network.pods.to_string(),
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        "iptables": {"localhostNodePorts": false, "minSyncPeriod": "100ms"},
        "nftables": {"minSyncPeriod": "100ms"},
    })
}

/// The plugin's own masquerade would also take the source from packets to the other nodes' pods.
fn bridge(pods: Ipv4Net) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isDefaultGateway": true,
                "hairpinMode": true,
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni",
                    "ranges": [[{"subnet": pods.to_string()}]],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

/// For containerd 1.6 and 1.7. Without CAP_SYS_RESOURCE no process may be made less likely to be killed than its parent.
fn containerd() -> String {
    format!(
        r#"version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_hugetlb_controller = true
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
"#
    )
}
