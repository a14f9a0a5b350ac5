//! What was typed: words and variables become the values that were given, still as text.
//!
//! A word that is not understood is noted and left out, so that the rest can be judged as well.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

use clap::builder::NonEmptyStringValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command, Error};

use crate::flags::{self, Flag, SUBCOMMANDS, Subcommand};
use crate::problem::{Problem, named, shown};

/// What was given, by the names of the flags.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) subcommand: &'static Subcommand,
    values: BTreeMap<&'static str, Value>,
}

/// A value and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) text: String,
    pub(crate) source: Source,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Flag,
    Variable,
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag => "flag",
            Self::Variable => "variable",
            Self::Default => "default",
        })
    }
}

impl Given {
    /// The value of `flag`: from the command line, else from its variable, else its default.
    pub(crate) fn value(&self, flag: &Flag) -> Option<Value> {
        let default =
            || flag.default.map(|text| Value { text: text.to_owned(), source: Source::Default });
        self.values.get(flag.name).cloned().or_else(default)
    }
}

/// Reads `words`, the program's name first, and `variables`; with what was wrong so far.
///
/// # Errors
/// If only clap's text is to be printed: help, the version, a missing subcommand.
pub(crate) fn parse(
    words: impl IntoIterator<Item = OsString>,
    variables: &[(OsString, OsString)],
) -> Result<(Given, Vec<Problem>), Error> {
    let mut words: Vec<OsString> = words.into_iter().collect();
    let mut problems = Vec::new();
    let matches = loop {
        match command().try_get_matches_from(&words) {
            Ok(matches) => break matches,
            Err(error) => problems.push(without_the_offender(error, &mut words)?),
        }
    };
    let subcommand = matches.subcommand().and_then(|(name, matches)| {
        let subcommand = SUBCOMMANDS.iter().find(|subcommand| subcommand.name == name)?;
        Some((*subcommand, matches))
    });
    let Some((subcommand, matches)) = subcommand else {
        return Err(command().error(ErrorKind::MissingSubcommand, "a subcommand is missing"));
    };
    let mut given = Given { subcommand, values: BTreeMap::new() };
    for flag in subcommand.flags {
        match typed(flag, matches).transpose().or_else(|| set(flag, variables).transpose()) {
            Some(Ok(value)) => drop(given.values.insert(flag.name, value)),
            Some(Err(problem)) => problems.push(problem),
            None => {}
        }
    }
    Ok((given, problems))
}

/// What stands on the command line.
fn typed(flag: &Flag, matches: &ArgMatches) -> Result<Option<Value>, Problem> {
    let mut texts: Vec<&String> = matches.get_many(flag.name).into_iter().flatten().collect();
    texts.dedup();
    match texts.as_slice() {
        [] => Ok(None),
        [text] => Ok(Some(Value { text: (*text).clone(), source: Source::Flag })),
        _ => Err(Problem::new(
            format!("{} is given {} times, with different values", named(flag), texts.len()),
            "Give it once.",
        )),
    }
}

/// What stands in the environment.
fn set(flag: &Flag, variables: &[(OsString, OsString)]) -> Result<Option<Value>, Problem> {
    let Some((_, text)) = variables.iter().find(|(name, _)| name == flag.variable) else {
        return Ok(None);
    };
    match text.to_str() {
        // A template that was filled with nothing must not turn a relay with Redis into one without.
        Some("") => Err(Problem::new(
            format!("{} is empty", flag.variable),
            "Give it a value, or unset it.",
        )),
        Some(text) => Ok(Some(Value { text: text.to_owned(), source: Source::Variable })),
        None => Err(Problem::new(
            format!("{} is `{}`: not UTF-8", flag.variable, shown(&text.to_string_lossy())),
            "Write it in UTF-8.",
        )),
    }
}

/// The command line as clap knows it.
fn command() -> Command {
    let variables = "Every flag has a variable, in brackets; a flag goes before its variable. \
                     RELAY_LOG says what is logged: `info`, `debug`, or directives such as \
                     `relay=debug,journal=trace`.";
    Command::new("agent-relay")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Carries what AI agents do to the browsers that watch them, and commands back")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help("For a first look: agent-relay demo")
        .subcommands(SUBCOMMANDS.iter().map(|subcommand| {
            Command::new(subcommand.name)
                .about(subcommand.about)
                .after_help(variables)
                .args(subcommand.flags.iter().map(|flag| argument(flag)))
        }))
}

fn argument(flag: &'static Flag) -> Arg {
    let default = match (flag.default, flag.value) {
        (Some(default), Some(_)) => format!(", default {default}"),
        _ => String::new(),
    };
    let argument = Arg::new(flag.name)
        .long(flag.name)
        .help(format!("{} [{}{default}]", flag.help, flag.variable))
        .action(ArgAction::Append)
        .value_parser(NonEmptyStringValueParser::new());
    match flag.value {
        Some(value) => argument.value_name(value),
        // A switch, that can also be said with a value, as its variable.
        None => argument
            .value_name("true|false")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
    }
}

