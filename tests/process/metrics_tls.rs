//! TLS of the metrics port, and which clients it takes.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use pointsman::collector::tls::Unverified;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ProtocolVersion, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::harness::{Folder, PATIENCE, Picker, certificate, run, until};

const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12, &rustls::version::TLS13];
const ONLY_12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];

/// A certificate and its key in PEM.
#[derive(Clone)]
struct Identity {
    certificate: String,
    key: String,
}

/// An authority.
struct Authority(Issuer<'static, KeyPair>, String);

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Self(Issuer::new(params, key), pem)
    }

    fn signs(&self, name: &str) -> Identity {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(vec![name.into()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.0).unwrap().pem();
        Identity { certificate, key: key.serialize_pem() }
    }
}

/// What a GET of /metrics in TLS gets: version, the server's certificate and the answer; `None` if the
/// connection does not come about.
async fn ask(
    address: SocketAddr,
    versions: &[&'static SupportedProtocolVersion],
    identity: Option<&Identity>,
) -> Option<(ProtocolVersion, Vec<u8>, String)> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unverified::new(provider)));
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some(Identity { certificate, key }) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
    };
    let talk = async {
        let stream = TcpStream::connect(address).await.ok()?;
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.ok()?;
        let mut answer = Vec::new();
        // With TLS 1.3 the refusal of a certificate comes after the client's handshake.
        stream.read_to_end(&mut answer).await.ok()?;
        let tls = stream.get_ref().1;
        let leaf = tls.peer_certificates().unwrap()[0].to_vec();
        Some((tls.protocol_version().unwrap(), leaf, String::from_utf8(answer).unwrap()))
    };
    tokio::time::timeout(PATIENCE, talk).await.expect("the connection ends")
}

async fn page(address: SocketAddr, identity: Option<&Identity>) -> bool {
    ask(address, BOTH, identity).await.is_some_and(|(_, _, answer)| {
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("llm_d_epp_info{"), "{answer}");
        true
    })
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[tokio::test]
async fn the_metrics_port_speaks_tls_and_follows_its_certificate() {
    let (folder, certs) = (Folder::usual(), tempfile::tempdir().unwrap());
    let first = certificate(certs.path(), "first.local");
    let picker = Picker::start(&folder, &["--metrics-cert-dir", &text(certs.path()), "--drain-timeout=0s"]).await;
    picker.log.with(&["--metrics-endpoint-auth", "nobody can check tokens"]).await;
    let (version, leaf, answer) = ask(picker.metrics, BOTH, None).await.unwrap();
    assert_eq!((version, leaf), (ProtocolVersion::TLSv1_3, first));
    assert!(answer.contains("llm_d_epp_info{"), "{answer}");
    assert_eq!(ask(picker.metrics, ONLY_12, None).await.unwrap().0, ProtocolVersion::TLSv1_2);
    let plain = pointsman::sim::client::get(picker.metrics, "/metrics").await;
    assert!(plain.is_err(), "{plain:?}");

    let second = certificate(certs.path(), "second.local");
    let served = async || ask(picker.metrics, BOTH, None).await.unwrap().1;
    until("the second certificate is served", async || served().await == second).await;
    std::fs::write(certs.path().join("tls.key"), "garbage").unwrap();
    picker.log.with(&["certificate not usable", "tls.key"]).await;
    assert_eq!(served().await, second, "a broken pair changes nothing");
    picker.stop().await;
}

#[tokio::test]
async fn with_authorities_only_their_clients_get_in() {
    let (folder, certs) = (Folder::usual(), tempfile::tempdir().unwrap());
    certificate(certs.path(), "server.local");
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let (scraper, stranger) = (ours.signs("scraper"), theirs.signs("scraper"));
    let ca = certs.path().join("ca.crt");
    std::fs::write(&ca, &ours.1).unwrap();
    let (dir, file) = (text(certs.path()), text(&ca));
    // As in Kubernetes manifests that switch tokens off.
    let args = [
        "--metrics-cert-dir",
        &dir,
        "--metrics-client-ca-file",
        &file,
        "--metrics-endpoint-auth=false",
        "--drain-timeout=0s",
    ];
    let mut picker = Picker::start(&folder, &args).await;
    assert!(page(picker.metrics, Some(&scraper)).await);
    assert!(!page(picker.metrics, Some(&stranger)).await);
    assert!(!page(picker.metrics, None).await);

    // Another authority takes the place of the first.
    std::fs::write(&ca, &theirs.1).unwrap();
    until("the other authority counts", async || page(picker.metrics, Some(&stranger)).await).await;
    assert!(!page(picker.metrics, Some(&scraper)).await);
    assert!(picker.runs().await);
    picker.stop().await;
}

#[tokio::test]
async fn what_cannot_work_ends_the_start() {
    let (folder, certs) = (Folder::usual(), tempfile::tempdir().unwrap());
    certificate(certs.path(), "server.local");
    let (dir, file) = (text(certs.path()), text(&certs.path().join("ca.crt")));
    std::fs::write(&file, "no PEM").unwrap();
    let config = folder.text("config.yaml");
    for (args, words) in [
        (&["--metrics-cert-dir=/nowhere"][..], &["--metrics-cert-dir", "/nowhere/tls.crt"][..]),
        (&["--metrics-cert-dir", &dir, "--metrics-client-ca-file", &file], &["--metrics-client-ca-file", "ca.crt"]),
        (&["--metrics-client-ca-file", &file], &["--metrics-client-ca-file", "set --metrics-cert-dir"]),
        (&["--metrics-cert-dir", &dir, "--metrics-endpoint-auth=false"], &["without any check of the client"]),
    ] {
        let ended = run(&[&["--config-file", config.as_str()], args].concat()).await;
        assert_eq!(ended.code, Some(64), "{ended:?}");
        ended.says(words);
    }
}
