//! One endpoint's connection: fetches a page and feeds it to a [`Reading`] as it arrives.
//!
//! The connection is kept alive and driven by the endpoint's own task, so a poll wakes no other task and an
//! endpoint that misbehaves hurts nobody else. Whatever goes wrong (timeout, bad status, too large a page), the
//! connection is closed and the next poll opens another one. A kept connection that turns out to be
//! closed by the server is replaced once within the same poll.
//!
//! Bounds: response head 64 KiB (also the largest chunk), page `max_page`, time `timeout` for each fetch. gzip
//! is not requested: on a pod network bytes are cheaper than the cycles of both ends.
//!
//! Rejected: hyper-util's pooling client (one connection per endpoint needs no pool, and its pool task is
//! one more thing shared between endpoints).

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_ENCODING, HOST, HeaderValue, USER_AGENT};
use http::{Request, Response, StatusCode, Uri};
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::mapping::Plan;
use super::reading::Reading;
use super::{PollError, Settings};

const HEAD_LIMIT: usize = 64 * 1024;
const TEXT: HeaderValue = HeaderValue::from_static("text/plain;version=0.0.4, */*;q=0.1");
const AGENT: HeaderValue = HeaderValue::from_static(concat!("pointsman/", env!("CARGO_PKG_VERSION")));

trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

type Driver = Pin<Box<Connection<TokioIo<Box<dyn Transport>>, Empty<Bytes>>>>;

/// Where and how the pages of one endpoint are fetched.
pub(super) struct Target {
    address: SocketAddr,
    host: HeaderValue,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// The whole page.
    pub full: Uri,
    /// The page with the wanted families only.
    pub filtered: Uri,
    max_page: usize,
    timeout: Duration,
}

impl Target {
    /// `None` if path and query do not make a URI, which validated settings rule out.
    pub fn new(
        settings: &Settings,
        tls: Option<&Arc<ClientConfig>>,
        endpoint: SocketAddr,
        plan: &Plan,
    ) -> Option<Self> {
        let address = SocketAddr::new(endpoint.ip(), settings.port.unwrap_or(endpoint.port()));
        let joint = if settings.path.contains('?') { '&' } else { '?' };
        Some(Self {
            address,
            host: HeaderValue::try_from(address.to_string()).ok()?,
            tls: tls.map(|config| (TlsConnector::from(Arc::clone(config)), ServerName::from(address.ip()))),
            full: settings.path.parse().ok()?,
            filtered: format!("{}{joint}{}", settings.path, plan.query()).parse().ok()?,
            max_page: settings.max_page,
            timeout: settings.timeout,
        })
    }

    /// Where the connection goes, for logs.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

struct Link {
    sender: SendRequest<Empty<Bytes>>,
    driver: Driver,
    ended: bool,
}

impl Link {
    /// Polls `future` and, along with it, the connection that it waits for.
    async fn driving<F: Future>(driver: &mut Driver, ended: &mut bool, future: F) -> F::Output {
        let mut future = pin!(future);
        std::future::poll_fn(|cx| {
            if !*ended && driver.as_mut().poll(cx).is_ready() {
                *ended = true;
            }
            match future.as_mut().poll(cx) {
                // What the future asked for, the connection can often do at once.
                Poll::Pending if !*ended => {
                    *ended = driver.as_mut().poll(cx).is_ready();
                    future.as_mut().poll(cx)
                }
                other => other,
            }
        })
        .await
    }

    async fn send(&mut self, request: Request<Empty<Bytes>>) -> hyper::Result<Response<Incoming>> {
        let Self { sender, driver, ended } = self;
        Self::driving(driver, ended, sender.ready()).await?;
        Self::driving(driver, ended, sender.send_request(request)).await
    }
}

/// The connection to one endpoint, opened when needed.
#[derive(Default)]
pub(super) struct Wire {
    link: Option<Link>,
}

impl Wire {
    /// Fetches `page` and leaves what it says in `reading`.
    pub async fn fetch(
        &mut self,
        target: &Target,
        page: &Uri,
        plan: &Plan,
        reading: &mut Reading,
    ) -> Result<(), PollError> {
        let outcome = match timeout(target.timeout, self.exchange(target, page, plan, reading)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(PollError::Timeout),
        };
        if outcome.is_err() || self.link.as_ref().is_some_and(|l| l.ended) {
            self.link = None;
        }
        outcome
    }

    async fn exchange(
        &mut self,
        target: &Target,
        page: &Uri,
        plan: &Plan,
        reading: &mut Reading,
    ) -> Result<(), PollError> {
        let (link, response) = self.respond(target, page).await?;
        if response.status() != StatusCode::OK {
            return Err(PollError::Status);
        }
        if response.headers().get(CONTENT_ENCODING).is_some_and(|e| e != "identity") {
            return Err(PollError::Parse);
        }
        let mut body = response.into_body();
        if body.size_hint().lower() > target.max_page as u64 {
            return Err(PollError::TooLarge);
        }
        reading.reset(plan);
        let mut size = 0;
        while let Some(frame) = Link::driving(&mut link.driver, &mut link.ended, body.frame()).await {
            let frame = frame.map_err(|e| cause(&e))?;
            let Some(data) = frame.data_ref() else { continue };
            size += data.len();
            if size > target.max_page {
                return Err(PollError::TooLarge);
            }
            // Past the last wanted series this costs nothing; the rest is only taken off the connection.
            reading.feed(plan, data);
        }
        if reading.finish() { Err(PollError::Parse) } else { Ok(()) }
    }

    async fn respond(&mut self, target: &Target, page: &Uri) -> Result<(&mut Link, Response<Incoming>), PollError> {
        let request = || {
            let mut request = Request::new(Empty::new());
            *request.uri_mut() = page.clone();
            let headers = request.headers_mut();
            headers.insert(HOST, target.host.clone());
            headers.insert(ACCEPT, TEXT);
            headers.insert(USER_AGENT, AGENT);
            request
        };
        if let Some(mut link) = self.link.take()
            && let Ok(response) = link.send(request()).await
        {
            return Ok((self.link.insert(link), response));
        }
        let mut link = connect(target).await?;
        let response = link.send(request()).await.map_err(|e| cause(&e))?;
        Ok((self.link.insert(link), response))
    }
}

async fn connect(target: &Target) -> Result<Link, PollError> {
    let tcp = TcpStream::connect(target.address).await.map_err(|_| PollError::Connect)?;
    // Without it a request that spans two segments waits for a delayed acknowledgement.
    tcp.set_nodelay(true).map_err(|_| PollError::Connect)?;
    let transport: Box<dyn Transport> = match &target.tls {
        None => Box::new(tcp),
        Some((connector, name)) => {
            Box::new(connector.connect(name.clone(), tcp).await.map_err(|_| PollError::Connect)?)
        }
    };
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_LIMIT)
        .handshake(TokioIo::new(transport))
        .await
        .map_err(|e| cause(&e))?;
    Ok(Link { sender, driver: Box::pin(connection), ended: false })
}

fn cause(error: &hyper::Error) -> PollError {
    if error.is_parse() { PollError::Parse } else { PollError::Connect }
}
