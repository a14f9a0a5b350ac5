//! ▲ A Cancel reaches the agents that were spawned under the one it names, and theirs; sent to a session, those
//! that were spawned for the runs begun there.
//!
//! [`command`](super::command) → **walk** → [`family`](super::family). The step that sends the Cancel leaves a
//! record of the walk with a deadline. The sender walks as long as it has patience, then any reaper goes on. Each
//! agent gets a command whose id follows from the first one's, so walking twice reaches each of them once. A walk
//! ends a while after its Cancel, and leaves alone what was adopted after it: what began since is not meant.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use protocol::limits::{CANCEL_WAIT, CANCEL_WALK, CANCELLED_MAX};
use protocol::{Channel, Kind, Status};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use super::command::{self, CommandState, NewCommand, SendError, Sent};
use super::transact::read;
use super::waiting::WaitingClass;
use super::{Change, Deadline, Decision, Effect, Index, Record, RecordKind};
use crate::{Journal, NewEntry, Unavailable};

/// After this time a reaper goes on. Until then the sender walks.
const WALK_AFTER: Duration = Duration::from_secs(5);
/// How long a reaper walks before it does something else.
const SLICE: Duration = Duration::from_secs(1);
/// How many agents are reached in one step of the walk, and how many of them at a time.
const STEP: usize = 64;
const AT_ONCE: usize = 8;
/// How an agent that was reached stands in the index.
const REACHED: &str = "reached";

/// What a Cancel is for, beside the agent or the session to which it is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cancel {
    /// One run: then only agents that were spawned for it are reached, and theirs. Absent: all.
    pub run_id: Option<Box<str>>,
    /// Why, in the sender's words.
    pub reason: Option<Box<str>>,
}

/// How far a Cancel has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walked {
    /// How many spawned agents were there to receive it.
    pub listeners: u64,
    /// How many spawned agents it has reached; those that were gone count.
    pub reached: u64,
    /// Of how many that are known.
    pub of: u64,
    /// Nothing follows.
    pub is_over: bool,
}

/// What became of a Cancel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cancelled {
    /// At the agent or session that it names.
    pub sent: Result<Sent, SendError>,
    /// At those that were spawned under it.
    pub walked: Walked,
}

/// A walk's state; it is kept past the end, so that a Cancel sent again learns how it went.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct WalkState {
    command_id: Uuid,
    name: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<Box<str>>,
    sender: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run_id: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<Box<str>>,
    /// When the Cancel was sent, Unix milliseconds.
    at: u64,
    /// Which step wrote it: no two write the same state, so none is taken for another one's repetition.
    step: Uuid,
    #[serde(flatten)]
    walked: Walked,
}

impl WalkState {
    fn new(new: &NewCommand, cancel: &Cancel, now_ms: u64) -> Self {
        Self {
            command_id: new.command_id,
            name: new.name.clone(),
            by: new.by.clone(),
            sender: new.sender.clone(),
            run_id: cancel.run_id.clone(),
            reason: cancel.reason.clone(),
            at: now_ms,
            step: Uuid::new_v4(),
            walked: Walked::default(),
        }
    }

    /// The Cancel of all that `child` runs.
    fn command(&self, channel: Channel) -> NewCommand {
        let child = channel.id();
        let mut data = json!({"agent_id": child});
        if let Some(reason) = &self.reason {
            data["reason"] = json!(reason);
        }
        NewCommand {
            command_id: Uuid::new_v5(&self.command_id, child.as_bytes()),
            channel,
            name: self.name.clone(),
            data: data.to_string().into(),
            by: self.by.clone(),
            sender: self.sender.clone(),
            class: WaitingClass::Cancel,
            expires_in: CANCEL_WAIT,
            may_wait: false,
            answer_to: None,
        }
    }
}

fn record(channel: &Channel, key: Uuid) -> Record {
    Record { kind: RecordKind::Walk, channel: channel.clone(), id: key.to_string().into() }
}

