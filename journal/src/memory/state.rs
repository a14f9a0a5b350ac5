//! States in memory: the same steps as in Redis, under one lock.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use protocol::limits::APPROVAL_PLACES_MAX;
use protocol::{Channel, Offset};

use super::waiting::WaitingList;
use super::{Memory, MemoryState, StoredStream, micros};
use crate::Name;
use crate::state::alive::{SHOWN_MAX, Sample};
use crate::state::{
    Change, Committed, Condition, Deadline, Effect, Index, LIVE_MAX, Live, Members, Part, Record,
    RecordKind, Snapshot, WaitingLimits,
};

/// Everything that has a state. Times are microseconds.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// Each with the time until which it is kept.
    states: HashMap<Record, (String, Option<u64>)>,
    indexes: HashMap<(Channel, Index), BTreeMap<Box<str>, Box<str>>>,
    deadlines: HashMap<(Deadline, Record), u64>,
    /// Producers that append to a channel no more.
    fences: HashSet<(Channel, String)>,
    /// By their ids, the channels of approvals, each with the time until which it is known.
    places: HashMap<Box<str>, Vec<(Channel, u64)>>,
    pub(super) waiting: HashMap<Channel, WaitingList>,
}

impl Records {
    fn state(&self, record: &Record, now: u64) -> Option<&String> {
        let (state, until) = self.states.get(record)?;
        until.is_none_or(|until| until > now).then_some(state)
    }

    pub(super) fn is_fenced(&self, channel: &Channel, producer: String) -> bool {
        !self.fences.is_empty() && self.fences.contains(&(channel.clone(), producer))
    }

    fn is_due(&self, deadline: Deadline, record: &Record, now: u64) -> bool {
        self.deadlines.get(&(deadline, record.clone())).is_some_and(|at| *at <= now)
    }

    fn index(&self, channel: &Channel, index: &Index) -> Members {
        let members = self.indexes.get(&(channel.clone(), index.clone()));
        members.into_iter().flatten().map(|(id, value)| (id.clone(), value.clone())).collect()
    }

    pub(super) fn sweep(&mut self, now: u64) {
        self.states.retain(|_, (_, until)| until.is_none_or(|until| until > now));
        self.places.retain(|_, places| {
            places.retain(|(_, until)| *until > now);
            !places.is_empty()
        });
        self.indexes.retain(|_, members| !members.is_empty());
        self.waiting.retain(|_, list| !list.is_empty());
    }
}

impl Memory {
    pub(crate) fn snapshot(&self, record: &Record) -> Snapshot {
        let mut state = self.state();
        let now = state.now_us();
        Snapshot { now_ms: now / 1_000, state: state.records.state(record, now).cloned() }
    }

    /// Which agents' leases on the channel last.
    pub(crate) fn live(&self, channel: &Channel) -> Live {
        let mut state = self.state();
        let now = state.now_us();
        let records = &state.records;
        let members = records.indexes.get(&(channel.clone(), Index::Agents));
        let is_known = records.state(&Record::seen(channel), now).is_some();
        let mut live = Live { now_ms: now / 1_000, is_known, ..Live::default() };
        match members {
            Some(members) if members.len() > LIVE_MAX => live.count = members.len() as u64,
            members => {
                let lasts = |agent: &str| {
                    let (kind, channel) = (RecordKind::Lease, channel.clone());
                    let lease = Record { kind, channel, id: agent.into() };
                    let ends = records.deadlines.get(&(Deadline::Lose, lease));
                    ends.is_some_and(|at| *at > now)
                };
                let members = members.into_iter().flat_map(|members| members.keys());
                live.agents = members.filter(|agent| lasts(agent)).cloned().collect();
                live.count = live.agents.len() as u64;
            }
        }
        live
    }

