//! A frame's fields, each still raw, and how one is read: every mistake names its field.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::value::RawValue;
use uuid::Uuid;

use super::{AuthToken, ClientFrame, CorrelationId, Refusal, bad};
use crate::channel::shortened;
use crate::frame::words;
use crate::integer::Integer;
use crate::limits::CORRELATION_ID_BYTES_MAX;
use crate::{Channel, json_error};

/// The fields of a frame.
pub(super) struct Fields<'a> {
    fields: HashMap<String, &'a RawValue>,
    /// What the frame is where it does not say: the call that brought it does.
    pub(super) default: Option<&'static str>,
}

impl<'a> Fields<'a> {
    pub(super) fn read(text: &'a str, default: Option<&'static str>) -> Result<Self, Refusal> {
        let fields = serde_json::from_str(text).map_err(|error| {
            bad(if text.trim_start().starts_with('{') {
                format!("the frame is not well-formed JSON: {}", json_error(&error))
            } else {
                "a frame is one JSON object with a `type`".to_owned()
            })
        })?;
        Ok(Self { fields, default })
    }

    /// What the frame is.
    pub(super) fn kind(&self) -> Result<String, Refusal> {
        let kind = self.string("type")?.or_else(|| self.default.map(str::to_owned));
        kind.ok_or_else(|| bad("`type` is missing"))
    }

    /// The frame; `None` where the relay knows none of this `kind`.
    pub(super) fn frame(&self, kind: &str) -> Option<Result<ClientFrame, Refusal>> {
        Some(match kind {
            "subscribe" => self.subscribe(),
            "unsubscribe" => self.targets().map(ClientFrame::Unsubscribe),
            "ping" => Ok(ClientFrame::Ping),
            "pong" => Ok(ClientFrame::Pong),
            "cancel_agent" => self.cancel_agent(),
            "command" => self.command(),
            "permission_response" => self.permission_response(),
            "budget_continue" => self.budget(true),
            "budget_stop" => self.budget(false),
            "request" => self.request(),
            "auth" => {
                self.required_string("token").map(|token| ClientFrame::Auth(AuthToken::new(token)))
            }
            _ => return None,
        })
    }

    pub(super) fn correlation_id(&self) -> Result<Option<CorrelationId>, Refusal> {
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

    /// The agent or the channel that a command or a request is addressed to.
    pub(super) fn address(&self) -> Result<Option<Channel>, Refusal> {
        match (self.string("agent_id")?, self.string("channel")?) {
            (Some(_), Some(_)) => Err(bad("give `agent_id` or `channel`, not both")),
            (Some(id), None) => agent(&id).map(Some),
            (None, Some(name)) => named(&name).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// The channel on which a question was asked.
    pub(super) fn asked_on(&self) -> Result<Option<Channel>, Refusal> {
        match (self.string("channel")?, self.string("sessionId")?) {
            (Some(_), Some(_)) => Err(bad("give `channel` or `sessionId`, not both")),
            (Some(name), None) => named(&name).map(Some),
            (None, Some(id)) => Channel::session(&id)
                .map(Some)
                .map_err(|error| bad(format!("`sessionId`: {error}"))),
            (None, None) => Ok(None),
        }
    }

    pub(super) fn command_id(&self) -> Result<Uuid, Refusal> {
        let Some(id) = self.string("command_id")? else { return Ok(Uuid::new_v4()) };
        Uuid::parse_str(&id)
            .map_err(|_| bad(format!("`command_id` must be a UUID, not `{}`", shortened(&id))))
    }

    /// A field that is there, whatever it is.
    pub(super) fn raw(&self, name: &str) -> Option<&'a RawValue> {
        self.fields.get(name).copied()
    }

    /// A field that is there and not null.
    pub(super) fn given(&self, name: &str) -> Option<&'a RawValue> {
        self.raw(name).filter(|raw| raw.get() != "null")
    }

    /// A field that, where it is there and not null, must be a string.
    pub(super) fn string(&self, name: &str) -> Result<Option<String>, Refusal> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        serde_json::from_str(raw.get()).map_err(|_| bad(format!("`{name}` must be a string")))
    }

    pub(super) fn required_string(&self, name: &str) -> Result<String, Refusal> {
        self.string(name)?.ok_or_else(|| bad(format!("`{name}` is missing")))
    }

    /// A field that has two names, the one of the vocabulary's first users before ours.
    pub(super) fn either(&self, first: &'static str, second: &'static str) -> &'static str {
        if self.given(first).is_none() && self.given(second).is_some() { second } else { first }
    }

    /// A field that, where it is there and not null, must be true or false.
    pub(super) fn truth(&self, name: &str) -> Result<Option<bool>, Refusal> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        serde_json::from_str(raw.get()).map_err(|_| bad(format!("`{name}` must be true or false")))
    }

    /// A field that, where it is there and not null, must be so many milliseconds.
    pub(super) fn millis(&self, name: &str, most: Duration) -> Result<Option<Duration>, Refusal> {
        let Some(raw) = self.given(name) else { return Ok(None) };
        let most = most.as_millis();
        let ms: Option<Integer> = serde_json::from_str(raw.get()).ok();
        let ms = ms.filter(|Integer(ms)| (1..=most).contains(&u128::from(*ms)));
        let Integer(ms) =
            ms.ok_or_else(|| bad(format!("`{name}` must be a whole number from 1 to {most}")))?;
        Ok(Some(Duration::from_millis(ms)))
    }

    /// Why somebody wants it, in their words. No words hinder what is asked.
    pub(super) fn reason(&self) -> Option<String> {
        words::reason(self.raw("reason")?)
    }
}

fn named(name: &str) -> Result<Channel, Refusal> {
    name.parse().map_err(|error: crate::ChannelError| bad(error.to_string()).about(shortened(name)))
}

pub(super) fn agent(id: &str) -> Result<Channel, Refusal> {
    Channel::agent(id).map_err(|error| bad(format!("`agent_id`: {error}")))
}
