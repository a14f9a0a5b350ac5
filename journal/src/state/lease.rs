//! ◆ An agent's proof of life on a channel: held, renewed, released, or lost.
//!
//! A lease names the agent's incarnation. Whoever takes the lease anew, or finds it lost, fences the older
//! incarnation in the same step: from then on it can neither publish there nor take or finish commands. A
//! lost agent is announced once, by the one step that changes its state from alive to lost; everything
//! that may be repeated comes after it.

use std::time::Duration;

use protocol::agent::body::NoteCall;
use protocol::{Channel, Kind, Parent};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::loss::lost_event;
use super::{Change, Deadline, Decision, Effect, Holder, Index, Record, RecordKind};
use crate::{Journal, Unavailable};

/// How long a lease lasts that is not renewed, where nothing else is set.
pub const LEASE_DEFAULT: Duration = Duration::from_secs(15);
/// A shorter lease would take a moment's pause of a busy machine for an agent's death.
pub const LEASE_MIN: Duration = Duration::from_secs(2);
/// A longer lease would hide an agent's death.
pub const LEASE_MAX: Duration = Duration::from_secs(600);
/// The pace at which a release is tried again.
const RELEASE_AGAIN: Duration = Duration::from_millis(200);
/// How long the end of a lease is remembered: longer than any journal, so that a fence outlives what it
/// protects.
pub(super) const REMEMBERED: Duration = Duration::from_secs(25 * 3_600);

/// How an agent's incarnation came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LeasePhase {
    Alive,
    /// It was not renewed in time; what it left is not settled yet.
    Lost,
    /// Lost, and settled.
    Settled,
    /// It said good-bye.
    Released,
}

/// A lease's state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) phase: LeasePhase,
    pub(super) incarnation: u64,
    /// Which taking of the lease it is: no two are the same state, and who holds an older one lets it be.
    #[serde(default)]
    pub(super) taking: Uuid,
    /// Since when, Unix milliseconds.
    pub(super) since: u64,
    /// Runs that have begun and not ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) runs: Vec<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) parent: Option<Parent>,
    /// The channels it holds leases on; kept on its own channel only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) channels: Vec<Channel>,
}

/// An agent that is alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Alive {
    /// Its id.
    pub agent_id: Box<str>,
    /// Since when, Unix milliseconds.
    pub since: u64,
    /// Runs that have begun and not ended.
    pub runs: Vec<Box<str>>,
    /// The channels that it serves, its own first.
    pub channels: Vec<Channel>,
    /// Who spawned it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
}

/// Why there is no lease.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// A newer incarnation of the agent holds it, or this one was declared lost.
    #[error("a newer incarnation of the agent has taken over, or this one was declared lost")]
    Fenced,
    /// The journal could not be reached.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

pub(super) fn record(channel: &Channel, agent: &str) -> Record {
    Record { kind: RecordKind::Lease, channel: channel.clone(), id: agent.into() }
}

/// A lease that is held. It is renewed, together with all others of its [`Journal`], until it is dropped,
/// released or lost.
#[derive(Debug)]
pub struct Lease {
    journal: Journal,
    channel: Channel,
    holder: Holder,
    lost: CancellationToken,
    key: u64,
    taking: Uuid,
}

impl Lease {
    /// On which channel.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Who holds it.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// Which taking of the lease it is.
    pub fn taking(&self) -> Uuid {
        self.taking
    }

    /// Is cancelled when the lease is lost, or taken over by a newer incarnation.
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// Keeps in the record which runs are open, so that their end is told if the agent dies.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub async fn note_runs(&self, runs: Vec<Box<str>>) -> Result<(), LeaseError> {
        self.note(|state| state.runs.clone_from(&runs)).await
    }

    /// Keeps in the record on which channels the agent holds leases, for whoever asks who is alive.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub async fn note_channels(&self, channels: Vec<Channel>) -> Result<(), LeaseError> {
        self.note(|state| state.channels.clone_from(&channels)).await
    }

    /// Keeps in the record what has changed in both lists.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub async fn note_change(&self, change: &NoteCall) -> Result<(), LeaseError> {
        self.note(|state| {
            change.runs.apply(&mut state.runs);
            change.channels.apply(&mut state.channels);
        })
        .await
    }

    async fn note(&self, edit: impl Fn(&mut State)) -> Result<(), LeaseError> {
        let record = record(&self.channel, &self.holder.agent);
        let rule = |found: Option<State>, _| match found.filter(|s| s.is_held_by(&self.holder)) {
            None => Decision::Keep(None),
            Some(mut state) => {
                edit(&mut state);
                Decision::Set(Change::new(&state), Some(state))
            }
        };
        let noted = self.journal.transact(&record, rule).await?;
        match noted.done().flatten() {
            Some(state) => {
                self.journal.leases().keep(self.key, state);
                Ok(())
            }
            None => {
                self.lost.cancel();
                Err(LeaseError::Fenced)
            }
        }
    }

    /// Gives the lease up: the agent leaves of its own will. What it has taken and not finished is answered
    /// `rejected`. Tried for as long as the lease lasts.
    ///
    /// # Errors
    /// [`Unavailable`]: then the lease runs out, and the agent counts as lost.
    pub async fn release(self) -> Result<(), Unavailable> {
        let ends = Instant::now() + self.journal.lease;
        loop {
            match self.give_up().await {
                Err(_) if Instant::now() < ends => tokio::time::sleep(RELEASE_AGAIN).await,
                released => return released,
            }
        }
    }

    /// [`release`](Self::release) of a lease that others may look at, tried once.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn give_up(&self) -> Result<(), Unavailable> {
        self.journal.leases().forget(self.key);
        self.journal.release(&self.channel, &self.holder, Some(self.taking)).await
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.journal.leases().forget(self.key);
    }
}

