//! Accepts connections of data planes and serves HTTP/2 on them.
//!
//! hyper is driven directly rather than through tonic's server: TLS certificates are reloadable,
//! handshakes run beside the accept loop, and each connection can be told to go away on its own.
//!
//! Data planes are trusted peers that reset a stream even after success, so hyper's protection
//! against rapid resets is widened here; it would close a busy connection.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::workers::Workers;
use crate::lifecycle::drain::{DrainWatcher, Step};

/// What a connection gets to close its streams once the drain forces them.
pub const AFTER_FORCE: Duration = Duration::from_secs(1);

/// Bounds of the port.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; further ones wait in the kernel's backlog.
    pub max_connections: usize,
    /// Longest TLS handshake.
    pub handshake_timeout: Duration,
    /// HTTP/2 flow-control window of a stream, bytes.
    pub stream_window: u32,
    /// HTTP/2 flow-control window of a connection, bytes.
    pub connection_window: u32,
    /// Time between keep-alive pings.
    pub ping_interval: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 16_384,
            handshake_timeout: Duration::from_secs(10),
            stream_window: 4 << 20,
            connection_window: 16 << 20,
            ping_interval: Duration::from_secs(30),
        }
    }
}

/// A service that every connection clones.
pub trait Serve: Clone + Send + Sync + 'static {
    /// The body of an answer.
    type Body: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static;

    /// Answers one request. Errors are answers with a gRPC status.
    fn call(&self, request: Request<Incoming>) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// Accepts until the drain refuses and has `workers` serve the connections, then tells every connection to go away and waits until they have
/// ended; once the drain forces, they are closed.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    limits: Limits,
    workers: Workers,
    service: impl Serve,
    drain: DrainWatcher,
) {
    let slots = Arc::new(tokio::sync::Semaphore::new(limits.max_connections));
    let (ended, mut all_ended) = tokio::sync::mpsc::channel::<Infallible>(1);
    loop {
        let permit = tokio::select! {
            biased;
            () = drain.refusing() => break,
            permit = Arc::clone(&slots).acquire_owned() => permit,
        };
        let accepted = tokio::select! {
            biased;
            () = drain.refusing() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors or an aborted connection: neither may spin nor stop the port.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (tls, service, drain, ended) = (tls.clone(), service.clone(), drain.clone(), ended.clone());
        workers.run(stream, move |stream| async move {
            connection(stream, tls, limits, service, drain).await;
            drop((permit, ended));
        });
    }
    drop(listener);
    drop(ended);
    // Resolves when the last connection has dropped its sender.
    let _: Option<Infallible> = all_ended.recv().await;
}

async fn connection(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    limits: Limits,
    service: impl Serve,
    drain: DrainWatcher,
) {
    // Without it small answers wait for the peer's delayed acknowledgement (40 ms).
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    match tls {
        None => drive(stream, limits, service, drain).await,
        Some(config) => {
            let handshake = TlsAcceptor::from(config).accept(stream);
            match tokio::time::timeout(limits.handshake_timeout, handshake).await {
                Ok(Ok(stream)) => drive(stream, limits, service, drain).await,
                Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                Err(_) => tracing::debug!("TLS handshake timed out"),
            }
        }
    }
}

async fn drive(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    limits: Limits,
    service: impl Serve,
    drain: DrainWatcher,
) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(service.call(request).await) }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_concurrent_streams(None)
        .max_pending_accept_reset_streams(Some(100_000))
        .max_local_error_reset_streams(None)
        .max_header_list_size(64 << 10)
        .max_send_buf_size(1 << 20)
        .keep_alive_interval(limits.ping_interval)
        .keep_alive_timeout(Duration::from_secs(20));
    let connection = builder.serve_connection(TokioIo::new(io), service);
    tokio::pin!(connection);
    let mut told = Step::Serving;
    loop {
        let next = async {
            match told {
                Step::Serving => drain.refusing().await,
                Step::Refusing => drain.forced().await,
                Step::Forcing => tokio::time::sleep(AFTER_FORCE).await,
            }
        };
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            () = next => match told {
                Step::Serving => {
                    told = Step::Refusing;
                    connection.as_mut().graceful_shutdown();
                }
                Step::Refusing => told = Step::Forcing,
                Step::Forcing => return,
            }
        }
    }
}
