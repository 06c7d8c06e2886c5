//! Single writes of single objects.

use api::{Invite, Mesh, MeshNode, Peer, PeerSlice};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{ClusterResourceScope, NamespaceResourceScope};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Debug;

use super::{MANAGER, Written};
use crate::action::{Kind, Object, Redemption, StatusOf, Target};

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The object has changed meanwhile.
    #[error("{0}")]
    Conflict(String),
    /// There is no such object, or namespace.
    #[error("{0}")]
    NotFound(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "whatever else happens is told as it is"
)]
impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.is_conflict() => Self::Conflict(status.message),
            kube::Error::Api(status) if status.is_not_found() => Self::NotFound(status.message),
            kube::Error::Api(status) => Self::Other(status.message),
            other => Self::Other(other.to_string()),
        }
    }
}

/// Writes single objects.
pub(super) struct Writer {
    client: Client,
}

/// Does the same with an object of whatever kind.
macro_rules! each {
    ($object:expr, $it:ident, namespaced $namespaced:expr, cluster $cluster:expr) => {
        match $object {
            Object::Deployment($it) => $namespaced,
            Object::Service($it) => $namespaced,
            Object::Ingress($it) => $namespaced,
            Object::Secret($it) => $namespaced,
            Object::ConfigMap($it) => $namespaced,
            Object::PodDisruptionBudget($it) => $namespaced,
            Object::MeshNode($it) => $cluster,
            Object::Peer($it) => $cluster,
            Object::PeerSlice($it) => $cluster,
        }
    };
}

impl Writer {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Server-side apply.
    pub(super) async fn apply(&self, object: &Object) -> Result<Written, Failure> {
        each!(object, it,
            namespaced apply(&self.namespaced(&**it), &**it).await,
            cluster apply(&self.cluster(), &**it).await)
    }

    /// Server-side apply of an object that is still of this version; create, if it has none.
    pub(super) async fn swap(&self, object: &Object) -> Result<Written, Failure> {
        if object.metadata().resource_version.is_some() {
            return self.apply(object).await;
        }
        let exists = || Failure::Conflict("there is one already".to_owned());
        self.create(object).await?.ok_or_else(exists)
    }

    pub(super) async fn apply_secret(&self, secret: &Secret) -> Result<Written, Failure> {
        apply(&self.namespaced(secret), secret).await
    }

    /// Create; `None`: there was one already.
    pub(super) async fn create(&self, object: &Object) -> Result<Option<Written>, Failure> {
        each!(object, it,
            namespaced create(&self.namespaced(&**it), &**it).await,
            cluster create(&self.cluster(), &**it).await)
    }

    /// Server-side apply of a status; `None`: the object is gone.
    pub(super) async fn apply_status(&self, status: &StatusOf) -> Result<Option<Written>, Failure> {
        match status {
            StatusOf::Mesh(name, status) => self.status::<Mesh>(name, None, &**status).await,
            StatusOf::Peer(name, status) => self.status::<Peer>(name, None, &**status).await,
            StatusOf::Invite(name, version, status) => {
                self.status::<Invite>(name, version.as_deref(), &**status)
                    .await
            }
            StatusOf::PeerSlice(name, status) => {
                self.status::<PeerSlice>(name, None, &**status).await
            }
        }
    }

    /// The same, unless the invite has changed; `None`: it is gone.
    pub(super) async fn redeem(&self, redemption: &Redemption) -> Result<Option<Written>, Failure> {
        let version = Some(redemption.resource_version.as_str());
        self.status::<Invite>(&redemption.name, version, &*redemption.status)
            .await
    }

    /// Delete, if it is still the same object. That it is gone is well.
    pub(super) async fn delete(&self, target: &Target) -> Result<(), Failure> {
        let namespace = target.namespace.as_deref().unwrap_or_default();
        let client = || self.client.clone();
        match target.kind {
            Kind::Deployment => {
                delete(Api::<Deployment>::namespaced(client(), namespace), target).await
            }
            Kind::Service => delete(Api::<Service>::namespaced(client(), namespace), target).await,
            Kind::Ingress => delete(Api::<Ingress>::namespaced(client(), namespace), target).await,
            Kind::Secret => delete(Api::<Secret>::namespaced(client(), namespace), target).await,
            Kind::ConfigMap => {
                delete(Api::<ConfigMap>::namespaced(client(), namespace), target).await
            }
            Kind::PodDisruptionBudget => {
                delete(
                    Api::<PodDisruptionBudget>::namespaced(client(), namespace),
                    target,
                )
                .await
            }
            Kind::MeshNode => delete(Api::<MeshNode>::all(client()), target).await,
            Kind::Peer => delete(Api::<Peer>::all(client()), target).await,
            Kind::PeerSlice => delete(Api::<PeerSlice>::all(client()), target).await,
        }
    }

