//! One list and the watch that follows it, for as long as the process runs.
//!
//! A list is read in pages of [`PAGE`] objects, each reduced to its facts before the next page is asked
//! for, and delivered whole when it is complete. Then changes are delivered one by one. Every failure is
//! retried with a growing delay; what was delivered before stays true until something else is. Only a
//! watch that was good takes the delay back, and lets the same trouble be logged again: a list does not,
//! or a server that lists well and refuses every watch would be asked for lists without a pause.
//!
//! Resources that are optional may not keep the picker from being ready for ever, nor may it be ready
//! without them because the API server stumbled once. So [`Change::Unavailable`] is said at once where
//! they are forbidden, and otherwise after [`PATIENCE`]; and that the cluster does not have them counts
//! at the second look, [`ABSENT_AGAIN`] after the first.
//!
//! Bounds. A connection that is half open (the peer is gone and nobody said so) costs at most [`ANSWER`]
//! before an answer begins, [`PAGE_TIME`] for a page, and [`SILENCE`] on a watch: API servers send a
//! bookmark every minute, so a minute and a quarter without a word means that nobody is there. The watch
//! then goes on from where it was; the second time in a row it lists anew, because a server that was
//! restored from a backup waits in silence for a version that it has not reached. A line of a watch and
//! a page of a list have a largest size; a page that is larger is asked for again in smaller pages.
//!
//! Rejected: kube's `watcher`. It keeps bookmarks to itself, so nobody can tell how old the picture is;
//! it fails a whole page for one object that does not decode; and it notices a dead connection only
//! after the time that a watch may last.

mod wire;

use std::collections::HashSet;
use std::convert::Infallible;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use kube::api::{ListParams, WatchParams};
use kube::client::Body;
use kube::core::Request;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::lifecycle::clock::Clock;

use super::objects::{Headed, Object, Read};
use super::stats::{Reason, Resource, WatchState, WatchStats};
use super::{Cluster, GROUP_LLM_D, GROUP_V1ALPHA2, Stats};
use wire::{ApiResources, Failure, Line, Page, Status, chain, collect, decode};

/// Objects of one page of a list.
pub const PAGE: u32 = 250;
/// Most objects of a list that are kept: twice what a pool can hold, so that the pool says how many it refused.
const MAX_LISTED: usize = 2 * crate::pool::MAX_ENDPOINTS;
/// Largest page of a list, bytes.
const MAX_PAGE_BYTES: usize = 64 << 20;
/// Largest line of a watch, bytes; an object of the API has at most some 3 MB.
const MAX_LINE_BYTES: usize = 16 << 20;
/// Longest time until an answer begins.
pub const ANSWER: Duration = Duration::from_secs(15);
/// Longest time until a page is read.
pub const PAGE_TIME: Duration = Duration::from_secs(60);
/// Longest time without a word on a watch.
pub const SILENCE: Duration = Duration::from_secs(75);
/// How long the server is asked to keep a watch open, seconds; a random minute is added.
const WATCH_SECONDS: u32 = 240;
/// First delay after a failure.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// Longest delay after a failure.
pub const LAST_DELAY: Duration = Duration::from_secs(5);
/// A watch that lasted this long, or said something, was a good one: the delays begin anew, and trouble
/// is logged again.
const GOOD_WATCH: Duration = Duration::from_secs(5);
/// Time between two later looks for a resource that the cluster does not have, or does not let us see.
pub const ABSENT_RETRY: Duration = Duration::from_secs(30);
/// Time until the second look for a resource that the cluster does not have: a server that is just
/// starting does not have it for a moment.
pub const ABSENT_AGAIN: Duration = Duration::from_secs(1);
/// How long a watch fails, on a server that otherwise answers, until it says that there is nothing to
/// be had.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Attempts in a row to go on from where a watch was, after which the objects are listed anew; see the
/// module documentation.
const MAX_RESUMES: u32 = 10;
/// The same for watches that were silent.
const MAX_SILENCES: u32 = 2;
/// Most objects whose unreadability is remembered, so that it is logged once for each.
const MAX_REMEMBERED: usize = 1024;

