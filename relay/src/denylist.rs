//! `PUT /denylist`: an owner takes passes back.

use std::io;
use std::time::Duration;

use derp::pass::{DenyError, DenyList, MAX_DENY_LIST};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::admit::DenyRefused;
use crate::conn::{self, Transport};
use crate::http::{self, Request};
use crate::server::Context;

/// How long somebody may go on sending to whom we have answered already.
const LINGER: Duration = Duration::from_secs(1);

/// Whether a request is for this.
pub(crate) fn is_for(request: &Request) -> bool {
    request.method == "PUT" && request.path == "/denylist"
}

/// Reads the list that follows a request, and answers. The caller sets the deadline.
///
/// # Errors
///
/// When the connection ends before the list does, or does not take the answer.
pub(crate) async fn put(
    context: &Context,
    mut stream: Box<dyn Transport>,
    request: &Request,
    rest: Vec<u8>,
) -> io::Result<()> {
    let answer = match request.length {
        None => http::denylist_response("411 Length Required", "give Content-Length\n"),
        Some(length) if length > MAX_DENY_LIST => {
            http::denylist_response("413 Content Too Large", &line(&DenyError::TooLong))
        }
        Some(length) => {
            let body = read_body(&mut stream, request, rest, length).await?;
            take(context, &body)
        }
    };
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // Closing with bytes unread would lose the answer; whether the other end is ever done does not matter.
    let _ = timeout(LINGER, conn::linger(&mut stream)).await;
    Ok(())
}

async fn read_body(
    stream: &mut Box<dyn Transport>,
    request: &Request,
    mut body: Vec<u8>,
    length: usize,
) -> io::Result<Vec<u8>> {
    if request.expects_continue && body.is_empty() {
        stream.write_all(http::CONTINUE.as_bytes()).await?;
        stream.flush().await?;
    }
    body.truncate(length);
    while body.len() < length {
        let missing = u64::try_from(length - body.len()).unwrap_or(u64::MAX);
        let mut more = (&mut *stream).take(missing);
        if more.read_buf(&mut body).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(body)
}

fn take(context: &Context, body: &[u8]) -> String {
    let list = match DenyList::parse(body) {
        Ok(list) => list,
        Err(error) => return http::denylist_response(status_of(&error), &line(&error)),
    };
    match context.deny(list) {
        Ok(()) => http::no_content(),
        Err(error @ DenyRefused::UnknownOwner) => {
            http::denylist_response("403 Forbidden", &line(&error))
        }
        Err(error @ DenyRefused::Stale { in_force }) => {
            http::stale_denylist_response(in_force, &line(&error))
        }
    }
}

fn status_of(error: &DenyError) -> &'static str {
    match error {
        DenyError::TooLong => "413 Content Too Large",
        DenyError::Malformed(_) => "400 Bad Request",
        DenyError::Signature => "403 Forbidden",
    }
}

fn line(error: &impl std::error::Error) -> String {
    format!("{error}\n")
}
