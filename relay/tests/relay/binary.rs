use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Raw, key, secret};

/// Kills what it holds, also when a test fails.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert-relay"));
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = command(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[tokio::test]
async fn the_process_says_where_it_listens_and_stops_when_asked() {
    let args = [
        "--listen",
        "127.0.0.1:0",
        "--admit-any",
        "--log-format",
        "json",
        "--stun",
        "127.0.0.1:0",
    ];
    let mut process = Process(command(&args).spawn().unwrap());
    let mut lines = BufReader::new(process.0.stderr.take().unwrap()).lines();
    let line = lines
        .find(|line| line.as_ref().unwrap().contains("\"listening\""))
        .unwrap()
        .unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let address = line["fields"]["address"].as_str().unwrap().parse().unwrap();
    let server = line["fields"]["key"].as_str().unwrap().parse().unwrap();
    let mut raw = Raw::upgraded(address).await;
    raw.handshake(server, &secret(1)).await;
    let pid = Pid::from_raw(i32::try_from(process.0.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(raw.next().await.unwrap()[0], 0x15, "Restarting");
    raw.expect_end().await;
    drop(raw);
    assert_eq!(process.0.wait().unwrap().code(), Some(0));
    let mut stdout = String::new();
    process
        .0
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut stdout)
        .unwrap();
    assert_eq!(stdout, "", "logs go to stderr only");
}

#[test]
fn usage_errors_say_what_is_missing() {
    let (code, _, stderr) = run(&["--listen", "127.0.0.1:0"]);
    assert_eq!(code, Some(2));
    assert!(
        stderr.contains("--admit <FILE>") && stderr.contains("--admit-any"),
        "{stderr}"
    );
    let (code, _, stderr) = run(&[
        "--listen",
        "127.0.0.1:0",
        "--admit-any",
        "--log-level",
        "culvert_relay=loud",
    ]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("use for instance info"), "{stderr}");
    let (code, _, _) = run(&["--nonsense"]);
    assert_eq!(code, Some(2));
}

#[test]
fn failures_say_what_and_where() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admit");
    std::fs::write(&path, format!("{}\nnonsense\n", key(1))).unwrap();
    let (code, _, stderr) = run(&["--listen", "127.0.0.1:0", "--admit", path.to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("line 2"), "{stderr}");
    let (code, _, stderr) = run(&["--listen", "192.0.2.1:1", "--admit-any"]);
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("192.0.2.1:1") && stderr.contains("give an address that this machine has"),
        "{stderr}"
    );
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let stun = taken.local_addr().unwrap().to_string();
    let (code, _, stderr) = run(&[
        "--listen",
        "127.0.0.1:0",
        "--admit-any",
        "--stun",
        "127.0.0.2:0",
        "--stun",
        &stun,
    ]);
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains(&format!("cannot listen on {stun} (UDP)"))
            && stderr.contains("give another port"),
        "{stderr}"
    );
}

#[test]
fn help_and_version_are_not_errors() {
    let (code, stdout, _) = run(&["--help"]);
    assert_eq!(code, Some(0));
    assert!(
        stdout.contains("--admit-any") && stdout.contains("DERP"),
        "{stdout}"
    );
    let (code, stdout, _) = run(&["--version"]);
    assert_eq!(
        (code, stdout.as_str()),
        (
            Some(0),
            concat!("culvert-relay ", env!("CARGO_PKG_VERSION"), "\n")
        )
    );
}
