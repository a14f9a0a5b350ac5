//! Frames up: what a browser may ask, and the `error` that answers each mistake.
//!
//! A frame is read in two steps, its fields first and then what its `type` asks for, so that every mistake
//! can be answered with an `error` that names the field.

mod address;
mod ask;
mod fields;

use std::fmt;
use std::time::Duration;

use serde_json::value::RawValue;
use uuid::Uuid;

use super::Resolution;
use crate::channel::shortened;
use crate::{Asks, Channel, ErrorCode, Format, Offset};
use fields::Fields;

/// The `id` of a frame: any JSON string or number; it comes back on the answer, unchanged.
pub type CorrelationId = Box<RawValue>;

/// A frame that could be read as JSON: who is to be answered, and what is asked or what is wrong.
#[derive(Debug)]
pub struct Incoming {
    /// Comes back on the answer.
    pub id: Option<CorrelationId>,
    /// What the browser asks, or the `error` that answers it.
    pub frame: Result<ClientFrame, Refusal>,
    /// Whether it is an object with a `type` that the relay knows.
    pub is_readable: bool,
}

/// Why something asked for is not done: becomes an `error` frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of mistake.
    pub code: ErrorCode,
    /// Which field, which value, which limit.
    pub message: String,
    /// The channel it is about, as the browser wrote it.
    pub channel: Option<String>,
    /// What was decided before, where that is why.
    pub resolution: Option<Resolution>,
    /// When to try again, where that is known.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// A refusal that is about no channel in particular.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), channel: None, resolution: None, retry_after: None }
    }

    /// Missing and not granted look the same: `what` is how it was named.
    pub fn not_found(what: impl fmt::Display) -> Self {
        Self::new(ErrorCode::NotFound, format!("{what} not found or not permitted"))
    }

    /// The same, about `channel`.
    pub fn about(self, channel: impl Into<String>) -> Self {
        Self { channel: Some(channel.into()), ..self }
    }
}

/// How a browser named a channel, and so how it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addressing {
    /// `channel: "session:42"`
    Channel,
    /// `sessionId: "42"`; such a subscription is flat unless it says otherwise.
    SessionId,
    /// `plan_id: "42"`; such a subscription is flat unless it says otherwise.
    PlanId,
}

/// A channel and how it was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The channel.
    pub channel: Channel,
    /// How it was named.
    pub addressing: Addressing,
}

/// Where delivery shall start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// Everything retained.
    Start,
    /// After this position.
    Offset(Offset),
}

/// One channel of a `subscribe`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe {
    /// What to subscribe to.
    pub target: Target,
    /// Where to start; absent: at the head.
    pub since: Option<Since>,
    /// In which format; absent: the default of the route and the addressing.
    pub format: Option<Format>,
}

/// What a browser asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientFrame {
    /// Follow channels. A channel that cannot be read as one is refused alone.
    Subscribe(Vec<Result<Subscribe, Refusal>>),
    /// Stop following channels.
    Unsubscribe(Vec<Result<Target, Refusal>>),
    /// Asks for a `pong`.
    Ping,
    /// Needs no answer.
    Pong,
    /// `cancel_agent` and `command`: a command for the agent behind a channel.
    Command(Command),
    /// `permission_response`, `budget_continue`, `budget_stop`: an answer to an approval.
    Answer(Answer),
    /// A command that wants a reply.
    Request(Request),
    /// A token takes the place of the one before.
    Auth(AuthToken),
}

/// A token in a frame. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthToken(Box<str>);

impl AuthToken {
    /// The token `text`.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AuthToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthToken(***)")
    }
}

impl ClientFrame {
    /// Whether it is a Cancel or an answer: what a person decides, and nothing else may hinder.
    pub fn decides(&self) -> bool {
        matches!(self, Self::Command(Command { cancels: Some(_), .. }) | Self::Answer(_))
    }
}

/// A command on its way to an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Whose agent.
    pub channel: Channel,
    /// What to do.
    pub name: String,
    /// With which arguments: JSON.
    pub data: String,
    /// Makes it happen once, however often it is sent.
    pub command_id: Uuid,
    /// How long an agent may leave it before it begins.
    pub expires_in: Duration,
    /// Whether it may wait for an agent that is not there now.
    pub may_wait: bool,
    /// What it cancels, where it is a Cancel.
    pub cancels: Option<Cancels>,
}

/// What a Cancel cancels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cancels {
    /// One run; absent: all that the agent runs.
    pub run_id: Option<String>,
    /// Why.
    pub reason: Option<String>,
}

/// An answer to an approval. It needs no address where only one approval of its id may be meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Which approval.
    pub request_id: String,
    /// Where it was asked.
    pub channel: Option<Channel>,
    /// What sort of approval it answers.
    pub asks: Asks,
    /// Allowed, or go on.
    pub allowed: bool,
    /// And so from now on.
    pub always: bool,
    /// Why.
    pub reason: Option<String>,
    /// The digest of what was shown.
    pub digest: Option<String>,
    /// The same answer sent again is the same answer.
    pub command_id: Uuid,
}

/// A request to one worker of a service, or to an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where it goes: the address given, or the service that the method's first word names.
    pub channel: Channel,
    /// What is wanted.
    pub method: String,
    /// With which arguments: JSON.
    pub params: String,
    /// How long the reply is waited for.
    pub timeout: Duration,
    /// The same request sent again gets the same reply.
    pub command_id: Uuid,
}

/// Reads a frame from a browser.
pub fn parse(text: &str) -> Incoming {
    read(text, None)
}

/// Reads the body of an HTTP call: a frame whose `type` may be left out, then it is `default`, and whose
/// answer needs no `id`.
pub fn parse_body(text: &str, default: &'static str) -> Incoming {
    read(text, Some(default))
}

fn read(text: &str, default: Option<&'static str>) -> Incoming {
    let fields = match Fields::read(text, default) {
        Ok(fields) => fields,
        Err(refusal) => return Incoming { id: None, frame: Err(refusal), is_readable: false },
    };
    let known = fields.kind().map(|kind| match fields.frame(&kind) {
        Some(frame) => (frame, true),
        None => (Err(bad(format!("unknown `type` `{}`", shortened(&kind)))), false),
    });
    let (frame, is_readable) = known.unwrap_or_else(|refusal| (Err(refusal), false));
    match fields.correlation_id() {
        Ok(id) => Incoming { id, frame, is_readable },
        // The answer is not found by it; a Stop is done all the same.
        Err(_) if frame.as_ref().is_ok_and(ClientFrame::decides) => {
            Incoming { id: None, frame, is_readable }
        }
        Err(refusal) => Incoming { id: None, frame: Err(refusal), is_readable },
    }
}

/// Reads a `since` from a query string, where only one channel is meant.
///
/// # Errors
/// A `bad_request` that quotes the value.
pub fn parse_since(text: &str) -> Result<Since, Refusal> {
    if text == "start" {
        return Ok(Since::Start);
    }
    text.parse().map(Since::Offset).map_err(|error: crate::OffsetError| bad(error.to_string()))
}

/// Reads a `format`.
///
/// # Errors
/// A `bad_request` that quotes the value.
pub fn parse_format(text: &str) -> Result<Format, Refusal> {
    match text {
        "envelope" => Ok(Format::Envelope),
        "flat" => Ok(Format::Flat),
        _ => Err(bad(format!("`format` must be `envelope` or `flat`, not `{}`", shortened(text)))),
    }
}

fn bad(message: impl Into<String>) -> Refusal {
    Refusal::new(ErrorCode::BadRequest, message)
}
