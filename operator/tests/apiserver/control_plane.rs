//! etcd and an API server on loopback, and nothing else of a cluster.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair,
};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::operator::NAMESPACE;

/// How long the API server may take to come up.
const PATIENCE: Duration = Duration::from_secs(90);
/// ServiceAccounts of the chart that run what is tested here.
const ACCOUNTS: [&str; 2] = ["culvert-operator", "culvert-cleanup"];

/// A running control plane; ends with this.
pub(crate) struct ControlPlane {
    processes: Vec<Child>,
    folder: TempDir,
}

impl ControlPlane {
    /// Starts one from the binaries in `bin`, and waits until it answers.
    pub(crate) async fn start(bin: &Path) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("culvert-operator-test-")
            .tempdir()
            .expect("a folder");
        let mut plane = Self {
            processes: Vec::new(),
            folder,
        };
        let [client, peer, secure] = free_ports();
        plane.make_keys(secure);
        plane.spawn(bin, "etcd", &etcd(plane.folder.path(), client, peer));
        plane.spawn(
            bin,
            "kube-apiserver",
            &apiserver(plane.folder.path(), client, secure),
        );
        plane.wait().await;
        plane
    }

    /// The kubeconfig of somebody who may do everything.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// The kubeconfig of a ServiceAccount in the operators' namespace, which may do what its roles say.
    pub(crate) fn kubeconfig_of(&self, account: &str) -> PathBuf {
        self.folder.path().join(account)
    }

    /// Renders templates of the chart, and applies what comes of them.
    pub(crate) fn apply_chart(&self, bin: &Path, templates: &[&str]) {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/culvert");
        let mut helm = Command::new(bin.join("helm"));
        helm.args(["template", "culvert", "--namespace", NAMESPACE])
            .args(["--set", "mesh.clusterName=berlin"])
            .args(templates.iter().flat_map(|name| ["--show-only", name]))
            .arg(chart);
        for home in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            helm.env(home, self.folder.path());
        }
        self.write("chart.yaml", &stdout(helm));
        let mut kubectl = Command::new(bin.join("kubectl"));
        kubectl
            .env("KUBECONFIG", self.kubeconfig())
            .args(["apply", "--server-side", "--filename"])
            .arg(self.folder.path().join("chart.yaml"));
        stdout(kubectl);
    }

    /// A client that may do everything.
    pub(crate) async fn client(&self) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig()).expect("a kubeconfig");
        let config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        Client::try_from(config.expect("a configuration")).expect("a client")
    }

    fn spawn(&mut self, bin: &Path, name: &str, arguments: &[String]) {
        let log =
            std::fs::File::create(self.folder.path().join(format!("{name}.log"))).expect("a log");
        let child = Command::new(bin.join(name))
            .args(arguments)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn();
        self.processes
            .push(child.unwrap_or_else(|error| panic!("{name}: {error}")));
    }

    async fn wait(&self) {
        let (client, deadline) = (self.client().await, Instant::now() + PATIENCE);
        let ready = || http_get("/readyz");
        while client.request_text(ready()).await.is_err() {
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(self.folder.path().join("kube-apiserver.log"));
                let log = log.unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(20).collect();
                panic!("the API server does not come up: {tail:#?}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn make_keys(&self, port: u16) {
        let authority = KeyPair::generate().expect("a key");
        let params = authority_params();
        let certificate = params.self_signed(&authority).expect("a certificate").pem();
        let issuer = Issuer::new(params, authority);
        let server = leaf(
            "kube-apiserver",
            None,
            vec!["127.0.0.1".to_owned()],
            &issuer,
        );
        let admin = leaf("admin", Some("system:masters"), Vec::new(), &issuer);
        let accounts = KeyPair::generate().expect("a key");
        self.write("ca.crt", &certificate);
        self.write("server.crt", &server.0);
        self.write("server.key", &server.1);
        self.write("sa.key", &accounts.serialize_pem());
        self.write("sa.pub", &accounts.public_key_pem());
        self.write("kubeconfig", &kubeconfig(port, &certificate, &admin));
        for account in ACCOUNTS {
            let user = format!("system:serviceaccount:{NAMESPACE}:{account}");
            let user = leaf(&user, None, Vec::new(), &issuer);
            self.write(account, &kubeconfig(port, &certificate, &user));
        }
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).expect("writes");
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for child in &mut self.processes {
            // A process that has ended already needs no more.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A request without body.
pub(crate) fn http_get(path: &str) -> http::Request<Vec<u8>> {
    http::Request::get(path)
        .body(Vec::new())
        .expect("a request")
}

/// Runs a program that must end well.
fn stdout(mut command: Command) -> String {
    let output = command.output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

fn free_ports() -> [u16; 3] {
    let held = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
    held.map(|listener| listener.local_addr().expect("an address").port())
}

fn etcd(folder: &Path, client: u16, peer: u16) -> Vec<String> {
    let data = folder.join("etcd");
    [
        "--name=e".to_owned(),
        format!("--data-dir={}", data.display()),
        format!("--listen-client-urls=http://127.0.0.1:{client}"),
        format!("--advertise-client-urls=http://127.0.0.1:{client}"),
        format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
        format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
        format!("--initial-cluster=e=http://127.0.0.1:{peer}"),
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ]
    .into()
}

fn apiserver(folder: &Path, etcd: u16, port: u16) -> Vec<String> {
    let file = |name: &str| folder.join(name).display().to_string();
    [
        format!("--etcd-servers=http://127.0.0.1:{etcd}"),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={port}"),
        "--endpoint-reconciler-type=none".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        "--authorization-mode=RBAC".to_owned(),
        format!("--cert-dir={}", file("certs")),
        format!("--client-ca-file={}", file("ca.crt")),
        format!("--tls-cert-file={}", file("server.crt")),
        format!("--tls-private-key-file={}", file("server.key")),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", file("sa.pub")),
        format!("--service-account-signing-key-file={}", file("sa.key")),
        "--profiling=false".to_owned(),
    ]
    .into()
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.distinguished_name = name("test", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

/// Certificate and key, in PEM.
fn leaf(
    common: &str,
    group: Option<&str>,
    names: Vec<String>,
    issuer: &Issuer<'_, KeyPair>,
) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(names).expect("parameters");
    params.distinguished_name = name(common, group);
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let certificate = params.signed_by(&key, issuer).expect("a certificate");
    (certificate.pem(), key.serialize_pem())
}

fn name(common: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name
}

fn kubeconfig(port: u16, authority: &str, (certificate, key): &(String, String)) -> String {
    let base64 = |text: &str| STANDARD.encode(text);
    serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {
            "server": format!("https://127.0.0.1:{port}"), "certificate-authority-data": base64(authority)}}],
        "users": [{"name": "admin", "user": {
            "client-certificate-data": base64(certificate), "client-key-data": base64(key)}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
    })
    .to_string()
}
