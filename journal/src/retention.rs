//! How much a journal keeps. It belongs to the channel's kind, never to a writer.

use std::time::Duration;

use protocol::Kind;

use crate::{Name, Side};

/// What journals keep, by the kind of their channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Events of `session:` channels: 100,000 entries, 8 MiB, 24 h.
    pub session: Keep,
    /// Events of `global:` channels: 100,000 entries, 8 MiB, 1 h.
    pub global: Keep,
    /// Events of all other channels: 10,000 entries, 2 MiB, 24 h.
    pub other: Keep,
    /// Commands to agents: 4,096 entries, 16 MiB, 24 h. What waits is kept beside them and is not trimmed.
    pub commands: Keep,
    /// Requests to services: likewise.
    pub service: Keep,
}

/// How much one journal keeps. It is trimmed now and then, so it may hold up to 64 entries of each writer more,
/// and some hundredths of the bytes; the newest entry is always kept. An idle journal expires as a whole when its newest entry is too old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// How many entries.
    pub entries: u64,
    /// How many bytes, about, as the store counts them.
    pub bytes: u64,
    /// How old the oldest may be.
    pub age: Duration,
}

const HOUR: Duration = Duration::from_secs(3_600);
const MIB: u64 = 1024 * 1024;

impl Default for Retention {
    fn default() -> Self {
        Self {
            session: Keep { entries: 100_000, bytes: 8 * MIB, age: 24 * HOUR },
            global: Keep { entries: 100_000, bytes: 8 * MIB, age: HOUR },
            other: Keep { entries: 10_000, bytes: 2 * MIB, age: 24 * HOUR },
            commands: Keep { entries: 4_096, bytes: 16 * MIB, age: 24 * HOUR },
            service: Keep { entries: 4_096, bytes: 16 * MIB, age: 24 * HOUR },
        }
    }
}

impl Retention {
    /// What `name` keeps.
    pub(crate) fn of(&self, name: &Name) -> Keep {
        match Self::field(name) {
            "commands" => self.commands,
            "service" => self.service,
            "session" => self.session,
            "global" => self.global,
            _ => self.other,
        }
    }

    /// Under which name the setting for `name` is kept in Redis.
    pub(crate) fn field(name: &Name) -> &'static str {
        match (name.side, name.kind()) {
            (Side::Commands, Kind::Service) => "service",
            (Side::Commands, _) => "commands",
            (_, Kind::Session) => "session",
            (_, Kind::Global) => "global",
            _ => "other",
        }
    }

    /// Every setting under its name in Redis.
    pub fn fields(&self) -> [(&'static str, Keep); 5] {
        [
            ("session", self.session),
            ("global", self.global),
            ("other", self.other),
            ("commands", self.commands),
            ("service", self.service),
        ]
    }
}
