//! A call's body, bounded in bytes and in time.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use protocol::ErrorCode;

use super::refuse::Refused;

/// The body as text.
pub(super) async fn read(body: Body, most: usize, limit: Duration) -> Result<String, Refused> {
    let bad = |message: String| Refused::new(ErrorCode::BadRequest, message);
    let bytes = tokio::time::timeout(limit, to_bytes(body, most))
        .await
        .map_err(|_| bad(format!("the body took longer than {} s", limit.as_secs())))?
        .map_err(|_| {
            let message = format!("the body exceeds {most} bytes, or broke off");
            Refused::new(ErrorCode::TooLarge, message)
        })?;
    String::from_utf8(bytes.into()).map_err(|_| bad("the body is not UTF-8".to_owned()))
}
