//! One conversation between two clusters, without I/O and without a clock of its own.
//!
//! Drive it like this:
//!
//! 1. Feed what arrives to [`Session::handle_message`], and what is new here to [`Session::set_local`] and
//!    [`Session::set_membership`].
//! 2. Take [`Session::poll_event`] until there is none; decide on [`Event::Hello`] before going on.
//! 3. Write what [`Session::poll_transmit`] gives, one message after the other, as fast as the stream takes them.
//! 4. Call [`Session::handle_timeout`] at [`Session::poll_timeout`].
//!
//! An error ends the conversation; its [`SessionError::reason`] is told to the other side. The next one starts anew with
//! the full state. The order of messages is the stream's; a number on each shows that none is missing.
//! What waits is bounded by the other side's acknowledgements: local changes that come faster are sent as one.

mod arbiter;
mod bucket;
mod gift;
mod incoming;
mod outgoing;

pub use arbiter::{Arbiter, Dialler, Verdict};
pub(crate) use bucket::Bucket;

use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::message::{CloseReason, Hello, Message, Records, Refusal};
use gift::Gift;
use incoming::Incoming;
use outgoing::Outgoing;

/// What a conversation may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How long the other side's greeting may take.
    pub hello_timeout: Duration,
    /// How long an acknowledgement may take.
    pub ack_timeout: Duration,
    /// The least time between two deltas that we send.
    pub delta_interval: Duration,
    /// Messages that may arrive at once.
    pub burst: u32,
    /// Messages a second that may arrive in the long run.
    pub rate: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hello_timeout: Duration::from_secs(10),
            ack_timeout: Duration::from_secs(15),
            delta_interval: Duration::from_millis(100),
            burst: 512,
            rate: 50,
        }
    }
}

/// What happened in a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The other side has greeted.
    Hello(Hello),
    /// What the other side proposes, complete.
    Records {
        /// All its nodes.
        records: Arc<Records>,
        /// What it sent and is no node; the latest 64.
        refused: Arc<[Refusal]>,
    },
    /// The other side's statement that we may use its relays; `None`: it takes it back. This crate has not looked into it.
    Membership(Option<String>),
}

/// Why a conversation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SessionError {
    /// No greeting in time.
    #[error("no greeting in time")]
    NoHello,
    /// No acknowledgement in time.
    #[error("no acknowledgement in time")]
    NoAck,
    /// Something before the greeting, or a second one.
    #[error("the greeting must come first, and once")]
    Greeting,
    /// A number is missing.
    #[error("message {got} where {expected} should be")]
    Sequence {
        /// The number that should come.
        expected: u64,
        /// The number that came.
        got: u64,
    },
    /// A delta before the state it belongs to, or a part of a state without its beginning.
    #[error("a part of a state that has no beginning or no end")]
    State,
    /// An acknowledgement of something that was not sent.
    #[error("an acknowledgement of something that was not sent")]
    Ack,
    /// More nodes than a cluster may have.
    #[error("more nodes than a cluster may have")]
    TooMuch,
    /// Too many messages.
    #[error("too many messages in too short a time")]
    TooFast,
}

impl SessionError {
    /// What the other side is told.
    #[must_use]
    pub fn reason(self) -> CloseReason {
        match self {
            Self::NoHello | Self::NoAck => CloseReason::Timeout,
            Self::TooFast => CloseReason::TooFast,
            Self::Greeting | Self::Sequence { .. } | Self::State | Self::Ack | Self::TooMuch => {
                CloseReason::Protocol
            }
        }
    }
}

/// One conversation. See the module's description for how to drive it.
#[derive(Debug)]
pub struct Session {
    limits: Limits,
    started: Instant,
    /// Our greeting, until it is sent.
    hello: Option<Hello>,
    greeted: bool,
    bucket: Bucket,
    incoming: Incoming,
    outgoing: Outgoing,
    membership: Gift,
    news: News,
}

