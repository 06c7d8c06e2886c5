//! TLS with the relay's own key told in the certificate chain, so that clients save a round trip.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use derp::{METACERT_PREFIX, NodeKey};
use rcgen::{CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, PKCS_ED25519};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::server::TlsFiles;

/// How long a metacert is valid, before and after it is made.
const VALIDITY: Duration = Duration::from_secs(30 * 24 * 3600);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{} cannot be read: {source}; correct the path or its permissions", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file holds no PEM of the kind expected.
    #[error("{} holds no {expected} in PEM; give a file with -----BEGIN lines", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
    },
    /// Certificate and key are of no use together.
    #[error(
        "the certificate and key cannot be used: {0}; the key must be that of the first certificate in the chain"
    )]
    Unusable(#[from] rustls::Error),
    /// The certificate that names our key cannot be made.
    #[error("the certificate that names the relay's key cannot be made: {0}")]
    Metacert(#[from] rcgen::Error),
}

/// The TLS configuration in force.
#[derive(Debug)]
pub(crate) struct Tls {
    files: TlsFiles,
    server: NodeKey,
    config: ArcSwap<ServerConfig>,
}

impl Tls {
    /// Reads certificate and key.
    pub(crate) fn new(files: TlsFiles, server: NodeKey) -> Result<Self, TlsError> {
        let config = load(&files, &server)?;
        Ok(Self {
            files,
            server,
            config: ArcSwap::from_pointee(config),
        })
    }

    /// The configuration for the next connection.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// Reads certificate and key again, which may have been renewed, and renews the metacert.
    pub(crate) fn reload(&self) -> Result<(), TlsError> {
        self.config
            .store(Arc::new(load(&self.files, &self.server)?));
        Ok(())
    }
}

fn load(files: &TlsFiles, server: &NodeKey) -> Result<ServerConfig, TlsError> {
    let mut chain = read_chain(files)?;
    chain.push(metacert(server)?);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, read_key(files)?)?;
    Ok(config)
}

fn read_chain(files: &TlsFiles) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let path = &files.certificate;
    let text = std::fs::read(path).map_err(|source| TlsError::Io {
        path: path.clone(),
        source,
    })?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let missing = TlsError::Pem {
        path: path.clone(),
        expected: "certificate",
    };
    chain.ok().filter(|chain| !chain.is_empty()).ok_or(missing)
}

fn read_key(files: &TlsFiles) -> Result<PrivateKeyDer<'static>, TlsError> {
    let path = &files.key;
    let text = std::fs::read(path).map_err(|source| TlsError::Io {
        path: path.clone(),
        source,
    })?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| TlsError::Pem {
        path: path.clone(),
        expected: "private key",
    })
}

/// A certificate of a throw-away key that names the relay's key. Its common name is longer than RFC 5280 allows,
/// which no reader of it minds.
fn metacert(server: &NodeKey) -> Result<CertificateDer<'static>, TlsError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(
        DnType::CommonName,
        format!("{METACERT_PREFIX}{}", server.to_hex()),
    );
    params.serial_number = Some(u64::from(derp::VERSION).into());
    params.is_ca = IsCa::ExplicitNoCa;
    let now = SystemTime::now();
    params.not_before = (now - VALIDITY).into();
    params.not_after = (now + VALIDITY).into();
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    Ok(params.self_signed(&key)?.der().clone())
}

#[cfg(test)]
mod tests {
    use derp::{NodeSecret, metacert_key};

    use super::*;

    fn key() -> NodeKey {
        NodeSecret::from_bytes([1; 32]).public()
    }

    fn files(folder: &std::path::Path) -> TlsFiles {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let files = TlsFiles {
            certificate: folder.join("cert.pem"),
            key: folder.join("key.pem"),
        };
        std::fs::write(&files.certificate, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        files
    }

    #[test]
    fn the_metacert_names_the_key() {
        assert_eq!(metacert_key(&metacert(&key()).unwrap()), Some(key()));
    }

    #[test]
    fn reloading_does_not_grow_the_chain() {
        let folder = tempfile::tempdir().unwrap();
        let tls = Tls::new(files(folder.path()), key()).unwrap();
        tls.reload().unwrap();
        assert_eq!(read_chain(&tls.files).unwrap().len(), 1);
        std::fs::write(&tls.files.certificate, "").unwrap();
        assert!(matches!(
            tls.reload(),
            Err(TlsError::Pem {
                expected: "certificate",
                ..
            })
        ));
        std::fs::remove_file(&tls.files.key).unwrap();
        assert!(matches!(read_key(&tls.files), Err(TlsError::Io { .. })));
    }
}
