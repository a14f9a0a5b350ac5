//! ◆ What an agent notes beside its lease: runs that began and ended, channels that it serves and leaves.
//!
//! [`Lease`] → **note** → [`standing`](super::standing). A note says what was added and removed, so it costs what
//! has changed, however much is noted already. A run leaves the note in the step that tells its end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use protocol::agent::body::{ListChange, NoteCall};
use protocol::limits::{AGENT_CHANNELS_MAX, OPEN_RUNS_MAX};
use protocol::{Channel, Kind};
use uuid::Uuid;

use super::lease::{Lease, LeaseError, LeaseState};
use super::loss::OpenRuns;
use super::renewal::{Held, Written};
use super::standing::{self, Standing};
use super::{
    Change, Condition, Decision, Effect, Holder, Index, Record, Snapshot, Transacted, copy,
};
use crate::{AppendError, Journal, Name, NewEntry, Unavailable};

/// A run's end as it is told.
struct Told<'a> {
    record: Record,
    entry: &'a NewEntry,
}

fn effects(note: &NoteCall, holder: &Holder) -> Vec<Effect> {
    let (runs, channels) = indexes(holder);
    let put = |index: &Index, id: &str| Effect::Put(index.clone(), id.into(), "".into());
    let remove = |index: &Index, id: &str| Effect::Remove(index.clone(), id.into());
    let NoteCall { runs: r, channels: c } = note;
    let effects = r.added.iter().map(|run| put(&runs, run));
    let effects = effects.chain(r.removed.iter().map(|run| remove(&runs, run)));
    let effects = effects.chain(c.added.iter().map(|c| put(&channels, c.as_str())));
    effects.chain(c.removed.iter().map(|c| remove(&channels, c.as_str()))).collect()
}

fn indexes(holder: &Holder) -> (Index, Index) {
    let producer: Box<str> = holder.producer().into();
    (Index::Runs(producer.clone()), Index::Channels(producer))
}

impl Written {
    /// The indexes are as they are written here, whatever Redis held before.
    fn restored(&self, holder: &Holder) -> Vec<Effect> {
        let (runs, channels) = indexes(holder);
        let mut effects = vec![Effect::Clear(runs), Effect::Clear(channels)];
        let all = NoteCall {
            runs: ListChange { added: self.runs.iter().cloned().collect(), removed: Vec::new() },
            channels: ListChange {
                added: self.channels.iter().cloned().collect(),
                removed: Vec::new(),
            },
        };
        effects.extend(self::effects(&all, holder));
        effects
    }

    fn has_room(&self, note: &NoteCall) -> bool {
        let NoteCall { runs, channels } = note;
        let begin = runs.added.iter().filter(|run| !self.runs.contains(*run)).count();
        let come =
            channels.added.iter().filter(|channel| !self.channels.contains(*channel)).count();
        (begin == 0 || self.runs.len() + begin <= OPEN_RUNS_MAX)
            && (come == 0 || self.channels.len() + come <= AGENT_CHANNELS_MAX)
    }

    /// What the journal probably has.
    fn guess(&self) -> Snapshot {
        let state = serde_json::to_string(&self.state).expect("states are plain data");
        Snapshot { state: Some(state), ..Snapshot::default() }
    }

    /// As the journal has it.
    pub(super) async fn read(
        &mut self,
        journal: &Journal,
        channel: &Channel,
        holder: &Holder,
    ) -> Result<(), Unavailable> {
        let (runs, channels) = indexes(holder);
        let runs = journal.list(channel, &runs).await?;
        self.runs = runs.into_iter().map(|(run, _)| run).collect();
        let channels = journal.list(channel, &channels).await?;
        self.channels = channels.iter().filter_map(|(channel, _)| channel.parse().ok()).collect();
        Ok(())
    }
}

/// What is written of a lease that is held.
pub(super) struct Keeping {
    change: Change,
    state: LeaseState,
    /// The journal had lost it, or had an older one.
    is_restored: bool,
}

/// Why nothing is written of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotHeld {
    Released,
    Fenced,
    /// The same life has taken it anew, on another connection: it is that one's to keep.
    TakenAnew,
}

/// What a note, an end, or a renewal that found the lease missing, writes of it.
pub(super) fn kept(
    found: Option<LeaseState>,
    open: &OpenRuns,
    held: &Held,
    written: &Written,
    note: &NoteCall,
    (step, lasts): (Uuid, Duration),
) -> Result<Keeping, NotHeld> {
    let holder = &held.holder;
    let found_version = found.as_ref().map_or(0, |state| state.version);
    let (state, older, is_restored) = match standing::of(found, holder) {
        Standing::Own(state) => {
            let is_newer = state.version > written.state.version;
            match is_newer && state.taking != held.taking {
                true if note.is_empty() => return Err(NotHeld::TakenAnew),
                true => (state, None, false),
                false if state.version == written.state.version => (state, None, false),
                // Redis came back with an older one, or the answer to a step was lost.
                false => (written.state.clone(), None, true),
            }
        }
        Standing::Missing => (written.state.clone(), None, true),
        Standing::Older(older) => (written.state.clone(), Some(older), true),
        Standing::Released => return Err(NotHeld::Released),
        Standing::Fenced => return Err(NotHeld::Fenced),
    };
    let version = found_version.max(written.state.version) + 1;
    let state = LeaseState { version, step, ..state };
    let mut change = Change::new(&state);
    change.effects = standing::alive(holder, version, lasts);
    if is_restored {
        change.effects.extend(written.restored(holder));
        change.effects.push(standing::seen(&held.record.channel));
    }
    change.effects.extend(effects(note, holder));
    if let Some(older) = &older {
        standing::take_over(&mut change, &held.record, older, open);
    }
    Ok(Keeping { change, state, is_restored })
}

