//! What the edge asks of the rest of the picker, in domain types: decide, observe, end.
//!
//! The director implements these traits; tests implement them with a few lines. The edge promises
//! the order `request_headers` (at most once), `submit` (at most once; then `poll_held` until it is ready), `response_headers` (at most once), `response_body` (any number,
//! at most once with `end`), and `end` exactly once and last, on every path: cancel, panic, drop.

use std::borrow::Cow;
use std::task::{Context, Poll};

use bytes::Bytes;
use smallvec::SmallVec;

use super::subset::SubsetHint;
use crate::domain::{Headers, Outcome, Rejection, Served};

/// A header to set: name in lower case, value as bytes.
pub type SetHeader = (Cow<'static, str>, Bytes);

/// A request that is complete: headers, body and what the data plane allows.
#[derive(Clone, Debug, Default)]
pub struct CompleteRequest {
    /// Request headers, pseudo-headers included where the data plane sends them.
    pub headers: Headers,
    /// The body as one piece; empty if there is none.
    pub body: Bytes,
    /// Whether the request may carry a body: false when its headers ended it.
    pub has_body: bool,
    /// The endpoints allowed; `None` is no restriction.
    pub subset: Option<SubsetHint>,
    /// Whether the data plane waits for the answer without a time limit (protocol 3.2: FULL_DUPLEX_STREAMED has none).
    pub may_wait: bool,
}

/// Where a request goes and what changes on the way.
#[derive(Clone, Debug, Default)]
pub struct Route {
    /// `ip:port`, `[v6]:port`, or an ordered comma list without blanks; never empty.
    pub destination: Box<str>,
    /// Further request headers: those of plugins, trace context, and `x-request-id` if it was made here.
    pub set_headers: Vec<SetHeader>,
    /// The new body in pieces when it was rewritten; `None` sends the bytes that came.
    pub body: Option<SmallVec<[Bytes; 3]>>,
    /// Scores for the metadata key `x-gateway-destination-endpoint-scores`; empty leaves it out.
    pub scores: Vec<(Box<str>, f64)>,
}

/// Opens one [`Exchange`] per ext_proc stream.
pub trait Exchanges: Send + Sync + 'static {
    /// The state of one request and its response.
    type Exchange: Exchange;

    /// Called at the first message of a stream.
    fn open(&self) -> Self::Exchange;
}

/// One request and its response, as the data plane reports them.
pub trait Exchange: Send + 'static {
    /// The request's headers have come: enough to name it if nothing else follows.
    fn request_headers(&mut self, _headers: &Headers) {}

    /// The edge refuses the request by itself (too large, malformed, stopping); `end` follows. Not called for
    /// what `decide` refused.
    fn refused(&mut self, _rejection: &Rejection) {}

    /// Chooses where the request goes. Pure CPU; large bodies are decided off the I/O threads.
    fn decide(&mut self, request: CompleteRequest) -> Result<Route, Rejection>;

    /// Chooses as [`decide`](Self::decide) does, or keeps the request until it may go: `None`, after which
    /// [`poll_held`](Self::poll_held) tells. Called instead of `decide` by the edge.
    fn submit(&mut self, request: CompleteRequest) -> Option<Result<Route, Rejection>> {
        Some(self.decide(request))
    }

    /// What became of a request that `submit` kept. Whatever comes of the response meanwhile, and `end`, gives it up.
    fn poll_held(&mut self, _cx: &mut Context<'_>) -> Poll<Result<Route, Rejection>> {
        Poll::Pending
    }

    /// The response's headers: `status` is 0 when the data plane sent none, `served` what it reports
    /// of the endpoint, `end` whether no body follows. Returns headers to add to the response. Also called
    /// for answers that the data plane made itself.
    fn response_headers(&mut self, status: u16, headers: Headers, served: &Served, end: bool) -> Vec<SetHeader>;

    /// A piece of the response body; `end` on the last, which may be empty. `Some` passes these pieces on in
    /// place of the chunk (possibly none, when something must be held back); `None` passes the chunk. Where
    /// the data plane buffers the response it cannot be changed, and the result is ignored.
    fn response_body(&mut self, chunk: &Bytes, end: bool) -> Option<SmallVec<[Bytes; 3]>>;

    /// How it ended.
    fn end(&mut self, outcome: Outcome);
}
