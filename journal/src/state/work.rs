//! ▲ What an agent does with a command: takes it, finishes it, or dies over it.

use protocol::Channel;
use uuid::Uuid;

use super::command::{
    CommandOutcome, REMEMBERED, State, Status, Take, Taker, WORK_MAX, raw, reason, record,
};
use super::{Change, Committed, Condition, Deadline, Effect, Holder, Index, Record, RecordKind};
use crate::{Backend, Journal, NewEntry, Unavailable};

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
        if let Backend::Relayed(relayed) = &self.backend {
            return relayed.take(channel, key, idempotent).await;
        }
        let record = record(channel, key);
        let mut found = self.snapshot(&record).await?.state;
        let taker = Taker { holder: holder.clone(), idempotent };
        for _ in super::races() {
            let Some(mut state) = super::read::<State>(&record, found.as_deref()) else {
                return Ok(Take::Gone);
            };
            if state.taker.as_ref() == Some(&taker) && state.status == Status::Delivered {
                return Ok(Take::Yours);
            }
            if state.status != Status::Accepted {
                return Ok(Take::Gone);
            }
            (state.status, state.taker) = (Status::Delivered, Some(taker.clone()));
            let mut change = Change::new(&record, found, &state);
            change.lifetime = Some(WORK_MAX);
            change.condition = Condition::NotDue(Deadline::Expire);
            change.holder = Some(holder.clone());
            change.effects = vec![
                Effect::Remove(Index::Waiting, record.id.clone()),
                Effect::Put(Index::Open(holder.agent.clone()), record.id.clone(), "".into()),
                Effect::Due(Deadline::Expire, None),
            ];
            state.heard(channel, &mut change.effects);
            match self.commit(&change).await? {
                Committed::Done(_) => return Ok(Take::Yours),
                Committed::Conflict(now) => found = now,
                Committed::Fenced => return Ok(Take::Fenced),
                Committed::Unmet => {
                    self.expire(&record).await?;
                    return Ok(Take::Gone);
                }
            }
        }
        Err(super::contended(&record))
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
        if let Backend::Relayed(relayed) = &self.backend {
            return relayed.progress(channel, key, data).await;
        }
        let record = record(channel, key);
        let found = self.snapshot(&record).await?.state;
        let state = super::read::<State>(&record, found.as_deref());
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
        if let Backend::Relayed(relayed) = &self.backend {
            return relayed.finish(channel, key, outcome).await;
        }
        let record = record(channel, key);
        let mut found = self.snapshot(&record).await?.state;
        for _ in super::races() {
            let Some(state) = super::read::<State>(&record, found.as_deref()) else {
                return Ok(false);
            };
            if state.taker.as_ref().is_none_or(|taker| taker.holder != *holder) {
                return Ok(false);
            }
            if state.status != Status::Delivered {
                return Ok(state.outcome() == *outcome);
            }
            let detail = outcome.detail.as_deref().map(raw);
            let mut change =
                state.ended(&record, found.unwrap_or_default(), outcome.status, detail);
            change.holder = Some(holder.clone());
            match self.commit(&change).await? {
                Committed::Done(_) => return Ok(true),
                Committed::Conflict(now) => found = now,
                Committed::Unmet | Committed::Fenced => return Ok(false),
            }
        }
        Err(super::contended(&record))
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
        let gone = CommandOutcome { status: Status::Expired, detail: None };
        let mut found = self.snapshot(&record).await?.state;
        for _ in super::races() {
            let Some(state) = super::read::<State>(&record, found.as_deref()) else {
                return Ok(gone);
            };
            if state.status.is_final() {
                return Ok(state.outcome());
            }
            let change = state.ended(&record, found.unwrap_or_default(), Status::Expired, None);
            match self.commit(&change).await? {
                Committed::Done(_) => return Ok(gone),
                Committed::Conflict(now) => found = now,
                Committed::Unmet | Committed::Fenced => return Ok(gone),
            }
        }
        Err(super::contended(&record))
    }

    /// Deadline: nobody took the command in time.
    pub(super) async fn expire(&self, record: &Record) -> Result<(), Unavailable> {
        let mut found = self.snapshot(record).await?.state;
        for _ in super::races() {
            let Some(state) = super::read::<State>(record, found.as_deref()) else {
                return self.forget_record(record, found, Deadline::Expire, Index::Waiting).await;
            };
            if state.status != Status::Accepted {
                return self.forget_deadline(record, Deadline::Expire).await;
            }
            let mut change = state.ended(record, found.unwrap_or_default(), Status::Expired, None);
            change.condition = Condition::Due(Deadline::Expire);
            match self.commit(&change).await? {
                Committed::Conflict(now) => found = now,
                _ => return Ok(()),
            }
        }
        Err(super::contended(record))
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
            self.settle_one(&record, lost, &open).await?;
        }
        Ok(())
    }

    async fn settle_one(
        &self,
        record: &Record,
        lost: &Holder,
        open: &Index,
    ) -> Result<(), Unavailable> {
        let mut found = self.snapshot(record).await?.state;
        for _ in super::races() {
            let state = super::read::<State>(record, found.as_deref());
            let Some(mut state) = state else {
                return self.forget_record(record, found, Deadline::Expire, open.clone()).await;
            };
            let Some(taker) = state.taker.clone() else { return Ok(()) };
            let is_theirs = taker.holder.agent == lost.agent
                && taker.holder.incarnation <= lost.incarnation
                && state.status == Status::Delivered;
            if !is_theirs {
                return Ok(());
            }
            let change = match state.entry.clone() {
                Some(entry) if taker.idempotent => {
                    (state.status, state.taker) = (Status::Accepted, None);
                    let name = state.name.clone();
                    let mut change = Change::new(record, found, &state);
                    change.lifetime = Some(WORK_MAX);
                    change.effects = vec![
                        Effect::Remove(open.clone(), record.id.clone()),
                        Effect::Put(Index::Waiting, record.id.clone(), "".into()),
                        // Whoever waits for the answer gives up in time; this only bounds the rest.
                        Effect::Due(Deadline::Expire, Some(REMEMBERED)),
                        Effect::Command(NewEntry::new(name, entry)),
                    ];
                    change
                }
                _ => {
                    let detail = Some(reason("lost"));
                    state.ended(record, found.unwrap_or_default(), Status::Rejected, detail)
                }
            };
            match self.commit(&change).await? {
                Committed::Conflict(now) => found = now,
                _ => return Ok(()),
            }
        }
        Err(super::contended(record))
    }
}
