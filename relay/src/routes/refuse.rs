//! How a route refuses: one form for every call.

use std::fmt::Display;

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use journal::Unavailable;
use protocol::frame::{ErrorBody, Refusal};
use protocol::{ChannelError, DataError, ErrorCode, NameError};
use serde::Serialize;

/// `{"error":{"code","message","retryable"}}` with the code's status.
#[derive(Debug)]
pub(crate) struct Refused(Refusal);

impl Refused {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(Refusal::new(code, message))
    }

    /// What the caller may not know of is not there.
    pub(crate) fn not_found(what: impl Display) -> Self {
        Self(Refusal::not_found(what))
    }

    pub(super) fn bad(message: impl Display) -> Self {
        Self::new(ErrorCode::BadRequest, message.to_string())
    }

    pub(super) fn body(&self) -> ErrorBody<'_> {
        self.0.body()
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl From<Unavailable> for Refused {
    fn from(error: Unavailable) -> Self {
        Self::new(ErrorCode::Unavailable, error.to_string())
    }
}

impl From<NameError> for Refused {
    fn from(error: NameError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<DataError> for Refused {
    fn from(error: DataError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<ChannelError> for Refused {
    fn from(error: ChannelError) -> Self {
        Self::bad(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http_status());
        refused(status.unwrap_or(StatusCode::BAD_REQUEST), self.body())
    }
}

/// The answer of a refused call.
pub(super) fn refused(status: StatusCode, error: ErrorBody<'_>) -> Response {
    #[derive(Serialize)]
    struct Body<'a> {
        error: ErrorBody<'a>,
    }
    let is_retryable = error.retryable;
    let mut response = (status, Json(Body { error })).into_response();
    if is_retryable {
        // A second: Redis is usually back within two, and a retry is cheap.
        response.headers_mut().insert(RETRY_AFTER, axum::http::HeaderValue::from_static("1"));
    }
    response
}
