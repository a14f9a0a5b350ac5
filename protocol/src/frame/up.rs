//! Frames up: what a browser may ask, and the `error` that each mistake earns.
//!
//! A frame is read in two steps, its fields first and then what its `type` asks for, so that every mistake
//! can be answered with an `error` that names the field.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::channel::shortened;
use crate::limits::{CORRELATION_ID_BYTES_MAX, REQUEST_TIMEOUT_MAX, SUBSCRIPTIONS_MAX};
use crate::{Channel, ErrorCode, Format, Kind, Offset, check_command_name, check_data};

/// The `id` of a frame: any JSON string or number; it comes back on the answer, unchanged.
pub type CorrelationId = Box<RawValue>;

/// A frame that could be read as JSON: who is to be answered, and what is asked or what is wrong.
#[derive(Debug)]
pub struct Incoming {
    /// Comes back on the answer.
    pub id: Option<CorrelationId>,
    /// What the browser asks, or the `error` it earns.
    pub frame: Result<ClientFrame, Refusal>,
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
}

impl Refusal {
    /// A refusal that is about no channel in particular.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), channel: None }
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
    /// In which shape; absent: the default of the door and the addressing.
    pub format: Option<Format>,
}

/// What a browser asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientFrame {
    /// Follow channels. A channel that cannot be read as one is refused alone.
    Subscribe(Vec<Result<Subscribe, Refusal>>),
    /// Stop following channels.
    Unsubscribe(Vec<Result<Target, Refusal>>),
    /// Are you there?
    Ping,
    /// Needs no answer.
    Pong,
    /// `cancel_agent` and `command`: a command for the agent behind a channel.
    Command(Command),
    /// A command that wants a reply.
    Request(Request),
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
}

/// A request to one worker of a service, or to an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where it goes: the address given, or the service that the method's first word names.
    pub channel: Channel,
    /// What is wanted.
    pub method: String,
}

