//! ◆ Ends an incarnation that is lost or replaced: the loss is told, once, and what it left is settled.
//!
//! [`standing`](super::standing), [`reaper`](super::reaper) → **loss**. The step that ends the lease tells the
//! first runs, and leaves a record of the loss with a deadline. Later the first reaper to come tells
//! the other runs in pieces: each piece is taken off the index in the step that tells it, so it is told once.

use std::time::Duration;

use protocol::{Channel, Kind};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::alive::Sample;
use super::lease::{LeasePhase, LeaseState, REMEMBERED};
use super::standing::Standing;
use super::transact::read;
use super::{
    Change, Deadline, Decision, Effect, Holder, Index, Record, RecordKind, Snapshot, Transacted,
    standing,
};
use crate::{Journal, Name, NewEntry, Parent, Unavailable};

/// How many runs one `agent_lost` names at most, and how many bytes of them.
const PIECE_RUNS: usize = 256;
const PIECE_BYTES: usize = 60 * 1024;
/// How many pieces are told at a time; the deadline stays due.
const PIECES_MAX: usize = 16;
/// Why it ended where its token did not reach to the channel any more.
const REVOKED: &str = "revoked";
/// How often a step that names the open runs is decided anew, because they have changed.
const ATTEMPTS_MAX: usize = 100;

/// The runs that an incarnation has begun and not ended: those that fit into one event, in order.
#[derive(Debug, Default)]
pub(super) struct OpenRuns {
    runs: Vec<Box<str>>,
    /// There are others.
    more: bool,
}

/// A loss that is being settled.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Loss {
    #[serde(flatten)]
    holder: Holder,
    reason: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<Parent>,
    /// How many pieces have been told.
    told: u64,
    /// The last of them, where the firehose has not got it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uncopied: Option<Box<str>>,
}

pub(super) fn record(channel: &Channel, holder: &Holder) -> Record {
    Record { kind: RecordKind::Loss, channel: channel.clone(), id: holder.producer().into() }
}

impl Loss {
    fn runs(&self) -> Index {
        Index::Runs(self.holder.producer().into())
    }

    /// Tells the next piece on the channel.
    fn tell(&mut self, channel: &Channel, open: &OpenRuns) -> Vec<Effect> {
        #[derive(Serialize)]
        struct Lost<'a> {
            agent_id: &'a str,
            reason: &'a str,
            runs: &'a [Box<str>],
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            more: bool,
        }
        let OpenRuns { runs, more } = open;
        let lost = Lost { agent_id: &self.holder.agent, reason: &self.reason, runs, more: *more };
        let lost = serde_json::to_string(&lost).expect("plain data");
        let mut effects = vec![Effect::Event(NewEntry::new("agent_lost", lost.clone()))];
        effects.extend(runs.iter().map(|run| Effect::Remove(self.runs(), run.clone())));
        // The firehose is told of the agent, not of each of its channels.
        self.uncopied = (channel.kind() == Kind::Agent).then(|| lost.into());
        self.told += 1;
        effects
    }

    /// Under which key the firehose gets the last piece.
    fn key(&self) -> String {
        let Holder { agent, incarnation } = &self.holder;
        let piece = format!("lost {agent} {incarnation} {}", self.told);
        Uuid::new_v5(&Uuid::NAMESPACE_OID, piece.as_bytes()).to_string()
    }
}

/// To the step that ends the lease of `state`: its runs are told, and what it left is settled behind a deadline.
pub(super) fn begin(
    change: &mut Change,
    lease: &Record,
    state: &LeaseState,
    reason: &str,
    open: &OpenRuns,
) {
    let holder = Holder { agent: lease.id.clone(), incarnation: state.incarnation };
    let record = record(&lease.channel, &holder);
    change.effects.push(Effect::Clear(Index::Channels(holder.producer().into())));
    let parent = state.parent.clone();
    let mut loss = Loss { holder, reason: reason.into(), parent, told: 0, uncopied: None };
    // Where the agent lived it is told in any case, unless another goes on in its place.
    let is_life = reason == "lost" || reason == REVOKED && lease.channel.kind() == Kind::Agent;
    let is_told = is_life || !open.runs.is_empty();
    if standing::is_told(lease) && is_told {
        change.effects.extend(loss.tell(&lease.channel, open));
    }
    let loss = serde_json::to_string(&loss).expect("plain data");
    change.effects.push(Effect::Write(record.clone(), loss, REMEMBERED));
    change.effects.push(Effect::DueOf(Deadline::Settle, record, Duration::ZERO));
}

