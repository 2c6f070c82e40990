//! The accept loop that the admin and health ports share: bounded connections, bounded lifetimes,
//! served until the drain forces.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::lifecycle::drain::DrainWatcher;

/// How long a connection may take to finish what it does once it was asked to stop.
const GRACE: Duration = Duration::from_secs(1);
/// Pause after a failed accept, which mostly means that file descriptors ran out.
const RETRY: Duration = Duration::from_millis(100);

/// Bounds of one port.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections; further ones are closed at once.
    pub connections: usize,
    /// Age at which a connection is asked to stop.
    pub lifetime: Duration,
    /// Time to the first byte from the peer.
    pub first_byte: Duration,
}

/// Completes when a connection must stop.
pub type Stop = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Accepts until the drain forces. `connection` serves one connection and ends it soon after its
/// [`Stop`] has completed; if it does not, it is cut.
pub async fn serve<F, C>(listener: TcpListener, limits: Limits, drain: DrainWatcher, connection: F)
where
    F: Fn(TcpStream, Stop) -> C + Send + Sync + 'static,
    C: Future<Output = ()> + Send + 'static,
{
    let connection = Arc::new(connection);
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.forced() => break,
            Some(_) = open.join_next(), if !open.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) if open.len() < limits.connections => {
                open.spawn(one(stream, limits, drain.clone(), Arc::clone(&connection)));
            }
            Ok(_) => tracing::warn!(limit = limits.connections, "too many connections, closing the newest"),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(RETRY).await;
            }
        }
    }
    // Each connection cuts itself after the grace.
    while open.join_next().await.is_some() {}
}

async fn one<F, C>(stream: TcpStream, limits: Limits, drain: DrainWatcher, connection: Arc<F>)
where
    F: Fn(TcpStream, Stop) -> C,
    C: Future<Output = ()>,
{
    let _ = stream.set_nodelay(true);
    // A connection that says nothing is not worth a protocol.
    let mut first = [0];
    let spoke = tokio::select! {
        spoke = timeout(limits.first_byte, stream.peek(&mut first)) => matches!(spoke, Ok(Ok(1..))),
        () = drain.forced() => false,
    };
    if !spoke {
        return;
    }
    let stop = async move {
        let _ = timeout(limits.lifetime, drain.forced()).await;
    }
    .shared();
    tokio::select! {
        () = connection(stream, Box::pin(stop.clone())) => {}
        () = async { stop.await; sleep(GRACE).await } => {}
    }
}
