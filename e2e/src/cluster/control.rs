//! The control plane's programs and their flags.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use ipnet::Ipv4Net;

use super::Kubectl;
use super::grounds::Grounds;
use super::kit::Kit;
use super::machine::{MachineSpec, Step};
use super::pki::Pki;
use crate::namespace::Namespace;
use crate::site::nth;

/// The API server's port.
pub(super) const PORT: u16 = 6443;
const LOCAL: &str = "https://127.0.0.1:6443";

/// What an API server is told about its cluster.
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// The cluster's name.
    pub(super) name: String,
    /// Where nodes and pods find it.
    pub(super) address: Ipv4Addr,
    /// Where those who look after it find it.
    pub(super) management: Ipv4Addr,
    /// The range of services.
    pub(super) services: Ipv4Net,
    /// Where it keeps its state.
    pub(super) folder: PathBuf,
}

impl Server {
    /// Makes its folder and certificates.
    pub(super) fn prepare(&self) -> Result<Pki> {
        fs::create_dir_all(&self.folder)?;
        let mut names: Vec<_> = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
            "127.0.0.1",
        ]
        .map(str::to_owned)
        .to_vec();
        let addresses = [self.address, self.management, nth(self.services, 1)?];
        names.extend(addresses.map(|ip| ip.to_string()));
        Pki::create(&self.folder.join("pki"), &names)
    }

    /// How an administrator in `ns` reaches it.
    pub(super) fn kubectl(
        &self,
        ns: &Namespace,
        pki: &Pki,
        kit: &Kit,
        folder: &Path,
    ) -> Result<Kubectl> {
        let url = format!("https://{}:{PORT}", self.management);
        let user = ("kubernetes-admin", Some("system:masters"));
        Ok(Kubectl {
            ns: ns.clone(),
            kit: kit.clone(),
            kubeconfig: pki.kubeconfig("admin", &self.name, &url, user)?,
            home: folder.join("home"),
            url,
        })
    }

    /// etcd and the API server.
    pub(super) fn steps(&self, pki: &Pki) -> Vec<Step> {
        vec![
            Step::daemon("etcd", words(&etcd(&self.folder.join("etcd")))),
            Step::daemon("kube-apiserver", words(&self.api_server(pki))),
        ]
    }

    /// The programs that need an API server, and end without one.
    pub(super) fn controllers(&self, pki: &Pki, pods: Ipv4Net) -> Result<Vec<Step>> {
        let ready = format!("{LOCAL}/readyz");
        Ok(vec![
            Step::until(["podtool", "get", "-k", "-t", "1", &ready]),
            Step::daemon("kube-controller-manager", words(&manager(pki, pods)?)),
            Step::daemon("kube-scheduler", words(&scheduler(pki)?)),
        ])
    }

    pub(super) fn machine(&self, grounds: &Grounds, kit: &Kit, steps: Vec<Step>) -> MachineSpec {
        let name = format!("control-{}", self.name);
        MachineSpec {
            group: grounds.group(&name),
            name,
            logs: grounds.folder.join("logs"),
            programs: kit.programs(),
            overlays: Vec::new(),
            binds: Vec::new(),
            steps,
        }
    }

    fn api_server(&self, pki: &Pki) -> String {
        let file = |name: &str| pki.path(name).display().to_string();
        format!(
            "kube-apiserver
            --etcd-servers=http://127.0.0.1:2379
            --secure-port={PORT}
            --advertise-address={address}
            --service-cluster-ip-range={services}
            --cert-dir={folder}/apiserver
            --client-ca-file={ca}
            --tls-cert-file={certificate}
            --tls-private-key-file={key}
            --kubelet-client-certificate={kubelet_certificate}
            --kubelet-client-key={kubelet_key}
            --kubelet-preferred-address-types=InternalIP
            --service-account-issuer=https://kubernetes.default.svc.cluster.local
            --service-account-key-file={accounts_public}
            --service-account-signing-key-file={accounts}
            --authorization-mode=Node,RBAC
            --enable-admission-plugins=NodeRestriction
            --allow-privileged=true
            --enable-aggregator-routing=true
            --requestheader-client-ca-file={front_ca}
            --requestheader-allowed-names=front-proxy-client
            --requestheader-username-headers=X-Remote-User
            --requestheader-group-headers=X-Remote-Group
            --requestheader-extra-headers-prefix=X-Remote-Extra-
            --proxy-client-cert-file={front_certificate}
            --proxy-client-key-file={front_key}
            --profiling=false",
            address = self.address,
            services = self.services,
            folder = self.folder.display(),
            ca = file("ca.crt"),
            certificate = file("server.crt"),
            key = file("server.key"),
            kubelet_certificate = file("kubelet-client.crt"),
            kubelet_key = file("kubelet-client.key"),
            accounts_public = file("accounts.pub"),
            accounts = file("accounts.key"),
            front_ca = file("front-proxy-ca.crt"),
            front_certificate = file("front-proxy-client.crt"),
            front_key = file("front-proxy-client.key"),
        )
    }
}

fn etcd(data: &Path) -> String {
    // Nothing of a test has to survive a crash of the machine that runs it.
    format!(
        "etcd --name=only --data-dir={} --unsafe-no-fsync --log-level=warn
        --listen-client-urls=http://127.0.0.1:2379
        --advertise-client-urls=http://127.0.0.1:2379
        --listen-peer-urls=http://127.0.0.1:2380
        --initial-advertise-peer-urls=http://127.0.0.1:2380
        --initial-cluster=only=http://127.0.0.1:2380
        --heartbeat-interval=500 --election-timeout=2500",
        data.display()
    )
}

/// Nodes come with their prefixes, so nothing is left to allocate.
fn manager(pki: &Pki, pods: Ipv4Net) -> Result<String> {
    let config = component(pki, "kube-controller-manager")?;
    let file = |name: &str| pki.path(name).display().to_string();
    Ok(format!(
        "kube-controller-manager {config}
        --service-account-private-key-file={accounts}
        --root-ca-file={ca}
        --cluster-signing-cert-file={ca}
        --cluster-signing-key-file={key}
        --use-service-account-credentials=true
        --allocate-node-cidrs=false
        --cluster-cidr={pods}
        --node-monitor-period=2s
        --node-monitor-grace-period=16s",
        accounts = file("accounts.key"),
        ca = file("ca.crt"),
        key = file("ca.key"),
    ))
}

fn scheduler(pki: &Pki) -> Result<String> {
    Ok(format!(
        "kube-scheduler {}",
        component(pki, "kube-scheduler")?
    ))
}

fn component(pki: &Pki, name: &str) -> Result<String> {
    let user = format!("system:{name}");
    let config = pki.kubeconfig(name, "local", LOCAL, (&user, None))?;
    let config = config.display();
    Ok(format!(
        "--kubeconfig={config} --authentication-kubeconfig={config} --authorization-kubeconfig={config}
        --leader-elect=false"
    ))
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}
