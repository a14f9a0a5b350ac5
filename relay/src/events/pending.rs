//! What waits for an answer on a channel, as its joiners are told.
//!
//! [`approvals`](super::approvals) → **pending** → [`subscription`](super::subscription)
//!
//! A few questions stand in `subscribed` itself; the others follow in frames that every client can read. Each frame is
//! encoded once and shared by all joiners.

use std::sync::{Arc, OnceLock};

use protocol::Offset;
use protocol::frame::{Addressing, RelayFrame, Target};
use protocol::limits::{PENDING_BYTES_MAX, PENDING_FRAME_BYTES_MAX};
use serde_json::value::RawValue;

use crate::memory::{Memory, Reserved};
use crate::websocket::TextFrame;

/// What stands around the questions in a frame: the longest channel has 137 bytes.
const ENVELOPE_BYTES: usize = 256;

/// What waits for an answer.
#[derive(Debug)]
pub(crate) struct Pending {
    /// As of which event.
    pub(super) head: Option<Offset>,
    /// The list that `subscribed` carries, as JSON.
    pub(super) first: Box<RawValue>,
    /// Lists that follow.
    rest: Vec<Box<RawValue>>,
    by_channel: OnceLock<Vec<TextFrame>>,
    by_session: OnceLock<Vec<TextFrame>>,
    memory: Arc<Memory>,
    _reserved: Reserved,
}

impl Pending {
    /// Of questions that are JSON.
    pub(super) fn new(head: Option<Offset>, questions: &[&str], memory: &Arc<Memory>) -> Self {
        let (first, mut others) = list(questions, PENDING_BYTES_MAX, 0);
        let mut rest = Vec::<Box<RawValue>>::new();
        while !others.is_empty() {
            let (next, left) = list(others, PENDING_FRAME_BYTES_MAX - ENVELOPE_BYTES, 1);
            rest.push(next);
            others = left;
        }
        let bytes = first.get().len() + rest.iter().map(|list| list.get().len()).sum::<usize>();
        Self {
            head,
            first,
            rest,
            by_channel: OnceLock::new(),
            by_session: OnceLock::new(),
            memory: Arc::clone(memory),
            _reserved: memory.reserve(bytes),
        }
    }

    pub(super) fn has_more(&self) -> bool {
        !self.rest.is_empty()
    }

    /// How much it takes, without its frames.
    pub(super) fn bytes(&self) -> usize {
        self.first.get().len() + self.rest.iter().map(|list| list.get().len()).sum::<usize>()
    }

    /// One of the frames that follow `subscribed`, from the first, 0, to the last.
    pub(super) fn frame(&self, target: &Target, index: usize) -> Option<TextFrame> {
        let frames = match target.addressing {
            Addressing::SessionId => &self.by_session,
            Addressing::Channel | Addressing::PlanId => &self.by_channel,
        };
        let encode = |(index, pending): (usize, &RawValue)| {
            let more = index + 1 < self.rest.len();
            let frame = RelayFrame::Pending { channel: target.named(), pending, more };
            TextFrame::new(frame.to_text(), &self.memory)
        };
        frames
            .get_or_init(|| self.rest.iter().map(|list| &**list).enumerate().map(encode).collect())
            .get(index)
            .cloned()
    }
}

/// A list of the first questions that fit into `most` bytes, `least` in any case; and the questions left.
fn list<'a, 'b>(
    questions: &'a [&'b str],
    most: usize,
    least: usize,
) -> (Box<RawValue>, &'a [&'b str]) {
    let mut bytes = "[]".len();
    let fits = |question: &&&str| {
        bytes += question.len() + ",".len();
        bytes <= most
    };
    let count = questions.iter().take_while(fits).count().max(least).min(questions.len());
    let (these, left) = questions.split_at(count);
    let text = RawValue::from_string(format!("[{}]", these.join(",")));
    (text.unwrap_or_else(|_| RawValue::from_string("[]".to_owned()).expect("a list")), left)
}

#[cfg(test)]
mod tests {
    use protocol::Channel;
    use protocol::limits::{APPROVALS_MAX, QUESTION_BYTES_MAX};

    use super::*;

    fn target(addressing: Addressing) -> Target {
        Target { channel: Channel::session(&"s".repeat(128)).unwrap(), addressing }
    }

    fn question(id: usize, bytes: usize) -> String {
        let data = format!("\"{}\"", "x".repeat(bytes - 2));
        let id = format!("{id:0128}");
        format!(
            r#"{{"event":"permission_request","request_id":"{id}","data":{data},"expires_at":1763661001123}}"#
        )
    }

    fn pending(questions: &[String]) -> Pending {
        let questions: Vec<&str> = questions.iter().map(|one| &**one).collect();
        Pending::new(None, &questions, &Memory::new(usize::MAX))
    }

    /// All that a joiner is told, frame by frame.
    fn told(pending: &Pending, addressing: Addressing) -> (Vec<serde_json::Value>, Vec<TextFrame>) {
        let target = target(addressing);
        let frames: Vec<TextFrame> =
            (0..).map_while(|index| pending.frame(&target, index)).collect();
        let mut all: Vec<serde_json::Value> = serde_json::from_str(pending.first.get()).unwrap();
        for frame in &frames {
            let frame: serde_json::Value = serde_json::from_str(frame.text()).unwrap();
            all.extend(frame["pending"].as_array().unwrap().clone());
        }
        (all, frames)
    }

    #[test]
    fn a_few_questions_stand_in_the_answer_itself() {
        let questions: Vec<String> = (0..10).map(|id| question(id, 1_000)).collect();
        let pending = pending(&questions);

        let (all, frames) = told(&pending, Addressing::Channel);

        assert!(!pending.has_more() && frames.is_empty());
        assert_eq!(all.len(), 10);
    }

    #[test]
    fn all_that_may_wait_goes_in_frames_that_every_client_can_read() {
        for bytes in [2, 500, 5_000, QUESTION_BYTES_MAX] {
            let questions: Vec<String> = (0..APPROVALS_MAX).map(|id| question(id, bytes)).collect();
            let pending = pending(&questions);
            for addressing in [Addressing::Channel, Addressing::SessionId] {
                let (all, frames) = told(&pending, addressing);

                let ids =
                    all.iter().map(|one| one["request_id"].as_str().unwrap().parse().unwrap());
                assert_eq!(ids.collect::<Vec<usize>>(), (0..APPROVALS_MAX).collect::<Vec<_>>());
                assert!(pending.first.get().len() <= PENDING_BYTES_MAX);
                assert_eq!(pending.has_more(), !frames.is_empty());
                let last = frames.len().saturating_sub(1);
                for (index, frame) in frames.iter().enumerate() {
                    assert!(frame.len() <= PENDING_FRAME_BYTES_MAX, "{} bytes", frame.len());
                    let frame: serde_json::Value = serde_json::from_str(frame.text()).unwrap();
                    assert_eq!(frame["more"], index < last);
                }
            }
        }
    }

    #[test]
    fn a_frame_is_encoded_once_for_all() {
        let pending = pending(&[question(0, QUESTION_BYTES_MAX)]);
        let frame = || pending.frame(&target(Addressing::Channel), 0).unwrap();
        assert_eq!(frame().text().as_ptr(), frame().text().as_ptr());
    }
}
