//! What one person saw, across all of their connections, and whether it is what the wire promises.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

/// A position, read by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The epoch of the journal.
    pub epoch: String,
    /// Which entry of it.
    pub n: u64,
    /// What tells two entries with the same number apart.
    pub check: String,
}

impl Position {
    /// Reads `<epoch>-<n>-<check>`.
    pub fn read(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let position = Self {
            epoch: parts.next()?.to_owned(),
            n: parts.next()?.parse().ok()?,
            check: parts.next()?.to_owned(),
        };
        parts.next().is_none().then_some(position)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.epoch, self.n, self.check)
    }
}

/// One event, as it came.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its position, as text.
    pub offset: String,
    /// Its name.
    pub name: String,
    /// Its data; of a flat event, the whole frame.
    pub data: Value,
    /// How many entries it joins.
    pub merged: u64,
    /// The frame, unread.
    pub raw: String,
}

/// Everything seen, by channel.
#[derive(Clone, Debug, Default)]
pub struct History {
    tracks: BTreeMap<String, Track>,
}

#[derive(Clone, Debug, Default)]
struct Track {
    /// `None` before the first `subscribed`; `Some(None)` where nothing was ever written.
    position: Option<Option<Position>>,
    events: Vec<Event>,
    resets: Vec<String>,
    /// How many of the events came before the last reset.
    outdated: usize,
    /// `subscribed` said `recovered: false`, and the `reset` has not come yet.
    owes_reset: bool,
}

impl History {
    /// Takes in a frame.
    ///
    /// # Errors
    /// Says which promise of the wire the frame breaks.
    pub fn take(&mut self, frame: &Value, raw: &str) -> Result<(), String> {
        let Some(channel) = channel_of(frame) else { return Ok(()) };
        let is_event = is_event(frame);
        let track = self.tracks.entry(channel.clone()).or_default();
        let offset = match &frame["offset"] {
            Value::String(text) => {
                Some(Position::read(text).ok_or(format!("`{text}` is not an offset: {raw}"))?)
            }
            _ => None,
        };
        match kind_of(frame) {
            _ if is_event => {
                let offset = offset.ok_or(format!("an event without offset: {raw}"))?;
                track.take_event(&channel, frame, offset, raw)?;
            }
            "subscribed" => {
                track.owes_reset = frame["recovered"] == false;
                track.position = Some(offset);
            }
            "reset" => {
                let reason = frame["reason"].as_str().unwrap_or_default().to_owned();
                if !["epoch", "retention", "history_changed"].contains(&reason.as_str()) {
                    return Err(format!("a reset for no known reason: {raw}"));
                }
                track.resets.push(reason);
                track.outdated = track.events.len();
                track.owes_reset = false;
                track.position = Some(offset);
            }
            "caught_up" => {
                if track.owes_reset {
                    return Err(format!("{channel}: `recovered: false` without a reset: {raw}"));
                }
                let at = track.position.clone().flatten();
                if at.as_ref().map(|p| (&p.epoch, p.n)) != offset.as_ref().map(|p| (&p.epoch, p.n))
                {
                    return Err(format!(
                        "{channel}: caught_up is not where delivery is ({at:?}): {raw}"
                    ));
                }
            }
            "unsubscribed" => track.position = None,
            _ => {}
        }
        Ok(())
    }

    /// The events of a channel, in the order in which they came.
    pub fn events(&self, channel: &str) -> &[Event] {
        self.tracks.get(channel).map_or(&[], |track| &track.events)
    }

    /// The reasons of the resets of a channel.
    pub fn resets(&self, channel: &str) -> &[String] {
        self.tracks.get(channel).map_or(&[], |track| &track.resets)
    }

    /// The last position seen on a channel, whichever frame carried it: what to come back with.
    pub fn offset(&self, channel: &str) -> Option<String> {
        let position = self.tracks.get(channel)?.position.as_ref()?;
        position.as_ref().map(Position::to_string)
    }

    /// The deltas of a channel, or of one turn on it, as one text.
    pub fn text(&self, channel: &str, turn: Option<&str>) -> String {
        let events = self.events(channel).iter().filter(|event| event.name == "text_delta");
        events
            .filter(|event| turn.is_none() || event.data["turnId"].as_str() == turn)
            .map(|event| event.data["delta"].as_str().unwrap_or_default())
            .collect()
    }

    /// The `i` of each `number` event of a channel.
    pub fn numbers(&self, channel: &str) -> Vec<u64> {
        numbers(self.events(channel))
    }

    /// The same, of those events only that came after the last reset.
    pub fn numbers_since_reset(&self, channel: &str) -> Vec<u64> {
        self.tracks
            .get(channel)
            .map_or_else(Vec::new, |track| numbers(&track.events[track.outdated..]))
    }
}

