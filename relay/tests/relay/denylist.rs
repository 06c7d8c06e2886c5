use std::net::SocketAddr;
use std::time::Duration;

use culvert_relay::Server;
use derp::Refusal;
use derp::pass::{DenyList, MAX_DENY_LIST, Scope};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::http::ask;
use crate::passes::{Owned, cluster, identity, own_pass, pass_of};
use crate::support::{PATIENCE, Raw, key, read_head, relay, secret};

fn list(owner: u8, serial: u64, nodes: &[u8], clusters: &[u8]) -> DenyList {
    let nodes = nodes.iter().map(|seed| key(*seed)).collect();
    let clusters = clusters.iter().map(|seed| identity(*seed)).collect();
    DenyList::issue(&cluster(owner), serial, nodes, clusters).unwrap()
}

/// The status of the answer.
async fn put(address: SocketAddr, body: &str) -> u16 {
    status(&put_whole(address, body).await)
}

/// The answer, headers and all.
async fn put_whole(address: SocketAddr, body: &str) -> String {
    let length = body.len();
    let request = format!("PUT /denylist HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}");
    ask(address, &request).await
}

fn status(answer: &str) -> u16 {
    let text = answer.strip_prefix("HTTP/1.1 ").unwrap();
    text[..3].parse().unwrap()
}

async fn deny(server: &Server, list: &DenyList) -> u16 {
    put(server.address(), &list.to_json()).await
}

#[tokio::test]
async fn denied_nodes_and_clusters_are_out_at_once() {
    let owned = Owned::by(&[10], &[1, 4]);
    let server = owned.start().await;
    let by_pass = own_pass(10, key(2));
    let of_member = pass_of(10, 20, key(3), Scope::Mesh);
    let of_other = pass_of(10, 21, key(5), Scope::Mesh);
    let mut listed = Raw::joined(&server, 1).await;
    let mut by_pass_raw = Raw::shown(&server, &secret(2), Some(&by_pass)).await;
    let mut of_member_raw = Raw::shown(&server, &secret(3), Some(&of_member)).await;
    let mut others = [
        Raw::joined(&server, 4).await,
        Raw::shown(&server, &secret(5), Some(&of_other)).await,
        Raw::shown(&server, &cluster(10).relay_secret(), None).await,
    ];
    assert_eq!(deny(&server, &list(10, 1, &[1, 2], &[20])).await, 204);
    for raw in [&mut listed, &mut by_pass_raw, &mut of_member_raw] {
        raw.expect_refusal(Refusal::Denied).await;
    }
    for raw in &mut others {
        raw.settle().await;
    }
    let mut again = Raw::shown(&server, &secret(3), Some(&of_member)).await;
    again.expect_refusal(Refusal::Denied).await;
    assert_eq!(deny(&server, &list(10, 2, &[], &[])).await, 204);
    let mut forgiven = Raw::shown(&server, &secret(3), Some(&of_member)).await;
    forgiven.settle().await;
}

#[tokio::test]
async fn serials_rise() {
    let owned = Owned::by(&[10, 11], &[]);
    let server = owned.start().await;
    assert_eq!(deny(&server, &list(10, 5, &[2], &[])).await, 204);
    for serial in [0, 4, 5] {
        let body = list(10, serial, &[], &[]).to_json();
        let answer = put_whole(server.address(), &body).await;
        assert_eq!(status(&answer), 409);
        assert!(answer.contains("\r\nDeny-List-Serial: 5\r\n"), "{answer}");
    }
    assert_eq!(
        deny(&server, &list(10, 5, &[2], &[])).await,
        204,
        "the same list once more"
    );
    assert_eq!(deny(&server, &list(11, 1, &[], &[])).await, 204);
    let pass = own_pass(10, key(2));
    let mut denied = Raw::shown(&server, &secret(2), Some(&pass)).await;
    denied.expect_refusal(Refusal::Denied).await;
    server.shutdown().await;
    let restarted = owned.start().await;
    assert_eq!(
        deny(&restarted, &list(10, 5, &[2], &[])).await,
        204,
        "pushed again"
    );
}

#[tokio::test]
async fn only_owners_deny() {
    let owned = Owned::by(&[10], &[1]);
    let server = owned.start().await;
    let mut listed = Raw::joined(&server, 1).await;
    assert_eq!(deny(&server, &list(11, 1, &[1], &[])).await, 403);
    let json = list(10, 1, &[1], &[]).to_json();
    let unsigned = json.split(",\"signature\"").next().unwrap().to_owned() + "}";
    let changed = json.replace("\"serial\":1", "\"serial\":2");
    for body in [unsigned, changed] {
        assert_eq!(put(server.address(), &body).await, 403, "{body}");
    }
    listed.settle().await;
    assert_eq!(put(relay().await.address(), &json).await, 403, "no owners");
}

#[tokio::test]
async fn what_is_no_list_is_refused() {
    let owned = Owned::by(&[10], &[]);
    let server = owned.start().await;
    let address = server.address();
    for body in ["", "{}", "[]", "nonsense", "{\"serial\":-1}", "\0"] {
        assert_eq!(put(address, body).await, 400, "{body}");
    }
    let long = " ".repeat(MAX_DENY_LIST + 1);
    for (request, expected) in [
        ("PUT /denylist HTTP/1.1\r\n\r\n".to_owned(), 411),
        (
            format!(
                "PUT /denylist HTTP/1.1\r\nContent-Length: {}\r\n\r\n{long}",
                long.len()
            ),
            413,
        ),
        (
            "PUT /denylist HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n".to_owned(),
            411,
        ),
        ("GET /denylist HTTP/1.1\r\n\r\n".to_owned(), 405),
        ("DELETE /denylist HTTP/1.1\r\n\r\n".to_owned(), 405),
    ] {
        assert_eq!(status(&ask(address, &request).await), expected);
    }
}

#[tokio::test]
async fn a_list_that_never_comes_is_not_waited_for() {
    let mut owned = Owned::by(&[10], &[]);
    owned.config.timing.setup = Duration::from_millis(200);
    let server = owned.start().await;
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let head = format!("PUT /denylist HTTP/1.1\r\nContent-Length: {MAX_DENY_LIST}\r\n\r\n{{");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    assert!(ended.is_ok() && answer.is_empty(), "{answer:?}");
}

#[tokio::test]
async fn the_list_may_come_late_and_in_pieces() {
    let owned = Owned::by(&[10], &[]);
    let server = owned.start().await;
    let json = list(10, 1, &[1, 2, 3], &[20]).to_json();
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let length = json.len();
    let head = format!(
        "PUT /denylist HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let (head, _) = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 100 "), "{head}");
    for piece in json.as_bytes().chunks(100) {
        stream.write_all(piece).await.unwrap();
        stream.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status(&answer), 204);
}
