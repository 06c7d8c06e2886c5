//! The life of one connection: reading, writing and pinging side by side until one of them fails.

use std::io;
use std::sync::Mutex;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::dial::Transport;
use super::pinger::{Pinger, Step};
use super::upgrade::Connection;
use super::{Event, Frame, Task, lock};
use crate::frame::{FrameBuffer, FrameError, Message};
use crate::refusal::Refusal;
use std::sync::atomic::Ordering;

/// Buffers above this size are given back when they are used little.
const KEEP_BYTES: usize = 128 << 10;

/// How a connection ended.
pub(super) struct Ended {
    pub(super) error: String,
    /// Whether the relay served us: it answered a ping or sent a packet.
    pub(super) was_useful: bool,
    /// When the relay wants us back, if it said so.
    pub(super) restart_in: Option<Duration>,
}

impl Ended {
    pub(super) fn useless(error: String) -> Self {
        Self {
            error,
            was_useful: false,
            restart_in: None,
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("the relay closed the connection")]
    Closed,
    #[error("nothing arrived for too long")]
    Silent,
    #[error("the relay does not answer pings")]
    NoPong,
    #[error("nobody listens to this connection any more")]
    Unwanted,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What the reading, writing and pinging sides share.
struct Session<'a> {
    task: &'a Task,
    pinger: Mutex<Pinger>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    useful: bool,
    restart_in: Option<Duration>,
}

/// Runs a connection until it ends.
pub(super) async fn run(task: &Task, connection: Connection, handshake: Duration) -> Ended {
    let Connection {
        stream,
        server,
        buffer,
    } = connection;
    let config = &task.config;
    let pinger = Pinger::new(Instant::now(), config.ping_interval, config.pong_timeout);
    let session = Session {
        task,
        pinger: Mutex::new(pinger),
        seen: Mutex::default(),
    };
    task.shared.outbox.forget_control();
    task.shared.connected.store(true, Ordering::Release);
    if task
        .events
        .send(Event::Connected { server, handshake })
        .await
        .is_err()
    {
        return Ended::useless(SessionError::Unwanted.to_string());
    }
    let (reader, writer) = tokio::io::split(stream);
    let result: Result<(), SessionError> = tokio::select! {
        result = session.read(reader, buffer) => result,
        result = session.write(writer) => result,
        result = session.ping() => result,
    };
    let error = result.err().unwrap_or(SessionError::Closed).to_string();
    let seen = lock(&session.seen);
    Ended {
        error,
        was_useful: seen.useful,
        restart_in: seen.restart_in,
    }
}

impl Session<'_> {
    async fn read(
        &self,
        mut reader: ReadHalf<Box<dyn Transport>>,
        mut buffer: FrameBuffer,
    ) -> Result<(), SessionError> {
        loop {
            self.deliver(&mut buffer)?;
            let read = timeout(self.task.config.read_timeout, reader.read(buffer.space())).await;
            let count = read.map_err(|_| SessionError::Silent)??;
            if count == 0 {
                return Err(SessionError::Closed);
            }
            buffer.filled(count);
            lock(&self.pinger).heard(Instant::now());
        }
    }

    /// Hands up all packets at once, also those before a frame that cannot be read.
    fn deliver(&self, buffer: &mut FrameBuffer) -> Result<(), FrameError> {
        let mut packets = Vec::new();
        let result = buffer.frames().try_for_each(|frame| {
            let message = Message::decode(frame?)?;
            if let Message::RecvPacket { source, packet } = message {
                packets.push(Frame {
                    source,
                    bytes: packet,
                });
                return Ok(());
            }
            self.control(message)
        });
        if !packets.is_empty() {
            self.task.inbox.receive(&packets);
            lock(&self.seen).useful = true;
        }
        result
    }

    fn control(&self, message: Message<'_>) -> Result<(), FrameError> {
        match message {
            Message::Pong(bytes) => self.pong(bytes),
            Message::Ping(bytes) => self.task.shared.outbox.push_control(Message::Pong(bytes)),
            Message::PeerGone { key, reason } => self.tell(Event::PeerGone { key, reason }),
            Message::PeerPresent { key, .. } => self.tell(Event::PeerPresent { key }),
            Message::Health(text) => self.health(text),
            Message::Restarting {
                reconnect_in,
                try_for,
            } => {
                lock(&self.seen).restart_in = Some(reconnect_in);
                self.tell(Event::Restarting {
                    reconnect_in,
                    try_for,
                });
            }
            Message::ServerKey { .. } | Message::ServerInfo { .. } | Message::KeepAlive => {}
            Message::ClientInfo { .. }
            | Message::SendPacket { .. }
            | Message::RecvPacket { .. }
            | Message::NotePreferred(_)
            | Message::ForwardPacket { .. }
            | Message::WatchConns
            | Message::ClosePeer { .. } => {
                return Err(FrameError::Payload {
                    kind: message.kind(),
                });
            }
        }
        Ok(())
    }

    fn health(&self, text: &str) {
        if let Some(refusal) = Refusal::from_health(text) {
            *lock(&self.task.shared.refusal) = Some(refusal);
        }
        self.tell(Event::Health(text.to_owned()));
    }

    fn pong(&self, bytes: [u8; 8]) {
        let Some(rtt) = lock(&self.pinger).pong(Instant::now(), bytes) else {
            return;
        };
        let micros = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).max(1);
        self.task.shared.rtt.store(micros, Ordering::Release);
        lock(&self.seen).useful = true;
        self.tell(Event::Rtt(rtt));
    }

    /// Reading never waits for whoever takes the events.
    fn tell(&self, event: Event) {
        if let Err(mpsc::error::TrySendError::Full(event)) = self.task.events.try_send(event) {
            tracing::debug!(?event, "nobody takes relay events");
        }
    }

    async fn write(&self, mut writer: WriteHalf<Box<dyn Transport>>) -> Result<(), SessionError> {
        let mut out = Vec::new();
        loop {
            self.task.shared.outbox.drain(Instant::now(), &mut out);
            if out.is_empty() {
                self.task.shared.outbox.wait().await;
                continue;
            }
            writer.write_all(&out).await?;
            writer.flush().await?;
            if out.capacity() > KEEP_BYTES && out.len() < out.capacity() / 8 {
                out = Vec::new();
            }
            out.clear();
        }
    }

    async fn ping(&self) -> Result<(), SessionError> {
        loop {
            let now = Instant::now();
            let step = lock(&self.pinger).poll(now, rand::random());
            match step {
                Step::Dead => return Err(SessionError::NoPong),
                Step::Send(bytes) => self.task.shared.outbox.push_control(Message::Ping(bytes)),
                Step::Wait(until) => self.wait(until).await,
            }
        }
    }

    async fn wait(&self, until: Instant) {
        tokio::select! {
            () = sleep_until(until) => {}
            () = self.task.shared.check.notified() => lock(&self.pinger).check(Instant::now()),
        }
    }
}
