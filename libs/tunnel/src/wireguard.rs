//! WireGuard sessions: the only module that names `boringtun`, and the place where its quirks end.
//!
//! * Its clock is the last timer tick, so one that was not ticked for a while is ticked before use (`Noise::freshen`).
//! * It neither pads nor checks the mac1 of an initiation before spending a Diffie-Hellman: [`Identity::gate`] does.
//! * Every buffer handed to it is large enough, because it panics on small ones.
//! * It queues packets without a session and then initiates by itself: callers ask [`Noise::has_session`] first.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use derp::{NodeKey, NodeSecret};
use x25519_dalek::{PublicKey, StaticSecret};

/// Bytes a sealed packet is longer than its padded plaintext.
pub(crate) const OVERHEAD: usize = 32;
/// Length of a handshake initiation.
pub(crate) const INITIATION: usize = 148;
/// Length of a handshake response.
pub(crate) const RESPONSE: usize = 92;
/// Length of a cookie reply.
pub(crate) const COOKIE: usize = 64;

/// Handshake messages a second that are answered without asking for a cookie first.
const UNPROVED_HANDSHAKES: u64 = 200;
const MAC1: std::ops::Range<usize> = 116..132;
/// An engine whose clock is further behind is ticked before use; ticks that nobody forgot come four times a second.
const STALE: Duration = Duration::from_secs(1);

/// What a datagram claims to be, by type and length alone. `index` is ours, as handed to [`Noise::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Initiation,
    Response { index: u32 },
    Cookie { index: u32 },
    Data { index: u32 },
}

impl Message {
    pub(crate) fn parse(datagram: &[u8]) -> Option<Self> {
        match Tunn::parse_incoming_packet(datagram).ok()? {
            Packet::HandshakeInit(_) => Some(Self::Initiation),
            Packet::HandshakeResponse(p) => Some(Self::Response {
                index: p.receiver_idx >> 8,
            }),
            Packet::PacketCookieReply(p) => Some(Self::Cookie {
                index: p.receiver_idx >> 8,
            }),
            Packet::PacketData(p) => Some(Self::Data {
                index: p.receiver_idx >> 8,
            }),
        }
    }
}

/// The verdict on a handshake message before any asymmetric cryptography.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    Pass,
    /// Under load: the sender has to prove its address with this cookie first.
    Cookie([u8; COOKIE]),
    Refuse,
}

/// This node's static key, and the admission of handshakes made to it.
pub(crate) struct Identity {
    secret: StaticSecret,
    public: PublicKey,
    gate: RateLimiter,
    /// The sessions' own limiter; the gate in front has counted already.
    open: Arc<RateLimiter>,
}

impl Identity {
    pub(crate) fn new(secret: &NodeSecret) -> Self {
        let secret = StaticSecret::from(secret.to_bytes());
        let public = PublicKey::from(&secret);
        Self {
            gate: RateLimiter::new(&public, UNPROVED_HANDSHAKES),
            open: Arc::new(RateLimiter::new(&public, u64::MAX)),
            secret,
            public,
        }
    }

    /// Whether mac1 shows that the sender of a handshake message knows our public key. Costs one hash.
    pub(crate) fn has_mac1(&self, source: IpAddr, datagram: &[u8]) -> bool {
        self.open
            .verify_packet(Some(source), datagram, &mut [0; COOKIE])
            .is_ok()
    }

    /// Checks mac1 and, under load, mac2 of a handshake message from `source`.
    pub(crate) fn gate(&self, source: IpAddr, datagram: &[u8]) -> Gate {
        let mut reply = [0; COOKIE];
        match self.gate.verify_packet(Some(source), datagram, &mut reply) {
            Ok(_) => Gate::Pass,
            Err(TunnResult::WriteToNetwork(cookie)) => cookie
                .first_chunk()
                .map_or(Gate::Refuse, |cookie| Gate::Cookie(*cookie)),
            Err(_) => Gate::Refuse,
        }
    }

    /// Begins a new second of the gate's budget; to be called about once a second.
    pub(crate) fn refill_gate(&self) {
        self.gate.reset_count();
    }

    /// The static key that an initiation carries. Costs one Diffie-Hellman: only after the gate.
    pub(crate) fn initiator(&self, datagram: &[u8]) -> Option<NodeKey> {
        let Packet::HandshakeInit(initiation) = Tunn::parse_incoming_packet(datagram).ok()? else {
            return None;
        };
        let half = parse_handshake_anon(&self.secret, &self.public, &initiation).ok()?;
        NodeKey::from_bytes(half.peer_static_public).ok()
    }
}

/// What opening a datagram gave.
#[derive(Debug)]
pub(crate) enum Opened<'a> {
    /// An inner packet, cut to its own length.
    Packet(&'a mut [u8]),
    /// An authenticated message without content.
    Keepalive,
    /// To be sent back where the datagram came from.
    Reply(&'a [u8]),
    /// A copy of something that was seen before.
    Duplicate,
    Refused(Refusal),
}

/// Why a datagram was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No such session any more.
    NoSession,
    /// An initiation that is not newer than the last one.
    Stale,
    Invalid,
}

