//! Owns the tasks of a replica: no task is detached, and the end of every task is noticed.
//!
//! A task of the whole replica that ends or panics is a failure of the replica: logged with its name, told by
//! `/readyz`, and exposed by [`Running::failed`](crate::Running::failed). A task that can be
//! restarted without harm is restarted. The task of one peer ends with its peer and affects no other.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use journal::Backoff;
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The first pause before a task is begun anew, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// A task that ran for so long begins with the shortest pause again.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// A task that the whole replica depends on has ended.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("task `{name}` {reason}")]
#[non_exhaustive]
pub struct TaskFailure {
    /// Which task.
    pub name: &'static str,
    /// `panicked: …` with the panic's text, or `ended`.
    pub reason: String,
}

/// The tasks of one replica. Clones are the same supervisor.
#[derive(Clone, Debug)]
pub(crate) struct Supervisor {
    stopped: CancellationToken,
    tasks: Arc<Mutex<JoinSet<()>>>,
    failure: Arc<watch::Sender<Option<TaskFailure>>>,
}

impl Supervisor {
    pub(crate) fn new() -> Self {
        Self {
            stopped: CancellationToken::new(),
            tasks: Arc::default(),
            failure: Arc::new(watch::Sender::new(None)),
        }
    }

    /// Runs a task that the replica depends on until the replica stops.
    pub(crate) fn run(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let supervisor = self.clone();
        self.spawn(async move {
            let reason = match caught(task).await {
                Ok(()) => "ended".to_owned(),
                Err(panic) => format!("panicked: {panic}"),
            };
            tracing::error!(task = name, reason, "a task of the replica has failed");
            // The first failure is the cause.
            supervisor.failure.send_if_modified(|failure| {
                let is_first = failure.is_none();
                failure.get_or_insert(TaskFailure { name, reason });
                is_first
            });
        });
    }

    /// Runs a task that can be begun anew at any time without harm.
    pub(crate) fn restart<T>(&self, name: &'static str, begin: impl Fn() -> T + Send + 'static)
    where
        T: Future<Output = ()> + Send + 'static,
    {
        self.spawn(async move {
            let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
            loop {
                let begun = Instant::now();
                let reason = match caught(begin()).await {
                    Ok(()) => "ended".to_owned(),
                    Err(panic) => format!("panicked: {panic}"),
                };
                if begun.elapsed() >= HEALTHY_AFTER {
                    backoff.reset();
                }
                let pause = backoff.next();
                let backoff_ms = pause.as_millis() as u64;
                tracing::error!(
                    task = name,
                    reason,
                    backoff_ms,
                    "a task has failed and is restarted"
                );
                tokio::time::sleep(pause).await;
            }
        });
    }

    /// Runs a short task whose end means nothing, such as one question to Redis.
    pub(crate) fn run_once(&self, task: impl Future<Output = ()> + Send + 'static) {
        // The panic itself is in the log by now.
        self.spawn(caught(task).map(drop));
    }

    /// Runs the task of one peer, counted by `peers`, until it ends or the replica stops.
    pub(crate) fn serve(
        &self,
        peers: &TaskTracker,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let stopped = self.stopped.clone();
        // Boxed: each future around it would hold its thousands of bytes once more, for every connection.
        let task = Box::pin(task);
        peers.spawn(async move {
            stopped.run_until_cancelled(task).await;
        });
    }

    /// Which task has failed, if any.
    pub(crate) fn failure(&self) -> Option<TaskFailure> {
        self.failure.borrow().clone()
    }

    /// Waits until a task that the replica depends on has failed.
    pub(crate) async fn failed(&self) -> TaskFailure {
        let mut failure = self.failure.subscribe();
        loop {
            if let Some(failure) = &*failure.borrow_and_update() {
                return failure.clone();
            }
            if failure.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Ends every task at once.
    pub(crate) fn stop(&self) {
        self.stopped.cancel();
        self.tasks().abort_all();
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks();
        while tasks.try_join_next().is_some() {}
        if !self.stopped.is_cancelled() {
            tasks.spawn(task);
        }
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().expect("no code panics with this lock held")
    }
}

/// The result of `task`; if it panicked, the panic's text. The task is gone then, with all that it held.
pub(crate) async fn caught<T>(task: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(task).catch_unwind().await.map_err(|panic| text_of(&*panic))
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "no text".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::mpsc;

    use super::*;

    /// Closed when it is dropped.
    #[derive(Clone)]
    struct Guard(#[expect(dead_code, reason = "only its end is seen")] mpsc::Sender<()>);

    #[tokio::test]
    async fn a_task_that_panics_is_a_failure_with_its_name_and_text() {
        let supervisor = Supervisor::new();
        supervisor.run("steady", std::future::pending());
        assert_eq!(supervisor.failure(), None);

        supervisor.run("feed", async { panic!("out of {}", "luck") });
        let failure = supervisor.failed().await;

        assert_eq!(failure.to_string(), "task `feed` panicked: out of luck");
        assert_eq!(supervisor.failure(), Some(failure.clone()));
        // Whatever fails because of it is not the cause.
        supervisor.run("replies", async {});
        tokio::task::yield_now().await;
        assert_eq!(supervisor.failed().await, failure);
    }

    #[tokio::test]
    async fn a_task_that_ends_is_a_failure_too() {
        let supervisor = Supervisor::new();

        supervisor.run("feed", async {});

        assert_eq!(supervisor.failed().await.to_string(), "task `feed` ended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_may_be_restarted_is_with_growing_pauses() {
        let supervisor = Supervisor::new();
        let begun = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&begun);

        supervisor.restart("reaper", move || {
            let number = count.fetch_add(1, Ordering::SeqCst);
            async move { assert!(number % 2 == 1, "number {number}") }
        });
        tokio::time::sleep(Duration::from_millis(3_600)).await;

        // At 0, 500, 1,500 and 3,500 ms at the latest; a fifth beginning is after 3,750 ms at the earliest.
        assert_eq!(begun.load(Ordering::SeqCst), 4);
        assert_eq!(supervisor.failure(), None);
    }

    #[tokio::test]
    async fn a_stop_ends_every_task_at_once_and_is_not_a_failure() {
        let supervisor = Supervisor::new();
        let peers = TaskTracker::new();
        let (ended, mut all) = mpsc::channel(1);
        let task = |guard: Guard| async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        };
        supervisor.run("feed", task(Guard(ended.clone())));
        let guard = ended.clone();
        supervisor.restart("reaper", move || task(Guard(guard.clone())));
        supervisor.serve(&peers, task(Guard(ended)));

        supervisor.stop();

        assert_eq!(all.recv().await, None, "every guard is gone");
        peers.close();
        peers.wait().await;
        assert_eq!(supervisor.failure(), None);
        supervisor.run("late", async { panic!("must not run") });
        tokio::task::yield_now().await;
        assert_eq!(supervisor.failure(), None);
    }

    #[tokio::test]
    async fn a_panic_in_one_peers_task_concerns_nobody_else() {
        let supervisor = Supervisor::new();
        let peers = TaskTracker::new();
        supervisor.serve(&peers, async { panic!("only here") });
        supervisor.serve(&peers, async {});
        peers.close();

        peers.wait().await;

        assert_eq!(supervisor.failure(), None);
    }
}
