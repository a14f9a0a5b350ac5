//! The one check of an event's data: well-formed JSON, not too deep, not too large.
//!
//! It is done once where an entry enters and once per replica that carries it; after that the data
//! is carried as bytes.

use serde::de::IgnoredAny;
use thiserror::Error;

use crate::ErrorCode;
use crate::limits::{EVENT_DATA_BYTES_MAX, EVENT_DATA_DEPTH_MAX, QUESTION_BYTES_MAX};

/// Why data is refused.
#[derive(Debug, Error)]
pub enum DataError {
    /// It is not JSON.
    #[error("the data is not well-formed JSON: {0}")]
    Malformed(String),
    /// It nests too deeply.
    #[error("the data nests deeper than {EVENT_DATA_DEPTH_MAX} levels")]
    Deep,
    /// It is too large.
    #[error(
        "the data has {0} bytes, the limit is {EVENT_DATA_BYTES_MAX}: store it elsewhere and send a link"
    )]
    Large(usize),
    /// It is a question that is too large.
    #[error(
        "the question has {0} bytes, the limit is {QUESTION_BYTES_MAX}: store it elsewhere and send a link"
    )]
    LargeQuestion(usize),
    /// It is a question that is not an object.
    #[error("the question must be an object")]
    NotAnObject,
}

impl DataError {
    /// With which code it is refused.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Large(_) | Self::LargeQuestion(_) => ErrorCode::TooLarge,
            Self::Malformed(_) | Self::Deep | Self::NotAnObject => ErrorCode::BadRequest,
        }
    }
}

/// Whether `data` may be an event's data.
///
/// # Errors
/// [`DataError`] says why not.
pub fn check_data(data: &str) -> Result<(), DataError> {
    if data.len() > EVENT_DATA_BYTES_MAX {
        return Err(DataError::Large(data.len()));
    }
    // First the depth, as a plain scan: what nests too deeply never meets a recursive parser.
    if depth(data.as_bytes()) > EVENT_DATA_DEPTH_MAX {
        return Err(DataError::Deep);
    }
    serde_json::from_str::<IgnoredAny>(data)
        .map(drop)
        .map_err(|error| DataError::Malformed(error.to_string()))
}

/// Whether `question` may be what a question shows: an object that fits into an event, one level down.
///
/// # Errors
/// [`DataError`] says why not.
pub fn check_question(question: &str) -> Result<(), DataError> {
    if question.len() > QUESTION_BYTES_MAX {
        return Err(DataError::LargeQuestion(question.len()));
    }
    if depth(question.as_bytes()) >= EVENT_DATA_DEPTH_MAX {
        return Err(DataError::Deep);
    }
    check_data(question)?;
    if question.trim_start().starts_with('{') { Ok(()) } else { Err(DataError::NotAnObject) }
}

/// The deepest nesting of brackets outside strings.
fn depth(json: &[u8]) -> usize {
    let (mut level, mut deepest, mut in_string, mut escaped) = (0usize, 0usize, false, false);
    for &byte in json {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_string = !in_string,
            (false, b'{' | b'[') => {
                level += 1;
                deepest = deepest.max(level);
            }
            (false, b'}' | b']') => level = level.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_parser_reads_is_accepted() {
        for good in ["{}", "null", "1e400", r#""\ud83d""#, r#"{"a":[1,{"b":"]}"}]}"#, " [1] "] {
            assert!(check_data(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn what_some_parser_would_refuse_is_refused() {
        for bad in ["", "{", "{'a':1}", "[1,]", "nul", "{}{}", "\"\n\"", r#""\x""#] {
            assert!(matches!(check_data(bad), Err(DataError::Malformed(_))), "{bad}");
        }
    }

    #[test]
    fn depth_is_bounded_and_brackets_in_strings_do_not_count() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(check_data(&nested(EVENT_DATA_DEPTH_MAX)).is_ok());
        assert!(matches!(check_data(&nested(EVENT_DATA_DEPTH_MAX + 1)), Err(DataError::Deep)));
        assert!(check_data(&format!("\"\\\"{}\"", "[".repeat(1_000))).is_ok());
    }

    #[test]
    fn a_question_leaves_room_for_what_stands_around_it() {
        let object = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
        assert!(check_question(&object(QUESTION_BYTES_MAX)).is_ok());
        let large = check_question(&object(QUESTION_BYTES_MAX + 1));
        assert!(matches!(large, Err(DataError::LargeQuestion(_))), "{large:?}");
        let nested =
            |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        assert!(check_question(&nested(EVENT_DATA_DEPTH_MAX - 2)).is_ok());
        assert!(matches!(check_question(&nested(EVENT_DATA_DEPTH_MAX - 1)), Err(DataError::Deep)));
        for bad in ["[]", "1", "null", "{},{}"] {
            assert!(check_question(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn size_is_bounded() {
        let data = format!("\"{}\"", "x".repeat(EVENT_DATA_BYTES_MAX - 2));
        assert!(check_data(&data).is_ok());
        assert!(matches!(check_data(&format!("{data} ")), Err(DataError::Large(_))));
    }
}
