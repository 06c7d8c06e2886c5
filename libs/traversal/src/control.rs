//! The messages that two agents exchange inside their WireGuard session.
//!
//! Each message is an inner IPv6 packet of constant addresses with next header 253, "use for experimentation"
//! (RFC 3692, RFC 4727), so that any WireGuard implementation carries it and none mistakes it for pod data:
//!
//! ```text
//! IPv6 header, 40 bytes: source fe80::1, destination fe80::2, payload length exact
//! version u8 = 1 | type u8 | body
//! ```
//!
//! Numbers are big-endian. A body may be longer than what is described here: later versions of a message only append.
//! Addresses are masked with a constant, because some NATs rewrite bytes that look like an address of theirs.

mod wire;

use std::net::{Ipv6Addr, SocketAddr};

use self::wire::{Reader, Writer};
use crate::candidate::{MAX_CANDIDATES, capped};
use crate::{Candidate, CandidateKind, Filtering, Mapping, Udp};

/// Source address of every message.
pub const SOURCE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Destination address of every message.
pub const DESTINATION: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
/// Next header of every message.
pub const NEXT_HEADER: u8 = 253;

const HEADER: usize = 40;
const VERSION: u8 = 1;

/// A message inside the WireGuard session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// Who I am, where I may be reached, and what I have heard of you. Type 1.
    Hello(Hello),
    /// My openers of this round have left. Type 2: `epoch u64 | round u32 | seen u32`.
    Barrier {
        /// The sender's epoch.
        epoch: u64,
        /// Counts up over the life of a pair; both sides share the count.
        round: u32,
        /// The newest of the receiver's hellos whose candidates the openers went to.
        seen: u32,
    },
    /// Are you there? Type 3: `id u64`.
    Probe {
        /// Returned in the answer.
        id: u64,
    },
    /// Here I am. Type 4: `id u64 | observed address`.
    ProbeReply {
        /// Of the probe.
        id: u64,
        /// Where the probe came from; unspecified with port 0 if through a relay.
        observed: SocketAddr,
    },
    /// Nothing of mine follows on this path. Type 5: `id u64`.
    Marker {
        /// Returned in the answer.
        id: u64,
    },
    /// All before the marker is here. Type 6: `id u64`.
    MarkerReply {
        /// Of the marker.
        id: u64,
    },
    /// You are no longer admitted here: nothing you seal for me is opened any more. Type 7, without a body.
    Bye,
}

/// Body: `epoch u64 | seq u32 | flags u8 | acked epoch u64 | acked seq u32 | mapping u8 | filtering u8 | udp u8 |
/// candidates u8 | { kind u8 | address }`. Flag 1: something is acknowledged;
/// flag 2: awake; flag 4: an answer is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Drawn at random when the sender began; another one means that it has forgotten everything.
    pub epoch: u64,
    /// Counts the sender's versions of what follows, from 1.
    pub seq: u32,
    /// The receiver's newest hello that the sender has.
    pub ack: Option<Ack>,
    /// How the sender's NAT picks ports.
    pub mapping: Mapping,
    /// Whom the sender's NAT lets in.
    pub filtering: Filtering,
    /// Whether UDP works for the sender.
    pub udp: Udp,
    /// The sender has pod data to send or has had some lately.
    pub awake: bool,
    /// The receiver is to send its own hello back.
    pub wants_answer: bool,
    /// Where the sender may be reached, at most 32.
    pub candidates: Vec<Candidate>,
}

/// Names one hello of the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Its epoch.
    pub epoch: u64,
    /// Its number.
    pub seq: u32,
}

/// Why a packet is not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Other addresses, other next header, or no IPv6.
    #[error("not a control message")]
    NotControl,
    /// A version of the protocol that this side does not speak.
    #[error("protocol version {0}")]
    Version(u8),
    /// A type of message that this side does not know.
    #[error("message type {0}")]
    Type(u8),
    /// The packet ends inside a field, or a field has an impossible value.
    #[error("malformed message")]
    Malformed,
}

