//! The agent's side of Agent Relay: publish events, stream text, take commands.
//!
//! A whole agent:
//!
//! ```
//! use publisher_sdk::vocabulary::TextComplete;
//! use publisher_sdk::{Agent, Journal};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // Agent::connect("redis://127.0.0.1:6379") where there is a Redis.
//!     let agent = Agent::options().id("helper").attach(Journal::in_memory()).await?;
//!     let session = agent.session("42").await?;
//!
//!     let run = session.begin_run("run-1");
//!     run.announce(&serde_json::json!({"task": "Say hello"})).await?;
//!     for token in ["Hel", "lo, ", "world"] {
//!         if run.is_cancelled() {
//!             run.stop().await?;
//!             return Ok(agent.close().await?);
//!         }
//!         session.text_delta("t1", token)?;
//!     }
//!     session.send_event(&TextComplete::new("Hello, world").turn_id("t1"))?;
//!     run.complete().await?;
//!     Ok(agent.close().await?)
//! }
//! ```
//!
//! - ▼ [`Publisher`] publishes on one channel: any event, the [vocabulary] with its types, text
//!   deltas in batches. What is said on a channel stands in the order in which it was said.
//! - ▲ [`Commands`] are what people ask of the agent, each once; a [`Run`] is what their Cancel
//!   cancels. A [`PermissionRequest`] or [`BudgetRequest`] is what the agent asks of people. Requests
//!   to a [service](Agent::serve) go to one of its workers.
//! - An agent is known to be alive, or declared lost: a run always has an end that everybody is told,
//!   whatever becomes of the process.
//! - The agent and the relay meet in the [`Journal`], and neither waits for the other. An agent that has no
//!   Redis connects to a relay (`http://…`), which speaks to the journal for it. A browser that leaves
//!   has no effect on an agent.

mod agent;
mod approvals;
mod closing;
mod commands;
mod ends;
mod error;
mod events;
mod leases;
mod lifecycle;
mod link;
mod options;
mod publisher;
mod reason;
mod run;
mod runs;
mod service;
mod thread;
mod tokens;
mod watch;

pub use agent::Agent;
pub use approvals::{Budget, BudgetRequest, Permission, PermissionRequest};
pub use commands::report::RequestError;
pub use commands::{Command, Commands};
pub use error::{AskError, ConnectError, FlushError, OpenError, PublishError, RunIdError};
pub use events::vocabulary;
pub use journal::Journal;
pub use link::Link;
pub use options::AgentOptions;
pub use protocol::{Channel, Offset};
pub use publisher::Publisher;
pub use reason::{Cancellation, Reason};
pub use run::{Run, ScopeError};
pub use service::{Request, Service, ServiceOptions};
