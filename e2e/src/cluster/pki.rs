//! The certificates and kubeconfigs of one cluster.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use serde_json::json;

/// A cluster's authority, and the folder with what it has signed.
#[derive(Debug)]
pub(super) struct Pki {
    folder: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    /// Makes the authority, the API server's certificates (`server` with these names, and its clients) and the key of
    /// service accounts.
    pub(super) fn create(folder: &Path, names: &[String]) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let pki = Self {
            folder: folder.to_owned(),
            authority: authority("kubernetes")?,
        };
        pki.write("ca.crt", &pki.authority.pem())?;
        pki.write("ca.key", &pki.authority.key().serialize_pem())?;
        pki.put(
            "server",
            sign(&pki.authority, "kube-apiserver", None, names)?,
        )?;
        let masters = Some("system:masters");
        pki.put(
            "kubelet-client",
            sign(
                &pki.authority,
                "kube-apiserver-kubelet-client",
                masters,
                &[],
            )?,
        )?;
        let front = authority("front-proxy")?;
        pki.write("front-proxy-ca.crt", &front.pem())?;
        pki.put(
            "front-proxy-client",
            sign(&front, "front-proxy-client", None, &[])?,
        )?;
        let accounts = KeyPair::generate()?;
        pki.write("accounts.key", &accounts.serialize_pem())?;
        pki.write("accounts.pub", &accounts.public_key_pem())?;
        Ok(pki)
    }

    /// A file of the folder.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes `<name>.conf`, the kubeconfig of a user at the API server with this URL. The context is called `context`.
    pub(super) fn kubeconfig(
        &self,
        name: &str,
        context: &str,
        server: &str,
        (user, group): (&str, Option<&str>),
    ) -> Result<PathBuf> {
        let (certificate, key) = sign(&self.authority, user, group, &[])?;
        let data = |text: &str| STANDARD.encode(text);
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": context, "cluster": {
                "server": server,
                "certificate-authority-data": data(&self.authority.pem()),
            }}],
            "users": [{"name": context, "user": {
                "client-certificate-data": data(&certificate),
                "client-key-data": data(&key),
            }}],
            "contexts": [{"name": context, "context": {"cluster": context, "user": context}}],
            "current-context": context,
        });
        self.write(
            &format!("{name}.conf"),
            &serde_json::to_string_pretty(&config)?,
        )
    }

    fn put(&self, name: &str, (certificate, key): (String, String)) -> Result<()> {
        self.write(&format!("{name}.crt"), &certificate)?;
        self.write(&format!("{name}.key"), &key).map(drop)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, text)?;
        Ok(path)
    }
}

fn authority(name: &str) -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    Ok(CertifiedIssuer::self_signed(
        parameters,
        KeyPair::generate()?,
    )?)
}

/// Certificate and key in PEM. Names may be host names and IP addresses.
fn sign(
    authority: &CertifiedIssuer<'static, KeyPair>,
    user: &str,
    group: Option<&str>,
    names: &[String],
) -> Result<(String, String)> {
    let mut parameters = CertificateParams::new(names)?;
    parameters.distinguished_name.push(DnType::CommonName, user);
    if let Some(group) = group {
        parameters
            .distinguished_name
            .push(DnType::OrganizationName, group);
    }
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = KeyPair::generate()?;
    let certificate = parameters.signed_by(&key, authority)?;
    Ok((certificate.pem(), key.serialize_pem()))
}
