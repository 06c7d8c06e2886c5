//! The product's images are whole: their programs start, as the users that they are meant for.

use anyhow::Result;
use e2e::{Cluster, ClusterSpec, Clusters, Lab, Profile, image};
use serde_json::{Value, json};

use crate::{tell, turn};

const TEST: &str = "test";

#[test]
fn every_image_runs() -> Result<()> {
    let _turn = turn();
    let folder = image::made()?;
    let mut lab = Lab::new("images")?;
    let mut clusters = Clusters::up(&mut lab, &[ClusterSpec::new("f", Profile::FullCone)])?;
    tell(&clusters);
    let mut loaded = Vec::new();
    for product in image::PRODUCTS {
        let archive = product.archive(&folder);
        if archive.exists() {
            clusters.load(&archive)?;
            loaded.push(product);
        }
    }
    let cluster = clusters.cluster("f")?;
    cluster.namespace(TEST)?;
    for product in &loaded {
        let user = json!({"runAsNonRoot": product.name != "agent", "readOnlyRootFilesystem": true});
        let said = printed(
            cluster,
            product.name,
            &product.image(),
            &["--version"],
            (true, &user),
        )?;
        assert!(said.contains(product.program), "{said}");
        if product.name == "agent" {
            tools(cluster, &product.image())?;
        }
    }
    let names: Vec<_> = loaded.iter().map(|product| product.name).collect();
    assert!(
        names.ends_with(&["relay", "agent"]),
        "only {names:?} were made"
    );
    drop(clusters);
    lab.finish()
}

/// What the agent calls: one table made with each, as a node agent may.
fn tools(cluster: &Cluster, image: &str) -> Result<()> {
    let rights = json!({
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
    });
    let calls: [(&str, &[&str]); 5] = [
        ("nft", &["/usr/sbin/nft", "-c", "add table ip one"]),
        (
            "iptables-nft",
            &["/usr/sbin/iptables-nft", "-t", "filter", "-S"],
        ),
        (
            "iptables-legacy",
            &["/usr/sbin/iptables-legacy", "--version"],
        ),
        ("ip6tables", &["/usr/sbin/ip6tables", "--version"]),
        ("conntrack", &["/usr/sbin/conntrack", "--version"]),
    ];
    let said = calls.map(|(name, words)| printed(cluster, name, image, words, (false, &rights)));
    let [_, rules, legacy, six, conntrack] = said;
    assert!(rules?.contains("-P FORWARD ACCEPT"));
    assert!(legacy?.contains("(legacy)"));
    assert!(six?.contains("(nf_tables)"));
    assert!(conntrack?.contains("conntrack v"));
    Ok(())
}

/// What a program prints that runs once in a pod: the image's own with these arguments, or another.
fn printed(
    cluster: &Cluster,
    name: &str,
    image: &str,
    words: &[&str],
    (own, rights): (bool, &Value),
) -> Result<String> {
    let key = if own { "args" } else { "command" };
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": TEST},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "one", "image": image, key: words, "securityContext": rights}],
        },
    });
    cluster.apply(&pod.to_string())?;
    let pod = format!("pod/{name}");
    let done = "--for=jsonpath={.status.phase}=Succeeded";
    cluster.kubectl(&["-n", TEST, "wait", done, &pod, "--timeout=30s"])?;
    cluster.kubectl(&["-n", TEST, "logs", name])
}
