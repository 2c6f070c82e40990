//! Drain in three steps: refuse new work, wait for open work up to a deadline, force the rest.
//!
//! Every piece of work that should be allowed to finish keeps a [`DrainHold`]; listeners and idle
//! watchers keep only a [`DrainWatcher`] and never delay the stop. Taking and dropping a hold is one
//! atomic operation each, cheap enough for every stream, and two short locks more if it was polled. It can be polled for the force without a future of
//! its own: its waker goes into one of a few short lists, since every stream waits for this all its life
//! and one list would be a lock that all threads share.
//!
//! Rejected: counting watcher clones as work (a watcher kept in a long-lived struct would make every
//! stop run into the deadline).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::{Notify, watch};

/// How far the stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Not stopping.
    Serving,
    /// Take no new work, finish what is open.
    Refusing,
    /// Cut what is still open.
    Forcing,
}

/// Lists that the wakers of holds are spread over.
const LISTS: usize = 16;

#[derive(Debug, Default)]
struct Holds {
    open: AtomicUsize,
    idle: Notify,
    forced: AtomicBool,
    wakers: [Mutex<Slab<Waker>>; LISTS],
}

/// Starts the drain. Dropped without a drain it forces at once, so that nothing waits for ever.
#[derive(Debug)]
pub struct DrainTrigger {
    step: watch::Sender<Step>,
    holds: Arc<Holds>,
}

/// Tells a task how far the stop has come.
#[derive(Clone, Debug)]
pub struct DrainWatcher {
    step: watch::Receiver<Step>,
    holds: Arc<Holds>,
}

/// Work that a drain waits for.
#[derive(Debug)]
pub struct DrainHold {
    holds: Arc<Holds>,
    waiting: Option<Waiting>,
}

/// Where a hold's waker is kept.
#[derive(Debug)]
struct Waiting {
    list: usize,
    key: usize,
    waker: Waker,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Pieces of work that were still open at the deadline and had to be cut.
    pub forced: usize,
}

/// A new drain.
pub fn channel() -> (DrainTrigger, DrainWatcher) {
    let (sender, receiver) = watch::channel(Step::Serving);
    let holds = Arc::new(Holds::default());
    (DrainTrigger { step: sender, holds: Arc::clone(&holds) }, DrainWatcher { step: receiver, holds })
}

impl DrainTrigger {
    /// A watcher of this drain.
    pub fn watcher(&self) -> DrainWatcher {
        DrainWatcher { step: self.step.subscribe(), holds: Arc::clone(&self.holds) }
    }

    /// Refuses new work, waits until all holds are gone or `deadline` has passed, then forces.
    pub async fn drain(self, deadline: Duration) -> Drained {
        self.step.send_replace(Step::Refusing);
        let _ = tokio::time::timeout(deadline, self.holds.wait_idle()).await;
        let forced = self.holds.open.load(Ordering::Acquire);
        self.force();
        Drained { forced }
    }
}

