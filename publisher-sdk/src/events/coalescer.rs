//! What waits to be written on one channel, and when it must wait no longer.
//!
//! [`buffer`](super::buffer) ⊃ **coalescer**
//!
//! Deltas of one turn join while they wait, so a pause of Redis costs text, not entries. Turns
//! never mix, they stand in the order in which each was first buffered, and nothing joins across an
//! event. The first delta of a turn makes what waits due at once; the following wait for the tick.
//!
//! Pure: no clock (ticks are numbers), no I/O.

use std::collections::{HashMap, VecDeque};

use journal::NewEntry;
use protocol::limits::MERGED_BYTES_MAX;

use super::buffer::Answer;

/// A turn that has collected this much text does not wait for the tick.
const FLUSH_BYTES: usize = 4 * 1024;
/// One delta's data stays below this, as merged frames do; beyond, the turn goes on in another one.
const DELTA_BYTES_MAX: usize = MERGED_BYTES_MAX;
/// Text is cut into pieces of this size before it is escaped: six times as much still fits.
const PIECE_BYTES: usize = 8 * 1024;
/// A turn is warm for this many ticks after its last delta, a second at 50 ms. The next delta of a
/// turn that has gone cold, after a tool for example, does not wait either.
const WARM_TICKS: u64 = 20;
/// One append's worth: small enough to leave room for others in the journal's buffer.
const TAKE_ENTRIES: usize = 256;
const TAKE_BYTES: usize = 512 * 1024;
/// What an entry costs beyond its texts.
const OVERHEAD_BYTES: usize = 64;

const DELTA: &str = "text_delta";
const HEAD: &str = r#"{"delta":""#;

/// The entries of one channel that wait to be written.
#[derive(Debug, Default)]
pub(crate) struct Coalescer {
    waiting: VecDeque<Waiting>,
    /// How many entries have been taken out: the absolute place of the first that waits.
    taken: u64,
    /// How many of those that wait are not deltas.
    events: usize,
    is_due: bool,
    /// By the tail of their deltas ([`tail`]).
    turns: HashMap<Box<str>, Turn>,
}

#[derive(Debug)]
struct Turn {
    /// The absolute place of the entry that its next delta may join.
    open: Option<u64>,
    warm_until: u64,
}

#[derive(Debug)]
struct Waiting {
    content: Content,
    ticket: Ticket,
}

#[derive(Debug)]
enum Content {
    Event(NewEntry),
    /// The body of the JSON string, and what follows it.
    Delta {
        body: String,
        tail: Box<str>,
    },
}

/// What an entry leaves behind to be settled when it has been written.
#[derive(Debug)]
pub(crate) struct Ticket {
    /// What the entry takes in the buffer.
    pub(crate) cost: usize,
    /// Which flush waits for it.
    pub(crate) generation: u64,
    /// Who waits for its offset.
    pub(crate) answer: Option<Answer>,
}

/// The result of putting in a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Added {
    /// What it takes in the buffer.
    pub(crate) cost: usize,
    /// It joined none: another entry waits.
    pub(crate) is_new: bool,
}

impl Coalescer {
    /// An event that has taken `cost` of the room: everything before it goes out with it, and nothing joins
    /// across it.
    pub(crate) fn event(
        &mut self,
        cost: usize,
        entry: NewEntry,
        generation: u64,
        answer: Option<Answer>,
    ) {
        let ticket = Ticket { cost, generation, answer };
        self.waiting.push_back(Waiting { content: Content::Event(entry), ticket });
        self.events += 1;
        self.seal();
    }

    /// A piece of a turn's text: `body` as [`pieces`] gives it, `tail` as [`tail`] does.
    pub(crate) fn delta(&mut self, tick: u64, generation: u64, tail: &str, body: &str) -> Added {
        let next = self.taken + self.waiting.len() as u64;
        let turn = match self.turns.get_mut(tail) {
            Some(turn) => turn,
            None => self.turns.entry(tail.into()).or_insert(Turn { open: None, warm_until: 0 }),
        };
        self.is_due |= turn.warm_until <= tick;
        turn.warm_until = tick + WARM_TICKS;

        let open = turn
            .open
            .and_then(|place| self.waiting.get_mut((place.checked_sub(self.taken)?) as usize));
        if let Some(waiting) = open
            && let Content::Delta { body: joined, tail } = &mut waiting.content
            && HEAD.len() + joined.len() + body.len() + 1 + tail.len() <= DELTA_BYTES_MAX
        {
            joined.push_str(body);
            waiting.ticket.cost += body.len();
            self.is_due |= joined.len() >= FLUSH_BYTES;
            return Added { cost: body.len(), is_new: false };
        }
        turn.open = Some(next);
        self.is_due |= body.len() >= FLUSH_BYTES;
        let cost = delta_cost(tail, body);
        let content = Content::Delta { body: body.to_owned(), tail: tail.into() };
        let ticket = Ticket { cost, generation, answer: None };
        self.waiting.push_back(Waiting { content, ticket });
        Added { cost, is_new: true }
    }

