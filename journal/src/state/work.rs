//! ▲ What an agent does with a command: takes it, finishes it, or dies over it.

use protocol::{Channel, Status, Take};
use uuid::Uuid;

use super::command::{
    Command, CommandOutcome, CommandState, REMEMBERED, Taker, WORK_MAX, raw, reason, record,
};
use super::waiting::{WaitingClass, Waits};
use super::{
    Change, Condition, Deadline, Decision, Effect, Holder, Index, Record, RecordKind, Snapshot,
    Transacted,
};
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
        let record = record(channel, key);
        let found = self.snapshot(&record).await?;
        self.take_from(&record, found, holder, idempotent).await
    }

    /// The same for a command that was read a moment ago: one trip to Redis where nobody else has it.
    ///
    /// # Errors
    /// [`Unavailable`]; taking it again is harmless.
    pub async fn take_read(
        &self,
        command: &Command,
        key: Uuid,
        holder: &Holder,
        idempotent: bool,
    ) -> Result<Take, Unavailable> {
        let Some(state) = CommandState::of(command) else {
            return self.take(&command.channel, key, holder, idempotent).await;
        };
        let state = serde_json::to_string(&state).expect("a state is plain data");
        // No clock: the deadline says whether it is too late.
        let guess = Snapshot { now_ms: 0, state: Some(state) };
        self.take_from(&record(&command.channel, key), guess, holder, idempotent).await
    }

    async fn take_from(
        &self,
        record: &Record,
        found: Snapshot,
        holder: &Holder,
        idempotent: bool,
    ) -> Result<Take, Unavailable> {
        let taker = Taker { holder: holder.clone(), idempotent };
        let rule = |found, now_ms| taken(found, now_ms, record, &taker);
        Ok(match self.transact_from(record, found, rule).await? {
            Transacted::Done(take) => take,
            Transacted::Unmet => {
                self.expire(record).await?;
                Take::Gone
            }
            Transacted::Fenced => Take::Fenced,
        })
    }

    /// Tells the askers of a request that `holder` has taken how far it has come. It is not stored: an asker that
    /// joins later receives what is told later. Without effect if the request is not the holder's (any more).
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
        let state = self.state::<CommandState>(&record).await?;
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
fn taken(
    found: Option<CommandState>,
    now_ms: u64,
    record: &Record,
    taker: &Taker,
) -> Decision<Take> {
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
    change.condition = Condition::InTime(Deadline::Expire);
    change.effects = vec![
        Effect::WaitNoMore,
        Effect::Put(Index::Open(taker.holder.agent.clone()), record.id.clone(), "".into()),
        Effect::Due(Deadline::Expire, None),
    ];
    state.heard(&record.channel, &mut change.effects);
    Decision::Set(change, Take::Yours)
}

