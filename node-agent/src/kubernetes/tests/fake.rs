//! An API server that knows lists, watches and the application of a status, and remembers who asked for what.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

/// The server; it ends when dropped.
pub(super) struct Fake {
    shared: Arc<Shared>,
    url: String,
    task: JoinHandle<()>,
}

struct Shared {
    state: Mutex<State>,
    /// Every event of a watch, as it happens.
    events: broadcast::Sender<Event>,
    /// Ends all connections.
    end: broadcast::Sender<()>,
}

/// An event of a watch.
#[derive(Clone)]
struct Event {
    version: u64,
    plural: String,
    line: String,
}

#[derive(Default)]
struct State {
    version: u64,
    /// By plural and name.
    objects: BTreeMap<(String, String), Value>,
    /// Path with query, and body, of everything that was applied.
    applied: Vec<(String, Value)>,
    asked: Vec<String>,
    /// Everything that has happened, for who begins to watch later.
    history: Vec<Event>,
}

impl Fake {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            events: broadcast::channel(256).0,
            end: broadcast::channel(1).0,
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { shared, url, task }
    }

    pub(super) fn client(&self) -> kube::Client {
        let config = kube::Config::new(self.url.parse().expect("a URL"));
        kube::Client::try_from(config).expect("a client")
    }

    /// Makes an object, or replaces its spec.
    pub(super) fn put(&self, plural: &str, kind: &str, name: &str, spec: Value) {
        let mut state = self.shared.state();
        state.version += 1;
        let object = json!({
            "apiVersion": "culvert.dev/v1alpha1", "kind": kind, "spec": spec,
            "metadata": {"name": name, "uid": format!("{kind}-{name}"), "generation": 1, "resourceVersion": state.version.to_string()},
        });
        let id = (plural.to_owned(), name.to_owned());
        let known = state.objects.insert(id, object.clone()).is_some();
        let event = if known { "MODIFIED" } else { "ADDED" };
        self.shared.tell(&mut state, plural, event, &object);
    }

    pub(super) fn delete(&self, plural: &str, name: &str) {
        let mut state = self.shared.state();
        state.version += 1;
        let id = (plural.to_owned(), name.to_owned());
        let object = state.objects.remove(&id).expect("there");
        self.shared.tell(&mut state, plural, "DELETED", &object);
    }

    /// What was applied so far.
    pub(super) fn applied(&self) -> Vec<(String, Value)> {
        self.shared.state().applied.clone()
    }

    /// What was asked for so far.
    pub(super) fn asked(&self) -> Vec<String> {
        self.shared.state().asked.clone()
    }

    /// Answers nobody any more.
    pub(super) fn stop(&self) {
        self.task.abort();
        // Nobody may be connected.
        let _ = self.shared.end.send(());
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, state: &mut State, plural: &str, kind: &str, object: &Value) {
        let event = Event {
            version: state.version,
            plural: plural.to_owned(),
            line: format!("{}\n", json!({"type": kind, "object": object})),
        };
        state.history.push(event.clone());
        // Nobody may be watching yet.
        let _ = self.events.send(event);
    }

    /// What has happened since a version, and what will.
    fn watch(&self, since: u64) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let state = self.state();
        let missed = state.history.iter().filter(|event| event.version > since);
        (missed.cloned().collect(), self.events.subscribe())
    }

    fn list(&self, plural: &str, query: &str) -> Value {
        let state = self.state();
        let objects = state.objects.iter();
        let wanted = query
            .split('&')
            .find_map(|part| part.strip_prefix("fieldSelector=metadata.name%3D"));
        let items: Vec<&Value> = objects
            .filter(|((of, name), _)| of == plural && wanted.is_none_or(|wanted| wanted == name))
            .map(|(_, object)| object)
            .collect();
        json!({
            "apiVersion": "culvert.dev/v1alpha1", "kind": "List",
            "metadata": {"resourceVersion": state.version.to_string()}, "items": items,
        })
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        let mut end = shared.end.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                // A client that has gone is no fault.
                _ = answer(stream, &shared) => {}
                _ = end.recv() => {}
            }
        });
    }
}

async fn answer(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let (line, body) = read(&mut stream).await?;
    let mut words = line.split(' ');
    let (method, target) = (words.next(), words.next().unwrap_or_default().to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let plural = path.split('/').nth(4).unwrap_or_default();
    shared.state().asked.push(target.clone());
    if method == Some("PATCH") {
        let applied = serde_json::from_slice(&body)?;
        shared.state().applied.push((target.clone(), applied));
        return send(&mut stream, &body).await;
    }
    if query.contains("watch=true") {
        let since = query
            .split('&')
            .find_map(|part| part.strip_prefix("resourceVersion="));
        let since = since.and_then(|text| text.parse().ok()).unwrap_or(0);
        return stream_events(stream, shared.watch(since), plural).await;
    }
    let list = shared.list(plural, query).to_string();
    send(&mut stream, list.as_bytes()).await
}

async fn stream_events(
    mut stream: TcpStream,
    (missed, mut events): (Vec<Event>, broadcast::Receiver<Event>),
    plural: &str,
) -> io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    let mut missed = missed.into_iter();
    loop {
        let event = match missed.next() {
            Some(event) => event,
            None => match events.recv().await {
                Ok(event) => event,
                Err(_) => return Ok(()),
            },
        };
        if event.plural == plural {
            stream.write_all(event.line.as_bytes()).await?;
        }
    }
}

async fn send(stream: &mut TcpStream, body: &[u8]) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    stream.shutdown().await
}

/// First line and body of a request.
async fn read(stream: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .and_then(|text| text.trim().parse::<usize>().ok())
        .unwrap_or(0);
    while bytes.len() < end + length {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let line = String::from_utf8_lossy(&bytes[..end]);
    let first = line.lines().next().unwrap_or_default().to_owned();
    Ok((first, bytes.split_off(end)))
}