    /// The tick: what waits has waited long enough.
    pub(crate) fn tick(&mut self) {
        self.is_due |= !self.waiting.is_empty();
    }

    /// Nothing joins what waits now, and it is due.
    pub(crate) fn seal(&mut self) {
        for turn in self.turns.values_mut() {
            turn.open = None;
        }
        self.tick();
    }

    /// The next entries, in order, as many as fit into one append.
    pub(crate) fn take(&mut self) -> Vec<(NewEntry, Ticket)> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(waiting) = self.waiting.front() {
            bytes += waiting.ticket.cost;
            if !taken.is_empty() && (taken.len() == TAKE_ENTRIES || bytes > TAKE_BYTES) {
                break;
            }
            let Some(Waiting { content, ticket }) = self.waiting.pop_front() else { break };
            let entry = match content {
                Content::Event(entry) => {
                    self.events -= 1;
                    entry
                }
                Content::Delta { body, tail } => {
                    NewEntry::new(DELTA, format!("{HEAD}{body}\"{tail}"))
                }
            };
            taken.push((entry, ticket));
        }
        self.taken += taken.len() as u64;
        self.is_due &= !self.waiting.is_empty();
        taken
    }

    /// Forgets turns that have gone cold. True where nothing is left to remember.
    pub(crate) fn cool(&mut self, tick: u64) -> bool {
        self.turns.retain(|_, turn| turn.warm_until > tick);
        self.turns.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether what waits should wait no longer.
    pub(crate) fn is_due(&self) -> bool {
        self.is_due
    }

    /// Whether something waits that is not a delta.
    pub(crate) fn has_event(&self) -> bool {
        self.events > 0
    }
}

/// What an event takes in the buffer.
pub(crate) fn event_cost(entry: &NewEntry) -> usize {
    OVERHEAD_BYTES + entry.name.len() + entry.data.len()
}

/// What a delta takes at most.
pub(crate) fn delta_cost(tail: &str, body: &str) -> usize {
    OVERHEAD_BYTES + DELTA.len() + HEAD.len() + body.len() + 1 + tail.len()
}

