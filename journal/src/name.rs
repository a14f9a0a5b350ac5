//! Which journal: a channel, and which way it carries.

use std::fmt;

use protocol::{Channel, Kind};

/// Which way a journal carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// Down: what agents say.
    Events,
    /// Up: what people ask of agents.
    Commands,
}

/// The name of a journal, cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// The channel it belongs to.
    pub channel: Channel,
    /// Which of the channel's two journals.
    pub side: Side,
}

impl Name {
    /// The channel's events.
    pub fn events(channel: Channel) -> Self {
        Self { channel, side: Side::Events }
    }

    /// The channel's commands.
    pub fn commands(channel: Channel) -> Self {
        Self { channel, side: Side::Commands }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.channel.kind()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.side {
            Side::Events => write!(f, "{}", self.channel),
            Side::Commands => write!(f, "{} (commands)", self.channel),
        }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
