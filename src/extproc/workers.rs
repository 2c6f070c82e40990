//! The threads that serve ext_proc connections: one runtime per thread, and a connection stays where it was put.
//!
//! Against one runtime whose threads steal from each other this takes the synchronisation out of every wake-up
//! and keeps a stream's data in one core's cache. A data plane opens a connection per worker thread of its own, so
//! there is enough to distribute: each new connection goes to the thread with the fewest. What it gives up:
//! the streams of one connection share one core. Everything else in the process runs on another runtime
//! and cannot delay a decision but by taking the core.
//!
//! Rejected: a listener per thread with SO_REUSEPORT (the kernel hashes a handful of connections onto threads
//! unevenly, and a second picker on the port would be an error that nobody sees).

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Large bodies that a thread has decided beside it at a time; further ones wait, as the cores are busy with these.
const LARGE_BODIES: usize = 2;

/// Starts a connection on the thread that runs it.
type Start = Box<dyn FnOnce() + Send>;

/// The threads. They end when this is dropped, and with them what they still run.
#[derive(Debug, Default)]
pub struct Workers(Vec<Worker>);

#[derive(Debug)]
struct Worker {
    starts: mpsc::UnboundedSender<Start>,
    connections: Arc<AtomicUsize>,
}

/// Counts a connection of a thread while it lives.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts `count` threads. With none, connections run on the runtime that accepts them.
    ///
    /// # Errors
    /// The system gives no thread or no event queue.
    pub fn start(count: usize) -> io::Result<Self> {
        (0..count).map(Worker::start).collect::<io::Result<_>>().map(Self)
    }

    /// Runs a connection on the thread that has the fewest.
    pub(super) fn run<F>(&self, stream: TcpStream, connection: impl FnOnce(TcpStream) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Some(worker) = self.0.iter().min_by_key(|worker| worker.connections.load(Ordering::Relaxed)) else {
            tokio::spawn(connection(stream));
            return;
        };
        // A socket belongs to the event queue of one runtime.
        let stream = match stream.into_std() {
            Ok(stream) => stream,
            Err(error) => return tracing::warn!(%error, "cannot hand a connection over"),
        };
        worker.connections.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(Arc::clone(&worker.connections));
        let start = Box::new(move || match TcpStream::from_std(stream) {
            Ok(stream) => {
                let connection = connection(stream);
                tokio::spawn(async move {
                    connection.await;
                    drop(counted);
                });
            }
            Err(error) => tracing::warn!(%error, "cannot take a connection over"),
        });
        // Cannot happen while the threads live, and they live as long as this; if one has ended after all, its
        // count stays high, so that it attracts no more.
        if worker.starts.send(start).is_err() {
            worker.connections.store(usize::MAX / 2, Ordering::Relaxed);
            tracing::error!("a thread of the ext_proc port has ended; a connection is lost");
        }
    }
}

impl Worker {
    fn start(number: usize) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name(format!("large-body-{number}"))
            .max_blocking_threads(LARGE_BODIES)
            .build()?;
        let (starts, mut coming) = mpsc::unbounded_channel::<Start>();
        std::thread::Builder::new().name(format!("ext-proc-{number}")).spawn(move || {
            runtime.block_on(async {
                while let Some(start) = coming.recv().await {
                    start();
                }
            });
            // Not waited for: a decision that still runs elsewhere has nobody to answer to.
            runtime.shutdown_background();
        })?;
        Ok(Self { starts, connections: Arc::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn connections_are_spread_and_stay_on_their_thread() {
        let workers = Workers::start(3).expect("threads");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (seen, mut threads) = mpsc::unbounded_channel();
        let mut clients = Vec::new();
        for _ in 0..6 {
            clients.push(TcpStream::connect(address).await.expect("connects"));
            let (stream, _) = listener.accept().await.expect("accepts");
            let seen = seen.clone();
            workers.run(stream, move |mut stream| async move {
                let before = std::thread::current().id();
                // Until the client goes.
                let _ = stream.read(&mut [0; 1]).await;
                seen.send((before, std::thread::current().id())).expect("the test waits");
            });
        }
        let open: Vec<usize> = workers.0.iter().map(|w| w.connections.load(Ordering::Relaxed)).collect();
        assert_eq!(open, [2, 2, 2]);
        drop(clients);
        let mut ids = Vec::new();
        for _ in 0..6 {
            let (before, after) = threads.recv().await.expect("a connection ended");
            assert_eq!(before, after);
            assert_ne!(before, std::thread::current().id());
            ids.push(format!("{before:?}"));
        }
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 3);
    }
}