/// Its taker says how it ended, once.
fn finished(
    found: Option<CommandState>,
    record: &Record,
    holder: &Holder,
    outcome: &CommandOutcome,
) -> Decision<bool> {
    let is_taker =
        |state: &CommandState| state.taker.as_ref().is_some_and(|by| by.holder == *holder);
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
fn given_up(found: Option<CommandState>, record: &Record) -> Decision<CommandOutcome> {
    match found {
        None => Decision::Keep(GONE),
        Some(state) if state.status.is_final() => Decision::Keep(state.outcome()),
        Some(state) => Decision::Set(state.ended(record, Status::Expired, None), GONE),
    }
}

/// Its time is over; false where it waits no longer, or may wait on.
fn expired(found: Option<CommandState>, now_ms: u64, record: &Record) -> Decision<bool> {
    match found {
        None => {
            let effects = vec![Effect::WaitNoMore, Effect::Due(Deadline::Expire, None)];
            Decision::Set(Change { effects, ..Change::removal() }, true)
        }
        Some(state) if state.status == Status::Accepted && now_ms >= state.expires_at => {
            Decision::Set(state.ended(record, Status::Expired, None), true)
        }
        Some(_) => Decision::Keep(false),
    }
}

/// What `lost` had taken is offered anew where that does no harm, else it has failed.
fn settled(
    found: Option<CommandState>,
    now_ms: u64,
    record: &Record,
    lost: &Holder,
) -> Decision<()> {
    let open = Index::Open(lost.agent.clone());
    let Some(mut state) = found else {
        let effects =
            vec![Effect::Remove(open, record.id.clone()), Effect::Due(Deadline::Expire, None)];
        return Decision::Set(Change { effects, ..Change::removal() }, ());
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
        Effect::Due(Deadline::Expire, Some(REMEMBERED)),
        Effect::Wait(Waits {
            entry: NewEntry::new(state.name, entry),
            sender: state.sender,
            class: WaitingClass::Ordinary,
            is_limited: false,
        }),
    ];
    Decision::Set(change, ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(incarnation: u64) -> Holder {
        Holder { agent: "a".into(), incarnation }
    }

    fn command() -> Record {
        record(&Channel::agent("a").expect("an id"), Uuid::from_u128(1))
    }

    /// As it is written: it expires at 100.
    fn state(status: &str, taker: Option<(u64, bool)>) -> Option<CommandState> {
        let taker = taker.map(|(incarnation, idempotent)| {
            serde_json::json!({"agent_id": "a", "incarnation": incarnation, "idempotent": idempotent})
        });
        let state = serde_json::json!({
            "status": status, "expires_at": 100, "command_id": Uuid::nil(), "content": {"data": ""}, "name": "x",
            "entry": "{}", "taker": taker,
        });
        serde_json::from_value(state).ok()
    }

    /// The status that a decision leaves, with its answer; `None`: it changes nothing.
    fn after<A>(decision: Decision<A>) -> (Option<Status>, A) {
        match decision {
            Decision::Keep(answer) => (None, answer),
            Decision::Set(change, answer) => {
                let state = change
                    .state
                    .and_then(|state| serde_json::from_str::<CommandState>(&state).ok());
                (state.map(|state| state.status), answer)
            }
        }
    }

    #[test]
    fn a_command_is_taken_once_and_in_time() {
        let take = |found, now| {
            let taker = Taker { holder: holder(2), idempotent: false };
            after(taken(found, now, &command(), &taker))
        };
        assert_eq!(take(state("accepted", None), 99), (Some(Status::Delivered), Take::Yours));
        assert_eq!(take(state("accepted", None), 100), (Some(Status::Expired), Take::Gone));
        assert_eq!(take(state("delivered", Some((2, false))), 99), (None, Take::Yours), "a retry");
        assert_eq!(take(state("delivered", Some((1, false))), 99), (None, Take::Gone));
        assert_eq!(take(None, 99), (None, Take::Gone));
    }

    #[test]
    fn only_its_taker_says_how_it_ended_and_once() {
        let applied = CommandOutcome { status: Status::Applied, detail: None };
        let finish = |found, by| after(finished(found, &command(), &holder(by), &applied));
        assert_eq!(finish(state("delivered", Some((2, false))), 2), (Some(Status::Applied), true));
        assert_eq!(finish(state("delivered", Some((2, false))), 3), (None, false));
        assert_eq!(finish(state("applied", Some((2, false))), 2), (None, true), "a retry");
        assert_eq!(finish(state("rejected", Some((2, false))), 2), (None, false));
    }

    #[test]
    fn what_a_lost_agent_had_taken_fails_or_is_offered_again() {
        let settle =
            |taker, lost| after(settled(state("delivered", taker), 5, &command(), &holder(lost))).0;
        assert_eq!(settle(Some((2, false)), 2), Some(Status::Rejected));
        assert_eq!(settle(Some((2, true)), 2), Some(Status::Accepted));
        assert_eq!(settle(Some((3, false)), 2), None, "its successor's");
    }

    #[test]
    fn what_nobody_took_expires_in_its_time() {
        assert_eq!(after(expired(state("accepted", None), 99, &command())), (None, false));
        assert_eq!(
            after(expired(state("accepted", None), 100, &command())),
            (Some(Status::Expired), true)
        );
        assert_eq!(
            after(expired(state("delivered", Some((2, false))), 100, &command())),
            (None, false)
        );
    }
}
