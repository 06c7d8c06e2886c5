use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use derp::client::{Client, Frame, Inbox};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::client::client_config;
use crate::support::{PATIENCE, key, relay, until};

#[derive(Default)]
struct Counted {
    bytes: AtomicUsize,
    reads: AtomicUsize,
}

impl Inbox for Counted {
    fn receive(&self, frames: &[Frame<'_>]) {
        let bytes = frames.iter().map(|frame| frame.bytes.len()).sum();
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.reads.fetch_add(1, Ordering::Relaxed);
    }
}

/// One flow with half a megabyte under way, like a TCP connection inside.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_flow_is_carried_in_batches() {
    const TOTAL: usize = 200 << 20;
    const WINDOW: usize = 512 << 10;
    let server = relay().await;
    let url = format!("http://{}", server.address());
    let counted = Arc::new(Counted::default());
    let (events_in, _events) = mpsc::channel(1000);
    let one = Client::spawn(
        client_config(&url, 1),
        Arc::clone(&counted) as Arc<dyn Inbox>,
        events_in.clone(),
    );
    let two = Client::spawn(
        client_config(&url, 2),
        Arc::clone(&counted) as Arc<dyn Inbox>,
        events_in,
    );
    until("both are connected", async || {
        one.is_connected() && two.is_connected()
    })
    .await;
    let (outbox, progress, destination) = (one.outbox(), Arc::clone(&counted), key(2));
    let started = Instant::now();
    let sender = std::thread::spawn(move || {
        let batch = vec![4; 1400 * 45];
        let mut sent = 0;
        while sent < TOTAL && started.elapsed() < PATIENCE {
            if sent - progress.bytes.load(Ordering::Relaxed) < WINDOW {
                outbox.push(&destination, &batch, 1400);
                sent += batch.len();
            } else {
                std::thread::sleep(Duration::from_micros(20));
            }
        }
        sent
    });
    let sent = timeout(
        2 * PATIENCE,
        tokio::task::spawn_blocking(|| sender.join().unwrap()),
    )
    .await
    .unwrap()
    .unwrap();
    until("all has arrived", async || {
        counted.bytes.load(Ordering::Relaxed) >= sent
    })
    .await;
    let took = started.elapsed();
    let gigabits = sent as f64 * 8.0 / took.as_secs_f64() / 1e9;
    let per_read = sent / 1400 / counted.reads.load(Ordering::Relaxed).max(1);
    println!("relay, one flow: {gigabits:.2} Gbit/s, {per_read} packets a read");
    assert_eq!(one.outbox().dropped(), 0);
    assert!(gigabits > 0.1, "{gigabits} Gbit/s");
}