/// For the step that sends the Cancel.
pub(super) fn owed(new: &NewCommand, cancel: &Cancel, now_ms: u64) -> Vec<Effect> {
    let record = record(&new.channel, new.key());
    let state = serde_json::to_string(&WalkState::new(new, cancel, now_ms)).expect("plain data");
    vec![
        Effect::Write(record.clone(), state, command::REMEMBERED),
        Effect::DueOf(Deadline::Walk, record, WALK_AFTER),
    ]
}

/// One walk, as one process goes on with it.
struct Walker<'a> {
    journal: &'a Journal,
    record: &'a Record,
    state: WalkState,
    seen: HashSet<Box<str>>,
    open: VecDeque<Box<str>>,
}

/// What came of trying to reach an agent.
struct Reached {
    child: Box<str>,
    listeners: u64,
    children: Vec<Box<str>>,
}

impl<'a> Walker<'a> {
    /// As the journal has it, with the journal's time.
    async fn load(
        journal: &'a Journal,
        record: &'a Record,
    ) -> Result<Option<(Self, u64)>, Unavailable> {
        let found = journal.snapshot(record).await?;
        let Some(state) = read::<WalkState>(record, found.state.as_deref()) else {
            return Ok(None);
        };
        let mut walker =
            Self { journal, record, state, seen: HashSet::new(), open: VecDeque::new() };
        if record.channel.kind() == Kind::Agent {
            // An agent that is its own grandparent is cancelled once.
            walker.seen.insert(record.channel.id().into());
        }
        if walker.state.walked.of > 0 && !walker.state.walked.is_over {
            for (child, phase) in journal.list(&record.channel, &walker.index()).await? {
                if &*phase != REACHED {
                    walker.open.push_back(child.clone());
                }
                walker.seen.insert(child);
            }
        }
        Ok(Some((walker, found.now_ms)))
    }

    fn index(&self) -> Index {
        Index::Walked(self.record.id.clone())
    }

    /// Until it is over, or the time is, or all that is left does not answer now.
    async fn go(&mut self, now_ms: u64, until: Instant) -> Result<(), Unavailable> {
        let ends = self.state.at + CANCEL_WALK.as_millis() as u64;
        let ends = Instant::now() + Duration::from_millis(ends.saturating_sub(now_ms));
        let mut unanswered = Vec::new();
        if self.state.walked.of == 0 {
            let WalkState { run_id, at, .. } = &self.state;
            let channel = &self.record.channel;
            let children = self.journal.adopted_by(channel, run_id.as_deref(), *at).await?;
            if !self.has_come(Vec::new(), children).await? {
                return Ok(());
            }
        }
        while Instant::now() < until.min(ends) && !self.open.is_empty() {
            let step: Vec<_> = self.open.drain(..STEP.min(self.open.len())).collect();
            let trying = step.into_iter().map(|child| self.reach(child, until));
            let tried = stream::iter(trying).buffer_unordered(AT_ONCE).collect::<Vec<_>>().await;
            let (mut reached, mut children) = (Vec::new(), Vec::new());
            for one in tried {
                match one {
                    Ok(mut one) => {
                        children.append(&mut one.children);
                        reached.push(one);
                    }
                    Err(child) => unanswered.push(child),
                }
            }
            if !self.has_come(reached, children).await? {
                return Ok(());
            }
        }
        let is_through = self.open.is_empty() && unanswered.is_empty();
        if is_through || Instant::now() >= ends { self.end().await } else { Ok(()) }
    }

    /// Cancels all that a child runs. It is given back where it has no place for the Cancel, or does not answer.
    async fn reach(&self, child: Box<str>, until: Instant) -> Result<Reached, Box<str>> {
        let Ok(channel) = Channel::agent(&child) else {
            return Ok(Reached { child, listeners: 0, children: Vec::new() });
        };
        let new = self.state.command(channel);
        let trying = async {
            let listeners = match self.journal.send(&new).await {
                Ok(sent) => sent.listeners,
                Err(SendError::NoAgent) => 0,
                Err(_) => return None,
            };
            let children = self.journal.adopted_by(&new.channel, None, self.state.at).await;
            Some((listeners, children.ok()?))
        };
        match tokio::time::timeout_at(until, Box::pin(trying)).await {
            Ok(Some((listeners, children))) => Ok(Reached { child, listeners, children }),
            _ => Err(child),
        }
    }

