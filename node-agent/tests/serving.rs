//! Status and metrics of a running agent, with an engine that stands still.

use std::os::unix::fs::PermissionsExt;
use std::pin::Pin;
use std::sync::Arc;

use api::{FolderRead, ManifestStatus, Store, Surroundings};
use culvert_agent::{
    ManifestBoard, MetricsServer, Reporter, Snapshot, StateFolder, StatusError, StatusServer,
    StatusSource, fetch,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

struct Still;

impl Reporter for Still {
    fn snapshot(&self) -> Pin<Box<dyn Future<Output = Snapshot> + Send + '_>> {
        Box::pin(async {
            Snapshot {
                home_relay: Some("https://relay.example".to_owned()),
                ..Snapshot::default()
            }
        })
    }
}

fn source(state: &StateFolder) -> StatusSource {
    let source = StatusSource {
        started_at: jiff::Timestamp::now(),
        public_key: state.key().expect("a key").public(),
        port: state.port().expect("a port"),
        manifests: Arc::new(ManifestBoard::default()),
        reporter: Arc::new(Still),
    };
    source.manifests.post(&refused(&source));
    source
}

/// The status of a folder that is missing.
fn refused(source: &StatusSource) -> Vec<ManifestStatus> {
    let mut store = Store::new(source.public_key, None);
    let folder = FolderRead::Unreadable {
        folder: "/nowhere".to_owned(),
        error: "No such file or directory".to_owned(),
    };
    store.update(&folder, &Surroundings::default());
    store.statuses().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_answers_every_connection_with_the_status() {
    let folder = TempDir::new().expect("a folder");
    let state = StateFolder::open(folder.path()).expect("opens");
    let source = source(&state);
    for _ in 0..2 {
        // The second one finds the socket of the first in its place.
        let server = StatusServer::bind(&state.socket()).expect("binds");
        let mode = std::fs::metadata(state.socket())
            .expect("is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let serving = tokio::spawn(server.serve(source.clone()));
        for _ in 0..40 {
            let path = state.path().to_owned();
            let status = tokio::task::spawn_blocking(move || fetch(&path))
                .await
                .expect("ends")
                .expect("answers");
            assert_eq!(status, source.status().await);
        }
        serving.abort();
        assert!(serving.await.expect_err("ended").is_cancelled());
    }
    assert!(matches!(
        fetch(state.path()),
        Err(StatusError::NoAgent { .. })
    ));
}

#[tokio::test]
async fn the_status_has_the_documented_shape() {
    let folder = TempDir::new().expect("a folder");
    let state = StateFolder::open(folder.path()).expect("opens");
    let source = source(&state);
    let status = serde_json::to_value(source.status().await).expect("serialises");
    assert_eq!(status["node"]["publicKey"], source.public_key.to_string());
    assert_eq!(status["node"]["listenPort"], source.port);
    assert_eq!(
        status["node"]["nat"],
        serde_json::json!({"mapping": "unknown", "filtering": "unknown", "reflexive": []})
    );
    assert_eq!(status["peers"], serde_json::json!([]));
    let manifest = &status["manifests"][0];
    assert_eq!(
        (&manifest["kind"], &manifest["name"], &manifest["accepted"]),
        (
            &serde_json::Value::Null,
            &serde_json::Value::Null,
            &false.into()
        )
    );
    assert_eq!(
        (
            &manifest["errors"][0]["code"],
            &manifest["errors"][0]["document"]
        ),
        (&"FolderUnreadable".into(), &0.into())
    );
    let started: jiff::Timestamp = status["agent"]["startedAt"]
        .as_str()
        .expect("a text")
        .parse()
        .expect("RFC 3339");
    assert_eq!(started, source.started_at);
}

async fn ask(server: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(server).await.expect("connects");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answers");
    answer
}

#[tokio::test]
async fn metrics_are_served_and_nothing_else() {
    let folder = TempDir::new().expect("a folder");
    let state = StateFolder::open(folder.path()).expect("opens");
    let server = MetricsServer::bind(([127, 0, 0, 1], 0).into())
        .await
        .expect("binds");
    let address = server.address().expect("known");
    let serving = tokio::spawn(server.serve(source(&state)));
    let metrics = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    for line in [
        "HTTP/1.1 200 OK\r\n",
        "\nculvert_manifests_refused 1\n",
        "\nculvert_nodes{path=\"direct\"} 0\n",
        "\nculvert_relay_connected 1\n",
        "\n# EOF\n",
    ] {
        assert!(metrics.contains(line), "{line:?} is not in\n{metrics}");
    }
    assert!(
        ask(address, "GET /healthz HTTP/1.0\r\n\r\n")
            .await
            .ends_with("\r\n\r\nok\n")
    );
    assert!(
        ask(address, "GET / HTTP/1.1\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 404 ")
    );
    assert!(
        ask(address, "POST /metrics HTTP/1.1\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 400 ")
    );
    serving.abort();
}
