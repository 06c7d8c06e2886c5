//! Whom the NAT lets in, found out from a socket that has talked to one address only (RFC 5780 section 4.4).

use std::net::SocketAddr;
use std::time::Instant;

use super::request::{Request, State};
use super::{Filtering, StunSocket, StunTransmit};
use crate::Entropy;
use crate::stun::{Change, Response};

/// Three requests side by side to one server that has a second IP.
#[derive(Debug)]
pub(super) struct FilteringTest {
    server: SocketAddr,
    plain: Request,
    port: Request,
    ip: Request,
    /// The server answered from its first address although it was asked to change it.
    ignored: bool,
}

impl FilteringTest {
    pub(super) fn new(now: Instant, entropy: &mut dyn Entropy, server: SocketAddr) -> Self {
        let mut request = |change| Request::new(now, entropy, StunSocket::Fresh, server, change);
        Self {
            server,
            plain: request(Change::Nothing),
            port: request(Change::Port),
            ip: request(Change::IpAndPort),
            ignored: false,
        }
    }

    /// Whether the message answers this test.
    pub(super) fn handle(&mut self, from: SocketAddr, response: &Response) -> bool {
        let same_ip = from.ip() == self.server.ip();
        let unchanged = from == self.server;
        let moved = |change| match change {
            Change::Nothing => unchanged,
            Change::Port => same_ip && !unchanged,
            Change::IpAndPort => !same_ip,
        };
        let Some(request) = [&mut self.plain, &mut self.port, &mut self.ip]
            .into_iter()
            .find(|request| request.is_pending() && request.id == response.transaction)
        else {
            return false;
        };
        if !moved(request.change) {
            self.ignored |= unchanged;
            return unchanged;
        }
        request.state = State::Answered;
        true
    }

    pub(super) fn advance(&mut self, now: Instant) -> impl Iterator<Item = StunTransmit> {
        // The plain one first: it is what opens the NAT for the others.
        [&mut self.plain, &mut self.port, &mut self.ip]
            .into_iter()
            .filter_map(move |request| request.advance(now))
    }

    pub(super) fn due(&self) -> Option<Instant> {
        [&self.plain, &self.port, &self.ip]
            .into_iter()
            .filter_map(Request::due)
            .min()
    }

    /// The outcome as soon as nothing can change it; silence of the server itself proves nothing.
    pub(super) fn verdict(&self) -> Option<Filtering> {
        let [plain, port, ip] = [&self.plain, &self.port, &self.ip].map(|request| request.state);
        if ip == State::Answered {
            return Some(Filtering::EndpointIndependent);
        }
        if self.ignored {
            return Some(Filtering::Unknown);
        }
        match (plain, port, ip) {
            (_, State::Answered, State::Failed) => Some(Filtering::AddressDependent),
            (State::Answered, State::Failed, State::Failed) => {
                Some(Filtering::AddressAndPortDependent)
            }
            (State::Failed, State::Failed, State::Failed) => Some(Filtering::Unknown),
            _ => None,
        }
    }
}
