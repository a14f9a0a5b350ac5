//! What waits on a channel in memory: entries by when they came, and how many of each sender.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use protocol::{Channel, Entry};

use super::{Memory, StoredStream};
use crate::state::{WaitingLimits, Waits};
use crate::{Name, Waiting, WaitingClass};

/// What waits on one channel.
#[derive(Debug, Default)]
pub(super) struct WaitingList {
    /// By their time, which ascends.
    entries: BTreeMap<u64, Arc<Entry>>,
    places: HashMap<Box<str>, WaitingPlace>,
    counts: HashMap<(WaitingClass, Box<str>), usize>,
    /// Of each sender, of what is not a Cancel.
    sender_bytes: HashMap<Box<str>, usize>,
    /// Of all that are not Cancels.
    all: usize,
    bytes: usize,
}

#[derive(Debug)]
struct WaitingPlace {
    time_us: u64,
    class: WaitingClass,
    sender: Box<str>,
}

impl WaitingList {
    pub(super) fn has_room(&self, waits: &Waits, limits: &WaitingLimits) -> bool {
        let of = (waits.class, waits.sender.clone());
        let mine = self.counts.get(&of).copied().unwrap_or_default();
        match waits.class {
            _ if !waits.is_limited => true,
            WaitingClass::Ordinary => {
                let bytes = waits.entry.data.len();
                let my_bytes = self.sender_bytes.get(&waits.sender).copied().unwrap_or_default();
                let has_places = mine < limits.per_sender && self.all < limits.all;
                let has_bytes = self.bytes + bytes <= limits.bytes;
                has_places && has_bytes && my_bytes + bytes <= limits.bytes_per_sender
            }
            WaitingClass::Cancel | WaitingClass::CancelRun => mine < limits.cancels,
        }
    }

    pub(super) fn add(&mut self, id: &str, waits: &Waits, entry: Arc<Entry>) {
        self.remove(id);
        let (class, sender) = (waits.class, waits.sender.clone());
        *self.counts.entry((class, sender.clone())).or_default() += 1;
        if class == WaitingClass::Ordinary {
            (self.all, self.bytes) = (self.all + 1, self.bytes + entry.data.len());
            *self.sender_bytes.entry(sender.clone()).or_default() += entry.data.len();
        }
        self.places.insert(id.into(), WaitingPlace { time_us: entry.time_us, class, sender });
        self.entries.insert(entry.time_us, entry);
    }

    pub(super) fn remove(&mut self, id: &str) {
        let Some(WaitingPlace { time_us, class, sender }) = self.places.remove(id) else { return };
        let Some(entry) = self.entries.remove(&time_us) else { return };
        if class == WaitingClass::Ordinary {
            (self.all, self.bytes) = (self.all - 1, self.bytes - entry.data.len());
            match self.sender_bytes.get_mut(&sender) {
                Some(bytes) if *bytes > entry.data.len() => *bytes -= entry.data.len(),
                _ => drop(self.sender_bytes.remove(&sender)),
            }
        }
        let of = (class, sender);
        match self.counts.get_mut(&of) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.counts.remove(&of)),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

impl Memory {
    pub(crate) fn waiting(&self, channel: &Channel) -> Waiting {
        let state = self.state();
        let head = state.journals.get(&Name::commands(channel.clone())).map(StoredStream::head);
        let list = state.records.waiting.get(channel).into_iter();
        Waiting::up_to(head, list.flat_map(|list| list.entries.values()).cloned().collect())
    }
}
