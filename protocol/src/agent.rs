//! What crosses the WebSocket of an agent that has no Redis, `/ws/agents/{agent_id}`: [`AgentCall`] up,
//! [`AgentMessage`] down.
//!
//! Every call has an `id` of the agent's own, ascending; the reply carries it. A call may be repeated with
//! the same `id` after the connection broke, on any replica: it happens once.

pub mod body;
mod call;
mod message;
mod record;

pub use call::{AgentCall, AgentFrame, CallBody, CallError};
pub use message::{AgentError, AgentMessage};
pub use record::{ApprovalAnswer, Asks, Parent, Resolved, Status, Take};
