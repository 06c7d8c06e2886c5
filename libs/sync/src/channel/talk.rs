//! One conversation on one connection.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use derp::ClusterIdentity;
use quinn::{ReadError, WriteError};
use tokio::sync::watch;
use tokio::time::sleep_until;

use super::door::Door;
use super::{Config, DownReason, PeerState};
use crate::message::{CloseReason, DecodeError, Hello, MessageBuffer, Records, VERSION};
use crate::quic::{self, Link, LinkEnd, LinkError};
use crate::session::{Dialler, Event, Session, SessionError};

/// Bytes that are read at once.
const READ_BYTES: usize = 16 << 10;
/// Messages are written as long as fewer bytes than this wait.
const WRITE_BYTES: usize = 64 << 10;

/// How long to let a stream be that takes nothing.
const STALL: Duration = Duration::from_millis(20);

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum TalkError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("closed here: {0}")]
    Refused(CloseReason),
    #[error("the other end stopped speaking")]
    Finished,
    #[error("a message of our own that is too long")]
    Long,
}

/// What is left of a conversation.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) dialler: Dialler,
    /// It was the one with this peer.
    pub(super) was_live: bool,
    /// How long it lasted.
    pub(super) lasted: Duration,
    pub(super) error: TalkError,
}

/// Everything a conversation needs to know.
#[derive(Debug, Clone)]
pub(super) struct Context {
    pub(super) peer: ClusterIdentity,
    pub(super) config: Arc<Config>,
    pub(super) door: Arc<Door>,
    pub(super) records: watch::Receiver<Arc<Records>>,
    pub(super) memberships: watch::Receiver<BTreeMap<ClusterIdentity, String>>,
}

impl Context {
    /// Speaks until the end.
    pub(super) async fn talk(self, link: Result<Link, LinkError>, dialler: Dialler) -> Ended {
        let started = Instant::now();
        let never = |error| Ended {
            dialler,
            was_live: false,
            lasted: Duration::ZERO,
            error,
        };
        let link = match link {
            Ok(link) => link,
            Err(error) => return never(error.into()),
        };
        let connection = link.connection.clone();
        let id = match self.door.enter(connection.clone()) {
            Ok(id) => id,
            Err(reason) => {
                quic::close(&connection, reason);
                return never(TalkError::Refused(reason));
            }
        };
        let door = Arc::clone(&self.door);
        let error = Talk::new(self, id, dialler).run(link).await;
        quic::close(&connection, error.reason());
        Ended {
            dialler,
            was_live: door.leave(id),
            lasted: started.elapsed(),
            error,
        }
    }
}

impl TalkError {
    /// What others see.
    pub(super) fn down_reason(&self, was_live: bool) -> DownReason {
        match self {
            Self::Session(error) => DownReason::Misbehaved(*error),
            Self::Decode(_) => DownReason::BadMessage,
            Self::Refused(_) | Self::Finished | Self::Long => DownReason::Broken,
            Self::Link(_) | Self::Read(_) | Self::Write(_) => match self.link_end() {
                LinkEnd::Told(reason) => DownReason::Told(reason),
                LinkEnd::WrongKey => DownReason::WrongKey,
                LinkEnd::RefusedKey => DownReason::RefusedKey,
                LinkEnd::Lost if was_live => DownReason::Lost,
                LinkEnd::Lost => DownReason::Unreachable,
                LinkEnd::Closed | LinkEnd::Full | LinkEnd::Broken => DownReason::Broken,
            },
        }
    }

    /// Whether we ended it because of another connection, or of the peer's absence from our list.
    pub(super) fn is_our_will(&self) -> bool {
        matches!(self, Self::Refused(_)) || self.link_end() == LinkEnd::Closed
    }

    /// Whether the other end said that another process has taken our place.
    pub(super) fn is_superseded(&self) -> bool {
        self.link_end() == LinkEnd::Told(CloseReason::Superseded)
    }

    fn link_end(&self) -> LinkEnd {
        match self {
            Self::Link(error) => error.into(),
            Self::Read(ReadError::ConnectionLost(error))
            | Self::Write(WriteError::ConnectionLost(error)) => error.into(),
            Self::Read(_)
            | Self::Write(_)
            | Self::Session(_)
            | Self::Decode(_)
            | Self::Refused(_)
            | Self::Finished
            | Self::Long => LinkEnd::Broken,
        }
    }

    /// What the other end is told, if it is there.
    fn reason(&self) -> CloseReason {
        match self {
            Self::Session(error) => error.reason(),
            Self::Refused(reason) => *reason,
            Self::Decode(_) | Self::Read(_) | Self::Write(_) | Self::Long => CloseReason::Protocol,
            Self::Link(_) | Self::Finished => CloseReason::Shutdown,
        }
    }
}

