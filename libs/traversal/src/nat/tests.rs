//! The prober against servers that answer, lie, or keep silent.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::*;
use crate::sim::Random;
use crate::stun::server::{parse_request, response};
use crate::stun::{Change, TransactionId};

const SERVER: &str = "203.0.113.20:3478";
const OTHER: &str = "203.0.113.21:3478";
const SEEN: &str = "198.51.100.7:20443";
const HOST: &str = "192.168.1.2:20443";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The prober, and what it has said and sent.
struct Bench {
    prober: NatProber,
    now: Instant,
    profiles: Vec<NatProfile>,
    fresh_done: usize,
}

/// A request that is on the wire.
#[derive(Debug, Clone, Copy)]
struct Asked {
    socket: StunSocket,
    to: SocketAddr,
    id: TransactionId,
    change: Change,
}

impl Bench {
    #[expect(
        clippy::disallowed_methods,
        reason = "virtual time has to begin somewhere"
    )]
    fn new(servers: &[&str]) -> Self {
        let now = Instant::now();
        let mut prober = NatProber::new(Box::new(Random(7)));
        prober.set_local(now, &[address(HOST)]);
        prober.set_servers(now, servers.iter().map(|text| address(text)).collect());
        Self {
            prober,
            now,
            profiles: Vec::new(),
            fresh_done: 0,
        }
    }

    /// What leaves now.
    fn asked(&mut self) -> Vec<Asked> {
        std::iter::from_fn(|| self.prober.poll_transmit())
            .map(|sent| {
                let (id, change) = parse_request(&sent.bytes).unwrap();
                Asked {
                    socket: sent.socket,
                    to: sent.to,
                    id,
                    change,
                }
            })
            .collect()
    }

    fn reply(&mut self, asked: Asked, from: &str, mapped: &str, other: Option<&str>) -> bool {
        let bytes = response(asked.id, address(mapped), other.map(address));
        let known = self
            .prober
            .handle_packet(self.now, asked.socket, address(from), &bytes);
        self.listen();
        known
    }

    fn listen(&mut self) {
        while let Some(event) = self.prober.poll_event() {
            match event {
                NatEvent::ProfileChanged(profile) => self.profiles.push(profile),
                NatEvent::FreshSocketDone => self.fresh_done += 1,
            }
        }
    }

    /// Lets `time` pass; `answer` sees every request and may reply.
    fn pass(&mut self, time: Duration, mut answer: impl FnMut(&mut Self, Asked)) {
        let end = self.now + time;
        loop {
            for asked in self.asked() {
                answer(self, asked);
            }
            self.listen();
            let Some(due) = self.prober.poll_timeout().filter(|due| *due <= end) else {
                break;
            };
            self.now = due.max(self.now);
            self.prober.handle_timeout(self.now);
        }
        self.now = end;
    }

    fn profile(&self) -> &NatProfile {
        self.prober.profile()
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Answers as an easy NAT does, with a second address.
fn easy(bench: &mut Bench, asked: Asked) {
    if asked.socket == StunSocket::Data {
        bench.reply(asked, &asked.to.to_string(), SEEN, Some(OTHER));
    }
}

#[test]
fn first_answer_is_published_at_once() {
    let mut bench = Bench::new(&[SERVER]);
    let [asked] = bench.asked()[..] else {
        panic!("one request")
    };
    assert!(bench.reply(asked, SERVER, SEEN, Some(OTHER)));
    let [profile] = &bench.profiles[..] else {
        panic!("one profile")
    };
    assert_eq!(profile.reflexive, [address(SEEN)]);
    assert_eq!(
        (profile.udp, profile.mapping),
        (Udp::Works, Mapping::Unknown)
    );
}

#[test]
fn the_second_address_tells_the_mapping() {
    for (second, mapping) in [
        (SEEN, Mapping::EndpointIndependent),
        ("198.51.100.7:1", Mapping::EndpointDependent),
    ] {
        for other in [OTHER, "203.0.113.20:3479"] {
            let mut bench = Bench::new(&[SERVER]);
            bench.pass(seconds(3), |bench, asked| match asked.socket {
                StunSocket::Data if asked.to == address(SERVER) => {
                    bench.reply(asked, SERVER, SEEN, Some(other));
                }
                StunSocket::Data => {
                    bench.reply(asked, other, second, None);
                }
                StunSocket::Fresh => {}
            });
            assert_eq!(bench.profile().mapping, mapping, "{second} {other}");
            assert_eq!(bench.profile().reflexive.len(), 1);
        }
    }
}

#[test]
fn one_server_tells_nothing_unless_there_is_no_nat() {
    for (seen, mapping) in [
        (SEEN, Mapping::Unknown),
        (HOST, Mapping::EndpointIndependent),
    ] {
        let mut bench = Bench::new(&[SERVER]);
        bench.pass(seconds(20), |bench, asked| {
            bench.reply(asked, SERVER, seen, None);
        });
        assert_eq!(
            (bench.profile().mapping, bench.profile().filtering),
            (mapping, Filtering::Unknown)
        );
        assert_eq!(bench.fresh_done, 0);
    }
}

#[test]
fn two_servers_are_as_good_as_one_with_two_addresses() {
    let mut bench = Bench::new(&[SERVER, OTHER]);
    bench.pass(seconds(1), |bench, asked| {
        bench.reply(asked, &asked.to.to_string(), SEEN, None);
    });
    assert_eq!(bench.profile().mapping, Mapping::EndpointIndependent);
}

#[test]
fn silence_is_blocked_within_two_and_a_half_seconds_and_tried_again() {
    let mut bench = Bench::new(&[SERVER]);
    let mut sent = 0;
    bench.pass(Duration::from_millis(2_500), |_, _| sent += 1);
    assert_eq!((bench.profile().udp, sent), (Udp::Blocked, 5));
    bench.pass(seconds(10), |bench, asked| {
        bench.reply(asked, SERVER, SEEN, None);
    });
    assert_eq!(bench.profile().udp, Udp::Works);
}

#[test]
fn answers_count_only_from_whom_was_asked_and_with_the_right_number() {
    let mut bench = Bench::new(&[SERVER]);
    let [asked] = bench.asked()[..] else {
        panic!("one request")
    };
    assert!(!bench.reply(asked, OTHER, SEEN, None));
    assert!(!bench.reply(
        Asked {
            id: TransactionId([0; 12]),
            ..asked
        },
        SERVER,
        SEEN,
        None
    ));
    assert!(!bench.reply(
        Asked {
            socket: StunSocket::Fresh,
            ..asked
        },
        SERVER,
        SEEN,
        None
    ));
    assert!(bench.profiles.is_empty());
    assert!(bench.reply(asked, SERVER, SEEN, None));
    assert!(
        !bench.reply(asked, SERVER, "198.51.100.9:1", None),
        "answered twice"
    );
}

#[test]
fn filtering_from_what_comes_through() {
    let (any, port) = ("203.0.113.21:3479", "203.0.113.20:3479");
    let cases: [(&[(Change, &str)], Filtering); 5] = [
        (
            &[
                (Change::Nothing, SERVER),
                (Change::Port, port),
                (Change::IpAndPort, any),
            ],
            Filtering::EndpointIndependent,
        ),
        (
            &[(Change::Nothing, SERVER), (Change::Port, port)],
            Filtering::AddressDependent,
        ),
        (
            &[(Change::Nothing, SERVER)],
            Filtering::AddressAndPortDependent,
        ),
        // Nothing came: the server may be down.
        (&[], Filtering::Unknown),
        // The server ignores what it is asked.
        (
            &[
                (Change::Nothing, SERVER),
                (Change::Port, SERVER),
                (Change::IpAndPort, SERVER),
            ],
            Filtering::Unknown,
        ),
    ];
    for (answers, filtering) in cases {
        let mut bench = Bench::new(&[SERVER]);
        bench.pass(seconds(3), |bench, asked| {
            easy(bench, asked);
            if asked.socket == StunSocket::Fresh {
                assert_eq!(
                    asked.to,
                    address(SERVER),
                    "the fresh socket talks to one address only"
                );
                if let Some((_, from)) = answers.iter().find(|(change, _)| *change == asked.change)
                {
                    bench.reply(asked, from, "198.51.100.7:50000", None);
                }
            }
        });
        assert_eq!(bench.profile().filtering, filtering, "{answers:?}");
        assert_eq!(bench.fresh_done, 1);
    }
}

#[test]
fn a_second_port_cannot_tell_the_filtering() {
    let mut bench = Bench::new(&[SERVER]);
    bench.pass(seconds(3), |bench, asked| {
        assert_eq!(asked.socket, StunSocket::Data);
        bench.reply(
            asked,
            &asked.to.to_string(),
            SEEN,
            Some("203.0.113.20:3479"),
        );
    });
    assert_eq!(bench.profile().filtering, Filtering::Unknown);
    assert_eq!(bench.profile().mapping, Mapping::EndpointIndependent);
}

#[test]
fn servers_may_not_send_us_anywhere() {
    for other in [
        "127.0.0.1:53",
        "169.254.169.254:80",
        "224.0.0.1:1",
        "[2001:db8::1]:1",
        SERVER,
    ] {
        let mut bench = Bench::new(&[SERVER]);
        bench.pass(seconds(3), |bench, asked| {
            assert_eq!(asked.to, address(SERVER));
            bench.reply(asked, SERVER, SEEN, Some(other));
        });
    }
}

#[test]
fn asks_every_25_seconds_while_active_and_every_120_otherwise() {
    for (active, least, most) in [(true, 23, 25), (false, 4, 6)] {
        let mut bench = Bench::new(&[SERVER]);
        bench.prober.set_active(active);
        let mut rounds = 0;
        bench.pass(seconds(600), |bench, asked| {
            if asked.socket == StunSocket::Data && asked.to == address(SERVER) {
                rounds += 1;
            }
            easy(bench, asked);
        });
        assert!((least..=most).contains(&rounds), "{active} {rounds}");
    }
}

#[test]
fn refresh_is_limited_and_sees_a_new_address() {
    let mut bench = Bench::new(&[SERVER]);
    bench.pass(seconds(5), easy);
    let mut rounds = 0;
    for _ in 0..100 {
        let now = bench.now;
        bench.prober.refresh(now);
        bench.pass(Duration::from_millis(50), |bench, asked| {
            if asked.socket == StunSocket::Data {
                rounds += usize::from(asked.to == address(SERVER));
                bench.reply(asked, &asked.to.to_string(), "192.0.2.9:20443", Some(OTHER));
            }
        });
    }
    assert!((4..=6).contains(&rounds), "{rounds} in five seconds");
    assert_eq!(bench.profile().reflexive, [address("192.0.2.9:20443")]);
    assert_eq!(bench.profile().mapping, Mapping::EndpointIndependent);
}

#[test]
fn a_lost_answer_does_not_change_the_verdict() {
    let mut bench = Bench::new(&[SERVER]);
    bench.pass(seconds(5), easy);
    bench.profiles.clear();
    bench.pass(seconds(60), |bench, asked| {
        if asked.to == address(SERVER) {
            easy(bench, asked);
        }
    });
    let mapping = bench.profile().mapping;
    assert_eq!(mapping, Mapping::EndpointIndependent);
}

#[test]
fn v4_comes_first_and_decides() {
    let six = "[2001:db8:f::20]:3478";
    let mut bench = Bench::new(&[six, SERVER]);
    bench.pass(seconds(3), |bench, asked| {
        let mapped = if asked.to.is_ipv4() {
            SEEN
        } else {
            "[2001:db8:a::2]:20443"
        };
        bench.reply(asked, &asked.to.to_string(), mapped, None);
    });
    assert_eq!(
        bench.profile().reflexive,
        [address(SEEN), address("[2001:db8:a::2]:20443")]
    );
    assert_eq!(bench.profile().mapping, Mapping::Unknown);
}

#[test]
fn without_servers_the_profile_fades() {
    let mut bench = Bench::new(&[SERVER]);
    bench.pass(seconds(5), easy);
    let now = bench.now;
    bench.prober.set_servers(now, Vec::new());
    bench.pass(seconds(30), |_, asked| panic!("{asked:?}"));
    assert_eq!(bench.profile().udp, Udp::Works);
    bench.pass(seconds(60), |_, asked| panic!("{asked:?}"));
    assert_eq!(*bench.profile(), NatProfile::default());
    let now = bench.now;
    bench.prober.set_servers(now, vec![address(SERVER)]);
    bench.pass(seconds(1), easy);
    assert_eq!(bench.profile().udp, Udp::Works);
}

#[test]
fn a_server_added_later_is_asked_at_once() {
    let mut bench = Bench::new(&[SERVER]);
    bench.pass(seconds(5), |bench, asked| {
        bench.reply(asked, &asked.to.to_string(), SEEN, None);
    });
    let now = bench.now;
    bench
        .prober
        .set_servers(now, vec![address(SERVER), address(OTHER)]);
    assert_eq!(
        bench
            .asked()
            .iter()
            .map(|asked| asked.to)
            .collect::<Vec<_>>(),
        [address(OTHER)]
    );
}