/// What a watch delivers.
#[derive(Debug)]
pub enum Change<T> {
    /// This is all there is.
    Complete {
        /// What could be read and counts.
        objects: Vec<T>,
        /// How many objects could not be read.
        unreadable: usize,
    },
    /// This object is now so.
    Applied(T),
    /// The object of this name is gone, or does not count any more.
    Gone(String),
    /// There is no answer to be had, and none is likely soon: whoever waits for the first one should go
    /// on without. What was said before stays. This may be said many times.
    Unavailable,
}

/// Where the objects are.
#[derive(Clone, Debug)]
pub enum Place {
    /// At this path of the API, always.
    Path(String),
    /// In one of the groups that have had it, if the cluster has any: `llm-d.ai`, or the older
    /// `inference.networking.x-k8s.io` if only that is there.
    Optional {
        /// Namespace of the objects.
        namespace: String,
    },
}

/// What is to be watched, and for whom.
pub struct Watch<T: Object> {
    /// The API server.
    pub cluster: Cluster,
    /// What the objects are.
    pub resource: Resource,
    /// Where they are.
    pub place: Place,
    /// Label selector, in the text form of the API.
    pub labels: Option<String>,
    /// The only object that is wanted.
    pub only: Option<String>,
    /// What reading an object needs to know.
    pub scope: T::Scope,
    /// Counters.
    pub stats: Arc<Stats>,
    /// For the time when the server was last heard.
    pub clock: Arc<dyn Clock>,
}

/// Delays that grow with every failure in a row.
struct Backoff {
    next: Duration,
}

impl Backoff {
    fn new() -> Self {
        Self { next: FIRST_DELAY }
    }

    /// The next delay: half of it is chance, so that replicas do not come back together.
    fn delay(&mut self) -> Duration {
        let delay = self.next.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.next = (self.next * 2).min(LAST_DELAY);
        delay
    }

    /// Whether this would be the first delay.
    fn is_new(&self) -> bool {
        self.next == FIRST_DELAY
    }
}

/// How a watch ended that did not fail.
struct Watched {
    version: String,
    /// Whether it was a good one; see [`GOOD_WATCH`].
    good: bool,
}

/// Follows the objects for ever. `wrap` makes the message of a change.
pub async fn follow<T: Object, M: Send>(
    watch: Watch<T>,
    out: mpsc::Sender<M>,
    wrap: impl Fn(Change<T>) -> M + Send + Sync,
) -> Infallible {
    let mut follower = Follower {
        page: PAGE,
        told: HashSet::new(),
        hasher: foldhash::quality::RandomState::default(),
        said: None,
        backoff: Backoff::new(),
        failing: None,
        fruitless: 0,
        out,
        wrap,
        watch,
    };
    match follower.run().await {
        Ok(never) => never,
        // Nobody takes the changes any more: the process is ending.
        Err(Closed) => std::future::pending().await,
    }
}

/// The receiver of the changes is gone.
struct Closed;

struct Follower<T: Object, M, F> {
    watch: Watch<T>,
    out: mpsc::Sender<M>,
    wrap: F,
    /// Size of the next pages.
    page: u32,
    /// Hashes of the names of objects that could not be read.
    told: HashSet<u64>,
    hasher: foldhash::quality::RandomState,
    /// The last trouble that was logged.
    said: Option<Reason>,
    backoff: Backoff,
    /// When this watch failed first while the pool's was answered. Before that the picker waits for the
    /// pool in any case, and a server that nobody can reach yet says nothing about one resource.
    failing: Option<Instant>,
    /// Watches in a row that failed before anything was heard.
    fruitless: u32,
}

