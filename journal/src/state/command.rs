//! ▲ A command's life: sent → taken by one agent → applied or rejected; or expired when nobody took it.
//!
//! At most once, over every crash: taking is one atomic step that only one agent can make, before it
//! begins; what an agent leaves when it dies is answered `rejected`, never done again, unless it said
//! that doing it twice does no harm. The state is kept until ten minutes past the final status, so a
//! repeated `command_id` learns the outcome instead of doing it again; it stands for one [`content`] only.

mod content;

use std::time::Duration;

use protocol::limits::COMMAND_WAIT_UNKNOWN;
use protocol::{Channel, Entry, Kind, Offset, Status};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;
use uuid::Uuid;

use super::waiting::{WaitingClass, Waits};
use super::{
    Change, Deadline, Decision, Effect, Holder, Index, Record, RecordKind, Snapshot, Transacted,
};
use crate::{Journal, NewEntry, TooFast, Unavailable};
use content::Content;

/// How long an outcome is remembered.
pub(super) const REMEMBERED: Duration = Duration::from_secs(600);
/// How long a command may be worked on.
pub(super) const WORK_MAX: Duration = Duration::from_secs(24 * 3_600);

/// A command on its way.
#[derive(Clone, Debug)]
pub struct NewCommand {
    /// Whose agents.
    pub channel: Channel,
    /// What to do.
    pub name: Box<str>,
    /// With which arguments, JSON.
    pub data: Box<str>,
    /// The sender's id for it.
    pub command_id: Uuid,
    /// Who asks: the relay's word.
    pub by: Option<Box<str>>,
    /// Whose places it takes while it waits.
    pub sender: Box<str>,
    /// Which of them.
    pub class: WaitingClass,
    /// Until when it may be taken.
    pub expires_in: Duration,
    /// Whether it may wait for an agent that is not there now.
    pub may_wait: bool,
    /// For a request: the address where the answer is waited for. A request makes no events: only its
    /// asker is told how it goes.
    pub answer_to: Option<Box<str>>,
}

impl NewCommand {
    /// Where its answer is found; what is notified with when that is there.
    pub fn key(&self) -> Uuid {
        key(&self.channel, self.command_id, self.by.as_deref())
    }
}

/// What became of a sent command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Where its answer is found.
    pub key: Uuid,
    /// How many agents were there to hear it.
    pub listeners: u64,
    /// Whether an agent has served the channel not long ago: if not, its name may be misspelled.
    pub is_known: bool,
    /// Where it stands now: a repetition learns the outcome of the first.
    pub outcome: CommandOutcome,
}

/// Where a command stands, and what there is to say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandOutcome {
    /// Where it stands.
    pub status: Status,
    /// A reason, or a request's reply: JSON.
    pub detail: Option<Box<str>>,
}

/// Why a command was not sent.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SendError {
    /// No agent is there, and the command does not wait for one.
    #[error("no agent is there")]
    NoAgent,
    /// Its `command_id` was used on the channel for a command in which this part was another. Nothing was done.
    #[error("this `command_id` was used on this channel with another `{0}`")]
    Conflict(&'static str),
    /// No place is left for the command.
    #[error("{}", .0.busy())]
    Busy(WaitingClass),
    /// Too much is kept of its sender's commands already.
    #[error(transparent)]
    TooFast(#[from] TooFast),
    /// The journal could not be reached. The outcome is unknown.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// A command as it stands in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Where it was sent.
    pub channel: Channel,
    /// Where it stands in the channel's commands.
    pub offset: Offset,
    /// What it is taken by; `None`: it needs no taking, everyone is told.
    pub key: Option<Uuid>,
    /// The sender's id for it.
    pub command_id: Box<str>,
    /// What to do.
    pub name: Box<str>,
    /// With which arguments, JSON.
    pub data: Box<str>,
    /// Who asks.
    pub by: Option<Box<str>>,
    /// Whether an answer is waited for.
    pub is_request: bool,
    /// Until when it may be taken, Unix milliseconds.
    pub expires_at: Option<u64>,
}

/// The data of a command's entry.
#[derive(Serialize, Deserialize)]
pub(super) struct Stamped<'a> {
    pub(super) command_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) by: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) request: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expires_at: Option<u64>,
    #[serde(borrow)]
    pub(super) data: Option<&'a RawValue>,
}