impl Control {
    /// The whole inner packet.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Writer::default();
        body.u8(VERSION);
        body.u8(self.kind());
        match self {
            Self::Hello(hello) => hello.write(&mut body),
            Self::Barrier { epoch, round, seen } => {
                body.u64(*epoch);
                body.u32(*round);
                body.u32(*seen);
            }
            Self::ProbeReply { id, observed } => {
                body.u64(*id);
                body.address(*observed);
            }
            Self::Probe { id } | Self::Marker { id } | Self::MarkerReply { id } => body.u64(*id),
            Self::Bye => {}
        }
        packet(&body.0)
    }

    /// Reads an inner packet.
    pub fn decode(packet: &[u8]) -> Result<Self, ControlError> {
        let body = payload(packet).ok_or(ControlError::NotControl)?;
        let mut body = Reader(body);
        let version = body.u8().ok_or(ControlError::Malformed)?;
        if version != VERSION {
            return Err(ControlError::Version(version));
        }
        let kind = body.u8().ok_or(ControlError::Malformed)?;
        if !(1..=7).contains(&kind) {
            return Err(ControlError::Type(kind));
        }
        Self::read(kind, &mut body).ok_or(ControlError::Malformed)
    }

    /// Whether an inner packet is a message rather than pod data.
    pub fn is_control(packet: &[u8]) -> bool {
        packet.first().is_some_and(|first| first >> 4 == 6)
            && packet.get(6) == Some(&NEXT_HEADER)
            && packet.get(8..24) == Some(&SOURCE.octets())
            && packet.get(24..HEADER) == Some(&DESTINATION.octets())
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => 1,
            Self::Barrier { .. } => 2,
            Self::Probe { .. } => 3,
            Self::ProbeReply { .. } => 4,
            Self::Marker { .. } => 5,
            Self::MarkerReply { .. } => 6,
            Self::Bye => 7,
        }
    }

    fn read(kind: u8, body: &mut Reader<'_>) -> Option<Self> {
        Some(match kind {
            1 => Self::Hello(Hello::read(body)?),
            2 => Self::Barrier {
                epoch: body.u64()?,
                round: body.u32()?,
                seen: body.u32()?,
            },
            3 => Self::Probe { id: body.u64()? },
            4 => Self::ProbeReply {
                id: body.u64()?,
                observed: body.address()?,
            },
            5 => Self::Marker { id: body.u64()? },
            6 => Self::MarkerReply { id: body.u64()? },
            7 => Self::Bye,
            _ => return None,
        })
    }
}

impl Hello {
    const ACKS: u8 = 1;
    const AWAKE: u8 = 2;
    const WANTS_ANSWER: u8 = 4;

    fn write(&self, body: &mut Writer) {
        let ack = self.ack.unwrap_or(Ack { epoch: 0, seq: 0 });
        body.u64(self.epoch);
        body.u32(self.seq);
        body.u8(self.flags());
        body.u64(ack.epoch);
        body.u32(ack.seq);
        body.u8(wire::mapping(self.mapping));
        body.u8(wire::filtering(self.filtering));
        body.u8(wire::udp(self.udp));
        let candidates = self
            .candidates
            .get(..MAX_CANDIDATES)
            .unwrap_or(&self.candidates);
        body.u8(u8::try_from(candidates.len()).unwrap_or(u8::MAX));
        for candidate in candidates {
            body.u8(wire::kind(candidate.kind));
            body.address(candidate.address);
        }
    }

    fn flags(&self) -> u8 {
        let flag = |set, flag| if set { flag } else { 0 };
        flag(self.ack.is_some(), Self::ACKS)
            | flag(self.awake, Self::AWAKE)
            | flag(self.wants_answer, Self::WANTS_ANSWER)
    }

    fn read(body: &mut Reader<'_>) -> Option<Self> {
        let (epoch, seq, flags) = (body.u64()?, body.u32()?, body.u8()?);
        let ack = Ack {
            epoch: body.u64()?,
            seq: body.u32()?,
        };
        let mapping = wire::read_mapping(body.u8()?);
        let filtering = wire::read_filtering(body.u8()?);
        let udp = wire::read_udp(body.u8()?);
        let candidates = read_candidates(body)?;
        Some(Self {
            epoch,
            seq,
            ack: (flags & Self::ACKS != 0).then_some(ack),
            mapping,
            filtering,
            udp,
            awake: flags & Self::AWAKE != 0,
            wants_answer: flags & Self::WANTS_ANSWER != 0,
            candidates,
        })
    }
}

/// Candidates of unknown kinds are skipped, those over the limits dropped.
fn read_candidates(body: &mut Reader<'_>) -> Option<Vec<Candidate>> {
    let count = body.u8()?;
    let mut candidates = Vec::new();
    for _ in 0..count {
        let (kind, address) = (wire::read_kind(body.u8()?), body.address()?);
        candidates.extend(kind.map(|kind: CandidateKind| Candidate { kind, address }));
    }
    Some(capped(&candidates))
}

fn packet(body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes();
    [
        &[0x60, 0, 0, 0],
        &len[..],
        &[NEXT_HEADER, 1],
        &SOURCE.octets(),
        &DESTINATION.octets(),
        body,
    ]
    .concat()
}

