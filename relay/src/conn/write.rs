//! What a client gets.

use derp::Message;
use tokio::io::{AsyncWriteExt as _, WriteHalf};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{ConnError, LINGER, Transport};
use crate::queue::Drained;
use crate::registry::Member;
use crate::server::Context;

/// Write buffers above this size are given back when the client is idle.
const KEEP_BYTES: usize = 4 << 10;

/// Writes what is queued, many frames at once, until the connection is to be closed.
pub(super) async fn run(
    context: &Context,
    member: &Member,
    mut writer: WriteHalf<Box<dyn Transport>>,
) -> Result<(), ConnError> {
    let stall = context.timing.write_stall;
    let mut out = Vec::new();
    let mut keepalive = next_keepalive(context);
    loop {
        match member.queue.drain(&mut out) {
            Drained::Frames => write(context, member, &mut writer, &out).await?,
            Drained::Last => {
                write(context, member, &mut writer, &out).await?;
                // The other end closes when it has read this; the reading half notices.
                let _ = timeout(stall, writer.shutdown()).await;
                sleep(LINGER).await;
                return Ok(());
            }
            Drained::Empty => tokio::select! {
                () = member.queue.wait() => {}
                () = sleep_until(keepalive) => {
                    member.queue.push_control(Message::KeepAlive);
                    member.queue.trim();
                    out = trimmed(out);
                    keepalive = next_keepalive(context);
                }
            },
        }
        out.clear();
    }
}

/// A slow reader may take its time, but something has to move; and none holds up the end of its own connection.
async fn write(
    context: &Context,
    member: &Member,
    writer: &mut WriteHalf<Box<dyn Transport>>,
    mut bytes: &[u8],
) -> Result<(), ConnError> {
    let stall = context.timing.write_stall;
    let started = Instant::now();
    context.metrics.bytes_out.inc_by(bytes.len() as u64);
    while !bytes.is_empty() {
        if member.queue.is_closing() && started.elapsed() > stall {
            return Err(ConnError::Stalled);
        }
        let written = timeout(stall, writer.write(bytes))
            .await
            .map_err(|_| ConnError::Stalled)??;
        if written == 0 {
            return Err(ConnError::Closed);
        }
        bytes = bytes.get(written..).unwrap_or_default();
    }
    timeout(stall, writer.flush())
        .await
        .map_err(|_| ConnError::Stalled)??;
    Ok(())
}

fn next_keepalive(context: &Context) -> Instant {
    // Connections made at the same time should not be served at the same time for ever.
    let jitter = context
        .timing
        .keepalive
        .mul_f64(rand::random::<f64>() / 12.0);
    Instant::now() + context.timing.keepalive + jitter
}

fn trimmed(out: Vec<u8>) -> Vec<u8> {
    if out.capacity() > KEEP_BYTES {
        Vec::new()
    } else {
        out
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use derp::NodeSecret;
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::admit::{AdmitRule, Grant};
    use crate::server::Config;

    #[tokio::test]
    async fn who_trickles_does_not_hold_up_the_end_of_its_connection() {
        let mut config = Config::new(([127, 0, 0, 1], 0).into(), AdmitRule::Any);
        config.timing.write_stall = Duration::from_millis(100);
        let context = Context::new(&config).unwrap();
        let key = NodeSecret::from_bytes([1; 32]).public();
        let now = std::time::Instant::now();
        let member = context
            .registry
            .register(now, key, Grant::default(), vec![0; 1 << 20]);
        let (ours, mut theirs) = tokio::io::duplex(16);
        let ours: Box<dyn Transport> = Box::new(ours);
        let (_reader, writer) = tokio::io::split(ours);
        let trickle = async {
            for round in 0_u32.. {
                if round == 30 {
                    member.queue.close(Message::Health("bye"));
                }
                sleep(Duration::from_millis(10)).await;
                theirs.read_exact(&mut [0]).await.unwrap();
            }
        };
        let ended = timeout(Duration::from_secs(10), async {
            tokio::select! { result = run(&context, &member, writer) => result, () = trickle => Ok(()) }
        });
        assert!(matches!(ended.await, Ok(Err(ConnError::Stalled))));
        assert!(member.queue.is_closing(), "a slow reader alone is served");
    }
}
