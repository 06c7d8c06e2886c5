use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::networking::v1::Ingress;
use serde_json::{Value, json};

use super::certificate::{names, text};
use crate::plan::draft::find;
use crate::plan::fixture::{Fixture, condition, object};
use std::sync::Arc;

const NAME: &str = "culvert-relay-main";

fn with(relay: Value) -> Fixture {
    let mut fixture = Fixture::new();
    let mut relay = relay;
    relay["name"] = json!("main");
    fixture.mesh(json!({"clusterName": "berlin", "podCIDRs": ["10.1.0.0/16"], "relays": {"managed": [relay]}}));
    fixture.settle();
    fixture
}

fn deployment(fixture: &Fixture) -> Value {
    let found: &Deployment = find(&fixture.world.owned.deployments, NAME).expect("a Deployment");
    serde_json::to_value(found).expect("JSON")
}

fn service(fixture: &Fixture) -> Value {
    let found: &Service = find(&fixture.world.owned.services, NAME).expect("a Service");
    serde_json::to_value(found).expect("JSON")
}

fn url(fixture: &Fixture) -> Option<String> {
    fixture.mesh_status().relays[0].url.clone()
}

fn args(fixture: &Fixture) -> Vec<String> {
    object(deployment(fixture)["spec"]["template"]["spec"]["containers"][0]["args"].clone())
}

#[test]
fn a_relay_is_one_pod_that_may_do_nothing() {
    let fixture = with(
        json!({"exposure": {"type": "HostPort", "host": "203.0.113.1"}, "nodeSelector": {"a": "b"}}),
    );
    let deployment = deployment(&fixture);
    let (spec, pod) = (&deployment["spec"], &deployment["spec"]["template"]["spec"]);
    assert_eq!(spec["replicas"], 1);
    assert_eq!(spec["strategy"]["type"], "Recreate");
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(
        pod["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["nodeSelector"], json!({"a": "b"}));
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "registry"}]));
    let container = &pod["containers"][0];
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(
        container["securityContext"]["capabilities"]["drop"],
        json!(["ALL"])
    );
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/healthz");
    assert_eq!(container["readinessProbe"]["httpGet"]["scheme"], "HTTPS");
    assert_eq!(container["ports"][0]["hostPort"], 443);
    assert_eq!(container["ports"][1]["hostPort"], 3478);
    assert_eq!(
        args(&fixture),
        [
            "--listen=0.0.0.0:8443",
            "--admit=/etc/culvert/admit",
            "--tls-cert=/etc/culvert-tls/tls.crt",
            "--tls-key=/etc/culvert-tls/tls.key",
            "--stun=0.0.0.0:3478",
        ]
    );
    assert_eq!(service(&fixture)["spec"]["type"], "ClusterIP");
    assert_eq!(url(&fixture).as_deref(), Some("https://203.0.113.1"));
    assert_eq!(fixture.mesh_status().relays[0].stun_port, Some(3478));
    let budget = &fixture.world.owned.disruption_budgets[0];
    assert_eq!(budget.metadata.name.as_deref(), Some(NAME));
    let owner = &budget.metadata.owner_references.as_ref().expect("an owner")[0];
    assert_eq!(owner.kind, "Mesh");
}

#[test]
fn a_node_port_is_reached_where_a_person_says_or_where_it_is() {
    let given = with(
        json!({"exposure": {"type": "NodePort", "host": "203.0.113.1", "port": 8443, "nodePort": 30000}}),
    );
    assert_eq!(url(&given).as_deref(), Some("https://203.0.113.1:8443"));
    assert_eq!(service(&given)["spec"]["ports"][0]["nodePort"], 30000);
    assert_eq!(
        given.mesh_status().relays[0].stun_port,
        Some(0),
        "no STUN that way"
    );
    assert!(!args(&given).iter().any(|arg| arg.contains("stun")));
    let found = with(json!({"exposure": {"type": "NodePort", "host": "2001:db8::1"}}));
    assert_eq!(url(&found).as_deref(), Some("https://[2001:db8::1]:30443"));
    let stun = with(json!({"exposure": {"type": "NodePort", "host": "a.example"}, "stun": true}));
    assert_eq!(service(&stun)["spec"]["externalTrafficPolicy"], "Local");
    assert_eq!(stun.mesh_status().relays[0].stun_port, Some(30443));
}

