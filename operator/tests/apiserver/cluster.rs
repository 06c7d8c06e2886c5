//! The cluster under test, and how to ask it until it answers as wanted.

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::operator::NAMESPACE;

const PATIENCE: Duration = Duration::from_secs(30);

/// The API server, as somebody sees it who may do everything.
pub(crate) struct Cluster {
    pub(crate) client: Client,
}

impl Cluster {
    /// The seed of the identity.
    pub(crate) async fn identity(&self) -> Option<ByteString> {
        get(&self.namespaced::<Secret>(), "culvert-identity")
            .await?
            .data?
            .remove("seed")
    }

    /// The lease of the operators.
    pub(crate) async fn lease(&self) -> Option<LeaseSpec> {
        get(&self.namespaced::<Lease>(), "culvert-operator")
            .await?
            .spec
    }

    /// Objects without a namespace, or in all of them.
    pub(crate) fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// Objects in the operators' namespace.
    pub(crate) fn namespaced<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }
}

/// An object of a kind.
pub(crate) fn object<K: Resource<DynamicType = ()> + DeserializeOwned>(
    name: &str,
    spec: Value,
) -> K {
    let object = json!({"apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": {"name": name}, "spec": spec});
    serde_json::from_value(object).expect("an object")
}

/// The object, if there is one.
pub(crate) async fn get<K: Clone + DeserializeOwned + Debug>(
    api: &Api<K>,
    name: &str,
) -> Option<K> {
    api.get_opt(name).await.expect("answers")
}

/// Asks until the answer is as wanted.
pub(crate) async fn eventually<T: Debug, F: Future<Output = T>>(
    what: &str,
    ask: impl Fn() -> F,
    wanted: impl Fn(&T) -> bool,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask().await;
        if wanted(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: still {answer:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
