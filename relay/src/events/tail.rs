//! The newest entries of one channel, each encoded at most once per format and shared by all.
//!
//! Invariants: the entries are consecutive; `base` is the position before the first of them; pure.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use protocol::{Channel, Entry, Format, Offset, encode};

use crate::memory::Memory;
use crate::websocket::TextFrame;

/// Entries in one tail: half a second at 2,000 a second, more than a browser that keeps up ever needs.
const ENTRIES_MAX: usize = 1024;
/// Bytes in one tail. Beyond, a browser is served from the journal.
const BYTES_MAX: usize = 256 * 1024;
/// What an entry takes besides its texts: its frames hold them once more.
const ENTRY_OVERHEAD: usize = 200;

/// An entry together with its frames.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) entry: Arc<Entry>,
    envelope: OnceLock<TextFrame>,
    flat: OnceLock<TextFrame>,
}

impl Encoded {
    fn new(entry: Arc<Entry>) -> Self {
        Self { entry, envelope: OnceLock::new(), flat: OnceLock::new() }
    }

    /// The frame's text. The first to ask encodes it, for all.
    pub(crate) fn frame(
        &self,
        channel: &Channel,
        format: Format,
        memory: &Arc<Memory>,
    ) -> TextFrame {
        let frame = match format {
            Format::Envelope => &self.envelope,
            Format::Flat => &self.flat,
        };
        frame
            .get_or_init(|| TextFrame::new(encode(format, channel, &self.entry, 1), memory))
            .clone()
    }

    fn bytes(&self) -> usize {
        2 * self.entry.bytes() + ENTRY_OVERHEAD
    }
}

#[derive(Debug, Default)]
pub(crate) struct Tail {
    /// The position before the first entry; `None` where nothing was ever written.
    base: Option<Offset>,
    entries: VecDeque<Arc<Encoded>>,
    bytes: usize,
}

impl Tail {
    /// An empty tail at `head`.
    pub(crate) fn at(head: Option<Offset>) -> Self {
        Self { base: head, ..Self::default() }
    }

    pub(crate) fn head(&self) -> Option<Offset> {
        self.entries.back().map(|encoded| encoded.entry.offset).or(self.base)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes the entries that follow.
    pub(crate) fn extend(&mut self, entries: Vec<Arc<Entry>>) {
        for entry in entries {
            if !self.head().is_some_and(|head| head.is_followed_by(&entry.offset)) {
                // The first entry ever, or the first after a reset.
                *self = Self::at(Some(Offset::before(entry.offset.epoch, entry.offset.n)));
            }
            let encoded = Arc::new(Encoded::new(entry));
            self.bytes += encoded.bytes();
            self.entries.push_back(encoded);
        }
        self.shrink(ENTRIES_MAX, BYTES_MAX);
    }

    /// Drops the oldest entries down to these bounds.
    pub(crate) fn shrink(&mut self, entries_max: usize, bytes_max: usize) {
        while (self.entries.len() > entries_max || self.bytes > bytes_max)
            && let Some(oldest) = self.entries.pop_front()
        {
            self.bytes -= oldest.bytes();
            self.base = Some(oldest.entry.offset);
        }
    }

    /// At most `count` entries after `cursor`; `None` where the tail does not reach, or cannot tell
    /// whether the position is one of this journal's: then only the journal itself can.
    pub(crate) fn after(&self, cursor: Option<Offset>, count: usize) -> Option<Vec<Arc<Encoded>>> {
        Some(self.all_after(cursor)?.take(count).cloned().collect())
    }

    /// All entries after `cursor`; `None` as for [`after`](Self::after).
    pub(crate) fn all_after(
        &self,
        cursor: Option<Offset>,
    ) -> Option<impl Iterator<Item = &Arc<Encoded>>> {
        let skip = match (cursor, self.base) {
            // Nothing was ever written here, or it expired and nothing was written since: nothing is new.
            (_, None) => self.entries.len(),
            (None, Some(base)) => (base.n == 0).then_some(0)?,
            (Some(cursor), Some(base)) => self.index_after(&cursor, &base)?,
        };
        Some(self.entries.range(skip..))
    }

    fn index_after(&self, cursor: &Offset, base: &Offset) -> Option<usize> {
        if cursor.epoch != base.epoch {
            return None;
        }
        let index = usize::try_from(cursor.n.checked_sub(base.n)?).ok()?;
        let own = match index {
            0 => *base,
            _ => self.entries.get(index - 1)?.entry.offset,
        };
        // Check 0 is "seen nothing up to n": it needs only what comes next.
        (cursor.check == 0 || *cursor == own).then_some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u64) -> Arc<Entry> {
        let (name, data) = ("e".into(), n.to_string().into());
        Arc::new(Entry { offset: Offset::of_entry(7, n, n * 10), time_us: n * 10, name, data })
    }

    fn tail(ns: std::ops::RangeInclusive<u64>) -> Tail {
        let mut tail = Tail::at(Some(Offset::of_entry(7, ns.start() - 1, (ns.start() - 1) * 10)));
        tail.extend(ns.map(entry).collect());
        tail
    }

    fn ns(found: Option<Vec<Arc<Encoded>>>) -> Option<Vec<u64>> {
        found.map(|entries| entries.iter().map(|encoded| encoded.entry.offset.n).collect())
    }

    #[test]
    fn every_cursor_within_reach_gets_exactly_what_follows_it() {
        let tail = tail(5..=8);
        for n in 4..=8 {
            let cursor = Offset::of_entry(7, n, n * 10);
            assert_eq!(ns(tail.after(Some(cursor), 99)), Some((n + 1..=8).collect()));
        }
    }

    #[test]
    fn a_cursor_out_of_reach_or_of_another_history_is_left_to_the_journal() {
        let tail = tail(5..=8);
        for cursor in [
            Offset::of_entry(7, 3, 30),
            Offset::of_entry(7, 9, 90),
            Offset::of_entry(7, 6, 61),
            Offset::of_entry(7, 4, 41),
            Offset::of_entry(8, 6, 60),
        ] {
            assert_eq!(ns(tail.after(Some(cursor), 99)), None, "{cursor}");
        }
        assert_eq!(ns(tail.after(None, 99)), None, "what came before 5 was missed");
    }

    #[test]
    fn nothing_seen_up_to_n_is_within_reach_where_the_next_is() {
        assert_eq!(ns(tail(5..=8).after(Some(Offset::before(7, 7)), 99)), Some(vec![7, 8]));
    }

    #[test]
    fn who_waited_for_the_first_entry_gets_it() {
        let mut tail = Tail::at(None);
        assert_eq!(ns(tail.after(None, 99)), Some(vec![]));
        tail.extend(vec![entry(1), entry(2)]);
        assert_eq!(ns(tail.after(None, 99)), Some(vec![1, 2]));
    }

    #[test]
    fn a_tail_is_bounded_and_what_it_dropped_is_out_of_reach() {
        let mut tail = tail(1..=3_000);
        assert!(tail.bytes() <= BYTES_MAX && tail.entries.len() <= ENTRIES_MAX);
        assert_eq!(ns(tail.after(Some(Offset::of_entry(7, 1, 10)), 99)), None);
        tail.shrink(0, 0);
        assert_eq!(tail.head(), Some(Offset::of_entry(7, 3_000, 30_000)));
        assert_eq!(tail.bytes(), 0);
    }
}