#[test]
fn a_load_balancer_says_where_it_is() {
    let mut fixture =
        with(json!({"exposure": {"type": "LoadBalancer", "annotations": {"cloud": "x"}}}));
    assert_eq!(url(&fixture), None);
    let problem = fixture.mesh_status().relays[0].problem.clone();
    assert!(problem.expect("a problem").contains("load balancer"));
    assert_eq!(service(&fixture)["spec"]["externalTrafficPolicy"], "Local");
    assert_eq!(service(&fixture)["metadata"]["annotations"]["cloud"], "x");
    let before = certificate(&fixture);
    let status = json!({"loadBalancer": {"ingress": [{"hostname": "LB.example"}]}});
    let service = &mut fixture.world.owned.services[0];
    Arc::make_mut(service).status = Some(object(status));
    fixture.settle();
    assert_eq!(url(&fixture).as_deref(), Some("https://lb.example"));
    let after = certificate(&fixture);
    assert!(names(&after).contains("lb.example"));
    assert_eq!(
        text(&before, "ca.crt"),
        text(&after, "ca.crt"),
        "others pin it"
    );
    assert_ne!(text(&before, "tls.crt"), text(&after, "tls.crt"));
}

#[test]
fn an_ingress_ends_tls() {
    let fixture = with(json!({
        "exposure": {"type": "Ingress", "host": "relay.example", "className": "nginx"},
        "tls": {"type": "CertManager", "issuer": "letsencrypt", "secretName": "relay-cert"},
    }));
    let ingress: &Ingress = find(&fixture.world.owned.ingresses, NAME).expect("an Ingress");
    let ingress = serde_json::to_value(ingress).expect("JSON");
    assert_eq!(
        ingress["metadata"]["annotations"]["cert-manager.io/cluster-issuer"],
        "letsencrypt"
    );
    assert_eq!(ingress["spec"]["tls"][0]["secretName"], "relay-cert");
    assert_eq!(ingress["spec"]["ingressClassName"], "nginx");
    assert!(
        !args(&fixture)
            .iter()
            .any(|arg| arg.contains("tls") || arg.contains("stun"))
    );
    assert_eq!(service(&fixture)["spec"]["ports"][0]["port"], 80);
    assert_eq!(url(&fixture), None, "its certificate is not there yet");

    let plain = with(
        json!({"exposure": {"type": "Ingress", "host": "relay.example"}, "tls": {"type": "None"}}),
    );
    assert_eq!(url(&plain).as_deref(), Some("https://relay.example"));
    assert_eq!(
        plain.mesh_status().relays[0].dial.as_deref(),
        Some("http://10.96.0.7")
    );
    let port_80 = with(
        json!({"exposure": {"type": "Ingress", "host": "relay.example", "port": 80}, "tls": {"type": "None"}}),
    );
    assert_eq!(url(&port_80).as_deref(), Some("http://relay.example"));
}

#[test]
fn a_relay_waits_for_the_certificate_that_a_person_brings() {
    let mut fixture = with(json!({
        "exposure": {"type": "HostPort", "host": "relay.example", "port": 8443},
        "tls": {"type": "Secret", "secretName": "mine"},
    }));
    assert!(fixture.world.owned.deployments.is_empty());
    let problem = fixture.mesh_status().relays[0].problem.clone();
    assert!(problem.expect("a problem").contains("Secret mine"));
    let data =
        json!({"metadata": {"name": "mine"}, "data": {"tls.crt": "YQ==", "tls.key": "Yg=="}});
    fixture.world.owned.secrets.push(Arc::new(object(data)));
    fixture.settle();
    assert_eq!(url(&fixture).as_deref(), Some("https://relay.example:8443"));
    assert_eq!(fixture.mesh_status().relays[0].ca_bundle, None);
    let sum = |fixture: &Fixture| {
        deployment(fixture)["spec"]["template"]["metadata"]["annotations"].clone()
    };
    let before = sum(&fixture);
    let renewed =
        json!({"metadata": {"name": "mine"}, "data": {"tls.crt": "Yw==", "tls.key": "Yg=="}});
    fixture.world.owned.secrets.pop();
    fixture.world.owned.secrets.push(Arc::new(object(renewed)));
    fixture.settle();
    assert_ne!(sum(&fixture), before, "a new certificate means a new pod");
}

