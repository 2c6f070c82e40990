//! Load: closed loop (so many requests at once) and open loop (so many a second, whatever comes back).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::{Connection, Requests};
use super::process::Server;

/// What a run found.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Requests that were completed.
    pub requests: u64,
    /// Wall time.
    pub took: Duration,
    /// CPU time of the server.
    pub cpu: Duration,
    /// Time from the last body byte to the pick, sorted, microseconds.
    pub decisions: Vec<u32>,
}

impl Run {
    /// CPU microseconds per request.
    pub fn cpu_per_request(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.requests.max(1) as f64
    }

    /// Requests per second.
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.took.as_secs_f64()
    }

    /// A quantile of the decision time in microseconds.
    pub fn decision(&self, quantile: f64) -> f64 {
        let at = (self.decisions.len() as f64 * quantile) as usize;
        self.decisions.get(at.min(self.decisions.len().saturating_sub(1))).map_or(f64::NAN, |us| f64::from(*us))
    }
}

/// Connections to one server and the numbers of their requests.
pub struct Load {
    connections: Vec<Connection>,
    next: Rc<Cell<u64>>,
}

impl Load {
    /// Opens `count` connections, waiting for the server to come up.
    pub async fn connect(server: &mut Server, count: usize) -> Self {
        let mut connections = Vec::new();
        while connections.len() < count {
            match Connection::open(server.address).await {
                Ok(connection) => connections.push(connection),
                Err(error) => {
                    assert!(!server.has_ended(), "the server ended: {error}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        Self { connections, next: Rc::default() }
    }

    fn number(&self) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        number
    }

    /// The connection whose turn it is.
    pub fn connection(&self, turn: usize) -> &Connection {
        &self.connections[turn % self.connections.len()]
    }

    /// `at_once` requests at any time, for `time`.
    pub async fn closed(&self, server: &Server, requests: &Arc<Requests>, at_once: usize, time: Duration) -> Run {
        let found = Rc::new(RefCell::new(Vec::new()));
        let (cpu, started) = (server.cpu(), Instant::now());
        let workers: Vec<_> = (0..at_once)
            .map(|worker| {
                let connection = self.connection(worker).clone();
                let (found, next, requests) = (Rc::clone(&found), Rc::clone(&self.next), Arc::clone(requests));
                tokio::task::spawn_local(async move {
                    while started.elapsed() < time {
                        let number = next.replace(next.get() + 1);
                        let took = connection.exchange(&requests, number).await.expect("an answered request");
                        found.borrow_mut().push(took);
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.await.expect("no panic");
        }
        finished(server, cpu, started, &found)
    }

    /// `rate` requests a second, evenly, for `time`. The generator spins, since timers are too coarse.
    pub async fn open(&self, server: &Server, requests: &Arc<Requests>, rate: f64, time: Duration) -> Run {
        let found = Rc::new(RefCell::new(Vec::new()));
        let (cpu, started) = (server.cpu(), Instant::now());
        let mut workers = Vec::new();
        let planned = (rate * time.as_secs_f64()) as usize;
        for turn in 0..planned {
            let due = Duration::from_secs_f64(turn as f64 / rate);
            while started.elapsed() < due {
                tokio::task::yield_now().await;
            }
            let (connection, number) = (self.connection(turn).clone(), self.number());
            let (found, requests) = (Rc::clone(&found), Arc::clone(requests));
            workers.push(tokio::task::spawn_local(async move {
                let took = connection.exchange(&requests, number).await.expect("an answered request");
                found.borrow_mut().push(took);
            }));
        }
        for worker in workers {
            worker.await.expect("no panic");
        }
        finished(server, cpu, started, &found)
    }
}

fn finished(server: &Server, cpu: Duration, started: Instant, found: &RefCell<Vec<Duration>>) -> Run {
    let took = started.elapsed();
    let cpu = server.cpu() - cpu;
    let micros = |d: Duration| u32::try_from(d.as_micros()).unwrap_or(u32::MAX);
    let mut decisions: Vec<u32> = found.borrow().iter().copied().map(micros).collect();
    decisions.sort_unstable();
    Run { requests: decisions.len() as u64, took, cpu, decisions }
}
