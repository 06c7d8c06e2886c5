//! Every code of the reader occurs, at the place it should, and harms nothing that is in force.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use api::{
    Code, FileRead, FolderRead, MAX_DOCUMENTS, MAX_FILE_BYTES, ManifestError, Store, Surroundings,
};
use derp::NodeKey;

/// The error that a file must have.
#[derive(Debug, PartialEq, Eq)]
struct Expected {
    file: String,
    document: usize,
    field: String,
    code: Code,
}

#[test]
fn every_code_is_reported_where_it_belongs_and_harms_no_other() {
    let mut seen = BTreeSet::new();
    for (expected, content) in files().into_iter().chain(made()) {
        let mut store = store_with_base();
        let accepted = store.accepted().clone();
        let file = FileRead {
            name: expected.file.clone(),
            content,
        };
        store.update(&folder(vec![file]), &surroundings());
        check(&store, &expected);
        assert_eq!(store.accepted().mesh, accepted.mesh, "{expected:?}");
        assert!(
            store.accepted().peers.contains(&accepted.peers[0]),
            "{expected:?}"
        );
        seen.insert(expected.code);
    }
    seen.insert(check_unreadable_folder());
    seen.insert(check_waiting());
    let missing: Vec<_> = Code::ALL
        .iter()
        // An operator admits; a folder has none.
        .filter(|code| **code != Code::NotAdmitted && !seen.contains(code))
        .collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
}

fn check(store: &Store, expected: &Expected) {
    let errors: Vec<&ManifestError> = store
        .statuses()
        .iter()
        .flat_map(|status| &status.errors)
        .collect();
    let hit = errors.iter().find(|error| {
        error.file == expected.file
            && error.document == expected.document
            && error.field == expected.field
            && error.code == expected.code
    });
    let hit = hit.unwrap_or_else(|| panic!("{expected:?} is not among {errors:#?}"));
    assert!(
        hit.message.len() > 15 && !hit.message.contains('\n'),
        "{hit:?}"
    );
    let fine = store
        .statuses()
        .iter()
        .filter(|status| status.accepted)
        .count();
    assert!(
        fine >= 2,
        "Mesh and Peer are no longer accepted: {:#?}",
        store.statuses()
    );
}

/// The folder is gone: what was read from it stays.
fn check_waiting() -> Code {
    let mut store = store_with_base();
    let accepted = store.accepted().clone();
    let what = "the API server".to_owned();
    store.update(&FolderRead::Waiting { what }, &surroundings());
    assert_eq!(*store.accepted(), accepted);
    store.statuses()[0].errors[0].code
}

fn check_unreadable_folder() -> Code {
    let mut store = store_with_base();
    let accepted = store.accepted().clone();
    let gone = FolderRead::Unreadable {
        folder: "/etc/culvert/manifests".to_owned(),
        error: "No such file or directory".to_owned(),
    };
    store.update(&gone, &surroundings());
    assert_eq!(store.accepted(), &accepted);
    let first = store
        .statuses()
        .first()
        .and_then(|status| status.errors.first())
        .expect("reported");
    assert_eq!(
        (first.file.as_str(), first.document, first.field.as_str()),
        ("/etc/culvert/manifests", 0, "")
    );
    first.code
}

fn files() -> Vec<(Expected, Result<Vec<u8>, String>)> {
    let folder = testdata().join("refusals");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .expect("testdata")
        .map(|entry| entry.expect("entry").path())
        .collect();
    paths.sort();
    let read = |path: &PathBuf| {
        let bytes = fs::read(path).expect("readable");
        let expected = parse_header(&bytes);
        assert_eq!(
            path.file_name().and_then(|name| name.to_str()),
            Some(expected.file.as_str())
        );
        (expected, Ok(filled_in(bytes)))
    };
    paths.iter().map(read).collect()
}

/// Cases that are no files: too large to keep, or not readable at all.
fn made() -> Vec<(Expected, Result<Vec<u8>, String>)> {
    let expected = |file: &str, code| Expected {
        file: file.to_owned(),
        document: 0,
        field: String::new(),
        code,
    };
    vec![
        (
            expected("locked.yaml", Code::FileUnreadable),
            Err("Permission denied".to_owned()),
        ),
        (
            expected("large.yaml", Code::FileTooLarge),
            Ok(vec![b'#'; MAX_FILE_BYTES + 1]),
        ),
        (
            expected("many.yaml", Code::TooManyDocuments),
            Ok("---\n".repeat(MAX_DOCUMENTS + 1).into_bytes()),
        ),
    ]
}

fn parse_header(bytes: &[u8]) -> Expected {
    let line = bytes.split(|byte| *byte == b'\n').next().expect("a line");
    let line = std::str::from_utf8(line).expect("header is text");
    let words = line.strip_prefix("# expect: ").expect("header").split(' ');
    let mut values = words.map(|word| word.split_once('=').expect("key=value").1);
    let mut next = || values.next().expect("four values").to_owned();
    Expected {
        file: next(),
        document: next().parse().expect("a number"),
        field: next(),
        code: next().parse().expect("a code"),
    }
}

fn store_with_base() -> Store {
    let mut store = Store::new(key(1), None);
    let accepted = store.update(&folder(Vec::new()), &surroundings());
    assert!(
        accepted.mesh.is_some() && accepted.peers.len() == 1,
        "{:#?}",
        store.statuses()
    );
    store
}

fn folder(mut files: Vec<FileRead>) -> FolderRead {
    for name in ["mesh.yaml", "peer.yaml"] {
        let bytes = fs::read(testdata().join("base").join(name)).expect("base");
        files.push(FileRead {
            name: format!("base-{name}"),
            content: Ok(filled_in(bytes)),
        });
    }
    FolderRead::Files(files)
}

fn surroundings() -> Surroundings {
    Surroundings {
        connected: vec!["192.0.2.0/24".parse().expect("prefix")],
        relay_addresses: vec!["203.0.113.20".parse().expect("address")],
        reserved: Vec::new(),
    }
}

fn filled_in(bytes: Vec<u8>) -> Vec<u8> {
    let values = [
        ("MESH", "default".to_owned()),
        ("PEER", "tokyo".to_owned()),
        ("OWN_KEY", key(1).to_string()),
        ("PEER_KEY", key(2).to_string()),
        ("FREE_KEY", key(3).to_string()),
        ("OWN_CIDR", "10.1.0.0/16".to_owned()),
        ("PEER_CIDR", "10.2.0.0/16".to_owned()),
        ("FREE_CIDR", "10.77.0.0/16".to_owned()),
        ("CONNECTED_CIDR", "192.0.2.0/24".to_owned()),
        ("RELAY_URL", "http://203.0.113.20:8080".to_owned()),
        ("RELAY_CIDR", "203.0.113.0/24".to_owned()),
    ];
    values.iter().fold(bytes, |bytes, (name, value)| {
        replace(&bytes, &format!("${{{name}}}"), value)
    })
}

fn replace(mut rest: &[u8], from: &str, to: &str) -> Vec<u8> {
    let mut replaced = Vec::new();
    while let Some(at) = rest
        .windows(from.len())
        .position(|window| window == from.as_bytes())
    {
        replaced.extend_from_slice(&rest[..at]);
        replaced.extend_from_slice(to.as_bytes());
        rest = &rest[at + from.len()..];
    }
    replaced.extend_from_slice(rest);
    replaced
}

/// Some valid public key.
fn key(number: u8) -> NodeKey {
    let mut hex = "00".repeat(31);
    hex.insert_str(0, &format!("{:02x}", 0x10 + number));
    format!("nodekey:{hex}").parse().expect("a key")
}

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}
