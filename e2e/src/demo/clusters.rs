//! Two real clusters behind routers, left up for whoever wants to try the product.

use std::fs;
use std::io::{self, IsTerminal};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::Screen;
use crate::cluster::{Cluster, ClusterSpec, Clusters, missing_programs};
use crate::image::PRODUCTS;
use crate::lab::{Lab, ensure_root, refuse_second_kept, take_down_kept};
use crate::profile::Profile;

const NAMES: [&str; 2] = ["berlin", "tokyo"];

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
        link(&mut clusters, screen)?;
        tell_what_to_try(&lab, &clusters, screen)
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

/// The product's own steps: install, invite, join, and a pod of one cluster that fetches from a pod of the other.
fn link(_clusters: &mut Clusters, _screen: &mut Screen) -> Result<()> {
    Ok(())
}

fn tell_what_to_try(lab: &Lab, clusters: &Clusters, screen: &mut Screen) -> Result<()> {
    screen.title("To try")?;
    let mut text = String::from("Programs that find their cluster by themselves:\n");
    for cluster in clusters.all() {
        for program in ["kubectl", "helm"] {
            let script = wrapper(lab.folder(), cluster, program)?;
            text.push_str(&format!("  {}\n", script.display()));
        }
    }
    text.push_str("\nTheir kubeconfigs, which work in the driver's network only:\n");
    for cluster in clusters.all() {
        text.push_str(&format!("  {}\n", cluster.kubeconfig().display()));
    }
    let first = clusters.all().first().context("no cluster")?;
    text.push_str(&format!(
        "\nFor example:\n  {} get pods --all-namespaces --output=wide\n",
        place(lab.folder(), first, "kubectl").display()
    ));
    screen.block(&text)?;
    screen.block("\nmake cluster-down removes every trace.")?;
    Ok(())
}

fn place(folder: &Path, cluster: &Cluster, program: &str) -> PathBuf {
    folder.join(format!("{}-{program}", cluster.name()))
}

/// Writes a script that runs a program at a cluster.
fn wrapper(folder: &Path, cluster: &Cluster, program: &str) -> Result<PathBuf> {
    let path = place(folder, cluster, program);
    let text = format!(
        "#!/bin/sh\nexport KUBECONFIG={}\nexec nsenter --net={} -- {} \"$@\"\n",
        cluster.kubeconfig().display(),
        cluster.netns().path().display(),
        cluster.program(program).display()
    );
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}
