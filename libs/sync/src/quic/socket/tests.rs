use derp::NodeSecret;

use super::*;

fn key(seed: u8) -> NodeKey {
    NodeSecret::from_bytes([seed; 32]).public()
}

const SILENCE: Duration = Duration::from_secs(6);

fn switch() -> Switch {
    Switch::new(SILENCE)
}

fn arrive(switch: &Switch, seed: u8, bytes: &[u8], count: usize) {
    let source = key(seed);
    let frames = vec![Frame { source, bytes }; count];
    switch.receive(1, &frames, Instant::now());
}

/// Everything that QUIC would read, by sender.
fn read_all(switch: &Arc<Switch>) -> Vec<(SocketAddr, usize)> {
    let socket = RelaySocket::new(Arc::clone(switch));
    let mut context = Context::from_waker(Waker::noop());
    let mut read = Vec::new();
    loop {
        let mut bytes = [
            vec![0; usize::from(MAX_DATAGRAM)],
            vec![0; usize::from(MAX_DATAGRAM)],
        ];
        let mut buffers = bytes.each_mut().map(|one| IoSliceMut::new(one));
        let mut metas = [RecvMeta::default(); 2];
        match socket.poll_recv(&mut context, &mut buffers, &mut metas) {
            Poll::Ready(count) => {
                let metas = &metas[..count.unwrap()];
                read.extend(metas.iter().map(|meta| (meta.addr, meta.len)));
            }
            Poll::Pending => return read,
        }
    }
}

#[test]
fn the_relay_of_a_peer_is_where_it_is_heard() {
    let switch = switch();
    let url: RelayUrl = "http://192.0.2.1:80".parse().unwrap();
    switch.add_relay(1, Arc::default());
    switch.name_relay(1, url.clone());
    switch.set_connected(1, true);
    let start = Instant::now();
    switch.pin(key(2));
    assert_eq!(switch.relay_of(&key(2), start), None);
    arrive(&switch, 2, b"x", 1);
    assert_eq!(switch.relay_of(&key(2), start), Some(url));
    assert_eq!(switch.relay_of(&key(3), start), None, "nobody");
    let later = Instant::now() + SILENCE;
    assert_eq!(switch.relay_of(&key(2), later), None, "silent since");
}

#[test]
fn only_pinned_keys_are_heard() {
    let switch = Arc::new(switch());
    let one = switch.pin(key(1));
    arrive(&switch, 1, b"one", 1);
    arrive(&switch, 2, b"stranger", 1);
    assert_eq!(read_all(&switch), [(one, 3)]);
    switch.unpin(&key(1));
    arrive(&switch, 1, b"late", 1);
    assert_eq!(read_all(&switch), []);
    assert_eq!(switch.key_of(one), Some(key(1)), "can still be told");
    switch.forget(one);
    assert_eq!(switch.key_of(one), None);
    assert_ne!(switch.pin(key(1)), one, "addresses are not used again");
}

#[test]
fn one_peer_cannot_fill_the_queue() {
    let switch = Arc::new(switch());
    let (one, two) = (switch.pin(key(1)), switch.pin(key(2)));
    arrive(&switch, 1, &[7; 1200], MAX_PER_PEER + 10);
    arrive(&switch, 2, b"two", 1);
    assert_eq!(switch.dropped(), 10);
    let read = read_all(&switch);
    assert_eq!(read.len(), MAX_PER_PEER + 1);
    assert_eq!(read[0], (one, 1200));
    assert_eq!(read[MAX_PER_PEER], (two, 3));
    arrive(&switch, 1, b"again", 1);
    assert_eq!(read_all(&switch), [(one, 5)], "room was given back");
}

#[test]
fn the_queue_is_bounded_in_bytes() {
    let switch = Arc::new(switch());
    for seed in 1..=20 {
        switch.pin(key(seed));
        arrive(&switch, seed, &vec![7; usize::from(MAX_DATAGRAM)], 50);
    }
    arrive(&switch, 1, &vec![7; usize::from(MAX_DATAGRAM) + 1], 1);
    let bytes: usize = read_all(&switch)
        .into_iter()
        .map(|(_, length)| length)
        .sum();
    assert_eq!(bytes, MAX_BYTES);
    assert_eq!(switch.dropped(), 1000 - 256 + 1);
}

