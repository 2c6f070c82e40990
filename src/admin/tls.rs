//! TLS of the admin port, and which clients' certificates it takes.
//!
//! Certificate, key and authorities are read as one, and a reload replaces all of it for the next
//! connection: a new authority counts at once, and sessions of before cannot be resumed. TLS 1.2 is the
//! least version. With authorities every client must show a certificate that one of them signed.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::SingleCertAndKey;

use crate::lifecycle::certificate;

/// The TLS in force.
#[derive(Debug)]
pub struct AdminTls {
    folder: PathBuf,
    client_ca: Option<PathBuf>,
    current: ArcSwap<ServerConfig>,
}

impl AdminTls {
    /// Reads `tls.crt` and `tls.key` of `folder`, and the authorities of clients.
    ///
    /// # Errors
    /// A file that cannot be used.
    pub fn load(folder: PathBuf, client_ca: Option<PathBuf>) -> anyhow::Result<Self> {
        let current = ArcSwap::from(config(&folder, client_ca.as_ref())?);
        Ok(Self { folder, client_ca, current })
    }

    /// Reads the files again; on any error what is in force stays.
    ///
    /// # Errors
    /// A file that cannot be used.
    pub fn reload(&self) -> anyhow::Result<()> {
        self.current.store(config(&self.folder, self.client_ca.as_ref())?);
        Ok(())
    }

    /// The files that it is made of.
    pub fn files(&self) -> Vec<PathBuf> {
        certificate::FILES.iter().map(|name| self.folder.join(name)).chain(self.client_ca.clone()).collect()
    }

    /// What the next connection uses.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }
}

fn config(folder: &std::path::Path, client_ca: Option<&PathBuf>) -> anyhow::Result<Arc<ServerConfig>> {
    let key = certificate::key_pair(folder)?;
    let provider = Arc::new(ring::default_provider());
    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&versions)?;
    let builder = match client_ca {
        Some(file) => {
            let roots = Arc::new(certificate::authorities(file)?);
            builder.with_client_cert_verifier(WebPkiClientVerifier::builder_with_provider(roots, provider).build()?)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
