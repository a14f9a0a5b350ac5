//! The agent's side of Agent Relay: publish events, stream text, take commands.
//!
//! A whole agent:
//!
//! ```
//! use publisher_sdk::vocabulary::{Complete, Outcome, TextComplete};
//! use publisher_sdk::{Agent, Journal};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // Agent::connect("redis://127.0.0.1:6379") where there is a Redis.
//!     let agent = Agent::options().id("helper").attach(Journal::in_memory()).await?;
//!     let session = agent.session("42").await?;
//!
//!     let mut run = session.begin_run("run-1");
//!     run.announce(&serde_json::json!({"task": "Say hello"})).await?;
//!     for token in ["Hel", "lo, ", "world"] {
//!         if run.is_cancelled() {
//!             session.send_event(&Complete::new(Outcome::Cancelled).run_id("run-1"))?;
//!             run.stop().await?;
//!             return Ok(agent.close().await?);
//!         }
//!         session.text_delta("t1", token)?;
//!     }
//!     session.send_event(&TextComplete::new("Hello, world").turn_id("t1"))?;
//!     session.send_event(&Complete::new(Outcome::Completed).run_id("run-1"))?;
//!     run.complete().await?;
//!     Ok(agent.close().await?)
//! }
//! ```
//!
//! - ▼ [`Publisher`] publishes on one channel: any event, the [vocabulary] with its types, text
//!   deltas in batches. What is said on a channel stands in the order in which it was said.
//! - ▲ [`Commands`] are what people ask of the agent, each once; a [`Run`] is what their Cancel
//!   cancels.
//! - The agent and the relay never meet: both speak to the [`Journal`], and neither waits for the
//!   other. A browser that leaves changes nothing here.

mod agent;
mod commands;
mod error;
mod events;
mod lifecycle;
mod options;
mod publisher;
mod run;

pub use agent::Agent;
pub use commands::{Command, Commands};
pub use error::{ConnectError, FlushError, OpenError, PublishError};
pub use events::vocabulary;
pub use journal::Journal;
pub use options::AgentOptions;
pub use protocol::{Channel, Offset};
pub use publisher::Publisher;
pub use run::{Cancellation, Run};
