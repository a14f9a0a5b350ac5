//! Turns the values that were given into settings, or into the list of everything that is wrong.

use std::path::Path;
use std::time::Duration;

use journal::{Journal, LEASE_DEFAULT, Retention};
use protocol::Channel;
use relay::{Config, ConfigError, Key};
use tracing_subscriber::filter::EnvFilter;

use crate::arguments::{Given, Source, Value};
use crate::flags::{
    ADMIN_LISTEN, AGENT_ID, ALLOW_ANONYMOUS, ALLOW_ORIGIN, CHECK, DEMO, DEMO_AGENT, DEMO_PAGE,
    DRAIN, Flag, JWT_AUDIENCE, JWT_ISSUER, JWT_SECRET_FILE, LEASE, LISTEN, LOG_FORMAT,
    LOG_VARIABLE, MEMORY, PREFIX, REDIS, RETAIN, SERVE, SESSION, WORKERS,
};
use crate::logs::{self, Format};
use crate::memory;
use crate::problem::{Problem, named, shown};
use crate::retain;
use crate::value::{self, Refusal};

/// Everything that was configured.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) log_format: Format,
    pub(crate) log_filter: EnvFilter,
    /// What is allowed and yet should not go unnoticed.
    pub(crate) warnings: Vec<String>,
    pub(crate) work: Work,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Work {
    Serve(Config, Retention),
    Check(Box<Given>, Journal, Retention),
    Demo(Config),
    DemoAgent { redis: String, lease: Duration, session: String, agent_id: String },
}

/// Judges every value, and whether they fit together. Must be called within a tokio runtime, but
/// connects to nothing. `log_directives` is the value of `RELAY_LOG`.
///
/// # Errors
/// Everything that is wrong, `problems` included.
pub(crate) fn resolve(
    given: Given,
    log_directives: Option<&str>,
    problems: Vec<Problem>,
) -> Result<Settings, Vec<Problem>> {
    let mut judge = Judge { given: &given, problems, warnings: Vec::new() };
    let name = given.subcommand.name;
    let work = if name == SERVE.name || name == CHECK.name {
        judge.serving().map(|(config, retention)| Work::Serve(config, retention))
    } else if name == DEMO.name {
        judge.demo().map(Work::Demo)
    } else {
        debug_assert_eq!(name, DEMO_AGENT.name);
        judge.demo_agent()
    };
    let log_format = judge.log_format();
    let log_filter = judge.log_filter(log_directives);
    let Judge { problems, warnings, .. } = judge;
    let (Some(work), true) = (work, problems.is_empty()) else { return Err(problems) };
    let work = match work {
        Work::Serve(config, retention) if name == CHECK.name => {
            Work::Check(Box::new(given), config.journal, retention)
        }
        work => work,
    };
    Ok(Settings { log_format, log_filter, warnings, work })
}

struct Judge<'a> {
    given: &'a Given,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

