//! The guard around an [`Exchange`]: its `end` runs exactly once on every path, and its panics stop here.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll};

use bytes::Bytes;
use smallvec::SmallVec;

use super::exchange::{CompleteRequest, Exchange, Route, SetHeader};
use crate::domain::{Headers, Outcome, Rejection, Served};

/// An exchange that has not ended. Dropping it ends it as a disconnect: the only way that nobody ends it in
/// words is that its stream went away, perhaps while a decision ran on another thread.
#[derive(Debug)]
pub struct Live<X: Exchange>(Option<X>);

impl<X: Exchange> Live<X> {
    pub fn new(exchange: X) -> Self {
        Self(Some(exchange))
    }

    /// Shows the request headers.
    pub fn request_headers(&mut self, headers: &Headers) {
        self.guarded("request_headers", |exchange| exchange.request_headers(headers));
    }

    /// Tells of a refusal that the exchange did not make.
    pub fn refused(&mut self, rejection: &Rejection) {
        self.guarded("refused", |exchange| exchange.refused(rejection));
    }

    /// Decides, or holds. `None` if the exchange panicked.
    pub fn submit(&mut self, request: CompleteRequest) -> Option<Option<Result<Route, Rejection>>> {
        self.guarded("submit", |exchange| exchange.submit(request))
    }

    /// What became of a request that is held. `None` if the exchange panicked.
    pub fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Route, Rejection>>> {
        match self.guarded("poll_held", |exchange| exchange.poll_held(cx)) {
            Some(polled) => polled.map(Some),
            None => Poll::Ready(None),
        }
    }

    /// Shows the response headers. A panic costs the observation, not the response: the exchange ends as
    /// an internal error and the response passes unobserved.
    pub fn response_headers(&mut self, status: u16, headers: Headers, served: &Served, end: bool) -> Vec<SetHeader> {
        let added =
            self.guarded("response_headers", |exchange| exchange.response_headers(status, headers, served, end));
        added.unwrap_or_else(|| {
            self.end(Outcome::InternalError);
            Vec::new()
        })
    }

    /// Shows a piece of the response and returns what to pass on in its place, if anything; panics as in
    /// [`Live::response_headers`].
    pub fn response_body(&mut self, chunk: &Bytes, end: bool) -> Option<SmallVec<[Bytes; 3]>> {
        self.0.as_ref()?;
        let shown = self.guarded("response_body", |exchange| exchange.response_body(chunk, end));
        if shown.is_none() {
            self.end(Outcome::InternalError);
        }
        shown.flatten()
    }

    /// Ends the exchange, the first time.
    pub fn end(&mut self, outcome: Outcome) {
        if let Some(mut exchange) = self.0.take() {
            // The exchange is dropped inside, so that a panic of its own drop is caught as well.
            let ended = catch_unwind(AssertUnwindSafe(move || exchange.end(outcome)));
            if ended.is_err() {
                tracing::error!(outcome = outcome.as_str(), "the exchange panicked in end");
            }
        }
    }

    fn guarded<T>(&mut self, what: &'static str, call: impl FnOnce(&mut X) -> T) -> Option<T> {
        let exchange = self.0.as_mut()?;
        let result = catch_unwind(AssertUnwindSafe(|| call(exchange)));
        if result.is_err() {
            tracing::error!(what, "the exchange panicked");
        }
        result.ok()
    }
}

impl<X: Exchange> Drop for Live<X> {
    fn drop(&mut self) {
        self.end(Outcome::ClientDisconnect);
    }
}
