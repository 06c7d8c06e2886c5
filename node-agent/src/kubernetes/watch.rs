//! The watches themselves.

use api::{ClusterObjects, Mesh, MeshNode, Peer, PeerSlice};
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, select_all};
use kube::api::{Api, ApiResource, DynamicObject};
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource};
use tokio::sync::watch::Sender;

use super::OwnNode;
use super::objects::{Objects, Shelf};

type Told = (Shelf, Result<Event<DynamicObject>, watcher::Error>);

/// Where news goes.
#[derive(Debug)]
pub(crate) struct Outlets {
    /// Everything, from when it is known.
    pub(crate) objects: Sender<Option<ClusterObjects>>,
    /// This node's own MeshNode.
    pub(crate) own: Sender<Option<OwnNode>>,
}

/// Watches for ever. An API server that is away is asked again and again, with pauses of up to half a minute; what it told
/// before stands.
pub(crate) async fn watch(client: Client, node: String, outlets: Outlets) {
    let own = Config::default().fields(&format!("metadata.name={node}"));
    let mut told = select_all([
        stream::<Mesh>(&client, Shelf::Meshes, Config::default()),
        stream::<Peer>(&client, Shelf::Peers, Config::default()),
        stream::<PeerSlice>(&client, Shelf::Slices, Config::default()),
        stream::<MeshNode>(&client, Shelf::OwnNode, own),
    ]);
    let mut objects = Objects::new(&node);
    let mut failing: Vec<Shelf> = Vec::new();
    while let Some((shelf, event)) = told.next().await {
        let known = failing.iter().position(|other| *other == shelf);
        match (event, known) {
            (Ok(event), known) => {
                if let Some(index) = known {
                    failing.swap_remove(index);
                    tracing::info!(?shelf, "the API server answers again");
                }
                if objects.take(shelf, event) {
                    outlets.objects.send_replace(objects.all());
                }
                let own = objects.own_node();
                outlets.own.send_if_modified(|before| {
                    let changed = before.as_ref() != own;
                    *before = own.cloned();
                    changed
                });
            }
            (Err(error), None) => {
                failing.push(shelf);
                tracing::warn!(%error, ?shelf, "the API server cannot be watched; what is in force stays");
            }
            (Err(error), Some(_)) => {
                tracing::debug!(%error, ?shelf, "the API server cannot be watched");
            }
        }
    }
}

/// Objects come as they are: one that a newer version has written must not keep the others from being read.
fn stream<K: Resource<DynamicType = ()>>(
    client: &Client,
    shelf: Shelf,
    config: Config,
) -> BoxStream<'static, Told> {
    let kind = ApiResource::erase::<K>(&());
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
    watcher(api, config)
        .default_backoff()
        .map(move |event| (shelf, event))
        .boxed()
}
