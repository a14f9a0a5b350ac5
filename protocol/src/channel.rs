//! Addresses: `kind:id`, with a closed set of kinds and one strict grammar.
//!
//! The grammar is strict because a channel's name becomes part of a Redis key, a pub/sub name and a
//! grant pattern: no colon, brace, space or control character can be smuggled into any of them.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::CHANNEL_ID_BYTES_MAX;
use crate::partition::partition;

/// What a channel is about. The set is closed: retention and permissions hang on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// One agent session: what its viewers see.
    Session,
    /// A project, shared by many sessions.
    Project,
    /// One user, on any device.
    User,
    /// One plan and its steps.
    Plan,
    /// One agent: its lifecycle, and where commands to it go.
    Agent,
    /// A deployment-wide feed such as `global:events`.
    Global,
    /// A service that answers requests. It carries commands only, never events.
    Service,
}

impl Kind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [Self; 7] = [
        Self::Session,
        Self::Project,
        Self::User,
        Self::Plan,
        Self::Agent,
        Self::Global,
        Self::Service,
    ];

    /// The word before the colon.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Project => "project",
            Self::User => "user",
            Self::Plan => "plan",
            Self::Agent => "agent",
            Self::Global => "global",
            Self::Service => "service",
        }
    }
}

/// A valid address, cheap to clone.
///
/// ```
/// let channel: protocol::Channel = "session:42".parse().unwrap();
/// assert_eq!((channel.kind().as_str(), channel.id()), ("session", "42"));
/// assert!("session:4 2".parse::<protocol::Channel>().is_err());
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Channel {
    name: Arc<str>,
    kind: Kind,
}

/// Why a text is not a channel.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChannelError {
    /// The text does not begin with a known `kind:`.
    #[error(
        "`{0}` is not a channel: write `kind:id` with a kind of session, project, user, plan, agent, global or service"
    )]
    Kind(String),
    /// The part after the colon breaks the grammar.
    #[error(
        "the id of `{0}` must be 1 to {CHANNEL_ID_BYTES_MAX} characters of A-Z a-z 0-9 . _ @ | + ~ -"
    )]
    Id(String),
}

impl Channel {
    /// The channel `kind:id`.
    ///
    /// # Errors
    /// [`ChannelError::Id`] where `id` breaks the grammar.
    pub fn new(kind: Kind, id: &str) -> Result<Self, ChannelError> {
        if is_valid_id(id) {
            Ok(Self { name: format!("{}:{id}", kind.as_str()).into(), kind })
        } else {
            Err(ChannelError::Id(shortened(&format!("{}:{id}", kind.as_str()))))
        }
    }

    /// The agent's own channel, `agent:{id}`.
    ///
    /// # Errors
    /// As [`Channel::new`].
    pub fn agent(id: &str) -> Result<Self, ChannelError> {
        Self::new(Kind::Agent, id)
    }

    /// The session's channel, `session:{id}`.
    ///
    /// # Errors
    /// As [`Channel::new`].
    pub fn session(id: &str) -> Result<Self, ChannelError> {
        Self::new(Kind::Session, id)
    }

    /// `global:events`, the firehose that carries every agent's lifecycle.
    pub fn global_events() -> Self {
        Self { name: "global:events".into(), kind: Kind::Global }
    }

    /// `global:everyone`, which reaches every connection without a subscription.
    pub fn global_everyone() -> Self {
        Self { name: "global:everyone".into(), kind: Kind::Global }
    }

    /// What the channel is about.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The part after the colon.
    pub fn id(&self) -> &str {
        &self.name[self.kind.as_str().len() + 1..]
    }

    /// The whole address, `kind:id`.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// Which of the 256 [partitions](partition) holds everything about this channel. Golden examples:
    /// `vectors/channels.json`.
    pub fn partition(&self) -> u8 {
        partition(&self.name)
    }
}

impl std::str::FromStr for Channel {
    type Err = ChannelError;

    fn from_str(text: &str) -> Result<Self, ChannelError> {
        let unknown = || ChannelError::Kind(shortened(text));
        let (kind, id) = text.split_once(':').ok_or_else(unknown)?;
        let kind =
            Kind::ALL.into_iter().find(|known| known.as_str() == kind).ok_or_else(unknown)?;
        Self::new(kind, id)
    }
}

impl From<Channel> for String {
    fn from(channel: Channel) -> Self {
        channel.as_str().to_owned()
    }
}

impl TryFrom<String> for Channel {
    type Error = ChannelError;

    fn try_from(text: String) -> Result<Self, ChannelError> {
        text.parse()
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

fn is_valid_id(id: &str) -> bool {
    (1..=CHANNEL_ID_BYTES_MAX).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._@|+~-".contains(&b))
}

/// Error texts quote what came in; a hostile input must not make them long.
pub(crate) fn shortened(text: &str) -> String {
    crate::shown(text, 80)
}
