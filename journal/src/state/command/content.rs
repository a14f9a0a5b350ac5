//! What a `command_id` stands for: the same again is a repetition, anything else is a conflict. Pure.
//!
//! Compared are a command's name and data, a request's method and params, and of a Cancel its run: why somebody
//! cancels may be said in other words.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::state::digest::digest;

/// The entries of these names are compared by a part of their data.
const REQUEST: &str = "request";
const CANCEL: &str = "cancel_agent";

/// What is compared beside the name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Content {
    /// Of a request.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    method: Box<str>,
    /// The digest of the data, of a request's params, or of a Cancel's run; empty where it names none.
    data: Box<str>,
}

impl Content {
    /// Of a command's name and data.
    pub(super) fn of(name: &str, data: &str) -> Self {
        #[derive(Deserialize)]
        struct Request<'a> {
            #[serde(borrow)]
            method: Cow<'a, str>,
            #[serde(borrow)]
            params: &'a RawValue,
        }
        #[derive(Deserialize)]
        struct Cancel<'a> {
            #[serde(borrow, default)]
            run_id: Option<Cow<'a, str>>,
        }
        let none = Box::<str>::default();
        match name {
            REQUEST => match serde_json::from_str(data) {
                Ok(Request { method, params }) => {
                    Self { method: method.into(), data: digest(params.get()) }
                }
                Err(_) => Self { method: none, data: digest(data) },
            },
            CANCEL => match serde_json::from_str(data) {
                Ok(Cancel { run_id: None }) => Self { method: none.clone(), data: none },
                Ok(Cancel { run_id: Some(run_id) }) => Self { method: none, data: digest(&run_id) },
                Err(_) => Self { method: none, data: digest(data) },
            },
            _ => Self { method: none, data: digest(data) },
        }
    }
}

/// The part in which one command is another than the first of its id.
pub(super) fn differs(
    (name, content): (&str, &Content),
    (other_name, other): (&str, &Content),
) -> Option<&'static str> {
    match name {
        _ if name != other_name => Some("name"),
        _ if content.method != other.method => Some("method"),
        _ if content.data == other.data => None,
        REQUEST => Some("params"),
        CANCEL => Some("run_id"),
        _ => Some("data"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_asked_is_compared() {
        for (one, other, part) in [
            (("a", "1"), ("a", "1"), None),
            (("a", "1"), ("b", "1"), Some("name")),
            (("a", "1"), ("a", "2"), Some("data")),
            (
                ("request", r#"{"method":"m","params":1}"#),
                ("request", r#"{"method":"m","params":1}"#),
                None,
            ),
            (
                ("request", r#"{"method":"m","params":1}"#),
                ("request", r#"{"method":"m","params":2}"#),
                Some("params"),
            ),
            (
                ("request", r#"{"method":"m","params":1}"#),
                ("request", r#"{"method":"n","params":1}"#),
                Some("method"),
            ),
            (
                ("cancel_agent", r#"{"agent_id":"a"}"#),
                ("cancel_agent", r#"{"agent_id":"a","reason":"x"}"#),
                None,
            ),
            (
                ("cancel_agent", r#"{"run_id":"r","reason":"x"}"#),
                ("cancel_agent", r#"{"run_id":"r"}"#),
                None,
            ),
            (
                ("cancel_agent", r#"{"run_id":"r"}"#),
                ("cancel_agent", r#"{"run_id":"s"}"#),
                Some("run_id"),
            ),
            (("cancel_agent", r#"{"run_id":"r"}"#), ("cancel_agent", "{}"), Some("run_id")),
            (("cancel_agent", r#"{"run_id":null}"#), ("cancel_agent", "{}"), None),
        ] {
            let (first, second) = (Content::of(one.0, one.1), Content::of(other.0, other.1));
            assert_eq!(differs((one.0, &first), (other.0, &second)), part, "{one:?} {other:?}");
        }
    }
}