/// What follows the text in a delta's data: the turn, and the end. It stands for the turn.
pub(crate) fn tail(turn: Option<&str>) -> Box<str> {
    match turn {
        Some(turn) => format!(r#","turnId":{}}}"#, json_string(turn)).into(),
        None => "}".into(),
    }
}

/// `text` as bodies of JSON strings, each small enough for one delta.
pub(crate) fn pieces(mut text: &str) -> Vec<String> {
    let mut pieces = Vec::with_capacity(1);
    while !text.is_empty() {
        let fits = (0..=PIECE_BYTES.min(text.len())).rev().find(|&at| text.is_char_boundary(at));
        let (piece, rest) = text.split_at(fits.unwrap_or(text.len()));
        let quoted = json_string(piece);
        pieces.push(quoted[1..quoted.len() - 1].to_owned());
        text = rest;
    }
    pieces
}

fn json_string(text: &str) -> String {
    serde_json::to_string(text).expect("a string is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text_delta of `turn` with `text`, at `tick`.
    fn say(pending: &mut Coalescer, tick: u64, turn: &str, text: &str) -> Vec<Added> {
        let tail = tail(Some(turn));
        pieces(text).iter().map(|body| pending.delta(tick, 0, &tail, body)).collect()
    }

    fn event(pending: &mut Coalescer, name: &str) {
        pending.event(0, NewEntry::new(name, "{}"), 0, None);
    }

    /// What waits, as `name` or `turn: text`.
    fn drained(pending: &mut Coalescer) -> Vec<String> {
        let mut all = Vec::new();
        while !pending.is_empty() {
            all.extend(pending.take().into_iter().map(|(entry, _)| {
                let data: serde_json::Value = serde_json::from_str(&entry.data).unwrap();
                match data["delta"].as_str() {
                    Some(text) => format!("{}: {text}", data["turnId"].as_str().unwrap_or("-")),
                    None => entry.name.into(),
                }
            }));
        }
        all
    }

    #[test]
    fn the_first_delta_of_a_turn_is_due_at_once_and_the_next_waits_for_the_tick() {
        let mut pending = Coalescer::default();
        say(&mut pending, 1, "a", "Hel");
        assert!(pending.is_due());
        assert_eq!(drained(&mut pending), ["a: Hel"]);

        say(&mut pending, 1, "a", "lo");
        assert!(!pending.is_due());
        pending.tick();
        assert!(pending.is_due());
        assert_eq!(drained(&mut pending), ["a: lo"]);
        assert!(!pending.is_due());
    }

    #[test]
    fn a_turn_that_went_cold_is_due_at_once_again() {
        let mut pending = Coalescer::default();
        say(&mut pending, 1, "a", "x");
        drained(&mut pending);
        say(&mut pending, WARM_TICKS, "a", "y");
        assert!(!pending.is_due());
        drained(&mut pending);
        say(&mut pending, 2 * WARM_TICKS, "a", "z");
        assert!(pending.is_due());
    }

    #[test]
    fn parallel_turns_never_mix_and_keep_the_order_of_their_first_delta() {
        let mut pending = Coalescer::default();
        for (turn, text) in [("a", "1"), ("b", "2"), ("a", "3"), ("b", "4"), ("c", "5"), ("a", "6")]
        {
            say(&mut pending, 1, turn, text);
        }
        assert_eq!(drained(&mut pending), ["a: 136", "b: 24", "c: 5"]);
    }

    #[test]
    fn nothing_joins_across_an_event() {
        let mut pending = Coalescer::default();
        say(&mut pending, 1, "a", "before");
        event(&mut pending, "tool_start");
        assert!(pending.is_due() && pending.has_event());
        say(&mut pending, 1, "a", "after");
        say(&mut pending, 1, "a", "wards");
        assert_eq!(drained(&mut pending), ["a: before", "tool_start", "a: afterwards"]);
        assert!(!pending.has_event());
    }

    #[test]
    fn nothing_joins_what_a_flush_waits_for() {
        let mut pending = Coalescer::default();
        say(&mut pending, 1, "a", "x");
        pending.seal();
        assert!(say(&mut pending, 1, "a", "y")[0].is_new);
        assert_eq!(drained(&mut pending), ["a: x", "a: y"]);
    }

    #[test]
    fn a_turn_without_an_id_is_a_turn_of_its_own() {
        let mut pending = Coalescer::default();
        pending.delta(1, 0, &tail(None), "x");
        pending.delta(1, 0, &tail(Some("")), "y");
        pending.delta(1, 0, &tail(None), "z");
        assert_eq!(drained(&mut pending), ["-: xz", ": y"]);
    }

    #[test]
    fn four_kibibytes_do_not_wait_for_the_tick() {
        let mut pending = Coalescer::default();
        say(&mut pending, 1, "a", "x");
        drained(&mut pending);
        say(&mut pending, 1, "a", &"y".repeat(FLUSH_BYTES - 1));
        assert!(!pending.is_due());
        say(&mut pending, 1, "a", "y");
        assert!(pending.is_due());
    }

    #[test]
    fn text_is_never_lost_whatever_it_holds_and_no_entry_grows_too_large() {
        let mut pending = Coalescer::default();
        let text = "a\u{0}\n\"\\ü漢🦀".repeat(20_000);
        let mut rest = text.as_str();
        for step in (1..).step_by(997) {
            let at =
                (0..=step.min(rest.len())).rev().find(|&at| rest.is_char_boundary(at)).unwrap();
            let (now, later) = rest.split_at(at);
            say(&mut pending, 1, "t", now);
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        let mut joined = String::new();
        while !pending.is_empty() {
            let taken = pending.take();
            assert!(taken.iter().map(|(_, ticket)| ticket.cost).sum::<usize>() <= TAKE_BYTES);
            for (entry, ticket) in taken {
                protocol::check_data(&entry.data).unwrap();
                assert!(entry.data.len() <= DELTA_BYTES_MAX);
                assert_eq!(ticket.cost, event_cost(&entry), "what it takes is what was counted");
                let data: serde_json::Value = serde_json::from_str(&entry.data).unwrap();
                joined.push_str(data["delta"].as_str().unwrap());
            }
        }
        assert!(joined == text);
    }

    #[test]
    fn costs_add_up_to_what_is_given_back() {
        let mut pending = Coalescer::default();
        let mut added = 0;
        for (turn, text) in [("a", "xyz"), ("b", "\n"), ("a", "ü"), ("a", "\u{1}")] {
            added += say(&mut pending, 1, turn, text).iter().map(|a| a.cost).sum::<usize>();
        }
        let given_back: usize = pending.take().iter().map(|(_, ticket)| ticket.cost).sum();
        assert_eq!(added, given_back);
    }

    #[test]
    fn a_long_pause_of_redis_is_written_in_appends_of_bounded_size() {
        let mut pending = Coalescer::default();
        for n in 0..TAKE_ENTRIES + 1 {
            event(&mut pending, &format!("e{n}"));
        }
        assert_eq!(pending.take().len(), TAKE_ENTRIES);
        assert!(pending.is_due() && pending.has_event());
        assert_eq!(pending.take().len(), 1);
        assert!(!pending.is_due() && !pending.has_event());
    }

    #[test]
    fn cold_turns_are_forgotten() {
        let mut pending = Coalescer::default();
        say(&mut pending, 1, "a", "x");
        assert!(!pending.cool(100), "what waits is not forgotten");
        drained(&mut pending);
        say(&mut pending, 90, "b", "x");
        drained(&mut pending);
        assert!(!pending.cool(100));
        assert!(pending.cool(200));
    }
}