impl Judge<'_> {
    fn serving(&mut self) -> Option<(Config, Retention)> {
        let listen = self.read(&LISTEN, value::address);
        let admin_listen = self.read(&ADMIN_LISTEN, value::address);
        let drain = self.read(&DRAIN, value::duration);
        let lease = self.read(&LEASE, value::lease).unwrap_or(LEASE_DEFAULT);
        let retention = self.read(&RETAIN, retain::retention).unwrap_or_default();
        let memory = self.read(&MEMORY, value::memory);
        let workers = self.read(&WORKERS, value::workers);
        let allow_anonymous = self.read(&ALLOW_ANONYMOUS, value::switch).unwrap_or(false);
        let journal = match self.redis() {
            Some((_, journal)) => Some(journal),
            None if self.given.value(&REDIS).is_none() => Some(Journal::in_memory()),
            None => None,
        };
        let has_key = self.given.value(&JWT_SECRET_FILE).is_some();
        let key = self.key();
        let origins = self.read(&ALLOW_ORIGIN, value::origins).unwrap_or_default();
        if !has_key {
            self.judge_what_needs_a_secret(origins.is_every());
        }
        if has_key && allow_anonymous {
            self.problems.push(Problem::new(
                format!("{} and {} contradict", named(&ALLOW_ANONYMOUS), named(&JWT_SECRET_FILE)),
                "With a secret the relay wants a token from everybody: leave one of them out.",
            ));
        }
        if let (Some(listen), Some(admin)) = (listen, admin_listen)
            && listen == admin
            && listen.port() != 0
        {
            self.problems.push(Problem::value(
                &ADMIN_LISTEN,
                &admin.to_string(),
                "--listen has the same",
                "Give it a port of its own, or leave it out: health is then on the main listener.",
            ));
        }
        let journal = journal.unwrap_or_else(Journal::in_memory).with_lease(lease);
        let mut config = Config::new(listen?, journal);
        config.admin_listen = admin_listen;
        config.allow_anonymous = allow_anonymous;
        config.origins = origins;
        config.drain = drain.unwrap_or(config.drain);
        config.memory = memory.unwrap_or_else(memory::half_of_what_is_allowed);
        config.workers = workers.unwrap_or(config.workers);
        config.key = key;
        if self.read(&DEMO_PAGE, value::switch).unwrap_or(false) {
            config.page = Some(demo::PAGE);
        }
        if !has_key {
            self.judge_openness(&config);
        }
        Some((config, retention))
    }

    fn demo(&mut self) -> Option<Config> {
        let listen = self.read(&LISTEN, value::address);
        let allow_anonymous = self.read(&ALLOW_ANONYMOUS, value::switch).unwrap_or(false);
        let mut config = Config::new(listen?, Journal::in_memory());
        config.allow_anonymous = allow_anonymous;
        config.memory = memory::half_of_what_is_allowed();
        config.page = Some(demo::PAGE);
        // Pages could not go to another replica: this is the only one.
        config.drain = Duration::ZERO;
        self.judge_openness(&config);
        Some(config)
    }

    fn demo_agent(&mut self) -> Option<Work> {
        let redis = self.redis();
        if self.given.value(&REDIS).is_none() {
            self.problems.push(Problem::new(
                format!("{} is missing", named(&REDIS)),
                "Give the Redis that the relay uses, for example `redis://127.0.0.1:6379`.",
            ));
        }
        let lease = self.read(&LEASE, value::lease).unwrap_or(LEASE_DEFAULT);
        let session = self.read(&SESSION, |id| channel_id("session", id));
        let agent_id = self.read(&AGENT_ID, |id| channel_id("agent", id));
        let (redis, _) = redis?;
        Some(Work::DemoAgent { redis, lease, session: session?, agent_id: agent_id? })
    }

    /// Whether the whole network could come in, and whether that is wanted.
    fn judge_openness(&mut self, config: &Config) {
        let listen = config.listen.to_string();
        if matches!(config.check(), Err(ConfigError::Open(_))) {
            let instead = if self.given.subcommand.name == DEMO.name {
                "Listen on 127.0.0.1, or say --allow-anonymous if that is what you want."
            } else {
                "Give --jwt-secret-file, listen on 127.0.0.1, or say --allow-anonymous if that is \
                 what you want."
            };
            self.problems.push(Problem::value(
                &LISTEN,
                &listen,
                "other machines can reach it, and without a secret anybody could read and command \
                 everything",
                instead,
            ));
        } else if !config.listen.ip().is_loopback() {
            self.warnings.push(format!(
                "ANYBODY who reaches {listen} can read, publish and command EVERYTHING: \
                 --allow-anonymous is set and no secret is given"
            ));
        }
    }

    /// The address of the Redis and its journals.
    fn redis(&mut self) -> Option<(String, Journal)> {
        let Value { text: mut url, .. } = self.given.value(&REDIS)?;
        if let Err(Refusal { why, instead }) = value::redis_scheme(&url) {
            let shown = journal::without_secrets(&url);
            self.problems.push(Problem::value(&REDIS, &shown, &why, instead));
            return None;
        }
        if let Some(prefix) = self.given.value(&PREFIX)
            && prefix.source != Source::Default
        {
            let separator = if url.contains('?') { '&' } else { '?' };
            url = format!("{url}{separator}prefix={}", prefix.text);
        }
        match Journal::open(&url) {
            Ok(journal) => Some((url, journal)),
            Err(error) => {
                let what = format!("{}: {error}", named(&REDIS));
                self.problems.push(Problem::new(what, "Special characters are percent-encoded."));
                None
            }
        }
    }

    fn key(&mut self) -> Option<Key> {
        let (mut key, warning) =
            self.read(&JWT_SECRET_FILE, |path| value::key_file(Path::new(path)))?;
        self.warnings.extend(warning);
        if let Some(audience) = self.given.value(&JWT_AUDIENCE) {
            key = key.for_audience(audience.text);
        }
        if let Some(issuer) = self.given.value(&JWT_ISSUER) {
            key = key.of_issuer(issuer.text);
        }
        Some(key)
    }

    /// What would promise something that holds with a secret only.
    fn judge_what_needs_a_secret(&mut self, every_origin: bool) {
        let idle = [&JWT_AUDIENCE, &JWT_ISSUER]
            .into_iter()
            .filter(|flag| self.given.value(flag).is_some());
        for flag in idle.collect::<Vec<_>>() {
            self.problems.push(Problem::new(
                format!("{} is given, and no secret", named(flag)),
                "Give --jwt-secret-file as well: without a secret no token is looked at.",
            ));
        }
        if every_origin {
            self.problems.push(Problem::value(
                &ALLOW_ORIGIN,
                "*",
                "without a secret any page that somebody opens could read and command everything",
                "Give --jwt-secret-file, or name the origins.",
            ));
        }
    }

    fn log_format(&mut self) -> Format {
        let format = self.read(&LOG_FORMAT, |text| match text {
            "json" => Ok(Format::Json),
            "text" => Ok(Format::Text),
            _ => Err(Refusal {
                why: "unknown format".to_owned(),
                instead: "Write `json` or `text`.".to_owned(),
            }),
        });
        format.unwrap_or_else(Format::of_stderr)
    }

    fn log_filter(&mut self, directives: Option<&str>) -> EnvFilter {
        let default = || EnvFilter::new("info");
        let Some(directives) = directives else { return default() };
        logs::filter(directives).unwrap_or_else(|error| {
            self.problems.push(Problem::new(
                format!("{LOG_VARIABLE} is `{}`: {error}", shown(directives)),
                "Write a level (`info`, `debug`), or directives such as `relay=debug`.",
            ));
            default()
        })
    }

    /// What the value of `flag` means; `None` if it is missing or wrong.
    fn read<T>(
        &mut self,
        flag: &Flag,
        meaning: impl FnOnce(&str) -> Result<T, Refusal>,
    ) -> Option<T> {
        let Value { text, .. } = self.given.value(flag)?;
        match meaning(&text) {
            Ok(value) => Some(value),
            Err(Refusal { why, instead }) => {
                self.problems.push(Problem::value(flag, &text, &why, instead));
                None
            }
        }
    }
}

