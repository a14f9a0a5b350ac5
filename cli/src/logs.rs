//! The log: to stderr, JSON unless that is a terminal. Never a payload, never a token.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal};
use std::panic;

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{EnvFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry;
use tracing_subscriber::util::SubscriberInitExt;

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
    match format {
        Format::Json => json(filter, io::stderr).init(),
        Format::Text => {
            let layer = tracing_subscriber::fmt::layer()
                .with_writer(io::stderr)
                .with_ansi(io::stderr().is_terminal());
            registry().with(ours()).with(filter).with(layer).init();
        }
    }
    panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then_some(backtrace);
        let backtrace = backtrace.as_ref().map(tracing::field::display);
        tracing::error!(%panic, backtrace, "panicked: this is a bug, please report it");
    }));
}

/// One object per line, its fields at the top.
fn json(
    filter: EnvFilter,
    writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static,
) -> impl Subscriber + Send + Sync {
    let layer = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_span_list(false)
        .with_writer(writer);
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

    fn logged(filter: &str, events: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = json(EnvFilter::new(filter), move || writer.clone());
        tracing::subscriber::with_default(subscriber, events);
        String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn message_and_fields_stand_at_the_top() {
        let line = logged("info", || tracing::info!(addr = %"127.0.0.1:1", "listening"));
        assert!(line.contains(r#""message":"listening","addr":"127.0.0.1:1""#), "{line}");
    }

    #[test]
    fn the_finer_levels_of_others_are_never_logged() {
        let log = logged("trace", || {
            tracing::trace!(target: "relay::routes", "ours");
            tracing::debug!(target: "tungstenite::protocol", "a payload");
            tracing::warn!(target: "hyper", "a warning");
        });
        assert!(log.contains("ours") && log.contains("a warning"), "{log}");
        assert!(!log.contains("a payload"), "{log}");
    }

    #[test]
    fn the_filter_is_heeded() {
        let log = logged("warn,journal=debug", || {
            tracing::info!(target: "relay", "quiet");
            tracing::debug!(target: "journal::redis", "loud");
        });
        assert!(log.contains("loud") && !log.contains("quiet"), "{log}");
    }
}