impl Track {
    fn take_event(
        &mut self,
        channel: &str,
        frame: &Value,
        offset: Position,
        raw: &str,
    ) -> Result<(), String> {
        let merged = frame["merged"].as_u64().unwrap_or(1);
        match &self.position {
            // This one reaches everybody without subscription, from wherever it is.
            None if channel == "global:everyone" => {}
            None => return Err(format!("{channel}: an event without a subscription: {raw}")),
            Some(None) if offset.n == merged => {}
            Some(Some(last)) if last.epoch == offset.epoch && last.n + merged == offset.n => {}
            // And live only: a client that never subscribed is not told that it began anew.
            Some(Some(last)) if channel == "global:everyone" && last.epoch != offset.epoch => {}
            Some(last) => {
                let last = last.as_ref().map_or("nothing yet".to_owned(), Position::to_string);
                return Err(format!(
                    "{channel}: after {last} must not come (merged {merged}): {raw}"
                ));
            }
        }
        if self.owes_reset {
            return Err(format!(
                "{channel}: `recovered: false`, and an event before the reset: {raw}"
            ));
        }
        let is_envelope = kind_of(frame) == "event";
        self.events.push(Event {
            offset: offset.to_string(),
            name: if is_envelope { &frame["event"] } else { &frame["type"] }
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            data: if is_envelope { frame["data"].clone() } else { frame.clone() },
            merged,
            raw: raw.to_owned(),
        });
        self.position = Some(Some(offset));
        Ok(())
    }
}

fn numbers(events: &[Event]) -> Vec<u64> {
    let numbers = events.iter().filter(|event| event.name == "number");
    numbers.map(|event| event.data["i"].as_u64().expect("a number event has an `i`")).collect()
}

/// The `type` of a frame.
pub fn kind_of(frame: &Value) -> &str {
    frame["type"].as_str().unwrap_or_default()
}

/// Whether a frame is an event, in the envelope or flat.
pub fn is_event(frame: &Value) -> bool {
    kind_of(frame) == "event" || (frame["offset"].is_string() && frame["timestamp"].is_string())
}

/// The channel that a frame is about, however it names it.
pub fn channel_of(frame: &Value) -> Option<String> {
    let named = |field: &str, kind: &str| frame[field].as_str().map(|id| format!("{kind}{id}"));
    named("sessionId", "session:")
        .or_else(|| named("plan_id", "plan:"))
        .or_else(|| named("channel", ""))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::History;

    fn take_all(frames: &[serde_json::Value]) -> Result<(), String> {
        let mut history = History::default();
        frames.iter().try_for_each(|frame| history.take(frame, &frame.to_string()))
    }

    fn event(offset: &str) -> serde_json::Value {
        json!({"type": "event", "channel": "session:1", "event": "x", "offset": offset, "data": {}})
    }

    fn merged(offset: &str, merged: u64) -> serde_json::Value {
        let mut frame = event(offset);
        frame["merged"] = json!(merged);
        frame
    }

    fn subscribed(offset: Option<&str>, recovered: bool) -> serde_json::Value {
        json!({"type": "subscribed", "channel": "session:1", "offset": offset, "recovered": recovered})
    }

    #[test]
    fn what_the_wire_promises_is_accepted() {
        let reset =
            json!({"type": "reset", "channel": "session:1", "reason": "epoch", "offset": "9-0-0"});
        let caught_up = json!({"type": "caught_up", "channel": "session:1", "offset": "9-1-5"});
        let honest = [
            subscribed(Some("7-3-0"), true),
            event("7-4-1"),
            merged("7-6-2", 2),
            reset,
            event("9-1-5"),
            caught_up,
        ];
        assert_eq!(take_all(&honest), Ok(()));
        assert_eq!(take_all(&[subscribed(None, true), event("7-1-1")]), Ok(()));
    }

    #[test]
    fn every_broken_promise_is_noticed() {
        let start = || subscribed(Some("7-3-0"), true);
        let broken: [&[serde_json::Value]; 8] = [
            &[event("7-4-1")],                                   // without subscription
            &[start(), event("7-5-1")],                          // a gap
            &[start(), event("7-4-1"), event("7-4-1")],          // twice
            &[start(), event("7-4-1"), event("7-3-1")],          // backwards
            &[start(), event("8-4-1")],                          // another epoch, in silence
            &[start(), merged("7-6-1", 2)],                      // a gap before a merged frame
            &[subscribed(None, true), event("7-2-1")],           // a lost first event
            &[subscribed(Some("7-0-0"), false), event("7-1-1")], // a reset that never came
        ];
        for frames in broken {
            assert!(take_all(frames).is_err(), "not noticed: {frames:?}");
        }
    }
}
