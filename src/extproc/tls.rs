//! The certificate of the ext_proc port: self-signed by default, from files if given, reloadable.
//!
//! Data planes skip verification by default (protocol 5.3), so a self-signed certificate without a
//! subject alternative name is what they expect. Ours is ECDSA P-256 where the picker we replace
//! makes an RSA-4096 key: some data planes open a connection per request, and this handshake costs
//! a fraction. ALPN always offers `h2`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::lifecycle::certificate;

/// Lowest protocol version offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MinVersion {
    /// TLS 1.2 (also for the older versions that rustls does not implement).
    #[default]
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// What the port's TLS is made of.
#[derive(Clone, Debug, Default)]
pub struct TlsSettings {
    /// Folder with `tls.crt` and `tls.key`; `None` makes a self-signed certificate.
    pub cert_path: Option<PathBuf>,
    /// Lowest version offered.
    pub min_version: MinVersion,
    /// Cipher suites of TLS 1.2 by their names; empty offers the defaults.
    pub cipher_suites: Vec<String>,
}

/// The certificate in use; replaced whole on reload, so a handshake sees the old or the new one.
#[derive(Debug)]
pub struct CertificateHolder {
    current: ArcSwap<CertifiedKey>,
}

impl ResolvesServerCert for CertificateHolder {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl CertificateHolder {
    /// Reads the folder again; on any error the certificate in use stays.
    ///
    /// # Errors
    /// Files that cannot be read, or that do not belong together.
    pub fn reload(&self, folder: &Path) -> anyhow::Result<()> {
        self.current.store(Arc::new(certificate::key_pair(folder)?));
        Ok(())
    }
}

/// Builds the server configuration and the handle that reloads its certificate.
///
/// # Errors
/// Unreadable or mismatched certificate files, or a minimum version that the suites cannot serve.
pub fn server_config(settings: &TlsSettings) -> anyhow::Result<(Arc<ServerConfig>, Arc<CertificateHolder>)> {
    let key = match &settings.cert_path {
        Some(folder) => certificate::key_pair(folder)?,
        None => self_signed()?,
    };
    let holder = Arc::new(CertificateHolder { current: ArcSwap::from_pointee(key) });
    let mut provider = ring::default_provider();
    if !settings.cipher_suites.is_empty() {
        provider.cipher_suites.retain(|suite| {
            let name = format!("{:?}", suite.suite());
            // As in Go, the suites of TLS 1.3 are not a matter of choice.
            name.starts_with("TLS13_") || settings.cipher_suites.contains(&name)
        });
    }
    let versions: &[&rustls::SupportedProtocolVersion] = match settings.min_version {
        MinVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        MinVersion::Tls13 => &[&rustls::version::TLS13],
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .context("--tls-min-version and --tls-cipher-suites leave no usable combination")?
        .with_no_client_auth()
        .with_cert_resolver(Arc::<CertificateHolder>::clone(&holder));
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok((Arc::new(config), holder))
}

fn self_signed() -> anyhow::Result<CertifiedKey> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "Inference Ext");
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = rcgen::date_time_ymd(2025, 1, 1);
    params.not_after = rcgen::date_time_ymd(2045, 1, 1);
    let certificate = params.self_signed(&key)?;
    let key_der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(CertifiedKey::from_der(vec![certificate.der().clone()], key_der, &ring::default_provider())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_self_signed_certificate_offers_h2() {
        let (config, _) = server_config(&TlsSettings::default()).unwrap();
        assert_eq!(config.alpn_protocols, [b"h2".to_vec()]);
    }

    #[test]
    fn files_are_loaded_and_a_bad_reload_keeps_the_good_one() {
        let folder = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let cert = rcgen::CertificateParams::new(vec!["epp.local".into()]).unwrap().self_signed(&key).unwrap();
        std::fs::write(folder.path().join("tls.crt"), cert.pem()).unwrap();
        std::fs::write(folder.path().join("tls.key"), key.serialize_pem()).unwrap();
        let settings = TlsSettings { cert_path: Some(folder.path().into()), ..TlsSettings::default() };
        let (_, holder) = server_config(&settings).unwrap();
        let before = holder.current.load_full();
        std::fs::write(folder.path().join("tls.key"), "garbage").unwrap();
        let error = holder.reload(folder.path()).unwrap_err().to_string();
        assert!(error.contains("tls.key"), "{error}");
        assert!(Arc::ptr_eq(&before, &holder.current.load_full()));
    }
}