impl Journal {
    /// Like [`transact`](Self::transact), for a rule that names the open runs of the incarnation which holds the
    /// lease, where that is `below` this one. `guess`: what the lease probably is.
    pub(super) async fn transact_with_runs<A>(
        &self,
        record: &Record,
        mut guess: Option<Snapshot>,
        below: u64,
        rule: impl Fn(Option<LeaseState>, &OpenRuns, u64) -> Decision<A>,
    ) -> Result<Transacted<A>, Unavailable> {
        for _ in 0..ATTEMPTS_MAX {
            let found = match guess.take() {
                Some(guess) => guess,
                None => self.snapshot(record).await?,
            };
            let which = |state: &LeaseState| (state.incarnation, state.version, state.phase);
            let state = read::<LeaseState>(record, found.state.as_deref());
            let seen = state.as_ref().map(which);
            let is_named = |s: &LeaseState| s.phase == LeasePhase::Alive && s.incarnation < below;
            let open = match state.filter(is_named) {
                Some(LeaseState { incarnation, .. }) => {
                    let holder = Holder { agent: record.id.clone(), incarnation };
                    self.open_runs(&record.channel, &holder).await?
                }
                None => OpenRuns::default(),
            };
            let decided = self.transact_from(record, found, |found: Option<LeaseState>, now_ms| {
                if found.as_ref().map(which) != seen {
                    return Decision::Keep(None);
                }
                rule(found, &open, now_ms).map(Some)
            });
            match decided.await? {
                Transacted::Done(None) => {}
                Transacted::Done(Some(answer)) => return Ok(Transacted::Done(answer)),
                Transacted::Unmet => return Ok(Transacted::Unmet),
                Transacted::Fenced => return Ok(Transacted::Fenced),
            }
        }
        Err(Unavailable(format!("{record} changes without end")))
    }

    async fn open_runs(&self, channel: &Channel, holder: &Holder) -> Result<OpenRuns, Unavailable> {
        let index = Index::Runs(holder.producer().into());
        let Sample { members: mut runs, total } = self.some_of(channel, &index, PIECE_RUNS).await?;
        runs.sort_unstable();
        Ok(OpenRuns::piece(runs, total))
    }

    /// Deadline: the lease was not renewed.
    pub(super) async fn lose(&self, lease: &Record) -> Result<(), Unavailable> {
        let rule = |found: Option<LeaseState>, open: &OpenRuns, _| match standing::lost(
            found, lease, open,
        ) {
            Some((change, state)) => Decision::Set(change, Some((state, open.runs.join(" ")))),
            None => Decision::Keep(None),
        };
        match self.transact_with_runs(lease, None, u64::MAX, rule).await? {
            Transacted::Done(Some((state, runs))) => {
                tracing::warn!(channel = %lease.channel, agent = %lease.id, runs, "agent lost");
                let holder = Holder { agent: lease.id.clone(), incarnation: state.incarnation };
                self.settle(&record(&lease.channel, &holder)).await
            }
            Transacted::Done(None) => self.forget_deadline(lease, Deadline::Lose).await,
            Transacted::Unmet | Transacted::Fenced => Ok(()),
        }
    }

