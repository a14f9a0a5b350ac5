//! The vocabulary of Agent Relay, without I/O.
//!
//! Everything that two sides must agree on lives here: addresses ([`Channel`]), positions
//! ([`Offset`]), what a journal holds ([`Entry`]), what crosses a browser's socket ([`frame`]) and an agent's ([`agent`]), what
//! a token allows ([`Grant`]), what can go wrong ([`ErrorCode`], [`CloseCode`]) and every bound
//! ([`limits`]). `PROTOCOL.md` beside this crate describes the same for other languages, and
//! `vectors/` holds golden examples that this crate's tests run.

pub mod agent;
mod channel;
mod code;
mod encode;
mod entry;
pub mod frame;
mod grant;
mod integer;
mod json;
pub mod limits;
mod list;
mod merge;
mod name;
mod object;
mod offset;
mod partition;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod properties;
mod shown;

pub use agent::{
    AgentCall, AgentError, AgentFrame, AgentMessage, ApprovalAnswer, Asks, CallBody, CallError,
    Parent, Resolved, Status, Take,
};
pub use channel::{Channel, ChannelError, Kind};
pub use code::{CloseCode, ErrorCode};
pub use encode::{Format, encode, iso_8601};
pub use entry::{Entry, UNREADABLE};
pub use grant::{Grant, GrantError};
pub use json::{DataError, check_data, check_detail, check_question, json_error};
pub use list::Counted;
pub use merge::{Frame, merge};
pub use name::{NameError, check_command_name, check_event_name, check_idempotency_key};
pub use object::{Object, object};
pub use offset::{Offset, OffsetError};
pub use partition::{partition, partition_tag};
pub use shown::{is_visible, shown};
