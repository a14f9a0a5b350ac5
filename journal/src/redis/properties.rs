//! What must hold whatever Redis holds and sends: `fuzz/` tries it on random input, the tests here on what fuzzing has
//! found.
//!
//! A property panics where it does not hold.

use std::collections::HashMap;
use std::sync::Arc;

use protocol::{
    Channel, Entry, Format, UNREADABLE, check_command_name, check_data, check_event_name, encode,
};
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::resp::{Malformed, Push, Reader};
use super::wire::{self, Place};
use crate::Side;

/// Any bytes are an entry that nobody can take for something else.
pub fn stream_entries(bytes: &[u8]) {
    let (side, bytes) = side(bytes);
    check_entry(side, &wire::entry(side, 7, 3, bytes), bytes);

    let text = String::from_utf8_lossy(bytes);
    if let Ok((epoch, n)) = wire::id(&text) {
        assert_eq!(wire::id(&format!("{epoch}-{n}")).ok(), Some((epoch, n)));
        assert_eq!(wire::position(&text, "x").ok().map(|at| (at.epoch, at.n)), Some((epoch, n)));
    }
    if let Ok(place) = Place::parse(&text) {
        assert!(place.offset(0).n <= place.offset(999).n);
    }
}

/// A notification is consecutive readable entries that are no larger than it is; and what was put into one comes out of
/// it, if all of it can be read.
pub fn notifications(bytes: &[u8]) {
    let (side, payload) = side(bytes);
    if let Some(entries) = wire::notification(side, payload) {
        assert!(entries.iter().map(|entry| entry.bytes()).sum::<usize>() <= payload.len());
        assert!((1..=payload.len()).contains(&entries.len()));
        for entry in &entries {
            assert_ne!(&*entry.name, UNREADABLE);
            check_entry(side, entry, payload);
        }
        for pair in entries.windows(2) {
            assert!(pair[0].offset.is_followed_by(&pair[1].offset));
        }
    }

    let parts: Vec<&[u8]> = payload.split(|byte| *byte == 0).collect();
    let mut written = b"1763661001000-41 ".to_vec();
    for (index, part) in parts.iter().enumerate() {
        if index + 1 < parts.len() {
            written.extend(part.len().to_string().bytes());
        }
        written.push(b':');
        written.extend(*part);
    }
    let entry = |(n, part): (u64, &[u8])| {
        let entry = wire::entry(side, 1_763_661_001_000, n, part);
        (&*entry.name != UNREADABLE).then(|| Arc::new(entry))
    };
    let all: Option<Vec<Arc<Entry>>> = (41..).zip(parts).map(entry).collect();
    assert_eq!(wire::notification(side, &written), all);
}

/// However the bytes of a link are split, they are the same pushes, or cannot be read.
pub fn pushes(bytes: &[u8]) {
    let (at, bytes) = bytes.split_first().map_or((0, bytes), |(at, rest)| (usize::from(*at), rest));
    let whole = read_pushes(&[bytes]);
    let (one, two) = bytes.split_at(at.min(bytes.len()));
    assert_eq!(read_pushes(&[one, two]), whole);
    assert_eq!(read_pushes(&bytes.chunks(1 + at).collect::<Vec<_>>()), whole);
}

/// All pushes, or `None` where something else comes.
fn read_pushes(pieces: &[&[u8]]) -> Option<Vec<String>> {
    let mut pushes = Vec::new();
    let read = read(&mut Reader::default(), pieces, |push| pushes.push(format!("{push:?}")));
    read.is_ok().then_some(pushes)
}

/// Reads what comes in such pieces.
pub(super) fn read(
    reader: &mut Reader,
    pieces: &[&[u8]],
    mut take: impl FnMut(&Push<'_>),
) -> Result<(), Malformed> {
    for piece in pieces {
        let mut rest = *piece;
        while !rest.is_empty() {
            let room = reader.room();
            let length = room.len().min(rest.len());
            room[..length].copy_from_slice(&rest[..length]);
            reader.filled(length);
            rest = &rest[length..];
            while let Some(push) = reader.next()? {
                take(&push);
            }
        }
    }
    Ok(())
}

fn side(bytes: &[u8]) -> (Side, &[u8]) {
    match bytes.split_first() {
        Some((b'c', rest)) => (Side::Commands, rest),
        Some((_, rest)) => (Side::Events, rest),
        None => (Side::Events, bytes),
    }
}

fn check_entry(side: Side, entry: &Entry, bytes: &[u8]) {
    assert_eq!(entry.offset.check, entry.time_us as u32);
    check_data(&entry.data).expect("an entry's data");
    if &*entry.name == UNREADABLE {
        // Or somebody has chosen the name.
        assert!(&*entry.data == "{}" || is_within(entry.data.as_bytes(), bytes));
    } else {
        assert!(is_within(entry.data.as_bytes(), bytes), "the data is what was written");
        match side {
            Side::Events => check_event_name(&entry.name).expect("an event's name"),
            Side::Commands => check_command_name(&entry.name).expect("a command's name"),
        }
    }
    check_encoded(entry);
}

fn is_within(part: &[u8], bytes: &[u8]) -> bool {
    bytes.windows(part.len().max(1)).any(|window| window == part)
}

/// Whatever a journal's entry holds, the frames of it are the relay's: a reader that keeps the last of duplicate keys
/// sees our fields.
fn check_encoded(entry: &Entry) {
    for channel in ["session:42", "plan:42", "agent:42"] {
        let channel: Channel = channel.parse().expect("a channel");
        for (format, kind) in [(Format::Envelope, "event"), (Format::Flat, &*entry.name)] {
            let text = encode(format, &channel, entry, 2);
            let fields: HashMap<String, &RawValue> = match serde_json::from_str(&text) {
                Ok(fields) => fields,
                Err(error) => {
                    // Data may have a key with half of a surrogate pair, which this reader refuses and others take.
                    assert!(entry.data.contains("\\u"), "{error}: {text}");
                    serde_json::from_str::<IgnoredAny>(&text).expect("a frame is JSON");
                    continue;
                }
            };
            let field = |name: &str| fields.get(name).map(|value| value.get().trim_matches('"'));
            assert_eq!(field("type"), Some(kind), "{text}");
            assert_eq!(field("offset"), Some(&*entry.offset.to_string()), "{text}");
            assert_eq!(field("merged"), Some("2"), "{text}");
            if format == Format::Envelope {
                assert_eq!(field("event"), Some(&*entry.name), "{text}");
                assert_eq!(fields["data"].get(), entry.data.trim(), "{text}");
            }
        }
    }
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::replay::replay;

    #[test]
    fn stream_entries() {
        replay("stream_entries", super::stream_entries);
    }

    #[test]
    fn notifications() {
        replay("notifications", super::notifications);
    }

    #[test]
    fn pushes() {
        replay("pushes", super::pushes);
    }
}
