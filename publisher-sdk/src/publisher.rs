//! A handle to publish on one channel.
//!
//! An agent's code → **publisher** → [`buffer`](crate::events)

use std::sync::Arc;

use journal::NewEntry;
use protocol::{Channel, Offset};
use serde::Serialize;

use crate::agent::Inner;
use crate::commands::inbox::Membership;
use crate::vocabulary::Event;
use crate::{FlushError, PublishError, Run};

/// A turn's id is repeated with every delta.
const TURN_BYTES_MAX: usize = 128;

/// Publishes on one channel. Cheap to clone. Made by [`Agent::session`](crate::Agent::session) and
/// [`Agent::channel`](crate::Agent::channel).
///
/// Everything published through it and its clones stands in the order of the calls, awaited or not.
/// `publish…` waits until the event is in the journal. `send…` and [`text_delta`](Self::text_delta)
/// never wait: they refuse what the agent's buffer has no room for, and what is lost later is
/// logged, counted ([`Agent::lost_count`](crate::Agent::lost_count)) and reported by the next
/// [`flush`](Self::flush).
#[derive(Clone, Debug)]
pub struct Publisher {
    agent: Arc<Inner>,
    channel: Channel,
    /// Keeps the commands of an opened session coming in.
    _membership: Option<Arc<Membership>>,
}

impl Publisher {
    pub(crate) fn new(
        agent: Arc<Inner>,
        channel: Channel,
        membership: Option<Arc<Membership>>,
    ) -> Self {
        Self { agent, channel, _membership: membership }
    }

    pub(crate) fn agent(&self) -> &Arc<Inner> {
        &self.agent
    }

    /// Where this publishes.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Publishes an event of any name and waits until it is in the journal. Text deltas that came
    /// before it are written before it. Behind a relay, the offset of an event that was sent again may not
    /// be known.
    ///
    /// While Redis is away this waits, ten minutes at most; where an agent must not stand still, it
    /// [sends](Self::send).
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn publish<T: Serialize + ?Sized>(
        &self,
        name: &str,
        data: &T,
    ) -> Result<Option<Offset>, PublishError> {
        self.agent.lifecycle.buffer.publish(&self.channel, entry(name, data)?).await
    }

    /// The same for an event of the [vocabulary](crate::vocabulary).
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn publish_event<E: Event>(&self, event: &E) -> Result<Option<Offset>, PublishError> {
        self.publish(E::NAME, event).await
    }

    /// Publishes an event of any name without waiting for it.
    ///
    /// # Errors
    /// [`PublishError`]; [`Full`](PublishError::Full) where the agent's buffer has no room.
    pub fn send<T: Serialize + ?Sized>(&self, name: &str, data: &T) -> Result<(), PublishError> {
        self.agent.lifecycle.buffer.send(&self.channel, entry(name, data)?)
    }

    /// The same for an event of the [vocabulary](crate::vocabulary).
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_event<E: Event>(&self, event: &E) -> Result<(), PublishError> {
        self.send(E::NAME, event)
    }

    /// Streams a turn's next text, a token for example, without waiting. `turn` tells answers apart
    /// that are written at the same time; `None` where there is only one. A `String` is given as
    /// `turn.as_str()`.
    ///
    /// The first text of a turn leaves at once, the following every 50 ms
    /// ([`batch_window`](crate::AgentOptions::batch_window)), joined. Any other event on the
    /// channel sends it ahead, so the order never changes.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn text_delta<'a>(
        &self,
        turn: impl Into<Option<&'a str>>,
        text: &str,
    ) -> Result<(), PublishError> {
        let turn = turn.into();
        if let Some(turn) = turn
            && turn.len() > TURN_BYTES_MAX
        {
            return Err(PublishError::Turn { bytes: turn.len(), limit: TURN_BYTES_MAX });
        }
        self.agent.lifecycle.buffer.text(&self.channel, turn, text)
    }

    /// Begins a run that belongs to this session, which it keeps open: a Cancel sent to the agent cancels
    /// it, and so does one sent to the session. Says nothing yet, see [`Run::announce`].
    pub fn begin_run(&self, id: impl Into<String>) -> Run {
        Run::begin(self.clone(), id.into(), None)
    }

    /// Waits until everything the agent has said so far is in the journal.
    ///
    /// # Errors
    /// As [`Agent::flush`](crate::Agent::flush).
    pub async fn flush(&self) -> Result<(), FlushError> {
        self.agent.flush().await
    }
}

fn entry<T: Serialize + ?Sized>(name: &str, data: &T) -> Result<NewEntry, PublishError> {
    protocol::check_event_name(name)?;
    let data = serde_json::to_string(data).map_err(PublishError::Unserializable)?;
    protocol::check_data(&data)?;
    Ok(NewEntry::new(name, data))
}
