//! A mistake in the configuration: what is wrong, and what to write instead.

use std::fmt;

use crate::flags::Flag;

/// Longer values are cut: an answer is to be read.
const SHOWN_CHARS_MAX: usize = 200;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Which flag, which value, and why not.
    what: String,
    /// What to write instead.
    instead: String,
}

impl Problem {
    pub(crate) fn new(what: impl Into<String>, instead: impl Into<String>) -> Self {
        Self { what: what.into(), instead: instead.into() }
    }

    /// `value` is invalid for `flag`.
    pub(crate) fn value(flag: &Flag, value: &str, why: &str, instead: impl Into<String>) -> Self {
        Self::new(format!("{} is `{}`: {why}", named(flag), shown(value)), instead)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  {}.\n  {}", self.what, self.instead)
    }
}

/// `--listen (RELAY_LISTEN)`.
pub(crate) fn named(flag: &Flag) -> String {
    format!("--{} ({})", flag.name, flag.variable)
}

/// A value as it may stand in an answer.
pub(crate) fn shown(value: &str) -> String {
    protocol::shown(value, SHOWN_CHARS_MAX)
}

/// All mistakes at once.
#[derive(Debug)]
pub(crate) struct Report<'a>(pub(crate) &'a [Problem]);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => writeln!(f, "error: a problem in the configuration")?,
            count => writeln!(f, "error: {count} problems in the configuration")?,
        }
        self.0.iter().try_for_each(|problem| write!(f, "\n{problem}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::LISTEN;

    #[test]
    fn a_report_names_flag_variable_value_reason_and_remedy() {
        let nonsense = Problem::value(&LISTEN, "nonsense", "no address", "Write `127.0.0.1:80`.");
        let report = Report(&[nonsense.clone(), nonsense]).to_string();
        assert!(report.starts_with("error: 2 problems in the configuration\n\n"), "{report}");
        let text =
            "  --listen (RELAY_LISTEN) is `nonsense`: no address.\n  Write `127.0.0.1:80`.\n";
        assert_eq!(report.matches(text).count(), 2, "{report}");
    }

    #[test]
    fn a_value_cannot_steer_the_terminal_or_flood_it() {
        assert_eq!(shown("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\\n");
        assert_eq!(shown(&"x".repeat(1_000)).chars().count(), SHOWN_CHARS_MAX + 1);
    }
}