impl<T: Object, M, F: Fn(Change<T>) -> M> Follower<T, M, F> {
    async fn run(&mut self) -> Result<Infallible, Closed> {
        let mut at: Option<(String, String)> = None;
        let mut absent = 0_u32;
        loop {
            let path = match self.path(at.as_ref().map(|(path, _)| path)).await {
                Ok(Some(path)) => path,
                Ok(None) => {
                    at = None;
                    absent = absent.saturating_add(1);
                    self.absent(absent).await?;
                    continue;
                }
                Err(failure) => {
                    self.failed(&failure).await?;
                    continue;
                }
            };
            absent = 0;
            // The objects may have come to live in another group.
            let version = at.take().filter(|(before, _)| *before == path).map(|(_, version)| version);
            let result = match version {
                None => match self.list(&path).await? {
                    Ok(version) => {
                        at = Some((path, version));
                        continue;
                    }
                    Err(failure) => Err((None, failure)),
                },
                Some(version) => self.changes(&path, version).await?,
            };
            match result {
                Ok(Watched { version, good }) => {
                    at = Some((path, version));
                    if !good {
                        // A server that ends every watch at once must not be asked without a pause.
                        sleep(self.backoff.delay()).await;
                    }
                }
                Err((version, failure)) => {
                    at = version.map(|version| (path, version));
                    self.failed(&failure).await?;
                }
            }
        }
    }

    fn stats(&self) -> &WatchStats {
        self.watch.stats.of(self.watch.resource)
    }

    fn heard(&self) {
        self.stats().heard(self.watch.clock.now());
    }

    async fn deliver(&self, change: Change<T>) -> Result<(), Closed> {
        self.out.send((self.wrap)(change)).await.map_err(|_| Closed)
    }

    /// Waits after a failure; what was delivered stays true.
    async fn failed(&mut self, failure: &Failure) -> Result<(), Closed> {
        let stats = self.stats();
        stats.fail(failure.reason);
        stats.enter(WatchState::Retrying);
        // A version that expired is daily life, unless it does so again and again.
        let usual = failure.reason == Reason::Expired && self.backoff.is_new();
        let mut delay = self.backoff.delay();
        let optional = matches!(self.watch.place, Place::Optional { .. });
        let forbidden = optional && failure.reason == Reason::Forbidden;
        if forbidden {
            delay = ABSENT_RETRY;
        }
        let resource = self.watch.resource.as_str();
        // Once per sort of trouble; the counters say how often.
        if !usual && self.said.replace(failure.reason) != Some(failure.reason) {
            let error = failure.message.as_str();
            if forbidden {
                tracing::warn!(resource, error, "may not be followed: keeping what is known of them, if anything is");
            } else {
                tracing::warn!(resource, error, "the API server does not tell: keeping what is known, trying again");
            }
        } else {
            tracing::debug!(resource, error = failure.message, "the API server does not tell");
        }
        if forbidden || self.is_out_of_patience() {
            self.deliver(Change::Unavailable).await?;
        }
        sleep(delay).await;
        Ok(())
    }

    /// Whether this watch has failed for so long that nobody should wait for it.
    fn is_out_of_patience(&mut self) -> bool {
        let answered = self.watch.stats.of(Resource::Pool).age(self.watch.clock.now()).is_some();
        answered && self.failing.get_or_insert_with(Instant::now).elapsed() >= PATIENCE
    }

    /// The present watch is a good one.
    fn recovered(&mut self) {
        self.backoff = Backoff::new();
        if self.said.take().is_some() {
            tracing::info!(resource = self.watch.resource.as_str(), "the API server tells again");
        }
    }

    /// The cluster does not have the resource. Said a second time, which rules out a server that is just
    /// starting, it means that there are no objects.
    async fn absent(&mut self, times: u32) -> Result<(), Closed> {
        self.stats().enter(WatchState::Absent);
        self.heard();
        if times == 1 {
            let resource = self.watch.resource.as_str();
            tracing::warn!(resource, "the cluster does not have this resource: going on without until it does");
        } else if times == 2 {
            self.deliver(Change::Complete { objects: Vec::new(), unreadable: 0 }).await?;
        }
        // It is told when the resource appears.
        self.said = Some(Reason::NotFound);
        sleep(if times == 1 { ABSENT_AGAIN } else { ABSENT_RETRY }).await;
        Ok(())
    }

