//! What an agent behind a relay sends: calls. One envelope, then a match on `type`.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::body::{
    AskCall, EndRunCall, FinishCall, FollowCall, LeaseCall, NoteCall, ProgressCall, ResolveCall,
    TakeCall, UnaskCall, WithdrawCall,
};
use super::message::{AgentError, AgentMessage};
use super::record::{Parent, Status};
use crate::frame::{AuthToken, Since, words};
use crate::integer::Integer;
use crate::limits::{
    AGENT_FRAME_BYTES_MAX, AGENT_NUMBER_MAX, APPROVAL_ID_BYTES_MAX, RUN_ID_BYTES_MAX,
};
use crate::{
    Channel, DataError, ErrorCode, Object, check_data, check_detail, check_event_name,
    check_idempotency_key, check_question, json_error,
};

/// A call.
#[derive(Clone, Debug)]
pub struct AgentCall {
    /// Comes back on the reply. Ascends over all connections of the agent.
    pub id: u64,
    /// About which channel.
    pub channel: Channel,
    /// What is asked.
    pub body: CallBody,
}

/// What an agent sends: a call, or a token.
#[derive(Clone, Debug)]
pub enum AgentFrame {
    /// A call.
    Call(AgentCall),
    /// A token takes the place of the one before.
    Auth {
        /// Comes back on the reply.
        id: u64,
        /// The token.
        token: AuthToken,
    },
}

impl AgentFrame {
    /// Reads a frame.
    ///
    /// # Errors
    /// [`CallError`], with the frame's `id` where it could be read.
    pub fn parse(text: &str) -> Result<Self, CallError> {
        let Object(fields): Object<RawFields<'_>> =
            serde_json::from_str(text).map_err(|error| {
                let (id, code) = (None, ErrorCode::BadRequest);
                let message = format!("the frame is not a call: {}", json_error(&error));
                CallError { id, code, message }
            })?;
        let id = fields.id.and_then(|id| serde_json::from_str::<Integer>(id.get()).ok());
        let id = id.map(|Integer(id)| id).filter(|id| *id <= AGENT_NUMBER_MAX);
        let refuse = |(code, message)| CallError { id, code, message };
        if text.len() > AGENT_FRAME_BYTES_MAX {
            let message = format!("the frame has more than {AGENT_FRAME_BYTES_MAX} bytes");
            return Err(refuse((ErrorCode::TooLarge, message)));
        }
        let id = id.ok_or_else(|| {
            refuse(bad(format!("`id` must be a number from 0 to {AGENT_NUMBER_MAX}")))
        })?;
        let kind: String = required("type", fields.kind).map_err(refuse)?;
        if kind == "auth" {
            let token = AuthToken::new(required("token", fields.token).map_err(refuse)?);
            return Ok(Self::Auth { id, token });
        }
        let channel: String = required("channel", fields.channel).map_err(refuse)?;
        let channel =
            channel.parse().map_err(|error| refuse(bad(format!("`channel`: {error}"))))?;
        let body = fields.body(&kind).map_err(refuse)?;
        Ok(Self::Call(AgentCall { id, channel, body }))
    }

    /// The text of the frame that brings a token.
    pub fn auth_text(id: u64, token: &str) -> String {
        serde_json::json!({"type": "auth", "id": id, "token": token}).to_string()
    }
}

/// What an agent asks of the relay.
#[derive(Clone, Debug)]
pub enum CallBody {
    /// Hold the lease of this channel, as long as the connection lasts; the agent's own channel first.
    Lease(LeaseCall),
    /// Keep in the lease which runs are open and which channels are served.
    Note(NoteCall),
    /// Give the lease up.
    Release,
    /// Append an event: its name, and its data.
    Publish(Box<str>, Box<str>),
    /// Append the event that ends a run, and take the run out of the lease, in one step.
    EndRun(EndRunCall),
    /// Send the channel's commands from a position on.
    Follow(Since),
    /// Send them no more.
    Unfollow,
    /// Take a command, before it is begun.
    Take(TakeCall),
    /// Say how far a request has come.
    Progress(ProgressCall),
    /// Say what became of a command.
    Finish(FinishCall),
    /// Ask a question.
    Ask(AskCall),
    /// Answer a question.
    Resolve(ResolveCall),
    /// Wait for the answer to a question no more.
    Unask(UnaskCall),
    /// Declare the agent a child of another.
    Adopt(Parent),
    /// Take that back.
    Disown(Parent),
    /// A call is given up: it is not begun if it was not.
    Withdraw(WithdrawCall),
}

/// Why a frame is not a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallError {
    /// The call's id, where it could be read.
    pub id: Option<u64>,
    /// What is wrong.
    pub code: ErrorCode,
    /// Which field, and why.
    pub message: String,
}

