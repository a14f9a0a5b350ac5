//! ▲ What an agent does with a command: takes it, finishes it, or dies over it.

use protocol::{Channel, Status, Take};
use uuid::Uuid;

use super::command::{CommandOutcome, REMEMBERED, State, Taker, WORK_MAX, raw, reason, record};
use super::{Change, Deadline, Decision, Effect, Holder, Index, Record, RecordKind, Transacted};
use crate::{Journal, NewEntry, Unavailable};

impl Journal {
    /// Takes a command, before it is begun: of all who try, one gets it. `idempotent`: where its taker dies,
    /// another may do it again.
    ///
    /// # Errors
    /// [`Unavailable`]; taking it again is harmless.
    pub async fn take(
        &self,
        channel: &Channel,
        key: Uuid,
        holder: &Holder,
        idempotent: bool,
    ) -> Result<Take, Unavailable> {
        let (record, taker) = (record(channel, key), Taker { holder: holder.clone(), idempotent });
        let taken = self.transact(&record, |found, now| taken(found, now, &record, &taker)).await?;
        Ok(match taken {
            Transacted::Done(take) => take,
            Transacted::Unmet | Transacted::Fenced => Take::Fenced,
        })
    }

    /// Says to whoever waits how far the request has come that `holder` has taken. Nobody keeps it: who comes
    /// later hears of what is said later. Nothing comes of it where the request is not the holder's (any more).
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn progress(
        &self,
        channel: &Channel,
        key: Uuid,
        holder: &Holder,
        data: &str,
    ) -> Result<(), Unavailable> {
        let record = record(channel, key);
        let state = self.state::<State>(&record).await?;
        let Some(state) = state.filter(|state| state.is_worked_on_by(holder)) else {
            return Ok(());
        };
        for at in &state.waiting {
            self.notify(at, &format!("{} {data}", record.id)).await?;
        }
        Ok(())
    }

    /// Says what became of a command that `holder` has taken. `detail`: a reason, or a request's reply,
    /// JSON. False where it is not the holder's to say (any more).
    ///
    /// # Errors
    /// [`Unavailable`]; saying it again is harmless.
    pub async fn finish(
        &self,
        channel: &Channel,
        key: Uuid,
        holder: &Holder,
        outcome: &CommandOutcome,
    ) -> Result<bool, Unavailable> {
        let record = record(channel, key);
        let finished =
            self.transact(&record, |found, _| finished(found, &record, holder, outcome)).await?;
        Ok(finished.done().unwrap_or(false))
    }

    /// Nobody waits for the request `key` any more: it is not begun if it was not, and its answer is not
    /// wanted.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn give_up(
        &self,
        channel: &Channel,
        key: Uuid,
    ) -> Result<CommandOutcome, Unavailable> {
        let record = record(channel, key);
        let outcome = self.transact(&record, |found, _| given_up(found, &record)).await?;
        Ok(outcome.done().unwrap_or(GONE))
    }

    /// Deadline: nobody took the command in time.
    pub(super) async fn expire(&self, record: &Record) -> Result<(), Unavailable> {
        let expired = self.transact(record, |found, now| expired(found, now, record)).await?;
        match expired {
            Transacted::Done(true) => Ok(()),
            _ => self.forget_deadline(record, Deadline::Expire).await,
        }
    }

    /// What `lost` has taken and not finished is answered, or offered anew where that does no harm.
    pub(super) async fn settle_open(
        &self,
        channel: &Channel,
        lost: &Holder,
    ) -> Result<(), Unavailable> {
        let open = Index::Open(lost.agent.clone());
        for id in self.list(channel, &open).await?.into_iter().map(|(id, _)| id) {
            let record = Record { kind: RecordKind::Command, channel: channel.clone(), id };
            self.transact(&record, |found, now| settled(found, now, &record, lost)).await?;
        }
        Ok(())
    }
}

/// What becomes of a command that is not known any more, or that nobody wants.
const GONE: CommandOutcome = CommandOutcome { status: Status::Expired, detail: None };