    /// The holder may not hold the lease any more: it ends, and what it left here is settled. The incarnation is not
    /// fenced.
    pub(super) async fn revoke(
        &self,
        lease: &Record,
        holder: &Holder,
        taking: Uuid,
    ) -> Result<(), Unavailable> {
        let rule = |found: Option<LeaseState>, open: &OpenRuns, _| match standing::of(found, holder)
        {
            Standing::Own(state) if state.taking == taking => {
                let state = LeaseState { phase: LeasePhase::Released, ..state };
                let mut change = Change::new(&state);
                change.lifetime = Some(REMEMBERED);
                change.effects = vec![
                    Effect::Remove(Index::Agents, holder.agent.clone()),
                    Effect::Due(Deadline::Lose, None),
                ];
                begin(&mut change, lease, &state, REVOKED, open);
                Decision::Set(change, true)
            }
            _ => Decision::Keep(false),
        };
        let below = holder.incarnation + 1;
        let revoked = self.transact_with_runs(lease, None, below, rule).await?;
        if revoked.done() == Some(true)
            && let Err(error) = self.settle(&record(&lease.channel, holder)).await
        {
            tracing::debug!(channel = %lease.channel, %error, "a revoked lease is settled later");
        }
        Ok(())
    }

    /// Deadline: what a lost incarnation left is settled. Doing it again is harmless.
    pub(super) async fn settle(&self, record: &Record) -> Result<(), Unavailable> {
        let channel = &record.channel;
        for _ in 0..PIECES_MAX {
            let Some(loss) = self.state::<Loss>(record).await? else {
                return self.forget_deadline(record, Deadline::Settle).await;
            };
            if let Some(lost) = &loss.uncopied {
                let event = NewEntry::new("agent_lost", lost.clone()).with_key(loss.key());
                let firehose = Name::events(Channel::global_events());
                let copied = self.append(&firehose, vec![event]).await;
                copied.map_err(|error| Unavailable(error.to_string()))?;
            }
            let open = self.open_runs(channel, &loss.holder).await?;
            if open.runs.is_empty() || !standing::is_told(record) {
                return self.settled(record, &loss).await;
            }
            let told = |found: Option<Loss>, _| {
                // Another reaper has told it.
                let Some(mut next) = found.filter(|found| found.told == loss.told) else {
                    return Decision::Keep(());
                };
                let effects = next.tell(channel, &open);
                let mut change = Change::new(&next);
                change.lifetime = Some(REMEMBERED);
                change.effects = effects;
                Decision::Set(change, ())
            };
            self.transact(record, told).await?;
        }
        Ok(())
    }

    /// All runs are told: the rest.
    async fn settled(&self, record: &Record, loss: &Loss) -> Result<(), Unavailable> {
        self.settle_open(&record.channel, &loss.holder).await?;
        self.unask_all(&record.channel, &loss.holder).await?;
        if record.channel.kind() == Kind::Agent
            && let Some(parent) = &loss.parent
        {
            self.disown(parent, &loss.holder).await?;
        }
        let done = |found: Option<Loss>, _| {
            if found.is_none_or(|found| found.told != loss.told) {
                return Decision::Keep(());
            }
            let mut change = Change::removal();
            change.effects = vec![Effect::Due(Deadline::Settle, None)];
            Decision::Set(change, ())
        };
        self.transact(record, done).await?;
        Ok(())
    }
}

impl OpenRuns {
    /// Of `total` runs those that fit into one event.
    fn piece(mut runs: Vec<Box<str>>, total: u64) -> Self {
        let mut bytes = 0;
        let fits = |run: &&str| {
            // Two quotes and a comma; a character may be escaped, six bytes for one.
            bytes += 6 * run.len() + 3;
            bytes <= PIECE_BYTES
        };
        let count = runs.iter().map(|run| &**run).take(PIECE_RUNS).take_while(fits).count().max(1);
        let more = total > count as u64;
        runs.truncate(count);
        Self { runs, more }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_bounded_in_runs_and_bytes_and_never_empty_where_there_are_some() {
        let runs = |count: usize, bytes: usize| vec![Box::<str>::from("r".repeat(bytes)); count];
        for (given, taken, more) in [
            (runs(0, 1), 0, false),
            (runs(256, 36), 256, false),
            (runs(257, 36), 256, true),
            (runs(256, 128), 79, true),
            (runs(2, 70_000), 1, true),
        ] {
            let total = given.len() as u64;
            let piece = OpenRuns::piece(given, total);
            assert_eq!((piece.runs.len(), piece.more), (taken, more));
        }
    }
}
