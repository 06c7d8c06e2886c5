//! A relay, an invite, and who joins with it.

use api::{Invite, Mesh, Peer, PeerSlice, find_condition};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::events::v1::Event;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use sync::{JoinError, RefusedCode};

use crate::cluster::{Cluster, eventually, get, object};
use crate::joiner::{Joiner, OwnedRelay};

impl Cluster {
    pub(crate) async fn a_relay_is_added(&self, seed: &ByteString) -> OwnedRelay {
        let text = String::from_utf8(seed.0.clone()).expect("text");
        let secret = derp::ClusterSecret::from_base64(text.trim()).expect("an identity");
        let relay = OwnedRelay::start(secret.identity()).await;
        let external = json!({"url": relay.url().to_string(), "stunPort": 0, "owner": secret.identity().to_string()});
        let patch = json!({"spec": {"relays": {"external": [external]}}});
        let meshes = self.all::<Mesh>();
        meshes
            .patch("default", &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .expect("taken");
        let inside = |mesh: &Option<Mesh>| {
            let status = mesh.as_ref().and_then(|mesh| mesh.status.as_ref());
            status.is_some_and(|status| status.relays.iter().any(|relay| relay.inside))
        };
        eventually("a relay is connected", || get(&meshes, "default"), inside).await;
        relay
    }

    pub(crate) async fn an_invite_gets_a_token(&self) -> sync::Token {
        let invites = self.all::<Invite>();
        invites
            .create(&PostParams::default(), &object("tokyo", json!({})))
            .await
            .expect("made");
        let ready = |invite: &Option<Invite>| {
            let status = invite.as_ref().and_then(|invite| invite.status.as_ref());
            status.is_some_and(|status| {
                find_condition(&status.conditions, "Ready")
                    .is_some_and(|ready| ready.status == "True")
            })
        };
        let invite = eventually("a token", || get(&invites, "tokyo"), ready)
            .await
            .expect("there");
        let status = invite.status.expect("a status");
        let secret = status.secret_name.expect("a Secret");
        let secret = get(&self.namespaced::<Secret>(), &secret)
            .await
            .expect("there");
        let token = secret
            .data
            .and_then(|mut data| data.remove("token"))
            .expect("a token");
        let token: sync::Token = String::from_utf8(token.0)
            .expect("text")
            .trim()
            .parse()
            .expect("a token");
        assert_eq!(Some(token.secret.identity().to_string()), status.identity);
        assert!(!token.relays.is_empty());
        token
    }

    pub(crate) async fn somebody_joins_once(&self, token: &sync::Token, relay: &OwnedRelay) {
        let (tokyo, osaka) = (Joiner::new(), Joiner::new());
        let welcome = tokyo.join(token, "tokyo").await.expect("it is let in");
        assert_eq!(welcome.cidrs, ["10.1.0.0/16".parse().expect("a range")]);
        let peers = self
            .all::<Peer>()
            .list(&ListParams::default())
            .await
            .expect("listed")
            .items;
        let identities: Vec<_> = peers
            .iter()
            .map(|peer| peer.spec.identity.clone())
            .collect();
        assert_eq!(identities, [Some(tokyo.secret.identity().to_string())]);
        assert_eq!(peers[0].spec.allowed_cidrs, ["10.2.0.0/16"]);
        let again = osaka.join(token, "osaka").await.expect_err("it is used");
        let JoinError::Refused(refused) = &again else {
            panic!("{again}");
        };
        assert_eq!(refused.code, RefusedCode::Used);
        let talk = tokyo.talk(token.inviter, &welcome, &relay.url());
        let slices = || async {
            self.all::<PeerSlice>()
                .list(&ListParams::default())
                .await
                .expect("listed")
                .items
        };
        let told = eventually("a PeerSlice", slices, |slices| !slices.is_empty()).await;
        assert_eq!(told[0].spec.nodes[0].name, "node");
        assert_eq!(told[0].spec.nodes[0].prefixes, ["10.2.1.0/24"]);
        assert!(
            told[0]
                .owner_references()
                .iter()
                .any(|owner| owner.kind == "Peer")
        );
        drop(talk);
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let events = || async {
            events
                .list(&ListParams::default())
                .await
                .expect("listed")
                .items
        };
        let about_it = |events: &Vec<Event>| {
            let mut kinds = events
                .iter()
                .filter_map(|event| event.regarding.as_ref()?.kind.clone());
            kinds.any(|kind| kind == "Invite")
        };
        eventually("an Event", events, about_it).await;
    }
}
