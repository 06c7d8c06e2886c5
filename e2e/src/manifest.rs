//! Manifests for agents, as text.

use std::fmt::Write as _;

use ipnet::IpNet;

/// What one site is told about itself.
#[derive(Clone, Debug)]
pub struct MeshManifest {
    /// The site's name.
    pub cluster_name: String,
    /// What its node serves.
    pub pod_cidrs: Vec<IpNet>,
    /// URLs of relays, with the STUN port of each.
    pub relays: Vec<(String, u16)>,
    /// The UDP port; random without.
    pub listen_port: Option<u16>,
}

/// What a site is told about another.
#[derive(Clone, Debug)]
pub struct PeerManifest {
    /// The other site's name.
    pub name: String,
    /// What it may bring.
    pub allowed_cidrs: Vec<IpNet>,
    /// Its nodes: name, public key, prefixes.
    pub nodes: Vec<(String, String, Vec<IpNet>)>,
}

impl MeshManifest {
    /// The YAML document.
    pub fn yaml(&self) -> String {
        let mut text = head("Mesh", "default");
        let _ = writeln!(text, "  clusterName: {}", self.cluster_name);
        let _ = writeln!(text, "  podCIDRs: [{}]", list(&self.pod_cidrs));
        if let Some(port) = self.listen_port {
            let _ = writeln!(text, "  listenPort: {port}");
        }
        if !self.relays.is_empty() {
            text += "  relays:\n    external:\n";
        }
        for (url, stun) in &self.relays {
            let _ = writeln!(text, "      - {{url: \"{url}\", stunPort: {stun}}}");
        }
        text
    }
}

impl PeerManifest {
    /// The YAML document.
    pub fn yaml(&self) -> String {
        let mut text = head("Peer", &self.name);
        let _ = writeln!(text, "  allowedCIDRs: [{}]", list(&self.allowed_cidrs));
        text += "  nodes:\n";
        for (name, key, prefixes) in &self.nodes {
            let _ = writeln!(text, "    - name: {name}");
            let _ = writeln!(text, "      publicKey: \"{key}\"");
            let _ = writeln!(text, "      prefixes: [{}]", list(prefixes));
        }
        text
    }
}

fn head(kind: &str, name: &str) -> String {
    format!("apiVersion: culvert.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n")
}

/// IPv6 in braces of YAML needs quotes.
fn list(prefixes: &[IpNet]) -> String {
    prefixes
        .iter()
        .map(|prefix| format!("\"{prefix}\""))
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_reads_like_the_contract() {
        let prefix: IpNet = "10.2.0.0/16".parse().expect("a prefix");
        let peer = PeerManifest {
            name: "tokyo".to_owned(),
            allowed_cidrs: vec![prefix],
            nodes: vec![("tokyo-1".to_owned(), "key".to_owned(), vec![prefix])],
        };
        let expected = "apiVersion: culvert.dev/v1alpha1\nkind: Peer\nmetadata: {name: tokyo}\nspec:\n  \
                        allowedCIDRs: [\"10.2.0.0/16\"]\n  nodes:\n    - name: tokyo-1\n      publicKey: \"key\"\n      \
                        prefixes: [\"10.2.0.0/16\"]\n";
        assert_eq!(peer.yaml(), expected);
    }
}
