//! Read since: what follows a position, or why it cannot be continued.
//!
//! One pure function, [`judge`], decides it for both backends of a journal.

use std::sync::Arc;

use protocol::frame::Since;
use protocol::{Entry, Offset};
use thiserror::Error;

/// About how many bytes one page holds.
pub(crate) const PAGE_BYTES: usize = 1024 * 1024;

/// A piece of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Why the position asked for is not continued by `entries`, which begin at the oldest retained
    /// instead.
    pub reset: Option<Reason>,
    /// `entries` begin with the oldest retained, and there were older ones.
    pub truncated: bool,
    /// Where `entries` begin, exclusive; `None` where nothing was ever written.
    pub start: Option<Offset>,
    /// In order, without a gap.
    pub entries: Vec<Arc<Entry>>,
    /// The newest position; `None` if the journal does not exist (never written, or expired).
    pub head: Option<Offset>,
}

impl Page {
    /// The position after this page.
    pub fn end(&self) -> Option<Offset> {
        self.entries.last().map(|entry| entry.offset).or(self.start)
    }

    /// Whether the journal goes on after this page.
    pub fn has_more(&self) -> bool {
        match (self.end(), self.head) {
            (Some(end), Some(head)) => end.epoch == head.epoch && end.n < head.n,
            _ => false,
        }
    }
}

/// Where a channel's commands stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// The newest; `None` if the journal is empty.
    pub head: Option<Offset>,
    /// What waits to be taken up to there, oldest first.
    pub entries: Vec<Arc<Entry>>,
}

impl Waiting {
    /// Without what stands after the head: a follower that goes on from there gets it.
    pub(crate) fn up_to(head: Option<Offset>, mut entries: Vec<Arc<Entry>>) -> Self {
        let is_after =
            |at: &Offset| head.is_some_and(|head| head.epoch == at.epoch && at.n > head.n);
        entries.retain(|entry| !is_after(&entry.offset));
        Self { head, entries }
    }
}

/// Why a position cannot be continued: something that was or could have been seen is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The journal was lost and began anew.
    Epoch,
    /// What follows the position is no longer kept.
    Retention,
    /// The journal was rolled back, and perhaps grew again over what was seen.
    HistoryChanged,
}

impl Reason {
    /// The reason as it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Epoch => "epoch",
            Self::Retention => "retention",
            Self::HistoryChanged => "history_changed",
        }
    }
}

/// The journal is not available now: Redis cannot be reached, or refuses.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the journal is not available: {0}")]
pub struct Unavailable(pub String);

/// What is retained of a journal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) epoch: u64,
    /// n of the oldest entry.
    pub(crate) first: u64,
    /// n of the newest entry.
    pub(crate) head: u64,
}

/// Whether `position` is continued by a journal that retains `extent`. `check` is that of the entry
/// `position.n`, where it is retained.
pub(crate) fn judge(position: &Offset, extent: &Extent, check: Option<u32>) -> Result<(), Reason> {
    if position.epoch != extent.epoch {
        return Err(Reason::Epoch);
    }
    if position.n > extent.head {
        return Err(Reason::HistoryChanged);
    }
    if position.n < extent.first.saturating_sub(1) {
        return Err(Reason::Retention);
    }
    match check {
        Some(check) if position.check != 0 && position.check != check => {
            Err(Reason::HistoryChanged)
        }
        // Not retained and n + 1 is the oldest that is: nothing between the two is lost.
        _ => Ok(()),
    }
}

/// What was read of a journal: how far it reaches, and rows from somewhere on.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) extent: Extent,
    pub(crate) head: Offset,
    pub(crate) entries: Vec<Arc<Entry>>,
}

impl Rows {
    /// The page that answers `since`, if the rows begin at that position, its own entry included, where
    /// it is retained, and at the oldest entry otherwise.
    ///
    /// # Errors
    /// Why the position is not continued: then rows from the oldest make the page
    /// ([`begin_anew`](Self::begin_anew)).
    pub(crate) fn continue_since(self, since: Since) -> Result<Page, Reason> {
        let Since::Offset(position) = since else { return Ok(self.page(None)) };
        let own = self.entries.first().filter(|entry| entry.offset.n == position.n);
        let check = own.map(|entry| entry.offset.check);
        judge(&position, &self.extent, check)?;
        let entries = self.entries.into_iter().skip(usize::from(check.is_some())).collect();
        Ok(Page {
            reset: None,
            truncated: false,
            start: Some(position),
            entries,
            head: Some(self.head),
        })
    }

    /// The page that begins at the oldest entry because of `reason`.
    pub(crate) fn begin_anew(self, reason: Reason) -> Page {
        self.page(Some(reason))
    }

    fn page(self, reset: Option<Reason>) -> Page {
        let start = Some(Offset::before(self.extent.epoch, self.extent.first));
        let truncated = self.extent.first > 1;
        Page { reset, truncated, start, entries: self.entries, head: Some(self.head) }
    }
}

/// The page of a journal that does not exist. No reset: if it is written again, its epoch shows it.
pub(crate) fn absent(since: Since) -> Page {
    let start = match since {
        Since::Start => None,
        Since::Offset(position) => Some(position),
    };
    Page { reset: None, truncated: false, start, entries: Vec::new(), head: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENT: Extent = Extent { epoch: 7, first: 10, head: 20 };

    fn at(n: u64, check: u32) -> Offset {
        Offset { epoch: 7, n, check }
    }

    #[test]
    fn a_retained_entry_must_have_the_check() {
        assert_eq!(judge(&at(15, 5), &EXTENT, Some(5)), Ok(()));
        assert_eq!(judge(&at(15, 6), &EXTENT, Some(5)), Err(Reason::HistoryChanged));
    }

    #[test]
    fn the_entry_before_the_oldest_is_honoured_and_the_one_before_that_is_not() {
        assert_eq!(judge(&at(9, 123), &EXTENT, None), Ok(()));
        assert_eq!(judge(&at(8, 123), &EXTENT, None), Err(Reason::Retention));
        assert_eq!(judge(&at(8, 0), &EXTENT, None), Err(Reason::Retention));
    }

    #[test]
    fn nothing_seen_up_to_n_needs_only_the_next_entry() {
        assert_eq!(judge(&at(9, 0), &EXTENT, None), Ok(()));
        assert_eq!(judge(&at(15, 0), &EXTENT, Some(5)), Ok(()));
        assert_eq!(judge(&at(20, 0), &EXTENT, Some(5)), Ok(()));
        assert_eq!(judge(&at(21, 0), &EXTENT, None), Err(Reason::HistoryChanged));
    }

    #[test]
    fn another_epoch_is_never_adopted_in_silence() {
        let old = Offset { epoch: 6, ..at(15, 5) };
        let newer = Offset { epoch: 8, ..at(15, 5) };
        assert_eq!(judge(&old, &EXTENT, Some(5)), Err(Reason::Epoch));
        assert_eq!(judge(&newer, &EXTENT, Some(5)), Err(Reason::Epoch));
    }
}