impl Lease {
    /// Notes beside the lease which runs and channels came and went: for the case that the agent dies, and for
    /// those who ask what it does. Noting the same again is harmless.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub async fn note(&self, note: &NoteCall) -> Result<(), LeaseError> {
        self.journal.write(&self.held, note, None).await
    }

    /// Tells the end of a run, once: in one step it is appended to this channel's events, and the run leaves the
    /// note. On the agent's own channel it is then copied to the firehose, by a reaper where this agent dies over it. `entry` needs an
    /// idempotency key, which is the end's: said again, it happens once. What is given back resolves when the
    /// copy is written; dropped, it is written all the same.
    ///
    /// # Errors
    /// [`LeaseError`]. Where the agent is fenced, the end is told by the one who declared it lost.
    pub async fn end_run(
        &self,
        run_id: &str,
        entry: &NewEntry,
    ) -> Result<BoxFuture<'static, ()>, LeaseError> {
        // The end of another run is another end, whatever its key.
        let end = format!("{} {run_id}", entry.idempotency_key.as_deref().unwrap_or_default());
        let end = Uuid::new_v5(&Uuid::NAMESPACE_OID, end.as_bytes());
        let record = copy::record(self.channel(), &end.to_string());
        let note = NoteCall::ended([run_id.into()]);
        let told = Told { record: record.clone(), entry };
        self.journal.write(&self.held, &note, Some(told)).await?;
        if self.channel().kind() != Kind::Agent {
            return Ok(ready(()).boxed());
        }
        let journal = self.journal.clone();
        let copy = NewEntry { idempotency_key: Some(record.id.clone()), ..entry.clone() };
        let enqueued =
            self.journal.enqueue(&Name::events(Channel::global_events()), vec![copy]).await;
        let copying = async move {
            let copied = async {
                let failed = |error: AppendError| Unavailable(error.to_string());
                enqueued.map_err(failed)?.await.map_err(failed)?;
                journal.copied(&record).await
            };
            copy::at_once(&record, copied).await;
        };
        Ok(copying.boxed())
    }
}

impl Journal {
    /// A lease that Redis does not know as this one: Redis has lost it, then it is written again, with all that is
    /// known of it; or the agent was fenced.
    pub(super) async fn restore(&self, held: &Held) -> Result<(), LeaseError> {
        self.write(held, &NoteCall::default(), None).await
    }

    /// One step of a lease that is held. Steps of one lease wait for each other.
    async fn write(
        &self,
        held: &Held,
        note: &NoteCall,
        told: Option<Told<'_>>,
    ) -> Result<(), LeaseError> {
        let mut written = held.written.lock().await;
        if !written.has_room(note) {
            return Err(LeaseError::Full);
        }
        let step = Uuid::new_v4();
        let rule = |found: Option<LeaseState>, open: &OpenRuns, _| match kept(
            found,
            open,
            held,
            &written,
            note,
            (step, self.lease),
        ) {
            Ok(Keeping { mut change, state, is_restored }) => {
                if let Some(told) = &told {
                    told.tell(&mut change, &held.holder);
                }
                Decision::Set(change, Ok((state, is_restored)))
            }
            Err(not_held) => Decision::Keep(Err(not_held)),
        };
        let (below, guess) = (held.holder.incarnation, written.guess());
        match self.transact_with_runs(&held.record, Some(guess), below, rule).await? {
            Transacted::Done(Ok((state, is_restored))) => {
                let parent = state.parent.clone().filter(|_| is_restored);
                held.version.store(state.version, Ordering::SeqCst);
                written.state = state;
                note.runs.apply(&mut written.runs);
                note.channels.apply(&mut written.channels);
                drop(written);
                if let Some(parent) = parent {
                    // Boxed: every note would hold its room otherwise.
                    Box::pin(self.adopt_again(&parent, &held.holder)).await?;
                }
                Ok(())
            }
            // The end was told before, and its answer was lost; or another end has its key.
            Transacted::Unmet => {
                note.runs.apply(&mut written.runs);
                match &told {
                    Some(told) if !self.was_told(&told.record, told.entry).await? => {
                        Err(LeaseError::Conflict)
                    }
                    _ => Ok(()),
                }
            }
            // The agent has left, and nothing is to be noted.
            Transacted::Done(Err(NotHeld::Released)) if told.is_none() => Ok(()),
            Transacted::Done(Err(NotHeld::TakenAnew)) => Ok(()),
            Transacted::Done(Err(_)) | Transacted::Fenced => {
                held.lost.cancel();
                Err(LeaseError::Fenced)
            }
        }
    }
}

impl Told<'_> {
    fn tell(&self, change: &mut Change, holder: &Holder) {
        let NewEntry { name, data, .. } = self.entry;
        change.condition = Condition::Absent(self.record.clone());
        change.holder = Some(holder.clone());
        change.effects.push(Effect::Event(NewEntry::new(name.clone(), data.clone())));
        change.effects.extend(copy::owed(&self.record, self.entry));
    }
}
