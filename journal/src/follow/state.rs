//! The position of a follower on one journal. Pure, so that every interleaving can be tested.
//!
//! Invariant: what is handed out continues `position` without a gap, or follows a page read that said `reset`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use protocol::frame::Since;
use protocol::{Entry, Offset};
use tokio::time::Instant;

use crate::Page;

/// How many live entries are held while a read is under way; beyond, another read gets them.
const HELD_ENTRIES: usize = 1024;
/// The same in bytes.
const HELD_BYTES: usize = 1024 * 1024;
/// A journal that falls silent has its head compared once after this long: a lost last entry is found.
const SILENCE: Duration = Duration::from_secs(2);
/// And then at this pace.
const AUDIT: Duration = Duration::from_secs(30);
/// A read that failed is tried again after this long.
const RETRY: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FollowPhase {
    /// The link has not confirmed.
    Waiting,
    /// The head or a page is being read.
    Asking,
    /// What comes in is handed out.
    Live,
}

/// Tells the answer to a follow state's last question from those to earlier ones, which are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// What the owner of a follow state must do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Wait,
    Emit(Vec<Arc<Entry>>),
    /// Hand these out, then read a page from [`FollowState::position`].
    EmitAndRead(Vec<Arc<Entry>>),
}

#[derive(Debug)]
pub(super) struct FollowState {
    ticket: Ticket,
    phase: FollowPhase,
    /// What was handed out last. `None` until the first head is known.
    position: Option<Since>,
    announced: bool,
    held: VecDeque<Arc<Entry>>,
    held_bytes: usize,
    /// Something that was to be held was dropped: read once more.
    overflowed: bool,
    failed: bool,
    due: Instant,
}

impl FollowState {
    pub(super) fn new(since: Option<Since>, now: Instant) -> Self {
        Self {
            ticket: Ticket(0),
            phase: FollowPhase::Waiting,
            position: since,
            announced: false,
            held: VecDeque::new(),
            held_bytes: 0,
            overflowed: false,
            failed: false,
            due: now + AUDIT,
        }
    }

    /// The link follows the journal from now on. True where its head must be asked for.
    pub(super) fn confirmed(&mut self) -> bool {
        if self.phase == FollowPhase::Asking {
            // What is being read may have been read before this confirmation.
            self.overflowed = true;
            return false;
        }
        self.ask();
        true
    }

    /// From where a page is to be read.
    pub(super) fn position(&self) -> Since {
        self.position.unwrap_or(Since::Start)
    }

    /// The ticket of the question that is open now.
    pub(super) fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// Begins a question; answers to earlier ones are ignored.
    fn ask(&mut self) {
        self.failed = false;
        self.ticket.0 += 1;
        self.phase = FollowPhase::Asking;
    }

    /// The link broke.
    pub(super) fn detach(&mut self) {
        self.ticket.0 += 1;
        self.phase = FollowPhase::Waiting;
        self.failed = false;
        self.drop_held();
        self.overflowed = false;
    }

    /// Whether the first head is to be announced; from then on there is a position.
    pub(super) fn announce(&mut self, head: Option<Offset>) -> bool {
        if self.announced {
            return false;
        }
        self.announced = true;
        self.position.get_or_insert(head.map_or(Since::Start, Since::Offset));
        true
    }

    /// The head was asked for and is `head`.
    pub(super) fn compare(&mut self, head: Option<Offset>, now: Instant) -> Next {
        let stands = match (self.position(), head) {
            // An expired journal is not a loss yet: if it is written again, its epoch shows it.
            (_, None) => true,
            (Since::Start, Some(_)) => false,
            (Since::Offset(position), Some(head)) => {
                (position.epoch, position.n) == (head.epoch, head.n)
                    && (position.check == 0 || position.check == head.check)
            }
        };
        match (stands, self.phase) {
            (true, FollowPhase::Live) => {
                self.due = now + AUDIT;
                Next::Wait
            }
            (true, _) => self.drain(now),
            (false, _) => self.read(),
        }
    }

    /// A page was read from [`position`](Self::position): what to hand out, and what then.
    pub(super) fn continue_with(&mut self, page: Page, now: Instant) -> (Vec<Arc<Entry>>, Next) {
        if let Some(end) = page.end() {
            self.position = Some(Since::Offset(end));
        }
        let next = if page.has_more() { self.read() } else { self.drain(now) };
        (page.entries, next)
    }

    /// What came before `head` is known: goes on after it.
    pub(super) fn continue_at(&mut self, head: Option<Offset>, now: Instant) -> Next {
        self.position = Some(head.map_or(Since::Start, Since::Offset));
        self.drain(now)
    }