/// Reads a frame from a browser.
pub fn parse(text: &str) -> Incoming {
    let fields = match serde_json::from_str::<HashMap<String, &RawValue>>(text) {
        Ok(fields) => Fields(fields),
        Err(error) => {
            let message = if text.trim_start().starts_with('{') {
                format!("the frame is not well-formed JSON: {error}")
            } else {
                "a frame is one JSON object with a `type`".to_owned()
            };
            return Incoming { id: None, frame: Err(bad(message)) };
        }
    };
    match fields.correlation_id() {
        Ok(id) => Incoming { id, frame: fields.frame() },
        Err(refusal) => Incoming { id: None, frame: Err(refusal) },
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

/// Channels in one frame. Each earns an answer: what one frame makes the relay hold must be bounded.
const CHANNELS_MAX: usize = 4 * SUBSCRIPTIONS_MAX;

fn bad(message: impl Into<String>) -> Refusal {
    Refusal::new(ErrorCode::BadRequest, message)
}

/// The fields of a frame, each still raw.
struct Fields<'a>(HashMap<String, &'a RawValue>);

impl<'a> Fields<'a> {
    fn frame(&self) -> Result<ClientFrame, Refusal> {
        let kind = self.required_string("type")?;
        match kind.as_str() {
            "subscribe" => self.subscribe(),
            "unsubscribe" => Ok(ClientFrame::Unsubscribe(self.targets()?)),
            "ping" => Ok(ClientFrame::Ping),
            "pong" => Ok(ClientFrame::Pong),
            "cancel_agent" => self.cancel_agent(),
            "command" => self.command(),
            "request" => self.request(),
            "budget_continue" | "budget_stop" | "permission_response" | "auth" => {
                Err(Refusal::new(
                    ErrorCode::Unsupported,
                    format!("this relay does not take `{kind}` yet"),
                ))
            }
            _ => Err(bad(format!("unknown `type` `{}`", shortened(&kind)))),
        }
    }

    fn subscribe(&self) -> Result<ClientFrame, Refusal> {
        let format = self.string("format")?.map(|f| parse_format(&f)).transpose()?;
        let targets = self.targets()?;
        let since = self.since(targets.len())?;
        let subscribes = targets.into_iter().map(|target| {
            let target = target?;
            let since = match &since {
                SinceField::Absent => None,
                SinceField::All(since) => Some(*since),
                SinceField::Each(each) => match each.get(target.channel.as_str()) {
                    None => None,
                    Some(Ok(since)) => Some(*since),
                    Some(Err(refusal)) => {
                        return Err(refusal.clone().about(target.channel.as_str()));
                    }
                },
            };
            Ok(Subscribe { target, since, format })
        });
        Ok(ClientFrame::Subscribe(subscribes.collect()))
    }

    /// Every channel that the frame names, in whichever way.
    fn targets(&self) -> Result<Vec<Result<Target, Refusal>>, Refusal> {
        let mut named: Vec<(Addressing, String)> = Vec::new();
        if let Some(raw) = self.0.get("channels") {
            let channels: Option<Vec<String>> = serde_json::from_str(raw.get())
                .map_err(|_| bad("`channels` must be a list of strings"))?;
            named.extend(channels.into_iter().flatten().map(|name| (Addressing::Channel, name)));
        }
        named.extend(self.string("channel")?.map(|name| (Addressing::Channel, name)));
        named.extend(self.string("sessionId")?.map(|id| (Addressing::SessionId, id)));
        named.extend(self.string("plan_id")?.map(|id| (Addressing::PlanId, id)));
        if named.is_empty() {
            return Err(bad(
                "name at least one channel: `channels`, `channel`, `sessionId` or `plan_id`",
            ));
        }
        if named.len() > CHANNELS_MAX {
            let message =
                format!("{} channels in one frame, the limit is {CHANNELS_MAX}", named.len());
            return Err(Refusal::new(ErrorCode::LimitExceeded, message));
        }
        Ok(named.into_iter().map(|(addressing, name)| target(addressing, &name)).collect())
    }

    fn since(&self, channels: usize) -> Result<SinceField, Refusal> {
        let Some(raw) = self.0.get("since") else { return Ok(SinceField::Absent) };
        if let Some(since) = one_since(raw) {
            let since = since?;
            if matches!(since, Since::Offset(_)) && channels > 1 {
                return Err(bad(
                    "one offset cannot serve several channels: `since` must be {channel: offset}",
                ));
            }
            return Ok(SinceField::All(since));
        }
        let each: HashMap<String, &RawValue> = serde_json::from_str(raw.get())
            .map_err(|_| bad("`since` must be an offset, \"start\" or {channel: offset}"))?;
        let wrong = || Err(bad("each `since` must be an offset or \"start\""));
        let each = each.into_iter().map(|(name, raw)| (name, one_since(raw).unwrap_or_else(wrong)));
        Ok(SinceField::Each(each.collect()))
    }

    fn cancel_agent(&self) -> Result<ClientFrame, Refusal> {
        #[derive(Serialize)]
        struct Data<'a> {
            agent_id: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            reason: Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            run_id: Option<String>,
        }
        let agent_id = self.required_string("agent_id")?;
        let channel = agent(&agent_id)?;
        let data = Data {
            agent_id: &agent_id,
            reason: self.string("reason")?,
            run_id: self.string("run_id")?,
        };
        let data = serde_json::to_string(&data).expect("strings serialise");
        Ok(ClientFrame::Command(Command {
            channel,
            name: "cancel_agent".to_owned(),
            data,
            command_id: self.command_id()?,
        }))
    }

    fn command(&self) -> Result<ClientFrame, Refusal> {
        let channel = self.address()?.ok_or_else(|| {
            bad("say whom the command is for: `agent_id` or `channel` is missing")
        })?;
        let name = self.required_string("name")?;
        check_command_name(&name).map_err(|error| bad(error.to_string()))?;
        let data = self.0.get("data").map_or("{}", |raw| raw.get());
        check_data(data).map_err(|error| bad(format!("`data`: {error}")))?;
        Ok(ClientFrame::Command(Command {
            channel,
            name,
            data: data.to_owned(),
            command_id: self.command_id()?,
        }))
    }

    fn request(&self) -> Result<ClientFrame, Refusal> {
        if self.given("id").is_none() {
            return Err(bad("`id` is missing: the response could not be told from others"));
        }
        let method = self.required_string("method")?;
        check_command_name(&method).map_err(|error| bad(format!("`method`: {error}")))?;
        if let Some(raw) = self.given("timeout_ms") {
            let max = REQUEST_TIMEOUT_MAX.as_millis();
            let valid = raw.get().parse().is_ok_and(|ms: u128| (1..=max).contains(&ms));
            if !valid {
                return Err(bad(format!("`timeout_ms` must be a whole number from 1 to {max}")));
            }
        }
        let channel = match self.address()? {
            Some(channel) => channel,
            None => {
                let service = method.split('.').next().unwrap_or(&method);
                Channel::new(Kind::Service, service).map_err(|error| bad(error.to_string()))?
            }
        };
        Ok(ClientFrame::Request(Request { channel, method }))
    }

    /// The agent or the channel that a command or a request is addressed to.
    fn address(&self) -> Result<Option<Channel>, Refusal> {
        match (self.string("agent_id")?, self.string("channel")?) {
            (Some(_), Some(_)) => Err(bad("give `agent_id` or `channel`, not both")),
            (Some(id), None) => agent(&id).map(Some),
            (None, Some(name)) => name.parse().map(Some).map_err(|error: crate::ChannelError| {
                bad(error.to_string()).about(shortened(&name))
            }),
            (None, None) => Ok(None),
        }
    }

    fn command_id(&self) -> Result<Uuid, Refusal> {
        let Some(id) = self.string("command_id")? else { return Ok(Uuid::new_v4()) };
        Uuid::parse_str(&id)
            .map_err(|_| bad(format!("`command_id` must be a UUID, not `{}`", shortened(&id))))
    }

    fn correlation_id(&self) -> Result<Option<CorrelationId>, Refusal> {
        let Some(raw) = self.given("id") else { return Ok(None) };
        let text = raw.get();
        let is_plain = text.starts_with(|c: char| c == '"' || c == '-' || c.is_ascii_digit());
        if !is_plain || text.len() > CORRELATION_ID_BYTES_MAX {
            return Err(bad(format!(
                "`id` must be a string or a number of at most {CORRELATION_ID_BYTES_MAX} bytes"
            )));
        }
        Ok(Some(raw.to_owned()))
    }

    fn required_string(&self, name: &str) -> Result<String, Refusal> {
        self.string(name)?.ok_or_else(|| bad(format!("`{name}` is missing")))
    }

    /// A field that is there and not null.
    fn given(&self, name: &str) -> Option<&'a RawValue> {
        self.0.get(name).copied().filter(|raw| raw.get() != "null")
    }

    /// A field that, where it is there and not null, must be a string.
    fn string(&self, name: &str) -> Result<Option<String>, Refusal> {
        let Some(raw) = self.0.get(name) else { return Ok(None) };
        serde_json::from_str(raw.get()).map_err(|_| bad(format!("`{name}` must be a string")))
    }
}

