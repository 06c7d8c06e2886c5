//! The commands as a user calls them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Who has no rights beyond its own.
const NOBODY: u32 = 65_534;

fn agent(program: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(words)
        .env_remove("CULVERT_STATE")
        .env_remove("CULVERT_MANIFESTS")
        .env_remove("CULVERT_LOG_LEVEL");
    command
}

fn call(words: &[&str]) -> Output {
    agent(Path::new(env!("CARGO_BIN_EXE_culvert-agent")), words)
        .output()
        .expect("runs")
}

/// As a user for whom permissions count, also where the tests run as root.
fn call_as_nobody(program: &Path, words: &[&str]) -> Output {
    let mut command = agent(program, words);
    if nix::unistd::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.output().expect("runs")
}

/// A folder that nobody may enter, with the program in it.
fn open_folder() -> (TempDir, PathBuf) {
    let folder = TempDir::new().expect("a folder");
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("chmod");
    let program = folder.path().join("culvert-agent");
    fs::copy(env!("CARGO_BIN_EXE_culvert-agent"), &program).expect("copied");
    (folder, program)
}

fn give_to_nobody(path: &Path) {
    if nix::unistd::geteuid().is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("chown");
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn keygen_prints_the_same_key_and_nothing_else() {
    let folder = TempDir::new().expect("a folder");
    let state = folder.path().join("state");
    let first = call(&["keygen", "--state", path(&state)]);
    assert!(first.status.success(), "{}", stderr(&first));
    assert_eq!(
        (first.stdout.len(), first.stdout.last()),
        (45, Some(&b'\n'))
    );
    assert!(first.stderr.is_empty(), "{}", stderr(&first));
    assert_eq!(
        call(&["keygen", "--state", path(&state)]).stdout,
        first.stdout
    );
    let mode = |path: &Path| fs::metadata(path).expect("is there").permissions().mode() & 0o7777;
    assert_eq!((mode(&state), mode(&state.join("key"))), (0o700, 0o600));
    let text = String::from_utf8(first.stdout).expect("UTF-8");
    assert!(text.trim().parse::<derp::NodeKey>().is_ok());
}

#[test]
fn a_damaged_or_locked_key_fails_with_a_hint() {
    let (folder, program) = open_folder();
    let state = folder.path().join("state");
    fs::create_dir(&state).expect("made");
    give_to_nobody(&state);
    let key = state.join("key");
    fs::write(&key, "not a key\n").expect("written");
    give_to_nobody(&key);
    let damaged = call_as_nobody(&program, &["keygen", "--state", path(&state)]);
    assert_eq!(damaged.status.code(), Some(1));
    assert!(
        stderr(&damaged).contains("holds no private key; restore it"),
        "{}",
        stderr(&damaged)
    );
    fs::set_permissions(&key, Permissions::from_mode(0o000)).expect("chmod");
    let locked = call_as_nobody(&program, &["keygen", "--state", path(&state)]);
    assert_eq!((locked.status.code(), locked.stdout.len()), (Some(1), 0));
    assert!(
        stderr(&locked).contains("has to belong to the user"),
        "{}",
        stderr(&locked)
    );
}

#[test]
fn a_folder_that_cannot_be_written_fails_with_a_hint() {
    let (folder, program) = open_folder();
    let state = folder.path().join("state");
    fs::create_dir(&state).expect("made");
    give_to_nobody(&state);
    fs::set_permissions(&state, Permissions::from_mode(0o500)).expect("chmod");
    for state in [state, PathBuf::from("/proc/culvert-state")] {
        let output = call_as_nobody(&program, &["keygen", "--state", path(&state)]);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
        assert!(
            stderr(&output).contains("name one with --state that this user may write to"),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn status_without_an_agent_fails_with_a_hint_and_makes_nothing() {
    let folder = TempDir::new().expect("a folder");
    let state = folder.path().join("state");
    let output = call(&["status", "--state", path(&state), "-o", "json"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(
        stderr(&output).contains("no agent runs") && stderr(&output).contains("culvert-agent run"),
        "{}",
        stderr(&output)
    );
    assert!(!state.exists());
}

#[test]
fn wrong_usage_is_told_apart_from_failure() {
    for words in [
        &["frobnicate"][..],
        &["keygen"],
        &["run", "--state", "x"],
        &[
            "run",
            "--state",
            "x",
            "--kubernetes",
            "--manifests",
            "m",
            "--node",
            "n",
        ],
        &["join", "--state", "x"],
        &["cleanup", "--state", "x", "--health", "127.0.0.1:0"],
        &["status", "--state", "x", "-o", "xml"],
        &[],
    ] {
        let output = call(words);
        assert_eq!(
            (output.status.code(), output.stdout.len()),
            (Some(2), 0),
            "{words:?}"
        );
        assert!(
            stderr(&output).contains("--help") || stderr(&output).contains("Usage: "),
            "{words:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn help_teaches() {
    let version = call(&["--version"]);
    assert_eq!(
        String::from_utf8_lossy(&version.stdout),
        format!("culvert-agent {}\n", env!("CARGO_PKG_VERSION"))
    );
    for (words, expected) in [
        (
            &["--help"][..],
            "culvert-agent keygen --state /var/lib/culvert",
        ),
        (
            &["run", "--help"],
            "culvert-agent run --manifests /etc/culvert --state",
        ),
        (&["run", "--help"], "--kubernetes --node"),
        (&["join", "--help"], "kubectl culvert invite --host"),
        (&["cleanup", "--help"], "--purge --then-wait"),
        (&["status", "--help"], "as JSON"),
        (&["keygen", "--help"], "44 characters"),
    ] {
        let output = call(words);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains(expected),
            "{words:?}: {text}"
        );
    }
}

#[test]
fn a_bad_token_fails_with_a_hint_shows_nothing_of_it_and_makes_nothing() {
    let folder = TempDir::new().expect("a folder");
    let state = folder.path().join("state");
    let file = folder.path().join("token");
    fs::write(&file, "cvt1.c2VjcmV0c2VjcmV0\n").expect("written");
    for (words, hint) in [
        (&["--token-file", path(&file)][..], "token"),
        (&["hello-secret"], "cvt1."),
        (&["--token-file", "/nonexistent"], "cannot read the token"),
    ] {
        let words = [
            &["join", "--state", path(&state), "--log-level", "trace"],
            words,
        ]
        .concat();
        let output = call(&words);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
        let told = stderr(&output);
        assert!(told.contains(hint), "{told}");
        assert!(
            !told.contains("c2VjcmV0") && !told.contains("hello-secret"),
            "{told}"
        );
        assert!(!state.exists());
    }
}