    async fn status<K>(
        &self,
        name: &str,
        version: Option<&str>,
        status: &impl Serialize,
    ) -> Result<Option<Written>, Failure>
    where
        K: Resource<DynamicType = (), Scope = ClusterResourceScope>
            + Clone
            + DeserializeOwned
            + Debug
            + Named,
    {
        let body = status_body::<K>(name, version, status);
        let parameters = PatchParams::apply(MANAGER).force();
        let api: Api<K> = self.cluster();
        match api
            .patch_status(name, &parameters, &Patch::Apply(&body))
            .await
            .map_err(Failure::from)
        {
            Ok(object) => Ok(Some(written(&object))),
            Err(Failure::NotFound(_)) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    fn namespaced<K>(&self, object: &K) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        let namespace = object.meta().namespace.as_deref();
        Api::namespaced(self.client.clone(), namespace.unwrap_or_default())
    }

    fn cluster<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = ClusterResourceScope>,
    {
        Api::all(self.client.clone())
    }
}

async fn apply<K>(api: &Api<K>, object: &K) -> Result<Written, Failure>
where
    K: Resource<DynamicType = ()> + Clone + Serialize + DeserializeOwned + Debug + Named,
{
    let parameters = PatchParams::apply(MANAGER).force();
    let applied = api
        .patch(&object.name_any(), &parameters, &Patch::Apply(object))
        .await?;
    Ok(written(&applied))
}

async fn create<K>(api: &Api<K>, object: &K) -> Result<Option<Written>, Failure>
where
    K: Resource<DynamicType = ()> + Clone + Serialize + DeserializeOwned + Debug + Named,
{
    let parameters = PostParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PostParams::default()
    };
    match api.create(&parameters, object).await {
        Ok(created) => Ok(Some(written(&created))),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn delete<K>(api: Api<K>, target: &Target) -> Result<(), Failure>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let mut parameters = DeleteParams::background();
    if let Some(uid) = &target.uid {
        parameters = parameters.preconditions(Preconditions {
            uid: Some(uid.clone()),
            resource_version: None,
        });
    }
    match api
        .delete(&target.name, &parameters)
        .await
        .map_err(Failure::from)
    {
        // Another object of that name is none of our business any more.
        Ok(_) | Err(Failure::NotFound(_) | Failure::Conflict(_)) => Ok(()),
        Err(failure) => Err(failure),
    }
}

fn status_body<K: Resource<DynamicType = ()>>(
    name: &str,
    version: Option<&str>,
    status: &impl Serialize,
) -> Value {
    let mut metadata = json!({"name": name});
    if let (Some(version), Some(fields)) = (version, metadata.as_object_mut()) {
        fields.insert("resourceVersion".to_owned(), version.into());
    }
    json!({"apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": metadata, "status": status})
}

fn written<K: ResourceExt + Named>(object: &K) -> Written {
    Written {
        kind: K::NAME,
        name: object.name_any(),
        version: object.resource_version().unwrap_or_default(),
    }
}

/// A kind whose name is known when this is compiled.
pub(super) trait Named {
    /// The kind.
    const NAME: &'static str;
}

macro_rules! named {
    ($($kind:ident,)*) => {
        $(impl Named for $kind {
            const NAME: &'static str = stringify!($kind);
        })*
    };
}

named! { Deployment, Service, Ingress, Secret, ConfigMap, PodDisruptionBudget, MeshNode, Peer, PeerSlice, Mesh, Invite, }

impl Kind {
    /// As the API server has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Deployment => Deployment::NAME,
            Self::Service => Service::NAME,
            Self::Ingress => Ingress::NAME,
            Self::Secret => Secret::NAME,
            Self::ConfigMap => ConfigMap::NAME,
            Self::PodDisruptionBudget => PodDisruptionBudget::NAME,
            Self::MeshNode => MeshNode::NAME,
            Self::Peer => Peer::NAME,
            Self::PeerSlice => PeerSlice::NAME,
        }
    }
}

impl StatusOf {
    /// Kind and name of the object.
    #[must_use]
    pub fn object(&self) -> (&'static str, &str) {
        match self {
            Self::Mesh(name, _) => (Mesh::NAME, name),
            Self::Peer(name, _) => (Peer::NAME, name),
            Self::Invite(name, _, _) => (Invite::NAME, name),
            Self::PeerSlice(name, _) => (PeerSlice::NAME, name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_names_its_object_and_the_version_it_may_replace() {
        let body = status_body::<Invite>("a", Some("7"), &json!({"x": 1}));
        let expected = json!({"apiVersion": "culvert.dev/v1alpha1", "kind": "Invite",
            "metadata": {"name": "a", "resourceVersion": "7"}, "status": {"x": 1}});
        assert_eq!(body, expected);
        let body = status_body::<Mesh>("a", None, &json!({}));
        assert_eq!(body["metadata"], json!({"name": "a"}));
    }

    #[test]
    fn names_of_kinds_are_those_of_the_api_server() {
        assert_eq!(
            Kind::PodDisruptionBudget.name(),
            PodDisruptionBudget::kind(&())
        );
        assert_eq!(Kind::PeerSlice.name(), PeerSlice::kind(&()));
        assert_eq!(Kind::MeshNode.name(), MeshNode::kind(&()));
    }
}
