//! Repeats in the log: of each kind of line so many a second, then only how many were left out. Nobody who can
//! cause a line can fill a disk with it, or hide the other lines.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

const PERIOD: Duration = Duration::from_secs(1);
/// Lines of one kind in a period: as many as a person could read.
const LINES_MAX: u64 = 10;
/// The same for `debug` and `trace`: who asks for these wants every line, but not a full disk.
const FINE_LINES_MAX: u64 = 1_000;

/// Lets through so many lines of each kind, that is, of each place in the code.
pub(super) struct Collapse {
    kinds: Arc<Mutex<Kinds<Identifier>>>,
    /// Has the reporter look, one period later.
    left_out: SyncSender<()>,
}

impl Collapse {
    /// Begins to count. A thread says what was left out, also when nothing is logged any more.
    pub(super) fn start() -> Self {
        let kinds = Arc::<Mutex<Kinds<Identifier>>>::default();
        let (left_out, received) = sync_channel(1);
        let reported = Arc::clone(&kinds);
        let reporter = move || report(&reported, &received);
        // Without it lines are left out in silence, which is better than not to start.
        drop(thread::Builder::new().name("log".to_owned()).spawn(reporter));
        Self { kinds, left_out }
    }
}

impl<S: Subscriber> Layer<S> for Collapse {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let (kind, level) = (event.metadata().callsite(), *event.metadata().level());
        let verdict = lock(&self.kinds).count(kind.clone(), level, Instant::now());
        match verdict {
            Verdict::Written => true,
            Verdict::LeftOut => false,
            Verdict::FirstLeftOut => {
                // Not under the lock: to format a value may log something.
                let mut message = Message::default();
                event.record(&mut message);
                lock(&self.kinds).name(&kind, message.0);
                // The reporter was told already where there is no room.
                self.left_out.try_send(()).ok();
                false
            }
        }
    }
}

fn lock(kinds: &Mutex<Kinds<Identifier>>) -> MutexGuard<'_, Kinds<Identifier>> {
    kinds.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(clippy::disallowed_methods, reason = "its thread is its own, not the runtime's")]
fn report(kinds: &Mutex<Kinds<Identifier>>, received: &Receiver<()>) {
    while received.recv().is_ok() {
        thread::sleep(PERIOD);
        let left_out = lock(kinds).take_left_out();
        for Kind { level, message: kind, left_out, .. } in left_out {
            match level {
                Level::ERROR | Level::WARN => tracing::warn!(kind, left_out, "{LEFT_OUT}"),
                Level::INFO => tracing::info!(kind, left_out, "{LEFT_OUT}"),
                _ => tracing::debug!(kind, left_out, "{LEFT_OUT}"),
            }
        }
    }
}

const LEFT_OUT: &str = "lines of one kind were left out: there were too many a second";

/// How often each kind was logged in its period. As many as there are places in the code that log.
struct Kinds<K>(HashMap<K, Kind>);

impl<K> Default for Kinds<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Kind {
    since: Instant,
    lines: u64,
    left_out: u64,
    level: Level,
    /// Of the first line that was left out.
    message: String,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Written,
    FirstLeftOut,
    LeftOut,
}

impl<K: Eq + Hash> Kinds<K> {
    fn count(&mut self, kind: K, level: Level, now: Instant) -> Verdict {
        let new = Kind { since: now, lines: 0, left_out: 0, level, message: String::new() };
        let kind = self.0.entry(kind).or_insert(new);
        if now.saturating_duration_since(kind.since) >= PERIOD {
            (kind.since, kind.lines) = (now, 0);
        }
        kind.lines += 1;
        let most = if level <= Level::INFO { LINES_MAX } else { FINE_LINES_MAX };
        if kind.lines <= most {
            return Verdict::Written;
        }
        kind.left_out += 1;
        if kind.left_out == 1 { Verdict::FirstLeftOut } else { Verdict::LeftOut }
    }

    fn name(&mut self, kind: &K, message: String) {
        if let Some(kind) = self.0.get_mut(kind) {
            kind.message = message;
        }
    }

    /// The kinds of which lines were left out since they were asked for last.
    fn take_left_out(&mut self) -> Vec<Kind> {
        let taken = self.0.values_mut().filter(|kind| kind.left_out > 0).map(|kind| {
            let taken = kind.clone();
            kind.left_out = 0;
            taken
        });
        taken.collect()
    }
}

#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_so_many_a_second_lines_are_counted_and_the_count_is_said_once() {
        let (mut kinds, start) = (Kinds::<u8>::default(), Instant::now());
        let mut written = |kind, level, times: u64, at_ms| {
            let now = start + Duration::from_millis(at_ms);
            let verdicts = (0..times).map(|_| kinds.count(kind, level, now));
            verdicts.filter(|verdict| *verdict == Verdict::Written).count() as u64
        };
        assert_eq!(written(1, Level::INFO, 1_000, 0), LINES_MAX);
        assert_eq!(written(2, Level::INFO, 1, 1), 1, "another kind");
        assert_eq!(written(3, Level::DEBUG, 5_000, 2), FINE_LINES_MAX);
        assert_eq!(written(1, Level::INFO, 1_000, 999), 0);
        assert_eq!(written(1, Level::INFO, 3, 1_000), 3, "another second");

        kinds.name(&1, "x".to_owned());
        let mut left_out: Vec<(u64, String)> =
            kinds.take_left_out().into_iter().map(|kind| (kind.left_out, kind.message)).collect();
        left_out.sort();

        assert_eq!(left_out, [(1_990, "x".to_owned()), (4_000, String::new())]);
        assert!(kinds.take_left_out().is_empty());
    }
}
