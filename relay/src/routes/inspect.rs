//! Which agents are alive, and the state of a channel.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use journal::{AgentTree, AlivePage, ReplicaCounts};
use protocol::{Channel, Kind};
use serde::Serialize;
use serde_json::value::RawValue;

use super::refuse::Refused;
use super::{AppState, Caller};

/// How many agents one answer holds, where nothing else is asked for, and at most.
const AGENTS_DEFAULT: usize = 100;
const AGENTS_MAX: usize = 1_000;
/// How many agents of one channel are shown.
const TREE_MAX: usize = 256;

/// `GET /api/v1/agents?after=&limit=`
pub(super) async fn agents(
    State(app): State<Arc<AppState>>,
    caller: Caller,
) -> Result<Json<AlivePage>, Refused> {
    caller.must_administer()?;
    let limit = caller.limit(AGENTS_DEFAULT, AGENTS_MAX)?;
    Ok(Json(app.journal.alive(caller.query.get("after"), limit).await?))
}

#[derive(Serialize)]
pub(super) struct Stats {
    connections: u64,
    replicas: Vec<ReplicaCounts>,
}

/// `GET /api/v1/stats`
pub(super) async fn stats(
    State(app): State<Arc<AppState>>,
    caller: Caller,
) -> Result<Json<Stats>, Refused> {
    caller.must_administer()?;
    let replicas = app.journal.replicas().await?;
    let connections = replicas.iter().map(|replica| replica.connections).sum();
    Ok(Json(Stats { connections, replicas }))
}

#[derive(Serialize)]
pub(super) struct ChannelInfo {
    channel: Channel,
    head: Option<String>,
    pending: Vec<Box<RawValue>>,
    agents: Vec<Box<str>>,
    agents_total: u64,
    subscribers: u64,
}

/// `GET /api/v1/channels/{channel}`
pub(super) async fn channel(
    State(app): State<Arc<AppState>>,
    Path(channel): Path<String>,
    caller: Caller,
) -> Result<Json<ChannelInfo>, Refused> {
    let channel = caller.readable(&channel)?;
    let (head, pending) = app.journal.pending(&channel).await?;
    let pending = pending.into_iter();
    Ok(Json(ChannelInfo {
        head: head.map(|head| head.to_string()),
        pending: pending
            .filter_map(|one| RawValue::from_string(one.question.into()).ok())
            .collect(),
        agents: app.journal.agents_on(&channel).await?,
        agents_total: app.journal.listeners(&channel).await?,
        subscribers: app.journal.subscribers(&channel).await?,
        channel,
    }))
}

/// `GET /api/v1/channels/{channel}/agents`
pub(super) async fn tree(
    State(app): State<Arc<AppState>>,
    Path(channel): Path<String>,
    caller: Caller,
) -> Result<Json<AgentTree>, Refused> {
    let channel = caller.readable(&channel)?;
    match channel.kind() {
        Kind::Agent | Kind::Session => Ok(Json(app.journal.tree(&channel, TREE_MAX).await?)),
        _ => Err(Refused::bad(format_args!(
            "`{channel}` has no agents: ask of a session or an agent"
        ))),
    }
}
