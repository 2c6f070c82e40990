//! The collector against servers on loopback that behave well, badly and very badly.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;

use super::*;
use crate::domain::{EndpointSpec, PoolIdentity, Timestamp};
use crate::lifecycle::clock::ManualClock;

mod answers;
mod filter;
mod pace;
mod tls;
mod topology;

const PAGE: &str = "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine=\"0\"} 4.0\n\
    # TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{engine=\"0\"} 10.0\n\
    # TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{engine=\"0\"} 0.5\n\
    # TYPE other gauge\nother 1.0\n";

/// What a server does with a request.
enum Reply {
    /// 200 with this page, connection kept.
    Page(String),
    /// A status without a page, connection kept.
    Status(u16),
    /// These bytes, then the end of the connection.
    Raw(Vec<u8>),
    /// A page that never ends.
    Endless,
    /// This page after a while, connection kept.
    Later(Duration, String),
    /// Nothing, for ever.
    Hang,
}

/// A server and what it was asked.
struct Server {
    address: SocketAddr,
    requests: UnboundedReceiver<String>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    async fn start(reply: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (log, requests) = unbounded_channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let (reply, count) = (Arc::new(reply), Arc::clone(&connections));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, Arc::clone(&reply), log.clone()));
            }
        });
        Self { address, requests, connections }
    }

    async fn asked(&mut self) -> String {
        soon(self.requests.recv()).await.unwrap()
    }
}

async fn serve<S, F>(mut stream: S, reply: Arc<F>, log: UnboundedSender<String>) -> Option<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    F: Fn(&str) -> Reply,
{
    let mut head = Vec::new();
    loop {
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let text = String::from_utf8(std::mem::take(&mut head)).unwrap();
        assert!(!text.to_lowercase().contains("accept-encoding"), "no compressed page is asked for");
        let path = text.split(' ').nth(1).unwrap().to_owned();
        let _ = log.send(path.clone());
        let head = |status: u16, length: usize| {
            format!("HTTP/1.1 {status} x\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n")
        };
        let reply = reply(&path);
        if let Reply::Later(delay, _) = reply {
            tokio::time::sleep(delay).await;
        }
        match reply {
            Reply::Page(page) | Reply::Later(_, page) => {
                stream.write_all(head(200, page.len()).as_bytes()).await.ok()?;
                stream.write_all(page.as_bytes()).await.ok()?;
            }
            Reply::Status(status) => stream.write_all(head(status, 0).as_bytes()).await.ok()?,
            Reply::Raw(bytes) => {
                stream.write_all(&bytes).await.ok()?;
                return stream.shutdown().await.ok();
            }
            Reply::Endless => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
                loop {
                    stream.write_all(&b"other_metric{a=\"b\"} 1\n".repeat(100)).await.ok()?;
                }
            }
            Reply::Hang => std::future::pending().await,
        }
    }
}

#[derive(Debug)]
enum Event {
    Sample(Slot, u64, LoadSample),
    Failed(Slot, u64, PollError),
}

struct Channel(UnboundedSender<Event>);

impl SampleSink for Channel {
    fn report(&self, slot: Slot, generation: u64, sample: LoadSample) {
        let _ = self.0.send(Event::Sample(slot, generation, sample));
    }

    fn poll_failed(&self, slot: Slot, generation: u64, cause: PollError) {
        let _ = self.0.send(Event::Failed(slot, generation, cause));
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.expect("nothing happened for 20 seconds")
}

/// A running collector.
struct Rig {
    topology: watch::Sender<Arc<Topology>>,
    events: UnboundedReceiver<Event>,
    clock: Arc<ManualClock>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<Result<(), TlsError>>,
}

fn settings() -> Settings {
    let wanted = BTreeSet::from([Metric::Waiting, Metric::Running, Metric::KvUsage]);
    let mut settings = Settings::resolve(&SourceParams::default(), &ExtractorParams::default(), wanted);
    settings.interval = Duration::from_millis(2);
    settings
}

fn topology(version: u64, endpoints: &[(u32, u64, SocketAddr, &str)]) -> Arc<Topology> {
    let mut slots = Vec::new();
    for (slot, generation, address, engine) in endpoints {
        let labels = match *engine {
            "" => BTreeMap::new(),
            engine => BTreeMap::from([(plugins::OLD_ENGINE_LABEL.to_owned(), engine.to_owned())]),
        };
        let spec = EndpointSpec {
            name: format!("pod-{slot}"),
            namespace: "default".into(),
            address: *address,
            rank: 0,
            incarnation: 0,
            labels,
        };
        slots.resize(slots.len().max(*slot as usize + 1), None);
        slots[*slot as usize] = Some(Arc::new(Endpoint::new(Slot(*slot), *generation, spec)));
    }
    Arc::new(Topology::new(version, PoolIdentity::default(), slots))
}

/// Completes when `stop` turns true or its sender is gone.
async fn stopping(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stopping| *stopping).await;
}

impl Rig {
    fn start(settings: Settings, first: Arc<Topology>) -> Self {
        let (topology, seen) = watch::channel(first);
        let (stop, stopped) = watch::channel(false);
        let (sender, events) = unbounded_channel();
        let clock = Arc::new(ManualClock::default());
        let task = tokio::spawn(run(settings, seen, Arc::new(Channel(sender)), clock.clone(), stopping(stopped)));
        Self { topology, events, clock, stop, task }
    }

    /// One endpoint in slot 0, generation 1.
    fn one(settings: Settings, address: SocketAddr) -> Self {
        Self::start(settings, topology(1, &[(0, 1, address, "")]))
    }

    async fn event(&mut self) -> Event {
        soon(self.events.recv()).await.expect("the collector ended")
    }

    async fn sample(&mut self) -> LoadSample {
        match self.event().await {
            Event::Sample(_, _, sample) => sample,
            failed @ Event::Failed(..) => panic!("{failed:?}"),
        }
    }

    async fn failure(&mut self) -> PollError {
        match self.event().await {
            Event::Failed(slot, generation, cause) => {
                assert_eq!((slot, generation), (Slot(0), 1));
                cause
            }
            sample @ Event::Sample(..) => panic!("{sample:?}"),
        }
    }

    async fn end(self) {
        self.stop.send(true).unwrap();
        soon(self.task).await.unwrap().unwrap();
    }
}

fn values(sample: &LoadSample) -> (Option<f32>, Option<f32>, Option<f32>) {
    (sample.waiting, sample.running, sample.kv_usage)
}

const GOOD: (Option<f32>, Option<f32>, Option<f32>) = (Some(10.0), Some(4.0), Some(0.5));

fn page(_: &str) -> Reply {
    Reply::Page(PAGE.into())
}

/// What prometheus_client does with `name[]`.
fn honest(page: &str, path: &str) -> String {
    let Some((_, query)) = path.split_once('?') else { return page.to_owned() };
    let names: Vec<_> = query.split('&').map(|p| p.replace("%3A", ":").replace("name%5B%5D=", "")).collect();
    let wanted = |line: &&str| {
        let line = line.trim_start_matches("# TYPE ");
        names.iter().any(|n| line.starts_with(n.as_str()))
    };
    page.lines().filter(wanted).flat_map(|l| [l, "\n"]).collect()
}

/// The cause of failure when the server does `reply` from the beginning.
async fn fails(settings: Settings, reply: impl Fn(&str) -> Reply + Send + Sync + 'static) -> PollError {
    let server = Server::start(reply).await;
    let mut rig = Rig::one(settings, server.address);
    let cause = rig.failure().await;
    assert_eq!(rig.failure().await, cause, "and again: a failed poll is not the last");
    rig.end().await;
    cause
}
