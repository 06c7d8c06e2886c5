//! Rules of a Mesh.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use derp::{ClusterIdentity, RelayUrl};
use ipnet::IpNet;

use super::prefix::{self, Listed};
use super::{Findings, check_label, quote};
use crate::reader::Form;
use crate::{Code, ExternalRelay, MeshConfig, MeshSpec, Problem, RelayConfig};

/// STUN's own port (RFC 8489, section 14).
const DEFAULT_STUN_PORT: u16 = 3478;
/// What IPv6 asks of every link (RFC 8200, section 5).
const MIN_V6_MTU: u16 = 1280;

/// Checks a Mesh by itself. On Kubernetes a node may serve nothing: a gateway does it.
pub(crate) fn check_mesh(
    name: &str,
    spec: &MeshSpec,
    form: Form,
) -> Result<MeshConfig, Vec<Problem>> {
    let mut found = Findings::default();
    found.take(check_label("spec.clusterName", &spec.cluster_name));
    let pod_cidrs = prefix::check_list(&mut found, "spec.podCIDRs", &spec.pod_cidrs);
    let pod_cidrs = prefix::without_places(&pod_cidrs);
    let addresses = check_addresses(&mut found, &spec.addresses);
    let serves_nothing = spec.pod_cidrs.is_empty() && spec.addresses.is_empty();
    if serves_nothing && form == Form::Manifest {
        let message = "this site serves nothing; list its pod prefixes in podCIDRs, or give a host an address in addresses";
        found.add("spec.podCIDRs", Code::NothingServed, message);
    }
    let listen_port = spec
        .listen_port
        .and_then(|port| found.take(check_port("spec.listenPort", port, 1)));
    let mtu = spec.mtu.and_then(|mtu| found.take(check_mtu(mtu)));
    check_v6_mtu(&mut found, mtu, pod_cidrs.iter().chain(&addresses));
    let given = spec.relays.clone().unwrap_or_default();
    if !given.managed.is_empty() {
        let message = "only the operator, in a cluster, runs relays; run culvert-relay yourself and list it under relays.external";
        found.add("spec.relays.managed", Code::NeedsKubernetes, message);
    }
    let relays = check_relays(&mut found, "spec.relays.external", &given.external);
    let traversal = spec.traversal.clone().unwrap_or_default();
    found.finish(MeshConfig {
        name: name.to_owned(),
        cluster_name: spec.cluster_name.clone(),
        pod_cidrs,
        addresses,
        listen_port,
        mtu,
        relays,
        port_mapping: traversal.port_mapping,
        port_guessing: traversal.port_guessing,
    })
}

/// Whether the MTU is one that IPv6 cannot use.
pub(crate) fn too_small_for_v6(mtu: Option<u16>) -> bool {
    mtu.is_some_and(|mtu| mtu < MIN_V6_MTU)
}

fn check_addresses(found: &mut Findings, texts: &[String]) -> Vec<IpNet> {
    let addresses = prefix::check_list(found, "spec.addresses", texts);
    let wide = addresses
        .iter()
        .filter(|listed| listed.prefix.prefix_len() != listed.prefix.max_prefix_len());
    for Listed { index, prefix } in wide {
        found.add(
            format!("spec.addresses[{index}]"),
            Code::NotOneAddress,
            format!(
                "{prefix} is a network; give one address with its full length, such as 10.99.0.1/32 or fd00:99::1/128"
            ),
        );
    }
    prefix::without_places(&addresses)
}

fn check_port(field: &str, port: i64, least: u16) -> Result<u16, Problem> {
    let fits = u16::try_from(port).ok().filter(|port| *port >= least);
    fits.ok_or_else(|| {
        Problem::new(
            field,
            Code::BadPort,
            format!("{port} is not a port; use {least} to 65535"),
        )
    })
}

fn check_mtu(mtu: i64) -> Result<u16, Problem> {
    let fits = u16::try_from(mtu)
        .ok()
        .filter(|mtu| (576..=9000).contains(mtu));
    let message = || format!("{mtu} is out of range; use 576 to 9000, or leave mtu out");
    fits.ok_or_else(|| Problem::new("spec.mtu", Code::BadMtu, message()))
}

fn check_v6_mtu<'a>(
    found: &mut Findings,
    mtu: Option<u16>,
    mut own: impl Iterator<Item = &'a IpNet>,
) {
    if too_small_for_v6(mtu) && own.any(|prefix| matches!(prefix, IpNet::V6(_))) {
        let message =
            "IPv6 needs at least 1280; raise mtu, leave it out, or remove the IPv6 prefixes";
        found.add("spec.mtu", Code::BadMtu, message);
    }
}

