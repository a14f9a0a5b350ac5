//! `/healthz` and `/readyz`: whether the process is alive, and whether it should receive traffic.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use protocol::ErrorCode;

use super::AppState;
use super::refuse::Refused;
use crate::events::Status;

/// `GET /healthz`: the process answers. It does not depend on Redis: restarting the relay would not bring Redis back.
pub(super) async fn live() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: Redis answers, writes, and permits all that is needed, every task of the replica runs, and the replica is not leaving.
pub(super) async fn ready(State(app): State<Arc<AppState>>) -> Response {
    if app.leaving.is_cancelled() {
        return Refused::new(ErrorCode::Unavailable, "this replica is leaving").into_response();
    }
    if let Some(failure) = app.supervisor.failure() {
        return Refused::new(ErrorCode::Unavailable, failure.to_string()).into_response();
    }
    if *app.events.status().borrow() == Status::Degraded || !app.events.is_following() {
        return Refused::new(ErrorCode::Unavailable, "redis is out of reach").into_response();
    }
    if !app.redis_works.load(Ordering::Relaxed) {
        let message = "redis refuses what a relay needs: the log says what";
        return Refused::new(ErrorCode::Unavailable, message).into_response();
    }
    "ready\n".into_response()
}
