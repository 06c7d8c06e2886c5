//! The disruption budget of a relay.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Managed;

/// One pod may go: there is one, and a node must be drainable. Paths that are direct live on.
pub(super) fn wanted(relay: &Managed<'_>) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: relay.metadata(relay.name()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(LabelSelector {
                match_labels: Some(relay.selector()),
                ..LabelSelector::default()
            }),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}
