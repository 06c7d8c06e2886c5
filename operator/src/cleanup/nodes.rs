//! How far the cleaner is on the nodes.

use anyhow::{Context, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

/// Key of the template in its ConfigMap.
pub(super) const TEMPLATE_KEY: &str = "daemonset.json";

/// Reads the cleaner's DaemonSet.
pub(super) fn parse_template(text: &str, namespace: &str) -> anyhow::Result<DaemonSet> {
    let mut template: DaemonSet =
        serde_json::from_str(text).context("this is no DaemonSet in JSON")?;
    ensure!(
        template.metadata.name.is_some(),
        "the DaemonSet has no name"
    );
    let selector = template.spec.as_ref().map(|spec| &spec.selector);
    let labels = selector.and_then(|selector| selector.match_labels.as_ref());
    // Without, every pod of the namespace would count as the cleaner's.
    ensure!(
        labels.is_some_and(|labels| !labels.is_empty()),
        "the DaemonSet selects no pods by matchLabels"
    );
    template.metadata.namespace = Some(namespace.to_owned());
    Ok(template)
}

/// How far it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct State {
    /// Nodes where it is to run; `None`: nobody has counted them yet.
    counted: Option<usize>,
    /// Nodes that are clean.
    pub(super) clean: usize,
    /// Nodes where it runs.
    pub(super) all: usize,
    /// Those of them that are not clean.
    missing: Vec<String>,
}

/// Looks at the cleaner and its pods. A pod is ready when its first container has cleaned the node and ended well.
pub(super) fn state(set: &DaemonSet, pods: &[Pod]) -> State {
    let status = set
        .status
        .as_ref()
        .filter(|status| status.observed_generation >= set.metadata.generation);
    let counted = status.and_then(|status| usize::try_from(status.desired_number_scheduled).ok());
    let missing: Vec<_> = pods.iter().filter(|pod| !is_ready(pod)).map(node).collect();
    let clean = pods.len() - missing.len();
    State {
        counted,
        clean,
        all: counted.unwrap_or_default().max(pods.len()),
        missing,
    }
}

impl State {
    /// Whether every node is clean.
    pub(super) fn is_done(&self) -> bool {
        self.counted
            .is_some_and(|counted| self.missing.is_empty() && self.clean >= counted)
    }

    /// What is not clean, for people.
    pub(super) fn missing(&self) -> Vec<String> {
        let mut missing = self.missing.clone();
        let unknown = self.all - self.clean - self.missing.len();
        match self.counted {
            None => missing.push("an unknown number of nodes".to_owned()),
            Some(_) if unknown > 0 => missing.push(format!("{unknown} nodes without a pod")),
            Some(_) => {}
        }
        missing
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn node(pod: &Pod) -> String {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    node.unwrap_or_else(|| pod.name_any())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(desired: Option<i32>) -> DaemonSet {
        let mut set = json!({"metadata": {"name": "c", "generation": 1}});
        if let Some(desired) = desired {
            set["status"] = json!({"observedGeneration": 1, "desiredNumberScheduled": desired,
                "currentNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0});
        }
        serde_json::from_value(set).expect("a DaemonSet")
    }

    fn pod(node: &str, ready: &str) -> Pod {
        let pod = json!({"metadata": {"name": format!("c-{node}")}, "spec": {"nodeName": node, "containers": []},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn it_is_done_when_every_node_is() {
        let state = |desired, pods: &[Pod]| state(&set(desired), pods);
        assert!(!state(None, &[]).is_done(), "nobody has counted yet");
        assert!(state(Some(0), &[]).is_done());
        assert!(!state(Some(2), &[pod("a", "True")]).is_done());
        assert!(!state(Some(2), &[pod("a", "True"), pod("b", "False")]).is_done());
        assert!(state(Some(2), &[pod("a", "True"), pod("b", "True")]).is_done());
    }

    #[test]
    fn nodes_that_are_not_clean_are_named() {
        let pods = [pod("a", "True"), pod("b", "False")];
        assert_eq!(state(&set(Some(2)), &pods).missing(), ["b"]);
        assert_eq!(
            state(&set(Some(4)), &pods).missing(),
            ["b", "2 nodes without a pod"]
        );
        assert_eq!(
            state(&set(None), &[]).missing(),
            ["an unknown number of nodes"]
        );
    }

    #[test]
    fn a_template_must_say_which_pods_are_its() {
        let template = |selector: serde_json::Value| {
            json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "c"}, "spec": {
                "selector": selector, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}}})
        };
        let good = template(json!({"matchLabels": {"a": "b"}})).to_string();
        let set = parse_template(&good, "ns").expect("a template");
        assert_eq!(set.metadata.namespace.as_deref(), Some("ns"));
        assert!(parse_template(&template(json!({})).to_string(), "ns").is_err());
        assert!(parse_template("[]", "ns").is_err());
    }
}