    /// Where the objects are; `None` if the cluster has no such resource.
    async fn path(&self, known: Option<&String>) -> Result<Option<String>, Failure> {
        let namespace = match &self.watch.place {
            Place::Path(path) => return Ok(Some(path.clone())),
            Place::Optional { namespace } => namespace,
        };
        let plural = self.watch.resource.as_str();
        let path = |group: &str| format!("/apis/{group}/v1alpha2/namespaces/{namespace}/{plural}");
        let current = path(GROUP_LLM_D);
        if known == Some(&current) {
            return Ok(Some(current));
        }
        for group in [GROUP_LLM_D, GROUP_V1ALPHA2] {
            let request = http::Request::get(format!("/apis/{group}/v1alpha2")).body(Vec::new());
            let request = request.map_err(|e| Failure::new(Reason::Malformed, e.to_string()))?;
            match self.page(request).await {
                Ok(body) => {
                    let served: ApiResources = decode(&body)?;
                    if served.resources.iter().any(|r| r.name == plural) {
                        return Ok(Some(path(group)));
                    }
                }
                Err(failure) if failure.reason == Reason::NotFound => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(None)
    }

    /// Reads the whole list and delivers it; the result is the version to watch from.
    async fn list(&mut self, path: &str) -> Result<Result<String, Failure>, Closed> {
        self.stats().enter(WatchState::Listing);
        let request = Request::new(path);
        let mut objects = Vec::new();
        let (mut unreadable, mut beyond) = (0, 0_usize);
        let mut next: Option<String> = None;
        let version = loop {
            let params = ListParams {
                label_selector: self.watch.labels.clone(),
                field_selector: self.watch.only.as_ref().map(|name| format!("metadata.name={name}")),
                limit: Some(self.page),
                continue_token: next.take(),
                ..ListParams::default()
            };
            let request = match request.list(&params) {
                Ok(request) => request,
                Err(error) => return Ok(Err(Failure::new(Reason::Malformed, error.to_string()))),
            };
            let body = match self.page(request).await {
                Ok(body) => body,
                Err(failure) if failure.too_large && self.page > 1 => {
                    self.page = (self.page / 4).max(1);
                    next = None;
                    objects.clear();
                    (unreadable, beyond) = (0, 0);
                    continue;
                }
                Err(failure) => return Ok(Err(failure)),
            };
            self.heard();
            let page: Page<'_> = match serde_json::from_slice(&body) {
                Ok(page) => page,
                Err(error) => return Ok(Err(Failure::new(Reason::Malformed, format!("no list: {error}")))),
            };
            for item in page.items.into_iter().flatten() {
                if !self.is_wanted(item.get()) {
                    continue;
                }
                match self.read(item.get()) {
                    Some(Read::Present(object)) if objects.len() < MAX_LISTED => objects.push(object),
                    Some(Read::Present(_)) => beyond += 1,
                    Some(Read::Absent) => {}
                    None => unreadable += 1,
                }
            }
            if page.metadata.next.is_empty() {
                break page.metadata.resource_version;
            }
            next = Some(page.metadata.next);
        };
        if version.is_empty() {
            return Ok(Err(Failure::new(Reason::Malformed, "the list has no resourceVersion")));
        }
        if beyond > 0 {
            let resource = self.watch.resource.as_str();
            tracing::warn!(
                resource,
                beyond,
                limit = MAX_LISTED,
                "more objects than a list may have: the rest is passed over"
            );
        }
        objects.shrink_to_fit();
        self.deliver(Change::Complete { objects, unreadable }).await?;
        Ok(Ok(version))
    }

    /// Follows changes from `version` until the server ends it. A failure comes with the version to go
    /// on from, if there is any sense in that.
    async fn changes(
        &mut self,
        path: &str,
        mut version: String,
    ) -> Result<Result<Watched, (Option<String>, Failure)>, Closed> {
        let params = WatchParams {
            label_selector: self.watch.labels.clone(),
            field_selector: self.watch.only.as_ref().map(|name| format!("metadata.name={name}")),
            timeout: Some(WATCH_SECONDS + fastrand::u32(0..60)),
            bookmarks: true,
            ..WatchParams::default()
        };
        let request = match Request::new(path).watch(&params, &version) {
            Ok(request) => request,
            Err(error) => return Ok(Err((None, Failure::new(Reason::Malformed, error.to_string())))),
        };
        let mut body = match self.open(request, Instant::now() + ANSWER).await {
            Ok(body) => body,
            Err(failure) => return Ok(Err((self.resume(&failure, version, MAX_RESUMES), failure))),
        };
        self.stats().enter(WatchState::Watching);
        self.heard();
        let opened = Instant::now();
        let mut heard = false;
        let mut buffer = BytesMut::new();
        let mut searched = 0;
        loop {
            let mut word = timeout(GOOD_WATCH, body.frame()).await;
            if word.is_err() {
                self.recovered();
                word = timeout(SILENCE - GOOD_WATCH, body.frame()).await;
            }
            let data = match word {
                Err(_) => {
                    let message = format!("not a word on the watch for {} s", SILENCE.as_secs());
                    let failure = Failure::new(Reason::Timeout, message);
                    return Ok(Err((self.resume(&failure, version, MAX_SILENCES), failure)));
                }
                // What stands without an end of line is part of an object whose rest never came.
                Ok(None) => {
                    let good = heard || opened.elapsed() >= GOOD_WATCH;
                    return Ok(Ok(Watched { version, good }));
                }
                Ok(Some(Err(error))) => {
                    let failure = Failure::new(Reason::Unreachable, chain(&error));
                    return Ok(Err((self.resume(&failure, version, MAX_RESUMES), failure)));
                }
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => data,
                    Err(_) => continue,
                },
            };
            buffer.extend_from_slice(&data);
            while let Some(end) = memchr::memchr(b'\n', &buffer[searched..]).map(|i| i + searched) {
                let line = buffer.split_to(end);
                buffer.advance(1);
                searched = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                match self.line(&line).await? {
                    Ok(next) => {
                        if !std::mem::replace(&mut heard, true) {
                            self.recovered();
                        }
                        self.fruitless = 0;
                        self.heard();
                        version = next;
                    }
                    Err(failure) => return Ok(Err((self.resume(&failure, version, MAX_RESUMES), failure))),
                }
            }
            searched = buffer.len();
            if buffer.len() > MAX_LINE_BYTES {
                let message = format!("a line of the watch is longer than {MAX_LINE_BYTES} bytes");
                return Ok(Err((None, Failure::new(Reason::Malformed, message))));
            }
            if buffer.is_empty() {
                // A large object must not keep its buffer for the life of the watch.
                buffer = BytesMut::new();
            }
        }
    }

