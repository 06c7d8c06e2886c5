//! Certificates that the operator makes for relays: an authority per relay, which others pin, and a leaf.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use thiserror::Error;

use crate::action::{Authority, CertificateOrder};
use crate::plan::draft::later;

/// Key of the authority's key in a Secret. Relays do not see it.
pub(super) const CA_KEY: &str = "ca.key";
/// Annotation: the names in the certificate.
const NAMES: &str = "culvert.dev/names";
/// Annotation: when the certificate ends.
const NOT_AFTER: &str = "culvert.dev/not-after";
/// How long a leaf is good.
const LEAF_DAYS: i64 = 365;
/// Clocks may be wrong by a day.
const DAY: i64 = 86_400;
/// Longest common name (RFC 5280 appendix A.1).
const MAX_COMMON_NAME: usize = 64;

/// A certificate could not be made.
#[derive(Debug, Error)]
#[error("no certificate could be made: {0}")]
pub struct CertificateError(#[from] rcgen::Error);

/// Makes the certificate that was ordered, as a Secret of type kubernetes.io/tls, to be applied as a whole. Takes keys from
/// the system's randomness.
///
/// # Errors
/// When a name is none, or the system gives no randomness.
pub fn issue_certificate(
    order: &CertificateOrder,
    now: Timestamp,
) -> Result<Secret, CertificateError> {
    let title = order.metadata.name.clone().unwrap_or_default();
    let authority = match &order.authority {
        Some(authority) => authority.clone(),
        None => make_authority(&title)?,
    };
    let issuer = Issuer::new(
        authority_params(&title)?,
        KeyPair::from_pem(&authority.key)?,
    );
    let not_after = later(now, LEAF_DAYS * DAY);
    let key = KeyPair::generate()?;
    let leaf = leaf_params(order, &title, now, not_after)?.signed_by(&key, &issuer)?;
    let mut metadata = (*order.metadata).clone();
    metadata.annotations.get_or_insert_default().extend([
        (NAMES.to_owned(), joined(&order.names)),
        (NOT_AFTER.to_owned(), not_after.to_string()),
    ]);
    let data = [
        ("tls.crt", leaf.pem()),
        ("tls.key", key.serialize_pem()),
        ("ca.crt", authority.certificate),
        (CA_KEY, authority.key),
    ];
    Ok(Secret {
        metadata,
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data.map(|(key, text)| (key.to_owned(), bytes(text))).into()),
        ..Secret::default()
    })
}

/// The names of a certificate that the operator made.
pub(super) fn names(secret: &Secret) -> BTreeSet<String> {
    let names = annotation(secret, NAMES).map(|names| names.split(' ').map(str::to_owned));
    names.into_iter().flatten().collect()
}

/// When a certificate that the operator made ends.
pub(super) fn not_after(secret: &Secret) -> Option<Timestamp> {
    annotation(secret, NOT_AFTER)?.parse().ok()
}

/// What a Secret has under this key, if it is a text.
pub(super) fn text(secret: &Secret, key: &str) -> Option<String> {
    let data: &BTreeMap<String, ByteString> = secret.data.as_ref()?;
    String::from_utf8(data.get(key)?.0.clone()).ok()
}

fn annotation<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    let annotations = secret.metadata.annotations.as_ref()?;
    annotations.get(key).map(String::as_str)
}

fn make_authority(title: &str) -> Result<Authority, CertificateError> {
    let key = KeyPair::generate()?;
    let certificate = authority_params(title)?.self_signed(&key)?;
    Ok(Authority {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

/// The same for the same relay, so that a kept key is enough to go on with.
fn authority_params(title: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(
        DnType::CommonName,
        common_name(&format!("{title} authority")),
    );
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2099, 12, 31);
    Ok(params)
}

fn leaf_params(
    order: &CertificateOrder,
    title: &str,
    now: Timestamp,
    not_after: Timestamp,
) -> Result<CertificateParams, rcgen::Error> {
    let names: Vec<String> = order.names.iter().cloned().collect();
    let mut params = CertificateParams::new(names)?;
    params
        .distinguished_name
        .push(DnType::CommonName, common_name(title));
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // Both at midnight before, which the day more makes good.
    let (year, month, day) = date(later(now, -DAY));
    params.not_before = date_time_ymd(year, month, day);
    let (year, month, day) = date(later(not_after, DAY));
    params.not_after = date_time_ymd(year, month, day);
    Ok(params)
}

/// Year, month and day of a time.
fn date(time: Timestamp) -> (i32, u8, u8) {
    let date = time.to_zoned(TimeZone::UTC).date();
    let part = |part: i8| u8::try_from(part).unwrap_or(1);
    (date.year().into(), part(date.month()), part(date.day()))
}

fn common_name(text: &str) -> String {
    text.chars().take(MAX_COMMON_NAME).collect()
}

fn joined(names: &BTreeSet<String>) -> String {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.join(" ")
}

fn bytes(text: String) -> ByteString {
    ByteString(text.into_bytes())
}
