//! Runs the golden examples in `vectors/`, which other languages' tests run too.
//!
//! A file with a key that is not read here, a section without cases and a file that no test
//! runs all fail: an example that is not checked is worse than a missing one.

mod vector;

use std::collections::{BTreeSet, HashMap};

use protocol::frame;
use protocol::{
    Channel, ChannelError, DataError, Entry, Format, Frame, Grant, NameError, Object, Offset,
    check_command_name, check_data, check_event_name, check_idempotency_key, encode, merge,
    partition_tag,
};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use vector::up::{normal, refused};
use vector::{Cases, Number, Text, holds, load};

#[test]
fn every_vector_file_is_run() {
    let files: BTreeSet<String> = std::fs::read_dir(vector::FOLDER)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    let run = [
        "agents",
        "channels",
        "data",
        "flat",
        "frames",
        "grants",
        "merging",
        "names",
        "offsets",
        "partitions",
    ];
    assert_eq!(files, run.iter().map(|name| format!("{name}.json")).collect());
}

#[test]
fn agents() {
    vector::agents::run();
}

#[test]
fn channels() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(rename = "about")]
        _about: Vec<String>,
        valid: Cases<Valid>,
        invalid: Cases<Invalid>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Valid {
        name: String,
        text: String,
        kind: String,
        id: String,
        partition: u8,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Invalid {
        name: String,
        text: String,
        reason: String,
    }

    let file: File = load("channels.json");
    for Valid { name, text, kind, id, partition } in file.valid {
        let channel: Channel = text.parse().expect(&name);
        assert_eq!(
            (channel.kind().as_str(), channel.id(), channel.partition(), channel.as_str()),
            (&*kind, &*id, partition, &*text),
            "{name}"
        );
        assert_eq!(Channel::new(channel.kind(), &id), Ok(channel), "{name}");
    }
    for Invalid { name, text, reason } in file.invalid {
        let found = match text.parse::<Channel>() {
            Err(ChannelError::Kind(_)) => "kind",
            Err(ChannelError::Id(_)) => "id",
            Ok(_) => "valid",
        };
        assert_eq!(found, reason, "{name}: `{text}`");
    }
}

#[test]
fn partitions() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(rename = "about")]
        _about: Vec<String>,
        tags: Vec<u16>,
    }

    let file: File = load("partitions.json");
    assert_eq!(file.tags, (0..=u8::MAX).map(partition_tag).collect::<Vec<_>>());
}