/// Events that nobody has taken yet; of each kind the latest.
#[derive(Debug, Default)]
struct News {
    hello: Option<Hello>,
    membership: Option<Option<String>>,
    records: bool,
}

impl Session {
    /// Begins a conversation on a stream that is open.
    #[must_use]
    pub fn new(now: Instant, limits: Limits, hello: Hello, local: Arc<Records>) -> Self {
        Self {
            limits,
            started: now,
            hello: Some(hello),
            greeted: false,
            bucket: Bucket::new(now, limits.burst, limits.rate),
            incoming: Incoming::default(),
            outgoing: Outgoing::new(local),
            membership: Gift::default(),
            news: News::default(),
        }
    }

    /// Takes what the other side said.
    ///
    /// # Errors
    /// When it may not say that; the conversation is over.
    pub fn handle_message(&mut self, now: Instant, message: Message) -> Result<(), SessionError> {
        if !self.bucket.take(now) {
            return Err(SessionError::TooFast);
        }
        match message {
            Message::Hello(hello) => self.greet(hello)?,
            Message::Unknown => {}
            Message::State(_)
            | Message::Delta(_)
            | Message::Ack { .. }
            | Message::Membership { .. }
                if !self.greeted =>
            {
                return Err(SessionError::Greeting);
            }
            Message::State(part) => self.news.records |= self.incoming.handle_state(part)?,
            Message::Delta(delta) => {
                self.incoming.handle_delta(delta)?;
                self.news.records = true;
            }
            Message::Ack { sequence } => {
                self.outgoing.handle_ack(sequence)?;
            }
            Message::Membership { text } => self.news.membership = Some(text),
        }
        Ok(())
    }

    /// Takes what we have now.
    pub fn set_local(&mut self, local: Arc<Records>) {
        self.outgoing.set_local(local);
    }

    /// Takes the membership that the other side is to have now. A text that cannot be sent counts as none.
    pub fn set_membership(&mut self, text: Option<&str>) {
        self.membership.set(text);
    }

    /// Ends the conversation if the other side is late.
    ///
    /// # Errors
    /// When it is.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), SessionError> {
        if !self.greeted && now >= self.started + self.limits.hello_timeout {
            return Err(SessionError::NoHello);
        }
        let ack_due = self.outgoing.unacked_since();
        if ack_due.is_some_and(|since| now >= since + self.limits.ack_timeout) {
            return Err(SessionError::NoAck);
        }
        Ok(())
    }

    /// When to call [`Self::handle_timeout`], or [`Self::poll_transmit`] again, if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let hello = (!self.greeted).then(|| self.started + self.limits.hello_timeout);
        let ack = self.outgoing.unacked_since();
        let ack = ack.map(|since| since + self.limits.ack_timeout);
        let delta = self.outgoing.next_delta().filter(|_| self.greeted);
        [hello, ack, delta].into_iter().flatten().min()
    }

    /// What to say next.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Message> {
        if let Some(hello) = self.hello.take() {
            return Some(Message::Hello(hello));
        }
        if let Some(sequence) = self.incoming.take_ack() {
            return Some(Message::Ack { sequence });
        }
        if !self.greeted {
            return None;
        }
        if let Some(text) = self.membership.poll() {
            return Some(Message::Membership { text });
        }
        self.outgoing.poll(now, self.limits.delta_interval)
    }

    /// What has happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some(hello) = self.news.hello.take() {
            return Some(Event::Hello(hello));
        }
        if let Some(text) = self.news.membership.take() {
            return Some(Event::Membership(text));
        }
        std::mem::take(&mut self.news.records).then(|| {
            let (records, refused) = self.incoming.snapshot();
            Event::Records { records, refused }
        })
    }

    /// Whether the other side has taken over everything we have.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.outgoing.is_synced()
    }

    fn greet(&mut self, hello: Hello) -> Result<(), SessionError> {
        if self.greeted {
            return Err(SessionError::Greeting);
        }
        self.greeted = true;
        self.news.hello = Some(hello);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