#[test]
fn what_goes_nowhere_is_counted() {
    let switch = Arc::new(switch());
    let socket = RelaySocket::new(Arc::clone(&switch));
    let transmit = Transmit {
        destination: address(77),
        ecn: None,
        contents: b"hello",
        segment_size: None,
        src_ip: None,
    };
    socket.try_send(&transmit).unwrap();
    assert_eq!(switch.dropped(), 1);
}

#[test]
fn the_round_trip_is_guessed_from_the_slowest_relay() {
    let switch = switch();
    assert_eq!(switch.rtt(), Duration::from_millis(200));
    for (number, millis) in [(1, 30), (2, 60), (3, 9000)] {
        switch.add_relay(number, Arc::default());
        switch.set_rtt(number, Duration::from_millis(millis));
    }
    assert!(!switch.is_connected());
    switch.set_connected(1, true);
    switch.set_connected(2, true);
    assert_eq!(switch.rtt(), Duration::from_millis(120));
    switch.set_connected(3, true);
    assert_eq!(switch.rtt(), Duration::from_millis(333));
    switch.remove_relay(3);
    assert_eq!(switch.rtt(), Duration::from_millis(120));
}

/// A switch with two connected relays and one peer.
struct Ways {
    switch: Switch,
    address: SocketAddr,
    start: Instant,
}

impl Ways {
    fn new() -> Self {
        let switch = switch();
        for number in 1..=2 {
            switch.add_relay(number, Arc::default());
            switch.set_connected(number, true);
        }
        Self {
            address: switch.pin(key(1)),
            switch,
            start: Instant::now(),
        }
    }

    fn hear(&self, relay: u64, seconds: u64) {
        let frame = Frame {
            source: key(1),
            bytes: b"x",
        };
        let now = self.start + Duration::from_secs(seconds);
        self.switch.receive(relay, &[frame], now);
    }

    /// Through which relays a packet would go.
    fn at(&self, seconds: u64) -> Vec<u64> {
        let now = self.start + Duration::from_secs(seconds);
        let routes = self.switch.read();
        let only = self
            .switch
            .believed(&routes, &routes.peers[&self.address], now);
        routes.ways(only).map(|(number, _)| *number).collect()
    }
}

#[test]
fn packets_go_where_the_peer_is_heard_and_its_copies_change_nothing() {
    let ways = Ways::new();
    assert_eq!(ways.at(0), [1, 2]);
    ways.hear(2, 0);
    ways.hear(1, 0);
    assert_eq!(ways.at(5), [2]);
    ways.hear(2, 5);
    ways.hear(1, 5);
    assert_eq!(ways.at(10), [2]);
}

#[test]
fn a_relay_that_delivers_nothing_any_more_is_not_relied_on() {
    let ways = Ways::new();
    ways.hear(2, 0);
    assert_eq!(ways.at(6), [1, 2]);
    ways.hear(1, 6);
    assert_eq!(ways.at(6), [1]);
}

#[test]
fn a_relay_that_is_gone_or_doubted_or_without_the_peer_is_not_relied_on() {
    let ways = Ways::new();
    ways.hear(2, 0);
    ways.switch.set_gone(1, &key(1));
    assert_eq!(ways.at(1), [2], "it never was there");
    ways.switch.set_gone(2, &key(1));
    assert_eq!(ways.at(1), [1, 2]);
    ways.hear(2, 1);
    ways.switch.doubt(ways.address);
    assert_eq!(ways.at(1), [1, 2]);
    ways.hear(2, 1);
    ways.switch.set_connected(2, false);
    assert_eq!(ways.at(1), [1]);
    ways.hear(1, 1);
    ways.switch.set_connected(2, true);
    assert_eq!(ways.at(1), [1], "heard there at once, despite the other");
}

#[test]
fn an_address_that_is_forgotten_takes_no_later_one_along() {
    let switch = Arc::new(switch());
    let old = switch.pin(key(1));
    let new = switch.pin(key(1));
    switch.forget(old);
    arrive(&switch, 1, b"x", 1);
    assert_eq!(read_all(&switch), [(new, 1)]);
    switch.forget(new);
    arrive(&switch, 1, b"x", 1);
    assert_eq!(read_all(&switch), []);
}
