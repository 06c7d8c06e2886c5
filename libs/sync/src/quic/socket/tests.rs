use derp::NodeSecret;

use super::*;

fn key(seed: u8) -> NodeKey {
    NodeSecret::from_bytes([seed; 32]).public()
}

fn arrive(switch: &Switch, seed: u8, bytes: &[u8], count: usize) {
    let source = key(seed);
    let frames = vec![Frame { source, bytes }; count];
    switch.receive(1, &frames);
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
fn only_pinned_keys_are_heard() {
    let switch = Arc::new(Switch::default());
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
    let switch = Arc::new(Switch::default());
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
    let switch = Arc::new(Switch::default());
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
    let switch = Arc::new(Switch::default());
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
    let switch = Switch::default();
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