    /// Writes how far it has come; whether nobody else has meanwhile.
    async fn has_come(
        &mut self,
        reached: Vec<Reached>,
        children: Vec<Box<str>>,
    ) -> Result<bool, Unavailable> {
        let mut next = WalkState { step: Uuid::new_v4(), ..self.state.clone() };
        let index = self.index();
        let put = |child: &str, phase: &str| Effect::Put(index.clone(), child.into(), phase.into());
        let mut effects: Vec<_> = reached.iter().map(|one| put(&one.child, REACHED)).collect();
        next.walked.reached += reached.len() as u64;
        next.walked.listeners += reached.iter().map(|one| one.listeners).sum::<u64>();
        let mut came = Vec::new();
        for child in children {
            if self.seen.contains(&child) {
                continue;
            }
            next.walked.of += 1;
            // Of more than it may reach it says so at the end.
            if next.walked.of as usize <= CANCELLED_MAX {
                effects.push(put(&child, ""));
                self.seen.insert(child.clone());
                came.push(child);
            }
        }
        if effects.is_empty() {
            return Ok(true);
        }
        let is_mine = self.commit(next, effects).await?;
        self.open.extend(came);
        Ok(is_mine)
    }

    /// It is over. What it has not reached is told.
    async fn end(&mut self) -> Result<(), Unavailable> {
        let mut next = WalkState { step: Uuid::new_v4(), reason: None, ..self.state.clone() };
        next.walked.is_over = true;
        let mut effects = vec![Effect::Clear(self.index()), Effect::Due(Deadline::Walk, None)];
        let Walked { reached, of, .. } = next.walked;
        if reached < of {
            let command = Record { kind: RecordKind::Command, ..self.record.clone() };
            let status = self.journal.state::<CommandState>(&command).await?;
            // Where the agent itself was gone, there is no command of its own.
            let status = status.map_or(Status::Expired, |state| state.status);
            let told = json!({
                "command_id": next.command_id, "status": status, "reached": reached, "of": of,
            });
            effects.push(Effect::Event(NewEntry::new("command_status", told.to_string())));
            tracing::warn!(channel = %self.record.channel, reached, of, "a cancel did not reach all spawned agents");
        }
        self.commit(next, effects).await?;
        Ok(())
    }

    /// Whether the walk still is where this process left it.
    async fn commit(&mut self, next: WalkState, effects: Vec<Effect>) -> Result<bool, Unavailable> {
        let before = self.state.step;
        let rule = |found: Option<WalkState>, _| {
            if found.is_none_or(|found| found.step != before) {
                return Decision::Keep(false);
            }
            // Of a Cancel that had nobody to go on to nothing is kept.
            let is_empty = next.walked.is_over && next.walked.of == 0;
            let mut change = if is_empty { Change::removal() } else { Change::new(&next) };
            change.lifetime = Some(command::REMEMBERED).filter(|_| !is_empty);
            change.effects = effects.clone();
            Decision::Set(change, true)
        };
        let is_mine = self.journal.transact(self.record, rule).await?.done().unwrap_or(false);
        if is_mine {
            self.state = next;
        }
        Ok(is_mine)
    }
}

