//! Reads what Redis holds and sends: ids, entries, places, notifications. Nothing in here trusts the writer.

use std::str;
use std::sync::Arc;

use protocol::{Entry, Offset, UNREADABLE, check_command_name, check_data, check_event_name};
use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::Side;

/// Where a batch was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) epoch: u64,
    /// n of the first entry; the others follow it.
    pub(super) n: u64,
    pub(super) time_us: u64,
}

impl Place {
    /// `<id of the first entry> <time in µs>`, with which the append script's answer begins.
    pub(super) fn parse(text: &str) -> Result<Self, RedisError> {
        let parsed = || {
            let mut parts = text.split(' ');
            let (epoch, n) = id(parts.next()?).ok()?;
            Some(Self { epoch, n, time_us: parts.next()?.parse().ok()? })
        };
        parsed().ok_or_else(|| unexpected("a place", text))
    }

    /// The position of the batch's entry `index`.
    pub(super) fn offset(&self, index: u64) -> Offset {
        Offset::of_entry(self.epoch, self.n.saturating_add(index), self.time_us)
    }
}

/// A stream id `<epoch>-<n>`.
pub(super) fn id(text: &str) -> Result<(u64, u64), RedisError> {
    let parts = text.split_once('-').and_then(|(e, n)| Some((e.parse().ok()?, n.parse().ok()?)));
    parts.ok_or_else(|| unexpected("a stream id", text))
}

/// The position of the entry `id_text`, written at `time`.
pub(super) fn position(id_text: &str, time: &str) -> Result<Offset, RedisError> {
    let (epoch, n) = id(id_text)?;
    // An entry that we did not write may have any beginning: its check is then 0, as everywhere.
    Ok(Offset::of_entry(epoch, n, time.parse().unwrap_or(0)))
}

/// The entry `<time> <name> <idempotency key> <data>` at `epoch-n`.
///
/// This is the one check per entry and replica. What fails is delivered all the same, as `unreadable`:
/// nothing is skipped, and nobody can forge a frame.
pub(super) fn entry(side: Side, epoch: u64, n: u64, bytes: &[u8]) -> Entry {
    let time_us = bytes.get(..16).and_then(|t| str::from_utf8(t).ok()?.parse().ok()).unwrap_or(0);
    let offset = Offset::of_entry(epoch, n, time_us);
    let readable = || {
        let rest = str::from_utf8(bytes).ok()?.get(16..)?.strip_prefix(' ')?;
        let (name, rest) = rest.split_once(' ')?;
        let (_once, data) = rest.split_once(' ')?;
        match side {
            Side::Events => check_event_name(name).ok()?,
            Side::Commands => check_command_name(name).ok()?,
        }
        check_data(data).ok()?;
        Some((name, data))
    };
    let (name, data) = readable().unwrap_or((UNREADABLE, "{}"));
    Entry { offset, time_us, name: name.into(), data: data.into() }
}

/// A notification `<epoch>-<n of the first> <length>:<entry>…:<entry>`: the last entry takes the rest. `None` if it, or an entry
/// of it, cannot be read: the journal must be read instead.
pub(super) fn notification(side: Side, payload: &[u8]) -> Option<Vec<Arc<Entry>>> {
    let space = payload.iter().position(|b| *b == b' ')?;
    let (epoch, first) = id(str::from_utf8(&payload[..space]).ok()?).ok()?;
    let mut rest = &payload[space + 1..];
    let mut entries = Vec::with_capacity(1);
    while !rest.is_empty() {
        let colon = rest.iter().take(12).position(|b| *b == b':')?;
        let length = match colon {
            0 => rest.len() - 1,
            _ => str::from_utf8(&rest[..colon]).ok()?.parse().ok()?,
        };
        let bytes = rest[colon + 1..].get(..length)?;
        let n = first.checked_add(entries.len() as u64)?;
        let entry = entry(side, epoch, n, bytes);
        if &*entry.name == UNREADABLE {
            // Whether such an entry stands there only the journal can tell.
            return None;
        }
        entries.push(Arc::new(entry));
        rest = &rest[colon + 1 + length..];
    }
    (!entries.is_empty()).then_some(entries)
}

/// Whether the script must be loaded (again).
pub(super) fn is_no_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

pub(super) fn unexpected(what: &str, text: &str) -> RedisError {
    let text = text.chars().take(60).collect::<String>();
    (ErrorKind::UnexpectedReturnType, "unexpected answer", format!("`{text}` is not {what}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bell_holds_its_entries_in_order() {
        let one = "1763661001123456 text_delta - {\"delta\":\"a: 1\"}";
        let two = "1763661001123456 complete id-1 {}";
        let payload = format!("1763661001000-41 {}:{one}:{two}", one.len());
        let entries = notification(Side::Events, payload.as_bytes()).unwrap();
        assert_eq!((entries[0].offset.n, &*entries[0].data), (41, "{\"delta\":\"a: 1\"}"));
        assert_eq!((entries[1].offset.n, &*entries[1].name), (42, "complete"));
        assert_eq!(entries[1].offset.check, 1_763_661_001_123_456_u64 as u32);
    }

    #[test]
    fn a_broken_notification_is_not_read() {
        for broken in
            ["", "1-1", "1-1 ", "1-1 5:abc", "1-1 x:abc", "x-1 3:abc", "1-1 99999999999999:a"]
        {
            assert_eq!(notification(Side::Events, broken.as_bytes()), None, "{broken}");
        }
        let one = "1763661001123456 e - 1";
        let two_from = |n: u64| format!("1-{n} {}:{one}:{one}", one.len());
        let read = |text: &str| notification(Side::Events, text.as_bytes());
        assert_eq!(read(&two_from(u64::MAX)), None, "nothing can follow it");
        assert_eq!(read(&two_from(u64::MAX - 1)).map(|entries| entries.len()), Some(2));
        assert_eq!(read(&format!("1-1 {}:{one}:junk", one.len())), None, "one is unreadable");
    }

    #[test]
    fn what_is_not_an_event_is_delivered_as_unreadable_at_its_position() {
        let deep = format!("1763661001123456 x - {}{}", "[".repeat(200), "]".repeat(200));
        for junk in [
            "",
            "x",
            "1763661001123456",
            "1763661001123456 a b",
            "1763661001123456 a - {",
            "1763661001123456 \"}, - {}",
            "1763661001123456 ack - {}",
            &deep,
        ] {
            let entry = entry(Side::Events, 7, 3, junk.as_bytes());
            assert_eq!(
                (&*entry.name, &*entry.data, entry.offset.n),
                (UNREADABLE, "{}", 3),
                "{junk}"
            );
        }
        assert_eq!(&*entry(Side::Events, 7, 3, b"1763661001123456 a - \"\xff\"").name, UNREADABLE);
    }

    #[test]
    fn a_place_says_where_the_batch_stands() {
        let place = Place::parse("1763661001000-41 1763661001123456").unwrap();
        assert_eq!((place.epoch, place.n), (1_763_661_001_000, 41));
        assert_eq!(place.offset(2).n, 43);
        for broken in ["", "1-1", "1 3", "1-1 x"] {
            assert!(Place::parse(broken).is_err(), "{broken}");
        }
    }
}
