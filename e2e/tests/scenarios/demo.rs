//! The demonstration, as whoever runs it sees it.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::demo::{Demo, Screen};
use e2e::{Profile, figure};

/// From its start to the end of the teardown, at most.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut paper = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        paper.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs it, and looks for texts in the order given.
fn shows(a: Profile, b: Profile, texts: &[&str]) -> Result<()> {
    let paper = Paper::default();
    let keep = false;
    let start = Instant::now();
    Demo { a, b, keep }.show(&mut Screen::new(Box::new(paper.clone()), false))?;
    figure(
        &format!("demo: {a} x {b}"),
        format!("{:?}", start.elapsed()),
    );
    ensure!(start.elapsed() <= LIMIT, "took {:?}", start.elapsed());
    let bytes = paper.0.lock().unwrap_or_else(PoisonError::into_inner);
    let shown = String::from_utf8_lossy(&bytes);
    let mut rest = &*shown;
    for text in texts {
        let Some((_, behind)) = rest.split_once(text) else {
            anyhow::bail!("no {text:?} where it belongs in:\n{shown}");
        };
        rest = behind;
    }
    ensure!(!shown.contains('\x1b'), "escapes without a terminal");
    Ok(())
}

#[test]
fn two_port_restricted_sites_turn_direct() -> Result<()> {
    shows(
        Profile::PortRestricted,
        Profile::PortRestricted,
        &[
            "# berlin: mesh.yaml",
            "kind: Peer",
            "both agents started",
            "first ping 10.1.0.10 -> 10.2.0.10, over the relay; the far pod saw 10.1.0.10",
            "data goes directly: 203.0.113.",
            "none lost",
            "Mbit/s, checksum right",
            "culvert-agent status, in berlin",
            "direct",
            "culvert-agent status, in tokyo",
            "direct",
            "berlin's node is as it was",
            "this machine is as it was before",
        ],
    )
}

#[test]
fn two_symmetric_sites_stay_on_the_relay() -> Result<()> {
    shows(
        Profile::Symmetric,
        Profile::Symmetric,
        &[
            "over the relay; the far pod saw 10.1.0.10",
            "it stays on the relay, BothNatsHard",
            "Mbit/s, checksum right",
            "BothNatsHard",
            "this machine is as it was before",
        ],
    )
}
