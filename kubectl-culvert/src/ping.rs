//! `kubectl culvert ping`.

mod pod;
mod progress;
mod target;

use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures_util::TryStreamExt;
use k8s_openapi::api::core::v1::{LocalObjectReference, Node, Pod, PodSpec};
use kube::api::{DeleteParams, LogParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::watch_object;
use kube::{Api, ResourceExt};

use crate::args::{ConnectionArgs, PingArgs};
use crate::cluster::{Cluster, code, explain, unless_interrupted};
use crate::output::{self, Progress, Terminal};
use progress::State;
use target::PodName;

pub(crate) use target::{Source, Target};

/// How long the container may take to start.
const START_SECONDS: u64 = 60;

/// What is to be run.
struct Job {
    address: IpAddr,
    count: u16,
    image: String,
    pull_secrets: Vec<LocalObjectReference>,
}

/// Pings, and prints the answers.
pub(crate) async fn run(
    connection: &ConnectionArgs,
    args: &PingArgs,
    terminal: Terminal,
) -> anyhow::Result<()> {
    let cluster = Cluster::connect(connection).await?;
    if let Some(Source::Node(name)) = &args.from {
        let nodes = Api::<Node>::all(cluster.client.clone());
        check_node(name, nodes.get(name).await.err())?;
    }
    let namespace = cluster.namespace().await?;
    let job = Job {
        address: address(connection, args).await?,
        ..job(&cluster, &namespace, args).await?
    };
    let answers = match &args.from {
        Some(Source::Pod(pod)) => from_pod(&cluster, pod, &job, terminal).await?,
        Some(Source::Node(node)) => {
            from_node(&cluster, &namespace, Some(node), &job, terminal).await?
        }
        None => from_node(&cluster, &namespace, None, &job, terminal).await?,
    };
    output::print(&answers.log)?;
    verdict(&answers, &job)
}

/// How a run ended.
struct Answers {
    exit_code: i32,
    log: String,
}

fn verdict(answers: &Answers, job: &Job) -> anyhow::Result<()> {
    match answers.exit_code {
        0 => Ok(()),
        2 => bail!(
            "image {} does not know how to ping; name another one with --image",
            job.image
        ),
        _ => bail!(
            "no answer from {}; see why: kubectl culvert status",
            job.address
        ),
    }
}

/// All but the address, which may be in another cluster.
async fn job(cluster: &Cluster, namespace: &str, args: &PingArgs) -> anyhow::Result<Job> {
    let unspecified = IpAddr::from([0, 0, 0, 0]);
    let job = |image, pull_secrets| Job {
        address: unspecified,
        count: args.count,
        image,
        pull_secrets,
    };
    if let Some(image) = &args.image {
        return Ok(job(image.clone(), Vec::new()));
    }
    let agents = cluster.agents(namespace).await?;
    let spec = agents.spec.and_then(|spec| spec.template.spec);
    let spec = spec.unwrap_or_default();
    let image = agent_image(&spec)
        .ok_or_else(|| anyhow!("the agents have no image; name one with --image"))?;
    Ok(job(image, spec.image_pull_secrets.unwrap_or_default()))
}

fn agent_image(spec: &PodSpec) -> Option<String> {
    let agent = spec
        .containers
        .iter()
        .find(|container| container.name == "agent");
    agent.or_else(|| spec.containers.first())?.image.clone()
}

/// The address to ping.
async fn address(connection: &ConnectionArgs, args: &PingArgs) -> anyhow::Result<IpAddr> {
    let name = match &args.target {
        Target::Address(address) => return Ok(*address),
        Target::Pod(name) => name,
    };
    let there = ConnectionArgs {
        context: args
            .to_context
            .clone()
            .or_else(|| connection.context.clone()),
        ..connection.clone()
    };
    let cluster = Cluster::connect(&there).await?;
    let pod = find(&cluster, name).await.with_context(|| {
        format!("cannot find pod {name}; give its address, or name its cluster with --to-context")
    })?;
    target::pod_address(&pod)
}

async fn find(cluster: &Cluster, name: &PodName) -> anyhow::Result<Pod> {
    let pods = pods(cluster, name.namespace_or(&cluster.default_namespace));
    pods.get(&name.name).await.map_err(|error| {
        if code(&error) == Some(404) {
            anyhow!("there is no such pod")
        } else {
            explain(error)
        }
    })
}

/// Runs in a pod of its own, which is removed whatever happens.
async fn from_node(
    cluster: &Cluster,
    namespace: &str,
    node: Option<&str>,
    job: &Job,
    terminal: Terminal,
) -> anyhow::Result<Answers> {
    let pods = pods(cluster, namespace);
    let made = pods
        .create(&PostParams::default(), &pod::pod(node, job))
        .await
        .map_err(explain)
        .context("cannot make the pod that pings")?;
    let name = made.name_any();
    let work = follow(&pods, &name, pod::CONTAINER, job, terminal);
    let answers = unless_interrupted(work).await;
    let removed = pods
        .delete(&name, &DeleteParams::default().grace_period(0))
        .await;
    if let Some(error) = removed.err().and_then(left_over) {
        output::hint(&format!(
            "pod {namespace}/{name} could not be removed: {error:#}; delete it"
        ));
    }
    answers
}

/// A pod for a node that is not there waits in vain. Whoever may not look at nodes is not kept from trying.
fn check_node(name: &str, error: Option<kube::Error>) -> anyhow::Result<()> {
    let Some(error) = error else {
        return Ok(());
    };
    match code(&error) {
        Some(403) => Ok(()),
        Some(404) => bail!("there is no node {name}; see kubectl get nodes"),
        Some(_) | None => Err(explain(error)),
    }
}

/// Why a pod is still there; `None` if it is gone.
fn left_over(error: kube::Error) -> Option<anyhow::Error> {
    (code(&error) != Some(404)).then(|| explain(error))
}

/// Runs in a container that is added to the pod, and stays in its list when it has ended.
async fn from_pod(
    cluster: &Cluster,
    name: &PodName,
    job: &Job,
    terminal: Terminal,
) -> anyhow::Result<Answers> {
    let pod = find(cluster, name)
        .await
        .with_context(|| format!("cannot ping from pod {name}"))?;
    let container = pod::free_name(&pod);
    let pods = pods(cluster, name.namespace_or(&cluster.default_namespace));
    let added = pod::ephemeral(&container, job);
    pods.patch_ephemeral_containers(
        &name.name,
        &PatchParams::default(),
        &Patch::Strategic(added),
    )
    .await
    .map_err(explain)
    .with_context(|| format!("cannot add a container to pod {name}"))?;
    follow(&pods, &name.name, &container, job, terminal).await
}

/// Waits until the container has ended, and reads what it said.
async fn follow(
    pods: &Api<Pod>,
    name: &str,
    container: &str,
    job: &Job,
    terminal: Terminal,
) -> anyhow::Result<Answers> {
    let bound = Duration::from_secs(START_SECONDS + 2 * u64::from(job.count));
    let mut progress = Progress::new(terminal);
    let mut last = String::new();
    let look = async {
        let mut seen = pin!(watch_object(pods.clone(), name));
        while let Some(pod) = seen.try_next().await.context("cannot watch it")? {
            match progress::state(pod.as_ref(), container) {
                State::Ended(exit_code) => return Ok(exit_code),
                State::Failed(why) => bail!("the pod that pings does not start: {why}"),
                State::Waiting(why) => {
                    progress.say(&why);
                    last = why;
                }
            }
        }
        bail!("the API server ended the watch; try again")
    };
    let ended = tokio::time::timeout(bound, look).await;
    progress.end();
    let exit_code =
        ended.unwrap_or_else(|_| bail!("gave up after {} s: {last}", bound.as_secs()))?;
    let of_it = LogParams {
        container: Some(container.to_owned()),
        ..LogParams::default()
    };
    let log = pods.logs(name, &of_it).await.map_err(explain)?;
    Ok(Answers { exit_code, log })
}

fn pods(cluster: &Cluster, namespace: &str) -> Api<Pod> {
    Api::namespaced(cluster.client.clone(), namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_says_what_to_do() {
        let job = Job {
            address: IpAddr::from([10, 2, 0, 5]),
            count: 3,
            image: "x/agent:1".to_owned(),
            pull_secrets: Vec::new(),
        };
        let verdict = |exit_code| {
            let log = String::new();
            verdict(&Answers { exit_code, log }, &job).map_err(|error| error.to_string())
        };
        assert_eq!(verdict(0), Ok(()));
        assert!(verdict(1).expect_err("failed").contains("10.2.0.5"));
        assert!(verdict(2).expect_err("failed").contains("--image"));
        assert!(verdict(137).expect_err("failed").contains("status"));
    }

    fn api(code: u16) -> kube::Error {
        let status = kube::core::Status::failure("words", "Reason").with_code(code);
        kube::Error::Api(status.boxed())
    }

    #[test]
    fn a_node_that_is_not_there_is_said_at_once() {
        let checked = |error| check_node("w9", error).map_err(|error| format!("{error:#}"));
        assert_eq!(checked(None), Ok(()));
        assert_eq!(checked(Some(api(403))), Ok(()), "it may work");
        let missing = checked(Some(api(404)));
        assert_eq!(
            missing.expect_err("missing"),
            "there is no node w9; see kubectl get nodes"
        );
        assert!(checked(Some(api(401))).expect_err("401").contains("log in"));
    }

    #[test]
    fn a_pod_that_is_gone_needs_no_removal() {
        assert!(left_over(api(404)).is_none());
        let left = left_over(api(500)).expect("left");
        assert_eq!(format!("{left:#}"), "words");
    }

    #[test]
    fn the_image_is_that_of_the_agents() {
        let spec = |containers| -> PodSpec {
            serde_json::from_value(serde_json::json!({ "containers": containers })).expect("a spec")
        };
        let sidecar =
            serde_json::json!([{"name": "mesh", "image": "m"}, {"name": "agent", "image": "a"}]);
        assert_eq!(agent_image(&spec(sidecar)).as_deref(), Some("a"));
        assert_eq!(agent_image(&spec(serde_json::json!([]))), None);
    }
}
