//! The drain handle of the edge: who may still come in, and when waiting ends.
//!
//! Three steps, each only when told: open, refuse new streams (those that run continue), force (those that
//! remain are ended). The order of shutdown is the business of whoever holds the [`DrainControl`].

use std::future::Future;

use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Open,
    Refusing,
    Forced,
}

/// Tells the streams to drain. Dropping it changes nothing.
#[derive(Debug)]
pub struct DrainControl(watch::Sender<Phase>);

/// What a service looks at; cheap to clone.
#[derive(Clone, Debug)]
pub struct DrainSignal(watch::Receiver<Phase>);

/// A control and its signal, open.
pub fn channel() -> (DrainControl, DrainSignal) {
    let (sender, receiver) = watch::channel(Phase::Open);
    (DrainControl(sender), DrainSignal(receiver))
}

impl DrainControl {
    /// New streams are refused with 503 `rejected-shutting-down`; open ones continue.
    pub fn refuse_new(&self) {
        self.raise(Phase::Refusing);
    }

    /// Open streams end now, too.
    pub fn force(&self) {
        self.raise(Phase::Forced);
    }

    fn raise(&self, to: Phase) {
        self.0.send_if_modified(|phase| {
            let raised = *phase < to;
            *phase = (*phase).max(to);
            raised
        });
    }
}

impl DrainSignal {
    /// Whether a stream that begins now is refused.
    pub fn refuses_new(&self) -> bool {
        *self.0.borrow() >= Phase::Refusing
    }

    /// Completes when waiting ends; never, if the control is gone.
    pub fn forced(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut receiver = self.0.clone();
        async move {
            if receiver.wait_for(|phase| *phase == Phase::Forced).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