impl CallError {
    /// The `error` that says so.
    pub fn to_message(&self) -> AgentMessage {
        let error = AgentError::new(self.code, self.message.clone());
        AgentMessage::Error { id: self.id, error }
    }
}

/// The fields of a call, not looked into yet.
#[derive(Deserialize)]
struct RawFields<'a> {
    #[serde(borrow, rename = "type", default)]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    channel: Option<&'a RawValue>,
    #[serde(borrow, default)]
    token: Option<&'a RawValue>,
    #[serde(borrow, default)]
    event: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
}

/// `null` is data; what is absent is not.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

type Refused = (ErrorCode, String);

impl AgentCall {
    /// Reads a frame that is a call.
    ///
    /// # Errors
    /// [`CallError`], with the call's `id` where it could be read.
    pub fn parse(text: &str) -> Result<Self, CallError> {
        match AgentFrame::parse(text)? {
            AgentFrame::Call(call) => Ok(call),
            AgentFrame::Auth { id, .. } => {
                let (id, code) = (Some(id), ErrorCode::BadRequest);
                Err(CallError { id, code, message: "`auth` is not a call".to_owned() })
            }
        }
    }

    /// The `type` on the wire.
    pub fn kind(&self) -> &'static str {
        match self.body {
            CallBody::Lease(_) => "lease",
            CallBody::Note(_) => "note",
            CallBody::Release => "release",
            CallBody::Publish(..) => "publish",
            CallBody::EndRun(_) => "end_run",
            CallBody::Follow(_) => "follow",
            CallBody::Unfollow => "unfollow",
            CallBody::Take(_) => "take",
            CallBody::Progress(_) => "progress",
            CallBody::Finish(_) => "finish",
            CallBody::Ask(_) => "ask",
            CallBody::Resolve(_) => "resolve",
            CallBody::Unask(_) => "unask",
            CallBody::Adopt(_) => "adopt",
            CallBody::Disown(_) => "disown",
            CallBody::Withdraw(_) => "withdraw",
        }
    }

    /// The frame as JSON text.
    pub fn to_text(&self) -> String {
        #[derive(Serialize)]
        struct Envelope<'a> {
            #[serde(rename = "type")]
            kind: &'a str,
            id: u64,
            channel: &'a Channel,
            #[serde(skip_serializing_if = "Option::is_none")]
            event: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            data: Option<Box<RawValue>>,
        }
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap_or_default();
        let (event, data) = match &self.body {
            CallBody::Publish(event, data) => (Some(&**event), Some(raw(data))),
            CallBody::Release | CallBody::Unfollow => (None, None),
            CallBody::Lease(body) => (None, Some(json(body))),
            CallBody::Note(body) => (None, Some(json(body))),
            CallBody::EndRun(body) => (None, Some(json(body))),
            CallBody::Follow(since) => (None, Some(json(&FollowCall::of(since)))),
            CallBody::Take(body) => (None, Some(json(body))),
            CallBody::Progress(body) => (None, Some(json(body))),
            CallBody::Finish(body) => (None, Some(json(body))),
            CallBody::Ask(body) => (None, Some(json(body))),
            CallBody::Resolve(body) => (None, Some(json(body))),
            CallBody::Unask(body) => (None, Some(json(body))),
            CallBody::Adopt(body) | CallBody::Disown(body) => (None, Some(json(body))),
            CallBody::Withdraw(body) => (None, Some(json(body))),
        };
        let (kind, id, channel) = (self.kind(), self.id, &self.channel);
        serde_json::to_string(&Envelope { kind, id, channel, event, data }).expect("plain data")
    }
}

