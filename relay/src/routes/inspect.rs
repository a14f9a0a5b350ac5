//! Which agents are alive, and the state of a channel.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use journal::{ReplicaCounts, Unavailable};
use protocol::{Channel, ErrorCode};
use serde::Serialize;
use serde_json::value::RawValue;

use super::refuse::Refused;
use super::{AppState, Query, authenticate};
use crate::auth::Principal;

/// How many agents one answer holds, where nothing else is asked for, and at most.
const AGENTS_DEFAULT: usize = 100;
const AGENTS_MAX: usize = 1_000;

/// `GET /api/v1/agents?after=&limit=`
pub(super) async fn agents(
    State(app): State<Arc<AppState>>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let listed = async {
        let query = Query::of(&uri)?;
        let principal = authenticate(&app, &headers, &query)?;
        check_admin(&principal, &uri)?;
        let limit = match query.get("limit") {
            None => AGENTS_DEFAULT,
            Some(text) => {
                let limit = text.parse().ok().filter(|limit| (1..=AGENTS_MAX).contains(limit));
                let why = || format!("`limit` must be a whole number from 1 to {AGENTS_MAX}");
                limit.ok_or_else(|| Refused::new(ErrorCode::BadRequest, why()))?
            }
        };
        let agents = app.journal.alive(query.get("after"), limit).await.map_err(away)?;
        Ok(Json(agents).into_response())
    };
    listed.await.unwrap_or_else(Refused::into_response)
}

/// `GET /api/v1/stats`
pub(super) async fn stats(
    State(app): State<Arc<AppState>>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    #[derive(Serialize)]
    struct Stats {
        connections: u64,
        replicas: Vec<ReplicaCounts>,
    }
    let counted = async {
        let principal = authenticate(&app, &headers, &Query::of(&uri)?)?;
        check_admin(&principal, &uri)?;
        let replicas = app.journal.replicas().await.map_err(away)?;
        let connections = replicas.iter().map(|replica| replica.connections).sum();
        Ok(Json(Stats { connections, replicas }).into_response())
    };
    counted.await.unwrap_or_else(Refused::into_response)
}

/// `GET /api/v1/channels/{channel}`
pub(super) async fn channel(
    State(app): State<Arc<AppState>>,
    Path(channel): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    #[derive(Serialize)]
    struct Stands {
        channel: Channel,
        head: Option<String>,
        pending: Vec<Box<RawValue>>,
        agents: Vec<Box<str>>,
        subscribers: u64,
    }
    let described = async {
        let principal = authenticate(&app, &headers, &Query::of(&uri)?)?;
        let channel: Channel = channel.parse().map_err(|error: protocol::ChannelError| {
            Refused::new(ErrorCode::BadRequest, error.to_string())
        })?;
        if !principal.grant.may_subscribe(&channel) {
            let message = format!("`{channel}` not found or not permitted");
            return Err(Refused::new(ErrorCode::NotFound, message));
        }
        let (head, pending) = app.journal.pending(&channel).await.map_err(away)?;
        let agents = app.journal.agents_on(&channel).await.map_err(away)?;
        let pending = pending.into_iter();
        let pending =
            pending.filter_map(|one| RawValue::from_string(one.question.into()).ok()).collect();
        let head = head.map(|head| head.to_string());
        let subscribers = app.journal.subscribers(&channel).await.map_err(away)?;
        Ok(Json(Stands { channel, head, pending, agents, subscribers }).into_response())
    };
    described.await.unwrap_or_else(Refused::into_response)
}

fn check_admin(principal: &Principal, uri: &Uri) -> Result<(), Refused> {
    if principal.grant.may_administer() {
        return Ok(());
    }
    Err(Refused::new(ErrorCode::NotFound, format!("`{}` not found or not permitted", uri.path())))
}

fn away(error: Unavailable) -> Refused {
    Refused::new(ErrorCode::Unavailable, error.to_string())
}
