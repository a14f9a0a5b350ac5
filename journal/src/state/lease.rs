//! ◆ An agent's proof of life on a channel: taken, held, released.
//!
//! [`standing`](super::standing) → **lease** → [`renewal`](super::renewal), [`note`](super::note),
//! [`loss`](super::loss). A lease names the agent's incarnation, and the highest one wins, always: who takes the
//! lease, or finds an older incarnation's, fences that in the same step. From then on it can neither publish
//! there nor take or finish commands. Which runs are open, and which channels the agent serves, stands in
//! indexes beside the lease, so that no step grows with them.

use std::time::Duration;

use protocol::limits::{AGENT_CHANNELS_MAX, AGENT_NUMBER_MAX, OPEN_RUNS_MAX};
use protocol::{Channel, Kind};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::alive::SHOWN_MAX;
use super::loss::OpenRuns;
use super::renewal::{Held, Written};
use super::standing::{self, Standing};
use super::{Change, Deadline, Decision, Effect, Holder, Index, Record, RecordKind};
use crate::{Journal, Parent, Unavailable};

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

/// How an agent's incarnation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LeasePhase {
    Alive,
    /// It was not renewed in time.
    Lost,
    /// The agent has left.
    Released,
}

/// A lease's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeaseState {
    pub(super) phase: LeasePhase,
    pub(super) incarnation: u64,
    /// Which taking of the lease it is: who holds an older one leaves it alone.
    #[serde(default)]
    pub(super) taking: Uuid,
    /// Rises with each note, and with each taking to the time of the taking, Unix milliseconds. So a later one is always
    /// higher, also where Redis has lost the lease meanwhile. A step that names the open runs is made only while they
    /// are these.
    #[serde(default)]
    pub(super) version: u64,
    /// Which step wrote it: no two steps write the same state, so none is taken for another one's repetition.
    #[serde(default)]
    pub(super) step: Uuid,
    /// Since when, Unix milliseconds.
    pub(super) since: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) parent: Option<Parent>,
}

/// Why a lease was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// A newer incarnation of the agent holds it, or this one was declared lost.
    #[error("a newer incarnation of the agent has taken over, or this one was declared lost")]
    Fenced,
    /// The run's end was told under this key, and it was another.
    #[error("the run's end was told under this `key` with another `event` or other `data`")]
    Conflict,
    /// The note beside the lease has no room for what begins: nothing was noted.
    #[error("a lease keeps at most {OPEN_RUNS_MAX} open runs and {AGENT_CHANNELS_MAX} channels")]
    Full,
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
    pub(super) journal: Journal,
    pub(super) held: Held,
    key: u64,
    is_new: bool,
}

impl Lease {
    /// On which channel.
    pub fn channel(&self) -> &Channel {
        &self.held.record.channel
    }

    /// Who holds it.
    pub fn holder(&self) -> &Holder {
        &self.held.holder
    }

    /// Which taking of the lease it is.
    pub fn taking(&self) -> Uuid {
        self.held.taking
    }

    /// Whether nothing was known of the agent on the channel before.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Is cancelled when the lease is lost, or taken over by a newer incarnation.
    pub fn lost(&self) -> CancellationToken {
        self.held.lost.clone()
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
        self.journal.release(self.channel(), self.holder(), Some(self.held.taking)).await
    }
}

