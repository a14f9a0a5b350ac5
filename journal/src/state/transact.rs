//! One step of a record: the record is read, a pure rule decides, and the decision is committed only if the
//! record is still the one that was read.
//!
//! Rules are [`command`](super::command), [`work`](super::work), [`approval`](super::approval),
//! [`lease`](super::lease), [`loss`](super::loss) and [`family`](super::family). They do no I/O and may run
//! several times. This is the only place that retries a conflict. No rule needs a second record today.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Deadline, Effect, Holder, Index, Record};
use crate::{Journal, Unavailable};

/// How often a rule runs when others change the same record at the same time. Each conflict is somebody
/// else's progress, so only a bug reaches this.
const ATTEMPTS_MAX: usize = 100;

/// What a rule decides.
#[derive(Debug)]
pub(crate) enum Decision<A> {
    /// Nothing changes.
    Keep(A),
    /// This change is made, or the rule runs again on what the record has become.
    Set(Change, A),
}

impl<A> Decision<A> {
    /// The same decision with another answer.
    pub(crate) fn map<B>(self, f: impl FnOnce(A) -> B) -> Decision<B> {
        match self {
            Self::Keep(answer) => Decision::Keep(f(answer)),
            Self::Set(change, answer) => Decision::Set(change, f(answer)),
        }
    }
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Transacted<A> {
    /// What the rule decided holds.
    Done(A),
    /// The change's condition does not hold.
    Unmet,
    /// The change's holder is fenced.
    Fenced,
}

/// A record as it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The journal's clock, Unix milliseconds.
    pub(crate) now_ms: u64,
    pub(crate) state: Option<String>,
}

/// One atomic step.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// The record's new state; `None` removes it.
    pub(crate) state: Option<String>,
    /// How long the state is kept from now on; `None`: until it is changed.
    pub(crate) lifetime: Option<Duration>,
    pub(crate) condition: Condition,
    /// Who makes the change: refused where that incarnation is fenced.
    pub(crate) holder: Option<Holder>,
    pub(crate) effects: Vec<Effect>,
}

/// Under what condition a change is made, beside the record's being the one that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Always,
    /// The deadline has fallen due, by the journal's clock.
    Due(Deadline),
    /// The deadline has not fallen due.
    InTime(Deadline),
    /// The index holds fewer than so many, or the record's id already.
    Room(Index, u64),
    /// The same of an index in which each member has an owner, for this record's place there.
    Part(Index, Part),
    /// Another record of the channel has no state.
    Absent(Record),
}

/// An owner's place in an index, and how many there may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// With what its members begin, up to a space.
    pub(crate) owner: Box<str>,
    /// The record's place: the owner, a space, an id.
    pub(crate) member: Box<str>,
    pub(crate) of_owner: u64,
    pub(crate) of_all: u64,
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Committed {
    /// Made, now or by an earlier attempt of the same.
    Done,
    /// The record is another by now.
    Conflict(Snapshot),
    Unmet,
    Fenced,
}

impl Change {
    /// A change to `state` that is always made, for good, and that is told to nobody.
    pub(crate) fn new(state: &impl Serialize) -> Self {
        let state = serde_json::to_string(state).expect("states are plain data");
        Self { state: Some(state), ..Self::removal() }
    }

    /// The record goes.
    pub(crate) fn removal() -> Self {
        Self {
            state: None,
            lifetime: None,
            condition: Condition::Always,
            holder: None,
            effects: Vec::new(),
        }
    }
}

impl<A> Transacted<A> {
    /// The answer, where the change had neither a condition nor a holder, or it does not matter.
    pub(super) fn done(self) -> Option<A> {
        match self {
            Self::Done(answer) => Some(answer),
            Self::Unmet | Self::Fenced => None,
        }
    }
}

impl Journal {
    /// Reads `record`, has `rule` decide from its state and the journal's clock, and commits that.
    pub(super) async fn transact<S: DeserializeOwned, A>(
        &self,
        record: &Record,
        rule: impl Fn(Option<S>, u64) -> Decision<A>,
    ) -> Result<Transacted<A>, Unavailable> {
        let found = self.snapshot(record).await?;
        self.transact_from(record, found, rule).await
    }

    /// The same from a guess: where it is wrong, the first commit says so.
    pub(super) async fn transact_from<S: DeserializeOwned, A>(
        &self,
        record: &Record,
        mut found: Snapshot,
        rule: impl Fn(Option<S>, u64) -> Decision<A>,
    ) -> Result<Transacted<A>, Unavailable> {
        for _ in 0..ATTEMPTS_MAX {
            let (change, answer) = match rule(read(record, found.state.as_deref()), found.now_ms) {
                Decision::Keep(answer) => return Ok(Transacted::Done(answer)),
                Decision::Set(change, answer) => (change, answer),
            };
            match self.commit(record, found.state.as_deref(), &change).await? {
                Committed::Done => return Ok(Transacted::Done(answer)),
                Committed::Conflict(now) => found = now,
                Committed::Unmet => return Ok(Transacted::Unmet),
                Committed::Fenced => return Ok(Transacted::Fenced),
            }
        }
        Err(Unavailable(format!("{record} changes without end")))
    }

    /// A record's state, where nothing is to be changed.
    pub(super) async fn state<S: DeserializeOwned>(
        &self,
        record: &Record,
    ) -> Result<Option<S>, Unavailable> {
        Ok(read(record, self.snapshot(record).await?.state.as_deref()))
    }
}

/// A state as its type. One that cannot be read counts as absent: it is from a foreign writer or another
/// version.
pub(super) fn read<T: DeserializeOwned>(record: &Record, state: Option<&str>) -> Option<T> {
    let state = state?;
    match serde_json::from_str(state) {
        Ok(state) => Some(state),
        Err(error) => {
            let error = protocol::shown(&error.to_string(), 200);
            tracing::warn!(%record, error, "a record cannot be read and counts as absent");
            None
        }
    }
}
