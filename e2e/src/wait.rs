//! Waiting for conditions, and printing figures.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(30);

/// Polls until `probe` gives a value; after `timeout` fails with `what` and the last thing seen.
pub fn wait_for<T, E: Display>(
    timeout: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<T, E>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let seen = match probe() {
            Ok(value) => return Ok(value),
            Err(seen) => seen,
        };
        if start.elapsed() >= timeout {
            bail!("not within {timeout:?}: {what}; last seen: {seen:#}");
        }
        thread::sleep(INTERVAL);
    }
}

/// Prints one measured figure of a test.
#[expect(
    clippy::print_stdout,
    reason = "figures are what a test run is read for"
)]
pub fn figure(what: &str, value: impl Display) {
    println!("figure: {what}: {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_was_seen_last() {
        let mut looked = 0;
        let probe = || -> Result<(), String> {
            looked += 1;
            Err(format!("look {looked}"))
        };
        let error = wait_for(Duration::ZERO, "a miracle", probe)
            .expect_err("never")
            .to_string();
        assert!(
            error.contains("a miracle") && error.contains("look 1"),
            "{error}"
        );
    }
}
