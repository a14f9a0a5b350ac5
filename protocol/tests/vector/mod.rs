//! How a vector file is read: strictly, and with the few abbreviations that keep it readable.

pub(crate) mod agents;
pub(crate) mod up;

use std::path::Path;

use protocol::frame::{Addressing, ErrorBody, Outcome, RelayFrame, Resolution, Target};
use protocol::{Channel, ErrorCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

/// Where the vectors are.
pub(crate) const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/vectors");

/// The whole of one vector file.
pub(crate) fn load<T: DeserializeOwned>(name: &str) -> T {
    let text = std::fs::read_to_string(Path::new(FOLDER).join(name)).expect(name);
    serde_json::from_str(&text)
        .map_err(|error| format!("{name}: {error}"))
        .expect("a readable vector file")
}

/// Cases of one section: at least one.
#[derive(Deserialize)]
#[serde(try_from = "Vec<T>")]
pub(crate) struct Cases<T>(Vec<T>);

impl<T> TryFrom<Vec<T>> for Cases<T> {
    type Error = &'static str;

    fn try_from(cases: Vec<T>) -> Result<Self, Self::Error> {
        if cases.is_empty() {
            Err("a section without cases proves nothing")
        } else {
            Ok(Self(cases))
        }
    }
}

impl<T> IntoIterator for Cases<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// A number that is written as a string, because not every JSON reader keeps 64 bits.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Number(pub(crate) u64);

impl TryFrom<String> for Number {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

/// A text, or the parts that make it up.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Text {
    Plain(String),
    Parts(Vec<Part>),
}

/// A part of a text: as it stands, or repeated.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Part {
    Once(String),
    Times(String, usize),
}

impl Text {
    /// The text in full.
    pub(crate) fn join(&self) -> String {
        match self {
            Self::Plain(text) => text.clone(),
            Self::Parts(parts) => parts
                .iter()
                .map(|part| match part {
                    Part::Once(text) => text.clone(),
                    Part::Times(text, times) => text.repeat(*times),
                })
                .collect(),
        }
    }
}

/// Whether `found` is what is `expected` under `key`: a part of a message, any UUID for `*`, the same
/// elsewhere.
pub(crate) fn holds(key: &str, expected: &Value, found: &Value) -> bool {
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            let same = |(key, value): (&String, &Value)| {
                found.get(key).is_some_and(|found| holds(key, value, found))
            };
            expected.len() == found.len() && expected.iter().all(same)
        }
        (Value::Array(expected), Value::Array(found)) => {
            expected.len() == found.len()
                && expected.iter().zip(found).all(|(expected, found)| holds(key, expected, found))
        }
        (Value::String(expected), Value::String(found)) if key == "message" => {
            !expected.is_empty() && found.contains(expected)
        }
        (Value::String(expected), Value::String(found))
            if key == "command_id" && expected == "*" =>
        {
            Uuid::parse_str(found).is_ok_and(|id| id.get_version_num() == 4)
        }
        _ => expected == found,
    }
}

/// A frame down and its text.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Down {
    pub(crate) name: String,
    pub(crate) frame: Plain,
    pub(crate) text: String,
}

/// A frame down in plain values.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Plain {
    Connected {
        connection_id: String,
        user: Option<String>,
        server_time: u64,
        ping_interval_ms: u64,
    },
    Subscribed {
        id: Id,
        target: Named,
        offset: Option<String>,
        head: Option<String>,
        recovered: bool,
        #[serde(default)]
        truncated: bool,
        pending: Option<Box<str>>,
        #[serde(default)]
        pending_more: bool,
    },
    Unsubscribed {
        id: Id,
        target: Named,
        reason: Option<String>,
    },
    Authenticated {
        id: Id,
        expires_at: u64,
    },
    CaughtUp {
        target: Named,
        offset: Option<String>,
    },
    Reset {
        target: Named,
        reason: String,
        offset: Option<String>,
        head: Option<String>,
        #[serde(default)]
        truncated: bool,
        pending: Option<Box<str>>,
        #[serde(default)]
        pending_more: bool,
    },
    Pending {
        target: Named,
        pending: Box<str>,
        more: bool,
    },
    Ack {
        id: Id,
        command_id: Uuid,
        status: String,
        listeners: u64,
        #[serde(default)]
        queued: bool,
        #[serde(default = "yes")]
        known: bool,
        reached: Option<u64>,
        of: Option<u64>,
        detail: Option<Box<str>>,
    },
    Response {
        id: Id,
        command_id: Uuid,
        result: Option<Box<str>>,
        error: Option<Failure>,
    },
    RequestProgress {
        id: Id,
        command_id: Uuid,
        data: Id,
    },
    Error {
        id: Id,
        channel: Option<String>,
        code: String,
        message: String,
        resolution: Option<Resolved>,
        retry_after_ms: Option<u64>,
    },
    Pong {
        id: Id,
    },
    Ping {},
    RelayStatus {
        redis: String,
    },
    TokenExpiring {
        in_ms: u64,
    },
    Reconnect {
        after_ms: u64,
    },
}

/// What a worker says of its failure, in its own words.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Failure {
    code: String,
    message: String,
    retryable: bool,
}

/// How an approval was decided.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resolved {
    by: Option<Box<str>>,
    at: u64,
    decision: String,
}

impl Resolved {
    fn resolution(&self) -> Resolution {
        let known = ["allowed", "denied", "continue", "stop"];
        let decision = known.into_iter().find(|known| *known == self.decision).expect("a decision");
        Resolution { by: self.by.clone(), at: self.at, decision }
    }
}

