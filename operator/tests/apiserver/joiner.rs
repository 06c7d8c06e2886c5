//! A relay, and a cluster that joins over it, without an API server of its own.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_relay::{AdmitRule, Server};
use derp::pass::Pass;
use derp::{ClusterIdentity, ClusterSecret, NodeSecret, RelayUrl};
use sync::{
    Config, Inputs, JoinError, JoinOffer, JoinTiming, NodeRecord, Records, Relay, Sync, Token,
    Welcome,
};
use tempfile::NamedTempFile;
use tokio::sync::watch;

/// A relay that lets in whom its owner vouches for.
pub(crate) struct OwnedRelay {
    server: Server,
    _admit: NamedTempFile,
}

impl OwnedRelay {
    pub(crate) async fn start(owner: ClusterIdentity) -> Self {
        let admit = NamedTempFile::new().expect("a file");
        std::fs::write(admit.path(), format!("{owner}\n")).expect("writes");
        let rule = AdmitRule::File(admit.path().to_owned());
        let config = culvert_relay::Config::new("127.0.0.1:0".parse().expect("an address"), rule);
        let server = Server::start(config).await.expect("starts");
        Self {
            server,
            _admit: admit,
        }
    }

    pub(crate) fn url(&self) -> RelayUrl {
        let url = format!("http://{}", self.server.address());
        url.parse().expect("a URL")
    }
}

/// Who joins.
pub(crate) struct Joiner {
    pub(crate) secret: ClusterSecret,
}

impl Joiner {
    pub(crate) fn new() -> Self {
        Self {
            secret: ClusterSecret::generate().expect("randomness"),
        }
    }

    pub(crate) async fn join(&self, token: &Token, name: &str) -> Result<Welcome, JoinError> {
        let offer = JoinOffer {
            audience: sync::Audience::Cluster,
            cluster_name: name.parse().expect("a name"),
            cidrs: vec!["10.2.0.0/16".parse().expect("a range")],
        };
        sync::join(token, &self.secret, offer, JoinTiming::default()).await
    }

    /// Talks to the inviter, of one node `node` with the prefix 10.2.1.0/24.
    pub(crate) fn talk(&self, inviter: ClusterIdentity, welcome: &Welcome, url: &RelayUrl) -> Talk {
        let key = self.secret.identity().relay_key();
        let membership = welcome.membership.as_deref().expect("a membership");
        let expires = SystemTime::now() + Duration::from_secs(3600);
        let membership = Some(membership.parse().expect("a membership"));
        let pass = Pass::issue(&self.secret, key, expires, membership).expect("a pass");
        let relay = Relay {
            url: url.clone(),
            dial: None,
            ca_bundle: None,
            pass: Some(pass.to_string()),
        };
        let node = NodeSecret::from_bytes([7; 32]).public();
        let prefixes = vec!["10.2.1.0/24".parse().expect("a range")];
        let record = NodeRecord::new(node, Some(url.clone()), prefixes, 1).expect("a record");
        let mut records = Records::default();
        let name = "node".parse().expect("a name");
        records.insert(name, Arc::new(record)).expect("it fits");
        Talk::start(self.secret.clone(), inviter, relay, records)
    }
}

/// A conversation; ends with this.
pub(crate) struct Talk {
    _sync: Sync,
    _relays: watch::Sender<Vec<Relay>>,
}

impl Talk {
    fn start(secret: ClusterSecret, peer: ClusterIdentity, relay: Relay, records: Records) -> Self {
        let relays = watch::Sender::new(vec![relay]);
        let inputs = Inputs {
            relays: relays.subscribe(),
            peers: watch::Sender::new([peer].into()).subscribe(),
            records: watch::Sender::new(Arc::new(records)).subscribe(),
            memberships: watch::Sender::default().subscribe(),
            invites: watch::Sender::default().subscribe(),
        };
        let config = Config::new("tokyo".parse().expect("a name"), 1);
        Self {
            _sync: Sync::spawn(config, secret, inputs).expect("starts"),
            _relays: relays,
        }
    }
}