impl Command {
    /// The command in an entry of `channel`'s commands; `None` if it does not hold one.
    pub fn read(channel: &Channel, entry: &Entry) -> Option<Self> {
        let stamped: Stamped<'_> = serde_json::from_str(&entry.data).ok()?;
        Some(Self {
            channel: channel.clone(),
            offset: entry.offset,
            key: stamped.key,
            command_id: stamped.command_id.into(),
            name: entry.name.clone(),
            data: stamped.data.map_or("null", RawValue::get).into(),
            by: stamped.by.map(Into::into),
            is_request: stamped.request,
            expires_at: stamped.expires_at,
        })
    }
}

/// A command's state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct CommandState {
    pub(super) status: Status,
    /// Until when it may be taken, Unix milliseconds.
    pub(super) expires_at: u64,
    command_id: Uuid,
    /// What the `command_id` stands for, beside the name.
    content: Content,
    /// The entry's name and data, for when it must be offered again.
    pub(super) name: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) entry: Option<Box<str>>,
    /// Whose places it takes then.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub(super) sender: Box<str>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    request: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) taker: Option<Taker>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    detail: Option<Box<RawValue>>,
    /// Addresses where the answer is waited for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) waiting: Vec<Box<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Taker {
    #[serde(flatten)]
    pub(super) holder: Holder,
    /// Doing it twice does no harm.
    #[serde(default)]
    pub(super) idempotent: bool,
}

impl CommandState {
    /// The state in which a command is sent, if it is not a request. It follows from the entry.
    fn sent(command_id: Uuid, name: Box<str>, data: &str, expires_at: u64) -> Self {
        Self {
            status: Status::Accepted,
            expires_at,
            command_id,
            content: Content::of(&name, data),
            name,
            entry: None,
            sender: "".into(),
            request: false,
            taker: None,
            detail: None,
            waiting: Vec::new(),
        }
    }

    /// The state of a command that was read, as long as nobody has taken it. A request's is not known.
    pub(super) fn of(command: &Command) -> Option<Self> {
        let expires_at = command.expires_at.filter(|_| !command.is_request)?;
        let command_id = command.command_id.parse().ok()?;
        Some(Self::sent(command_id, command.name.clone(), &command.data, expires_at))
    }

    pub(super) fn is_worked_on_by(&self, holder: &Holder) -> bool {
        let is_taker = self.taker.as_ref().is_some_and(|taker| taker.holder == *holder);
        is_taker && self.status == Status::Delivered
    }

    pub(super) fn outcome(&self) -> CommandOutcome {
        CommandOutcome {
            status: self.status,
            detail: self.detail.as_ref().map(|detail| detail.get().into()),
        }
    }

    /// Tells the channel of its status.
    pub(super) fn heard(&self, channel: &Channel, effects: &mut Vec<Effect>) {
        if self.request || channel.kind() == Kind::Service {
            return;
        }
        #[derive(Serialize)]
        struct Told<'a> {
            command_id: Uuid,
            status: Status,
            #[serde(skip_serializing_if = "Option::is_none")]
            detail: Option<&'a RawValue>,
        }
        let told = Told {
            command_id: self.command_id,
            status: self.status,
            detail: self.detail.as_deref(),
        };
        let data = serde_json::to_string(&told).expect("a status is plain data");
        effects.push(Effect::Event(NewEntry::new("command_status", data)));
    }

    /// The step to a final status.
    pub(super) fn ended(
        mut self,
        record: &Record,
        status: Status,
        detail: Option<Box<RawValue>>,
    ) -> Change {
        let mut effects = match &self.taker {
            // Taken, it left its place and its deadline.
            Some(taker) => {
                vec![Effect::Remove(Index::Open(taker.holder.agent.clone()), record.id.clone())]
            }
            None => vec![Effect::WaitNoMore, Effect::Due(Deadline::Expire, None)],
        };
        effects.extend(self.waiting.drain(..).map(|at| Effect::Notify(at, record.id.clone())));
        (self.status, self.detail, self.entry) = (status, detail, None);
        self.heard(&record.channel, &mut effects);
        let mut change = Change::new(&self);
        change.lifetime = Some(REMEMBERED);
        change.effects = effects;
        change
    }
}

