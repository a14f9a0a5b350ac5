//! Checks `PROTOCOL.md` against the code: its tables equal the code's, its examples are accepted.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::Duration;

use protocol::frame::{self, ClientFrame};
use protocol::{
    AgentCall, AgentMessage, Channel, CloseCode, ErrorCode, Kind, NameError, check_event_name,
    limits, partition_tag,
};
use serde_json::Value;

const DOC: &str = include_str!("../PROTOCOL.md");

#[test]
fn the_table_of_error_codes_is_the_codes() {
    let expected: Vec<Vec<String>> = ErrorCode::ALL
        .iter()
        .map(|code| {
            let retryable = if code.is_retryable() { "yes" } else { "no" };
            let http = code.http_status().to_string();
            vec![format!("`{}`", code.as_str()), http, retryable.into(), code.help().into()]
        })
        .collect();
    assert_eq!(table("| code | HTTP | retryable | what to do |"), expected);
}

#[test]
fn the_table_of_close_codes_is_the_codes() {
    let row = |code: &CloseCode| {
        vec![code.number().to_string(), code.reason().into(), code.help().into()]
    };
    let expected: Vec<Vec<String>> = CloseCode::ALL.iter().map(row).collect();
    assert_eq!(table("| code | reason | what to do |"), expected);
}

/// `value`, `name` as the table shows them.
macro_rules! limits {
    ($($name:ident)+) => { vec![$((limits::$name.shown(stringify!($name)), stringify!($name))),+] };
}

#[test]
fn the_table_of_limits_is_the_limits() {
    let expected = limits! {
        CHANNEL_ID_BYTES_MAX NAME_BYTES_MAX IDEMPOTENCY_KEY_BYTES_MAX EVENT_DATA_BYTES_MAX EVENT_DATA_DEPTH_MAX
        EVENT_DATA_NUMBER_MAX DETAIL_BYTES_MAX DETAIL_DEPTH_MAX
        FRAME_UP_BYTES_MAX MERGED_BYTES_MAX PUBLISH_BODY_BYTES_MAX PUBLISH_EVENTS_MAX SUBSCRIPTIONS_MAX
        READ_EVENTS_MAX READ_EVENTS_DEFAULT CORRELATION_ID_BYTES_MAX APPROVAL_ID_BYTES_MAX QUESTION_BYTES_MAX
        APPROVAL_PLACES_MAX APPROVALS_MAX APPROVALS_PER_AGENT_MAX FIREHOSE_APPROVALS_MAX FIREHOSE_APPROVAL_BYTES_MAX
        PENDING_BYTES_MAX PENDING_FRAME_BYTES_MAX REASON_CHARS_MAX
        REQUESTS_MAX COMMANDS_PER_SECOND COMMANDS_BURST AUTHS_BURST SUBSCRIBES_PER_SECOND SUBSCRIBES_BURST UNREADABLE_MAX
        WAITING_PER_SENDER_MAX WAITING_MAX
        WAITING_SERVICE_PER_SENDER_MAX WAITING_SERVICE_MAX WAITING_BYTES_MAX WAITING_BYTES_PER_SENDER_MAX
        WAITING_CANCELS_MAX UNSERVED_BYTES_PER_SECOND UNSERVED_BYTES_BURST
        KEPT_BRIEFLY_BYTES_PER_SECOND KEPT_BRIEFLY_BYTES_BURST KEPT_LONG_BYTES_PER_SECOND KEPT_LONG_BYTES_BURST
        CANCELLED_MAX CHILDREN_MAX
        AGENT_FRAME_BYTES_MAX AGENT_CALLS_MAX
        AGENT_CALLS_BYTES_MAX AGENT_CHANNELS_MAX OPEN_RUNS_MAX AGENT_NUMBER_MAX RUN_ID_BYTES_MAX GRANT_PATTERNS_MAX
        TOKEN_BYTES_MAX
        IDEMPOTENCY_KEY_LIFETIME PING_INTERVAL STALL_TIMEOUT TOKEN_EXPIRING_NOTICE COMMAND_WAIT_DEFAULT
        COMMAND_WAIT_MAX COMMAND_WAIT_UNKNOWN AGENT_KNOWN APPROVAL_WAIT_MAX CANCEL_WAIT CANCEL_WALK OUTCOME_LIFETIME REQUEST_TIMEOUT_DEFAULT
        REQUEST_TIMEOUT_MAX
    };
    let expected: Vec<(String, String)> =
        expected.into_iter().map(|(value, name)| (value, format!("`{name}`"))).collect();
    let rows = table("| limit | value | name |");
    let found: Vec<(String, String)> =
        rows.iter().map(|row| (row[1].clone(), row[2].clone())).collect();
    assert_eq!(found, expected);

    let source = include_str!("../src/limits.rs").lines();
    let declared = source.filter_map(|line| line.strip_prefix("pub const ")?.split(':').next());
    let declared: Vec<String> = declared.map(|name| format!("`{name}`")).collect();
    assert_eq!(found.into_iter().map(|(_, name)| name).collect::<Vec<_>>(), declared);
}

#[test]
fn the_table_of_kinds_is_the_kinds() {
    let expected: Vec<String> =
        Kind::ALL.iter().map(|kind| format!("`{}`", kind.as_str())).collect();
    let found: Vec<String> =
        table("| kind | is about |").iter().map(|row| row[0].clone()).collect();
    assert_eq!(found, expected);
}

