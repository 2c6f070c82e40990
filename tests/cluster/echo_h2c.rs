//! A server that speaks HTTP/2 without TLS and nothing else, as gRPC servers do.

use std::convert::Infallible;
use std::net::IpAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// Starts one on `ip` that says in `x-protocol` how it was asked; its port. It ends with the runtime of the test.
pub async fn start(ip: IpAddr) -> u16 {
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = service_fn(|request: http::Request<Incoming>| async move {
                let version = format!("{:?}", request.version());
                let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                let answer = http::Response::builder().header("x-protocol", version).body(Full::<Bytes>::new(body));
                Ok::<_, Infallible>(answer.unwrap())
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            // A peer that breaks off is its own affair.
            tokio::spawn(async move { server.serve_connection(TokioIo::new(stream), answer).await.is_ok() });
        }
    });
    port
}