    pub(crate) fn commit(
        &self,
        record: &Record,
        expected: Option<&str>,
        change: &Change,
    ) -> Committed {
        let mut state = self.state();
        let now = state.now_us();
        let found = state.records.state(record, now);
        if found.map(String::as_str) != expected {
            if found == change.state.as_ref() {
                return Committed::Done;
            }
            return Committed::Conflict(Snapshot { now_ms: now / 1_000, state: found.cloned() });
        }
        if let Some(holder) = &change.holder
            && state.records.is_fenced(&record.channel, holder.producer())
        {
            return Committed::Fenced;
        }
        let is_met = match &change.condition {
            Condition::Always => true,
            Condition::Due(deadline) => state.records.is_due(*deadline, record, now),
            Condition::InTime(deadline) => !state.records.is_due(*deadline, record, now),
            Condition::Absent(other) => state.records.state(other, now).is_none(),
            Condition::Room(index, most) => {
                let members = state.records.indexes.get(&(record.channel.clone(), index.clone()));
                members.is_none_or(|members| {
                    (members.len() as u64) < *most || members.contains_key(&record.id)
                })
            }
            Condition::Part(index, Part { owner, member, of_owner, of_all }) => {
                let members = state.records.indexes.get(&(record.channel.clone(), index.clone()));
                members.is_none_or(|members| {
                    let is_owned = |member: &str| {
                        member.strip_prefix(&**owner).is_some_and(|rest| rest.starts_with(' '))
                    };
                    let has_room = (members.len() as u64) < *of_all
                        && (members.keys().filter(|member| is_owned(member)).count() as u64)
                            < *of_owner;
                    has_room || members.contains_key(member)
                })
            }
        };
        let has_room = |effect: &Effect| match effect {
            Effect::Wait(waits) => {
                let limits = WaitingLimits::of(&record.channel);
                let list = state.records.waiting.get(&record.channel);
                list.is_none_or(|list| list.has_room(waits, &limits))
            }
            _ => true,
        };
        if !is_met || !change.effects.iter().all(has_room) {
            return Committed::Unmet;
        }
        let until = change.lifetime.map(|lifetime| now + micros(lifetime));
        match &change.state {
            Some(new) => state.records.states.insert(record.clone(), (new.clone(), until)),
            None => state.records.states.remove(record),
        };
        for effect in &change.effects {
            state.apply(record, effect, now);
        }
        Committed::Done
    }

    pub(crate) fn notify(&self, address: &str, text: &str) -> bool {
        self.state().notify(address, text)
    }

    pub(crate) fn list(&self, channel: &Channel, index: &Index) -> Members {
        self.state().records.index(channel, index)
    }

    pub(crate) fn due(&self, most: usize) -> Vec<(Deadline, Record)> {
        let mut state = self.state();
        let now = state.now_us();
        let due = state.records.deadlines.iter().filter(|(_, at)| **at <= now);
        due.map(|(due, _)| due.clone()).take(most).collect()
    }

    pub(crate) fn forget_deadline(&self, record: &Record, deadline: Deadline) {
        let mut state = self.state();
        let now = state.now_us();
        if state.records.is_due(deadline, record, now) {
            state.records.deadlines.remove(&(deadline, record.clone()));
        }
    }

    pub(crate) fn renew(&self, leases: &[(Record, Box<str>)], lasts: Duration) -> Vec<usize> {
        let mut state = self.state();
        let ends = state.now_us() + micros(lasts);
        let records = &mut state.records;
        let renewed = leases.iter().enumerate().filter_map(|(place, (lease, value))| {
            let agents = records.indexes.get(&(lease.channel.clone(), Index::Agents));
            let is_theirs = agents.is_some_and(|agents| agents.get(&lease.id) == Some(value));
            match records.deadlines.get_mut(&(Deadline::Lose, lease.clone())) {
                Some(at) if is_theirs => {
                    *at = ends;
                    None
                }
                _ => Some(place),
            }
        });
        renewed.collect()
    }

    pub(crate) fn leased(&self, after: Option<&str>, limit: usize) -> Vec<Box<str>> {
        let state = self.state();
        let leases = state.records.deadlines.keys().filter(|(deadline, record)| {
            *deadline == Deadline::Lose && record.channel.kind() == protocol::Kind::Agent
        });
        let place = |id: &str| (protocol::partition(&format!("agent:{id}")), Box::<str>::from(id));
        let after = after.map(place);
        let mut ids: Vec<_> = leases.map(|(_, record)| place(&record.id)).collect();
        ids.sort_unstable();
        let ids = ids.into_iter().filter(|id| after.as_ref().is_none_or(|after| id > after));
        ids.take(limit).map(|(_, id)| id).collect()
    }

    pub(crate) fn states(&self, records: &[Record]) -> Vec<Option<String>> {
        let mut state = self.state();
        let now = state.now_us();
        records.iter().map(|record| state.records.state(record, now).cloned()).collect()
    }

    pub(crate) fn some_of(&self, channel: &Channel, index: &Index, most: usize) -> Sample {
        let state = self.state();
        let members = state.records.indexes.get(&(channel.clone(), index.clone()));
        let total = members.map_or(0, |members| members.len() as u64);
        let members = members.into_iter().flat_map(|members| members.keys()).take(most);
        Sample { members: members.cloned().collect(), total }
    }