    /// Live entries came in; none where they could not be read off the link.
    pub(super) fn take(&mut self, entries: Vec<Arc<Entry>>, now: Instant) -> Next {
        if entries.is_empty() {
            return if self.missed() { self.read() } else { Next::Wait };
        }
        if self.phase != FollowPhase::Live {
            for entry in entries {
                self.hold(entry);
            }
            return Next::Wait;
        }
        self.due = now + SILENCE;
        let mut fresh = Vec::with_capacity(entries.len());
        let mut entries = entries.into_iter();
        while let Some(entry) = entries.next() {
            match self.place(&entry.offset) {
                RelativePlace::Next => {
                    self.position = Some(Since::Offset(entry.offset));
                    fresh.push(entry);
                }
                RelativePlace::Current => {}
                RelativePlace::Past | RelativePlace::Elsewhere => {
                    // Seen before, jumped over, rolled back or begun anew: only Redis can tell.
                    self.hold(entry);
                    entries.for_each(|rest| self.hold(rest));
                    self.ask();
                    return Next::EmitAndRead(fresh);
                }
            }
        }
        if fresh.is_empty() { Next::Wait } else { Next::Emit(fresh) }
    }

    /// The link had to drop entries. True where a read must be started for it.
    pub(super) fn missed(&mut self) -> bool {
        if self.phase == FollowPhase::Live {
            self.ask();
            return true;
        }
        self.overflowed = true;
        false
    }

    pub(super) fn read_failed(&mut self, now: Instant) {
        match self.phase {
            FollowPhase::Asking => (self.failed, self.due) = (true, now + RETRY),
            FollowPhase::Live | FollowPhase::Waiting => self.due = now + SILENCE,
        }
    }

    /// When its head is to be asked for; `None` while that waits for something else.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.phase == FollowPhase::Live || self.failed).then_some(self.due)
    }

    /// Whether to ask for its head: the last read failed, or it is time to compare.
    pub(super) fn must_ask(&mut self, now: Instant) -> bool {
        let must = self.due().is_some_and(|due| due <= now);
        if must {
            // Not again before the answer can be there.
            (self.failed, self.due) = (false, now + AUDIT);
        }
        must
    }

    /// Hands out what was held while reading.
    fn drain(&mut self, now: Instant) -> Next {
        if std::mem::take(&mut self.overflowed) {
            self.drop_held();
            return self.read();
        }
        let mut fresh = Vec::new();
        while let Some(entry) = self.held.pop_front() {
            match self.place(&entry.offset) {
                RelativePlace::Next => {
                    self.position = Some(Since::Offset(entry.offset));
                    fresh.push(entry);
                }
                RelativePlace::Current | RelativePlace::Past => {}
                RelativePlace::Elsewhere => {
                    self.drop_held();
                    self.ask();
                    return Next::EmitAndRead(fresh);
                }
            }
        }
        self.drop_held();
        self.phase = FollowPhase::Live;
        self.due = now + if fresh.is_empty() { AUDIT } else { SILENCE };
        if fresh.is_empty() { Next::Wait } else { Next::Emit(fresh) }
    }

    fn read(&mut self) -> Next {
        self.ask();
        Next::EmitAndRead(Vec::new())
    }

    fn hold(&mut self, entry: Arc<Entry>) {
        self.held_bytes += entry.bytes();
        if self.held.len() >= HELD_ENTRIES || self.held_bytes > HELD_BYTES {
            self.drop_held();
            self.overflowed = true;
        } else if !self.overflowed {
            self.held.push_back(entry);
        }
    }

    fn drop_held(&mut self) {
        self.held = VecDeque::new();
        self.held_bytes = 0;
    }

    fn place(&self, offset: &Offset) -> RelativePlace {
        match self.position() {
            Since::Start if offset.n == 1 => RelativePlace::Next,
            Since::Start => RelativePlace::Elsewhere,
            Since::Offset(position) if position.is_followed_by(offset) => RelativePlace::Next,
            Since::Offset(position) if position == *offset => RelativePlace::Current,
            Since::Offset(position) if position.epoch == offset.epoch && offset.n < position.n => {
                RelativePlace::Past
            }
            // "Seen nothing up to n" and the entry n itself.
            Since::Offset(position)
                if position.check == 0
                    && (position.epoch, position.n) == (offset.epoch, offset.n) =>
            {
                RelativePlace::Past
            }
            Since::Offset(_) => RelativePlace::Elsewhere,
        }
    }
}

/// Where an entry stands, seen from the position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RelativePlace {
    /// It is the next one.
    Next,
    /// It is the position's own entry.
    Current,
    /// Its n was handed out; whether it is the same entry only Redis can tell.
    Past,
    /// A jump, another epoch, or another entry under the position's n.
    Elsewhere,
}
