//! Frames that ask something of an agent: commands, answers to its approvals, requests.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::value::RawValue;

use super::fields::{Fields, agent};
use super::{Answer, Cancels, ClientFrame, Command, Refusal, Request, bad};
use crate::channel::shortened;
use crate::frame::words;
use crate::limits::{
    APPROVAL_ID_BYTES_MAX, CANCEL_WAIT, COMMAND_WAIT_DEFAULT, COMMAND_WAIT_MAX,
    REQUEST_TIMEOUT_DEFAULT, REQUEST_TIMEOUT_MAX,
};
use crate::{Asks, Channel, Kind, check_command_name, check_data, json_error};

/// The command that a Cancel is.
const CANCEL: &str = "cancel_agent";
/// The data of a Cancel that is passed on as it is: with all that is written around it, it stays within an entry.
const CANCEL_DATA_BYTES_MAX: usize = 32 * 1024;
/// Commands that say what the relay has settled: a frame of that type settles it, a `command` would only
/// pretend to.
const SETTLED: [&str; 4] = ["permission_response", "budget_continue", "budget_stop", "request"];

impl Fields<'_> {
    pub(super) fn cancel_agent(&self) -> Result<ClientFrame, Refusal> {
        #[derive(Serialize)]
        struct Data<'a> {
            agent_id: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            reason: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            run_id: Option<&'a str>,
        }
        let agent_id = self.required_string("agent_id")?;
        let channel = agent(&agent_id)?;
        let cancels = Cancels { run_id: self.string("run_id")?, reason: self.reason() };
        let (reason, run_id) = (cancels.reason.as_deref(), cancels.run_id.as_deref());
        let data = Data { agent_id: &agent_id, reason, run_id };
        let data = serde_json::to_string(&data).expect("strings serialise");
        self.sent(channel, CANCEL.to_owned(), data, Some(cancels))
    }

    pub(super) fn command(&self) -> Result<ClientFrame, Refusal> {
        let channel = self.address()?.ok_or_else(|| {
            bad("say whom the command is for: `agent_id` or `channel` is missing")
        })?;
        let name = self.required_string("name")?;
        check_command_name(&name).map_err(|error| bad(error.to_string()))?;
        if SETTLED.contains(&name.as_str()) {
            return Err(bad(format!("`{name}` is not a command: send a frame of that type")));
        }
        let data = self.raw("data").map_or("{}", |raw| raw.get());
        if name == CANCEL {
            let (data, cancels) = cancel(data)?;
            return self.sent(channel, name, data, Some(cancels));
        }
        check_data(data).map_err(|error| bad(format!("`data`: {error}")))?;
        self.sent(channel, name, data.to_owned(), None)
    }

    /// A Cancel is for what runs now: only one that names its run may wait for it.
    fn sent(
        &self,
        channel: Channel,
        name: String,
        data: String,
        cancels: Option<Cancels>,
    ) -> Result<ClientFrame, Refusal> {
        let may_wait = cancels.as_ref().is_none_or(|cancels| cancels.run_id.is_some());
        let wanted = self.truth("may_wait")?.unwrap_or(true);
        let expires_in = self.millis("expires_in_ms", COMMAND_WAIT_MAX)?;
        let default = if may_wait { COMMAND_WAIT_DEFAULT } else { CANCEL_WAIT };
        Ok(ClientFrame::Command(Command {
            channel,
            name,
            data,
            command_id: self.command_id()?,
            expires_in: expires_in.unwrap_or(default),
            may_wait: may_wait && wanted,
            cancels,
        }))
    }

    pub(super) fn permission_response(&self) -> Result<ClientFrame, Refusal> {
        let allowed = self.truth("allowed")?.ok_or_else(|| bad("`allowed` is missing"))?;
        let always = self.truth(self.either("alwaysAllow", "always_allow"))?.unwrap_or(false);
        let request_id = self.approval_id(self.either("requestId", "request_id"))?;
        self.answer(request_id, Asks::Permission, allowed, always)
    }

    pub(super) fn budget(&self, goes_on: bool) -> Result<ClientFrame, Refusal> {
        let request_id = self.approval_id(self.either("request_id", "requestId"))?;
        self.answer(request_id, Asks::Budget, goes_on, false)
    }

    fn approval_id(&self, name: &str) -> Result<String, Refusal> {
        let id = self.required_string(name)?;
        if (1..=APPROVAL_ID_BYTES_MAX).contains(&id.len()) {
            return Ok(id);
        }
        Err(bad(format!("`{name}` must have 1 to {APPROVAL_ID_BYTES_MAX} bytes")))
    }

    fn answer(
        &self,
        request_id: String,
        asks: Asks,
        allowed: bool,
        always: bool,
    ) -> Result<ClientFrame, Refusal> {
        Ok(ClientFrame::Answer(Answer {
            request_id,
            channel: self.asked_on()?,
            asks,
            allowed,
            always,
            reason: self.reason(),
            digest: self.string("digest")?,
            command_id: self.command_id()?,
        }))
    }

    pub(super) fn request(&self) -> Result<ClientFrame, Refusal> {
        if self.default.is_none() && self.given("id").is_none() {
            return Err(bad("`id` is missing: the response could not be told from others"));
        }
        let method = self.required_string("method")?;
        check_command_name(&method).map_err(|error| bad(format!("`method`: {error}")))?;
        let timeout = self.millis("timeout_ms", REQUEST_TIMEOUT_MAX)?;
        let params = self.raw("params").map_or("{}", |raw| raw.get());
        check_data(params).map_err(|error| bad(format!("`params`: {error}")))?;
        let service = method.split('.').next().unwrap_or(&method);
        let channel = match self.address()? {
            // The grant is asked for the method, so the method must lead where it says.
            Some(channel) if channel.kind() == Kind::Service && channel.id() != service => {
                let message = format!("`{channel}` does not serve `{}`", shortened(&method));
                return Err(bad(message).about(channel.as_str()));
            }
            Some(channel) => channel,
            None => Channel::new(Kind::Service, service).map_err(|error| bad(error.to_string()))?,
        };
        Ok(ClientFrame::Request(Request {
            channel,
            method,
            params: params.to_owned(),
            timeout: timeout.unwrap_or(REQUEST_TIMEOUT_DEFAULT),
            command_id: self.command_id()?,
        }))
    }
}