impl RawFields<'_> {
    fn body(&self, kind: &str) -> Result<CallBody, Refused> {
        Ok(match kind {
            "lease" => {
                let body: LeaseCall = self.optional()?;
                if body.incarnation.is_some_and(|it| !(1..=AGENT_NUMBER_MAX).contains(&it)) {
                    return Err(bad(format!(
                        "`incarnation` must be a number from 1 to {AGENT_NUMBER_MAX}"
                    )));
                }
                body.parent.as_ref().map_or(Ok(()), check_parent)?;
                CallBody::Lease(body)
            }
            "note" => {
                let body: NoteCall = self.data()?;
                body.runs.added.iter().try_for_each(|run_id| check_run_id(run_id))?;
                CallBody::Note(body)
            }
            "release" => CallBody::Release,
            "publish" => {
                let event: String = required("event", self.event)?;
                let data = self.data.ok_or_else(|| bad("`data` is missing"))?.get();
                check_event(&event, data)?;
                CallBody::Publish(event.into(), data.into())
            }
            "end_run" => {
                let body: EndRunCall = self.data()?;
                check_run_id(&body.run_id)?;
                check_idempotency_key(&body.key).map_err(|error| bad(format!("`key`: {error}")))?;
                check_event(&body.event, body.data.get())?;
                CallBody::EndRun(body)
            }
            "follow" => {
                let body: FollowCall = self.optional()?;
                let since = crate::frame::parse_since(body.since.as_deref().unwrap_or("start"));
                CallBody::Follow(since.map_err(|refusal| bad(refusal.message))?)
            }
            "unfollow" => CallBody::Unfollow,
            "take" => CallBody::Take(self.data()?),
            "progress" => {
                let body: ProgressCall = self.data()?;
                check_data(body.data.get()).map_err(refused_data)?;
                CallBody::Progress(body)
            }
            "finish" => {
                let body: FinishCall = self.data()?;
                if !matches!(body.status, Status::Applied | Status::Rejected) {
                    return Err(bad("`status` must be `applied` or `rejected`"));
                }
                if let Some(detail) = &body.detail {
                    check_detail(detail.get()).map_err(refused_data)?;
                }
                CallBody::Finish(body)
            }
            "ask" => {
                let body: AskCall = self.data()?;
                check_id(&body.request_id)?;
                check_question(body.question.get())
                    .map_err(|error| (error.code(), format!("`question`: {error}")))?;
                CallBody::Ask(body)
            }
            "resolve" => {
                let data = self.data.ok_or_else(|| bad("`data` is missing"))?.get();
                let data = words::repaired(data);
                let mut body: ResolveCall = serde_json::from_str(&data).map_err(unreadable)?;
                check_id(&body.request_id)?;
                let reason = body.answer.reason.take();
                body.answer.reason = reason.map(|words| words::cut(words.into()).into());
                CallBody::Resolve(body)
            }
            "unask" => {
                let body: UnaskCall = self.data()?;
                check_id(&body.request_id)?;
                CallBody::Unask(body)
            }
            "adopt" => CallBody::Adopt(self.parent()?),
            "disown" => CallBody::Disown(self.parent()?),
            "withdraw" => CallBody::Withdraw(self.data()?),
            other => {
                let other: String = other.chars().take(64).collect();
                return Err(bad(format!("`{other}` is not a call")));
            }
        })
    }

    fn data<T: DeserializeOwned>(&self) -> Result<T, Refused> {
        let data = self.data.ok_or_else(|| bad("`data` is missing"))?.get();
        let data: Result<Object<T>, _> = serde_json::from_str(data);
        data.map(|Object(data)| data).map_err(unreadable)
    }

    /// Data in which every field may be absent.
    fn optional<T: DeserializeOwned + Default>(&self) -> Result<T, Refused> {
        let data = self.data.map_or("null", RawValue::get);
        let data: Result<Option<Object<T>>, _> = serde_json::from_str(data);
        let Object(data) = data.map_err(unreadable)?.unwrap_or_default();
        Ok(data)
    }

    fn parent(&self) -> Result<Parent, Refused> {
        let parent: Parent = self.data()?;
        check_parent(&parent)?;
        Ok(parent)
    }
}

fn check_parent(parent: &Parent) -> Result<(), Refused> {
    Channel::agent(&parent.agent_id).map_err(|error| bad(format!("`agent_id`: {error}")))?;
    parent.run_id.as_deref().map_or(Ok(()), check_run_id)
}

fn required(name: &str, field: Option<&RawValue>) -> Result<String, Refused> {
    let field = field.ok_or_else(|| bad(format!("`{name}` is missing")))?;
    serde_json::from_str(field.get()).map_err(|_| bad(format!("`{name}` must be a text")))
}

fn check_event(event: &str, data: &str) -> Result<(), Refused> {
    check_event_name(event).map_err(|error| (error.code(), format!("`event`: {error}")))?;
    check_data(data).map_err(refused_data)
}

/// Longer ones would not fit into the event that tells of the agent's death.
fn check_run_id(run_id: &str) -> Result<(), Refused> {
    if run_id.len() > RUN_ID_BYTES_MAX {
        let message = format!("`run_id` has more than {RUN_ID_BYTES_MAX} bytes");
        return Err((ErrorCode::TooLarge, message));
    }
    Ok(())
}

fn check_id(request_id: &str) -> Result<(), Refused> {
    if request_id.len() > APPROVAL_ID_BYTES_MAX {
        let message = format!("`request_id` has more than {APPROVAL_ID_BYTES_MAX} bytes");
        return Err((ErrorCode::TooLarge, message));
    }
    check_idempotency_key(request_id).map_err(|error| bad(format!("`request_id`: {error}")))
}

fn refused_data(error: DataError) -> Refused {
    (error.code(), format!("`data`: {error}"))
}

fn unreadable(error: serde_json::Error) -> Refused {
    bad(format!("`data`: {}", json_error(&error)))
}

fn bad(message: impl fmt::Display) -> Refused {
    (ErrorCode::BadRequest, message.to_string())
}

pub(super) fn json(body: &impl Serialize) -> Box<RawValue> {
    to_raw_value(body).expect("plain data")
}
