//! From a request that is understood to its decision: at once, or after it was held.
//!
//! [`Director::submit`] is what an exchange and a replay have in common: both bring an
//! [`InferenceRequest`], and go on with what was [`Committed`] for it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::Director;
use crate::domain::{Decision, InferenceRequest, Rejection, Signals, Timestamp};
use crate::extproc::SubsetHint;
use crate::scheduling::plugin::Watch;

/// A decision that was committed.
pub struct Committed {
    /// The choice.
    pub decision: Decision,
    /// What it was made on.
    pub signals: Signals,
    /// Who follows the request to its end.
    pub watches: Vec<Box<dyn Watch>>,
}

/// A request with what became of it.
pub type Decided = (InferenceRequest, Result<Committed, Rejection>);

/// The answer to [`Director::submit`].
pub enum Submitted {
    /// Decided at once.
    Decided(Box<Decided>),
    /// Held: complete when it was sent. Dropping it gives its place up.
    Held(Held),
}

/// The place of a request in the queue.
pub struct Held {}

impl Future for Held {
    type Output = Box<Decided>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Pending
    }
}

impl Director {
    /// Decides for `request`, or holds it if that is better and `may_wait`.
    pub fn submit(
        self: &Arc<Self>,
        request: InferenceRequest,
        subset: Option<&SubsetHint>,
        _may_wait: bool,
    ) -> Submitted {
        let result = self.route(&request, subset, None);
        Submitted::Decided(Box::new((request, result)))
    }

    /// Sends what is held and may go now. To be called after arrivals, first tokens, ends, and at the time that
    /// the last call returned; `None` if nothing is held.
    pub fn plan(&self) -> Option<Timestamp> {
        None
    }
}
