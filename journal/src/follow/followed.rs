//! All that is followed, by name and by id, and what is due when. Nothing is looked at that is not due.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use protocol::frame::Since;
use tokio::time::Instant;

use super::state::FollowState;
use crate::Name;
use crate::link::FollowId;

/// One followed journal.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) name: Name,
    pub(super) state: FollowState,
    life: u64,
    /// Where it stands in the queue of deadlines; it may stand there for earlier times, too.
    scheduled: Option<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<Option<Followed>>,
    free: Vec<u32>,
    by_name: HashMap<Name, u32>,
    lives: u64,
    /// A deadline that moves on keeps its place, and is put right when that is reached: so a busy journal costs nothing.
    deadlines: BinaryHeap<Reverse<(Instant, u32, u64)>>,
}

impl Table {
    /// Follows `name` anew.
    pub(super) fn insert(&mut self, name: &Name, since: Option<Since>, now: Instant) -> FollowId {
        self.remove(name);
        self.lives += 1;
        let life = self.lives;
        let state = FollowState::new(since, now);
        let followed = Followed { name: name.clone(), state, life, scheduled: None };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(followed);
                slot
            }
            None => {
                self.slots.push(Some(followed));
                self.slots.len() as u32 - 1
            }
        };
        self.by_name.insert(name.clone(), slot);
        FollowId { slot, life }
    }

    /// False where it was not followed.
    pub(super) fn remove(&mut self, name: &Name) -> bool {
        let Some(slot) = self.by_name.remove(name) else { return false };
        self.slots[slot as usize] = None;
        self.free.push(slot);
        true
    }

    pub(super) fn get(&mut self, id: FollowId) -> Option<&mut Followed> {
        let followed = self.slots.get_mut(id.slot as usize)?.as_mut();
        followed.filter(|followed| followed.life == id.life)
    }

    /// Everything.
    pub(super) fn names(&self) -> Vec<(FollowId, Name)> {
        let all = self.slots.iter().enumerate().filter_map(|(slot, followed)| {
            let Followed { name, life, .. } = followed.as_ref()?;
            Some((FollowId { slot: slot as u32, life: *life }, name.clone()))
        });
        all.collect()
    }

    pub(super) fn each(&mut self, change: impl FnMut(&mut Followed)) {
        self.slots.iter_mut().flatten().for_each(change);
    }

    /// Its deadline may have come nearer.
    pub(super) fn schedule(&mut self, id: FollowId) {
        let Some(followed) = self.get(id) else { return };
        let Some(due) = followed.state.due() else { return };
        if followed.scheduled.is_none_or(|at| due < at) {
            followed.scheduled = Some(due);
            self.deadlines.push(Reverse((due, id.slot, id.life)));
        }
    }

    /// When to [look](Self::take_due) again.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.deadlines.peek().map(|Reverse((at, ..))| *at)
    }

    /// The next journal whose deadline has passed. It is to be scheduled again.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<FollowId> {
        while let Some(Reverse((at, slot, life))) = self.deadlines.peek().copied()
            && at <= now
        {
            self.deadlines.pop();
            let id = FollowId { slot, life };
            if let Some(followed) = self.get(id)
                && followed.scheduled == Some(at)
            {
                followed.scheduled = None;
                if followed.state.due().is_some_and(|due| due <= now) {
                    return Some(id);
                }
                self.schedule(id);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use protocol::{Entry, Offset};

    use super::*;

    fn name(id: &str) -> Name {
        Name::events(format!("session:{id}").parse().unwrap())
    }

    /// Follows a journal that is empty, from `now` on.
    fn live(table: &mut Table, id: &str, now: Instant) -> FollowId {
        let id = table.insert(&name(id), None, now);
        let state = &mut table.get(id).unwrap().state;
        assert!(state.confirmed() && state.announce(None));
        state.compare(None, now);
        table.schedule(id);
        id
    }

    #[test]
    fn of_quiet_and_of_busy_journals_only_those_that_are_due_are_looked_at() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut table = Table::default();
        let ids: Vec<_> = (0..1_000).map(|n| live(&mut table, &n.to_string(), start)).collect();
        assert_eq!(table.take_due(at(29_999)), None);

        // One speaks every 100 ms for a minute, and stays in one place of the queue.
        let mut n = 0;
        for ms in (0..20_000).step_by(100) {
            n += 1;
            let offset = Offset::of_entry(1, n, n);
            let entry = Entry { offset, time_us: n, name: "e".into(), data: "1".into() };
            table.get(ids[7]).unwrap().state.take(vec![entry.into()], at(ms));
            table.schedule(ids[7]);
            assert_eq!(table.take_due(at(ms)), None, "{ms}");
            assert!(table.deadlines.len() <= 1_001);
        }
        // Two seconds after its last word it is compared, long before the others.
        assert_eq!(table.take_due(at(21_800)), None);
        assert_eq!(table.take_due(at(21_900)), Some(ids[7]));
        assert!(table.get(ids[7]).unwrap().state.must_ask(at(21_900)));
        table.schedule(ids[7]);
        let mut due: Vec<_> = std::iter::from_fn(|| table.take_due(at(30_000))).collect();
        due.sort_by_key(|id| id.slot);
        let others: Vec<_> = ids.iter().copied().filter(|id| *id != ids[7]).collect();
        assert_eq!(due, others);
    }

    #[test]
    fn what_is_not_followed_any_more_is_not_meant_by_its_id() {
        let start = Instant::now();
        let mut table = Table::default();
        let old = live(&mut table, "a", start);
        assert!(table.remove(&name("a")) && !table.remove(&name("a")));
        assert!(table.get(old).is_none());
        let new = live(&mut table, "b", start);
        assert_eq!((new.slot, table.names()), (old.slot, vec![(new, name("b"))]));
        assert!(table.get(old).is_none() && table.get(new).is_some());
        let again = live(&mut table, "b", start);
        assert!(table.get(new).is_none() && table.get(again).is_some());
        let due: Vec<_> =
            std::iter::from_fn(|| table.take_due(start + Duration::from_secs(31))).collect();
        assert_eq!(due, [again]);
    }
}
