//! One endpoint's connection: fetches a page and feeds it to a [`Reading`] as it arrives.
//!
//! The connection is kept alive and belongs to the endpoint's own task, so a poll wakes no other task and an
//! endpoint that misbehaves hurts nobody else. Whatever goes wrong (timeout, bad status, too large a page), the
//! connection is closed and the next poll opens another one. A kept connection that turns out to be
//! closed by the server is replaced once within the same poll.
//!
//! The request is written as prepared bytes, the answer read into one buffer that all endpoints share and looked
//! through there ([`http1`](super::http1)), so that a poll of a steady endpoint allocates nothing and an idle
//! connection holds no buffer. The shared buffer is locked only while bytes that are there are looked through.
//!
//! Bounds: response head 64 KiB, page `max_page`, time `timeout` for each fetch. gzip is not requested: on a
//! pod network bytes are cheaper than the cycles of both ends.
//!
//! Rejected: hyper's client (measured: twice the time of the process outside the kernel, and 8 KiB and more for
//! each connection), and a pool of connections (one per endpoint needs none).

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::http1::Response;
use super::mapping::Plan;
use super::reading::Reading;
use super::{PollError, Settings};

/// Size of the shared buffer: vLLM's page and its head in one read.
const BUFFER: usize = 128 * 1024;
/// What servers say that close a connection which was idle for too long (RFC 9110, 15.5.9).
const REQUEST_TIMEOUT: u16 = 408;

trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

type Io = Box<dyn Transport>;

/// The buffer that answers are read into; shared by all endpoints.
#[derive(Clone)]
pub(super) struct Buffer(Arc<Mutex<Box<[u8]>>>);

impl Default for Buffer {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(vec![0; BUFFER].into())))
    }
}

/// Where and how the pages of one endpoint are fetched.
pub(super) struct Target {
    address: SocketAddr,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// The request for the whole page.
    pub full: Bytes,
    /// The request for the page with the wanted families only.
    pub filtered: Bytes,
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
            tls: tls.map(|config| (TlsConnector::from(Arc::clone(config)), ServerName::from(address.ip()))),
            full: request(&settings.path, address)?,
            filtered: request(&format!("{}{joint}{}", settings.path, plan.query()), address)?,
            max_page: settings.max_page,
            timeout: settings.timeout,
        })
    }

    /// Where the connection goes, for logs.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

fn request(path: &str, address: SocketAddr) -> Option<Bytes> {
    // Also rules out line breaks, which would end the line.
    let path = PathAndQuery::try_from(path).ok()?;
    let text = format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\naccept: text/plain;version=0.0.4, */*;q=0.1\r\n\
         user-agent: pointsman/{}\r\n\r\n",
        env!("CARGO_PKG_VERSION")
    );
    Some(text.into())
}

/// The connection to one endpoint, opened when needed.
pub(super) struct Wire {
    kept: Option<Io>,
    response: Response,
    buffer: Buffer,
}

impl Wire {
    pub fn new(buffer: Buffer) -> Self {
        Self { kept: None, response: Response::default(), buffer }
    }

    /// Fetches a page with the prepared `request` and leaves what it says in `reading`.
    pub async fn fetch(
        &mut self,
        target: &Target,
        request: &Bytes,
        plan: &Plan,
        reading: &mut Reading,
    ) -> Result<(), PollError> {
        // If the time is over, the connection goes with the future.
        timeout(target.timeout, self.exchange(target, request, plan, reading)).await.unwrap_or(Err(PollError::Timeout))
    }

    async fn exchange(
        &mut self,
        target: &Target,
        request: &Bytes,
        plan: &Plan,
        reading: &mut Reading,
    ) -> Result<(), PollError> {
        if let Some(mut io) = self.kept.take()
            && is_quiet(&mut io).await
        {
            let outcome = self.talk(&mut io, target, request, plan, reading).await;
            let stale = match outcome {
                Err(PollError::Connect) => !self.response.has_begun(),
                Err(PollError::Status) => self.response.status() == REQUEST_TIMEOUT,
                _ => false,
            };
            if !stale {
                return self.close(io, outcome, reading);
            }
        }
        let mut io = connect(target).await?;
        let outcome = self.talk(&mut io, target, request, plan, reading).await;
        self.close(io, outcome, reading)
    }

    async fn talk(
        &mut self,
        io: &mut Io,
        target: &Target,
        request: &Bytes,
        plan: &Plan,
        reading: &mut Reading,
    ) -> Result<(), PollError> {
        let Self { response, buffer, .. } = self;
        response.reset();
        reading.reset(plan);
        io.write_all(request).await.map_err(|_| PollError::Connect)?;
        io.flush().await.map_err(|_| PollError::Connect)?;
        std::future::poll_fn(|cx| {
            loop {
                let mut buffer = buffer.0.lock();
                let mut bytes = ReadBuf::new(&mut buffer);
                if ready!(Pin::new(&mut *io).poll_read(cx, &mut bytes)).is_err() {
                    return Poll::Ready(Err(PollError::Connect));
                }
                let bytes = bytes.filled();
                if bytes.is_empty() {
                    return Poll::Ready(response.close());
                }
                // Past the last wanted series this costs nothing; the rest is only taken off the connection.
                match response.feed(bytes, target.max_page, |data| reading.feed(plan, data)) {
                    Ok(false) => {}
                    Ok(true) => return Poll::Ready(Ok(())),
                    Err(cause) => return Poll::Ready(Err(cause)),
                }
            }
        })
        .await
    }

    /// Keeps the connection if it can be used again.
    fn close(&mut self, io: Io, outcome: Result<(), PollError>, reading: &mut Reading) -> Result<(), PollError> {
        outcome?;
        if self.response.is_reusable() {
            self.kept = Some(io);
        }
        if reading.finish() { Err(PollError::Parse) } else { Ok(()) }
    }
}

/// Whether a kept connection is as it was left: a server that closed it, or that speaks unasked, has
/// something to read. Costs no call into the kernel where nothing has come.
async fn is_quiet(io: &mut Io) -> bool {
    std::future::poll_fn(|cx| {
        let mut byte = [0];
        Poll::Ready(Pin::new(&mut *io).poll_read(cx, &mut ReadBuf::new(&mut byte)).is_pending())
    })
    .await
}

async fn connect(target: &Target) -> Result<Io, PollError> {
    let open = async || -> io::Result<Io> {
        let tcp = TcpStream::connect(target.address).await?;
        // Without it a request that spans two segments waits for a delayed acknowledgement.
        tcp.set_nodelay(true)?;
        let io: Io = match &target.tls {
            None => Box::new(tcp),
            Some((connector, name)) => Box::new(connector.connect(name.clone(), tcp).await?),
        };
        Ok(io)
    };
    open().await.map_err(|_| PollError::Connect)
}