    /// The version to go on from after a failure, unless that was in vain too often.
    fn resume(&mut self, failure: &Failure, version: String, most: u32) -> Option<String> {
        self.fruitless += 1;
        let resume = failure.resume && self.fruitless < most;
        if !resume {
            self.fruitless = 0;
        }
        resume.then_some(version)
    }

    /// Delivers what a line of a watch says; the result is the version it brings us to.
    async fn line(&mut self, line: &[u8]) -> Result<Result<String, Failure>, Closed> {
        let malformed = |error: serde_json::Error| Failure::new(Reason::Malformed, format!("no watch event: {error}"));
        let Line { kind, object } = match serde_json::from_slice(line) {
            Ok(line) => line,
            Err(error) => return Ok(Err(malformed(error))),
        };
        if kind == "ERROR" {
            let Status { code, message } = serde_json::from_str(object.get()).unwrap_or_default();
            return Ok(Err(Failure::of_status(code, message)));
        }
        let Headed { metadata } = match serde_json::from_str(object.get()) {
            Ok(headed) => headed,
            Err(error) => return Ok(Err(malformed(error))),
        };
        if metadata.resource_version.is_empty() {
            return Ok(Err(Failure::new(Reason::Malformed, "an event without a resourceVersion")));
        }
        let wanted = self.watch.only.as_ref().is_none_or(|only| *only == metadata.name);
        let change = match kind.as_ref() {
            "ADDED" | "MODIFIED" if wanted => match self.read(object.get()) {
                Some(Read::Present(object)) => Some(Change::Applied(object)),
                Some(Read::Absent) => Some(Change::Gone(metadata.name)),
                // The pool as it was is better than no pool; of the others, one that cannot be read must
                // not be taken for what it was.
                None if self.watch.only.is_some() => None,
                None => Some(Change::Gone(metadata.name)),
            },
            "DELETED" if wanted => Some(Change::Gone(metadata.name)),
            // Bookmarks bring nothing but their version.
            _ => None,
        };
        if let Some(change) = change {
            self.deliver(change).await?;
        }
        Ok(Ok(metadata.resource_version))
    }

