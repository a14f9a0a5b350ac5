//! What people type beside what they do, such as the reason of a Cancel: repaired and cut, never a cause to refuse.
//!
//! Frames [up](super::up) and an agent's calls → **words**

use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::limits::REASON_CHARS_MAX;

/// A reason, whatever was sent as one: a text with its broken characters replaced, any other value as its JSON;
/// cut to its limit. `None` where it is null.
pub(crate) fn reason(raw: &RawValue) -> Option<String> {
    let json = raw.get();
    let words = match json.as_bytes().first() {
        _ if json == "null" => return None,
        Some(b'"') => serde_json::from_str(&repaired(json)).ok()?,
        _ => json.to_owned(),
    };
    Some(cut(words))
}

/// A reason within its limit.
pub(crate) fn cut(mut words: String) -> String {
    if let Some((end, _)) = words.char_indices().nth(REASON_CHARS_MAX) {
        words.truncate(end);
    }
    words
}

/// Whether a reason is a text that can stay as it is.
pub(crate) fn is_clean(raw: &RawValue) -> bool {
    let words: Result<Option<String>, _> = serde_json::from_str(raw.get());
    words.is_ok_and(|words| words.is_none_or(|words| words.chars().count() <= REASON_CHARS_MAX))
}

/// JSON in which each half of a surrogate pair that has no other half is U+FFFD.
pub(crate) fn repaired(json: &str) -> Cow<'_, str> {
    let mut repaired = String::new();
    let mut kept = 0;
    let mut at = 0;
    while let Some(found) = json[at..].find('\\') {
        at += found;
        let length = match (unit(&json[at..]), json.get(at + 6..).and_then(unit)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => 12,
            (Some(0xD800..=0xDFFF), _) => {
                repaired.push_str(&json[kept..at]);
                repaired.push_str("\\ufffd");
                kept = at + 6;
                6
            }
            (Some(_), _) => 6,
            // What follows the backslash is not looked at: it may be another one.
            (None, _) => 1 + json[at + 1..].chars().next().map_or(0, char::len_utf8),
        };
        at += length;
    }
    if kept == 0 {
        return json.into();
    }
    repaired.push_str(&json[kept..]);
    repaired.into()
}

/// The UTF-16 unit that `\uNNNN` at the beginning stands for.
fn unit(json: &str) -> Option<u16> {
    let digits = json.strip_prefix("\\u")?.get(..4)?;
    u16::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_halves_of_pairs_are_replaced() {
        for (json, expected) in [
            (r#""plain \n ü""#, r#""plain \n ü""#),
            (r#""\ud83d\ude00""#, r#""\ud83d\ude00""#),
            (r#""\ud83d""#, r#""\ufffd""#),
            (r#""\ude00\ud83d x""#, r#""\ufffd\ufffd x""#),
            (r#""\ud83d\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#),
            (r#""\\ud83d""#, r#""\\ud83d""#),
            (r#""\\\uD83D\u00fc""#, r#""\\\ufffd\u00fc""#),
            (r#""\ud83d\n""#, r#""\ufffd\n""#),
            (r#""\""#, r#""\""#),
            (r#""\ü""#, r#""\ü""#),
        ] {
            assert_eq!(repaired(json), expected, "{json}");
        }
    }
}
