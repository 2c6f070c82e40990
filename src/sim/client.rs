//! One request over one HTTP/1.1 connection. No pool: tests want to know which connection they use,
//! and Envoy's admin port is asked too rarely to care.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Largest answer that [`get`] and [`post`] take, in bytes.
pub const MAX_ANSWER: usize = 64 << 20;

/// How long [`get`] and [`post`] wait for the whole answer.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Sends `request` over a connection of its own and returns the answer's head and its body to come.
/// Dropping the answer closes the connection. A missing Host header is filled in.
///
/// # Errors
/// Whatever connecting, writing and reading the head can fail with.
pub async fn send<B>(address: SocketAddr, mut request: Request<B>) -> io::Result<Response<Incoming>>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Ends by itself when the answer is read or dropped.
    tokio::spawn(connection);
    if !request.headers().contains_key(header::HOST) {
        let host = http::HeaderValue::try_from(address.to_string()).map_err(io::Error::other)?;
        request.headers_mut().insert(header::HOST, host);
    }
    sender.send_request(request).await.map_err(io::Error::other)
}

/// GET of `path` (with its query): status and body.
///
/// # Errors
/// As [`send`]; a path that is not one; an answer beyond [`MAX_ANSWER`] or [`DEADLINE`].
pub async fn get(address: SocketAddr, path: &str) -> io::Result<(StatusCode, Bytes)> {
    let request = Request::get(path).body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
    whole(address, request).await
}

/// POST of a JSON body to `path`: status and body.
///
/// # Errors
/// As [`get`].
pub async fn post(address: SocketAddr, path: &str, json: impl Into<Bytes>) -> io::Result<(StatusCode, Bytes)> {
    let request = Request::post(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(json.into()))
        .map_err(io::Error::other)?;
    whole(address, request).await
}

async fn whole<B>(address: SocketAddr, request: Request<B>) -> io::Result<(StatusCode, Bytes)>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let exchange = async {
        let answer = send(address, request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(io::Error::other)?;
        Ok((status, body.to_bytes()))
    };
    tokio::time::timeout(DEADLINE, exchange).await.map_err(|_| {
        io::Error::new(io::ErrorKind::TimedOut, format!("no whole answer from {address} in {}s", DEADLINE.as_secs()))
    })?
}
