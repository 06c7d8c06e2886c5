//! The relays that are kept connected.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use derp::client::{self, Client};
use derp::pass::Pass;
use derp::{ClusterSecret, NodeKey, RelayUrl};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::{Relay, RelayState};
use crate::quic::{LinkInbox, Switch};

/// Events of relays that wait to be looked at.
const MAX_EVENTS: usize = 256;
/// Longest text of a relay that is shown.
const MAX_PROBLEM: usize = 256;

/// Connections to relays, for the [`Switch`] to send on.
pub(crate) struct Relays {
    secret: ClusterSecret,
    switch: Arc<Switch>,
    connected: BTreeMap<RelayUrl, Connected>,
    events: mpsc::Sender<RelayEvent>,
    incoming_events: mpsc::Receiver<RelayEvent>,
    /// Connections so far.
    count: u64,
    views: watch::Sender<BTreeMap<RelayUrl, RelayState>>,
}

/// A relay that is kept connected. Dropping it ends that.
struct Connected {
    relay: Relay,
    number: u64,
    client: Client,
    /// The task that passes its events on.
    _forwarder: JoinSet<()>,
}

/// Something that happened at a relay.
struct RelayEvent {
    number: u64,
    url: RelayUrl,
    event: client::Event,
}

/// What matters to those who speak through relays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// A relay has let us in.
    Connected,
    /// A relay is not connected.
    Disconnected,
    /// A key has come to a relay where it was missed.
    Present(NodeKey),
    /// Nothing of that kind.
    Other,
}

impl Relays {
    pub(crate) fn new(secret: ClusterSecret, switch: Arc<Switch>) -> Self {
        let (events, incoming_events) = mpsc::channel(MAX_EVENTS);
        Self {
            secret,
            switch,
            connected: BTreeMap::new(),
            events,
            incoming_events,
            count: 0,
            views: watch::Sender::default(),
        }
    }

    /// How they are.
    pub(crate) fn views(&self) -> watch::Receiver<BTreeMap<RelayUrl, RelayState>> {
        self.views.subscribe()
    }

    /// These and no others from now on. Of a relay that stays, a new pass is for its next dial.
    pub(crate) fn set(&mut self, wanted: Vec<Relay>) {
        let urls = wanted.into_iter().map(|one| (one.url.clone(), one));
        let mut wanted: BTreeMap<_, _> = urls.collect();
        let switch = &self.switch;
        self.connected.retain(|url, connected| {
            let stays = wanted.get(url).is_some_and(|one| connected.adopt(one));
            if !stays {
                switch.remove_relay(connected.number);
            }
            stays
        });
        self.views.send_modify(|views| {
            views.retain(|url, _| self.connected.contains_key(url));
            for url in wanted.keys() {
                views.entry(url.clone()).or_default();
            }
        });
        wanted.retain(|url, _| !self.connected.contains_key(url));
        for (url, relay) in wanted {
            let connected = self.connect(relay);
            self.connected.insert(url, connected);
        }
    }

    fn connect(&self, relay: Relay) -> Connected {
        let number = self.switch.next_relay();
        let inbox = Arc::new(LinkInbox::new(Arc::clone(&self.switch), number));
        let mut config = client::Config::new(relay.url.clone(), self.secret.relay_secret());
        config.dial.clone_from(&relay.dial);
        config.ca_bundle.clone_from(&relay.ca_bundle);
        config.pass.clone_from(&relay.pass);
        let (sender, receiver) = mpsc::channel(MAX_EVENTS);
        let client = Client::spawn(config, inbox, sender);
        self.switch.add_relay(number, client.outbox());
        self.switch.name_relay(number, relay.url.clone());
        let mut forwarder = JoinSet::new();
        forwarder.spawn(forward(
            number,
            relay.url.clone(),
            receiver,
            self.events.clone(),
        ));
        Connected {
            relay,
            number,
            client,
            _forwarder: forwarder,
        }
    }

    /// Deals with the next thing that happens. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> News {
        match self.incoming_events.recv().await {
            Some(told) => self.handle(told),
            None => News::Other,
        }
    }

    fn handle(&mut self, told: RelayEvent) -> News {
        let RelayEvent { number, url, event } = told;
        let known = self.connected.get(&url);
        let Some(connected) = known.filter(|one| one.number == number) else {
            return News::Other;
        };
        match event {
            client::Event::Connected { .. } => {
                self.switch.set_connected(number, true);
                self.count += 1;
                let count = self.count;
                self.show(&url, |state| {
                    state.connected = true;
                    state.connection = count;
                    state.problem = None;
                    state.refusal = None;
                });
                return News::Connected;
            }
            client::Event::Disconnected { error } => {
                let refusal = connected.client.refusal();
                self.switch.set_connected(number, false);
                self.show(&url, |state| {
                    state.connected = false;
                    state.problem = Some(shortened(error));
                    state.refusal = refusal;
                });
                return News::Disconnected;
            }
            client::Event::PeerPresent { key } => return News::Present(key),
            client::Event::PeerGone { key, .. } => self.switch.set_gone(number, &key),
            client::Event::Health(text) => self.show(&url, |state| {
                state.problem = (!text.is_empty()).then(|| shortened(text));
            }),
            client::Event::Rtt(rtt) => {
                self.switch.set_rtt(number, rtt);
                self.show(&url, |state| state.rtt = Some(rtt));
            }
            client::Event::Restarting { .. } => {}
        }
        News::Other
    }

    fn show(&self, url: &RelayUrl, change: impl FnOnce(&mut RelayState)) {
        self.views.send_modify(|views| {
            if let Some(state) = views.get_mut(url) {
                change(state);
            }
        });
    }
}

impl Connected {
    /// Takes over what can change while it is connected; says whether that is all that changes.
    fn adopt(&mut self, wanted: &Relay) -> bool {
        if self.relay.pass != wanted.pass {
            // The relay may have let us into its lobby with it, and goes by it until we come anew.
            if self.relay.pass.as_deref().is_some_and(is_over) {
                return false;
            }
            self.client.set_pass(wanted.pass.clone());
            self.relay.pass.clone_from(&wanted.pass);
        }
        self.relay == *wanted
    }
}

/// Whether a pass has expired by now, or the membership behind it.
fn is_over(pass: &str) -> bool {
    let pass = pass.parse::<Pass>();
    pass.is_ok_and(|pass| pass.expires() <= SystemTime::now())
}

/// Passes the events of one relay on, with its number.
async fn forward(
    number: u64,
    url: RelayUrl,
    mut from: mpsc::Receiver<client::Event>,
    to: mpsc::Sender<RelayEvent>,
) {
    while let Some(event) = from.recv().await {
        let url = url.clone();
        if to.send(RelayEvent { number, url, event }).await.is_err() {
            return;
        }
    }
}

fn shortened(mut text: String) -> String {
    let end = text
        .char_indices()
        .nth(MAX_PROBLEM)
        .map_or(text.len(), |(index, _)| index);
    text.truncate(end);
    text
}