impl Journal {
    /// Sends a Cancel, and one to each agent that was spawned under the one it names. The walk from one to the next
    /// goes on here until `until`, afterwards a reaper continues it.
    pub async fn cancel(&self, new: &NewCommand, cancel: &Cancel, until: Instant) -> Cancelled {
        let sent = self.send_with(new, |now_ms| owed(new, cancel, now_ms)).await;
        let record = record(&new.channel, new.key());
        // The agent itself is gone, or has no place for it; those that it spawned are not.
        let begins_alone =
            matches!(sent, Err(SendError::NoAgent | SendError::Busy(_) | SendError::TooFast(_)));
        let walks = begins_alone || sent.is_ok();
        let walking = async {
            // Nothing is done of what is another command, and what is unknown is sent again.
            if !walks {
                return Ok(None);
            }
            if begins_alone {
                let begun = |found: Option<WalkState>, now_ms| {
                    if found.is_some() {
                        return Decision::Keep(());
                    }
                    let mut change = Change::new(&WalkState::new(new, cancel, now_ms));
                    change.lifetime = Some(command::REMEMBERED);
                    change.effects = vec![Effect::Due(Deadline::Walk, Some(WALK_AFTER))];
                    Decision::Set(change, ())
                };
                self.transact(&record, begun).await?;
            }
            self.walk(&record, until).await
        };
        let walked: Result<_, Unavailable> = walking.await;
        let walked = walked.unwrap_or_else(|error| {
            tracing::debug!(%record, %error, "a cancel goes on later");
            None
        });
        Cancelled { sent, walked: walked.unwrap_or_default() }
    }

    /// Goes on with a walk; how far it is then. `None` where it is not known (any more).
    async fn walk(&self, record: &Record, until: Instant) -> Result<Option<Walked>, Unavailable> {
        let Some((mut walker, now_ms)) = Walker::load(self, record).await? else { return Ok(None) };
        if !walker.state.walked.is_over {
            walker.go(now_ms, until).await?;
        }
        Ok(Some(walker.state.walked))
    }

    /// Deadline: the sender has no more patience, or has died.
    pub(super) async fn walk_on(&self, record: &Record) -> Result<(), Unavailable> {
        if self.walk(record, Instant::now() + SLICE).await?.is_none() {
            let forgotten = |_: Option<WalkState>, _| {
                let mut change = Change::removal();
                let index = Index::Walked(record.id.clone());
                change.effects = vec![Effect::Clear(index), Effect::Due(Deadline::Walk, None)];
                Decision::Set(change, ())
            };
            self.transact(record, forgotten).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Name, Since};

    /// What it has not reached when its time is over is told, and what was begun since lives.
    #[tokio::test]
    async fn a_walk_ends_in_its_time_and_tells_what_it_has_not_reached() {
        let journal = Journal::in_memory();
        let to = Channel::agent("boss").expect("an id");
        let child = Channel::agent("child").expect("an id");
        let _child = journal.lease(&child, "child", None, None).await.expect("a lease");
        let record = record(&to, Uuid::from_u128(1));
        let now = journal.snapshot(&record).await.expect("memory").now_ms;
        let state = WalkState {
            command_id: Uuid::from_u128(1),
            name: "cancel_agent".into(),
            by: None,
            sender: "ann".into(),
            run_id: None,
            reason: None,
            at: now - CANCEL_WALK.as_millis() as u64 - 1,
            step: Uuid::new_v4(),
            walked: Walked { listeners: 3, reached: 4, of: 5, is_over: false },
        };
        let mut begun = Change::new(&state);
        let index = Index::Walked(record.id.clone());
        begun.effects = vec![
            Effect::Put(index.clone(), "child".into(), "".into()),
            Effect::Due(Deadline::Walk, Some(Duration::ZERO)),
        ];
        journal.commit(&record, None, &begun).await.expect("memory");

        journal.walk_on(&record).await.expect("memory");

        let read = async |name| journal.read(&name, Since::Start, 10).await;
        let told = read(Name::events(to.clone())).await.expect("memory").entries;
        let data = r#"{"command_id":"00000000-0000-0000-0000-000000000001","of":5,"reached":4,"status":"expired"}"#;
        assert_eq!((told.len(), &*told[0].name, &*told[0].data), (1, "command_status", data));
        assert!(read(Name::commands(child)).await.expect("memory").entries.is_empty());
        assert!(journal.list(&to, &index).await.expect("memory").is_empty());
        assert!(journal.due(10).await.expect("memory").is_empty());
    }
}
