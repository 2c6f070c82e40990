//! Certificates from files, as Kubernetes mounts them from a secret.

use std::path::Path;

use anyhow::Context as _;
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// The chain and the key of a server in their folder.
pub const FILES: [&str; 2] = ["tls.crt", "tls.key"];

/// Reads `tls.crt` (a chain) and `tls.key` from `folder`.
///
/// # Errors
/// A file that cannot be read or holds no PEM of its kind; a key that is not that of the certificate.
pub fn key_pair(folder: &Path) -> anyhow::Result<CertifiedKey> {
    let [crt, key] = FILES.map(|name| folder.join(name));
    let chain = certificates(&crt)?;
    let key_der = PrivateKeyDer::from_pem_file(&key)
        .with_context(|| format!("cannot read a private key from {}", key.display()))?;
    CertifiedKey::from_der(chain, key_der, &ring::default_provider())
        .with_context(|| format!("{} and {} do not belong together", crt.display(), key.display()))
}

/// Reads the authorities in `file`.
///
/// # Errors
/// A file that cannot be read or holds no certificate, or one that cannot be an authority.
pub fn authorities(file: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).with_context(|| format!("{} holds no authority", file.display()))?;
    }
    Ok(roots)
}

fn certificates(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .with_context(|| format!("cannot read certificates from {}", file.display()))?;
    anyhow::ensure!(!certificates.is_empty(), "{} holds no certificate", file.display());
    Ok(certificates)
}