impl State {
    pub(super) fn is_held_by(&self, holder: &Holder) -> bool {
        self.phase == LeasePhase::Alive && self.incarnation == holder.incarnation
    }

    /// `None` asks for no particular one.
    pub(super) fn is_taking(&self, taking: Option<Uuid>) -> bool {
        taking.is_none_or(|taking| taking == self.taking)
    }
}

/// A lease that was taken.
struct Taken {
    state: State,
    /// From one that was alive.
    takes_over: bool,
    /// Who is gone, and why, for the firehose.
    gone: Option<(State, &'static str)>,
}

/// The newest incarnation holds the lease, and fences the one before; `None` for an older one.
fn taken(
    found: Option<State>,
    now_ms: u64,
    record: &Record,
    incarnation: Option<u64>,
    parent: Option<&Parent>,
    (taking, lasts): (Uuid, Duration),
) -> Decision<Option<Taken>> {
    let agent = &*record.id;
    let last = found.as_ref().map_or(0, |state| state.incarnation);
    let has_ended = |state: &State| matches!(state.phase, LeasePhase::Lost | LeasePhase::Settled);
    let incarnation = match incarnation {
        None => now_ms.max(last + 1),
        Some(incarnation) if incarnation < last => return Decision::Keep(None),
        Some(incarnation) if incarnation == last && found.as_ref().is_some_and(has_ended) => {
            return Decision::Keep(None);
        }
        Some(incarnation) => incarnation,
    };
    let holder = Holder { agent: agent.into(), incarnation };
    // Taken back over a new connection it is the same life.
    let state = match found.as_ref().filter(|found| found.is_held_by(&holder)).cloned() {
        Some(same) => {
            State { taking, parent: parent.cloned().or_else(|| same.parent.clone()), ..same }
        }
        None => State {
            phase: LeasePhase::Alive,
            incarnation,
            taking,
            since: now_ms,
            runs: Vec::new(),
            parent: parent.cloned(),
            channels: Vec::new(),
        },
    };
    let mut change = Change::new(&state);
    change.effects = vec![
        Effect::Put(Index::Agents, agent.into(), "".into()),
        Effect::Due(Deadline::Lose, Some(lasts)),
        Effect::Due(Deadline::Settle, None),
    ];
    if last != 0 && last < incarnation {
        change.effects.push(Effect::Fence(Holder { agent: agent.into(), incarnation: last }));
    }
    let before = found.filter(|before| before.incarnation < incarnation);
    let takes_over = before.as_ref().is_some_and(|before| before.phase == LeasePhase::Alive);
    // Who was lost was announced here; who is replaced over open runs is announced now.
    let gone = before.and_then(|before| match before.phase {
        LeasePhase::Alive if !before.runs.is_empty() => Some((before, "replaced")),
        LeasePhase::Lost => Some((before, "lost")),
        _ => None,
    });
    if let Some((before, reason @ "replaced")) = &gone
        && record.channel.kind() != Kind::Service
    {
        change.effects.push(Effect::Event(lost_event(agent, before, reason)));
    }
    Decision::Set(change, Some(Taken { state, takes_over, gone }))
}

/// The holder leaves of its own will.
fn released(found: Option<State>, holder: &Holder, taking: Option<Uuid>) -> Decision<()> {
    let is_theirs = |state: &State| state.is_held_by(holder) && state.is_taking(taking);
    let Some(mut state) = found.filter(is_theirs) else { return Decision::Keep(()) };
    state.phase = LeasePhase::Released;
    state.runs.clear();
    let mut change = Change::new(&state);
    change.lifetime = Some(REMEMBERED);
    change.effects = vec![
        Effect::Remove(Index::Agents, holder.agent.clone()),
        Effect::Due(Deadline::Lose, None),
    ];
    Decision::Set(change, ())
}

impl Journal {
    /// Takes the lease of `agent` on `channel`. `incarnation`: that of the agent's lease on its own channel,
    /// which is taken first and without one: then it is issued, newer than any before.
    ///
    /// # Errors
    /// [`LeaseError::Fenced`] where a newer incarnation holds it.
    pub async fn lease(
        &self,
        channel: &Channel,
        agent: &str,
        incarnation: Option<u64>,
        parent: Option<&Parent>,
    ) -> Result<Lease, LeaseError> {
        let (journal, record, parent) = (self.clone(), record(channel, agent), parent.cloned());
        let (taken, answer) = oneshot::channel();
        // To its end, also where nobody waits for it any more: a lease that nobody knows of would run out, and
        // the agent be lost.
        tokio::spawn(async move {
            let lease = journal.take_lease(&record, incarnation, parent.as_ref()).await;
            if let Err(Ok(unwanted)) = taken.send(lease) {
                drop(unwanted.release().await);
            }
        });
        answer.await.unwrap_or_else(|_| Err(Unavailable("the runtime ends".to_owned()).into()))
    }