/// The JSON text of an id.
type Id = Option<Box<str>>;

/// A channel and how it was named.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Named {
    channel: String,
    addressing: String,
}

impl Plain {
    /// The text of the frame as the relay writes it.
    pub(crate) fn to_text(&self) -> String {
        let raw = |id: &Id| id.as_ref().map(|id| json(id));
        match self {
            Self::Connected { connection_id, user, server_time, ping_interval_ms } => {
                RelayFrame::Connected {
                    connection_id,
                    user: user.as_deref(),
                    server_time: *server_time,
                    ping_interval_ms: *ping_interval_ms,
                }
                .to_text()
            }
            Self::Subscribed {
                id,
                target,
                offset,
                head,
                recovered,
                truncated,
                pending,
                pending_more,
            } => RelayFrame::Subscribed {
                id: raw(id).as_deref(),
                channel: target.target().named(),
                offset: offset.clone(),
                head: head.clone(),
                recovered: *recovered,
                truncated: *truncated,
                pending: raw(pending).as_deref(),
                pending_more: *pending_more,
            }
            .to_text(),
            Self::Unsubscribed { id, target, reason } => RelayFrame::Unsubscribed {
                id: raw(id).as_deref(),
                channel: target.target().named(),
                reason: reason.as_deref(),
            }
            .to_text(),
            Self::Authenticated { id, expires_at } => {
                let (id, expires_at) = (raw(id), *expires_at);
                RelayFrame::Authenticated { id: id.as_deref(), expires_at }.to_text()
            }
            Self::CaughtUp { target, offset } => {
                RelayFrame::CaughtUp { channel: target.target().named(), offset: offset.clone() }
                    .to_text()
            }
            Self::Reset { target, reason, offset, head, truncated, pending, pending_more } => {
                RelayFrame::Reset {
                    channel: target.target().named(),
                    reason,
                    offset: offset.clone(),
                    head: head.clone(),
                    truncated: *truncated,
                    pending: raw(pending).as_deref(),
                    pending_more: *pending_more,
                }
                .to_text()
            }
            Self::Pending { target, pending, more } => RelayFrame::Pending {
                channel: target.target().named(),
                pending: &raw(&Some(pending.clone())).expect("a list"),
                more: *more,
            }
            .to_text(),
            Self::Ack { id, command_id, status, listeners, queued, known, reached, of, detail } => {
                RelayFrame::Ack {
                    id: raw(id).as_deref(),
                    command_id: *command_id,
                    status,
                    listeners: *listeners,
                    queued: *queued,
                    known: *known,
                    reached: *reached,
                    of: *of,
                    detail: raw(detail).as_deref(),
                }
                .to_text()
            }
            Self::Response { id, command_id, result, error } => {
                let result = raw(result);
                let outcome = match error {
                    None => Outcome::Result(result.as_deref().expect("a result or an error")),
                    Some(Failure { code, message, retryable }) => {
                        let (resolution, retry_after_ms) = (None, None);
                        let retryable = *retryable;
                        Outcome::Error(ErrorBody {
                            code,
                            message,
                            retryable,
                            resolution,
                            retry_after_ms,
                        })
                    }
                };
                let (id, command_id) = (raw(id), *command_id);
                RelayFrame::Response { id: id.as_deref(), command_id, outcome }.to_text()
            }
            Self::RequestProgress { id, command_id, data } => {
                let (id, data) = (raw(id).expect("an id"), raw(data).expect("data"));
                RelayFrame::RequestProgress { id: &id, command_id: *command_id, data: &data }
                    .to_text()
            }
            Self::Error { id, channel, code: name, message, resolution, retry_after_ms } => {
                let resolution = resolution.as_ref().map(Resolved::resolution);
                let body = ErrorBody::new(code(name), message);
                let retry_after_ms = *retry_after_ms;
                let error = ErrorBody { resolution: resolution.as_ref(), retry_after_ms, ..body };
                let id = raw(id);
                let channel = channel.as_deref();
                RelayFrame::Error { id: id.as_deref(), channel, error }.to_text()
            }
            Self::Pong { id } => RelayFrame::Pong { id: raw(id).as_deref() }.to_text(),
            Self::Ping {} => RelayFrame::Ping.to_text(),
            Self::RelayStatus { redis } => RelayFrame::RelayStatus { redis }.to_text(),
            Self::TokenExpiring { in_ms } => RelayFrame::TokenExpiring { in_ms: *in_ms }.to_text(),
            Self::Reconnect { after_ms } => RelayFrame::Reconnect { after_ms: *after_ms }.to_text(),
        }
    }
}

impl Named {
    fn target(&self) -> Target {
        let addressing = match self.addressing.as_str() {
            "channel" => Addressing::Channel,
            "sessionId" => Addressing::SessionId,
            other => {
                assert_eq!(other, "plan_id", "an addressing");
                Addressing::PlanId
            }
        };
        let channel: Channel = self.channel.parse().expect("a channel");
        Target { channel, addressing }
    }
}

fn json(text: &str) -> Box<RawValue> {
    serde_json::from_str(text).expect("an id is JSON text")
}

fn code(name: &str) -> ErrorCode {
    let known = ErrorCode::ALL.iter().find(|code| code.as_str() == name);
    *known.expect("an error code")
}

fn yes() -> bool {
    true
}
