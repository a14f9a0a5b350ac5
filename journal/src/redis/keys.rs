//! Names in Redis: `<prefix>:{<tag of the partition>}:<what>:<channel>`, one delimiter rule for all.
//!
//! A channel has exactly one colon and no brace, so no channel can collide with another key. All keys of
//! one partition share the hash tag `{<tag>}`, hence a Cluster slot.

use std::sync::Arc;

use protocol::{Channel, partition, partition_tag};

use crate::retention::Keep;
use crate::state::{Index, Record};
use crate::{Name, Side};

/// Before every key, unless the URL says another.
pub(super) const PREFIX: &str = "relay";
/// The longest prefix, in bytes.
const PREFIX_BYTES_MAX: usize = 32;

/// The names that one deployment uses in one database.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    /// Before every key and pub/sub name, so that our names and those of others in the same Redis never collide.
    prefix: Arc<str>,
    /// Part of pub/sub names only: Redis' pub/sub ignores databases.
    database: i64,
}

impl Keys {
    pub(crate) fn new(prefix: &str, database: i64) -> Self {
        Self { prefix: prefix.into(), database }
    }

    /// Refuses a text that is not a prefix, with the reason.
    pub(super) fn check_prefix(prefix: &str) -> Result<(), String> {
        let is_allowed = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-' | '_');
        if prefix.is_empty() || prefix.len() > PREFIX_BYTES_MAX || !prefix.chars().all(is_allowed) {
            return Err(format!(
                "the prefix must be 1 to {PREFIX_BYTES_MAX} of a to z, 0 to 9, `-` and `_`"
            ));
        }
        Ok(())
    }

    /// The journal itself.
    pub(crate) fn stream(&self, name: &Name) -> String {
        self.key(name, what(name.side))
    }

    /// The notification of the journal: where its entries are published.
    pub(crate) fn notification(&self, name: &Name) -> String {
        let (tag, channel) = (partition_tag(name.channel.partition()), &name.channel);
        format!("{}:{}:{{{tag}}}:{}:{channel}", self.prefix, self.database, what(name.side))
    }

    /// What a producer last appended to the journal.
    pub(crate) fn producer_record(&self, name: &Name, producer: &str) -> String {
        let what = match name.side {
            Side::Events => "seq",
            Side::Commands => "cseq",
        };
        format!("{}:{producer}", self.key(name, what))
    }

    /// The place of the entry that was appended with an idempotency key.
    pub(crate) fn idempotency(&self, name: &Name, id: &str) -> String {
        let what = match name.side {
            Side::Events => "idem",
            Side::Commands => "cidem",
        };
        format!("{}:{id}", self.key(name, what))
    }

    /// The settings of a partition: a script in Cluster reads no foreign slot.
    pub(crate) fn settings(&self, partition: u8) -> String {
        self.of_partition(partition, "cfg")
    }

    /// Where a link listens for its own probes, and where it can be notified.
    pub(crate) fn probe(&self, link: &str) -> String {
        format!("{}:{}:probe:{link}", self.prefix, self.database)
    }

    /// The state of a record.
    pub(crate) fn state(&self, record: &Record) -> String {
        let key = self.channel_key(&record.channel, record.kind.as_str());
        if record.id.is_empty() { key } else { format!("{key}:{}", record.id) }
    }

    /// A list beside a channel's records.
    pub(crate) fn index(&self, channel: &Channel, index: &Index) -> String {
        match index.key() {
            (what, "") => self.channel_key(channel, what),
            (what, of) => format!("{}:{of}", self.channel_key(channel, what)),
        }
    }

    /// What waits on a channel: the list, the entries, and how many there are.
    pub(crate) fn waiting(&self, channel: &Channel) -> [String; 3] {
        ["waiting", "waiting-entries", "waiting-counts"].map(|what| self.channel_key(channel, what))
    }

    /// What falls due in a partition, and when.
    pub(crate) fn deadlines(&self, partition: u8) -> String {
        self.of_partition(partition, "deadlines")
    }

    /// How many of each replica subscribe to a channel.
    pub(crate) fn counts(&self, channel: &Channel) -> String {
        self.channel_key(channel, "counts")
    }

    /// The replicas that are there.
    pub(crate) fn replicas(&self) -> String {
        self.of_partition(0, "replicas")
    }

    /// What is written to see whether Redis writes.
    pub(crate) fn written(&self) -> String {
        self.of_partition(0, "written")
    }

    /// How many connections each replica holds.
    pub(crate) fn connections(&self) -> String {
        self.of_partition(0, "connections")
    }

    /// On which channels approvals of one id stand. Its slot is its own.
    pub(crate) fn approval_places(&self, request_id: &str) -> String {
        self.of_partition(partition(request_id), &format!("place:{request_id}"))
    }

    fn key(&self, name: &Name, what: &str) -> String {
        self.channel_key(&name.channel, what)
    }

    fn channel_key(&self, channel: &Channel, what: &str) -> String {
        self.of_partition(channel.partition(), &format!("{what}:{channel}"))
    }

    fn of_partition(&self, partition: u8, rest: &str) -> String {
        format!("{}:{{{}}}:{rest}", self.prefix, partition_tag(partition))
    }
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

/// Whether the append script can read it.
pub(super) fn is_retention(setting: &str) -> bool {
    let is_number = |part: &str| {
        let is_digits = part.bytes().all(|byte| byte.is_ascii_digit());
        is_digits && (1..=15).contains(&part.len()) && !part.starts_with('0')
    };
    let parts: Vec<&str> = setting.split(' ').collect();
    parts.len() == 3 && parts.into_iter().all(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_is_of_one_journal_one_database_and_one_deployment() {
        let keys = [("a-1", 3), ("a-1", 0), ("a", 3), ("a-11", 3), (PREFIX, 3)]
            .map(|(prefix, database)| Keys::new(prefix, database));
        let names = ["session:42", "session:4", "agent:a|b"].map(|name| name.parse().unwrap());
        let names: Vec<Name> = names
            .into_iter()
            .flat_map(|channel: Channel| [Name::events(channel.clone()), Name::commands(channel)])
            .collect();
        let of = |keys: &Keys| names.iter().map(|name| keys.notification(name)).collect::<Vec<_>>();
        let probes = keys.iter().map(|keys| keys.probe("x"));
        let all: Vec<String> = keys.iter().flat_map(of).chain(probes).collect();
        let different: std::collections::HashSet<&String> = all.iter().collect();
        assert_eq!(different.len(), all.len(), "{all:?}");
    }

    #[test]
    fn all_keys_of_a_channel_share_its_slot() {
        let (keys, name) = (Keys::new(PREFIX, 0), Name::events("session:42".parse().unwrap()));
        let tag = format!("{{{}}}", partition_tag(name.channel.partition()));
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

    #[test]
    fn a_prefix_has_no_character_with_a_meaning() {
        for good in ["relay", "a", "staging-2", "x_y", &"x".repeat(32)] {
            assert_eq!(Keys::check_prefix(good), Ok(()), "{good}");
        }
        for bad in ["", "A", "a:b", "{0}", "a b", "ü", "*", &"x".repeat(33)] {
            assert!(Keys::check_prefix(bad).is_err(), "{bad}");
        }
    }
}