/// The sessions with one peer.
pub(crate) struct Noise {
    tunn: Tunn,
    ticked: Instant,
    answered: Option<Answer>,
}

/// The last initiation that was answered, and the answer: a second copy over another path gets the same bytes.
struct Answer {
    mac1: [u8; 16],
    response: [u8; RESPONSE],
}

impl Noise {
    /// `index` must be below 2^24; it comes back in [`Message`].
    pub(crate) fn new(identity: &Identity, peer: &NodeKey, index: u32) -> Self {
        let peer = PublicKey::from(*peer.as_bytes());
        let limiter = Some(Arc::clone(&identity.open));
        Self {
            tunn: Tunn::new(identity.secret.clone(), peer, None, None, index, limiter),
            ticked: Instant::now(),
            answered: None,
        }
    }

    /// Whether data can be sealed now.
    pub(crate) fn has_session(&self) -> bool {
        self.tunn.time_since_last_handshake().is_some()
    }

    /// Seals `plaintext` (a padded inner packet) into exactly `plaintext.len() + OVERHEAD` bytes of `out`.
    pub(crate) fn seal(&mut self, plaintext: &[u8], out: &mut [u8]) -> bool {
        if out.len() < plaintext.len() + OVERHEAD || !self.has_session() {
            return false;
        }
        matches!(
            self.tunn.encapsulate(plaintext, out),
            TunnResult::WriteToNetwork(_)
        )
    }

    /// Makes an initiation, also when one is under way.
    pub(crate) fn initiate(&mut self) -> Option<[u8; INITIATION]> {
        self.freshen();
        let mut out = [0; INITIATION];
        let made = matches!(
            self.tunn.format_handshake_initiation(&mut out, true),
            TunnResult::WriteToNetwork(_)
        );
        made.then_some(out)
    }

    /// Opens any datagram that was addressed to this peer's index or, for an initiation, came from its key.
    ///
    /// `out` must hold the datagram and at least 148 bytes.
    pub(crate) fn open<'a>(
        &mut self,
        source: IpAddr,
        datagram: &[u8],
        out: &'a mut [u8],
    ) -> Opened<'a> {
        if out.len() < datagram.len().max(INITIATION) {
            return Opened::Refused(Refusal::Invalid);
        }
        self.freshen();
        if let Some(response) = self.answered_before(datagram) {
            return out.split_at_mut_checked(RESPONSE).map_or(
                Opened::Refused(Refusal::Invalid),
                |(head, _)| {
                    head.copy_from_slice(&response);
                    Opened::Reply(head)
                },
            );
        }
        match self.tunn.decapsulate(Some(source), datagram, out) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Opened::Packet(packet)
            }
            TunnResult::Done => Opened::Keepalive,
            TunnResult::WriteToNetwork(reply) => {
                Self::remember(&mut self.answered, datagram, reply);
                Opened::Reply(reply)
            }
            TunnResult::Err(error) => refuse(&error),
        }
    }

    /// Drives the re-key and keepalive timers; what comes out goes to the current path. Call every 250 ms while awake.
    pub(crate) fn tick<'a>(&mut self, out: &'a mut [u8; INITIATION]) -> Option<&'a [u8]> {
        self.ticked = Instant::now();
        match self.tunn.update_timers(out) {
            TunnResult::WriteToNetwork(message) => Some(message),
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        }
    }

    /// Sets the engine's clock. A session that began by an old clock would be thrown away at the next tick.
    fn freshen(&mut self) {
        if self.ticked.elapsed() > STALE {
            // What the tick would have sent is long overdue, and what is about to happen is better than it.
            let _ = self.tick(&mut [0; INITIATION]);
        }
    }

    fn answered_before(&self, datagram: &[u8]) -> Option<[u8; RESPONSE]> {
        let answer = self.answered.as_ref()?;
        (datagram.len() == INITIATION && datagram.get(MAC1)? == answer.mac1)
            .then_some(answer.response)
    }

    fn remember(answered: &mut Option<Answer>, datagram: &[u8], reply: &[u8]) {
        let Ok(response) = <[u8; RESPONSE]>::try_from(reply) else {
            return;
        };
        let Some(Ok(mac1)) = datagram.get(MAC1).map(<[u8; 16]>::try_from) else {
            return;
        };
        if datagram.len() == INITIATION {
            *answered = Some(Answer { mac1, response });
        }
    }
}

