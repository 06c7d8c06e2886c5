//! Where a relay's certificate comes from, and when it has to be made anew.

use std::collections::BTreeSet;

use api::{ExposureKind, ManagedRelay, TlsKind};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;

use super::{Managed, address, certificate};
use crate::action::{Action, Authority, CertificateOrder};
use crate::plan::draft::Draft;

/// Part of a certificate's life, in days, that must be left.
const DAYS_LEFT: i64 = 120;

/// Whether the operator makes the certificate.
pub(super) fn is_self_signed(relay: &ManagedRelay) -> bool {
    kind(relay) == TlsKind::SelfSigned
}

/// Whether the relay has no certificate at all.
pub(super) fn is_none(relay: &ManagedRelay) -> bool {
    kind(relay) == TlsKind::None
}

/// Whether the relay itself ends TLS.
pub(super) fn is_in_pod(relay: &ManagedRelay) -> bool {
    relay.exposure.kind != ExposureKind::Ingress && !is_none(relay)
}

/// Secret with the certificate, whoever makes it.
pub(super) fn secret_name(relay: &Managed<'_>) -> Option<String> {
    let given = relay.relay.tls.as_ref();
    let given = given.and_then(|tls| tls.secret_name.clone());
    match kind(relay.relay) {
        TlsKind::None => None,
        TlsKind::SelfSigned => Some(own_secret_name(relay)),
        TlsKind::Secret | TlsKind::CertManager => {
            Some(given.unwrap_or_else(|| own_secret_name(relay)))
        }
    }
}

/// Secret with the certificate that the operator makes.
pub(super) fn own_secret_name(relay: &Managed<'_>) -> String {
    format!("{}-tls", relay.name())
}

/// Issuer for cert-manager to ask.
pub(super) fn issuer(relay: &ManagedRelay) -> Option<&str> {
    let tls = relay
        .tls
        .as_ref()
        .filter(|tls| tls.kind == TlsKind::CertManager)?;
    tls.issuer.as_deref()
}

/// The certificate and the authority for clients to trust, both PEM, if the Secret has them.
pub(super) fn certificate<'a>(relay: &Managed<'a>) -> Option<&'a Secret> {
    let secret = relay.secret(&secret_name(relay)?)?;
    let complete = ["tls.crt", "tls.key"]
        .iter()
        .all(|key| certificate::text(secret, key).is_some());
    complete.then_some(secret)
}

/// Authority for clients to trust instead of the public ones.
pub(super) fn ca_bundle(relay: &Managed<'_>) -> Option<String> {
    let ca = certificate::text(certificate(relay)?, "ca.crt")?;
    (!ca.trim().is_empty()).then_some(ca)
}

/// Makes the certificate, if there is none, it is for other names, or its end is near.
pub(super) fn renew(relay: &Managed<'_>, draft: &mut Draft) {
    let names = names(relay);
    let found = relay.secret(&own_secret_name(relay));
    let is_good = |secret: &Secret| is_good(secret, &names, draft.now());
    if names.is_empty() || found.is_some_and(is_good) {
        return;
    }
    draft.push(Action::Certify(CertificateOrder {
        metadata: Box::new(relay.metadata(own_secret_name(relay))),
        names,
        authority: found.and_then(authority),
    }));
}

fn is_good(secret: &Secret, names: &BTreeSet<String>, now: Timestamp) -> bool {
    let days_left = certificate::not_after(secret)
        .map(|end| end.duration_since(now).as_hours() / 24)
        .unwrap_or_default();
    certificate::names(secret) == *names && days_left >= DAYS_LEFT
}

/// Everything that the relay is called: nothing while its Service has no address yet.
fn names(relay: &Managed<'_>) -> BTreeSet<String> {
    let Some(service) = relay.service() else {
        return BTreeSet::new();
    };
    let addresses = address::cluster_ips(service);
    if addresses.is_empty() {
        return BTreeSet::new();
    }
    let (name, namespace) = (relay.name(), &relay.ground.world.release.namespace);
    let public = address::public_host(relay.relay, Some(service));
    let public = public.map(|host| host.trim_matches(['[', ']']).to_ascii_lowercase());
    let inside = [
        format!("{name}.{namespace}"),
        format!("{name}.{namespace}.svc"),
        name,
    ];
    addresses.into_iter().chain(inside).chain(public).collect()
}

fn authority(secret: &Secret) -> Option<Authority> {
    Some(Authority {
        certificate: certificate::text(secret, "ca.crt")?,
        key: certificate::text(secret, certificate::CA_KEY)?,
    })
}

fn kind(relay: &ManagedRelay) -> TlsKind {
    relay
        .tls
        .as_ref()
        .map_or(TlsKind::SelfSigned, |tls| tls.kind)
}
