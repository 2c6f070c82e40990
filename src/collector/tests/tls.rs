//! Pages over TLS.

use super::*;

/// A server with a certificate of its own making, and the file that vouches for it.
async fn tls_server(directory: &std::path::Path) -> (SocketAddr, PathBuf) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let ca = directory.join("ca.pem");
    std::fs::write(&ca, made.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, (log, _)) = (acceptor.clone(), unbounded_channel());
            tokio::spawn(async move { serve(acceptor.accept(stream).await.ok()?, Arc::new(page), log).await });
        }
    });
    (address, ca)
}

#[tokio::test]
async fn https_is_verified_only_when_asked() {
    let directory = tempfile::tempdir().unwrap();
    let (address, ca) = tls_server(directory.path()).await;
    let stranger = tempfile::tempdir().unwrap();
    let (_, other_ca) = tls_server(stranger.path()).await;
    let mut https = settings();
    https.scheme = Scheme::Https;
    let verified = |ca: PathBuf| Settings { insecure_skip_verify: false, ca_cert: Some(ca), ..https.clone() };
    for good in [https.clone(), verified(ca.clone())] {
        let mut rig = Rig::one(good, address);
        assert_eq!(values(&rig.sample().await), GOOD);
        assert_eq!(values(&rig.sample().await), GOOD);
        rig.end().await;
    }
    let mut rig = Rig::one(verified(other_ca), address);
    assert_eq!(rig.failure().await, PollError::Connect);
    rig.end().await;
}

#[tokio::test]
async fn an_unusable_certificate_file_stops_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty.pem");
    std::fs::write(&empty, "nothing here").unwrap();
    for path in [directory.path().join("absent.pem"), empty] {
        let wrong =
            Settings { scheme: Scheme::Https, insecure_skip_verify: false, ca_cert: Some(path.clone()), ..settings() };
        let rig = Rig::one(wrong, "127.0.0.1:1".parse().unwrap());
        let error = soon(rig.task).await.unwrap().unwrap_err().to_string();
        assert!(error.contains("caCertPath") && error.contains(path.to_str().unwrap()), "{error}");
    }
}
