//! The runs that are current: which of them a Cancel reaches, and which must still be ended.
//!
//! [`cancel`](crate::commands), [`Run`](crate::Run) → **runs** → the callers that wait for
//! [`Run::cancelled`](crate::Run::cancelled)
//!
//! A Cancel reaches the runs that are current when it arrives, and nothing else: not the next run,
//! not the run of another agent or of another session. One that names a run which has not begun is
//! kept for it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use journal::Parent;
use protocol::limits::RUN_ID_BYTES_MAX;
use protocol::{Channel, Kind};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::reason::Cancellation;
use crate::{Reason, RunIdError};

/// How long a Cancel waits for its run to begin.
pub(crate) const EARLY_LASTS: Duration = Duration::from_secs(600);
/// How many may wait so.
const EARLY_MAX: usize = 256;
/// How many runs are remembered as ended, so that a late Cancel is told so.
const ENDED_MAX: usize = 256;

tokio::task_local! {
    /// The run within whose scope this code runs.
    static WITHIN: Current;
}

#[derive(Debug, Default)]
pub(crate) struct Runs {
    state: Mutex<RunsState>,
    /// The run, of another agent in this process, for which this agent was spawned.
    parent: Option<Current>,
    /// How many are current.
    count: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct RunsState {
    next_key: u64,
    current: HashMap<u64, Current>,
    /// Announced, and their end is not written yet.
    noted: HashMap<u64, Current>,
    early: VecDeque<Early>,
    ended: VecDeque<(Arc<str>, Channel)>,
    /// Every run is cancelled so, those that begin from now on too.
    all_cancelled: Option<Cancellation>,
}

/// A Cancel whose run has not begun.
#[derive(Debug)]
struct Early {
    channel: Channel,
    run_id: Box<str>,
    cancellation: Cancellation,
    until: Instant,
    begun: CancellationToken,
}

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct Current {
    pub(crate) key: u64,
    pub(crate) id: Arc<str>,
    /// The session it was begun on, or the agent's own channel.
    pub(crate) channel: Channel,
    pub(crate) token: CancellationToken,
    cancellation: Arc<OnceLock<Cancellation>>,
    /// Cancelled, it cancels this one.
    parent: Option<Arc<Current>>,
}

/// What a Cancel hits.
#[derive(Debug)]
pub(crate) enum Hit {
    /// At least one run.
    Cancelled,
    /// Nothing runs.
    Nothing,
    /// The run it names has ended.
    Ended,
    /// The run it names has not begun; this is cancelled when it does.
    Early(CancellationToken),
    /// Too many wait for runs that have not begun.
    TooMany,
}

impl Current {
    pub(crate) fn cancel(&self, why: Cancellation) {
        self.mark(why);
        self.token.cancel();
    }

    /// Says why it is cancelled, before it is: the first cancellation is remembered.
    fn mark(&self, why: Cancellation) {
        if self.cancellation().is_none() {
            self.cancellation.get_or_init(|| why);
        }
    }

    /// Why it is cancelled: it, or the run that it is a part of.
    pub(crate) fn cancellation(&self) -> Option<&Cancellation> {
        self.cancellation.get().or_else(|| self.parent.as_ref()?.cancellation())
    }

    /// Does `work` within this run's scope: a run that it begins is a part of this one.
    pub(crate) async fn within<T>(&self, work: impl Future<Output = T>) -> T {
        WITHIN.scope(self.clone(), work).await
    }

    /// The run, as what has spawned another agent.
    pub(crate) fn as_parent(&self, agent_id: &str) -> Parent {
        Parent {
            agent_id: agent_id.into(),
            run_id: Some((&*self.id).into()),
            session: (self.channel.kind() == Kind::Session).then(|| self.channel.clone()),
        }
    }

    /// An id that is too long is not written anywhere.
    pub(crate) fn check_id(&self) -> Result<(), RunIdError> {
        match self.id.len() {
            0..=RUN_ID_BYTES_MAX => Ok(()),
            bytes => Err(RunIdError { bytes }),
        }
    }

