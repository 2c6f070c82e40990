//! Readiness: a set of named blocks that components hold and drop.
//!
//! The process is ready when no block is left and it is not draining. A component takes its block
//! while the process is built and drops it when it can do its part (the pool at its first complete
//! list, not at its first message), so forgetting to report readiness leaves the process not ready,
//! which is the safe side. A block may be taken again later (leadership lost).
//!
//! Rejected: a boolean per component in one struct (every new component touches it) and readiness
//! computed by polling callbacks (nobody can wait on it).

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

/// What the process says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// A component is not ready yet, or not any more.
    Waiting,
    /// It can take traffic.
    Ready,
    /// It is stopping. Final.
    Draining,
}

/// The readiness of the process. Clones share one state.
#[derive(Clone, Debug)]
pub struct Readiness {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    condition: watch::Sender<Condition>,
    left: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct State {
    pending: BTreeMap<u64, Arc<str>>,
    next: u64,
    draining: bool,
}

impl Readiness {
    /// A readiness without blocks, which is ready: take the blocks before anything can ask.
    pub fn new() -> Self {
        let (condition, _) = watch::channel(Condition::Ready);
        let (left, _) = watch::channel(0);
        Self { inner: Arc::new(Inner { state: Mutex::default(), condition, left }) }
    }

    /// Adds a block; the process is not ready until it is dropped.
    #[must_use = "dropping the block at once unblocks at once"]
    pub fn block(&self, name: impl Into<Arc<str>>) -> BlockReady {
        let mut state = self.inner.state.lock();
        let id = state.next;
        state.next += 1;
        state.pending.insert(id, name.into());
        self.inner.publish(&state);
        drop(state);
        BlockReady { id, readiness: self.clone() }
    }

    /// Makes the process not ready for good.
    pub fn draining(&self) {
        let mut state = self.inner.state.lock();
        state.draining = true;
        self.inner.publish(&state);
    }

    /// The present condition.
    pub fn condition(&self) -> Condition {
        *self.inner.condition.borrow()
    }

    /// Whether the process should get traffic.
    pub fn is_ready(&self) -> bool {
        self.condition() == Condition::Ready
    }

    /// Whether [`Self::draining`] was called.
    pub fn is_draining(&self) -> bool {
        self.condition() == Condition::Draining
    }

    /// A receiver that wakes at every change of the condition.
    pub fn watch(&self) -> watch::Receiver<Condition> {
        self.inner.condition.subscribe()
    }

    /// A receiver of the number of blocks that are left, for a component that waits for all others.
    pub fn left(&self) -> watch::Receiver<usize> {
        self.inner.left.subscribe()
    }

    /// Names of the blocks that are left, in the order they were taken.
    pub fn pending(&self) -> Vec<Arc<str>> {
        self.inner.state.lock().pending.values().cloned().collect()
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Inner {
    /// Called with the state locked, so that changes are published in the order they happened.
    fn publish(&self, state: &State) {
        let next = match (state.draining, state.pending.is_empty()) {
            (true, _) => Condition::Draining,
            (false, true) => Condition::Ready,
            (false, false) => Condition::Waiting,
        };
        let left = state.pending.len();
        self.left.send_if_modified(|now| std::mem::replace(now, left) != left);
        self.condition.send_if_modified(|now| std::mem::replace(now, next) != next);
    }
}

/// Keeps the process from being ready until dropped.
#[derive(Debug)]
pub struct BlockReady {
    id: u64,
    readiness: Readiness,
}

impl BlockReady {
    /// Says that the component is ready; the same as dropping the block.
    pub fn ready(self) {}
}

impl Drop for BlockReady {
    fn drop(&mut self) {
        let inner = &self.readiness.inner;
        let mut state = inner.state.lock();
        if let Some(name) = state.pending.remove(&self.id) {
            let left: Vec<&str> = state.pending.values().map(|n| &**n).collect();
            tracing::debug!(component = &*name, left = left.join(","), "component is ready");
        }
        inner.publish(&state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_the_last_block_is_dropped() {
        let readiness = Readiness::new();
        let (pool, config) = (readiness.block("pool"), readiness.block("config"));
        assert!(!readiness.is_ready());
        assert_eq!(readiness.pending(), vec![Arc::from("pool"), Arc::from("config")]);
        drop(pool);
        assert!(!readiness.is_ready());
        config.ready();
        assert!(readiness.is_ready());
        let again = readiness.block("leadership");
        assert!(!readiness.is_ready(), "a block may come back");
        assert_eq!(*readiness.left().borrow(), 1);
        drop(again);
        assert!(readiness.is_ready());
        assert_eq!(*readiness.left().borrow(), 0);
    }

    #[test]
    fn draining_is_for_good() {
        let readiness = Readiness::new();
        let block = readiness.block("pool");
        readiness.draining();
        drop(block);
        assert!(!readiness.is_ready() && readiness.is_draining());
    }

    #[tokio::test]
    async fn watchers_see_changes_only() {
        let readiness = Readiness::new();
        let one = readiness.block("one");
        let mut watch = readiness.watch();
        assert_eq!(*watch.borrow_and_update(), Condition::Waiting);
        let two = readiness.block("two");
        drop(two);
        assert!(!watch.has_changed().unwrap(), "still not ready is no change");
        drop(one);
        watch.changed().await.unwrap();
        assert_eq!(*watch.borrow_and_update(), Condition::Ready);
    }
}
