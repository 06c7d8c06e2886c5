//! `kubectl culvert identity`.

use anyhow::{anyhow, bail};
use api::Mesh;
use kube::Api;
use kube::api::ListParams;

use crate::args::ConnectionArgs;
use crate::cluster::{Cluster, explain};
use crate::output;

/// Prints the identity of this cluster, one line.
pub(crate) async fn run(connection: &ConnectionArgs) -> anyhow::Result<()> {
    let cluster = Cluster::connect(connection).await?;
    let mesh = mesh(&cluster).await?;
    output::print(&format!("{}\n", identity(&mesh)?))
}

/// The one Mesh of this cluster.
pub(crate) async fn mesh(cluster: &Cluster) -> anyhow::Result<Mesh> {
    let meshes = Api::<Mesh>::all(cluster.client.clone());
    let mut found = meshes
        .list(&ListParams::default())
        .await
        .map_err(explain)?
        .items;
    match found.len() {
        0 => bail!(
            "this cluster has no Mesh; set mesh.clusterName in the chart's values, or apply one"
        ),
        1 => Ok(found.remove(0)),
        more => {
            bail!("this cluster has {more} Meshes, and one is all it may have; delete the others")
        }
    }
}

fn identity(mesh: &Mesh) -> anyhow::Result<&str> {
    let status = mesh.status.as_ref();
    status
        .and_then(|status| status.identity.as_deref())
        .ok_or_else(|| anyhow!("the operator has not made an identity yet; see whether it runs: kubectl get pods --all-namespaces --selector app.kubernetes.io/name=culvert"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_is_that_of_the_mesh() {
        let mesh = |status| -> Mesh {
            serde_json::from_value(json!({
                "apiVersion": api::API_VERSION, "kind": "Mesh", "metadata": {"name": "default"},
                "spec": {"clusterName": "berlin"}, "status": status,
            }))
            .expect("a Mesh")
        };
        assert_eq!(
            identity(&mesh(json!({"identity": "cluster:x"}))).expect("there"),
            "cluster:x"
        );
        let error = identity(&mesh(json!({}))).expect_err("not there");
        assert!(error.to_string().contains("whether it runs"));
    }
}
