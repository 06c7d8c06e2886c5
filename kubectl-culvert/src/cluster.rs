//! The cluster that a command talks to, and what goes wrong on the way there.

use anyhow::{Context, anyhow, bail};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

use crate::args::ConnectionArgs;

/// Where Culvert is looked for if it is not found anywhere, or nobody may look.
const USUAL_NAMESPACE: &str = "culvert";

/// A cluster.
#[derive(Clone)]
pub(crate) struct Cluster {
    /// Connection to its API server.
    pub(crate) client: Client,
    /// Namespace of the context; `default` if it names none.
    pub(crate) default_namespace: String,
    namespace: Option<String>,
}

impl Cluster {
    /// The cluster that the options name.
    pub(crate) async fn connect(options: &ConnectionArgs) -> anyhow::Result<Self> {
        // Fails only when one has been installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = config(options).await.context(
            "cannot tell which cluster is meant; check --kubeconfig, --context and $KUBECONFIG",
        )?;
        let default_namespace = config.default_namespace.clone();
        let client = Client::try_from(config).context("cannot use this kubeconfig")?;
        Ok(Self {
            client,
            default_namespace,
            namespace: options.namespace.clone(),
        })
    }

    /// The namespace where Culvert is installed: as told, else where its operator is found.
    pub(crate) async fn namespace(&self) -> anyhow::Result<String> {
        if let Some(namespace) = &self.namespace {
            return Ok(namespace.clone());
        }
        let operators = Api::<Deployment>::all(self.client.clone());
        let found = match operators.list(&labelled("operator")).await {
            Ok(found) => found.items,
            Err(error) if code(&error) == Some(403) => Vec::new(),
            Err(error) => return Err(explain(error)),
        };
        choose_namespace(found.into_iter().filter_map(|d| d.metadata.namespace))
    }

    /// The DaemonSet of the agents.
    pub(crate) async fn agents(&self, namespace: &str) -> anyhow::Result<DaemonSet> {
        let sets = Api::<DaemonSet>::namespaced(self.client.clone(), namespace);
        let found = sets.list(&labelled("agent")).await.map_err(explain)?;
        found.items.into_iter().next().ok_or_else(|| {
            anyhow!(
                "no agents in namespace {namespace:?}; name Culvert's namespace with --namespace"
            )
        })
    }
}

/// An error of the API server, or on the way there, with what to do about it.
pub(crate) fn explain(error: kube::Error) -> anyhow::Error {
    let kube::Error::Api(status) = &error else {
        return anyhow!(innermost(&error)).context(
            "the API server cannot be reached; check --context, and your way to the cluster",
        );
    };
    let said = anyhow!(status.message.clone());
    match status.code {
        401 => said.context("the API server does not know you; log in to the cluster again"),
        403 => said.context(
            "you may not do this in the cluster; ask for the rights that the message names",
        ),
        404 if is_missing_kind(&error) => anyhow!(
            "this cluster has no kinds of Culvert; install the chart first, or check --context"
        ),
        _ => said,
    }
}

/// What `work` gives; an error as soon as the user has had enough.
pub(crate) async fn unless_interrupted<T>(
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::select! {
        done = work => done,
        Ok(()) = tokio::signal::ctrl_c() => bail!("interrupted"),
    }
}

/// The text of the error that all others around it repeat.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// The HTTP status that the API server answered with; `None` if it did not answer.
pub(crate) fn code(error: &kube::Error) -> Option<u16> {
    if let kube::Error::Api(status) = error {
        Some(status.code)
    } else {
        None
    }
}

/// A request for an unknown kind is answered by the server's mux, not by a resource, so that no object is named.
fn is_missing_kind(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else {
        return false;
    };
    let details = status.details.as_ref();
    details.is_none_or(|details| details.name.is_empty())
}

fn labelled(component: &str) -> ListParams {
    ListParams::default().labels(&format!(
        "app.kubernetes.io/name=culvert,app.kubernetes.io/component={component}"
    ))
}

fn choose_namespace(found: impl Iterator<Item = String>) -> anyhow::Result<String> {
    let mut found: Vec<String> = found.collect();
    found.sort();
    found.dedup();
    match found.as_slice() {
        [] => Ok(USUAL_NAMESPACE.to_owned()),
        [one] => Ok(one.clone()),
        many => bail!(
            "Culvert is in several namespaces ({}); choose one with --namespace",
            many.join(", ")
        ),
    }
}

async fn config(options: &ConnectionArgs) -> anyhow::Result<Config> {
    let choice = KubeConfigOptions {
        context: options.context.clone(),
        ..KubeConfigOptions::default()
    };
    match &options.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)?;
            Ok(Config::from_custom_kubeconfig(file, &choice).await?)
        }
        None => Ok(Config::from_kubeconfig(&choice).await?),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn choose(found: &[&str]) -> anyhow::Result<String> {
        choose_namespace(found.iter().map(|name| (*name).to_owned()))
    }

    #[test]
    fn the_namespace_is_where_the_operator_is() {
        assert_eq!(choose(&[]).expect("chosen"), "culvert");
        assert_eq!(choose(&["links", "links"]).expect("chosen"), "links");
        let error = choose(&["b", "a"]).expect_err("ambiguous").to_string();
        assert!(error.contains("a, b") && error.contains("--namespace"));
    }

    #[test]
    fn errors_say_what_to_do() {
        let api = |code: u16| {
            let status = Status::failure("no", "Reason").with_code(code);
            format!("{:#}", explain(kube::Error::Api(status.boxed())))
        };
        assert!(api(401).contains("log in"));
        assert!(api(403).contains("rights"));
        assert!(api(404).contains("install the chart"));
        assert!(api(500).contains("no"));
        let away = kube::Error::Service("connection refused".into());
        assert!(format!("{:#}", explain(away)).contains("cannot be reached"));
    }
}
