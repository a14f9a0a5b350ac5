//! The one check of an event's data: well-formed JSON, not too deep, not too large, no number that is too long.
//!
//! It is done once where an entry enters and once per replica that carries it; after that the data
//! is carried as bytes.

use serde::de::IgnoredAny;
use thiserror::Error;

use crate::limits::{
    DETAIL_BYTES_MAX, DETAIL_DEPTH_MAX, EVENT_DATA_BYTES_MAX, EVENT_DATA_DEPTH_MAX,
    EVENT_DATA_NUMBER_MAX, QUESTION_BYTES_MAX,
};
use crate::{ErrorCode, shown};

/// Why data is refused.
#[derive(Debug, Error)]
pub enum DataError {
    /// It is not JSON.
    #[error("the data is not well-formed JSON: {0}")]
    Malformed(String),
    /// It nests too deeply.
    #[error("the data nests deeper than {0} levels")]
    Deep(usize),
    /// A number is too long.
    #[error(
        "the data has a number of {0} characters, the limit is {EVENT_DATA_NUMBER_MAX}: send it as a string"
    )]
    Number(usize),
    /// It is too large.
    #[error("the data has {0} bytes, the limit is {1}: store it elsewhere and send a link")]
    Large(usize, usize),
    /// It is a question that is not an object.
    #[error("the question must be an object")]
    NotAnObject,
}

impl DataError {
    /// With which code it is refused.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Large(..) => ErrorCode::TooLarge,
            Self::Malformed(_) | Self::Deep(_) | Self::Number(_) | Self::NotAnObject => {
                ErrorCode::BadRequest
            }
        }
    }
}

/// What is wrong with JSON. A reader quotes what it has read, however long: only the ends of that are kept.
pub fn json_error(error: &serde_json::Error) -> String {
    const END_CHARS: usize = 120;
    let text = error.to_string();
    let part = |text: &str| shown(text, 2 * END_CHARS);
    let head = text.char_indices().nth(END_CHARS).map(|(at, _)| at);
    let tail = text.char_indices().nth_back(END_CHARS - 1).map(|(at, _)| at);
    match (head, tail) {
        (Some(head), Some(tail)) if head < tail => {
            format!("{}…{}", part(&text[..head]), part(&text[tail..]))
        }
        _ => part(&text),
    }
}

/// Whether `data` may be an event's data.
///
/// # Errors
/// [`DataError`] says why not.
pub fn check_data(data: &str) -> Result<(), DataError> {
    check(data, EVENT_DATA_BYTES_MAX, EVENT_DATA_DEPTH_MAX)
}

/// Whether `detail` may be the detail of a command's outcome: it must fit into the event that tells of it.
///
/// # Errors
/// [`DataError`] says why not.
pub fn check_detail(detail: &str) -> Result<(), DataError> {
    check(detail, DETAIL_BYTES_MAX, DETAIL_DEPTH_MAX)
}

fn check(data: &str, bytes_max: usize, depth_max: usize) -> Result<(), DataError> {
    if data.len() > bytes_max {
        return Err(DataError::Large(data.len(), bytes_max));
    }
    // First the measures, by a plain scan: what nests too deeply never meets a recursive parser.
    let Measures { depth, number } = measure(data.as_bytes());
    if depth > depth_max {
        return Err(DataError::Deep(depth_max));
    }
    if number > EVENT_DATA_NUMBER_MAX {
        return Err(DataError::Number(number));
    }
    serde_json::from_str::<IgnoredAny>(data)
        .map(drop)
        .map_err(|error| DataError::Malformed(json_error(&error)))
}

/// Whether `question` may be what a question shows: an object that fits into an event, one level down.
///
/// # Errors
/// [`DataError`] says why not.
pub fn check_question(question: &str) -> Result<(), DataError> {
    check(question, QUESTION_BYTES_MAX, EVENT_DATA_DEPTH_MAX - 1)?;
    if question.trim_start().starts_with('{') { Ok(()) } else { Err(DataError::NotAnObject) }
}

#[derive(Default)]
struct Measures {
    /// The deepest nesting of brackets outside strings.
    depth: usize,
    /// The longest number, in characters.
    number: usize,
}

fn measure(json: &[u8]) -> Measures {
    let mut most = Measures::default();
    let (mut level, mut digits, mut in_string, mut escaped) = (0usize, 0usize, false, false);
    for &byte in json {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        if matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E') {
            digits += 1;
            most.number = most.number.max(digits);
            continue;
        }
        digits = 0;
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                level += 1;
                most.depth = most.depth.max(level);
            }
            b'}' | b']' => level = level.saturating_sub(1),
            _ => {}
        }
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_in_a_few_words_however_much_was_read() {
        let said = |json: &str| json_error(&serde_json::from_str::<u64>(json).unwrap_err());
        let short = "invalid type: string \"x\", expected u64 at line 1 column 3";
        assert_eq!(said("\"x\""), short);
        let long = said(&format!("\"{}\\n\"", "ü".repeat(60_000)));
        assert_eq!(long.chars().count(), 241);
        assert!(long.starts_with("invalid type: string \"üüü"), "{long}");
        assert!(long.contains('…'), "{long}");
        assert!(long.ends_with("\", expected u64 at line 1 column 120004"), "{long}");
    }

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
        assert!(matches!(check_data(&nested(EVENT_DATA_DEPTH_MAX + 1)), Err(DataError::Deep(_))));
        assert!(check_data(&format!("\"\\\"{}\"", "[".repeat(1_000))).is_ok());
    }

    #[test]
    fn a_question_leaves_room_for_what_stands_around_it() {
        let object = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
        assert!(check_question(&object(QUESTION_BYTES_MAX)).is_ok());
        let large = check_question(&object(QUESTION_BYTES_MAX + 1));
        assert!(matches!(large, Err(DataError::Large(..))), "{large:?}");
        let nested =
            |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        assert!(check_question(&nested(EVENT_DATA_DEPTH_MAX - 2)).is_ok());
        assert!(matches!(
            check_question(&nested(EVENT_DATA_DEPTH_MAX - 1)),
            Err(DataError::Deep(_))
        ));
        for bad in ["[]", "1", "null", "{},{}"] {
            assert!(check_question(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn size_is_bounded() {
        let data = format!("\"{}\"", "x".repeat(EVENT_DATA_BYTES_MAX - 2));
        assert!(check_data(&data).is_ok());
        assert!(matches!(check_data(&format!("{data} ")), Err(DataError::Large(..))));
    }
}
