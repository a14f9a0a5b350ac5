//! States in memory: the same steps as in Redis, under one lock.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use protocol::{Channel, Offset};

use super::{Memory, Shelf, State, micros};
use crate::Name;
use crate::state::{
    Change, Committed, Condition, Duty, Effect, Holder, Index, Look, Members, Sort, Thing,
};

/// Everything that has a state. Times are microseconds.
#[derive(Debug, Default)]
pub(super) struct Things {
    /// Each with the time until which it is kept.
    states: HashMap<Thing, (String, Option<u64>)>,
    indexes: HashMap<(Channel, Index), BTreeMap<Box<str>, Box<str>>>,
    deadlines: HashMap<(Duty, Thing), u64>,
    /// Producers that append to a channel no more.
    fences: HashSet<(Channel, String)>,
    places: HashMap<Box<str>, (Channel, u64)>,
}

impl Things {
    fn state(&self, thing: &Thing, now: u64) -> Option<&String> {
        let (state, until) = self.states.get(thing)?;
        until.is_none_or(|until| until > now).then_some(state)
    }

    pub(super) fn is_fenced(&self, channel: &Channel, producer: String) -> bool {
        !self.fences.is_empty() && self.fences.contains(&(channel.clone(), producer))
    }

    fn is_due(&self, duty: Duty, thing: &Thing, now: u64) -> bool {
        self.deadlines.get(&(duty, thing.clone())).is_some_and(|at| *at <= now)
    }

    fn index(&self, channel: &Channel, index: &Index) -> Members {
        let members = self.indexes.get(&(channel.clone(), index.clone()));
        members.into_iter().flatten().map(|(id, value)| (id.clone(), value.clone())).collect()
    }

    pub(super) fn sweep(&mut self, now: u64) {
        self.states.retain(|_, (_, until)| until.is_none_or(|until| until > now));
        self.places.retain(|_, (_, until)| *until > now);
        self.indexes.retain(|_, members| !members.is_empty());
    }
}

impl Memory {
    pub(crate) fn look(&self, thing: &Thing) -> Look {
        let mut state = self.state();
        let now = state.now_us();
        let things = &state.things;
        let agents = things.index(&thing.channel, &Index::Agents).into_iter();
        let lease = |agent: &str| Thing {
            sort: Sort::Lease,
            channel: thing.channel.clone(),
            id: agent.into(),
        };
        let lasts = |agent: &str| {
            things.deadlines.get(&(Duty::Lose, lease(agent))).is_some_and(|at| *at > now)
        };
        let live = agents.map(|(agent, _)| agent).filter(|agent| lasts(agent)).collect();
        Look { now_ms: now / 1_000, state: things.state(thing, now).cloned(), live }
    }

    pub(crate) fn commit(&self, change: &Change) -> Committed {
        let mut state = self.state();
        let now = state.now_us();
        let Change { thing, .. } = change;
        let found = state.things.state(thing, now);
        if found == Some(&change.state) && found != change.expected.as_ref() {
            return Committed::Done(Vec::new());
        }
        if found != change.expected.as_ref() {
            return Committed::Conflict(found.cloned());
        }
        if let Some(holder) = &change.holder
            && state.things.is_fenced(&thing.channel, holder.producer())
        {
            return Committed::Fenced;
        }
        let is_met = match &change.condition {
            Condition::Always => true,
            Condition::Due(duty) => state.things.is_due(*duty, thing, now),
            Condition::NotDue(duty) => !state.things.is_due(*duty, thing, now),
            Condition::Room(list, most) => {
                (state.things.index(&thing.channel, list).len() as u64) < *most
            }
        };
        if !is_met {
            return Committed::Unmet;
        }
        let until = change.lifetime.map(|lifetime| now + micros(lifetime));
        state.things.states.insert(thing.clone(), (change.state.clone(), until));
        let mut appended = Vec::new();
        for effect in &change.effects {
            state.apply(thing, effect, now, &mut appended);
        }
        Committed::Done(appended)
    }

    pub(crate) fn ring(&self, address: &str, text: &str) -> bool {
        self.state().ring(address, text)
    }

    pub(crate) fn list(&self, channel: &Channel, index: &Index) -> Members {
        self.state().things.index(channel, index)
    }