    /// Whether a Cancel on `channel` means it: sent to the agent, all; sent to a session, those
    /// begun on it.
    fn is_meant(&self, channel: &Channel, run_id: Option<&str>) -> bool {
        is_reached(channel, &self.channel) && run_id.is_none_or(|id| id == &*self.id)
    }
}

/// Each knows why before the first one ends: what drops one run may drop others with it. False where there are none.
fn cancel_each<'a>(runs: impl Iterator<Item = &'a Current> + Clone, why: &Cancellation) -> bool {
    let mut any = false;
    for run in runs.clone() {
        run.mark(why.clone());
        any = true;
    }
    runs.for_each(|run| run.token.cancel());
    any
}

fn is_reached(channel: &Channel, of_run: &Channel) -> bool {
    channel.kind() == Kind::Agent || channel == of_run
}

impl Runs {
    /// Of an agent that was spawned for `parent`.
    pub(crate) fn new(parent: Option<Current>) -> Self {
        Self { parent, ..Self::default() }
    }

    /// A run that is a part of `parent`; without one, of the run within whose scope it begins, or for which the agent
    /// was spawned, if there is such a run.
    pub(crate) fn begin(&self, channel: &Channel, id: String, parent: Option<&Current>) -> Current {
        let within = || WITHIN.try_with(Clone::clone).ok();
        let parent = parent.cloned().or_else(within).or_else(|| self.parent.clone());
        let token = parent.as_ref().map_or_else(CancellationToken::new, |p| p.token.child_token());
        let mut state = self.state();
        state.next_key += 1;
        let current = Current {
            key: state.next_key,
            id: id.into(),
            channel: channel.clone(),
            token,
            cancellation: Arc::default(),
            parent: parent.map(Arc::new),
        };
        let now = Instant::now();
        let early = state.early.iter().position(|early| {
            early.until > now && current.is_meant(&early.channel, Some(&early.run_id))
        });
        if let Some(early) = early.and_then(|at| state.early.remove(at)) {
            current.cancel(early.cancellation);
            early.begun.cancel();
        }
        if let Some(cancellation) = &state.all_cancelled {
            current.cancel(cancellation.clone());
        }
        state.current.insert(current.key, current.clone());
        self.count.send_replace(state.current.len());
        current
    }

    /// From now on the run's end is owed.
    pub(crate) fn note(&self, run: &Current) {
        self.state().noted.insert(run.key, run.clone());
    }

    /// The run's end is written.
    pub(crate) fn unnote(&self, key: u64) {
        self.state().noted.remove(&key);
    }

    pub(crate) fn is_noted(&self, key: u64) -> bool {
        self.state().noted.contains_key(&key)
    }

    /// The run has ended. The caller that finds that it was current until now says its end: `say` puts that into the
    /// buffer before others, which wait for the last run or close the agent, can see that the run is over.
    pub(crate) fn end<T>(&self, key: u64, say: impl FnOnce() -> T) -> Option<T> {
        let mut state = self.state();
        let run = state.current.remove(&key)?;
        let said = say();
        state.ended.push_back((run.id, run.channel));
        if state.ended.len() > ENDED_MAX {
            state.ended.pop_front();
        }
        self.count.send_replace(state.current.len());
        Some(said)
    }

    /// Cancels the current runs that a Cancel on `channel` means.
    pub(crate) fn cancel(
        &self,
        channel: &Channel,
        run_id: Option<&str>,
        cancellation: &Cancellation,
    ) -> Hit {
        let mut state = self.state();
        let meant = |run: &&Current| run.is_meant(channel, run_id);
        let any = cancel_each(state.current.values().filter(meant), cancellation);
        let Some(run_id) = run_id.filter(|_| !any) else {
            return if any { Hit::Cancelled } else { Hit::Nothing };
        };
        let is_it =
            |(id, of_run): &(Arc<str>, Channel)| **id == *run_id && is_reached(channel, of_run);
        if state.ended.iter().any(is_it) {
            return Hit::Ended;
        }
        let now = Instant::now();
        state.early.retain(|early| early.until > now);
        if state.early.len() >= EARLY_MAX {
            return Hit::TooMany;
        }
        let begun = CancellationToken::new();
        state.early.push_back(Early {
            channel: channel.clone(),
            run_id: run_id.into(),
            cancellation: cancellation.clone(),
            until: now + EARLY_LASTS,
            begun: begun.clone(),
        });
        Hit::Early(begun)
    }

