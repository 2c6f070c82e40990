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
        match reply(&path) {
            Reply::Page(page) => {
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

#[tokio::test]
async fn a_good_page_is_reported_over_one_kept_connection() {
    let server = Server::start(page).await;
    let mut rig = Rig::one(settings(), server.address);
    for _ in 0..20 {
        match rig.event().await {
            Event::Sample(slot, generation, sample) => {
                assert_eq!((slot, generation, values(&sample)), (Slot(0), 1, GOOD));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    rig.end().await;
}

#[tokio::test]
async fn the_age_of_the_last_sample_shows_that_polls_fail() {
    let polls = AtomicUsize::new(0);
    let server =
        Server::start(move |p| if polls.fetch_add(1, Ordering::SeqCst) < 3 { page(p) } else { Reply::Status(500) })
            .await;
    let mut rig = Rig::one(settings(), server.address);
    rig.clock.advance(Duration::from_secs(3));
    let mut last = Timestamp::default();
    loop {
        match rig.event().await {
            Event::Sample(_, _, sample) => last = sample.taken_at,
            Event::Failed(_, _, cause) => break assert_eq!(cause, PollError::Status),
        }
    }
    assert_eq!(last, Timestamp::from_millis(3000));
    rig.clock.advance(Duration::from_secs(2));
    for _ in 0..3 {
        assert_eq!(rig.failure().await, PollError::Status);
    }
    rig.end().await;
}

#[tokio::test]
async fn pages_of_other_kinds_are_parse_errors() {
    for body in
        ["<html><body>Hello</body></html>", "<html>\nup 1\n</html>\n", "{\"detail\":\"x\"}", "\u{0}\u{1}\n\u{fffd}x"]
    {
        assert_eq!(fails(settings(), |_| Reply::Page(body.into())).await, PollError::Parse, "{body}");
    }
    let raw = |text: &str| {
        let bytes = text.as_bytes().to_vec();
        move |_: &str| Reply::Raw(bytes.clone())
    };
    assert_eq!(fails(settings(), raw("SSH-2.0-OpenSSH_9.2\r\n")).await, PollError::Parse);
    let gzip = "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n\x1f\x1f";
    assert_eq!(fails(settings(), raw(gzip)).await, PollError::Parse);
    assert_eq!(fails(settings(), |_| Reply::Page(String::new())).await, PollError::MissingFamily);
    assert_eq!(fails(settings(), |_| Reply::Page("up 1\n".into())).await, PollError::MissingFamily);
}

#[tokio::test]
async fn half_a_page_is_no_page() {
    let half = &PAGE[..PAGE.find("10.0").unwrap() + 1];
    // Announced longer than sent, and without any length, so that only the missing newline shows it.
    let announced = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{half}", PAGE.len()).into_bytes();
    assert_eq!(fails(settings(), move |_| Reply::Raw(announced.clone())).await, PollError::Connect);
    let chunked =
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{PAGE}\r\n", PAGE.len()).into_bytes();
    assert_eq!(fails(settings(), move |_| Reply::Raw(chunked.clone())).await, PollError::Connect);
    let until_close = format!("HTTP/1.0 200 OK\r\n\r\n{half}").into_bytes();
    assert_eq!(fails(settings(), move |_| Reply::Raw(until_close.clone())).await, PollError::Parse);
}

#[tokio::test]
async fn a_page_until_the_end_of_the_connection_counts() {
    let raw = format!("HTTP/1.0 200 OK\r\n\r\n{PAGE}").into_bytes();
    let server = Server::start(move |_| Reply::Raw(raw.clone())).await;
    let mut rig = Rig::one(settings(), server.address);
    for _ in 0..3 {
        assert_eq!(values(&rig.sample().await), GOOD);
    }
    rig.end().await;
}

#[tokio::test]
async fn huge_pages_are_cut_off() {
    let mut small = settings();
    small.max_page = 64 * 1024;
    assert_eq!(fails(small.clone(), |_| Reply::Endless).await, PollError::TooLarge);
    let gigabyte = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n".to_vec();
    assert_eq!(fails(settings(), move |_| Reply::Raw(gigabyte.clone())).await, PollError::TooLarge);
    let head = [b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'x'; 100 * 1024]].concat();
    assert_eq!(fails(small, move |_| Reply::Raw(head.clone())).await, PollError::Parse);
}

#[tokio::test]
async fn a_missing_or_infinite_value_is_no_value() {
    let text = PAGE.replace("10.0", "NaN").replace("0.5", "+Inf");
    let server = Server::start(move |_| Reply::Page(text.clone())).await;
    let mut rig = Rig::one(settings(), server.address);
    assert_eq!(values(&rig.sample().await), (None, Some(4.0), None));
    rig.end().await;
}

#[tokio::test]
async fn errors_of_the_server_and_of_the_way_there_are_told_apart() {
    for status in [404, 500, 302, 204] {
        assert_eq!(fails(settings(), move |_| Reply::Status(status)).await, PollError::Status, "{status}");
    }
    let mut hasty = settings();
    hasty.timeout = Duration::from_millis(30);
    assert_eq!(fails(hasty, |_| Reply::Hang).await, PollError::Timeout);
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut rig = Rig::one(settings(), nobody);
    assert_eq!(rig.failure().await, PollError::Connect);
    rig.end().await;
}

#[tokio::test]
async fn a_connection_that_the_server_closed_is_replaced_without_a_failure() {
    let raw = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{PAGE}", PAGE.len()).into_bytes();
    // Says nothing of closing, and closes after every answer.
    let server = Server::start(move |_| Reply::Raw(raw.clone())).await;
    let mut rig = Rig::one(settings(), server.address);
    for _ in 0..10 {
        assert_eq!(values(&rig.sample().await), GOOD);
    }
    assert!(server.connections.load(Ordering::SeqCst) >= 10);
    rig.end().await;
}

#[tokio::test]
async fn a_failing_endpoint_recovers() {
    let polls = AtomicUsize::new(0);
    let flaky = move |p: &str| if polls.fetch_add(1, Ordering::SeqCst) % 6 < 2 { Reply::Status(503) } else { page(p) };
    let server = Server::start(flaky).await;
    let mut rig = Rig::one(settings(), server.address);
    let (mut good, mut bad) = (0, 0);
    while good < 6 || bad < 2 {
        match rig.event().await {
            Event::Sample(_, _, sample) => {
                assert_eq!(values(&sample), GOOD);
                good += 1;
            }
            Event::Failed(_, _, cause) => {
                assert_eq!(cause, PollError::Status);
                bad += 1;
            }
        }
    }
    rig.end().await;
}

#[tokio::test]
async fn only_the_wanted_families_are_asked_for() {
    let mut server = Server::start(|path| Reply::Page(honest(PAGE, path))).await;
    let mut rig = Rig::one(settings(), server.address);
    assert_eq!(values(&rig.sample().await), GOOD);
    for _ in 0..5 {
        let path = server.asked().await;
        assert!(path.starts_with("/metrics?name%5B%5D=vllm%3Anum_requests_waiting&"), "{path}");
    }
    rig.end().await;
}

#[tokio::test]
async fn a_server_that_loses_a_family_when_filtering_is_asked_for_the_whole_page() {
    let lossy = |path: &str| {
        Reply::Page(if path.contains('?') { "vllm:num_requests_running 4.0\n".into() } else { PAGE.into() })
    };
    let refusing = |path: &str| if path.contains('?') { Reply::Status(400) } else { page(path) };
    let garbling = |path: &str| if path.contains('?') { Reply::Page("<html>".into()) } else { page(path) };
    let servers = [Server::start(lossy).await, Server::start(refusing).await, Server::start(garbling).await];
    for mut server in servers {
        let mut rig = Rig::one(settings(), server.address);
        for _ in 0..6 {
            assert_eq!(values(&rig.sample().await), GOOD, "from the first poll on");
        }
        assert!(server.asked().await.contains('?'));
        for _ in 0..5 {
            assert_eq!(server.asked().await, "/metrics");
        }
        rig.end().await;
    }
}

#[tokio::test]
async fn a_family_that_the_server_does_not_have_is_looked_for_once() {
    let without = PAGE.replace("vllm:kv_cache_usage_perc", "vllm:something_else");
    let mut server = Server::start(move |path| Reply::Page(honest(&without, path))).await;
    let mut rig = Rig::one(settings(), server.address);
    for _ in 0..10 {
        assert_eq!(values(&rig.sample().await), (Some(10.0), Some(4.0), None));
    }
    let mut whole = 0;
    for _ in 0..10 {
        whole += usize::from(server.asked().await == "/metrics");
    }
    assert_eq!(whole, 1);
    rig.end().await;
}

#[tokio::test]
async fn endpoints_come_and_go_with_the_topology() {
    let (mut a, b) = (Server::start(page).await, Server::start(page).await);
    let mut rig = Rig::start(settings(), topology(1, &[]));
    rig.topology.send_replace(topology(2, &[(0, 1, a.address, "")]));
    rig.sample().await;
    rig.topology.send_replace(topology(3, &[(0, 2, b.address, ""), (3, 3, a.address, "sglang")]));
    let mut seen = BTreeSet::new();
    while seen.len() < 2 {
        match rig.event().await {
            Event::Sample(slot, generation, _) => {
                if generation != 1 {
                    assert_eq!((slot, generation), (Slot(0), 2));
                    seen.insert(2);
                }
            }
            Event::Failed(slot, generation, cause) => {
                let wanted = (Slot(3), 3, PollError::MissingFamily);
                assert_eq!((slot, generation, cause), wanted, "sglang's names are not on vLLM's page");
                seen.insert(3);
            }
        }
    }
    while let Ok(path) = a.requests.try_recv() {
        assert!(path.contains("vllm") || path.contains("sglang") || path == "/metrics");
    }
    rig.topology.send_replace(topology(4, &[]));
    // The last tasks are gone when no event comes for many intervals.
    soon(async { while timeout(Duration::from_millis(100), rig.events.recv()).await.is_ok() {} }).await;
    rig.end().await;
}

#[tokio::test]
async fn a_dead_endpoint_delays_no_other() {
    let (good, dead) = (Server::start(page).await, Server::start(|_| Reply::Hang).await);
    let mut slow = settings();
    slow.timeout = Duration::from_secs(60);
    let mut rig = Rig::start(slow, topology(1, &[(0, 1, dead.address, ""), (1, 2, good.address, "")]));
    for _ in 0..20 {
        match rig.event().await {
            Event::Sample(Slot(1), 2, sample) => assert_eq!(values(&sample), GOOD),
            other => panic!("{other:?}"),
        }
    }
    rig.end().await;
}

#[tokio::test]
async fn a_task_that_panics_is_started_again() {
    /// Panics at the first sample.
    struct Panicking(std::sync::atomic::AtomicBool, UnboundedSender<u64>);

    impl SampleSink for Panicking {
        fn report(&self, _: Slot, generation: u64, _: LoadSample) {
            assert!(self.0.swap(true, Ordering::SeqCst), "a defect");
            let _ = self.1.send(generation);
        }

        fn poll_failed(&self, _: Slot, _: u64, _: PollError) {}
    }

    let server = Server::start(page).await;
    let (_topology, seen) = watch::channel(topology(1, &[(0, 1, server.address, "")]));
    let (stop, stopped) = watch::channel(false);
    let (sender, mut reports) = unbounded_channel();
    let sink = Arc::new(Panicking(std::sync::atomic::AtomicBool::new(false), sender));
    let task = tokio::spawn(run(settings(), seen, sink, Arc::new(ManualClock::default()), stopping(stopped)));
    assert_eq!(soon(reports.recv()).await, Some(1));
    assert_eq!(server.connections.load(Ordering::SeqCst), 2);
    stop.send(true).unwrap();
    soon(task).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_port_of_the_page_may_differ_from_that_of_inference() {
    let mut server = Server::start(page).await;
    let mut other = settings();
    other.port = Some(server.address.port());
    other.path = "/custom?format=text".into();
    let mut rig = Rig::one(other, SocketAddr::new(server.address.ip(), 1));
    assert_eq!(values(&rig.sample().await), GOOD);
    assert!(server.asked().await.starts_with("/custom?format=text&name"));
    rig.end().await;
}

#[tokio::test]
async fn nothing_wanted_means_no_connection() {
    let server = Server::start(page).await;
    let mut idle = settings();
    idle.wanted.clear();
    let mut rig = Rig::one(idle, server.address);
    let nothing = timeout(Duration::from_millis(50), rig.events.recv()).await;
    assert!(!matches!(nothing, Ok(Some(_))));
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
    rig.end().await;
}

#[tokio::test]
async fn it_ends_when_the_sender_of_the_stop_signal_is_gone() {
    let rig = Rig::one(settings(), Server::start(page).await.address);
    drop(rig.stop);
    soon(rig.task).await.unwrap().unwrap();
}

/// A server with a certificate of its own making, and the file that vouches for it.
async fn tls_server(directory: &std::path::Path) -> (SocketAddr, PathBuf) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let ca = directory.join("ca.pem");
    std::fs::write(&ca, made.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, (log, _)) = (acceptor.clone(), unbounded_channel());
            tokio::spawn(async move { serve(acceptor.accept(stream).await.ok()?, Arc::new(page), log).await });
        }
    });
    (address, ca)
}

#[tokio::test]
async fn https_is_verified_only_when_asked() {
    let directory = tempfile::tempdir().unwrap();
    let (address, ca) = tls_server(directory.path()).await;
    let stranger = tempfile::tempdir().unwrap();
    let (_, other_ca) = tls_server(stranger.path()).await;
    let mut https = settings();
    https.scheme = Scheme::Https;
    let verified = |ca: PathBuf| Settings { insecure_skip_verify: false, ca_cert: Some(ca), ..https.clone() };
    for good in [https.clone(), verified(ca.clone())] {
        let mut rig = Rig::one(good, address);
        assert_eq!(values(&rig.sample().await), GOOD);
        assert_eq!(values(&rig.sample().await), GOOD);
        rig.end().await;
    }
    let mut rig = Rig::one(verified(other_ca), address);
    assert_eq!(rig.failure().await, PollError::Connect);
    rig.end().await;
}

#[tokio::test]
async fn an_unusable_certificate_file_stops_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty.pem");
    std::fs::write(&empty, "nothing here").unwrap();
    for path in [directory.path().join("absent.pem"), empty] {
        let wrong =
            Settings { scheme: Scheme::Https, insecure_skip_verify: false, ca_cert: Some(path.clone()), ..settings() };
        let rig = Rig::one(wrong, "127.0.0.1:1".parse().unwrap());
        let error = soon(rig.task).await.unwrap().unwrap_err().to_string();
        assert!(error.contains("caCertPath") && error.contains(path.to_str().unwrap()), "{error}");
    }
}

#[test]
fn attributes_that_nobody_fills_are_named() {
    let mut settings = settings();
    settings.wanted.insert(Metric::Attribute("deferred".into()));
    assert_eq!(settings.unknown_attributes().collect::<Vec<_>>(), ["deferred"]);
    settings.engines[0].attributes.insert("deferred".into(), MetricSpec::parse("x").unwrap());
    assert_eq!(settings.unknown_attributes().count(), 0);
}

#[test]
fn causes_have_distinct_labels() {
    let labels: BTreeSet<_> = PollError::ALL.iter().map(|c| c.as_str()).collect();
    assert_eq!(labels.len(), PollError::ALL.len());
}
