//! The thread that scrapes, apart from those that serve requests.
//!
//! Scraping is thousands of tiny exchanges each second, and what they cost on a shared runtime is not work but
//! waking: a worker is woken for each timer and for each answer, and a worker that was woken wakes another to
//! look for more. So the collector has one thread and looks at its timers and sockets only every [`TURN`]; what
//! came in between is done in one go. Requests never queue behind a page, and a burst of requests delays
//! no scrape.
//!
//! The price: a sample is up to two turns older than it need be (request and answer wait for one each), and
//! says so, because it is dated when it is read.
//!
//! Rejected: a loop of our own over non-blocking sockets (timers, TLS and connecting would have to be done
//! again), and more than one thread (one reads 20,000 filtered pages a second with room to spare).

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::sync::oneshot;

/// How long the thread rests when there is nothing more to do. A tenth of the default interval.
pub const TURN: Duration = Duration::from_millis(5);

/// Runs `work` on a thread of its own with a runtime of its own. Dropping the future ends the work.
///
/// # Errors
/// The thread or its runtime cannot be made; the work panicked.
pub async fn apart<F>(work: F) -> io::Result<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let (running, dropped) = oneshot::channel::<Infallible>();
    let (done, result) = oneshot::channel();
    std::thread::Builder::new().name("scraper".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().on_thread_park(rest).build();
        let outcome = runtime.map(|runtime| {
            runtime.block_on(async {
                tokio::select! {
                    output = work => Some(output),
                    _ = dropped => None,
                }
            })
        });
        // Nobody may be waiting any more.
        let _ = done.send(outcome);
    })?;
    let outcome = result.await;
    drop(running);
    match outcome {
        Ok(Ok(Some(output))) => Ok(output),
        Ok(Err(error)) => Err(error),
        // The sender goes without a word only in a panic, and `dropped` completes only when nobody waits here.
        Ok(Ok(None)) | Err(_) => Err(io::Error::other("its thread panicked")),
    }
}

#[allow(clippy::disallowed_methods, reason = "the pace of the thread; nothing waits here for something to happen")]
fn rest() {
    std::thread::sleep(TURN);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::sleep;

    #[tokio::test]
    async fn work_runs_apart_and_its_result_comes_back() {
        let here = std::thread::current().id();
        let work = async move {
            sleep(Duration::from_millis(1)).await;
            tokio::spawn(async { std::thread::current().id() }).await.expect("it ends")
        };
        assert_ne!(apart(work).await.expect("a thread"), here);
    }

    #[tokio::test]
    async fn a_panic_is_told() {
        let error = apart(async { panic!("a defect") }).await.expect_err("it panics");
        assert!(error.to_string().contains("panicked"), "{error}");
    }

    #[tokio::test]
    async fn who_does_not_wait_ends_the_work() {
        let (held, dropped) = oneshot::channel::<Infallible>();
        let (begun, begins) = oneshot::channel();
        let waiting = tokio::spawn(apart(async move {
            let _held = held;
            let _ = begun.send(());
            std::future::pending::<()>().await;
        }));
        begins.await.expect("it begins");
        waiting.abort();
        assert!(dropped.await.is_err(), "dropped with the work");
    }
}