fn refuse<'a>(error: &WireGuardError) -> Opened<'a> {
    match error {
        WireGuardError::DuplicateCounter => Opened::Duplicate,
        WireGuardError::NoCurrentSession
        | WireGuardError::WrongIndex
        | WireGuardError::ConnectionExpired => Opened::Refused(Refusal::NoSession),
        WireGuardError::WrongTai64nTimestamp => Opened::Refused(Refusal::Stale),
        WireGuardError::DestinationBufferTooSmall
        | WireGuardError::IncorrectPacketLength
        | WireGuardError::UnexpectedPacket
        | WireGuardError::WrongPacketType
        | WireGuardError::WrongKey
        | WireGuardError::InvalidTai64nTimestamp
        | WireGuardError::InvalidMac
        | WireGuardError::InvalidAeadTag
        | WireGuardError::InvalidCounter
        | WireGuardError::InvalidPacket
        | WireGuardError::LockFailed
        | WireGuardError::UnderLoad => Opened::Refused(Refusal::Invalid),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));

    struct Ends {
        a: Noise,
        b: Noise,
        b_identity: Identity,
        a_key: NodeKey,
    }

    fn ends() -> Ends {
        let (a, b) = (NodeSecret::generate(), NodeSecret::generate());
        let (a_identity, b_identity) = (Identity::new(&a), Identity::new(&b));
        Ends {
            a: Noise::new(&a_identity, &b.public(), 7),
            b: Noise::new(&b_identity, &a.public(), 9),
            b_identity,
            a_key: a.public(),
        }
    }

    fn reply(opened: &Opened<'_>) -> Vec<u8> {
        let Opened::Reply(bytes) = opened else {
            panic!("a reply was due, not {opened:?}")
        };
        bytes.to_vec()
    }

    fn packet() -> Vec<u8> {
        let mut packet = vec![
            0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 0, 2, 10, 2, 0, 3,
        ];
        packet.resize(32, 0);
        packet
    }

    fn connect(ends: &mut Ends) {
        let mut out = [0; 256];
        let initiation = ends.a.initiate().unwrap();
        let response = reply(&ends.b.open(SOURCE, &initiation, &mut out));
        let keepalive = reply(&ends.a.open(SOURCE, &response, &mut out));
        assert!(matches!(
            ends.b.open(SOURCE, &keepalive, &mut out),
            Opened::Keepalive
        ));
    }

    #[test]
    fn a_padded_packet_arrives_cut_to_its_length() {
        let mut ends = ends();
        connect(&mut ends);
        let mut sealed = [0; 64];
        assert!(ends.a.seal(&packet(), &mut sealed));
        assert_eq!(Message::parse(&sealed), Some(Message::Data { index: 9 }));
        let mut out = [0; 256];
        let Opened::Packet(inner) = ends.b.open(SOURCE, &sealed, &mut out) else {
            panic!("a packet was due")
        };
        assert_eq!(inner, &packet()[..20]);
        assert!(matches!(
            ends.b.open(SOURCE, &sealed, &mut out),
            Opened::Duplicate
        ));
    }

    #[test]
    fn nothing_is_sealed_without_a_session_or_room() {
        let mut ends = ends();
        assert!(!ends.a.seal(&packet(), &mut [0; 64]));
        connect(&mut ends);
        assert!(!ends.a.seal(&packet(), &mut [0; 63]));
    }

    #[test]
    fn a_second_copy_of_an_initiation_gets_the_same_response() {
        let mut ends = ends();
        let initiation = ends.a.initiate().unwrap();
        let mut out = [0; 256];
        let first = reply(&ends.b.open(SOURCE, &initiation, &mut out));
        let second = reply(&ends.b.open(SOURCE, &initiation, &mut out));
        assert_eq!(first, second);
    }

    /// Otherwise the next tick would find the new session as old as the sleep was long, and throw it away.
    #[test]
    fn a_clock_that_stood_still_is_set_before_a_handshake() {
        let Some(long_ago) = Instant::now().checked_sub(Duration::from_secs(2)) else {
            return;
        };
        let mut ends = ends();
        ends.a.ticked = long_ago;
        ends.b.ticked = long_ago;
        connect(&mut ends);
        assert!(ends.a.ticked > long_ago, "the initiator set its clock");
        assert!(ends.b.ticked > long_ago, "the responder set its clock");
    }

    #[test]
    fn mac1_tells_who_knows_our_key() {
        let mut ends = ends();
        let mut initiation = ends.a.initiate().unwrap();
        assert!(ends.b_identity.has_mac1(SOURCE, &initiation));
        initiation[120] ^= 1;
        assert!(!ends.b_identity.has_mac1(SOURCE, &initiation));
    }

    #[test]
    fn the_initiator_is_named_and_a_damaged_mac_refused_before_it() {
        let mut ends = ends();
        let mut initiation = ends.a.initiate().unwrap();
        assert_eq!(ends.b_identity.gate(SOURCE, &initiation), Gate::Pass);
        assert_eq!(ends.b_identity.initiator(&initiation), Some(ends.a_key));
        initiation[120] ^= 1;
        assert_eq!(ends.b_identity.gate(SOURCE, &initiation), Gate::Refuse);
    }

    #[test]
    fn under_load_a_cookie_is_asked_for() {
        let mut ends = ends();
        let initiation = ends.a.initiate().unwrap();
        let verdicts: Vec<_> = (0..=UNPROVED_HANDSHAKES)
            .map(|_| ends.b_identity.gate(SOURCE, &initiation))
            .collect();
        assert_eq!(
            verdicts
                .iter()
                .filter(|verdict| **verdict == Gate::Pass)
                .count(),
            200
        );
        assert!(matches!(verdicts.last(), Some(Gate::Cookie(_))));
    }
}
