//! TLS towards model servers.
//!
//! Certificate files are read once, before the first poll, so that a wrong path stops the start. By default the
//! server's certificate is not verified, as in the picker we replace: pods have certificates of
//! their own making, and what is read is a load figure. With verification and without a CA file, the
//! system's bundle is used.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::Settings;
use super::plugins::Scheme;

/// Where Linux distributions keep the certificate authorities they trust.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// Why the certificates of `metrics-data-source` cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// A file is unreadable or holds no PEM of the kind needed.
    #[error("metrics-data-source.{key}: cannot use `{path}`: {why} (fix: name a readable PEM file)")]
    File {
        /// The parameter.
        key: &'static str,
        /// Its value.
        path: String,
        /// What is wrong with the file.
        why: String,
    },
    /// Verification is on and there is nothing to verify with.
    #[error(
        "metrics-data-source: insecureSkipVerify is false but neither caCertPath nor a system bundle is there \
         (fix: set caCertPath)"
    )]
    NoAuthorities,
    /// Certificate and key do not go together.
    #[error(
        "metrics-data-source: the client certificate cannot be used: {0} (fix: check that key and certificate match)"
    )]
    Client(String),
}

/// Builds the client side of TLS for `settings`; `None` with plain HTTP.
pub fn load(settings: &Settings) -> Result<Option<Arc<ClientConfig>>, TlsError> {
    if settings.scheme == Scheme::Http {
        return Ok(None);
    }
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| TlsError::Client(e.to_string()))?;
    let builder = if settings.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified::new(provider)))
    } else {
        builder.with_root_certificates(authorities(settings.ca_cert.as_deref())?)
    };
    let mut config = match (&settings.client_cert, &settings.client_key) {
        (Some(cert), Some(key)) => {
            let certs = certificates("clientCertPath", cert)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|e| file("clientKeyPath", key, e))?;
            builder.with_client_auth_cert(certs, key).map_err(|e| TlsError::Client(e.to_string()))?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(Arc::new(config)))
}

fn file(key: &'static str, path: &Path, why: impl std::fmt::Display) -> TlsError {
    TlsError::File { key, path: path.display().to_string(), why: why.to_string() }
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certs = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| file(key, path, e))?;
    if certs.is_empty() { Err(file(key, path, "it holds no certificate")) } else { Ok(certs) }
}

fn authorities(ca: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca {
        for cert in certificates("caCertPath", path)? {
            roots.add(cert).map_err(|e| file("caCertPath", path, e))?;
        }
        return Ok(roots);
    }
    for path in SYSTEM_BUNDLES {
        if let Ok(certs) = certificates("caCertPath", Path::new(path)) {
            // One odd certificate of a system bundle does not spoil the others.
            roots.add_parsable_certificates(certs);
            break;
        }
    }
    if roots.is_empty() { Err(TlsError::NoAuthorities) } else { Ok(roots) }
}

/// Accepts any certificate, but still checks that the server holds its key.
#[derive(Debug)]
pub struct Unverified(Arc<CryptoProvider>);

impl Unverified {
    /// Checks with the algorithms of `provider`.
    pub fn new(provider: Arc<CryptoProvider>) -> Self {
        Self(provider)
    }
}

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
