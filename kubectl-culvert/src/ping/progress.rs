//! How far a container has come.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodStatus};

/// Why a container waits that will not start without somebody's help.
const HOPELESS: [&str; 8] = [
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImageInspectError",
    "ImagePullBackOff",
    "InvalidImageName",
    "RunContainerError",
];

/// How far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not at its end; what it waits for.
    Waiting(String),
    /// At its end, with this exit code.
    Ended(i32),
    /// It will not run; why.
    Failed(String),
}

/// What the pod says about the container; `None`: there is no such pod.
pub(super) fn state(pod: Option<&Pod>, container: &str) -> State {
    let Some(pod) = pod else {
        return State::Failed("somebody has deleted it".to_owned());
    };
    let default = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&default);
    let of_container = find(status, container).and_then(|found| found.state.as_ref());
    match (of_container, status.phase.as_deref()) {
        (Some(state), _) if state.terminated.is_some() || state.running.is_some() => of(state),
        (_, Some("Failed")) => State::Failed(words(&status.reason, &status.message)),
        (Some(state), _) => of(state),
        (None, _) => State::Waiting(unscheduled(status)),
    }
}

fn find<'a>(status: &'a PodStatus, container: &str) -> Option<&'a ContainerStatus> {
    let lists = [
        &status.container_statuses,
        &status.ephemeral_container_statuses,
    ];
    let mut all = lists.into_iter().flatten().flatten();
    all.find(|found| found.name == container)
}

fn of(state: &ContainerState) -> State {
    if let Some(ended) = &state.terminated {
        return match ended.reason.as_deref() {
            Some("StartError" | "ContainerCannotRun") => {
                State::Failed(words(&ended.reason, &ended.message))
            }
            _ => State::Ended(ended.exit_code),
        };
    }
    if state.running.is_some() {
        return State::Waiting("pinging".to_owned());
    }
    let waiting = state.waiting.clone().unwrap_or_default();
    let reason = waiting.reason.clone().unwrap_or_default();
    if HOPELESS.contains(&reason.as_str()) {
        State::Failed(words(&waiting.reason, &waiting.message))
    } else {
        State::Waiting("waiting for the container to start".to_owned())
    }
}

fn unscheduled(status: &PodStatus) -> String {
    let conditions = status.conditions.iter().flatten();
    let mut refusals = conditions.filter(|c| c.type_ == "PodScheduled" && c.status == "False");
    match refusals.next() {
        Some(refusal) => words(&refusal.reason, &refusal.message),
        None => "waiting for the pod to start".to_owned(),
    }
}

fn words(reason: &Option<String>, message: &Option<String>) -> String {
    let parts: Vec<&str> = [reason, message]
        .into_iter()
        .flatten()
        .map(String::as_str)
        .filter(|part| !part.is_empty())
        .collect();
    if parts.is_empty() {
        "it does not say why".to_owned()
    } else {
        parts.join(": ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of_status(status: Value) -> State {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {}, "status": status})).expect("a Pod");
        state(Some(&pod), "ping")
    }

    fn in_state(state: Value) -> State {
        of_status(json!({"containerStatuses": [
            {"name": "other", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"terminated": {"exitCode": 9}}},
            {"name": "ping", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": state}]}))
    }

    #[test]
    fn from_nothing_to_the_end() {
        let waiting = |state: State| matches!(state, State::Waiting(_));
        assert!(waiting(of_status(json!({}))));
        assert_eq!(
            of_status(json!({"conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no node is free"}]})),
            State::Waiting("Unschedulable: no node is free".to_owned())
        );
        assert!(waiting(in_state(
            json!({"waiting": {"reason": "ContainerCreating"}})
        )));
        assert_eq!(
            in_state(json!({"running": {}})),
            State::Waiting("pinging".to_owned())
        );
        assert_eq!(
            in_state(json!({"terminated": {"exitCode": 0}})),
            State::Ended(0)
        );
        assert_eq!(
            in_state(json!({"terminated": {"exitCode": 1, "reason": "Error"}})),
            State::Ended(1)
        );
    }

    #[test]
    fn what_cannot_start_is_not_waited_for() {
        assert_eq!(
            in_state(json!({"waiting": {"reason": "ErrImagePull", "message": "no such image"}})),
            State::Failed("ErrImagePull: no such image".to_owned())
        );
        assert_eq!(
            in_state(
                json!({"terminated": {"exitCode": 128, "reason": "StartError", "message": "exec: no such file"}})
            ),
            State::Failed("StartError: exec: no such file".to_owned())
        );
        assert_eq!(
            of_status(json!({"phase": "Failed", "reason": "OutOfpods"})),
            State::Failed("OutOfpods".to_owned())
        );
        assert_eq!(
            of_status(json!({"phase": "Failed"})),
            State::Failed("it does not say why".to_owned())
        );
        assert!(matches!(state(None, "ping"), State::Failed(_)));
    }

    #[test]
    fn an_added_container_counts_too() {
        let ended = json!({"ephemeralContainerStatuses": [
            {"name": "ping", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 0}}}]});
        assert_eq!(of_status(ended), State::Ended(0));
    }
}
