//! Clusters side by side in one lab.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::grounds::{Grounds, driver};
use super::network::Network;
use super::{Cluster, ClusterSpec, Kit};
use crate::lab::Lab;
use crate::namespace::Namespace;

/// Clusters that are up. They go down with their lab, or when dropped.
#[derive(Debug)]
pub struct Clusters {
    all: Vec<Cluster>,
    driver: Namespace,
    milestones: Vec<Milestone>,
}

/// When something was reached.
#[derive(Clone, Debug)]
pub struct Milestone {
    /// The cluster's name.
    pub cluster: String,
    /// What.
    pub what: &'static str,
    /// Since the clusters began.
    pub after: Duration,
}

impl Clusters {
    /// Brings clusters up side by side, and returns when DNS is available in each.
    pub fn up(lab: &mut Lab, specs: &[ClusterSpec]) -> Result<Self> {
        let start = Instant::now();
        let kit = Kit::find()?;
        let grounds = Grounds::of(lab);
        let driver = driver(&grounds)?;
        let mut all = Vec::new();
        for spec in specs {
            let network = Network::create(lab, spec)?;
            all.push(Cluster::prepare(&grounds, &kit, spec, network, &driver)?);
        }
        let milestones = thread::scope(|scope| {
            let started: Vec<_> = all
                .iter_mut()
                .map(|cluster| scope.spawn(move || cluster.bring_up(start)))
                .collect();
            let ended = started.into_iter().map(|one| {
                one.join()
                    .unwrap_or_else(|cause| std::panic::resume_unwind(cause))
            });
            ended.collect::<Result<Vec<_>>>()
        })?;
        Ok(Self {
            all,
            driver,
            milestones: milestones.concat(),
        })
    }

    /// The clusters in the order of their specifications.
    pub fn all(&self) -> &[Cluster] {
        &self.all
    }

    /// A cluster, to be changed.
    pub fn cluster(&mut self, name: &str) -> Result<&mut Cluster> {
        let found = self.all.iter_mut().find(|cluster| cluster.name() == name);
        found.with_context(|| format!("no cluster {name}"))
    }

    /// The only namespace from which every API server is reachable.
    pub fn driver(&self) -> &Namespace {
        &self.driver
    }

    /// What was reached when on the way up.
    pub fn milestones(&self) -> &[Milestone] {
        &self.milestones
    }

    /// Loads an image's archive on every node, also on those that are added later.
    pub fn load(&mut self, archive: &Path) -> Result<()> {
        self.all
            .iter_mut()
            .try_for_each(|cluster| cluster.load(archive))
    }
}
