//! Two real clusters behind routers, left up for whoever wants to try the product.

use std::fs;
use std::io::{self, IsTerminal};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Screen;
use crate::cluster::{Cluster, ClusterSpec, Clusters, missing_programs};
use crate::image::PRODUCTS;
use crate::lab::{Lab, ensure_root, refuse_second_kept, take_down_kept};
use crate::process::{Relay, RelayOptions, binary};
use crate::product;
use crate::profile::Profile;
use crate::wait::wait_for;

const NAMES: [&str; 2] = ["berlin", "tokyo"];
/// Where the demo's own pods are.
const NAMESPACE: &str = "demo";
const POD: &str = "echo";
const PATIENCE: Duration = Duration::from_secs(60);

/// What to bring up.
#[derive(Clone, Debug)]
pub struct ClusterDemo {
    /// The first cluster's router.
    pub a: Profile,
    /// The second cluster's router.
    pub b: Profile,
    /// The folder with the product's images.
    pub images: PathBuf,
}

impl ClusterDemo {
    /// Brings it up and shows it on stdout. Everything is down again when any step fails.
    pub fn run(&self) -> Result<()> {
        let stdout = io::stdout();
        let colour = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let mut screen = Screen::new(Box::new(stdout), colour);
        let told = self.tell(&mut screen);
        if let Err(error) = &told {
            screen.failed(&format!("{error:#}"))?;
        }
        told
    }

    fn tell(&self, screen: &mut Screen) -> Result<()> {
        ensure_root()?;
        let missing = missing_programs();
        ensure!(
            missing.is_empty(),
            "missing: {}; run scripts/clusters.sh",
            missing.join(", ")
        );
        refuse_second_kept()?;
        let told = self.bring_up(screen);
        if told.is_err() {
            take_down_kept()?;
        }
        told
    }

    fn bring_up(&self, screen: &mut Screen) -> Result<()> {
        screen.start_clock();
        screen.title("Culvert: two Kubernetes clusters behind NAT")?;
        let mut lab = Lab::new_kept()?;
        let [a, b] = NAMES;
        let specs = [ClusterSpec::new(a, self.a), ClusterSpec::new(b, self.b)];
        screen.note("API servers, controllers, kubelets, containers and DNS, twice")?;
        let mut clusters = Clusters::up(&mut lab, &specs)?;
        for cluster in clusters.all() {
            screen.step(&introduction(cluster))?;
        }
        self.load(&mut clusters, screen)?;
        let host = lab.relay_host()?;
        let relay = Relay::start(&lab, &host, RelayOptions::default())?;
        screen.step(&format!("a relay on a public host, {}", relay.url()))?;
        let there = link(&clusters, &relay, screen)?;
        tell_what_to_try(&lab, &clusters, &there, screen)
    }

    fn load(&self, clusters: &mut Clusters, screen: &mut Screen) -> Result<()> {
        for product in PRODUCTS {
            let archive = product.archive(&self.images);
            if archive.exists() {
                clusters.load(&archive)?;
                screen.step(&format!("{} is on every node", product.image()))?;
            } else {
                screen.note(&format!("{} has not been made, left out", product.image()))?;
            }
        }
        Ok(())
    }
}

fn introduction(cluster: &Cluster) -> String {
    format!(
        "{}: pods {}, services {}, behind {}",
        cluster.name(),
        cluster.pods(),
        cluster.services(),
        cluster.wan()
    )
}

