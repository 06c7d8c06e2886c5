use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

/// Names and contents, unreadable ones as what the system says.
fn shown(read: Option<FolderRead>) -> Vec<(String, String)> {
    match read.expect("a change") {
        FolderRead::Unreadable { folder, error } => vec![(folder, error)],
        FolderRead::Objects(_) | FolderRead::Waiting { .. } => panic!("not a folder"),
        FolderRead::Files(files) => files
            .into_iter()
            .map(|file| {
                (
                    file.name,
                    file.content.map_or_else(
                        |error| error,
                        |bytes| String::from_utf8_lossy(&bytes).into_owned(),
                    ),
                )
            })
            .collect(),
    }
}

fn pair(name: &str, content: &str) -> (String, String) {
    (name.to_owned(), content.to_owned())
}

#[test]
fn only_manifests_are_read_and_the_first_look_waits_for_nothing() {
    let folder = TempDir::new().expect("a folder");
    for (name, content) in [
        ("b.yaml", "b"),
        ("a.yml", "a"),
        (".hidden.yaml", "x"),
        ("c.json", "x"),
        ("yaml", "x"),
    ] {
        fs::write(folder.path().join(name), content).expect("written");
    }
    fs::create_dir(folder.path().join("sub")).expect("made");
    fs::write(folder.path().join("sub/d.yaml"), "x").expect("written");
    let mut watcher = Watcher::new(folder.path());
    assert_eq!(
        shown(watcher.look()),
        [pair("a.yml", "a"), pair("b.yaml", "b")]
    );
    assert_eq!(watcher.look(), None);
}

#[test]
fn changes_are_taken_once_they_stand_still() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("a.yaml");
    fs::write(&path, "1").expect("written");
    let mut watcher = Watcher::new(folder.path());
    watcher.look();
    fs::write(&path, "").expect("written");
    assert_eq!(watcher.look(), None);
    fs::write(&path, "22").expect("written");
    assert_eq!(watcher.look(), None);
    assert_eq!(shown(watcher.look()), [pair("a.yaml", "22")]);
    fs::remove_file(&path).expect("removed");
    assert_eq!(watcher.look(), None);
    fs::write(&path, "333").expect("written");
    assert_eq!(watcher.look(), None);
    assert_eq!(shown(watcher.look()), [pair("a.yaml", "333")]);
    fs::remove_file(&path).expect("removed");
    assert_eq!(watcher.look(), None);
    assert_eq!(shown(watcher.look()), []);
}

#[test]
fn a_file_that_never_stands_still_is_taken_all_the_same() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("a.yaml");
    let mut watcher = Watcher::new(folder.path());
    watcher.look();
    let taken = (1..=4).find(|size| {
        fs::write(&path, "x".repeat(*size)).expect("written");
        watcher.look().is_some()
    });
    assert_eq!(taken, Some(3));
}

#[test]
fn what_cannot_be_read_is_reported_and_tried_again() {
    let folder = TempDir::new().expect("a folder");
    symlink("nowhere", folder.path().join("a.yaml")).expect("linked");
    fs::create_dir(folder.path().join("b.yaml")).expect("made");
    nix::unistd::mkfifo(&folder.path().join("c.yaml"), nix::sys::stat::Mode::S_IRUSR)
        .expect("made");
    let mut watcher = Watcher::new(folder.path());
    let seen = shown(watcher.look());
    assert!(seen[0].1.contains("No such file"), "{seen:?}");
    assert_eq!(
        seen[1..],
        [
            pair("b.yaml", "not a regular file"),
            pair("c.yaml", "not a regular file")
        ]
    );
    fs::write(folder.path().join("nowhere"), "a").expect("written");
    assert_eq!(watcher.look(), None);
    assert_eq!(shown(watcher.look())[0], pair("a.yaml", "a"));
}

#[test]
fn a_missing_folder_is_reported_and_may_come() {
    let outer = TempDir::new().expect("a folder");
    let path = outer.path().join("manifests");
    let mut watcher = Watcher::new(&path);
    let seen = shown(watcher.look());
    assert_eq!(seen[0].0, path.display().to_string());
    assert_eq!(watcher.look(), None);
    fs::create_dir(&path).expect("made");
    assert_eq!(shown(watcher.look()), []);
}

#[test]
fn no_more_is_read_than_is_needed_to_refuse() {
    let folder = TempDir::new().expect("a folder");
    fs::write(
        folder.path().join("a.yaml"),
        vec![b'#'; MAX_FILE_BYTES + 100],
    )
    .expect("written");
    let mut watcher = Watcher::new(folder.path());
    assert_eq!(shown(watcher.look())[0].1.len(), MAX_FILE_BYTES + 1);
}
