//! Relays behind ingress controllers, for which nginx and haproxy stand in.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use e2e::process::{ProxyProgram, ReverseProxy, ReverseProxySpec};
use e2e::product::{self, NAMESPACE};
use e2e::{Capture, Cluster, ClusterSpec, Profile, figure, wait_for};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};

use crate::scene::{A, B, Scene, TEST, as_strs, pod_on, pods_see_each_other, seconds};
use crate::turn;

const PATIENCE: Duration = Duration::from_secs(90);
/// How long no pod says anything: both proxies give up silent connections well before.
const IDLE: Duration = Duration::from_secs(120);

/// A relay of A, and what stands before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    program: ProxyProgram,
    host: &'static str,
    /// Of the router, and of the node to which it forwards.
    port: u16,
}

const PLACES: [Place; 2] = [
    Place {
        program: ProxyProgram::Nginx,
        host: "one.relays.example",
        port: 443,
    },
    Place {
        program: ProxyProgram::Haproxy,
        host: "two.relays.example",
        port: 8443,
    },
];

/// The Secret with the certificate of the first relay, made by a person. The second has the operator's.
const SECRET: &str = "relay-certificate";

/// What makes a node of B one that has an agent.
const LINKED: &str = "test.example/linked";

impl Place {
    fn url(&self) -> String {
        match self.port {
            443 => format!("https://{}", self.host),
            port => format!("https://{}:{port}", self.host),
        }
    }

    fn address(&self, scene: &Scene) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(scene.a().wan()), self.port)
    }
}

/// Two relays, each behind a proxy that ends TLS: nginx and haproxy with the time-outs that they have by themselves. A node of
/// B whose pods never say anything has nothing but its connections to both relays. Two minutes later each of these is the one
/// that it was, and carries the first packet at once.
#[test]
fn relays_behind_nginx_and_haproxy_outlast_two_idle_minutes() -> Result<()> {
    let _turn = turn();
    let specs = [
        ClusterSpec::new("a", Profile::PortRestricted),
        ClusterSpec::new("b", Profile::PortRestricted).nodes(2),
    ];
    let scene = Scene::new("ingress", &specs)?;
    name_relays(&scene)?;
    let mut proxies = expose(&scene)?;
    join(&scene)?;
    let ((pod, own), (_, target)) = (pod_on(scene.a(), 1)?, pod_on(scene.b(), 1)?);
    product::first_ping(scene.a(), (TEST, &pod), target, PATIENCE)?;
    pods_see_each_other(&scene)?;
    add_quiet_node(&scene)?;
    let used = relay_in_use(&scene)?;
    figure("pods' packets go through", used.program.name());
    idle(&scene)?;
    let (quiet, _) = pod_on(scene.b(), 2)?;
    answers_at_once(scene.b(), &quiet, own)?;
    answers_at_once(scene.a(), &pod, target)?;
    await_connected(&scene, &PLACES)?;
    ensure!(relay_in_use(&scene)? == used, "the pair has moved");
    lose_one(&scene, used, &mut proxies)?;
    drop(proxies);
    scene.finish()
}

/// A's relays have names in B's DNS, as they would have in everybody's.
fn name_relays(scene: &Scene) -> Result<()> {
    let config = ["configmap", "coredns", "-n", "kube-system"];
    let map = scene.b().get(&config)?;
    let corefile = product::text(&map, "/data/Corefile").context("no Corefile")?;
    let (wan, names) = (scene.a().wan(), PLACES.map(|place| place.host).join(" "));
    let hosts = format!("hosts {{\n {wan} {names}\n fallthrough\n }}\n kubernetes ");
    let patch = json!({"data": {"Corefile": corefile.replacen("kubernetes ", &hosts, 1)}});
    let patch = patch.to_string();
    let words = [&["patch"], &config[..], &["--type=merge", "-p", &patch]].concat();
    scene.b().kubectl(&words).map(drop)
}

/// Installs A, puts a proxy before each of its relays, and forwards a port to each.
fn expose(scene: &Scene) -> Result<Vec<ReverseProxy>> {
    let a = scene.a();
    a.namespace(NAMESPACE)?;
    a.apply(&certificate(PLACES[0].host)?.to_string())?;
    let mut values = vec![
        format!("mesh.clusterName={A}"),
        "relays[0].tls.type=Secret".to_owned(),
        format!("relays[0].tls.secretName={SECRET}"),
    ];
    for (index, place) in PLACES.iter().enumerate() {
        let relay = format!("relays[{index}]");
        values.extend([
            format!("{relay}.name={}", place.program.name()),
            format!("{relay}.exposure.type=Ingress"),
            format!("{relay}.exposure.host={}", place.host),
            format!("{relay}.exposure.port={}", place.port),
        ]);
    }
    product::install(a, &as_strs(&values), None)?;
    let mut proxies = Vec::new();
    for place in &PLACES {
        let spec = wait_for(PATIENCE, "an Ingress and what it names", || {
            obey(scene, place)
        })?;
        proxies.push(ReverseProxy::start(&scene.lab, &spec)?);
        a.forward_tcp(place.port, 1, place.port)?;
    }
    product::await_ready(a, &["mesh", "default"], PATIENCE)?;
    let mesh = a.get(&["mesh", "default"])?;
    let urls = mesh.pointer("/status/relays").and_then(Value::as_array);
    let urls = urls.into_iter().flatten();
    let urls: Vec<_> = urls
        .filter_map(|relay| product::text(relay, "/url"))
        .collect();
    ensure!(urls == PLACES.map(|place| place.url()), "{urls:?}");
    Ok(proxies)
}

