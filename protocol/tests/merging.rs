//! Merging is lossless at every cut, for everything that agents write.
//!
//! Random entries, merged in two halves at every cut, must put the same on a screen as the entries
//! themselves, and account for every offset. A failure prints its seed;
//! `MERGING_SEED=17 cargo test -p protocol --test merging` runs that seed alone.

use std::collections::HashMap;
use std::fmt::Write as _;

use protocol::limits::FRAME_UP_BYTES_MAX;
use protocol::{Channel, Entry, Format, Frame, Offset, check_data, encode, merge};
use serde_json::value::RawValue;

const SEEDS: u64 = 100;

#[test]
fn a_screen_shows_the_same_whatever_was_merged_and_wherever_it_was_cut() {
    let only = std::env::var("MERGING_SEED").ok().map(|seed| seed.parse().expect("MERGING_SEED"));
    let seeds = only.map_or(0..SEEDS, |seed: u64| seed..seed + 1);
    let mut joined = 0;
    for seed in seeds.clone() {
        let entries = random_entries(&mut Random(seed));
        let expected = screen(entries.iter().map(Frame::Single));
        for cut in 0..=entries.len() {
            let (seen, missed) = entries.split_at(cut);
            let (mut frames, after) = (merge(seen), merge(missed));
            check_accounts(seed, &frames, seen);
            check_accounts(seed, &after, missed);
            joined += after.iter().filter(|frame| matches!(frame, Frame::Merged(..))).count();
            frames.extend(after);
            assert_eq!(screen(frames), expected, "seed {seed}, cut at {cut} of {entries:#?}");
        }
        // And cut where only frames end: after any of them, whatever follows its offset is missed.
        let frames = merge(&entries);
        for taken in 0..=frames.len() {
            let (seen, _) = frames.split_at(taken);
            let from = seen.last().map_or(0, |last| {
                1 + entries.iter().position(|entry| entry.offset == last.offset()).expect("known")
            });
            let resumed = seen.iter().cloned().chain(merge(&entries[from..]));
            assert_eq!(
                screen(resumed),
                expected,
                "seed {seed}, after {taken} frames of {entries:#?}"
            );
        }
    }
    assert!(
        joined > 0 || only.is_some(),
        "not one merged frame in seeds {seeds:?}: this proves nothing"
    );
}

/// Every frame carries consecutive entries, stands for the last of them, and none is left out.
fn check_accounts(seed: u64, frames: &[Frame<'_>], entries: &[Entry]) {
    let channel: Channel = format!("session:{}", "x".repeat(128)).parse().expect("a channel");
    let mut rest = entries;
    for frame in frames {
        let (shown, count) = match frame {
            Frame::Single(entry) => (*entry, 1),
            Frame::Merged(entry, count) => (entry, *count),
        };
        let (carried, behind) = rest.split_at(usize::try_from(count).expect("a count"));
        rest = behind;
        let last = carried.last().expect("a frame carries something");
        assert_eq!(
            (shown.offset, shown.time_us, &shown.name),
            (last.offset, last.time_us, &last.name),
            "seed {seed}: a frame stands for its last entry"
        );
        assert_eq!(frame.offset(), last.offset, "seed {seed}");
        for pair in carried.windows(2) {
            assert!(pair[0].offset.is_followed_by(&pair[1].offset), "seed {seed}: {pair:?}");
        }
        if matches!(frame, Frame::Merged(..)) {
            assert!(count > 1, "seed {seed}: merged says that it joins");
            check_data(&shown.data).expect("joined data is data");
            for format in [Format::Envelope, Format::Flat] {
                let bytes = encode(format, &channel, shown, count).len();
                assert!(bytes < FRAME_UP_BYTES_MAX, "seed {seed}: a merged frame of {bytes} bytes");
            }
        } else {
            assert_eq!(shown, last, "seed {seed}: what is not merged is untouched");
        }
    }
    assert_eq!(rest, [], "seed {seed}: every entry is carried");
}

/// What a page shows: texts growing turn by turn, and everything else as it came.
#[derive(Debug, PartialEq, Eq)]
enum Shown {
    Text { turn: Option<String>, text: Vec<u16> },
    Other { offset: Offset, name: String, data: String },
}

fn screen<'a>(frames: impl IntoIterator<Item = Frame<'a>>) -> Vec<Shown> {
    let mut screen = Vec::new();
    for frame in frames {
        let entry = match &frame {
            Frame::Single(entry) => entry,
            Frame::Merged(entry, _) => entry,
        };
        let Some((turn, text)) = plain_delta(entry) else {
            let (name, data) = (entry.name.to_string(), entry.data.to_string());
            screen.push(Shown::Other { offset: entry.offset, name, data });
            continue;
        };
        match screen.last_mut() {
            Some(Shown::Text { turn: open, text: shown }) if *open == turn => shown.extend(text),
            _ => screen.push(Shown::Text { turn, text }),
        }
    }
    screen
}

