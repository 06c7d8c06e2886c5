//! `culvert-operator cleanup`: takes back what was done to the cluster and its nodes, before the rest is uninstalled.

mod nodes;

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, bail};
use api::{Invite, Mesh, MeshNode, Peer, PeerSlice};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{DeleteParams, ListParams};
use kube::core::{NamespaceResourceScope, Selector};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use crate::args::CleanupArgs;
use crate::leader::LEASE;
use crate::output::progress;
use crate::run::{client, install_crypto};
use crate::watch::MANAGED;

/// Between two looks.
const POLL: Duration = Duration::from_millis(500);
/// Nodes that are named.
const MAX_NAMED: usize = 20;
/// What is kept of the time for deleting objects after the nodes.
const RESERVE: Duration = Duration::from_secs(20);

/// Cleans up.
pub(crate) fn cleanup(args: &CleanupArgs) -> anyhow::Result<()> {
    install_crypto();
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(async {
        let cleanup = Cleanup {
            client: client().await?,
            args,
            started: Instant::now(),
        };
        cleanup.run().await
    })
}

struct Cleanup<'a> {
    client: Client,
    args: &'a CleanupArgs,
    started: Instant,
}

impl Cleanup<'_> {
    async fn run(&self) -> anyhow::Result<()> {
        self.stop::<Deployment>(&self.args.operator, "operator")
            .await?;
        self.stop::<DaemonSet>(&self.args.agent, "agents").await?;
        let not_cleaned = self.clean_nodes().await?;
        self.delete_kinds().await?;
        self.delete_made().await?;
        verdict(&not_cleaned)?;
        progress("done: what is left is the chart's own");
        Ok(())
    }

    /// Until when nodes are waited for.
    fn nodes_until(&self) -> Instant {
        let deadline = self.args.deadline;
        self.started + deadline.saturating_sub(RESERVE.min(deadline / 4))
    }

    fn namespaced<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.args.namespace)
    }

    /// Deletes something that has pods, and waits for these to end.
    async fn stop<K>(&self, name: &str, what: &str) -> anyhow::Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug
            + Pods,
    {
        let api: Api<K> = self.namespaced();
        let found = api
            .get_opt(name)
            .await
            .with_context(|| format!("cannot look for the {what}"))?;
        let Some(found) = found else {
            progress(&format!("no {what} ({name}) to stop"));
            return Ok(());
        };
        progress(&format!("stopping the {what} ({name})"));
        gone(api.delete(name, &DeleteParams::background()).await)?;
        match found.selector() {
            Some(selector) => self.wait_for_end(selector, what).await,
            None => Ok(()),
        }
    }

    async fn wait_for_end(&self, selector: &LabelSelector, what: &str) -> anyhow::Result<()> {
        let selector = Selector::try_from(selector.clone()).context("a selector makes no sense")?;
        let pods: Api<Pod> = self.namespaced();
        let wanted = ListParams::default().labels_from(&selector);
        loop {
            let left = pods.list(&wanted).await.context("cannot list pods")?;
            if left.items.is_empty() {
                return Ok(());
            }
            if Instant::now() >= self.nodes_until() {
                let names: Vec<_> = left.items.iter().map(ResourceExt::name_any).collect();
                progress(&format!(
                    "warning: still there of the {what}: {}",
                    names.join(", ")
                ));
                return Ok(());
            }
            sleep(POLL).await;
        }
    }

    /// Runs the cleaner on every node; gives those where it did not end.
    async fn clean_nodes(&self) -> anyhow::Result<Vec<String>> {
        let Some(template) = self.template().await? else {
            progress("warning: no template of the cleaner; nodes are left as they are");
            return Ok(vec!["every node".to_owned()]);
        };
        let (name, selector) = (
            template.name_any(),
            template.spec.as_ref().map(|spec| spec.selector.clone()),
        );
        let api: Api<DaemonSet> = self.namespaced();
        // One that an earlier attempt has left may know nothing of the present template.
        self.stop::<DaemonSet>(&name, "earlier cleaner").await?;
        progress(&format!("cleaning the nodes ({name})"));
        api.create(&kube::api::PostParams::default(), &template)
            .await
            .context("cannot create the cleaner")?;
        let not_cleaned = self.wait_for_nodes(&api, &name, selector.as_ref()).await?;
        if not_cleaned.is_empty() {
            progress("all nodes are clean");
        }
        self.stop::<DaemonSet>(&name, "cleaner").await?;
        Ok(not_cleaned)
    }

    async fn template(&self) -> anyhow::Result<Option<DaemonSet>> {
        let config_maps: Api<ConfigMap> = self.namespaced();
        let found = config_maps
            .get_opt(&self.args.template)
            .await
            .context("cannot read the template")?;
        let text = found.and_then(|found| found.data?.remove(nodes::TEMPLATE_KEY));
        let template = text
            .map(|text| nodes::parse_template(&text, &self.args.namespace))
            .transpose();
        template.with_context(|| format!("ConfigMap {} is damaged", self.args.template))
    }

    async fn wait_for_nodes(
        &self,
        api: &Api<DaemonSet>,
        name: &str,
        selector: Option<&LabelSelector>,
    ) -> anyhow::Result<Vec<String>> {
        let selector = selector.cloned().unwrap_or_default();
        let selector =
            Selector::try_from(selector).context("the template's selector makes no sense")?;
        let (pods, wanted) = (
            self.namespaced::<Pod>(),
            ListParams::default().labels_from(&selector),
        );
        let mut told = 0;
        loop {
            let set = api.get(name).await.context("cannot look at the cleaner")?;
            let seen = pods
                .list(&wanted)
                .await
                .context("cannot list the cleaner's pods")?;
            let state = nodes::state(&set, &seen.items);
            if state.clean > told {
                told = state.clean;
                progress(&format!("{told} of {} nodes", state.all));
            }
            if state.is_done() {
                return Ok(Vec::new());
            }
            if Instant::now() >= self.nodes_until() {
                return Ok(state.missing());
            }
            sleep(POLL).await;
        }
    }

    /// Deletes every object of our kinds.
    async fn delete_kinds(&self) -> anyhow::Result<()> {
        progress("deleting Invites, Peers, PeerSlices, MeshNodes and Meshes");
        self.delete_kind::<Invite>().await?;
        self.delete_kind::<Peer>().await?;
        self.delete_kind::<PeerSlice>().await?;
        self.delete_kind::<MeshNode>().await?;
        self.delete_kind::<Mesh>().await
    }

    async fn delete_kind<K>(&self) -> anyhow::Result<()>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let api = Api::<K>::all(self.client.clone());
        let deleted = api
            .delete_collection(&DeleteParams::background(), &ListParams::default())
            .await;
        gone(deleted).with_context(|| format!("cannot delete objects of kind {}", K::kind(&())))
    }

    /// Deletes what the operator has made in its namespace.
    async fn delete_made(&self) -> anyhow::Result<()> {
        progress("deleting relays, Secrets and the lease");
        self.delete_managed::<Ingress>().await?;
        self.delete_managed::<Service>().await?;
        self.delete_managed::<PodDisruptionBudget>().await?;
        self.delete_managed::<Deployment>().await?;
        self.delete_managed::<ConfigMap>().await?;
        self.delete_managed::<Secret>().await?;
        let leases: Api<Lease> = self.namespaced();
        gone(leases.delete(LEASE, &DeleteParams::default()).await)
            .context("cannot delete the lease")
    }

    async fn delete_managed<K>(&self) -> anyhow::Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug,
    {
        let (api, kind) = (self.namespaced::<K>(), K::kind(&()));
        let found = api
            .list_metadata(&ListParams::default().labels(MANAGED))
            .await;
        let found = found.with_context(|| format!("cannot list objects of kind {kind}"))?;
        for object in found.items {
            let deleted = api
                .delete(&object.name_any(), &DeleteParams::background())
                .await;
            gone(deleted).with_context(|| format!("cannot delete {kind} {}", object.name_any()))?;
        }
        Ok(())
    }
}