#[test]
fn offsets() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(rename = "about")]
        _about: Vec<String>,
        valid: Cases<Valid>,
        invalid: Cases<Invalid>,
        of_entry: Cases<OfEntry>,
        followed_by: Cases<FollowedBy>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Valid {
        name: String,
        text: String,
        epoch: Number,
        n: Number,
        check: Number,
        canonical: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Invalid {
        name: String,
        text: String,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct OfEntry {
        name: String,
        epoch: Number,
        n: Number,
        time_us: Number,
        offset: String,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct FollowedBy {
        name: String,
        offset: String,
        next: String,
        follows: bool,
    }

    let file: File = load("offsets.json");
    for case in file.valid {
        let offset: Offset = case.text.parse().expect(&case.name);
        let parts = (offset.epoch, offset.n, u64::from(offset.check));
        assert_eq!(parts, (case.epoch.0, case.n.0, case.check.0), "{}", case.name);
        assert_eq!(offset.to_string(), case.canonical.unwrap_or(case.text), "{}", case.name);
    }
    for Invalid { name, text } in file.invalid {
        assert!(text.parse::<Offset>().is_err(), "{name}: `{text}`");
    }
    for case in file.of_entry {
        let offset = Offset::of_entry(case.epoch.0, case.n.0, case.time_us.0);
        assert_eq!(offset.to_string(), case.offset, "{}", case.name);
    }
    for FollowedBy { name, offset, next, follows } in file.followed_by {
        let (offset, next): (Offset, Offset) = (offset.parse().unwrap(), next.parse().unwrap());
        assert_eq!(offset.is_followed_by(&next), follows, "{name}");
    }
}

#[test]
fn names() {
    for Name { name, text, event, command, idempotency_key } in load::<Names>("names.json").cases {
        let text = text.join();
        let found = |checked: Result<(), NameError>| match checked {
            Ok(()) => "ok",
            Err(NameError::Grammar(_) | NameError::IdempotencyKey(_)) => "grammar",
            Err(NameError::Reserved(_)) => "reserved",
        };
        assert_eq!(found(check_event_name(&text)), event, "{name}: event `{text}`");
        assert_eq!(found(check_command_name(&text)), command, "{name}: command `{text}`");
        assert_eq!(found(check_idempotency_key(&text)), idempotency_key, "{name}: id `{text}`");
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Names {
    #[serde(rename = "about")]
    _about: Vec<String>,
    cases: Cases<Name>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Name {
    name: String,
    text: Text,
    event: String,
    command: String,
    idempotency_key: String,
}

#[test]
fn data() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(rename = "about")]
        _about: Vec<String>,
        cases: Cases<Case>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        name: String,
        data: Text,
        is: String,
    }

    for Case { name, data, is } in load::<File>("data.json").cases {
        let found = match check_data(&data.join()) {
            Ok(()) => "ok",
            Err(DataError::Malformed(_)) => "malformed",
            Err(DataError::Deep(_)) => "deep",
            Err(DataError::Number(_)) => "number",
            Err(DataError::Large(..)) => "large",
            Err(DataError::NotAnObject) => "not an object",
        };
        assert_eq!(found, is, "{name}");
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Frames {
    #[serde(rename = "about")]
    _about: Vec<String>,
    up: Cases<Up>,
    bodies: Cases<Body>,
    down: Cases<vector::Down>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Up {
    name: String,
    text: Text,
    id: Option<Text>,
    is: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    name: String,
    text: Text,
    default: String,
    id: Option<Text>,
    is: Value,
}

#[test]
fn frames_up() {
    for Up { name, text, id, is } in load::<Frames>("frames.json").up {
        is_read_as(&name, frame::parse(&text.join()), id.as_ref(), &is);
    }
}

#[test]
fn bodies() {
    for Body { name, text, default, id, is } in load::<Frames>("frames.json").bodies {
        let default = if default == "command" { "command" } else { "request" };
        is_read_as(&name, frame::parse_body(&text.join(), default), id.as_ref(), &is);
    }
}

fn is_read_as(name: &str, incoming: frame::Incoming, id: Option<&Text>, is: &Value) {
    let found_id = incoming.id.as_deref().map(RawValue::get);
    assert_eq!(found_id, id.map(Text::join).as_deref(), "{name}: the id");
    let found = match incoming.frame {
        Ok(frame) => normal(frame),
        Err(refusal) => refused(refusal),
    };
    assert!(holds("", is, &found), "{name}\nexpected {is}\n   found {found}");
}

#[test]
fn frames_down() {
    for case in load::<Frames>("frames.json").down {
        assert_eq!(case.frame.to_text(), case.text, "{}", case.name);
    }
}

#[test]
fn no_event_can_pass_for_a_frame_of_the_relay() {
    let frames = load::<Frames>("frames.json").down.into_iter().map(|case| {
        let text: Value = serde_json::from_str(&case.text).unwrap();
        text["type"].as_str().unwrap().to_owned()
    });
    // `error` is told by `offset` and `code`; `event` is the envelope, which `encode` writes; agents receive `released`.
    let others = ["event", "released"].map(str::to_owned);
    let frames = frames.filter(|frame| frame != "error").chain(others);
    let reserved =
        load::<Names>("names.json").cases.into_iter().filter(|case| case.event == "reserved");
    let reserved: BTreeSet<String> = reserved.map(|case| case.text.join()).collect();
    assert_eq!(frames.collect::<BTreeSet<_>>(), reserved);
}

#[test]
fn merging() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(rename = "about")]
        _about: Vec<String>,
        cases: Cases<Case>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        name: String,
        entries: Vec<In>,
        frames: Vec<Out>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct In {
        offset: String,
        event: String,
        data: Text,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Out {
        offset: String,
        merged: u64,
        event: String,
        data: Text,
    }

    for Case { name, entries, frames } in load::<File>("merging.json").cases {
        let time_us = |offset: &Offset| offset.epoch * 1_000_000 + offset.n;
        let entry = |offset: &str, event: &str, data: &Text| {
            let offset: Offset = offset.parse().unwrap();
            Entry {
                offset,
                time_us: time_us(&offset),
                name: event.into(),
                data: data.join().into(),
            }
        };
        let entries: Vec<Entry> =
            entries.iter().map(|e| entry(&e.offset, &e.event, &e.data)).collect();
        for one in &entries {
            check_data(&one.data).expect(&name);
        }
        let expected: Vec<(Entry, u64)> =
            frames.iter().map(|f| (entry(&f.offset, &f.event, &f.data), f.merged)).collect();
        let found: Vec<(Entry, u64)> = merge(&entries)
            .into_iter()
            .map(|frame| match frame {
                Frame::Single(entry) => (entry.clone(), 1),
                Frame::Merged(entry, merged) => (entry, merged),
            })
            .collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn flat_and_envelope() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(rename = "about")]
        _about: Vec<String>,
        cases: Cases<Case>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        name: String,
        channel: String,
        offset: String,
        time_us: u64,
        event: String,
        merged: u64,
        data: String,
        flat: String,
        envelope: String,
    }

    for case in load::<File>("flat.json").cases {
        let name = &case.name;
        let channel: Channel = case.channel.parse().unwrap();
        check_data(&case.data).expect(name);
        let offset = case.offset.parse().unwrap();
        let entry = Entry {
            offset,
            time_us: case.time_us,
            name: case.event.into(),
            data: case.data.into(),
        };
        assert_eq!(encode(Format::Flat, &channel, &entry, case.merged), case.flat, "{name}");
        assert_eq!(
            encode(Format::Envelope, &channel, &entry, case.merged),
            case.envelope,
            "{name}"
        );

        // Read as JavaScript reads it, the relay's fields are the relay's.
        let last_wins: HashMap<String, &RawValue> = serde_json::from_str(&case.flat).expect(name);
        let own = |key: &str| last_wins.get(key).map_or("", |value| value.get());
        assert_eq!(own("type"), format!("\"{}\"", entry.name), "{name}");
        assert_eq!(own("offset"), format!("\"{offset}\""), "{name}");
        serde_json::from_str::<HashMap<String, &RawValue>>(&case.envelope).expect(name);
    }
}

#[test]
fn grants() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(rename = "about")]
        _about: Vec<String>,
        granted: Cases<Granted>,
        refused: Cases<Refused>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Granted {
        name: String,
        grant: Value,
        may: Vec<(String, String)>,
        may_not: Vec<(String, String)>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Refused {
        name: String,
        grant: Value,
        message: String,
    }

    let read = |grant: &Value| {
        let grant = serde_json::from_str::<Object<Grant>>(&grant.to_string());
        let Object(grant) = grant.map_err(|e| e.to_string())?;
        grant.check().map(|()| grant).map_err(|e| e.to_string())
    };
    let file: File = load("grants.json");
    for Granted { name, grant, may, may_not } in file.granted {
        let grant = read(&grant).expect(&name);
        let asked = may.iter().map(|it| (it, true)).chain(may_not.iter().map(|it| (it, false)));
        for ((right, to), expected) in asked {
            let channel = || to.parse::<Channel>().expect(&name);
            let found = match right.as_str() {
                "subscribe" => grant.may_subscribe(&channel()),
                "command" => grant.may_command(&channel()),
                "request" => grant.may_request(to),
                "publish" => grant.may_publish(&channel()),
                other => panic!("{name}: unknown right `{other}`"),
            };
            assert_eq!(found, expected, "{name}: {right} {to}");
        }
    }
    for Refused { name, grant, message } in file.refused {
        let error = read(&grant).expect_err(&name);
        assert!(!message.is_empty() && error.contains(&message), "{name}: {error}");
    }
}