/// What is wrong with `words`, which then stand there without it.
fn without_the_offender(error: Error, words: &mut Vec<OsString>) -> Result<Problem, Error> {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let Some(argument) = context(ContextKind::InvalidArg) else { return Err(error) };
    // With the placeholder of its value: `--listen <ADDR>`.
    let word = argument.split(" <").next().unwrap_or(&argument).to_owned();
    let Some(at) = position(words, &word) else { return Err(error) };
    let problem = match error.kind() {
        ErrorKind::UnknownArgument => unknown(&word, words),
        ErrorKind::InvalidValue | ErrorKind::NoEquals => {
            Problem::new(format!("{word} has no value"), format!("Write `{argument}`."))
        }
        ErrorKind::InvalidUtf8 => {
            Problem::new(format!("the value of {word} is no UTF-8"), "Write it in UTF-8.")
        }
        _ => return Err(error),
    };
    let is_bare = |word: &OsString| !word.to_string_lossy().starts_with('-');
    let is_flag = words[at].to_string_lossy() == word.as_str() && word.starts_with("--");
    words.remove(at);
    // The value that was meant for it.
    if is_flag && words.get(at).is_some_and(is_bare) {
        words.remove(at);
    }
    Ok(problem)
}

/// Where `word`, or `word=…`, stands behind the subcommand.
fn position(words: &[OsString], word: &str) -> Option<usize> {
    let is_it = |other: &OsString| {
        let other = other.to_string_lossy();
        let rest = other.strip_prefix(word);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('=') || !word.starts_with("--"))
    };
    words.iter().skip(2).position(is_it).map(|at| at + 2)
}

/// A word that nobody knows, or that another subcommand knows.
fn unknown(word: &str, words: &[OsString]) -> Problem {
    let name = words.get(1).map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let own = SUBCOMMANDS.iter().filter(|subcommand| subcommand.name == name);
    let mut own = own.flat_map(|subcommand| subcommand.flags.iter().map(|flag| flag.name));
    let list = format!("`agent-relay {name} --help` lists the flags.");
    let Some(written) = word.strip_prefix("--") else {
        return Problem::new(format!("`{}` is not understood", shown(word)), list);
    };
    if own.clone().any(|flag| flag == written) {
        return Problem::new(format!("`{word}` cannot stand there"), list);
    }
    let what = format!("`{}` is not a flag of `{name}`", shown(word));
    if let Some(nearest) = flags::nearest(written, own.by_ref()) {
        return Problem::new(what, format!("Did you mean `--{nearest}`?"));
    }
    Problem::new(what, list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::{ALLOW_ANONYMOUS, LISTEN, REDIS};

    fn parsed(line: &str, variables: &[(&str, &str)]) -> (Given, Vec<String>) {
        let words = ["agent-relay"].into_iter().chain(line.split_whitespace()).map(OsString::from);
        let variables: Vec<_> =
            variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let (given, problems) = parse(words, &variables).unwrap();
        (given, problems.iter().map(ToString::to_string).collect())
    }

    fn value(given: &Given, flag: &Flag) -> Option<(String, Source)> {
        given.value(flag).map(|value| (value.text, value.source))
    }

    #[test]
    fn clap_accepts_the_table() {
        command().debug_assert();
    }

    #[test]
    fn a_flag_goes_before_its_variable_and_both_before_the_default() {
        let variables = [("RELAY_LISTEN", "b:2"), ("RELAY_REDIS", "redis://r")];
        let (given, problems) = parsed("serve --listen a:1", &variables);
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(value(&given, &LISTEN), Some(("a:1".to_owned(), Source::Flag)));
        assert_eq!(value(&given, &REDIS), Some(("redis://r".to_owned(), Source::Variable)));

        let (given, _) = parsed("serve", &[]);
        assert_eq!(value(&given, &LISTEN), Some(("127.0.0.1:8080".to_owned(), Source::Default)));
        assert_eq!(value(&given, &REDIS), None);
    }

    #[test]
    fn a_switch_needs_no_value_and_can_have_one() {
        for (line, text) in
            [("serve --allow-anonymous", "true"), ("serve --allow-anonymous=false", "false")]
        {
            let (given, problems) = parsed(line, &[]);
            assert!(problems.is_empty(), "{problems:?}");
            assert_eq!(value(&given, &ALLOW_ANONYMOUS).unwrap().0, text);
        }
    }

    #[test]
    fn every_word_that_is_not_understood_is_noted_and_the_rest_is_read() {
        let line = "serve --lisen 127.0.0.1:0 --colour=red stray --redis redis://r -v --drain";
        let (given, problems) = parsed(line, &[("RELAY_LOG_FORMAT", "")]);
        for (problem, words) in problems.iter().zip([
            &["`--lisen`", "--listen"][..],
            &["`--colour`", "--help"],
            &["`stray`", "--help"],
            &["`-v`"],
            &["--drain has no value", "--drain <DURATION>"],
            &["RELAY_LOG_FORMAT is empty"],
        ]) {
            assert!(words.iter().all(|word| problem.contains(word)), "{problem} without {words:?}");
        }
        assert_eq!(problems.len(), 6, "{problems:#?}");
        assert_eq!(value(&given, &REDIS).unwrap().0, "redis://r");
    }

    #[test]
    fn a_flag_that_says_two_things_is_refused() {
        let (_, problems) = parsed("serve --listen a:1 --listen b:2", &[]);
        assert!(problems[0].contains("--listen (RELAY_LISTEN) is given 2 times"), "{problems:?}");
        let (_, problems) = parsed("serve --listen a:1 --listen a:1", &[]);
        assert!(problems.is_empty(), "{problems:?}");
    }

    #[test]
    fn help_and_version_and_no_subcommand_end_at_once() {
        for (line, code) in
            [("--help", 0), ("serve --help", 0), ("--version", 0), ("", 2), ("dance", 2)]
        {
            let words = ["agent-relay"].into_iter().chain(line.split_whitespace());
            let error = parse(words.map(OsString::from), &[]).unwrap_err();
            assert_eq!(error.exit_code(), code, "{line}");
        }
    }
}