#[test]
fn a_certificate_is_made_anew_in_time() {
    let mut fixture = with(json!({"exposure": {"type": "HostPort", "host": "203.0.113.1"}}));
    let first = certificate(&fixture);
    let expected = [
        "10.96.0.7",
        "203.0.113.1",
        "culvert-relay-main",
        "culvert-relay-main.culvert",
        "culvert-relay-main.culvert.svc",
    ];
    assert_eq!(names(&first).into_iter().collect::<Vec<_>>(), expected);
    fixture.pass_seconds(200 * 86_400);
    fixture.settle();
    assert_eq!(
        text(&certificate(&fixture), "tls.crt"),
        text(&first, "tls.crt")
    );
    fixture.pass_seconds(60 * 86_400);
    fixture.settle();
    let second = certificate(&fixture);
    assert_ne!(text(&second, "tls.crt"), text(&first, "tls.crt"));
    assert_eq!(text(&second, "ca.crt"), text(&first, "ca.crt"));
}

/// Clients of the first certificate take the second one, too.
#[test]
fn certificates_are_taken_by_whoever_trusts_the_authority() {
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

    let mut fixture = with(json!({"exposure": {"type": "HostPort", "host": "203.0.113.1"}}));
    let pinned = text(&certificate(&fixture), "ca.crt").expect("a text");
    fixture.pass_seconds(300 * 86_400);
    fixture.settle();
    let leaf = text(&certificate(&fixture), "tls.crt").expect("a text");
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(pinned.as_bytes()).expect("PEM"))
        .expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .expect("a verifier");
    let leaf = CertificateDer::from_pem_slice(leaf.as_bytes()).expect("PEM");
    let now = u64::try_from(fixture.now().as_second()).expect("after 1970");
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
    for (name, good) in [
        ("203.0.113.1", true),
        ("10.96.0.7", true),
        ("203.0.113.2", false),
    ] {
        let name = ServerName::try_from(name).expect("a name");
        let verified = verifier.verify_server_cert(&leaf, &[], &name, &[], now);
        assert_eq!(verified.is_ok(), good, "{name:?}: {verified:?}");
    }
}

#[test]
fn what_a_relay_leaves_behind_is_deleted() {
    let mut fixture = with(json!({"exposure": {"type": "Ingress", "host": "relay.example"}}));
    assert_eq!(fixture.world.owned.ingresses.len(), 1);
    fixture.mesh(json!({
        "clusterName": "berlin", "podCIDRs": ["10.1.0.0/16"],
        "relays": {"managed": [{"name": "main", "exposure": {"type": "HostPort", "host": "h"}, "tls": {"type": "None"}}]},
    }));
    fixture.settle();
    let owned = &fixture.world.owned;
    assert!(owned.ingresses.is_empty());
    assert!(find::<Secret>(&owned.secrets, "culvert-relay-main-tls").is_none());
    assert_eq!(owned.deployments.len(), 1);
    fixture.mesh(json!({"clusterName": "berlin", "podCIDRs": ["10.1.0.0/16"]}));
    fixture.settle();
    let owned = &fixture.world.owned;
    assert!(owned.deployments.is_empty() && owned.services.is_empty());
    assert!(owned.disruption_budgets.is_empty());
    let mesh = fixture.mesh_status();
    assert_eq!(
        condition(&mesh.conditions, "RelaysReady"),
        ("False", "NoRelay")
    );
}

#[test]
fn pods_with_ipv6_only_listen_there() {
    let mut fixture = Fixture::new();
    fixture.mesh(json!({
        "clusterName": "berlin", "podCIDRs": ["fd01::/48"],
        "relays": {"managed": [{"name": "main", "exposure": {"type": "HostPort", "host": "h"}}]},
    }));
    fixture.settle();
    assert_eq!(args(&fixture)[0], "--listen=[::]:8443");
}