/// Checks a list of relays, each URL occurring once.
pub(super) fn check_relays(
    found: &mut Findings,
    list: &str,
    external: &[ExternalRelay],
) -> Vec<RelayConfig> {
    let mut relays: Vec<RelayConfig> = Vec::new();
    for (index, relay) in external.iter().enumerate() {
        let field = format!("{list}[{index}]");
        let Some(checked) = check_relay(found, &field, relay) else {
            continue;
        };
        if relays.iter().any(|other| other.url == checked.url) {
            let message = format!("{} occurs twice; remove one", checked.url);
            found.add(format!("{field}.url"), Code::DuplicateRelay, message);
        } else {
            relays.push(checked);
        }
    }
    relays
}

fn check_relay(found: &mut Findings, field: &str, relay: &ExternalRelay) -> Option<RelayConfig> {
    let url = found.take(check_url(&format!("{field}.url"), &relay.url));
    let stun_port = match relay.stun_port {
        None => Some(DEFAULT_STUN_PORT),
        Some(port) => found.take(check_port(&format!("{field}.stunPort"), port, 0)),
    };
    let ca_bundle = relay.ca_bundle.clone().filter(|pem| !pem.trim().is_empty());
    if let Some(problem) = ca_bundle.as_deref().and_then(wrong_with_pem) {
        let message = format!(
            "{problem}; paste the certificates themselves, each from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----"
        );
        found.add(format!("{field}.caBundle"), Code::BadCaBundle, message);
    }
    let dial = relay.dial.as_deref();
    let dial = dial.and_then(|dial| found.take(check_url(&format!("{field}.dial"), dial)));
    let owner = relay.owner.as_deref();
    let owner =
        owner.and_then(|owner| found.take(check_identity(&format!("{field}.owner"), owner)));
    Some(RelayConfig {
        url: url?,
        stun_port: stun_port.filter(|port| *port != 0),
        ca_bundle,
        dial,
        owner,
        pass: relay.pass.clone(),
    })
}

/// Parses a cluster's identity.
pub(super) fn check_identity(field: &str, text: &str) -> Result<ClusterIdentity, Problem> {
    text.parse().map_err(|error| {
        let message = format!(
            "{} is no identity: {error}; paste the one that the other cluster's Mesh shows in its status",
            quote(text)
        );
        Problem::new(field, Code::BadIdentity, message)
    })
}

/// Parses a relay's URL.
pub(super) fn check_url(field: &str, text: &str) -> Result<RelayUrl, Problem> {
    text.parse().map_err(|error| {
        let message = format!(
            "{} is not a relay's URL: {error}; write https://host[:port] or http://host[:port] and nothing more",
            quote(text)
        );
        Problem::new(field, Code::BadUrl, message)
    })
}

/// What is wrong with a PEM bundle (RFC 7468): it must hold certificates, and nothing else that is secret or unread.
fn wrong_with_pem(pem: &str) -> Option<&'static str> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let mut lines = pem.lines().map(str::trim);
    let mut seen = false;
    while let Some(line) = lines.next() {
        if line != BEGIN {
            if line.starts_with("-----") {
                return Some("it holds something that is not a certificate");
            }
            continue;
        }
        seen = true;
        let mut body = String::new();
        loop {
            match lines.next() {
                None => return Some("a certificate has no end"),
                Some(END) => break,
                Some(part) => body.push_str(part),
            }
        }
        if !is_der_sequence(&body) {
            return Some("a certificate is damaged");
        }
    }
    (!seen).then_some("it holds no certificate")
}

/// Whether base64 text holds one DER SEQUENCE and nothing behind it.
fn is_der_sequence(body: &str) -> bool {
    let Ok(der) = STANDARD.decode(body) else {
        return false;
    };
    let Some((0x30, rest)) = der.split_first().map(|(tag, rest)| (*tag, rest)) else {
        return false;
    };
    let Some((first, rest)) = rest.split_first() else {
        return false;
    };
    if *first < 0x80 {
        return usize::from(*first) == rest.len();
    }
    let Some((length, content)) = rest.split_at_checked(usize::from(first & 0x7f)) else {
        return false;
    };
    let known = length.len() <= 3;
    known
        && length
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte))
            == content.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem(der: &[u8]) -> String {
        format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            STANDARD.encode(der)
        )
    }

    #[test]
    fn bundles() {
        let one = pem(&[0x30, 0x03, 2, 1, 5]);
        let mut long = vec![0x30, 0x82, 0x01, 0x00];
        long.extend([7; 256]);
        assert_eq!(wrong_with_pem(&one), None);
        assert_eq!(
            wrong_with_pem(&format!("# ours\n{one}{}", pem(&long))),
            None
        );
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let cut = one.split_at(40).0;
        for bad in [
            "hello",
            key,
            cut,
            &pem(&[0x31, 0]),
            &pem(&[0x30, 9]),
            &pem(&[0x30]),
            &pem(&[0x30, 0x84]),
        ] {
            assert!(wrong_with_pem(bad).is_some(), "{bad}");
        }
    }
}
