//! Named background tasks, and what happens when one ends.
//!
//! A critical task (a listener, discovery) that ends for any reason is reported to the [`Supervisor`],
//! whose owner ends the process with an error: a picker without its listener is better restarted than
//! left running. Other tasks are logged when they fail. A panic counts as a failure.

use std::future::Future;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Why a critical task is gone.
#[derive(Debug, thiserror::Error)]
#[error("critical task {name} {reason}")]
pub struct TaskEnded {
    /// Name of the task.
    pub name: &'static str,
    /// `ended`, `failed: ...` or `panicked: ...`.
    pub reason: String,
}

/// Spawns named tasks on the current runtime. Clones report to the same supervisor.
#[derive(Clone, Debug)]
pub struct Spawner {
    ended: mpsc::Sender<TaskEnded>,
}

/// Learns of critical tasks that ended.
#[derive(Debug)]
pub struct Supervisor {
    ended: mpsc::Receiver<TaskEnded>,
}

/// A spawner and its supervisor.
pub fn supervisor() -> (Spawner, Supervisor) {
    // The first report ends the process, so later ones may be lost.
    let (sender, receiver) = mpsc::channel(8);
    (Spawner { ended: sender }, Supervisor { ended: receiver })
}

impl Spawner {
    /// Runs a task that must not end before the process does. Aborting it is not reported.
    pub fn critical<F>(&self, name: &'static str, task: F) -> AbortHandle
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let handle = tokio::spawn(task);
        let abort = handle.abort_handle();
        let ended = self.ended.clone();
        tokio::spawn(async move {
            if let Some(reason) = reason(handle.await, true) {
                let _ = ended.try_send(TaskEnded { name, reason });
            }
        });
        abort
    }

    /// Runs a task whose failure is logged.
    pub fn spawn<F>(&self, name: &'static str, task: F) -> AbortHandle
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let handle = tokio::spawn(task);
        let abort = handle.abort_handle();
        tokio::spawn(async move {
            if let Some(reason) = reason(handle.await, false) {
                tracing::error!(task = name, reason, "background task stopped");
            }
        });
        abort
    }
}

impl Supervisor {
    /// Waits for the first critical task that ends. Never completes while all run.
    pub async fn ended(&mut self) -> TaskEnded {
        match self.ended.recv().await {
            Some(ended) => ended,
            // All spawners and all critical tasks are gone without a report: only aborted ones.
            None => std::future::pending().await,
        }
    }
}

/// What to report of a finished task; `None` for aborts and, unless `must_run`, for a normal end.
fn reason(result: Result<anyhow::Result<()>, tokio::task::JoinError>, must_run: bool) -> Option<String> {
    match result {
        Ok(Ok(())) => must_run.then(|| "ended".to_owned()),
        Ok(Err(error)) => Some(format!("failed: {error:#}")),
        Err(join) if join.is_cancelled() => None,
        Err(join) => Some(match join.try_into_panic() {
            Ok(panic) => {
                let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                format!("panicked: {}", text.as_deref().unwrap_or("no message"))
            }
            Err(join) => format!("failed: {join}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_end_of_a_critical_task_is_reported() {
        async fn end(task: impl Future<Output = anyhow::Result<()>> + Send + 'static) -> String {
            let (spawner, mut supervisor) = supervisor();
            spawner.critical("listener", task);
            supervisor.ended().await.to_string()
        }
        assert_eq!(end(async { Ok(()) }).await, "critical task listener ended");
        let failed = async { Err(anyhow::anyhow!("port is taken").context("cannot listen")) };
        assert_eq!(end(failed).await, "critical task listener failed: cannot listen: port is taken");
        assert_eq!(end(async { panic!("boom") }).await, "critical task listener panicked: boom");
    }

    #[tokio::test(start_paused = true)]
    async fn aborts_and_other_tasks_are_not_reported() {
        let (spawner, mut supervisor) = supervisor();
        spawner.critical("watch", std::future::pending()).abort();
        spawner.spawn("helper", async { Err(anyhow::anyhow!("gone")) });
        let waited = tokio::time::timeout(std::time::Duration::from_secs(5), supervisor.ended()).await;
        assert!(waited.is_err());
    }
}
