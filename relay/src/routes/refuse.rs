//! How a route refuses: one form for every call.

use std::fmt::Display;

use axum::Json;
use axum::http::header::{RETRY_AFTER, SEC_WEBSOCKET_VERSION, UPGRADE, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use journal::Unavailable;
use protocol::frame::{ErrorBody, Refusal};
use protocol::{ChannelError, DataError, ErrorCode, NameError};
use serde::Serialize;

/// `{"error":{"code","message","retryable"}}` with the code's status, or one that says more.
#[derive(Debug)]
pub(crate) struct Refused {
    refusal: Refusal,
    status: Option<StatusCode>,
}

impl Refused {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Refusal::new(code, message).into()
    }

    /// What the caller may not know of is not there.
    pub(crate) fn not_found(what: impl Display) -> Self {
        Refusal::not_found(what).into()
    }

    pub(super) fn bad(message: impl Display) -> Self {
        Self::new(ErrorCode::BadRequest, message.to_string())
    }

    /// With a status that says more than the code's.
    pub(super) fn with_status(self, status: StatusCode) -> Self {
        Self { status: Some(status), ..self }
    }

    pub(super) fn body(&self) -> ErrorBody<'_> {
        self.refusal.body()
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, status: None }
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
        let status = StatusCode::from_u16(self.refusal.code.http_status());
        let status = self.status.unwrap_or(status.unwrap_or(StatusCode::BAD_REQUEST));
        let mut response = refused(status, self.body());
        let headers = response.headers_mut();
        let is = HeaderValue::from_static;
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, is("Bearer"));
        }
        if status == StatusCode::UPGRADE_REQUIRED {
            headers.insert(UPGRADE, is("websocket"));
            headers.insert(SEC_WEBSOCKET_VERSION, is("13"));
        }
        response
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
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}
