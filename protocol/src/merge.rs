//! Joining adjacent text deltas without losing a byte, so that catching up costs O(messages), not
//! O(tokens).
//!
//! Only entries with consecutive offsets, equal `turnId` (`null` is none) and no fields but `delta` and `turnId` are
//! joined; the joined frame carries the last offset and how many it joins, so a consumer whose connection
//! breaks between any two frames loses nothing. Deltas are joined as *raw JSON string bodies*: an emoji whose
//! two surrogate escapes were split between two deltas comes together again.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::limits::MERGED_BYTES_MAX;
use crate::{Entry, Object, Offset};

/// One frame's worth of entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// An entry that stays as it is.
    Single(&'a Entry),
    /// Several deltas joined: the entry to send in their stead, and how many it joins.
    Merged(Entry, u64),
}

impl Frame<'_> {
    /// The position after this frame.
    pub fn offset(&self) -> Offset {
        match self {
            Frame::Single(entry) => entry.offset,
            Frame::Merged(entry, _) => entry.offset,
        }
    }
}

/// The frames for `entries`, in order.
pub fn merge<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Vec<Frame<'a>> {
    let mut frames = Vec::new();
    let mut open: Option<Run<'a>> = None;
    for entry in entries {
        let delta = PlainDelta::of(entry);
        if let (Some(run), Some(delta)) = (open.as_mut(), &delta)
            && run.takes(entry, delta)
        {
            run.push(entry, delta);
            continue;
        }
        frames.extend(open.take().map(Run::into_frame));
        match delta {
            Some(delta) => open = Some(Run::new(entry, &delta)),
            None => frames.push(Frame::Single(entry)),
        }
    }
    frames.extend(open.map(Run::into_frame));
    frames
}

/// Deltas that are being joined.
struct Run<'a> {
    first: &'a Entry,
    last: &'a Entry,
    count: u64,
    turn: Option<&'a str>,
    /// The raw JSON string bodies, one after the other, without quotes.
    body: String,
}

impl<'a> Run<'a> {
    fn new(entry: &'a Entry, delta: &PlainDelta<'a>) -> Self {
        Self { first: entry, last: entry, count: 1, turn: delta.turn, body: delta.body.to_owned() }
    }

    fn takes(&self, entry: &Entry, delta: &PlainDelta<'_>) -> bool {
        self.last.offset.is_followed_by(&entry.offset)
            && self.turn == delta.turn
            && self.body.len() + delta.body.len() + self.turn.map_or(0, str::len) < MERGED_BYTES_MAX
    }

    fn push(&mut self, entry: &'a Entry, delta: &PlainDelta<'_>) {
        self.last = entry;
        self.count += 1;
        self.body.push_str(delta.body);
    }

    fn into_frame(self) -> Frame<'a> {
        if self.count == 1 {
            return Frame::Single(self.first);
        }
        let turn = self.turn.map_or_else(String::new, |turn| format!(r#","turnId":{turn}"#));
        let data = format!(r#"{{"delta":"{}"{turn}}}"#, self.body).into_boxed_str();
        let last = self.last;
        let entry =
            Entry { offset: last.offset, time_us: last.time_us, name: last.name.clone(), data };
        Frame::Merged(entry, self.count)
    }
}

/// A `text_delta` with no fields but `delta` and `turnId`, as raw JSON.
struct PlainDelta<'a> {
    body: &'a str,
    turn: Option<&'a str>,
}

impl<'a> PlainDelta<'a> {
    fn of(entry: &'a Entry) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields<'a> {
            #[serde(borrow)]
            delta: &'a RawValue,
            #[serde(borrow, default, rename = "turnId")]
            turn_id: Option<&'a RawValue>,
        }

        if &*entry.name != "text_delta" {
            return None;
        }
        let Object(fields): Object<Fields<'a>> = serde_json::from_str(&entry.data).ok()?;
        let body = fields.delta.get().strip_prefix('"')?.strip_suffix('"')?;
        let turn = fields.turn_id.map(RawValue::get);
        turn.is_none_or(|turn| turn.starts_with('"')).then_some(Self { body, turn })
    }
}
