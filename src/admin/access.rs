//! Who may read the pages: a bearer token that somebody else judges, with a short memory.
//!
//! A verdict holds for [`ALLOWED`] or, if it is a refusal, for [`REFUSED`], so that a scrape does not cost
//! two calls each time and a permission that was just given counts soon. The memory holds hashes, no
//! tokens; it has [`REMEMBERED`] places, and at the bound the verdict that ends first goes: a flood of
//! made-up tokens pushes out its own refusals before a scraper's verdict. Two questions are asked at a
//! time; who waits too long gets 503.
//!
//! Rejected: remembering an expired verdict while nobody can judge. A revoked token would go on being
//! taken for as long as somebody keeps the judge away.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use parking_lot::Mutex;
use ring::digest::{SHA256, digest};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::domain::Timestamp;
use crate::lifecycle::clock::Clock;

/// How long an allowed token is not asked about again.
pub const ALLOWED: Duration = Duration::from_secs(60);
/// The same for one that was refused.
pub const REFUSED: Duration = Duration::from_secs(10);
/// Verdicts remembered.
pub const REMEMBERED: usize = 256;
/// Questions at a time.
const QUESTIONS: usize = 2;
/// Longest time to a verdict, waiting for a turn included.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest token; those of Kubernetes have about a kilobyte.
const MAX_TOKEN: usize = 12 * 1024;

/// What a judge says of a token and a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its owner may read it.
    Allowed,
    /// Its owner may not.
    Forbidden,
    /// It is nobody's.
    Unknown,
}

/// Why there is no verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoVerdict {
    /// This process is set up wrongly: 500.
    Broken(String),
    /// Not now: 503.
    Unavailable(String),
}

/// The answer of a judge.
pub type Judgement = Pin<Box<dyn Future<Output = Result<Verdict, NoVerdict>> + Send>>;

/// Judges tokens.
pub trait Judge: Send + Sync {
    /// Whether the owner of `token` may read `path`.
    fn judge(&self, token: String, path: String) -> Judgement;
}

/// How a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// No token, or nobody's: 401.
    Unauthorized,
    /// 403.
    Forbidden,
    /// 500, for the log.
    Broken(String),
    /// 503, for the log.
    Unavailable(String),
}

