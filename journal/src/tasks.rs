//! The tasks that a journal runs for all its callers: one that panics is told, since nobody waits for its end.

use std::sync::Arc;
use std::thread;

use tokio::sync::watch;

#[derive(Clone, Debug)]
pub(crate) struct Tasks(Arc<watch::Sender<Option<&'static str>>>);

impl Tasks {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }

    /// Must be called within a runtime.
    pub(crate) fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let alarm = Alarm { name, tasks: self.clone() };
        tokio::spawn(async move {
            let _alarm = alarm;
            task.await;
        });
    }

    /// Which task has panicked first, when one has.
    pub(crate) async fn failed(&self) -> &'static str {
        let mut failed = self.0.subscribe();
        loop {
            if let Some(name) = *failed.borrow_and_update() {
                return name;
            }
            if failed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

struct Alarm {
    name: &'static str,
    tasks: Tasks,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if thread::panicking() {
            self.tasks.0.send_if_modified(|failed| failed.replace(self.name).is_none());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_told_and_one_that_ends_is_not() {
        let tasks = Tasks::new();
        tasks.spawn("done", async {});
        tasks.spawn("broken", async {
            tokio::task::yield_now().await;
            panic!("out of luck");
        });
        assert_eq!(tasks.failed().await, "broken");
    }
}