/// The turn, as written, and the text of a `text_delta` that has nothing else.
fn plain_delta(entry: &Entry) -> Option<(Option<String>, Vec<u16>)> {
    let mut fields: HashMap<String, &RawValue> = serde_json::from_str(&entry.data).ok()?;
    let delta = fields.remove("delta")?.get();
    let turn = fields.remove("turnId").map(|turn| turn.get().to_owned());
    let turn = turn.filter(|turn| turn != "null");
    let is_string = |json: &str| json.starts_with('"');
    let plain = &*entry.name == "text_delta"
        && fields.is_empty()
        && is_string(delta)
        && turn.as_deref().is_none_or(is_string);
    plain.then(|| (turn, utf_16(&delta[1..delta.len() - 1])))
}

/// The UTF-16 code units of a raw JSON string body: what JavaScript holds, half pairs included.
fn utf_16(body: &str) -> Vec<u16> {
    let mut units = Vec::new();
    let mut chars = body.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            units.extend(c.encode_utf16(&mut [0; 2]).iter());
            continue;
        }
        units.push(match chars.next().expect("an escape") {
            'u' => {
                let hex: String = chars.by_ref().take(4).collect();
                u16::from_str_radix(&hex, 16).expect("four digits")
            }
            'n' => 0x0a,
            'r' => 0x0d,
            't' => 0x09,
            'b' => 0x08,
            'f' => 0x0c,
            plain => u16::try_from(u32::from(plain)).expect("one of \" \\ /"),
        });
    }
    units
}

fn random_entries(random: &mut Random) -> Vec<Entry> {
    let (mut epoch, mut n) = (5, random.below(3));
    // Every eighth list comes up to the bound on a merged frame.
    let long = random.below(8) == 0;
    let entries = (0..random.below(24)).map(|_| {
        match random.below(40) {
            0 => (epoch, n) = (epoch + 1, 1),
            1..3 => n += 2 + random.below(3),
            _ => n += 1,
        }
        let (name, data) = random_event(random, long);
        check_data(&data).expect("the generator writes data");
        let time_us = epoch * 1_000_000 + n;
        Entry {
            offset: Offset::of_entry(epoch, n, time_us),
            time_us,
            name: name.into(),
            data: data.into(),
        }
    });
    entries.collect()
}

fn random_event(random: &mut Random, long: bool) -> (&'static str, String) {
    let delta = random_string(random, long);
    let [a, b, c, d] = [(); 4].map(|()| random.one_of(&["", "", "", " ", "\n\t"]));
    match random.below(20) {
        0 => ("tool_start", r#"{"toolName":"ls"}"#.to_owned()),
        1 => ("step_output", format!(r#"{{"delta":{delta}}}"#)),
        2 => ("text_delta", format!(r#"{{"delta":{delta},"model":"m"}}"#)),
        3 => ("text_delta", format!(r#"{{"delta":{delta},"turnId":null}}"#)),
        4 => ("text_delta", format!(r#"[{delta},"t1"]"#)),
        5 => (
            "text_delta",
            random.one_of(&["{}", "null", r#"{"delta":7}"#, r#"{"delta":{}}"#]).to_owned(),
        ),
        6 | 7 => ("text_delta", format!(r#"{a}{{{b}"turnId"{c}:"t1","delta":{delta}{d}}}"#)),
        8..12 => ("text_delta", format!(r#"{a}{{{b}"delta"{c}:{delta}{d}}}"#)),
        12 | 13 => ("text_delta", format!(r#"{{"delta":{delta},"turnId":"t2"}}"#)),
        _ => ("text_delta", format!(r#"{{"delta":{delta}{a},{b}"turnId":{c}"t1"{d}}}"#)),
    }
}

/// A JSON string of random characters, half surrogate pairs and escapes; sometimes a `long` one.
fn random_string(random: &mut Random, long: bool) -> String {
    let mut body = String::from('"');
    if long && random.below(3) == 0 {
        body.push_str(&"x".repeat(10_000 + random.below(40_000) as usize));
    }
    for _ in 0..random.below(6) {
        match random.below(10) {
            // Writing to a String cannot fail.
            0 => write!(body, "\\u{:04x}", 0xd800 + random.below(0x400)).expect("high half"),
            1 => write!(body, "\\u{:04X}", 0xdc00 + random.below(0x400)).expect("low half"),
            2 => write!(body, "\\u{:04x}", random.below(0xd800)).expect("an escape"),
            3 => body.push_str(
                random.one_of(&["\\\"", "\\\\", "\\/", "\\n", "\\r", "\\t", "\\b", "\\f"]),
            ),
            4 => body.push_str(random.one_of(&[
                "😀",
                "é",
                "漢",
                "\u{2028}",
                "\u{7f}",
                "e\u{301}",
                "👩‍💻",
            ])),
            _ => body
                .push_str(random.one_of(&["a", "Z", " ", "{", "}", ",", ":", "[", "turnId", "'"])),
        }
    }
    body.push('"');
    body
}

/// SplitMix64: small, seeded, the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn one_of(&mut self, all: &[&'static str]) -> &'static str {
        all[self.below(all.len() as u64) as usize]
    }
}
