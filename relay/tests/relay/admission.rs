use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use culvert_relay::{AdmitError, AdmitRule, BadLine, Config, Server, StartError};
use derp::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Raw, UPGRADE, config, key, until};

struct Listed {
    _folder: tempfile::TempDir,
    path: PathBuf,
    config: Config,
}

fn listed(seeds: &[u8]) -> Listed {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admit");
    write(&path, seeds);
    let mut config = config();
    config.admit = AdmitRule::File(path.clone());
    config.timing.reload = Duration::from_millis(20);
    Listed {
        _folder: folder,
        path,
        config,
    }
}

fn write(path: &PathBuf, seeds: &[u8]) {
    let mut text = String::from("# who may use the relay\n");
    for seed in seeds {
        writeln!(text, "node:{}", key(*seed)).unwrap();
    }
    std::fs::write(path, text).unwrap();
}

async fn is_refused(server: &Server, seed: u8) -> bool {
    let mut raw = Raw::joined(server, seed).await;
    raw.send(Message::Ping([1; 8])).await;
    let frame = raw.next().await.unwrap();
    if frame == Message::Pong([1; 8]).to_vec() {
        return false;
    }
    assert_eq!(frame[0], 0x14);
    assert!(String::from_utf8_lossy(&frame[5..]).contains("not admitted"));
    raw.expect_end().await;
    true
}

#[tokio::test]
async fn a_stranger_is_told_why_and_closed() {
    let listed = listed(&[1]);
    let server = Server::start(listed.config.clone()).await.unwrap();
    assert!(!is_refused(&server, 1).await);
    assert!(is_refused(&server, 2).await);
}

#[tokio::test]
async fn a_stranger_counts_as_half_open_until_it_is_gone() {
    let listed = listed(&[1]);
    let mut config = listed.config.clone();
    config.limits.half_open_per_source = 1;
    until("the next has no place beside a stranger", async || {
        let server = Server::start(config.clone()).await.unwrap();
        let _stranger = Raw::joined(&server, 2).await;
        let mut next = TcpStream::connect(server.address()).await.unwrap();
        // It may be closed already.
        let _ = next.write_all(UPGRADE.as_bytes()).await;
        !matches!(next.read(&mut [0]).await, Ok(1))
    })
    .await;
}

#[tokio::test]
async fn changes_of_the_list_take_effect() {
    let listed = listed(&[1, 2]);
    let server = Server::start(listed.config.clone()).await.unwrap();
    let mut one = Raw::joined(&server, 1).await;
    let mut two = Raw::joined(&server, 2).await;
    write(&listed.path, &[1, 3]);
    let frame = two.next().await.unwrap();
    assert!(String::from_utf8_lossy(&frame[5..]).contains("not admitted"));
    two.expect_end().await;
    assert!(!is_refused(&server, 3).await);
    assert!(is_refused(&server, 2).await);
    one.settle().await;
}

#[tokio::test]
async fn a_bad_list_leaves_the_one_in_force() {
    let listed = listed(&[1]);
    let server = Server::start(listed.config.clone()).await.unwrap();
    let mut one = Raw::joined(&server, 1).await;
    std::fs::write(&listed.path, "nonsense\n").unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    one.settle().await;
    assert!(!is_refused(&server, 1).await);
    write(&listed.path, &[2]);
    until("the good list is in force", async || {
        !is_refused(&server, 2).await
    })
    .await;
}

#[tokio::test]
async fn a_relay_does_not_start_with_a_bad_list() {
    let listed = listed(&[1]);
    std::fs::write(&listed.path, "\nnonsense\n").unwrap();
    let error = Server::start(listed.config.clone()).await.unwrap_err();
    let StartError::Admit(AdmitError::Line {
        bad: BadLine::Node { number: 2, .. },
        ..
    }) = &error
    else {
        panic!("{error}")
    };
    std::fs::remove_file(&listed.path).unwrap();
    let error = Server::start(listed.config.clone()).await.unwrap_err();
    assert!(matches!(error, StartError::Admit(AdmitError::Io { .. })));
}