    /// Cancels every run, and those that begin from now on.
    pub(crate) fn cancel_all(&self, reason: Reason) {
        let mut state = self.state();
        cancel_each(state.current.values(), &reason.into());
        state.all_cancelled.get_or_insert(reason.into());
    }

    /// Those whose end is owed, and that have not ended.
    pub(crate) fn owed(&self) -> Vec<Current> {
        let state = self.state();
        let noted = state.noted.values();
        noted.filter(|run| state.current.contains_key(&run.key)).cloned().collect()
    }

    /// Waits until no run is current.
    pub(crate) async fn all_ended(&self) {
        // The sender lives as long as this.
        self.count.subscribe().wait_for(|count| *count == 0).await.ok();
    }

    fn state(&self) -> MutexGuard<'_, RunsState> {
        self.state.lock().expect("no code panics with this lock held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody() -> Cancellation {
        Cancellation::by_user(None, None)
    }

    #[test]
    fn a_cancel_reaches_the_runs_it_means_and_no_other() {
        let runs = Runs::default();
        let agent = Channel::agent("a").unwrap();
        let (one, two) = (Channel::session("1").unwrap(), Channel::session("2").unwrap());
        assert!(matches!(runs.cancel(&agent, None, &nobody()), Hit::Nothing), "nothing is current");

        let a = runs.begin(&one, "run-a".to_owned(), None);
        let b = runs.begin(&two, "run-b".to_owned(), None);
        let c = runs.begin(&agent, "run-c".to_owned(), None);
        let state = || [&a, &b, &c].map(|run| run.token.is_cancelled());
        assert_eq!(state(), [false; 3], "an earlier cancel does nothing later on");

        assert!(matches!(runs.cancel(&agent, Some("run-x"), &nobody()), Hit::Early(_)));
        assert!(matches!(runs.cancel(&one, Some("run-b"), &nobody()), Hit::Early(_)));
        assert!(matches!(runs.cancel(&one, None, &nobody()), Hit::Cancelled));
        assert_eq!(state(), [true, false, false]);
        assert!(matches!(runs.cancel(&agent, Some("run-b"), &nobody()), Hit::Cancelled));
        assert_eq!(state(), [true, true, false]);
        assert!(
            runs.end(c.key, || ()).is_some() && runs.end(c.key, || ()).is_none(),
            "a run ends once"
        );
        runs.cancel(&agent, None, &nobody());
        assert_eq!(state(), [true, true, false], "what has ended is not cancelled");
        assert!(matches!(runs.cancel(&agent, Some("run-c"), &nobody()), Hit::Ended));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancel_waits_ten_minutes_for_its_run_and_no_longer() {
        let runs = Runs::default();
        let agent = Channel::agent("a").unwrap();
        let Hit::Early(begun) = runs.cancel(&agent, Some("soon"), &nobody()) else { panic!() };
        let Hit::Early(never) = runs.cancel(&agent, Some("late"), &nobody()) else { panic!() };
        assert!(!runs.begin(&agent, "other".to_owned(), None).token.is_cancelled());
        assert!(
            runs.begin(&agent, "soon".to_owned(), None).token.is_cancelled()
                && begun.is_cancelled()
        );
        assert!(!runs.begin(&agent, "soon".to_owned(), None).token.is_cancelled(), "once");
        tokio::time::advance(EARLY_LASTS).await;
        assert!(!runs.begin(&agent, "late".to_owned(), None).token.is_cancelled());
        assert!(!never.is_cancelled());
        for n in 0..EARLY_MAX {
            runs.cancel(&agent, Some(&format!("r{n}")), &nobody());
        }
        assert!(matches!(runs.cancel(&agent, Some("one more"), &nobody()), Hit::TooMany));
    }

    #[test]
    fn the_first_cancellation_is_remembered() {
        let runs = Runs::default();
        let agent = Channel::agent("a").unwrap();
        let run = runs.begin(&agent, "run".to_owned(), None);
        for by in ["ann", "ben"] {
            runs.cancel(&agent, None, &Cancellation::by_user(Some(by.to_owned()), None));
        }
        runs.cancel_all(Reason::Lost);
        assert_eq!(run.cancellation().and_then(|c| c.by.as_deref()), Some("ann"));
        let next = runs.begin(&agent, "next".to_owned(), None);
        assert_eq!(next.cancellation().map(|c| c.reason), Some(Reason::Lost));
    }
}