/// A conversation and what waits to be written.
struct Talk {
    context: Context,
    id: u64,
    dialler: Dialler,
    session: Session,
    buffer: MessageBuffer,
    out: Vec<u8>,
    written: usize,
    /// As shown.
    synced: bool,
}

impl Talk {
    fn new(mut context: Context, id: u64, dialler: Dialler) -> Self {
        let hello = Hello {
            version: VERSION,
            cluster_name: context.config.cluster_name.clone(),
            generation: context.config.generation,
        };
        let local = Arc::clone(&context.records.borrow_and_update());
        let mut session = Session::new(Instant::now(), context.config.limits, hello, local);
        let memberships = context.memberships.borrow_and_update();
        session.set_membership(memberships.get(&context.peer).map(String::as_str));
        drop(memberships);
        Self {
            context,
            id,
            dialler,
            session,
            buffer: MessageBuffer::default(),
            out: Vec::new(),
            written: 0,
            synced: false,
        }
    }

    async fn run(mut self, mut link: Link) -> TalkError {
        loop {
            if let Err(error) = self.step(&mut link).await {
                return error;
            }
        }
    }

    /// Waits for one thing to happen, and deals with it.
    async fn step(&mut self, link: &mut Link) -> Result<(), TalkError> {
        self.tell()?;
        self.fill()?;
        let alarm = self.alarm();
        let out = self.out.get(self.written..).unwrap_or_default();
        tokio::select! {
            chunk = link.receive.read_chunk(READ_BYTES, true) => {
                let chunk = chunk?.ok_or(TalkError::Finished)?;
                self.receive(&chunk.bytes)
            }
            count = link.send.write(out), if !out.is_empty() => {
                self.written += count?;
                Ok(())
            }
            records = changed(&mut self.context.records) => {
                self.session.set_local(records);
                Ok(())
            }
            Ok(()) = self.context.memberships.changed() => {
                let memberships = self.context.memberships.borrow_and_update();
                let text = memberships.get(&self.context.peer);
                self.session.set_membership(text.map(String::as_str));
                Ok(())
            }
            () = sleep(alarm) => Ok(self.session.handle_timeout(Instant::now())?),
        }
    }

    fn alarm(&self) -> Option<Instant> {
        let alarm = self.session.poll_timeout()?;
        if self.out.is_empty() {
            return Some(alarm);
        }
        // The alarm may be for something that waits for the stream.
        Some(alarm.max(Instant::now() + STALL))
    }

    fn receive(&mut self, bytes: &[u8]) -> Result<(), TalkError> {
        self.buffer.push(bytes);
        while let Some(message) = self.buffer.next_message()? {
            self.session.handle_message(Instant::now(), message)?;
        }
        Ok(())
    }

    /// Tells others what has happened.
    fn tell(&mut self) -> Result<(), TalkError> {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Hello(hello) => self.greet(hello)?,
                Event::Records { records, refused } => {
                    self.context.door.show(self.id, |view| {
                        view.records = Some(records);
                        view.refused = refused;
                    });
                }
                Event::Membership(text) => {
                    self.context
                        .door
                        .show(self.id, |view| view.membership = text);
                }
            }
        }
        let synced = self.session.is_synced();
        if self.synced != synced {
            self.synced = synced;
            self.context.door.show(self.id, |view| view.synced = synced);
        }
        Ok(())
    }

    fn greet(&self, hello: Hello) -> Result<(), TalkError> {
        let door = &self.context.door;
        door.greet(self.id, hello.generation, self.dialler)
            .map_err(TalkError::Refused)?;
        door.show(self.id, |view| {
            view.state = PeerState::Up {
                cluster_name: hello.cluster_name,
                generation: hello.generation,
                version: hello.version,
            };
            view.synced = false;
        });
        Ok(())
    }

    /// Gets messages ready to be written.
    fn fill(&mut self) -> Result<(), TalkError> {
        self.out.drain(..self.written);
        self.written = 0;
        while self.out.len() < WRITE_BYTES {
            let Some(message) = self.session.poll_transmit(Instant::now()) else {
                break;
            };
            self.out.extend(message.encode().ok_or(TalkError::Long)?);
        }
        Ok(())
    }
}

/// The next value; never, when nobody can send one any more.
pub(super) async fn changed<T: Clone>(receiver: &mut watch::Receiver<T>) -> T {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    receiver.borrow_and_update().clone()
}

async fn sleep(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}