/// A Secret as a person makes one: a certificate, its key, and the private authority that has signed it.
fn certificate(host: &str) -> Result<Value> {
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let signed = CertificateParams::new([host.to_owned()])?.signed_by(&key, &authority)?;
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": SECRET, "namespace": NAMESPACE},
        "stringData": {
            "ca.crt": authority.pem(),
            "tls.crt": signed.pem(),
            "tls.key": key.serialize_pem(),
        },
    }))
}

/// What an ingress controller on the node's network makes of a relay's Ingress.
fn obey(scene: &Scene, place: &Place) -> Result<ReverseProxySpec> {
    let (a, name) = (scene.a(), format!("culvert-relay-{}", place.program.name()));
    let get = |kind, name: &str| a.get(&[kind, name, "-n", NAMESPACE]);
    let text = |object: &Value, pointer: &str| {
        product::text(object, pointer).with_context(|| format!("no {pointer}: {object}"))
    };
    let ingress = get("ingress", &name)?;
    let path = "/spec/rules/0/http/paths/0/backend/service";
    let service = get("service", &text(&ingress, &format!("{path}/name"))?)?;
    let port = text(&ingress, &format!("{path}/port/name"))?;
    let ports = service.pointer("/spec/ports").and_then(Value::as_array);
    let mut ports = ports.into_iter().flatten();
    let port = ports
        .find(|one| one["name"] == port)
        .and_then(|one| one["port"].as_u64())
        .with_context(|| format!("no port {port}"))?;
    let backend: IpAddr = text(&service, "/spec/clusterIP")?.parse()?;
    let secret = get("secret", &text(&ingress, "/spec/tls/0/secretName")?)?;
    let pem = |key| -> Result<String> {
        let data = STANDARD.decode(text(&secret, key)?)?;
        Ok(String::from_utf8(data)?)
    };
    let node = a.node(1)?;
    Ok(ReverseProxySpec {
        program: place.program,
        ns: node.netns().clone(),
        listen: SocketAddr::new(IpAddr::V4(node.address()), place.port),
        host: text(&ingress, "/spec/rules/0/host")?,
        backend: SocketAddr::new(backend, u16::try_from(port)?),
        certificate: pem("/data/tls.crt")?,
        key: pem("/data/tls.key")?,
    })
}

/// Installs B, for the time being with an agent on its first node only.
fn join(scene: &Scene) -> Result<()> {
    let (a, b) = (scene.a(), scene.b());
    let token = product::plugin(a, &["invite"])?;
    let (pod, _) = pod_on(b, 1)?;
    for place in &PLACES {
        wait_for(PATIENCE, "the relay has a name in B", || {
            let found = b.exec(TEST, &pod, &["/podtool", "resolve", place.host])?;
            ensure!(found.trim() == a.wan().to_string(), "{found}");
            Ok(())
        })?;
    }
    link_node(b, 1)?;
    let values = [
        format!("mesh.clusterName={B}"),
        format!("agent.nodeSelector.{}=agent", LINKED.replace('.', "\\.")),
    ];
    product::install(b, &as_strs(&values), Some(&token))?;
    b.await_rollout(NAMESPACE, product::AGENTS)
}

fn link_node(cluster: &Cluster, node: u8) -> Result<()> {
    let name = cluster.node(node)?.name();
    let label = format!("{LINKED}=agent");
    cluster.kubectl(&["label", "node", name, &label]).map(drop)
}

/// B's second node comes when the first has been chosen to probe A and to be probed, so nothing is asked of this one.
fn add_quiet_node(scene: &Scene) -> Result<()> {
    for (cluster, peer) in [(scene.a(), B), (scene.b(), A)] {
        product::await_peer(cluster, peer, PATIENCE, |row| row.ready == "True")?;
    }
    link_node(scene.b(), 2)?;
    await_connected(scene, &PLACES)?;
    product::await_peer(scene.a(), B, PATIENCE, |row| row.nodes.ends_with("/2"))?;
    Ok(())
}

/// Both nodes of B say that they are connected to these relays, and to no other.
fn await_connected(scene: &Scene, places: &[Place]) -> Result<()> {
    let urls: Vec<_> = places.iter().map(Place::url).collect();
    for node in scene.b().nodes() {
        wait_for(PATIENCE, "a node is connected to its relays", || {
            let object = scene.b().get(&["meshnode", node.name()])?;
            let connected = &object["status"]["connectedRelays"];
            ensure!(*connected == json!(urls), "{}: {connected}", node.name());
            Ok(())
        })?;
    }
    Ok(())
}

