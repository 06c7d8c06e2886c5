//! No input makes the reader panic.

use api::{FileRead, FolderRead, Store, Surroundings, read_manifests};
use derp::NodeKey;
use proptest::prelude::*;

fn own_key() -> NodeKey {
    format!("nodekey:{}11", "00".repeat(31))
        .parse()
        .expect("a key")
}

/// Pieces of manifests in any order: gets deeper than random bytes do.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("apiVersion: culvert.dev/v1alpha1\n"),
        Just("kind: Peer\n"),
        Just("kind: Mesh\n"),
        Just("metadata: {name: a}\n"),
        Just("metadata: {name: b, labels: {x: y}}\n"),
        Just("spec:\n"),
        Just("  clusterName: berlin\n"),
        Just("  podCIDRs: [10.1.0.0/16, fd00::/64]\n"),
        Just("  allowedCIDRs: [10.2.0.0/16]\n"),
        Just("  allowedCIDRs: [10.0.0.0/8, ::/0]\n"),
        Just("  nodes: [{name: n, publicKey: x, prefixes: []}]\n"),
        Just("  mtu: -1\n"),
        Just("  listenPort: 99999999999999999999\n"),
        Just("  relays: {external: [{url: 'http://[::1]:1', stunPort: 0}]}\n"),
        Just("---\n"),
        Just("...\n"),
        Just("x: &a [*a]\n"),
        Just("- {]\n"),
    ];
    prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

fn file(content: impl Into<Vec<u8>>) -> FileRead {
    FileRead {
        name: "a.yaml".to_owned(),
        content: Ok(content.into()),
    }
}

proptest! {
    #[test]
    fn bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = read_manifests(&file(bytes), own_key());
    }

    #[test]
    fn text(text in "[\\PC\n\t]{0,200}") {
        let _ = read_manifests(&file(text), own_key());
    }

    #[test]
    fn manifests(first in pieces(), second in pieces()) {
        let mut store = Store::new(own_key(), None);
        for text in [first, second] {
            store.update(&FolderRead::Files(vec![file(text)]), &Surroundings::default());
            let saved = store.saved();
            let mut again = Store::new(own_key(), Some(saved.clone()));
            let unreadable = FolderRead::Unreadable { folder: "x".to_owned(), error: "y".to_owned() };
            prop_assert_eq!(again.update(&unreadable, &Surroundings::default()), store.accepted());
            prop_assert_eq!(again.saved(), saved);
        }
    }
}