    /// Whether an object of a list is the one that is wanted, where only one is.
    fn is_wanted(&self, json: &str) -> bool {
        let named = |only: &String| serde_json::from_str::<Headed>(json).is_ok_and(|h| h.metadata.name == *only);
        self.watch.only.as_ref().is_none_or(named)
    }

    /// Reads an object; `None` if it cannot be read, which is logged once and always counted.
    fn read(&mut self, json: &str) -> Option<Read<T>> {
        match T::read(json, &self.watch.scope) {
            Ok(read) => Some(read),
            Err(error) => {
                self.stats().unreadable();
                let name = serde_json::from_str::<Headed>(json).map(|h| h.metadata.name).unwrap_or_default();
                let hash = self.hasher.hash_one(&name);
                if self.told.len() < MAX_REMEMBERED && self.told.insert(hash) {
                    let resource = self.watch.resource.as_str();
                    tracing::warn!(resource, name, error, "an object cannot be used and is passed over");
                }
                None
            }
        }
    }

    /// Sends a request; the result is the body of a good answer.
    async fn open(&self, request: http::Request<Vec<u8>>, until: Instant) -> Result<Body, Failure> {
        let sent = timeout_at(until, self.watch.cluster.client().send(request.map(Body::from))).await;
        let response = match sent {
            Err(_) => return Err(Failure::new(Reason::Timeout, format!("no answer within {} s", ANSWER.as_secs()))),
            Ok(Err(error)) => return Err(Failure::new(Reason::Unreachable, chain(&error))),
            Ok(Ok(response)) => response,
        };
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        let code = response.status().as_u16();
        let told = timeout(ANSWER, collect(response.into_body(), 1 << 16)).await;
        let status = told.ok().and_then(Result::ok).and_then(|body| serde_json::from_slice::<Status>(&body).ok());
        let message = status.map(|s| s.message).filter(|m| !m.is_empty());
        Err(Failure::of_status(code, message.unwrap_or_else(|| format!("status {code}"))))
    }

    /// Sends a request and reads its answer, at most a page.
    async fn page(&self, request: http::Request<Vec<u8>>) -> Result<Vec<u8>, Failure> {
        let body = self.open(request, Instant::now() + ANSWER).await?;
        match timeout(PAGE_TIME, collect(body, MAX_PAGE_BYTES)).await {
            Ok(read) => read,
            Err(_) => {
                Err(Failure::new(Reason::Timeout, format!("the answer took more than {} s", PAGE_TIME.as_secs())))
            }
        }
    }
}
