//! What a client gets.

use std::time::Duration;

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
            Drained::Frames => write(context, &mut writer, &out, stall).await?,
            Drained::Last => {
                write(context, &mut writer, &out, stall).await?;
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

/// A slow reader may take its time, but something has to move.
async fn write(
    context: &Context,
    writer: &mut WriteHalf<Box<dyn Transport>>,
    mut bytes: &[u8],
    stall: Duration,
) -> Result<(), ConnError> {
    context.metrics.bytes_out.inc_by(bytes.len() as u64);
    while !bytes.is_empty() {
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