/// A failure that names nodes which are not clean: their Job stays, and whoever removes the product learns of them.
fn verdict(not_cleaned: &[String]) -> anyhow::Result<()> {
    if not_cleaned.is_empty() {
        return Ok(());
    }
    let named = not_cleaned.iter().take(MAX_NAMED).cloned();
    let more = not_cleaned.len().saturating_sub(MAX_NAMED);
    let more = (more > 0).then(|| format!("{more} more"));
    let names: Vec<String> = named.chain(more).collect();
    bail!(
        "not cleaned: {}; all that was in the API server is removed. Uninstall once more when they are back, or without their Nodes, \
        after which `culvert-agent cleanup --state DIR --purge` does it there",
        names.join(", ")
    )
}

/// That something is not there any more, or its kind is not, is what was wanted.
fn gone<T>(deleted: kube::Result<T>) -> kube::Result<()> {
    match deleted {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Something that has pods.
trait Pods {
    /// Which ones.
    fn selector(&self) -> Option<&LabelSelector>;
}

impl Pods for Deployment {
    fn selector(&self) -> Option<&LabelSelector> {
        self.spec.as_ref().map(|spec| &spec.selector)
    }
}

impl Pods for DaemonSet {
    fn selector(&self) -> Option<&LabelSelector> {
        self.spec.as_ref().map(|spec| &spec.selector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_are_not_clean_make_it_fail_and_are_named() {
        assert!(verdict(&[]).is_ok());
        let failed = |count: usize| {
            let names: Vec<_> = (0..count).map(|number| format!("node-{number}")).collect();
            verdict(&names).expect_err("not clean").to_string()
        };
        let one = failed(1);
        assert!(one.contains("node-0; ") && one.contains("culvert-agent cleanup"));
        let many = failed(5000);
        assert!(many.contains("node-19, 4980 more; ") && many.len() < 1000);
    }
}