impl Lease {
    /// Ends the lease, because the agent may not hold it any more. The agent is not fenced, it lives on elsewhere; the
    /// runs that are open here are told as over. Tried for as long as the lease lasts.
    ///
    /// # Errors
    /// [`Unavailable`]: then the lease runs out.
    pub async fn revoke(&self) -> Result<(), Unavailable> {
        self.journal.leases().forget(self.key);
        let ends = Instant::now() + self.journal.lease;
        loop {
            match self.journal.revoke(&self.held.record, self.holder(), self.held.taking).await {
                Err(_) if Instant::now() < ends => tokio::time::sleep(RELEASE_AGAIN).await,
                revoked => return revoked,
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.journal.leases().forget(self.key);
    }
}

/// The newest incarnation holds the lease, and takes it over from an older one; `None` for an older one.
fn taken(
    found: Option<LeaseState>,
    open: &OpenRuns,
    now_ms: u64,
    record: &Record,
    incarnation: Option<u64>,
    parent: Option<&Parent>,
    (taking, lasts): (Uuid, Duration),
) -> Decision<Option<LeaseState>> {
    let last = found.as_ref().map_or(0, |state| state.incarnation);
    let incarnation = incarnation.unwrap_or(now_ms.max(last + 1).min(AGENT_NUMBER_MAX));
    let holder = Holder { agent: record.id.clone(), incarnation };
    let new = LeaseState {
        phase: LeasePhase::Alive,
        incarnation,
        taking,
        version: now_ms,
        step: taking,
        since: now_ms,
        parent: parent.cloned(),
    };
    let (state, older) = match standing::of(found, &holder) {
        Standing::Fenced => return Decision::Keep(None),
        // Taken back over a new connection it is the same incarnation.
        Standing::Own(same) => {
            let parent = parent.cloned().or_else(|| same.parent.clone());
            let version = now_ms.max(same.version + 1);
            (LeaseState { taking, parent, version, ..same }, None)
        }
        Standing::Missing | Standing::Released => (new, None),
        Standing::Older(older) => (new, Some(older)),
    };
    let mut change = Change::new(&state);
    change.effects = standing::alive(&holder, state.version, lasts);
    change.effects.push(standing::seen(&record.channel));
    if let Some(older) = &older {
        standing::take_over(&mut change, record, older, open);
    }
    Decision::Set(change, Some(state))
}

/// The holder leaves of its own will.
fn released(
    found: Option<LeaseState>,
    open: &OpenRuns,
    now_ms: u64,
    record: &Record,
    holder: &Holder,
    taking: Option<Uuid>,
) -> Decision<()> {
    let (state, older) = match standing::of(found, holder) {
        Standing::Own(state) if taking.is_none_or(|taking| taking == state.taking) => (state, None),
        Standing::Own(_) | Standing::Released | Standing::Fenced => return Decision::Keep(()),
        // It is written all the same: an older incarnation that wakes up shall find it.
        Standing::Missing => (LeaseState::missing(holder, now_ms), None),
        Standing::Older(older) => (LeaseState::missing(holder, now_ms), Some(older)),
    };
    let mut change = Change::new(&LeaseState { phase: LeasePhase::Released, ..state });
    change.lifetime = Some(REMEMBERED);
    change.effects = vec![
        Effect::Remove(Index::Agents, holder.agent.clone()),
        Effect::Due(Deadline::Lose, None),
        Effect::Clear(Index::Runs(holder.producer().into())),
        Effect::Clear(Index::Channels(holder.producer().into())),
        standing::seen(&record.channel),
    ];
    if let Some(older) = &older {
        standing::take_over(&mut change, record, older, open);
    }
    Decision::Set(change, ())
}

impl LeaseState {
    pub(super) fn is_held_by(&self, holder: &Holder) -> bool {
        self.phase == LeasePhase::Alive && self.incarnation == holder.incarnation
    }

    fn missing(holder: &Holder, now_ms: u64) -> Self {
        Self {
            phase: LeasePhase::Alive,
            incarnation: holder.incarnation,
            taking: Uuid::nil(),
            version: now_ms,
            step: Uuid::nil(),
            since: now_ms,
            parent: None,
        }
    }
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
        // To its end, also where the caller has stopped waiting: a lease that nobody knows of would run out, and
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
        let taking = Uuid::new_v4();
        let rule = |found: Option<LeaseState>, open: &OpenRuns, now_ms| {
            let before = found.clone();
            let decision =
                taken(found, open, now_ms, record, incarnation, parent, (taking, self.lease));
            decision.map(|state| (before, state))
        };
        let below = incarnation.unwrap_or(u64::MAX);
        let Some((before, Some(state))) =
            self.transact_with_runs(record, None, below, rule).await?.done()
        else {
            return Err(LeaseError::Fenced);
        };
        let channel = &record.channel;
        let holder = Holder { agent: record.id.clone(), incarnation: state.incarnation };
        let (mut written, is_new) = (Written::new(state), before.is_none());
        match before {
            Some(before)
                if before.phase == LeasePhase::Alive && before.incarnation < holder.incarnation =>
            {
                if channel.kind() == Kind::Agent {
                    tracing::warn!(agent = %record.id, "agent lease taken over");
                }
                let older = Holder { agent: record.id.clone(), incarnation: before.incarnation };
                // A reaper does it where this fails.
                if let Err(error) = self.settle(&super::loss::record(channel, &older)).await {
                    tracing::debug!(%channel, %error, "a lost agent is settled later");
                }
            }
            // The same incarnation, on another connection.
            Some(before) if before.phase == LeasePhase::Alive => {
                written.read(self, channel, &holder).await?;
            }
            _ => {}
        }
        let before = Holder { incarnation: holder.incarnation - 1, ..holder.clone() };
        self.settle_open(channel, &before).await?;
        let held = Held::new(record.clone(), holder, taking, written);
        let key = self.leases().hold(self, held.clone());
        Ok(Lease { journal: self.clone(), held, key, is_new })
    }

    /// Releases a lease that need not be held here. `taking`: only that taking of it; a later one is kept.
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
        let is_another = |state: &LeaseState| {
            matches!(
                standing::of(Some(state.clone()), holder),
                Standing::Fenced | Standing::Released
            ) || (state.incarnation == holder.incarnation
                && taking.is_some_and(|taking| taking != state.taking))
        };
        if self.state(&record).await?.is_some_and(|state| is_another(&state)) {
            return Ok(());
        }
        self.settle_open(channel, holder).await?;
        self.unask_all(channel, holder).await?;
        let rule = |found: Option<LeaseState>, open: &OpenRuns, now_ms| {
            released(found, open, now_ms, &record, holder, taking)
        };
        self.transact_with_runs(&record, None, holder.incarnation, rule).await?;
        Ok(())
    }

    /// Agents that hold a lease on `channel`, at most 100 of them; [`listeners`](Self::listeners) says how many there
    /// are.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn agents_on(&self, channel: &Channel) -> Result<Vec<Box<str>>, Unavailable> {
        let live = self.live(channel).await?;
        if live.agents.len() as u64 == live.count {
            return Ok(live.agents);
        }
        let mut agents = self.some_of(channel, &Index::Agents, SHOWN_MAX).await?.members;
        agents.sort_unstable();
        Ok(agents)
    }

    /// How many agents there are to receive what is sent to `channel`: exact up to 64; of more, also those count
    /// whose lease has just run out.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn listeners(&self, channel: &Channel) -> Result<u64, Unavailable> {
        Ok(self.live(channel).await?.count)
    }
}
