//! What a viewer is to be told in answer to its frames, until its transport can write it. Bounded in bytes.
//!
//! Events do not wait here: a [`Subscription`](crate::events::Subscription) is a cursor and keeps none.

use std::collections::VecDeque;
use std::sync::Arc;

use protocol::frame::RelayFrame;

use crate::memory::Memory;
use crate::websocket::TextFrame;

/// Beyond this nothing more is asked for the viewer: no frame of it is read, no reply is taken, and what nobody
/// here asked for is dropped. What one more frame can add stays far below the MiB that a connection may hold.
const ROOM_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct ViewerOutbox {
    memory: Arc<Memory>,
    frames: VecDeque<TextFrame>,
    /// The answer to the last of the pings that came while nothing could be written.
    pong: Option<TextFrame>,
    bytes: usize,
}

impl ViewerOutbox {
    pub(super) fn new(memory: &Arc<Memory>) -> Self {
        Self { memory: Arc::clone(memory), frames: VecDeque::new(), pong: None, bytes: 0 }
    }

    pub(super) fn say(&mut self, frame: &RelayFrame<'_>) {
        self.push(self.frame(frame));
    }

    pub(super) fn push(&mut self, frame: TextFrame) {
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    /// While the transport is blocked only the last pong is kept.
    pub(super) fn push_pong(&mut self, frame: String, is_blocked: bool) {
        let frame = TextFrame::new(frame, &self.memory);
        if !is_blocked {
            return self.push(frame);
        }
        self.bytes += frame.len();
        if let Some(before) = self.pong.replace(frame) {
            self.bytes -= before.len();
        }
    }

    /// Room for what nobody here asked for: it must not pile up where nobody reads.
    pub(super) fn push_if_there_is_room(&mut self, frame: String) {
        if self.has_room() {
            self.push(TextFrame::new(frame, &self.memory));
        }
    }

    /// The frame, which counts as what it is written in does.
    pub(super) fn frame(&self, frame: &RelayFrame<'_>) -> TextFrame {
        TextFrame::new(frame.to_text(), &self.memory)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.pong.is_none()
    }

    pub(super) fn has_room(&self) -> bool {
        self.bytes <= ROOM_BYTES
    }

    /// Hands out all that waits.
    pub(super) fn take(&mut self, out: &mut Vec<TextFrame>) {
        out.extend(self.frames.drain(..));
        out.extend(self.pong.take());
        self.bytes = 0;
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(outbox: &mut ViewerOutbox) -> Vec<String> {
        let mut out = Vec::new();
        outbox.take(&mut out);
        out.iter().map(|frame| frame.text().to_owned()).collect()
    }

    fn frame(text: &str) -> TextFrame {
        TextFrame::new(text.to_owned(), &Memory::new(usize::MAX))
    }

    #[test]
    fn of_pings_whose_pong_cannot_be_written_only_the_last_is_answered() {
        let mut outbox = ViewerOutbox::new(&Memory::new(usize::MAX));
        outbox.push(frame("answer"));
        (0..100_000).for_each(|i| outbox.push_pong(i.to_string(), true));

        assert_eq!(outbox.bytes(), frame("answer").len() + frame("99999").len());
        assert_eq!(texts(&mut outbox), ["answer", "99999"]);
        ["1", "2"].into_iter().for_each(|pong| outbox.push_pong(pong.to_owned(), false));
        assert_eq!(texts(&mut outbox), ["1", "2"], "while bytes are taken each is answered");
    }

    #[test]
    fn what_nobody_asked_for_is_dropped_when_the_outbox_is_full() {
        let mut outbox = ViewerOutbox::new(&Memory::new(usize::MAX));
        outbox.push(frame(&"x".repeat(ROOM_BYTES + 1)));
        assert!(!outbox.has_room());

        outbox.push_if_there_is_room("message".to_owned());

        assert_eq!(texts(&mut outbox).len(), 1);
        assert!(outbox.has_room());
    }
}
