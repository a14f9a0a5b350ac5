//! The showcase: an agent written with the SDK, and the page that shows it.
//!
//! The agent plays [scripts](script), one run after the other. What it says is invented; how it
//! says it is what any agent does. It knows nothing of a relay and uses only [`publisher_sdk`].
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let agent = publisher_sdk::Agent::options().id("demo").connect("redis://127.0.0.1:6379").await?;
//! let shutdown = tokio_util::sync::CancellationToken::new();
//! demo::run_agent(agent, "demo", shutdown).await?;
//! # Ok(())
//! # }
//! ```

mod performance;
mod script;
mod scripts;
mod tokens;

use std::future::pending;
use std::time::Duration;

use publisher_sdk::vocabulary::StatusChanged;
use publisher_sdk::{Agent, FlushError, OpenError};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use performance::Stage;

/// The page: one file, no dependencies. It shows the session, the plan and the agent, and can
/// cancel.
pub const PAGE: &str = include_str!("page.html");

/// The agent rests between two runs.
const REST: Duration = Duration::from_secs(4);

/// Why the demo agent ended before it was told to, or not cleanly.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DemoError {
    /// The session or the plan could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Another agent of its id has taken over, or it was declared lost.
    #[error(
        "another agent of this id has taken over, or this one was declared lost: start it again"
    )]
    Fenced,
    /// Not everything it said could be written.
    #[error(transparent)]
    Flush(#[from] FlushError),
}

impl DemoError {
    /// Whether the same call, tried again later, can succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Open(error) => error.is_retryable(),
            Self::Fenced => false,
            Self::Flush(error) => error.is_retryable(),
        }
    }
}

/// Works on `session:{session}` and `plan:{session}`, one run after the other, until `shutdown`. A
/// run that is under way then is cancelled, and everything is written out before this returns.
///
/// # Errors
/// [`DemoError`]. A run that goes wrong is logged and is not an error.
pub async fn run_agent(
    agent: Agent,
    session: &str,
    shutdown: CancellationToken,
) -> Result<(), DemoError> {
    let stage = Stage {
        session: agent.session(session).await?,
        plan: agent.channel(&format!("plan:{session}"))?,
        agent: agent.clone(),
        shutdown,
    };
    tokio::select! {
        () = perform(&stage) => {}
        () = decline_commands(&agent) => {}
        () = agent.fenced() => return Err(DemoError::Fenced),
    }
    drop(stage);
    if let Err(error) = agent.own_channel().send_event(&StatusChanged::new("stopped")) {
        tracing::warn!(%error, "the agent's last status was not sent");
    }
    Ok(agent.close().await?)
}

/// One script after the other.
async fn perform(stage: &Stage) {
    for script in scripts::ALL.iter().cycle() {
        if stage.shutdown.is_cancelled() {
            return;
        }
        if let Err(error) = Box::pin(stage.play(script)).await {
            tracing::warn!(task = script.task, %error, "a run went wrong");
        }
        // Cut short by `shutdown`, which the next look sees.
        stage.shutdown.run_until_cancelled(tokio::time::sleep(REST)).await;
    }
}

/// Rejects every command but a Cancel, so that its sender does not wait for an effect.
async fn decline_commands(agent: &Agent) {
    let mut commands = agent.commands();
    while let Some(command) = commands.next().await {
        if command.name == "cancel_agent" {
            continue;
        }
        tracing::info!(name = command.name, "a command is declined");
        command.rejected("the demo agent can be cancelled, and nothing else");
    }
    pending().await
}