    pub(crate) fn samples(&self, indexes: &[(Channel, Index)]) -> Vec<Sample> {
        let state = self.state();
        let sample = |index: &(Channel, Index)| {
            let members = state.records.indexes.get(index);
            let shown = members.into_iter().flat_map(|members| members.keys()).take(SHOWN_MAX);
            let total = members.map_or(0, |members| members.len() as u64);
            Sample { members: shown.cloned().collect(), total }
        };
        indexes.iter().map(sample).collect()
    }

    pub(crate) fn place_approval(&self, request_id: &str, channel: &Channel, lifetime: Duration) {
        let mut state = self.state();
        let now = state.now_us();
        let until = now + micros(lifetime);
        let places = state.records.places.entry(request_id.into()).or_default();
        places.retain(|(_, until)| *until > now);
        let has_room = places.len() < APPROVAL_PLACES_MAX;
        match places.iter_mut().find(|(place, _)| place == channel) {
            Some((_, known)) => *known = until.max(*known),
            None if has_room => places.push((channel.clone(), until)),
            None => {}
        }
    }

    pub(crate) fn approval_places(&self, request_id: &str) -> Vec<Channel> {
        let mut state = self.state();
        let now = state.now_us();
        let places = state.records.places.get(request_id).into_iter().flatten();
        places.filter(|(_, until)| *until > now).map(|(place, _)| place.clone()).collect()
    }

    /// The newest event of the channel, and the questions that wait, by their ids.
    pub(crate) fn approvals(&self, channel: &Channel) -> (Option<Offset>, u64, Members) {
        let mut state = self.state();
        let now_ms = state.now_us() / 1_000;
        let head = state.journals.get(&Name::events(channel.clone())).map(StoredStream::head);
        (head, now_ms, state.records.index(channel, &Index::Approvals))
    }
}

impl MemoryState {
    /// Whether anybody listens there.
    fn notify(&self, address: &str, text: &str) -> bool {
        let follower = address.parse().ok().and_then(|id: u64| self.followers.get(&id));
        follower.is_some_and(|end| {
            end.queue.notified(text);
            true
        })
    }

    fn apply(&mut self, record: &Record, effect: &Effect, now: u64) {
        let channel = &record.channel;
        let mut append = |name: Name, entry: &crate::NewEntry| {
            self.expire(&name, now);
            self.append_one(&name, entry.clone(), now);
            self.trim(&name, now);
        };
        match effect {
            Effect::Event(entry) => append(Name::events(channel.clone()), entry),
            Effect::Command(entry) => append(Name::commands(channel.clone()), entry),
            Effect::Wait(waits) => {
                let name = Name::commands(channel.clone());
                append(name.clone(), &waits.entry);
                let newest = self.journals.get(&name).and_then(|stored| stored.entries.back());
                if let Some(entry) = newest.cloned() {
                    let list = self.records.waiting.entry(channel.clone()).or_default();
                    list.add(&record.id, waits, entry);
                }
            }
            Effect::WaitNoMore => {
                if let Some(list) = self.records.waiting.get_mut(channel) {
                    list.remove(&record.id);
                }
            }
            Effect::Put(index, id, value) => {
                let key = (channel.clone(), index.clone());
                self.records.indexes.entry(key).or_default().insert(id.clone(), value.clone());
            }
            Effect::Remove(index, id) => {
                if let Some(members) =
                    self.records.indexes.get_mut(&(channel.clone(), index.clone()))
                {
                    members.remove(id);
                }
            }
            Effect::Clear(index) => {
                self.records.indexes.remove(&(channel.clone(), index.clone()));
            }
            Effect::Write(record, state, lifetime) => {
                let until = Some(now + micros(*lifetime));
                self.records.states.insert(record.clone(), (state.clone(), until));
            }
            Effect::DueOf(deadline, record, after) => {
                self.records.deadlines.insert((*deadline, record.clone()), now + micros(*after));
            }
            Effect::Due(deadline, None) => {
                self.records.deadlines.remove(&(*deadline, record.clone()));
            }
            Effect::Due(deadline, Some(after)) => {
                self.records.deadlines.insert((*deadline, record.clone()), now + micros(*after));
            }
            Effect::Fence(holder) => {
                self.records.fences.insert((channel.clone(), holder.producer()));
            }
            Effect::Notify(address, text) => {
                self.notify(address, text);
            }
        }
    }
}