#[test]
fn relays_of_others_are_known_by_index() {
    let mut fixture = Fixture::new();
    fixture.mesh(json!({
        "clusterName": "berlin", "podCIDRs": ["10.1.0.0/16"],
        "relays": {"external": [{"url": "http://203.0.113.20:8080"}, {"url": "https://r.example", "stunPort": 0}]},
    }));
    fixture.settle();
    let relays = fixture.mesh_status().relays;
    assert_eq!(relays[0].name, "external-0");
    assert_eq!(relays[0].stun_port, Some(3478));
    assert_eq!(relays[1].stun_port, Some(0));
    let mesh = fixture.mesh_status();
    assert_eq!(
        condition(&mesh.conditions, "RelaysReady"),
        ("False", "RelayDown")
    );
    fixture.connect();
    fixture.settle();
    let mesh = fixture.mesh_status();
    assert_eq!(
        condition(&mesh.conditions, "RelaysReady"),
        ("True", "Connected")
    );
    assert_eq!(mesh.relay_summary.as_deref(), Some("2/2"));
}

/// `berlin`, with a Peer that has relays.
fn with_peer_relays(external: &[&str], urls: &[String]) -> Fixture {
    let mut fixture = Fixture::new();
    let external: Vec<_> = external.iter().map(|url| json!({"url": url})).collect();
    fixture.mesh(json!({
        "clusterName": "berlin", "podCIDRs": ["10.1.0.0/16"], "relays": {"external": external},
    }));
    for (number, urls) in urls.chunks(8).enumerate() {
        let relays: Vec<_> = urls.iter().map(|url| json!({"url": url})).collect();
        let range = format!("10.{}.0.0/16", number + 2);
        fixture.peer(
            &format!("p{number}"),
            json!({"allowedCIDRs": [range], "relays": relays}),
        );
    }
    fixture.settle();
    fixture
}

/// Status, reason and message of `RelaysReady`.
fn relays_ready(fixture: &mut Fixture) -> (String, String, String) {
    fixture.settle();
    let conditions = fixture.mesh_status().conditions;
    let found = api::find_condition(&conditions, "RelaysReady").expect("there");
    (
        found.status.clone(),
        found.reason.clone(),
        found.message.clone(),
    )
}

fn connect_only(fixture: &mut Fixture, part: &str) {
    fixture.connect();
    for (url, state) in &mut fixture.world.sync.relays {
        state.connected = url.to_string().contains(part);
    }
}

#[test]
fn relays_of_peers_count_only_where_there_is_no_own() {
    let peers = [
        "https://p.example".to_owned(),
        "https://q.example".to_owned(),
    ];
    let mut fixture = with_peer_relays(&["https://own.example"], &peers);
    connect_only(&mut fixture, "own");
    assert_eq!(relays_ready(&mut fixture).1, "Connected");
    connect_only(&mut fixture, "p.example");
    let (status, reason, message) = relays_ready(&mut fixture);
    assert_eq!((status.as_str(), reason.as_str()), ("False", "RelayDown"));
    assert!(
        message.starts_with("external-0") && !message.contains("peer"),
        "{message}"
    );

    let mut fixture = with_peer_relays(&[], &peers);
    connect_only(&mut fixture, "p.example");
    let (status, reason, message) = relays_ready(&mut fixture);
    assert_eq!((status.as_str(), reason.as_str()), ("True", "OfPeers"));
    assert!(
        message.ends_with("peers' 2 it is connected to 1"),
        "{message}"
    );
    connect_only(&mut fixture, "nobody");
    assert_eq!(relays_ready(&mut fixture).1, "RelayDown");
}

#[test]
fn relays_for_which_there_is_no_room_are_told() {
    let urls: Vec<String> = (0..17)
        .map(|number| format!("https://r{number}.example"))
        .collect();
    let mut fixture = with_peer_relays(&["https://own.example"], &urls);
    connect_only(&mut fixture, "");
    let (status, _, message) = relays_ready(&mut fixture);
    assert_eq!(status, "True");
    assert!(
        message.contains("16 relays are used, and 2 more"),
        "{message}"
    );
    assert_eq!(fixture.mesh_status().relays.len(), 16);
}

fn certificate(fixture: &Fixture) -> Secret {
    let secrets = &fixture.world.owned.secrets;
    find::<Secret>(secrets, "culvert-relay-main-tls")
        .expect("a Secret")
        .clone()
}
