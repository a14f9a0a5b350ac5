//! `demo-agent`: the demo's agent alone, as any agent of a deployment: it knows Redis, and no relay.

use std::time::Duration;

use anyhow::Context as _;
use publisher_sdk::Agent;
use tokio_util::sync::CancellationToken;

use crate::signals::Signals;

/// Works until it is asked to end.
pub(crate) async fn run(
    redis: &str,
    lease: Duration,
    session: &str,
    agent_id: &str,
) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("cannot listen for signals")?;
    let shutdown = CancellationToken::new();
    let mut work = Box::pin(work(redis, lease, session, agent_id, shutdown.clone()));
    tokio::select! {
        ended = &mut work => return ended,
        () = signals.next() => {}
    }
    tracing::info!("asked to end: the run is cancelled");
    shutdown.cancel();
    let mut ended = Ok(());
    signals.unless_again(async { ended = work.await }).await?;
    ended
}

async fn work(
    redis: &str,
    lease: Duration,
    session: &str,
    agent_id: &str,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let connecting = Agent::options().id(agent_id).lease(lease).connect(redis);
    let Some(agent) = shutdown.run_until_cancelled(Box::pin(connecting)).await else {
        return Ok(());
    };
    let agent = agent.context("the demo agent cannot connect")?;
    tracing::info!(session, agent_id, "the demo agent works");
    demo::run_agent(agent, session, shutdown).await.context("the demo agent ended")
}
