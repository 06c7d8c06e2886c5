//! TLS 1.3 with one raw Ed25519 key at each end (RFC 7250, RFC 8446).

use std::sync::Arc;

use derp::{ClusterIdentity, ClusterSecret};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use quinn::rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use quinn::rustls::crypto::ring::sign::any_eddsa_type;
use quinn::rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use quinn::rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use quinn::rustls::server::AlwaysResolvesServerRawPublicKeys;
use quinn::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use quinn::rustls::sign::CertifiedKey;
use quinn::rustls::version::TLS13;
use quinn::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    PeerIncompatible, ServerConfig, SignatureScheme,
};

use super::SetupError;

const ALPN: &[u8] = b"culvert-sync";

/// Makes configurations for one identity.
#[derive(Debug)]
pub(super) struct Tls {
    provider: Arc<CryptoProvider>,
    key: Arc<CertifiedKey>,
}

impl Tls {
    pub(super) fn new(secret: &ClusterSecret) -> Result<Self, SetupError> {
        let provider = Arc::new(quinn::rustls::crypto::ring::default_provider());
        let pkcs8 = secret.to_pkcs8();
        let key = any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()))?;
        let public = CertificateDer::from(secret.identity().to_spki());
        Ok(Self {
            provider,
            key: Arc::new(CertifiedKey::new(vec![public], key)),
        })
    }

    /// For dialling this peer and nobody else.
    pub(super) fn client(
        &self,
        peer: ClusterIdentity,
    ) -> Result<Arc<QuicClientConfig>, SetupError> {
        let resolver = AlwaysResolvesClientRawPublicKeys::new(Arc::clone(&self.key));
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(self.pinned(peer))
            .with_client_cert_resolver(Arc::new(resolver));
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Arc::new(QuicClientConfig::try_from(config)?))
    }

    /// For letting in this peer and nobody else.
    pub(super) fn server(
        &self,
        peer: ClusterIdentity,
    ) -> Result<Arc<QuicServerConfig>, SetupError> {
        let resolver = AlwaysResolvesServerRawPublicKeys::new(Arc::clone(&self.key));
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(self.pinned(peer))
            .with_cert_resolver(Arc::new(resolver));
        config.send_tls13_tickets = 0;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Arc::new(QuicServerConfig::try_from(config)?))
    }

    fn pinned(&self, peer: ClusterIdentity) -> Arc<Pinned> {
        Arc::new(Pinned {
            peer,
            spki: peer.to_spki(),
            provider: Arc::clone(&self.provider),
        })
    }
}

/// Takes one key.
#[derive(Debug)]
struct Pinned {
    peer: ClusterIdentity,
    spki: Vec<u8>,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    fn check(&self, key: &CertificateDer<'_>) -> Result<(), Error> {
        if key.as_ref() == self.spki {
            return Ok(());
        }
        // TLS tells both ends the same of any refusal.
        tracing::debug!(peer = ?self.peer, "the other end does not have the pinned key");
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn check_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signature, algorithms)
    }
}

/// What both verifiers say alike: TLS 1.3, Ed25519, raw keys.
macro_rules! raw_key_rules {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(PeerIncompatible::Tls12NotOffered.into())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.check_signature(message, cert, dss)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity)
            .map(|()| ServerCertVerified::assertion())
    }

    raw_key_rules!();
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity)
            .map(|()| ClientCertVerified::assertion())
    }

    raw_key_rules!();
}
