//! Who is there: the agents that are alive, and what stands on a channel.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use journal::{Alive, Unavailable};
use protocol::{Channel, ErrorCode};
use serde::Serialize;
use serde_json::value::RawValue;

use super::refuse::Refused;
use super::{House, Query, authenticate};

/// `GET /api/v1/agents`
pub(super) async fn agents(
    State(house): State<Arc<House>>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    #[derive(Serialize)]
    struct Agents {
        agents: Vec<Alive>,
    }
    let listed = async {
        let principal = authenticate(&house, &headers, &Query::of(&uri)?)?;
        if !principal.grant.may_administer() {
            let message = format!("there is no `{}` for you", uri.path());
            return Err(Refused::new(ErrorCode::NotFound, message));
        }
        let agents = house.journal.alive().await.map_err(away)?;
        Ok(Json(Agents { agents }).into_response())
    };
    listed.await.unwrap_or_else(Refused::into_response)
}

/// `GET /api/v1/channels/{channel}`
pub(super) async fn channel(
    State(house): State<Arc<House>>,
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
    }
    let described = async {
        let principal = authenticate(&house, &headers, &Query::of(&uri)?)?;
        let channel: Channel = channel.parse().map_err(|error: protocol::ChannelError| {
            Refused::new(ErrorCode::BadRequest, error.to_string())
        })?;
        if !principal.grant.may_subscribe(&channel) {
            let message = format!("there is no `{channel}` for you");
            return Err(Refused::new(ErrorCode::NotFound, message));
        }
        let (head, pending) = house.journal.pending(&channel).await.map_err(away)?;
        let agents = house.journal.agents_on(&channel).await.map_err(away)?;
        let pending = pending.into_iter();
        let pending =
            pending.filter_map(|one| RawValue::from_string(one.question.into()).ok()).collect();
        let head = head.map(|head| head.to_string());
        Ok(Json(Stands { channel, head, pending, agents }).into_response())
    };
    described.await.unwrap_or_else(Refused::into_response)
}

fn away(error: Unavailable) -> Refused {
    Refused::new(ErrorCode::Unavailable, error.to_string())
}
