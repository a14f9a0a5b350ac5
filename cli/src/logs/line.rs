//! How a line of the log looks. The one place through which every text goes on its way out, so none of it can
//! begin a line of its own, steer a terminal, or be long.

use std::fmt::{self, Write as _};

use protocol::is_visible;
use serde_json::value::to_value;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::Format;

/// A field's text is cut after so many characters: the longest errors of our own have a few hundred.
const FIELD_CHARS_MAX: usize = 1_000;
/// Our own text of many lines, without a word from elsewhere.
const BACKTRACE: &str = "backtrace";

/// Writes each event as one line.
pub(super) struct Lines {
    pub(super) format: Format,
    /// In text, for a terminal.
    pub(super) is_coloured: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let fields = Fields::of(event);
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let level = event.metadata().level();
        let target = fields.target.as_deref().unwrap_or(event.metadata().target());
        match self.format {
            Format::Json => {
                write!(writer, r#"{{"timestamp":"{time}","level":"{level}""#)?;
                if let Some(message) = &fields.message {
                    write!(writer, r#","message":{}"#, json(message))?;
                }
                for (name, value) in &fields.others {
                    write!(writer, r#","{name}":{}"#, value.json(name))?;
                }
                writeln!(writer, r#","target":{}}}"#, json(target))
            }
            Format::Text => {
                let (on, off) =
                    if self.is_coloured { (colour(*level), "\x1b[0m") } else { ("", "") };
                let message = fields.message.as_deref().unwrap_or_default();
                write!(writer, "{time} {on}{level:>5}{off} {}: {}", text(target), text(message))?;
                for (name, value) in &fields.others {
                    write!(writer, " {name}={}", value.text(name))?;
                }
                writeln!(writer)
            }
        }
    }
}

/// What an event says.
#[derive(Default)]
struct Fields {
    message: Option<String>,
    others: Vec<(&'static str, FieldValue)>,
    /// Where an event of the `log` crate is from.
    target: Option<String>,
}

enum FieldValue {
    /// A number or a truth value, as JSON writes it.
    Bare(String),
    Text(String),
}

impl Fields {
    fn of(event: &Event<'_>) -> Self {
        let mut fields = Self::default();
        event.record(&mut fields);
        fields
    }

    fn push(&mut self, field: &Field, text: String) {
        match field.name() {
            "message" => self.message = Some(text),
            "log.target" => self.target = Some(text),
            name if name.starts_with("log.") => {}
            name => self.others.push((name, FieldValue::Text(text))),
        }
    }

    fn push_bare(&mut self, field: &Field, value: impl fmt::Display) {
        if !field.name().starts_with("log.") {
            self.others.push((field.name(), FieldValue::Bare(value.to_string())));
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, value.to_owned());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push_bare(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push_bare(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push_bare(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // What JSON has no number for becomes `null`.
        self.push_bare(field, to_value(value).unwrap_or_default());
    }
}

impl FieldValue {
    fn json(&self, name: &str) -> String {
        match self {
            Self::Bare(value) => value.clone(),
            Self::Text(value) if name == BACKTRACE => as_json(value),
            Self::Text(value) => json(value),
        }
    }

    /// In quotes where it could be taken for more than one field.
    fn text(&self, name: &str) -> String {
        match self {
            Self::Bare(value) => value.clone(),
            Self::Text(value) if name == BACKTRACE => format!("\n{value}"),
            Self::Text(value) => {
                let text = text(value);
                let is_one = |char: char| !char.is_whitespace() && char != '"' && char != '=';
                match !text.is_empty() && text.chars().all(is_one) {
                    true => text,
                    false => format!("\"{}\"", text.replace('"', "\\\"")),
                }
            }
        }
    }
}

fn text(text: &str) -> String {
    protocol::shown(text, FIELD_CHARS_MAX)
}

/// A JSON string, with what is not visible escaped as JSON escapes it.
fn json(text: &str) -> String {
    match text.char_indices().nth(FIELD_CHARS_MAX) {
        Some((end, _)) => as_json(&format!("{}…", &text[..end])),
        None => as_json(text),
    }
}

fn as_json(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    let mut escaped = String::with_capacity(quoted.len());
    for char in quoted.chars() {
        if is_visible(char) {
            escaped.push(char);
        } else {
            for unit in char.encode_utf16(&mut [0; 2]) {
                // A `String` takes all that is written to it.
                write!(escaped, "\\u{unit:04x}").ok();
            }
        }
    }
    escaped
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        _ => "\x1b[2m",
    }
}