    async fn take_lease(
        &self,
        record: &Record,
        incarnation: Option<u64>,
        parent: Option<&Parent>,
    ) -> Result<Lease, LeaseError> {
        let (channel, agent) = (&record.channel, &*record.id);
        let taking = Uuid::new_v4();
        let rule =
            |found, now_ms| taken(found, now_ms, record, incarnation, parent, (taking, self.lease));
        let taken = self.transact(record, rule).await?.done().flatten();
        let Some(Taken { state, takes_over, gone }) = taken else { return Err(LeaseError::Fenced) };
        if takes_over && channel.kind() == Kind::Agent {
            tracing::warn!(agent, "agent lease taken over");
        }
        let before = Holder { agent: agent.into(), incarnation: state.incarnation - 1 };
        self.settle_open(channel, &before).await?;
        // If the replica that declared it lost died over it, the firehose has not heard yet.
        if let Some((before, reason)) = &gone {
            self.tell_firehose(channel, agent, before, reason).await?;
        }
        let holder = Holder { agent: agent.into(), incarnation: state.incarnation };
        Ok(self.held(record, holder, state))
    }

    fn held(&self, record: &Record, holder: Holder, state: State) -> Lease {
        let (lost, taking) = (CancellationToken::new(), state.taking);
        let key = self.leases().hold(self, record, state, &lost);
        Lease { journal: self.clone(), channel: record.channel.clone(), holder, lost, key, taking }
    }

    /// Releases a lease that is not held here. `taking`: only that taking of it; a later one is kept.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn release(
        &self,
        channel: &Channel,
        holder: &Holder,
        taking: Option<Uuid>,
    ) -> Result<(), Unavailable> {
        let record = record(channel, &holder.agent);
        let is_theirs = |state: &State| state.is_held_by(holder) && state.is_taking(taking);
        if !self.state(&record).await?.is_some_and(|state| is_theirs(&state)) {
            return Ok(());
        }
        self.settle_open(channel, holder).await?;
        self.transact(&record, |found, _| released(found, holder, taking)).await?;
        Ok(())
    }

    /// Agents that hold a lease on `channel`.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn agents_on(&self, channel: &Channel) -> Result<Vec<Box<str>>, Unavailable> {
        let live = self.live(channel).await?;
        if live.agents.len() as u64 == live.count {
            return Ok(live.agents);
        }
        let agents = self.list(channel, &Index::Agents).await?;
        Ok(agents.into_iter().map(|(agent, _)| agent).collect())
    }

    /// How many agents there are to hear what is sent to `channel`: exact up to 64; of more, also those count
    /// whose lease has just run out.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn listeners(&self, channel: &Channel) -> Result<u64, Unavailable> {
        Ok(self.live(channel).await?.count)
    }

    /// Who is alive.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn alive(&self) -> Result<Vec<Alive>, Unavailable> {
        let mut alive = Vec::new();
        for (record, state) in self.leased().await? {
            let Some(state) = super::transact::read::<State>(&record, state.as_deref()) else {
                continue;
            };
            if record.channel.kind() != Kind::Agent || state.phase != LeasePhase::Alive {
                continue;
            }
            let State { since, runs, parent, channels, .. } = state;
            alive.push(Alive { agent_id: record.id, since, runs, channels, parent });
        }
        alive.sort_by(|a, b| a.agent_id.cmp(&b.agent_id));
        Ok(alive)
    }
}
