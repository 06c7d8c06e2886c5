//! The inviter's side: serves whoever holds one invite.

use std::sync::Arc;
use std::time::Duration;

use derp::ClusterIdentity;
use quinn::Incoming;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::message::{Ask, MAX_BYTES};
use super::{JoinAnswer, JoinRequest, Refused, RefusedCode};
use crate::message::CloseReason;
use crate::quic::{self, Endpoint, Link};

/// How long the joiner may take to say what it wants.
const ASKING: Duration = Duration::from_secs(5);
/// How long the decision may take.
const DECIDING: Duration = Duration::from_secs(12);
/// How long the joiner may take to go away with the answer.
const LEAVING: Duration = Duration::from_secs(3);

/// The holder of one invite: whoever has its temporary key, one connection at a time.
pub(crate) struct Guest {
    pub(crate) inviter: ClusterIdentity,
    pub(crate) invite: ClusterIdentity,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) requests: mpsc::Sender<JoinRequest>,
    /// Shared with all guests.
    pub(crate) seats: Arc<Semaphore>,
}

impl Guest {
    /// Runs until nobody can come any more, and what is being decided has been answered.
    ///
    /// A connection that comes later takes the place of one that is not being decided: its joiner may have lost it and ask
    /// again.
    pub(crate) async fn run(self, mut incoming: mpsc::Receiver<Incoming>) {
        let mut next = incoming.recv().await;
        while let Some(one) = next {
            next = self.serve(one, &mut incoming).await;
        }
    }

    /// Serves a connection; gives the one that comes next.
    async fn serve(&self, one: Incoming, later: &mut mpsc::Receiver<Incoming>) -> Option<Incoming> {
        let Ok(_seat) = self.seats.try_acquire() else {
            one.refuse();
            return later.recv().await;
        };
        let asked = tokio::select! {
            asked = self.listen(one) => asked,
            next = later.recv() => return next,
        };
        let Some((link, ask)) = asked else {
            return later.recv().await;
        };
        let Some(answer) = self.decide(&link, ask).await else {
            return later.recv().await;
        };
        tokio::select! {
            () = reply(link, answer) => later.recv().await,
            Some(next) = later.recv() => Some(next),
        }
    }

    /// Lets the joiner in, and hears what it wants.
    async fn listen(&self, incoming: Incoming) -> Option<(Link, Ask)> {
        let link = self.endpoint.answer(incoming, self.invite).await;
        let link = link.inspect_err(|error| {
            tracing::debug!(invite = ?self.invite, %error, "no connection to a joiner");
        });
        let mut link = link.ok()?;
        let bytes = timeout(ASKING, link.read_frame(MAX_BYTES)).await.ok()?.ok();
        match bytes.and_then(|bytes| Ask::decode(&bytes).ok()) {
            Some(ask) => Some((link, ask)),
            None => {
                quic::close(&link.connection, CloseReason::Protocol);
                None
            }
        }
    }

    /// What the answer is; `None` if nobody waits for it any more.
    async fn decide(&self, link: &Link, ask: Ask) -> Option<JoinAnswer> {
        if !ask.is_proved(self.inviter, self.invite) {
            tracing::info!(invite = ?self.invite, "a joiner could not prove who it is");
            return Some(refused(RefusedCode::BadProof));
        }
        let (answer, decision) = oneshot::channel();
        let request = JoinRequest {
            invite: self.invite,
            identity: ask.identity,
            audience: ask.kind,
            cluster_name: ask.cluster_name,
            cidrs: ask.cidrs,
            answer,
        };
        let decide = async {
            self.requests.send(request).await.ok()?;
            decision.await.ok()
        };
        tokio::select! {
            decided = timeout(DECIDING, decide) => {
                let answer = decided.ok().flatten();
                Some(answer.unwrap_or_else(|| refused(RefusedCode::Busy)))
            }
            _ = link.connection.closed() => None,
        }
    }
}

/// Says it, and waits until the joiner is gone.
async fn reply(mut link: Link, answer: JoinAnswer) {
    let Some(bytes) = answer.encode() else {
        tracing::warn!("the answer to a joiner is too long to be sent");
        return quic::close(&link.connection, CloseReason::Other(0));
    };
    let told = async {
        link.send.write_all(&bytes).await.ok()?;
        link.send.finish().ok()?;
        Some(link.connection.closed().await)
    };
    let _ = timeout(LEAVING, told).await;
    quic::close(&link.connection, CloseReason::Shutdown);
}

fn refused(code: RefusedCode) -> JoinAnswer {
    JoinAnswer::Refused(Refused::new(code, ""))
}
