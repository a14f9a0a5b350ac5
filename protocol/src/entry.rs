//! What a journal holds: an event, or a command, at its position.

use crate::Offset;

/// The name under which an entry is delivered whose content is not a valid event: its offset still
/// counts, so nobody sees a gap, and nobody can forge a frame with it.
pub const UNREADABLE: &str = "unreadable";

/// An entry of a journal, immutable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands.
    pub offset: Offset,
    /// When it was written, by Redis' clock, in Unix microseconds.
    pub time_us: u64,
    /// The event's or the command's name.
    pub name: Box<str>,
    /// The data: well-formed JSON, as the writer wrote it.
    pub data: Box<str>,
}

impl Entry {
    /// How much memory the entry's texts take, in bytes.
    pub fn bytes(&self) -> usize {
        self.name.len() + self.data.len()
    }
}
