//! A call's body, bounded in bytes and in time, and counted while it is there.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::StatusCode;
use protocol::ErrorCode;

use super::Caller;
use super::refuse::Refused;
use super::upgrade::full;
use crate::memory::{Memory, Reserved};

/// A body's text. It counts until this is dropped.
#[derive(Debug)]
pub(super) struct Text {
    text: String,
    _reserved: Reserved,
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

/// The body as text.
pub(super) async fn read(
    caller: &Caller,
    body: Body,
    most: usize,
    limit: Duration,
    memory: &Arc<Memory>,
) -> Result<Text, Refused> {
    check_media_type(caller.media_type.as_deref())?;
    let bad = |message: String| Refused::new(ErrorCode::BadRequest, message);
    let (bytes, reserved) = tokio::time::timeout(limit, collect(body, most, memory))
        .await
        .map_err(|_| bad(format!("the body took longer than {} s", limit.as_secs())))??;
    caller.must_still_be_valid()?;
    let text = String::from_utf8(bytes).map_err(|_| bad("the body is not UTF-8".to_owned()))?;
    Ok(Text { text, _reserved: reserved })
}

async fn collect(
    mut body: Body,
    most: usize,
    memory: &Arc<Memory>,
) -> Result<(Vec<u8>, Reserved), Refused> {
    let (mut bytes, mut reserved) = (Vec::new(), memory.reserve(0));
    while let Some(frame) =
        std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await
    {
        let frame = frame.map_err(|error| Refused::bad(format_args!("the body: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > most {
            let message = format!("the body exceeds {most} bytes");
            return Err(Refused::new(ErrorCode::TooLarge, message));
        }
        // The text, and what is made of it.
        if !reserved.try_grow(2 * data.len()) {
            return Err(full());
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, reserved))
}

/// A body of which nothing is said is not taken for JSON: the script of a foreign page can send that without a preflight.
fn check_media_type(given: Option<&str>) -> Result<(), Refused> {
    let name = given.map(|given| given.split(';').next().unwrap_or_default().trim());
    if name.is_some_and(|name| name.eq_ignore_ascii_case("application/json")) {
        return Ok(());
    }
    let refused = Refused::bad(
        "the body must be said to be JSON: send `Content-Type: application/json` (with curl, `--json` instead of `-d`)",
    );
    Err(refused.with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE))
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;

    /// A foreign page can send a body of which it says nothing without asking first.
    #[test]
    fn only_what_is_said_to_be_json_is_taken_for_it() {
        for good in ["application/json", "Application/JSON", "application/json; charset=utf-8"] {
            assert!(check_media_type(Some(good)).is_ok(), "{good}");
        }
        let form = "application/x-www-form-urlencoded";
        for bad in [None, Some(""), Some("text/plain"), Some(form), Some("application/jsonx")] {
            let refused = check_media_type(bad).unwrap_err();
            let message = refused.body().message.to_owned();
            assert!(message.contains("Content-Type: application/json"), "{bad:?}: {message}");
            assert_eq!(refused.into_response().status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        }
    }
}