/// An id that makes a channel of `kind`.
fn channel_id(kind: &str, id: &str) -> Result<String, Refusal> {
    match format!("{kind}:{id}").parse::<Channel>() {
        Ok(_) => Ok(id.to_owned()),
        Err(error) => Err(Refusal {
            why: error.to_string(),
            instead: "Write 1 to 128 characters of A-Z a-z 0-9 . _ @ | + ~ -".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments;
    use std::fs;

    fn settings(line: &str, log_directives: Option<&str>) -> Result<Settings, Vec<String>> {
        let words = ["agent-relay"].into_iter().chain(line.split_whitespace()).map(Into::into);
        let (given, problems) = arguments::parse(words, &[]).unwrap();
        resolve(given, log_directives, problems)
            .map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    fn problems(line: &str) -> Vec<String> {
        settings(line, None).unwrap_err()
    }

    fn config(line: &str) -> Config {
        match settings(line, None).unwrap().work {
            Work::Serve(config, _) | Work::Demo(config) => config,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn the_defaults_are_a_relay_for_this_machine_alone() {
        let config = config("serve");
        assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
        assert_eq!((config.admin_listen, config.drain), (None, Duration::from_secs(5)));
        assert!(config.key.is_none() && !config.allow_anonymous && config.page.is_none());
        assert!(config.journal.is_in_memory());
    }

    #[tokio::test]
    async fn every_value_arrives() {
        let dir = tempfile::TempDir::new().unwrap();
        let file = dir.path().join("secret");
        fs::write(&file, [b'x'; 32]).unwrap();
        let line = format!(
            "serve --listen 0.0.0.0:1 --redis redis://h --jwt-secret-file {} --admin-listen \
             127.0.0.1:2 --drain 250ms --lease 3s --retain session=1h --log-format text --jwt-audience a --jwt-issuer i \
             --allow-origin https://a.example,http://b.example:81",
            file.display()
        );
        let config = config(&line);
        assert_eq!(config.listen.to_string(), "0.0.0.0:1");
        assert_eq!(config.admin_listen.unwrap().to_string(), "127.0.0.1:2");
        assert_eq!((config.drain, config.page), (Duration::from_millis(250), None));
        assert_eq!(config.journal.lease_length(), Duration::from_secs(3));
        let origins = ["https://a.example", "http://b.example:81"].map(str::to_owned);
        assert_eq!(config.origins, relay::Origins::new(origins));
        assert!(config.key.is_some() && !config.journal.is_in_memory());
        assert_eq!(settings(&line, None).unwrap().log_format, Format::Text);
        let Work::Serve(_, retention) = settings(&line, None).unwrap().work else {
            panic!("{line}")
        };
        assert_eq!(retention.session.age, Duration::from_secs(3_600));
    }

    #[tokio::test]
    async fn every_mistake_is_found_at_once() {
        let line = "serve --listen nonsense --redis http://x --jwt-secret-file /no/such/file \
                    --admin-listen y --drain 5 --lease 100ms --retain session=16MB --allow-anonymous=maybe --log-format loud --bogus";
        let problems = problems(line);
        let said = problems.join("\n");
        for word in [
            "nonsense",
            "http://x",
            "/no/such/file",
            "`y`",
            "`5`",
            "`100ms`",
            "`session=16MB`",
            "maybe",
            "loud",
            "bogus",
        ] {
            assert!(said.contains(word), "no {word} in {said}");
        }
        assert_eq!(problems.len(), 10, "{said}");
    }

    #[tokio::test]
    async fn a_secret_in_an_address_is_not_repeated() {
        for url in ["http://user:canary@h", "user:canary@h", "redis://user:canary@h:x/1"] {
            let said = problems(&format!("serve --redis {url}")).join("\n");
            assert!(!said.contains("canary"), "{said}");
        }
    }

    #[tokio::test]
    async fn an_open_relay_must_be_wanted_and_is_warned_about() {
        let refused = problems("serve --listen 0.0.0.0:8080");
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert!(refused[0].contains("--jwt-secret-file") && refused[0].contains("anonymous"));
        for (flag, word) in [
            ("--allow-origin *", "any page"),
            ("--jwt-audience a", "no secret"),
            ("--jwt-issuer i", "no secret"),
        ] {
            let refused = problems(&format!("serve {flag}"));
            assert!(refused.len() == 1 && refused[0].contains(word), "{flag}: {refused:?}");
        }
        // The file is what is wrong here, not the address.
        let refused = problems("serve --listen 0.0.0.0:8080 --jwt-secret-file /no/such/file");
        assert_eq!(refused.len(), 1, "{refused:?}");

        let open = settings("serve --listen 0.0.0.0:8080 --allow-anonymous", None).unwrap();
        assert!(open.warnings[0].contains("ANYBODY"), "{:?}", open.warnings);
        let own = settings("serve --listen 127.0.0.1:8080 --allow-anonymous", None).unwrap();
        assert!(own.warnings.is_empty(), "{:?}", own.warnings);
    }

    #[tokio::test]
    async fn what_contradicts_is_refused() {
        let dir = tempfile::TempDir::new().unwrap();
        let file = dir.path().join("secret");
        fs::write(&file, [b'x'; 32]).unwrap();
        let line = format!("serve --allow-anonymous --jwt-secret-file {}", file.display());
        assert!(problems(&line)[0].contains("contradict"));
        let line = "serve --listen 127.0.0.1:8080 --admin-listen 127.0.0.1:8080";
        assert!(problems(line)[0].contains("--listen has the same"));
        assert!(settings("serve --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0", None).is_ok());
    }

    #[tokio::test]
    async fn the_demo_has_a_page_and_is_as_careful() {
        assert!(config("serve --demo-page").page.is_some());
        let config = config("demo");
        assert!(config.page.is_some() && config.journal.is_in_memory());
        let refused = problems("demo --listen 0.0.0.0:8080");
        assert!(refused[0].contains("--allow-anonymous") && !refused[0].contains("jwt"));
    }

    #[tokio::test]
    async fn the_demo_agent_needs_a_redis_and_ids_that_make_channels() {
        let refused = problems("demo-agent --session a:b --agent-id é").join("\n");
        for word in ["--redis", "a:b", "é"] {
            assert!(refused.contains(word), "{refused}");
        }
        let line = "demo-agent --redis redis://h --session s1";
        let Work::DemoAgent { session, agent_id, .. } = settings(line, None).unwrap().work else {
            panic!("not the demo agent");
        };
        assert_eq!((session.as_str(), agent_id.as_str()), ("s1", "demo"));
    }

    #[tokio::test]
    async fn an_invalid_filter_is_a_mistake() {
        let refused = settings("serve", Some("relay=loud")).unwrap_err();
        assert!(refused[0].contains("RELAY_LOG is `relay=loud`"), "{refused:?}");
        assert!(settings("serve", Some("warn,relay=debug")).is_ok());
    }
}
