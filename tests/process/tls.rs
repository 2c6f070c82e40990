//! TLS of the ext_proc port.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use pointsman::collector::tls::Unverified;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ProtocolVersion, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

use super::client::Call;
use super::harness::{Folder, Picker, certificate, until};

const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12, &rustls::version::TLS13];
const ONLY_12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];

/// A handshake that offers `h2`.
async fn handshake(
    address: SocketAddr,
    versions: &[&'static SupportedProtocolVersion],
) -> io::Result<TlsStream<TcpStream>> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unverified::new(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(address).await?).await
}

/// Dials with TLS for tonic.
struct Dial(SocketAddr);

impl Service<http::Uri> for Dial {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let address = self.0;
        Box::pin(async move { Ok(TokioIo::new(handshake(address, BOTH).await?)) })
    }
}

/// A gRPC connection through TLS.
pub async fn channel(address: SocketAddr) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_static("http://localhost").connect_with_connector(Dial(address)).await
}

async fn leaf(address: SocketAddr) -> Vec<u8> {
    let stream = handshake(address, BOTH).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn self_signed_by_default_with_h2() {
    let folder = Folder::usual();
    let picker = Picker::start(&folder, &["--drain-timeout=0s"]).await;
    for versions in [BOTH, ONLY_12] {
        let stream = handshake(picker.grpc, versions).await.unwrap();
        let tls = stream.get_ref().1;
        assert_eq!(tls.alpn_protocol(), Some(&b"h2"[..]));
        let newest = if versions.len() == 2 { ProtocolVersion::TLSv1_3 } else { ProtocolVersion::TLSv1_2 };
        assert_eq!(tls.protocol_version(), Some(newest));
    }
    let channel = channel(picker.grpc).await.unwrap();
    let mut call = Call::open(&channel).await.unwrap();
    assert!(!call.request(&[], r#"{"model":"m","prompt":"p"}"#).await.unwrap().destination.is_empty());
    drop((call, channel));
    picker.stop().await;
}

#[tokio::test]
async fn plaintext_if_told_and_no_tls_then() {
    let folder = Folder::usual();
    let picker = Picker::start(&folder, &["--secure-serving=false", "--drain-timeout=0s"]).await;
    let mut call = Call::open(&picker.plain().await).await.unwrap();
    assert!(!call.request(&[], r#"{"model":"m","prompt":"p"}"#).await.unwrap().destination.is_empty());
    drop(call);
    assert!(handshake(picker.grpc, BOTH).await.is_err());
    picker.stop().await;
}

#[tokio::test]
async fn the_lowest_version_is_kept_to() {
    let folder = Folder::usual();
    let picker = Picker::start(&folder, &["--tls-min-version=VersionTLS13", "--drain-timeout=0s"]).await;
    assert!(handshake(picker.grpc, ONLY_12).await.is_err());
    let stream = handshake(picker.grpc, BOTH).await.unwrap();
    assert_eq!(stream.get_ref().1.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    picker.stop().await;
}

#[tokio::test]
async fn a_new_certificate_is_served_without_a_restart() {
    let folder = Folder::usual();
    let certs = tempfile::tempdir().unwrap();
    let path = certs.path().display().to_string();
    let first = certificate(certs.path(), "first.local");
    let args = ["--cert-path", &path, "--enable-cert-reload", "--drain-timeout=0s"];
    let picker = Picker::start(&folder, &args).await;
    assert_eq!(leaf(picker.grpc).await, first);
    let old = channel(picker.grpc).await.unwrap();
    let mut open = Call::open(&old).await.unwrap();
    open.request(&[], r#"{"model":"m","prompt":"p"}"#).await.unwrap();

    let second = certificate(certs.path(), "second.local");
    until("the second certificate is served", async || leaf(picker.grpc).await == second).await;
    assert_eq!(open.response("200", "application/json", &[b"{}"]).await, b"{}", "open streams do not notice");

    std::fs::write(certs.path().join("tls.key"), "garbage").unwrap();
    picker.log.with(&["certificate not usable", "tls.key"]).await;
    assert_eq!(leaf(picker.grpc).await, second, "a broken pair changes nothing");
    let third = certificate(certs.path(), "third.local");
    until("the third certificate is served", async || leaf(picker.grpc).await == third).await;
    drop((open, old));
    picker.stop().await;
}

#[tokio::test]
async fn without_the_flag_a_certificate_is_read_once() {
    let folder = Folder::usual();
    let certs = tempfile::tempdir().unwrap();
    let path = certs.path().display().to_string();
    let missing = super::harness::run(&["--config-file", &folder.text("config.yaml"), "--cert-path", &path]).await;
    assert_eq!(missing.code, Some(64), "{missing:?}");
    missing.says(&["--cert-path", "tls.crt"]);
    let first = certificate(certs.path(), "first.local");
    let picker = Picker::start(&folder, &["--cert-path", &path, "--drain-timeout=0s"]).await;
    assert_eq!(leaf(picker.grpc).await, first);
    picker.stop().await;
}
