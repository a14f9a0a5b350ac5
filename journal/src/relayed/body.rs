//! The bodies of calls and answers: `data` in [`protocol::AgentFrame`] and [`protocol::AgentHears`].

use std::time::Duration;

use protocol::Channel;
use protocol::limits::APPROVAL_WAIT_MAX;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{Answer, Asks, NewApproval, Parent, Status};

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Lease {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) incarnation: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) parent: Option<Parent>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Leased {
    pub(super) incarnation: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Note {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) runs: Option<Vec<Box<str>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) channels: Option<Vec<Channel>>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Follow {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) since: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Take {
    pub(super) key: Uuid,
    #[serde(default)]
    pub(super) idempotent: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Taken {
    pub(super) take: crate::Take,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Progress {
    pub(super) key: Uuid,
    pub(super) data: Box<RawValue>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Finish {
    pub(super) key: Uuid,
    pub(super) status: Status,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) detail: Option<Box<RawValue>>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Finished {
    pub(super) finished: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ask {
    request_id: Box<str>,
    asks: Asks,
    question: Box<RawValue>,
    expires_in_ms: u64,
    #[serde(default)]
    default: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<Box<str>>,
}

impl Ask {
    pub(super) fn of(new: &NewApproval) -> Self {
        let question = serde_json::from_str(&new.data);
        Self {
            request_id: new.request_id.clone(),
            asks: new.asks,
            question: question.unwrap_or_else(|_| RawValue::NULL.to_owned()),
            expires_in_ms: new.expires_in.as_millis() as u64,
            default: new.default,
            digest: new.digest.clone(),
        }
    }

    pub(super) fn approval(self, channel: &Channel) -> NewApproval {
        NewApproval {
            channel: channel.clone(),
            request_id: self.request_id,
            asks: self.asks,
            data: self.question.get().into(),
            expires_in: Duration::from_millis(self.expires_in_ms).min(APPROVAL_WAIT_MAX),
            default: self.default,
            digest: self.digest,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    pub(super) answer: Option<Answer>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Resolve {
    pub(super) request_id: Box<str>,
    pub(super) asks: Asks,
    pub(super) answer: Answer,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) digest: Option<Box<str>>,
}