enum SinceField {
    Absent,
    All(Since),
    Each(HashMap<String, Result<Since, Refusal>>),
}

/// `None` where the value is no single position at all.
fn one_since(raw: &RawValue) -> Option<Result<Since, Refusal>> {
    // An explicit null is a stored "nothing seen yet": everything retained.
    let text: Option<String> = serde_json::from_str(raw.get()).ok()?;
    Some(text.map_or(Ok(Since::Start), |text| parse_since(&text)))
}

fn target(addressing: Addressing, name: &str) -> Result<Target, Refusal> {
    let channel = match addressing {
        Addressing::Channel => name.parse(),
        Addressing::SessionId => Channel::session(name),
        Addressing::PlanId => Channel::new(Kind::Plan, name),
    };
    let refuse = |message: String| bad(message).about(shortened(name));
    let channel = channel.map_err(|error| refuse(error.to_string()))?;
    if channel.kind() == Kind::Service {
        return Err(refuse(
            "a service has no events to subscribe to: send it a `request`".to_owned(),
        ));
    }
    if channel == Channel::global_everyone() {
        return Err(refuse(
            "`global:everyone` reaches every connection without a subscription".to_owned(),
        ));
    }
    Ok(Target { channel, addressing })
}

fn agent(id: &str) -> Result<Channel, Refusal> {
    Channel::agent(id).map_err(|error| bad(format!("`agent_id`: {error}")))
}