/// One user's command ids are no other's, and one channel's no other's: nobody can have another's command taken for a
/// repetition.
fn key(channel: &Channel, command_id: Uuid, by: Option<&str>) -> Uuid {
    Uuid::new_v5(&command_id, format!("{channel} {}", by.unwrap_or_default()).as_bytes())
}

pub(super) fn record(channel: &Channel, key: Uuid) -> Record {
    Record { kind: RecordKind::Command, channel: channel.clone(), id: key.to_string().into() }
}

/// A reason, as JSON.
pub(super) fn reason(text: &str) -> Box<RawValue> {
    raw(&serde_json::Value::String(text.to_owned()).to_string())
}

pub(super) fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned())
        .unwrap_or_else(|_| RawValue::from_string("null".to_owned()).expect("null is JSON"))
}

/// What becomes of sending a command.
#[derive(Debug, PartialEq)]
enum Sending {
    Stands(CommandOutcome),
    /// Another command has its id: this part differs.
    Conflict(&'static str),
    NoAgent,
}

/// The first is sent. A repetition waits with the first, or learns its outcome.
fn sent(
    found: Option<CommandState>,
    now_ms: u64,
    new: &NewCommand,
    is_heard: bool,
) -> Decision<Sending> {
    let data = raw(&new.data);
    if let Some(mut state) = found {
        let content = Content::of(&new.name, data.get());
        if let Some(part) = content::differs((&state.name, &state.content), (&new.name, &content)) {
            return Decision::Keep(Sending::Conflict(part));
        }
        let outcome = state.outcome();
        return match &new.answer_to {
            Some(at) if !state.status.is_final() && !state.waiting.contains(at) => {
                state.waiting.push(at.clone());
                let mut change = Change::new(&state);
                change.lifetime = Some(WORK_MAX);
                Decision::Set(change, Sending::Stands(outcome))
            }
            _ => Decision::Keep(Sending::Stands(outcome)),
        };
    }
    if !is_heard && !new.may_wait {
        return Decision::Keep(Sending::NoAgent);
    }
    let expires_at = now_ms + new.expires_in.as_millis() as u64;
    let is_request = new.answer_to.is_some();
    let stamped = Stamped {
        command_id: new.command_id.to_string(),
        key: Some(new.key()),
        by: new.by.as_deref().map(ToOwned::to_owned),
        request: is_request,
        expires_at: Some(expires_at),
        data: Some(&data),
    };
    let entry = serde_json::to_string(&stamped).expect("a command is plain data");
    let mut state = CommandState::sent(new.command_id, new.name.clone(), data.get(), expires_at);
    if is_request {
        state.request = true;
        state.entry = Some(entry.clone().into());
        state.sender = new.sender.clone();
        state.waiting = new.answer_to.iter().cloned().collect();
    }
    let mut change = Change::new(&state);
    change.lifetime = Some(new.expires_in + REMEMBERED);
    change.effects = vec![
        Effect::Due(Deadline::Expire, Some(new.expires_in)),
        Effect::Wait(Waits {
            entry: NewEntry::new(new.name.clone(), entry),
            sender: new.sender.clone(),
            class: new.class,
            is_limited: true,
        }),
    ];
    Decision::Set(change, Sending::Stands(state.outcome()))
}

impl Journal {
    /// Sends a command: once, however often and through whichever replica it is sent.
    ///
    /// # Errors
    /// [`SendError`]. After `Unavailable`, sending it again tells its outcome.
    pub async fn send(&self, new: &NewCommand) -> Result<Sent, SendError> {
        self.send_with(new, |_| Vec::new()).await
    }