/// Hash of a token, and a path.
type Key = ([u8; 32], &'static str);

/// The guard of the pages.
pub struct Access {
    judge: Arc<dyn Judge>,
    clock: Arc<dyn Clock>,
    remembered: Mutex<HashMap<Key, (Verdict, Timestamp)>>,
    questions: Semaphore,
}

impl Access {
    /// A guard that asks `judge`.
    pub fn new(judge: Arc<dyn Judge>, clock: Arc<dyn Clock>) -> Self {
        Self { judge, clock, remembered: Mutex::default(), questions: Semaphore::new(QUESTIONS) }
    }

    /// Whether a request with these headers may read `path`; `page` is the path if this port has it, and
    /// only then the verdict is remembered.
    ///
    /// # Errors
    /// How to refuse it.
    pub async fn check(&self, headers: &HeaderMap, path: &str, page: Option<&'static str>) -> Result<(), Denied> {
        let Some(token) = bearer(headers) else { return Err(Denied::Unauthorized) };
        let hash: Option<[u8; 32]> = digest(&SHA256, token.as_bytes()).as_ref().try_into().ok();
        let key = hash.zip(page);
        if let Some(verdict) = key.and_then(|key| self.known(key)) {
            return allowed(verdict);
        }
        let question = async {
            let _turn = self.questions.acquire().await;
            // The one who had the turn before may have asked the same.
            match key.and_then(|key| self.known(key)) {
                Some(verdict) => Ok(verdict),
                None => self.judge.judge(token.to_owned(), path.to_owned()).await,
            }
        };
        match timeout(PATIENCE, question).await {
            Ok(Ok(verdict)) => {
                if let Some(key) = key {
                    self.remember(key, verdict);
                }
                allowed(verdict)
            }
            Ok(Err(NoVerdict::Broken(why))) => Err(Denied::Broken(why)),
            Ok(Err(NoVerdict::Unavailable(why))) => Err(Denied::Unavailable(why)),
            Err(_) => Err(Denied::Unavailable("no verdict in time".into())),
        }
    }

    fn known(&self, key: Key) -> Option<Verdict> {
        let now = self.clock.now();
        self.remembered.lock().get(&key).filter(|(_, until)| now < *until).map(|(verdict, _)| *verdict)
    }

    fn remember(&self, key: Key, verdict: Verdict) {
        let now = self.clock.now();
        let until = now.plus(if verdict == Verdict::Allowed { ALLOWED } else { REFUSED });
        let mut remembered = self.remembered.lock();
        if remembered.len() >= REMEMBERED && !remembered.contains_key(&key) {
            remembered.retain(|_, (_, until)| now < *until);
            let first = remembered.iter().min_by_key(|(_, (_, until))| *until).map(|(key, _)| *key);
            if let Some(first) = first.filter(|_| remembered.len() >= REMEMBERED) {
                remembered.remove(&first);
            }
        }
        // An answer that was asked for at the same time may have come first.
        remembered.entry(key).and_modify(|kept| *kept = (verdict, until)).or_insert((verdict, until));
    }
}

fn allowed(verdict: Verdict) -> Result<(), Denied> {
    match verdict {
        Verdict::Allowed => Ok(()),
        Verdict::Forbidden => Err(Denied::Forbidden),
        Verdict::Unknown => Err(Denied::Unauthorized),
    }
}

/// The token of `Authorization: Bearer <token>`, if there is exactly one.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.trim().split_once(' ')?;
    let token = token.trim();
    let is_token = !token.is_empty() && token.len() <= MAX_TOKEN && !token.contains(' ');
    (scheme.eq_ignore_ascii_case("bearer") && is_token).then_some(token)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::HeaderValue;

    use super::*;
    use crate::lifecycle::clock::ManualClock;

    /// Knows `good` for /metrics and `poor` for nothing; counts.
    #[derive(Default)]
    struct Known {
        asked: AtomicUsize,
        at_once: AtomicUsize,
        most: AtomicUsize,
        away: AtomicUsize,
    }

    impl Judge for Arc<Known> {
        fn judge(&self, token: String, path: String) -> Judgement {
            let known = Arc::clone(self);
            Box::pin(async move {
                known.asked.fetch_add(1, Ordering::Relaxed);
                let now = known.at_once.fetch_add(1, Ordering::Relaxed) + 1;
                known.most.fetch_max(now, Ordering::Relaxed);
                let away = known.away.load(Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(if away == 2 { 1_000_000 } else { 100 })).await;
                known.at_once.fetch_sub(1, Ordering::Relaxed);
                match token.as_str() {
                    _ if away == 1 => Err(NoVerdict::Unavailable("away".into())),
                    "good" if path == "/metrics" => Ok(Verdict::Allowed),
                    "good" | "poor" => Ok(Verdict::Forbidden),
                    _ => Ok(Verdict::Unknown),
                }
            })
        }
    }

    fn access() -> (Arc<Access>, Arc<Known>, Arc<ManualClock>) {
        let (known, clock) = (Arc::new(Known::default()), Arc::new(ManualClock::default()));
        let guard = Access::new(Arc::new(Arc::clone(&known)), Arc::<ManualClock>::clone(&clock));
        (Arc::new(guard), known, clock)
    }

    fn with(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(value).unwrap())])
    }

    async fn metrics(guard: &Access, token: &str) -> Result<(), Denied> {
        guard.check(&with(&format!("Bearer {token}")), "/metrics", Some("/metrics")).await
    }

    #[tokio::test(start_paused = true)]
    async fn verdicts_are_remembered_for_their_time() {
        let (guard, known, clock) = access();
        let asked = || known.asked.load(Ordering::Relaxed);
        for (token, expected, lasts) in [
            ("good", Ok(()), ALLOWED),
            ("poor", Err(Denied::Forbidden), REFUSED),
            ("made-up", Err(Denied::Unauthorized), REFUSED),
        ] {
            let before = asked();
            for _ in 0..3 {
                assert_eq!(metrics(&guard, token).await, expected);
            }
            clock.advance(lasts - Duration::from_micros(1));
            assert_eq!(metrics(&guard, token).await, expected);
            assert_eq!(asked(), before + 1, "{token}");
            clock.advance(Duration::from_micros(1));
            assert_eq!(metrics(&guard, token).await, expected);
            assert_eq!(asked(), before + 2, "{token}");
        }
        // For another path it is another question, and what this port does not have is not remembered.
        let good = with("bearer  good ");
        assert_eq!(guard.check(&good, "/debug/config", Some("/debug/config")).await, Err(Denied::Forbidden));
        let before = (asked(), guard.remembered.lock().len());
        for _ in 0..3 {
            assert_eq!(guard.check(&good, "/x", None).await, Err(Denied::Forbidden));
        }
        assert_eq!((asked(), guard.remembered.lock().len()), (before.0 + 3, before.1));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_token_nobody_is_asked() {
        let (guard, known, _) = access();
        let mut twice = with("Bearer good");
        twice.append(AUTHORIZATION, HeaderValue::from_static("Bearer good"));
        let long = with(&format!("Bearer {}", "a".repeat(MAX_TOKEN + 1)));
        for headers in [
            HeaderMap::new(),
            with("Basic Z29vZA=="),
            with("Bearer"),
            with("Bearer  "),
            with("Bearer a b"),
            twice,
            long,
        ] {
            assert_eq!(guard.check(&headers, "/metrics", Some("/metrics")).await, Err(Denied::Unauthorized));
        }
        assert_eq!(known.asked.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn no_verdict_is_not_remembered_and_ends_in_time() {
        let (guard, known, _) = access();
        known.away.store(1, Ordering::Relaxed);
        assert_eq!(metrics(&guard, "good").await, Err(Denied::Unavailable("away".into())));
        known.away.store(2, Ordering::Relaxed);
        let begun = tokio::time::Instant::now();
        assert!(matches!(metrics(&guard, "good").await, Err(Denied::Unavailable(_))));
        assert!(begun.elapsed() <= PATIENCE + Duration::from_millis(2));
        known.away.store(0, Ordering::Relaxed);
        assert_eq!(metrics(&guard, "good").await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_made_up_tokens_is_bounded_and_pushes_nobody_out() {
        let (guard, known, _) = access();
        assert_eq!(metrics(&guard, "good").await, Ok(()));
        let mut flood = tokio::task::JoinSet::new();
        for i in 0..100 {
            let guard = Arc::clone(&guard);
            flood.spawn(async move { metrics(&guard, &format!("made-up-{i}")).await });
        }
        flood.join_all().await;
        assert!(known.most.load(Ordering::Relaxed) <= QUESTIONS);
        for i in 0..2 * REMEMBERED {
            let _ = metrics(&guard, &format!("more-{i}")).await;
        }
        assert!(guard.remembered.lock().len() <= REMEMBERED);
        let before = known.asked.load(Ordering::Relaxed);
        assert_eq!(metrics(&guard, "good").await, Ok(()));
        assert_eq!(known.asked.load(Ordering::Relaxed), before);
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_the_same_at_once_shares_the_answer() {
        let (guard, known, _) = access();
        let mut scrapers = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let guard = Arc::clone(&guard);
            scrapers.spawn(async move { metrics(&guard, "good").await });
        }
        assert!(scrapers.join_all().await.into_iter().all(|answer| answer.is_ok()));
        assert!(known.asked.load(Ordering::Relaxed) <= QUESTIONS);
    }
}
