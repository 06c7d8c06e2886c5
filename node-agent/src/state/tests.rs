use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

fn folder() -> (TempDir, StateFolder) {
    let outer = TempDir::new().expect("a folder");
    let state = StateFolder::open(&outer.path().join("a/state")).expect("opens");
    (outer, state)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("is there").permissions().mode() & 0o7777
}

#[test]
fn the_folder_is_made_and_tightened() {
    let (_outer, state) = folder();
    assert_eq!(mode(state.path()), 0o700);
    fs::set_permissions(state.path(), Permissions::from_mode(0o755)).expect("chmod");
    StateFolder::open(state.path()).expect("opens");
    assert_eq!(mode(state.path()), 0o700);
}

#[test]
fn a_folder_that_is_none_is_refused_with_a_hint() {
    let (outer, _) = folder();
    let file = outer.path().join("file");
    fs::write(&file, "").expect("written");
    let error = StateFolder::open(&file).expect_err("refused").to_string();
    assert!(error.contains("--state"), "{error}");
}

#[test]
fn the_key_is_made_once_and_closed_to_others() {
    let (_outer, state) = folder();
    let key = state.key().expect("a key").public();
    let path = state.path().join(KEY);
    assert_eq!(mode(&path), 0o600);
    fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("chmod");
    assert_eq!(state.key().expect("a key").public(), key);
    assert_eq!(mode(&path), 0o600);
    let left: Vec<_> = fs::read_dir(state.path()).expect("lists").collect();
    assert_eq!(left.len(), 1, "temporary files stay behind: {left:?}");
}

#[test]
fn many_at_once_make_one_key() {
    let (_outer, state) = folder();
    let make = || state.key().expect("a key").public();
    let keys: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(make)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("ends"))
            .collect()
    });
    assert!(keys.iter().all(|key| *key == keys[0]));
}

#[test]
fn a_damaged_key_is_refused_and_kept() {
    let (_outer, state) = folder();
    let path = state.path().join(KEY);
    for text in ["", "garbage\n", "\u{fffd}"] {
        fs::write(&path, text).expect("written");
        let error = state.key().expect_err("refused");
        assert!(matches!(error, StateError::Key { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("is there"), text);
    }
    fs::remove_file(&path).expect("removed");
    symlink("/", &path).expect("linked");
    assert!(matches!(state.key(), Err(StateError::Read { .. })));
}

#[test]
fn the_port_is_kept_and_a_damaged_one_replaced() {
    let (_outer, state) = folder();
    let port = state.port().expect("a port");
    assert!(PORTS.contains(&port));
    assert_eq!(state.port().expect("a port"), port);
    for text in ["80", "x", ""] {
        fs::write(state.path().join(PORT), text).expect("written");
        assert!(PORTS.contains(&state.port().expect("a port")));
    }
    assert_eq!(mode(&state.path().join(PORT)), 0o600);
}

#[test]
fn saved_manifests_come_back_and_damaged_ones_count_as_none() {
    let (_outer, state) = folder();
    assert_eq!(state.saved().expect("readable"), None);
    state.save(&SavedState::default()).expect("saved");
    assert_eq!(
        state.saved().expect("readable"),
        Some(SavedState::default())
    );
    fs::write(state.path().join(MANIFESTS), "{").expect("written");
    assert_eq!(state.saved().expect("readable"), None);
}

#[test]
fn one_agent_at_a_time() {
    let (_outer, state) = folder();
    let lock = state.lock().expect("free");
    let error = state.lock().expect_err("taken").to_string();
    assert!(
        error.contains(&format!("pid {}", std::process::id())),
        "{error}"
    );
    drop(lock);
    state.lock().expect("free again");
}

#[test]
fn clearing_keeps_the_key_unless_purged() {
    let (_outer, state) = folder();
    let key = state.key().expect("a key").public();
    let port = state.port().expect("a port");
    state.save(&SavedState::default()).expect("saved");
    state.clear(false).expect("cleared");
    assert_eq!(
        (
            state.key().expect("a key").public(),
            state.port().expect("a port")
        ),
        (key, port)
    );
    assert_eq!(state.saved().expect("readable"), None);
    fs::write(state.path().join("foreign"), "").expect("written");
    state.clear(true).expect("purged");
    assert!(state.path().join("foreign").exists() && !state.path().join(KEY).exists());
    fs::remove_file(state.path().join("foreign")).expect("removed");
    state.clear(true).expect("purged");
    assert!(!state.path().exists());
}