/// The three commands, and a pod of the first cluster that fetches from a pod of the second, whose address this returns.
fn link(clusters: &Clusters, relay: &Relay, screen: &mut Screen) -> Result<String> {
    let [a, b] = clusters.all() else {
        bail!("two clusters");
    };
    screen.title("Linking")?;
    let url = format!("externalRelays[0].url={}", relay.url());
    product::install(a, &[&named(a), &url], None)?;
    screen.step(&format!("{}: helm install", a.name()))?;
    product::await_ready(a, &["mesh", "default"], PATIENCE)?;
    let token = product::plugin(a, &["invite"])?;
    screen.step(&format!("{}: kubectl culvert invite", a.name()))?;
    product::install(b, &[&named(b)], Some(&token))?;
    screen.step(&format!(
        "{}: helm install --set-file join.token=...",
        b.name()
    ))?;
    let pods = [a, b]
        .map(start_pod)
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let (here, there) = (pods.first(), pods.last());
    let (here, there) = (here.context("a pod")?, there.context("a pod")?);
    let page = format!("http://{there}:8080/");
    let seen = wait_for(PATIENCE, "a pod reaches a pod", || {
        a.fetch(NAMESPACE, POD, &page)
    })?;
    ensure!(seen.contains(&format!("from={here}:")), "{seen}");
    screen.step(&format!(
        "a pod of {} fetched {page}, and the server saw {here}",
        a.name()
    ))?;
    let row = product::await_peer(a, b.name(), PATIENCE, |row| row.ready == "True")?;
    screen.step(&format!(
        "{}: Peer {} is Ready, {}",
        a.name(),
        b.name(),
        row.path
    ))?;
    screen.block(&a.kubectl(&["get", "culvert"])?)?;
    Ok(there.clone())
}

fn named(cluster: &Cluster) -> String {
    format!("mesh.clusterName={}", cluster.name())
}

/// A pod that answers with what it sees.
fn start_pod(cluster: &Cluster) -> Result<String> {
    cluster.namespace(NAMESPACE)?;
    cluster.run(NAMESPACE, POD, None, &["echo"])
}

/// Where the programs are, and what to do with them; `there` is the second cluster's pod.
fn tell_what_to_try(
    lab: &Lab,
    clusters: &Clusters,
    there: &str,
    screen: &mut Screen,
) -> Result<()> {
    screen.title("To try")?;
    let mut text = String::from("Programs that find their cluster by themselves:\n");
    for cluster in clusters.all() {
        for name in ["kubectl", "helm", "kubectl-culvert"] {
            let program = if name == "kubectl-culvert" {
                binary(name)?
            } else {
                cluster.program(name)
            };
            let script = wrapper(lab.folder(), cluster, name, &program)?;
            text.push_str(&format!("  {}\n", script.display()));
        }
    }
    text.push_str("\nTheir kubeconfigs, which work in the driver's network only:\n");
    for cluster in clusters.all() {
        text.push_str(&format!("  {}\n", cluster.kubeconfig().display()));
    }
    let first = clusters.all().first().context("no cluster")?;
    text.push_str("\nFor example:\n");
    text.push_str(&examples(lab.folder(), first, there));
    screen.block(&text)?;
    screen.block("\nmake cluster-down removes every trace.")?;
    Ok(())
}

/// Commands at a cluster, and at its pod, that reach the other cluster's pod.
fn examples(folder: &Path, cluster: &Cluster, there: &str) -> String {
    let [kubectl, plugin] = ["kubectl", "kubectl-culvert"]
        .map(|name| place(folder, cluster, name).display().to_string());
    format!(
        "  {kubectl} get culvert --output=wide\n  {plugin} status\n  {plugin} ping {there} --from {NAMESPACE}/{POD}\n  \
         {kubectl} -n {NAMESPACE} exec {POD} -c tool -- /podtool get http://{there}:8080/\n    \
         (the answer begins with the address that the server saw)\n"
    )
}

fn place(folder: &Path, cluster: &Cluster, program: &str) -> PathBuf {
    folder.join(format!("{}-{program}", cluster.name()))
}

/// Writes a script that runs a program at a cluster.
fn wrapper(folder: &Path, cluster: &Cluster, name: &str, program: &Path) -> Result<PathBuf> {
    let path = place(folder, cluster, name);
    let text = format!(
        "#!/bin/sh\nexport KUBECONFIG={}\nexec nsenter --net={} -- {} \"$@\"\n",
        cluster.kubeconfig().display(),
        cluster.netns().path().display(),
        program.display()
    );
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}
