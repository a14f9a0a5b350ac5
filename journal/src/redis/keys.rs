//! Names in Redis: `<prefix>:{<partition>}:<what>:<channel>`, one delimiter rule for all.
//!
//! A channel has exactly one colon and no brace, so no channel can collide with another key. All keys of
//! one channel share the hash tag `{partition}`, hence a Cluster slot.

use protocol::{Channel, partition};

use crate::retention::Keep;
use crate::state::{Index, Record};
use crate::{Name, Side};

/// Before every key, so that other users of the same Redis are safe from us.
const PREFIX: &str = "relay";

/// The names that one database uses.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    /// Part of pub/sub names only: Redis' pub/sub ignores databases.
    database: i64,
}

impl Keys {
    pub(crate) fn new(database: i64) -> Self {
        Self { database }
    }

    /// The journal itself.
    pub(crate) fn stream(&self, name: &Name) -> String {
        key(name, what(name.side))
    }

    /// The notification of the journal: where its entries are published.
    pub(crate) fn notification(&self, name: &Name) -> String {
        let (partition, channel) = (name.channel.partition(), &name.channel);
        format!("{PREFIX}:{}:{{{partition}}}:{}:{channel}", self.database, what(name.side))
    }

    /// Which journal a notification belongs to.
    pub(crate) fn name(&self, notification: &str) -> Option<Name> {
        let rest = notification.strip_prefix(PREFIX)?.strip_prefix(':')?;
        let rest = rest.strip_prefix(&self.database.to_string())?.strip_prefix(':')?;
        let (_, rest) = rest.split_once("}:")?;
        let (what, channel) = rest.split_once(':')?;
        let channel = channel.parse().ok()?;
        match what {
            "events" => Some(Name::events(channel)),
            "commands" => Some(Name::commands(channel)),
            _ => None,
        }
    }

    /// What a producer last appended to the journal.
    pub(crate) fn producer_record(&self, name: &Name, producer: &str) -> String {
        let what = match name.side {
            Side::Events => "seq",
            Side::Commands => "cseq",
        };
        format!("{}:{producer}", key(name, what))
    }

    /// The place of the entry that was appended with an idempotency key.
    pub(crate) fn idempotency(&self, name: &Name, id: &str) -> String {
        let what = match name.side {
            Side::Events => "idem",
            Side::Commands => "cidem",
        };
        format!("{}:{id}", key(name, what))
    }

    /// The settings of a partition: a script in Cluster reads no foreign slot.
    pub(crate) fn settings(&self, partition: u8) -> String {
        format!("{PREFIX}:{{{partition}}}:cfg")
    }

    /// Where a link listens for its own probes, and where it can be notified.
    pub(crate) fn probe(&self, link: &str) -> String {
        format!("{PREFIX}:{}:probe:{link}", self.database)
    }

    /// The state of a record.
    pub(crate) fn state(&self, record: &Record) -> String {
        format!("{}:{}", channel_key(&record.channel, record.kind.as_str()), record.id)
    }

    /// A list beside a channel's records.
    pub(crate) fn index(&self, channel: &Channel, index: &Index) -> String {
        match index.key() {
            (what, "") => channel_key(channel, what),
            (what, of) => format!("{}:{of}", channel_key(channel, what)),
        }
    }

    /// What waits on a channel: the list, the entries, and how many there are.
    pub(crate) fn waiting(&self, channel: &Channel) -> [String; 3] {
        ["waiting", "waiting-entries", "waiting-counts"].map(|what| channel_key(channel, what))
    }

    /// When what falls due in a partition.
    pub(crate) fn deadlines(&self, partition: u8) -> String {
        format!("{PREFIX}:{{{partition}}}:deadlines")
    }

    /// How many of each replica subscribe to a channel.
    pub(crate) fn counts(&self, channel: &Channel) -> String {
        channel_key(channel, "counts")
    }

    /// The replicas that are there.
    pub(crate) fn replicas(&self) -> String {
        format!("{PREFIX}:{{0}}:replicas")
    }

    /// What is written to see whether Redis writes.
    pub(crate) fn written(&self) -> String {
        format!("{PREFIX}:{{0}}:written")
    }

    /// How many connections each replica holds.
    pub(crate) fn connections(&self) -> String {
        format!("{PREFIX}:{{0}}:connections")
    }

    /// On which channel an approval stands. Its slot is its own.
    pub(crate) fn approval_place(&self, request_id: &str) -> String {
        format!("{PREFIX}:{{{}}}:place:{request_id}", partition(request_id))
    }
}

fn key(name: &Name, what: &str) -> String {
    channel_key(&name.channel, what)
}

fn channel_key(channel: &Channel, what: &str) -> String {
    format!("{PREFIX}:{{{}}}:{what}:{channel}", channel.partition())
}

fn what(side: Side) -> &'static str {
    match side {
        Side::Events => "events",
        Side::Commands => "commands",
    }
}

/// A retention setting as the append script reads it.
pub(crate) fn retention(keep: Keep) -> String {
    format!("{} {} {}", keep.entries, keep.bytes, keep.age.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bell_leads_back_to_its_journal() {
        let keys = Keys::new(3);
        for name in [
            Name::events("session:42".parse().unwrap()),
            Name::commands("agent:a|b".parse().unwrap()),
        ] {
            assert_eq!(keys.name(&keys.notification(&name)), Some(name.clone()));
            assert_eq!(
                Keys::new(0).name(&keys.notification(&name)),
                None,
                "another database's notification"
            );
        }
        assert_eq!(keys.name(&keys.probe("x")), None);
    }

    #[test]
    fn all_keys_of_a_channel_share_its_slot() {
        let (keys, name) = (Keys::new(0), Name::events("session:42".parse().unwrap()));
        let tag = format!("{{{}}}", name.channel.partition());
        for key in [
            keys.stream(&name),
            keys.notification(&name),
            keys.producer_record(&name, "p"),
            keys.idempotency(&name, "i"),
            keys.settings(name.channel.partition()),
        ] {
            assert!(key.contains(&tag), "{key}");
        }
    }
}
