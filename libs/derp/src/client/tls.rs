//! TLS towards a relay.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, RootCertStore};

use crate::key::NodeKey;
use crate::metacert::metacert_key;
use crate::url::RelayUrl;

/// Why TLS cannot be spoken at all.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum TlsSetupError {
    #[error("the CA bundle holds no usable certificate (PEM)")]
    Bundle,
    #[error("no TLS: {0}")]
    Provider(rustls::Error),
}

/// A configuration that trusts the bundle, or the public authorities if there is none. No ALPN: middleboxes see it.
pub(super) fn client_config(ca_bundle: Option<&str>) -> Result<Arc<ClientConfig>, TlsSetupError> {
    let roots = match ca_bundle.filter(|text| !text.trim().is_empty()) {
        Some(text) => bundle_roots(text)?,
        None => RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsSetupError::Provider)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The name or address to expect in the certificate.
pub(super) fn server_name(url: &RelayUrl) -> Option<ServerName<'static>> {
    match url.address() {
        Some(address) => Some(ServerName::IpAddress(address.into())),
        None => ServerName::try_from(url.host().to_owned()).ok(),
    }
}

/// The relay's key, if its chain ends in a metacert and TLS 1.3 protects it.
pub(super) fn early_server_key(connection: &ClientConnection) -> Option<NodeKey> {
    if connection.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
        return None;
    }
    metacert_key(connection.peer_certificates()?.last()?)
}

fn bundle_roots(text: &str) -> Result<RootCertStore, TlsSetupError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let certificate = certificate.map_err(|_| TlsSetupError::Bundle)?;
        roots.add(certificate).map_err(|_| TlsSetupError::Bundle)?;
    }
    if roots.is_empty() {
        return Err(TlsSetupError::Bundle);
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_roots_are_the_default() {
        assert!(client_config(None).is_ok());
        assert!(client_config(Some(" ")).is_ok());
    }

    #[test]
    fn a_bundle_must_hold_certificates() {
        for text in [
            "nonsense",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            assert!(
                matches!(client_config(Some(text)), Err(TlsSetupError::Bundle)),
                "{text}"
            );
        }
    }
}