impl DrainTrigger {
    fn force(&self) {
        self.step.send_replace(Step::Forcing);
        self.holds.forced.store(true, Ordering::Release);
        for list in &self.holds.wakers {
            // Woken outside the lock: a waker may run code of a runtime.
            let wakers: Vec<Waker> = list.lock().iter().map(|(_, waker)| waker.clone()).collect();
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

impl Drop for DrainTrigger {
    fn drop(&mut self) {
        self.force();
    }
}

impl Holds {
    async fn wait_idle(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            // Registered before the count is read, or the last drop could fall in between.
            idle.as_mut().enable();
            if self.open.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }
}

impl DrainWatcher {
    /// How far the stop has come.
    pub fn step(&self) -> Step {
        *self.step.borrow()
    }

    /// Completes when new work must be refused.
    pub async fn refusing(&self) {
        self.reached(Step::Refusing).await;
    }

    /// Completes when open work must be cut.
    pub async fn forced(&self) {
        self.reached(Step::Forcing).await;
    }

    async fn reached(&self, step: Step) {
        // An error means that the trigger is gone, and it leaves `Forcing` behind.
        let _ = self.step.clone().wait_for(|now| *now >= step).await;
    }

    /// Announces work that a drain waits for. Works at every step.
    pub fn hold(&self) -> DrainHold {
        self.holds.open.fetch_add(1, Ordering::AcqRel);
        DrainHold { holds: Arc::clone(&self.holds), waiting: None }
    }

    /// Pieces of work that are open now.
    pub fn open(&self) -> usize {
        self.holds.open.load(Ordering::Acquire)
    }
}

impl DrainHold {
    /// Whether the drain forces by now.
    pub fn is_forced(&self) -> bool {
        self.holds.forced.load(Ordering::Acquire)
    }

    /// Completes when open work must be cut. Keeps the waker of the last call.
    pub fn poll_forced(&mut self, cx: &Context<'_>) -> Poll<()> {
        if !self.waiting.as_ref().is_some_and(|waiting| waiting.waker.will_wake(cx.waker())) {
            self.stop_waiting();
            // Whose streams are polled side by side lock different lists.
            let list = std::ptr::from_ref(self).addr() / 64 % LISTS;
            let waker = cx.waker().clone();
            let key = self.holds.wakers[list].lock().insert(waker.clone());
            self.waiting = Some(Waiting { list, key, waker });
        }
        // Looked at after the waker is in its list: the force sets the flag before it wakes.
        if self.is_forced() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn stop_waiting(&mut self) {
        if let Some(Waiting { list, key, .. }) = self.waiting.take() {
            self.holds.wakers[list].lock().remove(key);
        }
    }
}

impl Drop for DrainHold {
    fn drop(&mut self) {
        self.stop_waiting();
        if self.holds.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.holds.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_open_work_and_no_longer() {
        let (trigger, watcher) = channel();
        let hold = watcher.hold();
        let begun = tokio::time::Instant::now();
        let drain = tokio::spawn(trigger.drain(Duration::from_secs(30)));
        watcher.refusing().await;
        assert_eq!(watcher.step(), Step::Refusing);
        tokio::time::sleep(Duration::from_secs(3)).await;
        drop(hold);
        assert_eq!(drain.await.unwrap(), Drained { forced: 0 });
        assert_eq!(begun.elapsed(), Duration::from_secs(3));
        watcher.forced().await;
    }

    #[tokio::test(start_paused = true)]
    async fn forces_at_the_deadline() {
        let (trigger, watcher) = channel();
        let (_one, _two) = (watcher.hold(), watcher.hold());
        let begun = tokio::time::Instant::now();
        assert_eq!(trigger.drain(Duration::from_secs(30)).await, Drained { forced: 2 });
        assert_eq!(begun.elapsed(), Duration::from_secs(30));
        assert_eq!(watcher.step(), Step::Forcing);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_watchers_do_not_delay() {
        let (trigger, watcher) = channel();
        let _clones = vec![watcher.clone(); 10];
        assert_eq!(trigger.drain(Duration::from_secs(30)).await, Drained { forced: 0 });
    }

    #[tokio::test]
    async fn a_lost_trigger_forces() {
        let (trigger, watcher) = channel();
        drop(trigger);
        watcher.forced().await;
        assert!(watcher.hold().is_forced());
    }

    #[tokio::test]
    async fn holds_are_woken_by_the_force_and_forgotten_when_they_go() {
        let (trigger, watcher) = channel();
        let mut holds: Vec<_> = (0..100).map(|_| watcher.hold()).collect();
        let mut waits = Vec::new();
        for mut hold in holds.drain(..50) {
            waits.push(tokio::spawn(async move { std::future::poll_fn(|cx| hold.poll_forced(cx)).await }));
        }
        tokio::task::yield_now().await;
        let listed = || watcher.holds.wakers.iter().map(|list| list.lock().len()).sum::<usize>();
        assert_eq!(listed(), 50);
        drop(holds);
        drop(trigger);
        for wait in waits {
            wait.await.unwrap();
        }
        assert_eq!((listed(), watcher.open()), (0, 0));
    }
}