/// The relay over which the first nodes say that their data goes, as there is no other way; at both ends the same one.
fn relay_in_use(scene: &Scene) -> Result<Place> {
    wait_for(PATIENCE, "both ends tell the same relay", || {
        let (there, back) = (endpoint(scene.a(), B)?, endpoint(scene.b(), A)?);
        ensure!(there == back, "{there} there, {back} back");
        let place = PLACES.into_iter().find(|place| place.url() == there);
        place.with_context(|| format!("no relay of ours: {there}"))
    })
}

/// The relay that a cluster's first node uses towards a peer without another way.
fn endpoint(cluster: &Cluster, peer: &str) -> Result<String> {
    let object = cluster.get(&["meshnode", cluster.node(1)?.name()])?;
    let peers = object.pointer("/status/peers").and_then(Value::as_array);
    let mut peers = peers.into_iter().flatten();
    let found = peers.find(|one| one["name"] == peer);
    let paths = found.and_then(|peer| peer["nodes"].as_array());
    let mut paths = paths.into_iter().flatten();
    let relayed =
        paths.find(|path| path["path"] == "relay" && path["reason"] == "NoReflexiveAddress");
    let endpoint = relayed.and_then(|path| product::text(path, "/endpoint"));
    endpoint.with_context(|| format!("no relayed path: {}", object["status"]))
}

/// Two minutes in which no connection to a relay begins or ends on B's wide area.
fn idle(scene: &Scene) -> Result<()> {
    let addresses = PLACES.map(|place| place.address(scene));
    let capture = Capture::start(scene.b().router(), "wan", &addresses)?;
    // That nothing happens for so long is what is to be shown: there is no condition to wait for.
    thread::sleep(IDLE);
    let seen = capture.stop();
    seen.assert_sealed()?;
    for (place, address) in PLACES.iter().zip(addresses) {
        let flows: Vec<_> = seen.flows.with(address).collect();
        let name = place.program.name();
        for flow in &flows {
            figure(
                &format!("idle connection through {name}"),
                format!(
                    "{} packets, longest silence {:.1} s",
                    flow.packets,
                    flow.silence.as_secs_f32()
                ),
            );
        }
        let torn = flows.iter().filter(|flow| flow.opened + flow.ended > 0);
        ensure!(torn.count() == 0, "{name}: {flows:?}");
        ensure!(
            flows.len() == 3,
            "two agents and an operator through {name}: {flows:?}"
        );
        let silence = flows.iter().map(|flow| flow.silence).max();
        ensure!(
            silence >= Some(Duration::from_secs(15)),
            "no connection through {name} was idle: {flows:?}"
        );
    }
    Ok(())
}

/// One datagram, once: it is answered.
fn answers_at_once(cluster: &Cluster, pod: &str, target: IpAddr) -> Result<()> {
    let start = Instant::now();
    let target = format!("{target}:8080");
    cluster.exec(TEST, pod, &["/podtool", "udp", "-t", "2", &target])?;
    seconds(
        &format!("{pod}: first ping after two minutes, with kubectl"),
        start,
    );
    Ok(())
}

/// Without the relay that pods' packets went over they go over the other, and when it is back all are connected to both.
fn lose_one(scene: &Scene, used: Place, proxies: &mut [ReverseProxy]) -> Result<()> {
    let mut both = PLACES.iter().zip(proxies);
    let (_, proxy) = both
        .find(|(place, _)| **place == used)
        .context("no proxy")?;
    let other = PLACES.into_iter().find(|place| *place != used);
    let other = other.context("no other relay")?;
    let ((pod, _), (_, target)) = (pod_on(scene.a(), 1)?, pod_on(scene.b(), 1)?);
    let start = Instant::now();
    proxy.stop()?;
    product::first_ping(scene.a(), (TEST, &pod), target, Duration::from_secs(15))?;
    seconds(
        &format!("first ping without {}", used.program.name()),
        start,
    );
    pods_see_each_other(scene)?;
    await_connected(scene, &[other])?;
    ensure!(relay_in_use(scene)? == other, "not over the other");
    for (cluster, peer) in [(scene.a(), B), (scene.b(), A)] {
        product::await_peer(cluster, peer, PATIENCE, |row| {
            row.ready == "True" && row.path == "relay"
        })?;
    }
    wait_for(PATIENCE, "A knows that it works from outside", || {
        let mesh = scene.a().get(&["mesh", "default"])?;
        let relays = mesh.pointer("/status/relays").and_then(Value::as_array);
        let mut relays = relays.context("no relays")?.iter();
        let works = |relay: &Value| {
            relay["url"] == other.url() && relay["inside"] == true && relay["outside"] == true
        };
        ensure!(relays.any(works), "{}", mesh["status"]["relays"]);
        Ok(())
    })?;
    let start = Instant::now();
    proxy.resume()?;
    await_connected(scene, &PLACES)?;
    seconds(&format!("{} back in use", used.program.name()), start);
    pods_see_each_other(scene)
}
