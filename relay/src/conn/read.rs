//! What a client sends.

use std::sync::Arc;
use std::time::Instant;

use derp::{FrameBuffer, Message, NodeKey, PeerGoneReason};
use tokio::io::{AsyncReadExt as _, ReadHalf};

use super::{ConnError, Transport};
use crate::bucket::{Bucket, Rate};
use crate::metrics::DropReason;
use crate::registry::{Member, Reached};
use crate::server::Context;

/// How often a client is told that somebody is not here.
const NOT_HERE: Rate = Rate {
    per_second: 64.0,
    burst: 256.0,
};
/// What probes of other DERP clients begin with, and the least they measure.
const DISCO_MAGIC: [u8; 6] = [0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac];
const MIN_DISCO: usize = 62;
/// A WireGuard handshake initiation.
const INITIATION_LEN: usize = 148;

/// The reading half of a connection.
pub(super) struct Reading<'a> {
    buffer: FrameBuffer,
    sender: Sender<'a>,
}

/// Everything but the buffer, so that frames can be looked at while this changes.
struct Sender<'a> {
    context: &'a Context,
    member: &'a Arc<Member>,
    reached: Reached,
    not_here: Bucket,
}

/// Consecutive packets to one destination.
#[derive(Default)]
struct Run<'a> {
    destination: Option<NodeKey>,
    packets: Vec<&'a [u8]>,
}

impl<'a> Reading<'a> {
    pub(super) fn new(context: &'a Context, member: &'a Arc<Member>, buffer: FrameBuffer) -> Self {
        Self {
            buffer,
            sender: Sender {
                context,
                member,
                reached: Reached::default(),
                not_here: Bucket::full(NOT_HERE, Instant::now()),
            },
        }
    }

    /// Reads until the connection ends. Frames before one that is malformed count.
    pub(super) async fn run(
        &mut self,
        mut reader: ReadHalf<Box<dyn Transport>>,
    ) -> Result<(), ConnError> {
        loop {
            if self.sender.member.queue.is_closing() {
                super::linger(&mut reader).await?;
                return Ok(());
            }
            self.handle_frames()?;
            let count = reader.read(self.buffer.space()).await?;
            if count == 0 {
                return Err(ConnError::Closed);
            }
            self.buffer.filled(count);
            self.sender.context.registry.heard(self.sender.member);
        }
    }

    /// Where packets from here have gone.
    pub(super) fn into_reached(self) -> Reached {
        self.sender.reached
    }

    fn handle_frames(&mut self) -> Result<(), ConnError> {
        let mut run = Run::default();
        let result = self.buffer.frames().try_for_each(|frame| {
            let message = Message::decode(frame?)?;
            let Message::SendPacket {
                destination,
                packet,
            } = message
            else {
                return self.sender.control(message);
            };
            if run.destination != Some(destination) {
                self.sender.forward(&mut run);
                run.destination = Some(destination);
            }
            run.packets.push(packet);
            Ok(())
        });
        self.sender.forward(&mut run);
        result
    }
}

impl Sender<'_> {
    fn control(&self, message: Message<'_>) -> Result<(), ConnError> {
        match message {
            Message::Ping(bytes) => self.member.queue.push_pong(bytes),
            Message::ClientInfo { .. } => return Err(ConnError::SecondClientInfo),
            Message::WatchConns | Message::ForwardPacket { .. } | Message::ClosePeer { .. } => {
                return Err(ConnError::NoMeshKey);
            }
            Message::SendPacket { .. }
            | Message::NotePreferred(_)
            | Message::Pong(_)
            | Message::ServerKey { .. }
            | Message::ServerInfo { .. }
            | Message::RecvPacket { .. }
            | Message::KeepAlive
            | Message::PeerGone { .. }
            | Message::PeerPresent { .. }
            | Message::Health(_)
            | Message::Restarting { .. } => {}
        }
        Ok(())
    }

    /// Puts a run of packets into its receiver's queue, and empties it.
    fn forward(&mut self, run: &mut Run<'_>) {
        let Some(destination) = run.destination.take() else {
            return;
        };
        let metrics = &self.context.metrics;
        metrics.packets_in.inc_by(number_of(&run.packets));
        metrics
            .bytes_in
            .inc_by(run.packets.iter().map(|packet| packet.len() as u64).sum());
        let allowed = self.allowed(&destination, &run.packets);
        let refused = run.packets.split_off(allowed);
        metrics.count_dropped(DropReason::lobby, number_of(&refused));
        if !run.packets.is_empty() {
            self.deliver(destination, &run.packets);
        }
        run.packets.clear();
    }

    /// How many of these packets, from the first on, the client may send there. It learns nothing of keys that it may not
    /// meet, not even whether they are here.
    fn allowed(&self, destination: &NodeKey, packets: &[&[u8]]) -> usize {
        if !self.member.may_meet(destination) {
            return 0;
        }
        if self.member.grant().only.is_none() {
            return packets.len();
        }
        let key = self.member.key();
        self.context.lobby.take(key, packets, Instant::now())
    }

    fn deliver(&mut self, destination: NodeKey, packets: &[&[u8]]) {
        let (source, metrics) = (self.member.key(), &self.context.metrics);
        let count = number_of(packets);
        let Some(receiver) = self.context.registry.find(&destination, source) else {
            metrics.count_dropped(DropReason::unknown_dest, count);
            if packets.iter().any(|packet| wants_answer(packet)) {
                self.not_here(destination);
            }
            return;
        };
        let dropped = receiver.queue.push(source, packets);
        self.reached.note(&receiver);
        metrics.packets_out.inc_by(count.saturating_sub(dropped));
        metrics.count_dropped(DropReason::queue_head, dropped);
        tracing::trace!(?source, ?destination, count, dropped, "forwarded");
    }

    /// Tells the client that nobody has this key, and remembers to tell it when somebody comes. Both cost more than
    /// forwarding, so both are limited.
    fn not_here(&mut self, key: NodeKey) {
        let now = Instant::now();
        if !self.not_here.take(NOT_HERE, now) {
            return;
        }
        let queue = &self.member.queue;
        if self.context.registry.wait_for(now, key, *self.member.key()) {
            queue.push_control(Message::PeerGone {
                key,
                reason: PeerGoneReason::NotHere,
            });
        } else {
            // It has come in between; the next packet will reach it.
            queue.push_control(Message::PeerPresent {
                key,
                address: None,
                flags: 0,
            });
        }
    }
}

fn number_of(packets: &[&[u8]]) -> u64 {
    u64::try_from(packets.len()).unwrap_or(u64::MAX)
}

/// Whether a sender waits for an answer to this packet, and so gains from knowing that none can come.
fn wants_answer(packet: &[u8]) -> bool {
    let disco = packet.len() >= MIN_DISCO && packet.starts_with(&DISCO_MAGIC);
    let initiation = packet.len() == INITIATION_LEN && packet.starts_with(&[1, 0, 0, 0]);
    disco || initiation
}
