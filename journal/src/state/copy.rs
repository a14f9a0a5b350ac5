//! ◆ What is told on an agent's own channel and must stand on the firehose as well.
//!
//! [`note`](super::note) → **copy**. The step that tells it leaves a record of the
//! copy that is owed, with a deadline. The caller of that step copies at once; where it fails or dies, a reaper
//! copies. The copy carries the record's id as its idempotency key.

use std::time::Duration;

use protocol::{Channel, Kind};
use serde::{Deserialize, Serialize};

use super::digest::digest;
use super::{Change, Deadline, Decision, Effect, Record, RecordKind};
use crate::{Journal, Name, NewEntry, Unavailable};

/// How long it is remembered that something was told: a caller may say it again.
const REMEMBERED: Duration = Duration::from_secs(3_600);
/// After this time a reaper copies. Until then the caller of the step tries.
pub(super) const COPY_AFTER: Duration = Duration::from_secs(5);

/// What was told, and perhaps not copied yet.
#[derive(Debug, Serialize, Deserialize)]
struct FirehoseCopy {
    /// The digest of what was told.
    content: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uncopied: Option<Uncopied>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Uncopied {
    event: Box<str>,
    data: Box<str>,
}

/// `key`: the copy's idempotency key.
pub(super) fn record(channel: &Channel, key: &str) -> Record {
    Record { kind: RecordKind::Copy, channel: channel.clone(), id: key.into() }
}

/// For the step that tells `entry`: the record, and on an agent's own channel the copy that is owed.
pub(super) fn owed(record: &Record, entry: &NewEntry) -> Vec<Effect> {
    let is_owed = record.channel.kind() == Kind::Agent;
    let uncopied =
        is_owed.then(|| Uncopied { event: entry.name.clone(), data: entry.data.clone() });
    let copy = FirehoseCopy { content: content(entry), uncopied };
    let copy = serde_json::to_string(&copy).expect("plain data");
    let mut effects = vec![Effect::Write(record.clone(), copy, REMEMBERED)];
    if is_owed {
        effects.push(Effect::DueOf(Deadline::Copy, record.clone(), COPY_AFTER));
    }
    effects
}

fn content(entry: &NewEntry) -> Box<str> {
    digest(&format!("{} {}", entry.name, entry.data))
}

/// Waits for a copy as long as no reaper makes it.
pub(super) async fn at_once(
    record: &Record,
    copying: impl Future<Output = Result<(), Unavailable>>,
) {
    let copied = tokio::time::timeout(COPY_AFTER, copying).await;
    if let Err(error) = copied.unwrap_or_else(|_| Err(Unavailable("it takes long".to_owned()))) {
        tracing::debug!(%record, %error, "an event is copied to the firehose later");
    }
}

impl Journal {
    /// Deadline: what is owed is copied. Doing it again is harmless.
    pub(super) async fn copy(&self, record: &Record) -> Result<(), Unavailable> {
        let copy = self.state::<FirehoseCopy>(record).await?;
        if let Some(Uncopied { event, data }) = copy.and_then(|copy| copy.uncopied) {
            let entry = NewEntry::new(event, data).with_key(record.id.clone());
            let copied = self.append(&Name::events(Channel::global_events()), vec![entry]).await;
            copied.map_err(|error| Unavailable(error.to_string()))?;
        }
        self.copied(record).await
    }

    /// Whether it was this that was told.
    pub(super) async fn was_told(
        &self,
        record: &Record,
        entry: &NewEntry,
    ) -> Result<bool, Unavailable> {
        let copy = self.state::<FirehoseCopy>(record).await?;
        Ok(copy.is_none_or(|copy| copy.content == content(entry)))
    }

    /// It is copied: nothing is owed any more.
    pub(super) async fn copied(&self, record: &Record) -> Result<(), Unavailable> {
        let copied = |copy: Option<FirehoseCopy>, _| {
            let copied = copy.map(|copy| FirehoseCopy { uncopied: None, ..copy });
            let mut change = copied.as_ref().map_or_else(Change::removal, Change::new);
            change.lifetime = Some(REMEMBERED);
            change.effects = vec![Effect::Due(Deadline::Copy, None)];
            Decision::Set(change, ())
        };
        self.transact(record, copied).await?;
        Ok(())
    }
}