    /// The same; `besides`, at the journal's time, happens in the step that sends it.
    pub(super) async fn send_with(
        &self,
        new: &NewCommand,
        besides: impl Fn(u64) -> Vec<Effect>,
    ) -> Result<Sent, SendError> {
        let key = new.key();
        let record = record(&new.channel, key);
        let live = self.live(&new.channel).await?;
        let (listeners, is_known) = (live.count, live.is_known || live.count > 0);
        let shorter;
        let new = if is_known || new.expires_in <= COMMAND_WAIT_UNKNOWN {
            new
        } else {
            shorter = NewCommand { expires_in: COMMAND_WAIT_UNKNOWN, ..new.clone() };
            &shorter
        };
        self.growth.admit_command(new, listeners, is_known)?;
        let found = match listeners > 0 || new.may_wait {
            // Most commands are new.
            true => Snapshot { now_ms: live.now_ms, state: None },
            // It may be a repetition of what was sent while an agent was there.
            false => self.snapshot(&record).await?,
        };
        let rule = |found: Option<CommandState>, now_ms| {
            let is_first = found.is_none();
            let mut decision = sent(found, now_ms, new, listeners > 0);
            if let Decision::Set(change, _) = &mut decision
                && is_first
            {
                change.effects.extend(besides(now_ms));
            }
            decision
        };
        match self.transact_from(&record, found, rule).await? {
            Transacted::Done(Sending::Conflict(part)) => Err(SendError::Conflict(part)),
            Transacted::Done(Sending::Stands(outcome)) => {
                Ok(Sent { key, listeners, is_known, outcome })
            }
            Transacted::Done(Sending::NoAgent) => Err(SendError::NoAgent),
            Transacted::Unmet | Transacted::Fenced => Err(SendError::Busy(new.class)),
        }
    }

    /// Where the command `key` stands; `None` where it is not known (any more).
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn outcome(
        &self,
        channel: &Channel,
        key: Uuid,
    ) -> Result<Option<CommandOutcome>, Unavailable> {
        let state = self.state::<CommandState>(&record(channel, key)).await?;
        Ok(state.map(|state| state.outcome()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(may_wait: bool, answer_to: Option<&str>) -> NewCommand {
        NewCommand {
            channel: Channel::agent("a").expect("an id"),
            name: "do_it".into(),
            data: "null".into(),
            command_id: Uuid::from_u128(1),
            by: None,
            sender: "ann".into(),
            class: WaitingClass::Ordinary,
            expires_in: Duration::from_secs(60),
            may_wait,
            answer_to: answer_to.map(Into::into),
        }
    }

    /// The state that a decision leaves.
    fn state<A>(decision: &Decision<A>) -> Option<CommandState> {
        let Decision::Set(change, _) = decision else { return None };
        change.state.as_deref().and_then(|state| serde_json::from_str(state).ok())
    }

    #[test]
    fn the_first_waits_and_a_repetition_changes_nothing() {
        let first = sent(None, 5, &new(true, None), false);
        let Decision::Set(change, _) = &first else { panic!("{first:?}") };
        assert!(
            change
                .effects
                .iter()
                .any(|effect| matches!(effect, Effect::Wait(waits) if waits.is_limited))
        );
        let found = state(&first);
        assert_eq!(found.as_ref().map(|state| state.expires_at), Some(60_005));
        assert!(matches!(
            sent(found, 9, &new(true, None), true),
            Decision::Keep(Sending::Stands(_))
        ));
    }

    #[test]
    fn what_must_not_wait_is_refused_unless_it_was_sent_before() {
        let refused = sent(None, 5, &new(false, None), false);
        assert!(matches!(refused, Decision::Keep(Sending::NoAgent)));
        let found = state(&sent(None, 5, &new(false, Some("x")), true));
        let joined = state(&sent(found, 6, &new(false, Some("y")), false));
        assert_eq!(joined.map(|state| state.waiting.concat()), Some("xy".to_owned()));
    }
}