/// What the IPv6 header says is the payload; padding behind it is left out.
fn payload(packet: &[u8]) -> Option<&[u8]> {
    if !Control::is_control(packet) {
        return None;
    }
    let len = u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]);
    packet.get(HEADER..HEADER + usize::from(len))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address() -> impl Strategy<Value = SocketAddr> {
        (any::<std::net::IpAddr>(), any::<u16>()).prop_map(SocketAddr::from)
    }

    fn candidate() -> impl Strategy<Value = Candidate> {
        let kind = prop::sample::select(vec![
            CandidateKind::Host,
            CandidateKind::PortMapped,
            CandidateKind::Reflexive,
            CandidateKind::PeerReflexive,
        ]);
        (kind, address()).prop_map(|(kind, address)| Candidate { kind, address })
    }

    fn hello() -> impl Strategy<Value = Hello> {
        let ack = prop::option::of(
            (any::<u64>(), any::<u32>()).prop_map(|(epoch, seq)| Ack { epoch, seq }),
        );
        let mapping = prop::sample::select(vec![
            Mapping::Unknown,
            Mapping::EndpointIndependent,
            Mapping::EndpointDependent,
        ]);
        let filtering = prop::sample::select(vec![
            Filtering::Unknown,
            Filtering::EndpointIndependent,
            Filtering::AddressDependent,
            Filtering::AddressAndPortDependent,
        ]);
        let udp = prop::sample::select(vec![Udp::Unknown, Udp::Works, Udp::Blocked]);
        let candidates = prop::collection::vec(candidate(), 0..40).prop_map(|all| capped(&all));
        (
            any::<(u64, u32, bool, bool)>(),
            ack,
            mapping,
            filtering,
            udp,
            candidates,
        )
            .prop_map(
                |((epoch, seq, awake, wants_answer), ack, mapping, filtering, udp, candidates)| {
                    Hello {
                        epoch,
                        seq,
                        ack,
                        mapping,
                        filtering,
                        udp,
                        awake,
                        wants_answer,
                        candidates,
                    }
                },
            )
    }

    fn control() -> impl Strategy<Value = Control> {
        prop_oneof![
            hello().prop_map(Control::Hello),
            any::<(u64, u32, u32)>().prop_map(|(epoch, round, seen)| Control::Barrier {
                epoch,
                round,
                seen
            }),
            any::<u64>().prop_map(|id| Control::Probe { id }),
            (any::<u64>(), address())
                .prop_map(|(id, observed)| Control::ProbeReply { id, observed }),
            any::<u64>().prop_map(|id| Control::Marker { id }),
            any::<u64>().prop_map(|id| Control::MarkerReply { id }),
            Just(Control::Bye),
        ]
    }

    proptest! {
        #[test]
        fn round_trip(message in control(), padding in 0usize..32) {
            let mut packet = message.encode();
            prop_assert!(Control::is_control(&packet));
            packet.resize(packet.len() + padding, 0);
            prop_assert_eq!(Control::decode(&packet), Ok(message));
        }

        #[test]
        fn later_fields_are_skipped(message in control(), more in prop::collection::vec(any::<u8>(), 0..20)) {
            let mut body = message.encode().split_off(HEADER);
            body.extend(more);
            prop_assert_eq!(Control::decode(&packet(&body)), Ok(message));
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Control::decode(&bytes);
            if let Ok(Control::Hello(hello)) = Control::decode(&packet(&[&[VERSION, 1], &bytes[..]].concat())) {
                prop_assert!(hello.candidates.len() <= MAX_CANDIDATES);
            }
        }

        #[test]
        fn every_cut_is_refused(message in control(), cut in any::<prop::sample::Index>()) {
            let body = message.encode().split_off(HEADER);
            let short = packet(body.get(..cut.index(body.len())).unwrap());
            prop_assert!(Control::decode(&short).is_err());
        }
    }

    #[test]
    fn probe_on_the_wire() {
        let mut expected = vec![0x60, 0, 0, 0, 0, 10, 253, 1];
        expected.extend(SOURCE.octets());
        expected.extend(DESTINATION.octets());
        expected.extend([1, 3, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(
            Control::Probe {
                id: 0x0102_0304_0506_0708
            }
            .encode(),
            expected
        );
    }

    #[test]
    fn addresses_are_masked() {
        let observed: SocketAddr = "198.51.100.7:4000".parse().unwrap();
        let packet = Control::ProbeReply { id: 1, observed }.encode();
        assert!(!packet.windows(4).any(|window| window == [198, 51, 100, 7]));
    }

    #[test]
    fn other_packets_and_other_versions_are_told_apart() {
        let mut packet = Control::Bye.encode();
        packet[40] = 2;
        assert_eq!(Control::decode(&packet), Err(ControlError::Version(2)));
        packet[40..42].copy_from_slice(&[VERSION, 200]);
        assert_eq!(Control::decode(&packet), Err(ControlError::Type(200)));
        packet[6] = 17;
        assert_eq!(Control::decode(&packet), Err(ControlError::NotControl));
        let short = Control::Bye.encode();
        assert_eq!(Control::decode(&short[..41]), Err(ControlError::NotControl));
    }
}