#[test]
fn the_frames_down_are_the_reserved_names_and_error() {
    let rows = table("| `type` | fields | says |");
    let frames: BTreeSet<&str> = rows.iter().map(|row| row[0].trim_matches('`')).collect();
    for name in frames.iter().filter(|name| **name != "error") {
        assert_eq!(check_event_name(name), Err(NameError::Reserved((*name).to_owned())));
    }
    let (_, list) = DOC.split_once("with `reserved_name`: ").expect("the list of reserved names");
    let (list, _) = list.split_once(". The name").expect("the list's end");
    let list: BTreeSet<&str> = list.split(',').map(|name| name.trim().trim_matches('`')).collect();
    assert!(list.iter().all(|name| check_event_name(name).is_err()));
    // Only agents receive `released`.
    let list: BTreeSet<&str> = list.into_iter().filter(|name| *name != "released").collect();
    assert_eq!(&list | &BTreeSet::from(["error"]), frames);

    let shown =
        examples("Frames down").into_iter().map(|frame| frame["type"].as_str().unwrap().to_owned());
    assert_eq!(shown.collect::<BTreeSet<_>>(), frames.into_iter().map(str::to_owned).collect());
}

#[test]
fn every_frame_up_that_is_shown_is_taken() {
    let mut shown = BTreeSet::new();
    for example in examples("Frames up") {
        shown.insert(example["type"].as_str().unwrap().to_owned());
        match frame::parse(&example.to_string()).frame {
            Err(refusal) => panic!("{example}: {refusal:?}"),
            Ok(ClientFrame::Subscribe(each)) => {
                assert!(each.iter().all(Result::is_ok), "{example}")
            }
            Ok(ClientFrame::Unsubscribe(each)) => {
                assert!(each.iter().all(Result::is_ok), "{example}")
            }
            Ok(_) => {}
        }
    }
    let rows = table("| `type` | fields | answered by |");
    let described: BTreeSet<String> =
        rows.iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
    for name in described.difference(&shown) {
        assert!(["ping", "pong"].contains(&name.as_str()), "`{name}` has no example");
    }
    assert_eq!(
        shown.difference(&described).count(),
        0,
        "an example of a frame that is not described"
    );
}

/// The conversation of an agent: each frame is one that the parsers take, written as they write it.
#[test]
fn an_agents_conversation_is_one_that_both_ends_understand() {
    let mut calls = BTreeSet::new();
    for example in examples("Agents without Redis") {
        let text = example.to_string();
        let again = match AgentCall::parse(&text) {
            Ok(call) => {
                assert!(calls.insert(call.id), "the id of {example} is used twice");
                call.to_text()
            }
            // It is refused, as the conversation shows.
            Err(error) if error.code == ErrorCode::ReservedName => continue,
            Err(_) => AgentMessage::parse(&text).unwrap().expect("a known message").to_text(),
        };
        assert_eq!(serde_json::from_str::<Value>(&again).unwrap(), example);
    }
    assert!(calls.len() > 10);
}

#[test]
fn every_example_is_json_and_every_link_leads_somewhere() {
    for heading in DOC.lines().filter_map(|line| line.strip_prefix("## ")) {
        examples(heading);
    }
    for link in DOC.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        if let Some(anchor) = link.strip_prefix('#') {
            let leads = |line: &str| {
                line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-") == anchor
            };
            assert!(DOC.lines().filter(|line| line.starts_with('#')).any(leads), "{link}");
        } else {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(link);
            assert!(path.exists(), "{link}");
        }
    }
}

#[test]
fn the_names_in_redis_show_the_right_partition() {
    let channel: Channel = "session:42".parse().unwrap();
    let right = format!(":{{{}}}:", partition_tag(channel.partition()));
    let shown = DOC.split("`relay:").skip(1).filter_map(|rest| rest.split('`').next());
    let with_partition: Vec<&str> = shown.filter(|name| name.contains('{')).collect();
    assert!(with_partition.len() >= 8, "{with_partition:?}");
    for name in with_partition {
        assert!(format!(":{name}").contains(&right), "{name}");
    }
}

/// The rows of the table under `header`, cell by cell.
fn table(header: &str) -> Vec<Vec<String>> {
    let mut lines = DOC.lines().skip_while(|line| *line != header);
    assert_eq!(lines.next(), Some(header), "PROTOCOL.md has no such table");
    assert!(
        lines.next().is_some_and(|line| line.starts_with("|---")),
        "a table has a rule: {header}"
    );
    let rows = lines.take_while(|line| line.starts_with('|')).map(|line| {
        let cells = line.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().to_owned()).collect()
    });
    rows.collect()
}

/// The JSON values, one per line, in the `json` blocks of a section.
fn examples(heading: &str) -> Vec<Value> {
    let section = DOC.lines().skip_while(|line| *line != format!("## {heading}")).skip(1);
    let (mut inside, mut values) = (false, Vec::new());
    for line in section.take_while(|line| !line.starts_with("## ")) {
        match line {
            "```json" => inside = true,
            "```" => inside = false,
            _ if inside => {
                let value = serde_json::from_str(line).map_err(|error| format!("{error}: {line}"));
                values.push(value.expect("an example is JSON"));
            }
            _ => {}
        }
    }
    values
}

/// How a limit is written for people.
trait Shown {
    fn shown(&self, name: &str) -> String;
}

impl Shown for usize {
    fn shown(&self, name: &str) -> String {
        let unit = match name {
            _ if name.contains("_BYTES_") => " bytes",
            _ if name.contains("_CHARS_") => " characters",
            _ => "",
        };
        format!("{}{unit}", in_thousands(*self))
    }
}

impl Shown for u64 {
    fn shown(&self, _: &str) -> String {
        in_thousands(self)
    }
}

impl Shown for Duration {
    fn shown(&self, _: &str) -> String {
        assert_eq!(self.subsec_nanos(), 0, "a limit in whole seconds");
        format!("{} s", in_thousands(self.as_secs()))
    }
}

fn in_thousands(number: impl Display) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(|group| String::from_utf8_lossy(group));
    groups.collect::<Vec<_>>().join(",")
}