    pub(crate) fn due(&self) -> Vec<(Duty, Thing)> {
        let mut state = self.state();
        let now = state.now_us();
        let due = state.things.deadlines.iter().filter(|(_, at)| **at <= now);
        due.map(|(due, _)| due.clone()).collect()
    }

    pub(crate) fn forget_duty(&self, thing: &Thing, duty: Duty) {
        let mut state = self.state();
        let now = state.now_us();
        if state.things.is_due(duty, thing, now) {
            state.things.deadlines.remove(&(duty, thing.clone()));
        }
    }

    pub(crate) fn renew(&self, leases: &[(Thing, Holder)], lasts: Duration) -> Vec<usize> {
        let mut state = self.state();
        let ends = state.now_us() + micros(lasts);
        let renewed = leases.iter().enumerate().filter_map(|(place, (lease, holder))| {
            let is_fenced = state.things.is_fenced(&lease.channel, holder.producer());
            match state.things.deadlines.get_mut(&(Duty::Lose, lease.clone())) {
                Some(at) if !is_fenced => {
                    *at = ends;
                    None
                }
                _ => Some(place),
            }
        });
        renewed.collect()
    }

    pub(crate) fn leased(&self) -> Vec<(Thing, Option<String>)> {
        let mut state = self.state();
        let now = state.now_us();
        let leases = state.things.deadlines.keys().filter(|(duty, _)| *duty == Duty::Lose);
        leases.map(|(_, thing)| (thing.clone(), state.things.state(thing, now).cloned())).collect()
    }

    pub(crate) fn place_prompt(
        &self,
        request_id: &str,
        channel: &Channel,
        lifetime: Duration,
    ) -> Channel {
        let mut state = self.state();
        let now = state.now_us();
        let place = state
            .things
            .places
            .entry(request_id.into())
            .and_modify(|(place, until)| {
                if *until <= now {
                    place.clone_from(channel);
                    *until = now + micros(lifetime);
                }
            })
            .or_insert_with(|| (channel.clone(), now + micros(lifetime)));
        place.0.clone()
    }

    pub(crate) fn prompt_place(&self, request_id: &str) -> Option<Channel> {
        let mut state = self.state();
        let now = state.now_us();
        let (channel, until) = state.things.places.get(request_id)?;
        (*until > now).then(|| channel.clone())
    }

    /// The newest event of the channel, and the questions that wait, by their ids.
    pub(crate) fn prompts(&self, channel: &Channel) -> (Option<Offset>, Members) {
        let state = self.state();
        let head = state.journals.get(&Name::events(channel.clone())).map(Shelf::head);
        (head, state.things.index(channel, &Index::Prompts))
    }
}

impl State {
    /// Whether anybody listens there.
    fn ring(&self, address: &str, text: &str) -> bool {
        let follower = address.parse().ok().and_then(|id: u64| self.followers.get(&id));
        follower.is_some_and(|(deliver, _)| {
            deliver.rung(text);
            true
        })
    }

    fn apply(&mut self, thing: &Thing, effect: &Effect, now: u64, appended: &mut Vec<Offset>) {
        let channel = &thing.channel;
        let mut append = |name: Name, entry: &crate::NewEntry| {
            self.expire(&name, now);
            appended.push(self.append_one(&name, entry.clone(), now));
            self.trim(&name, now);
        };
        match effect {
            Effect::Event(entry) => append(Name::events(channel.clone()), entry),
            Effect::Command(entry) => append(Name::commands(channel.clone()), entry),
            Effect::Put(index, id, value) => {
                let key = (channel.clone(), index.clone());
                self.things.indexes.entry(key).or_default().insert(id.clone(), value.clone());
            }
            Effect::Remove(index, id) => {
                if let Some(members) =
                    self.things.indexes.get_mut(&(channel.clone(), index.clone()))
                {
                    members.remove(id);
                }
            }
            Effect::Due(duty, None) => {
                self.things.deadlines.remove(&(*duty, thing.clone()));
            }
            Effect::Due(duty, Some(after)) => {
                self.things.deadlines.insert((*duty, thing.clone()), now + micros(*after));
            }
            Effect::Fence(holder) => {
                self.things.fences.insert((channel.clone(), holder.producer()));
            }
            Effect::Ring(address, text) => {
                self.ring(address, text);
            }
        }
    }
}
