//! The log: to stderr, JSON unless that is a terminal. Never a payload, never a token. [`mod@line`] writes each event so
//! that nothing foreign can pretend to be more than one field of one line, and [`collapse`] bounds repeats.

mod collapse;
mod line;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal};
use std::panic;

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{EnvFilter, ParseError, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use collapse::Collapse;
use line::Lines;

/// Our own crates. The finer levels of others are never logged: some write what they carry, and
/// with it tokens and payloads.
const OURS: [&str; 6] = ["agent_relay", "relay", "journal", "publisher_sdk", "demo", "protocol"];

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Text,
}

impl Format {
    /// What suits the reader of stderr.
    pub(crate) fn of_stderr() -> Self {
        if io::stderr().is_terminal() { Self::Text } else { Self::Json }
    }
}

/// From here on everything is logged, panics too.
pub(crate) fn start(format: Format, filter: EnvFilter) {
    let is_coloured = format == Format::Text && io::stderr().is_terminal();
    written(Lines { format, is_coloured }, filter, io::stderr).with(Collapse::start()).init();
    panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then_some(backtrace);
        let backtrace = backtrace.as_ref().map(tracing::field::display);
        tracing::error!(%panic, backtrace, "panicked: this is a bug, please report it");
    }));
}

/// What `RELAY_LOG` says, on top of `info`: to see more of one part does not hide the others.
///
/// # Errors
/// The directives cannot be read.
pub(crate) fn filter(directives: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::try_new(format!("info,{directives}"))
}

fn written(
    lines: Lines,
    filter: EnvFilter,
    writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static,
) -> impl Subscriber + Send + Sync + for<'a> LookupSpan<'a> {
    let layer = tracing_subscriber::fmt::layer().event_format(lines).with_writer(writer);
    registry().with(ours()).with(filter).with(layer)
}

/// Everything from our own crates, the coarser levels from others.
fn ours() -> Targets {
    let ours = OURS.map(|target| (target, LevelFilter::TRACE));
    Targets::new().with_targets(ours).with_default(LevelFilter::INFO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, directives: &str, events: impl FnOnce()) -> String {
        let bytes = Written::default();
        let writer = bytes.clone();
        let lines = Lines { format, is_coloured: false };
        let subscriber = written(lines, filter(directives).unwrap(), move || writer.clone());
        tracing::subscriber::with_default(subscriber, events);
        let bytes = bytes.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn message_and_fields_stand_at_the_top() {
        let line =
            logged(Format::Json, "info", || tracing::info!(addr = %"127.0.0.1:1", "listening"));
        assert!(line.contains(r#""message":"listening","addr":"127.0.0.1:1""#), "{line}");
    }

    #[test]
    fn the_finer_levels_of_others_are_never_logged() {
        let log = logged(Format::Json, "trace", || {
            tracing::trace!(target: "relay::routes", "ours");
            tracing::debug!(target: "tungstenite::protocol", "a payload");
            tracing::warn!(target: "hyper", "a warning");
        });
        assert!(log.contains("ours") && log.contains("a warning"), "{log}");
        assert!(!log.contains("a payload"), "{log}");
    }

    #[test]
    fn a_directive_for_one_part_hides_nothing_of_the_others() {
        let events = || {
            tracing::info!(target: "agent_relay", "listening");
            tracing::debug!(target: "journal::redis", "loud");
        };
        let log = logged(Format::Json, "journal=debug", events);
        assert!(log.contains("loud") && log.contains("listening"), "{log}");
        let log = logged(Format::Json, "warn,journal=debug", events);
        assert!(log.contains("loud") && !log.contains("listening"), "{log}");
        assert_eq!(logged(Format::Json, "off", events), "");
    }

    /// What strangers send cannot pretend to be a line or a field, steer a terminal, or fill the log.
    #[test]
    fn foreign_text_stays_one_field_of_one_line() {
        const FORGED: &str = "x\nINFO \u{1b}[2J\u{9b}\u{202e} listening addr=1.2.3.4 \"";
        let long = "y".repeat(100_000);
        let events = || {
            tracing::warn!(why = FORGED, shown = %FORGED, empty = "", n = 7, yes = true, "{FORGED}");
            tracing::info!(long, "long");
        };

        let log = logged(Format::Json, "info", events);
        assert_eq!(log.lines().count(), 2, "{log}");
        let line: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
        for field in ["message", "why", "shown"] {
            assert_eq!(line[field], FORGED, "{field}");
        }
        assert_eq!((line["n"].as_u64(), line["yes"].as_bool()), (Some(7), Some(true)));
        assert!(log.chars().all(|char| char == '\n' || protocol::is_visible(char)), "{log}");
        assert!(log.len() < 4_000, "{} bytes", log.len());

        let log = logged(Format::Text, "info", events);
        assert_eq!(log.lines().count(), 2, "{log}");
        assert!(log.chars().all(|char| char == '\n' || protocol::is_visible(char)), "{log}");
        let fields =
            r#" why="x\nINFO \u{1b}[2J\u{9b}\u{202e} listening addr=1.2.3.4 \"" shown="x\nINFO"#;
        assert!(log.contains(fields) && log.contains(r#" empty="" n=7 yes=true"#), "{log}");
        assert!(log.len() < 4_000, "{} bytes", log.len());
    }
}
