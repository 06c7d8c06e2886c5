//! What says which ranges this cluster uses, where it is there and may be seen.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher::Config;
use kube::{Api, Client};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::watch::{How, Shelf, keep};
use crate::world::{NetworkKind, NetworkObject};

/// Kinds by group, version, kind and plural.
const KINDS: [(NetworkKind, &str, &str, &str, &str); 4] = [
    (
        NetworkKind::CalicoPool,
        "crd.projectcalico.org",
        "v1",
        "IPPool",
        "ippools",
    ),
    (
        NetworkKind::CalicoBlock,
        "crd.projectcalico.org",
        "v1",
        "BlockAffinity",
        "blockaffinities",
    ),
    (
        NetworkKind::CiliumNode,
        "cilium.io",
        "v2",
        "CiliumNode",
        "ciliumnodes",
    ),
    (
        NetworkKind::ServiceCidr,
        "networking.k8s.io",
        "v1",
        "ServiceCIDR",
        "servicecidrs",
    ),
];
/// Single ConfigMaps by namespace and name.
const CONFIG_MAPS: [(NetworkKind, &str, &str); 4] = [
    (NetworkKind::CiliumConfig, "kube-system", "cilium-config"),
    (NetworkKind::KubeadmConfig, "kube-system", "kubeadm-config"),
    (
        NetworkKind::FlannelConfig,
        "kube-flannel",
        "kube-flannel-cfg",
    ),
    (
        NetworkKind::FlannelConfig,
        "kube-system",
        "kube-flannel-cfg",
    ),
];

/// Single objects in `default` by group, kind and plural, all of one name.
const SERVERS: [(NetworkKind, &str, &str, &str); 2] = [
    (NetworkKind::ApiService, "", "Service", "services"),
    (
        NetworkKind::ApiEndpoints,
        "discovery.k8s.io",
        "EndpointSlice",
        "endpointslices",
    ),
];
/// Their name.
const SERVER: &str = "kubernetes";

/// All of them that there are. Dropping it ends the watches.
#[derive(Debug)]
pub(crate) struct Networks {
    objects: Vec<(NetworkKind, Shelf<DynamicObject>)>,
    config_maps: Vec<(NetworkKind, Shelf<ConfigMap>)>,
    tasks: JoinSet<()>,
}

impl Networks {
    /// Begins to watch. `changed` is told of every change.
    pub(crate) fn start(client: &Client, changed: &Arc<Notify>) -> Self {
        let mut networks = Self {
            objects: Vec::new(),
            config_maps: Vec::new(),
            tasks: JoinSet::new(),
        };
        for (kind, group, version, name, plural) in KINDS {
            let resource = ApiResource::from_gvk_with_plural(
                &GroupVersionKind::gvk(group, version, name),
                plural,
            );
            let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
            networks.keep(kind, api, Config::default(), name, changed);
        }
        for (kind, group, name, plural) in SERVERS {
            let resource = ApiResource::from_gvk_with_plural(
                &GroupVersionKind::gvk(group, "v1", name),
                plural,
            );
            let api = Api::namespaced_with(client.clone(), "default", &resource);
            let config = Config::default().fields(&format!("metadata.name={SERVER}"));
            networks.keep(kind, api, config, name, changed);
        }
        for (kind, namespace, name) in CONFIG_MAPS {
            let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
            let config = Config::default().fields(&format!("metadata.name={name}"));
            let shelf = Shelf::default();
            let how = How {
                optional: true,
                ..How::default()
            };
            let keep = keep(
                api,
                config,
                shelf.clone(),
                how,
                Arc::clone(changed),
                format!("{namespace}/{name}"),
            );
            networks.tasks.spawn(keep);
            networks.config_maps.push((kind, shelf));
        }
        networks
    }

    fn keep(
        &mut self,
        kind: NetworkKind,
        api: Api<DynamicObject>,
        config: Config,
        name: &str,
        changed: &Arc<Notify>,
    ) {
        let shelf = Shelf::default();
        let how = How {
            trim: trim_status,
            same: |before, now| before.data == now.data,
            optional: true,
            ..How::default()
        };
        let changed = Arc::clone(changed);
        let keep = keep(api, config, shelf.clone(), how, changed, name.to_owned());
        self.tasks.spawn(keep);
        self.objects.push((kind, shelf));
    }

    /// Whether each has been found, or found missing.
    pub(crate) fn is_complete(&self) -> bool {
        self.objects.iter().all(|(_, shelf)| shelf.is_complete())
            && self
                .config_maps
                .iter()
                .all(|(_, shelf)| shelf.is_complete())
    }

    /// All objects; of one kind by name.
    pub(crate) fn objects(&self) -> Vec<NetworkObject> {
        let objects = self.objects.iter().flat_map(|(kind, shelf)| {
            let objects = shelf.objects();
            objects
                .into_iter()
                .filter_map(|object| network_object(*kind, &*object))
        });
        let config_maps = self.config_maps.iter().flat_map(|(kind, shelf)| {
            let objects = shelf.objects();
            objects
                .into_iter()
                .filter_map(|object| network_object(*kind, &*object))
        });
        objects.chain(config_maps).collect()
    }
}

fn network_object(kind: NetworkKind, object: &impl serde::Serialize) -> Option<NetworkObject> {
    let object = serde_json::to_value(object).ok()?;
    Some(NetworkObject { kind, object })
}

/// What these kinds are found to be is large and changes all the time; what they are meant to be says enough.
fn trim_status(object: &mut DynamicObject) {
    if let Some(fields) = object.data.as_object_mut() {
        fields.remove("status");
    }
}