/// What a `command` of a Cancel's name cancels, and its data: as it was sent, or without what would hinder it.
fn cancel(data: &str) -> Result<(String, Cancels), Refusal> {
    let wrong = |why: &str| bad(format!("`data` of a `{CANCEL}`: {why}"));
    let fields: Option<HashMap<String, &RawValue>> =
        serde_json::from_str(data).map_err(|error| wrong(&json_error(&error)))?;
    let mut fields = fields.unwrap_or_default();
    let run_id = fields.get("run_id").map_or("null", |raw| raw.get());
    let run_id = serde_json::from_str(run_id).map_err(|_| wrong("`run_id` must be a string"))?;
    let reason = fields.remove("reason");
    let is_clean = data != "null" && reason.is_none_or(words::is_clean);
    let is_clean = is_clean && data.len() <= CANCEL_DATA_BYTES_MAX && check_data(data).is_ok();
    let cancels = Cancels { run_id, reason: reason.and_then(words::reason) };
    if is_clean {
        return Ok((data.to_owned(), cancels));
    }
    #[derive(Serialize)]
    struct Data<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        agent_id: Option<&'a RawValue>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        run_id: Option<&'a str>,
    }
    let agent_id = fields.get("agent_id").copied();
    let is_short = |raw: &&RawValue| raw.get().len() <= CANCEL_DATA_BYTES_MAX;
    let (reason, run_id) = (cancels.reason.as_deref(), cancels.run_id.as_deref());
    let data = Data { agent_id: agent_id.filter(is_short), reason, run_id };
    Ok((serde_json::to_string(&data).expect("plain data"), cancels))
}