/// Of all who try, one takes it: before its time is over.
fn taken(found: Option<State>, now_ms: u64, record: &Record, taker: &Taker) -> Decision<Take> {
    let Some(mut state) = found else { return Decision::Keep(Take::Gone) };
    if state.taker.as_ref() == Some(taker) && state.status == Status::Delivered {
        return Decision::Keep(Take::Yours);
    }
    if state.status != Status::Accepted {
        return Decision::Keep(Take::Gone);
    }
    if now_ms >= state.expires_at {
        return Decision::Set(state.ended(record, Status::Expired, None), Take::Gone);
    }
    (state.status, state.taker) = (Status::Delivered, Some(taker.clone()));
    let mut change = Change::new(&state);
    change.lifetime = Some(WORK_MAX);
    change.holder = Some(taker.holder.clone());
    change.effects = vec![
        Effect::Remove(Index::Waiting, record.id.clone()),
        Effect::Put(Index::Open(taker.holder.agent.clone()), record.id.clone(), "".into()),
        Effect::Due(Deadline::Expire, None),
    ];
    state.heard(&record.channel, &mut change.effects);
    Decision::Set(change, Take::Yours)
}

/// Its taker says how it ended, once.
fn finished(
    found: Option<State>,
    record: &Record,
    holder: &Holder,
    outcome: &CommandOutcome,
) -> Decision<bool> {
    let is_taker = |state: &State| state.taker.as_ref().is_some_and(|by| by.holder == *holder);
    let Some(state) = found.filter(is_taker) else { return Decision::Keep(false) };
    if state.status != Status::Delivered {
        return Decision::Keep(state.outcome() == *outcome);
    }
    let detail = outcome.detail.as_deref().map(raw);
    let mut change = state.ended(record, outcome.status, detail);
    change.holder = Some(holder.clone());
    Decision::Set(change, true)
}

/// Nobody waits for it: it ends, unless it has.
fn given_up(found: Option<State>, record: &Record) -> Decision<CommandOutcome> {
    match found {
        None => Decision::Keep(GONE),
        Some(state) if state.status.is_final() => Decision::Keep(state.outcome()),
        Some(state) => Decision::Set(state.ended(record, Status::Expired, None), GONE),
    }
}

/// Its time is over; false where it waits no longer, or may wait on.
fn expired(found: Option<State>, now_ms: u64, record: &Record) -> Decision<bool> {
    match found {
        None => Decision::Set(Change::forgotten(record, Deadline::Expire, Index::Waiting), true),
        Some(state) if state.status == Status::Accepted && now_ms >= state.expires_at => {
            Decision::Set(state.ended(record, Status::Expired, None), true)
        }
        Some(_) => Decision::Keep(false),
    }
}

/// What `lost` had taken is offered anew where that does no harm, else it has failed.
fn settled(found: Option<State>, now_ms: u64, record: &Record, lost: &Holder) -> Decision<()> {
    let open = Index::Open(lost.agent.clone());
    let Some(mut state) = found else {
        return Decision::Set(Change::forgotten(record, Deadline::Expire, open), ());
    };
    let is_theirs = state.status == Status::Delivered
        && state.taker.as_ref().is_some_and(|taker| {
            taker.holder.agent == lost.agent && taker.holder.incarnation <= lost.incarnation
        });
    if !is_theirs {
        return Decision::Keep(());
    }
    let is_idempotent = state.taker.as_ref().is_some_and(|taker| taker.idempotent);
    let Some(entry) = state.entry.clone().filter(|_| is_idempotent) else {
        return Decision::Set(state.ended(record, Status::Rejected, Some(reason("lost"))), ());
    };
    (state.status, state.taker) = (Status::Accepted, None);
    // Who waits for the answer gives up in time; this only bounds the rest.
    state.expires_at = now_ms + REMEMBERED.as_millis() as u64;
    let mut change = Change::new(&state);
    change.lifetime = Some(WORK_MAX);
    change.effects = vec![
        Effect::Remove(open, record.id.clone()),
        Effect::Put(Index::Waiting, record.id.clone(), "".into()),
        Effect::Due(Deadline::Expire, Some(REMEMBERED)),
        Effect::Command(NewEntry::new(state.name, entry)),
    ];
    Decision::Set(change, ())
}
