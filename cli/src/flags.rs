//! The table of every flag, its variable and its default. Flags are a contract for scripts.
//!
//! Nothing is read here: [`arguments`](crate::arguments) finds out what was given,
//! [`settings`](crate::settings) what it means.

/// Something that can be given as `--name value` or as `VARIABLE=value`.
#[derive(Debug)]
pub(crate) struct Flag {
    /// Without the dashes.
    pub(crate) name: &'static str,
    pub(crate) variable: &'static str,
    /// How the value is called in the help; a switch has none.
    pub(crate) value: Option<&'static str>,
    pub(crate) default: Option<&'static str>,
    pub(crate) help: &'static str,
}

/// What the binary can be told to do.
#[derive(Debug)]
pub(crate) struct Subcommand {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) flags: &'static [&'static Flag],
}

pub(crate) const LISTEN: Flag = Flag {
    name: "listen",
    variable: "RELAY_LISTEN",
    value: Some("ADDR"),
    default: Some("127.0.0.1:8080"),
    help: "Where browsers and publishers come in; port 0 lets the system pick one",
};

pub(crate) const REDIS: Flag = Flag {
    name: "redis",
    variable: "RELAY_REDIS",
    value: Some("URL"),
    default: None,
    help: "The Redis that holds the journals: redis://[user:password@]host[:port][/database], or \
           rediss:// for TLS",
};

pub(crate) const PREFIX: Flag = Flag {
    name: "prefix",
    variable: "RELAY_PREFIX",
    value: Some("NAME"),
    default: Some("relay"),
    help: "What all names in Redis begin with: another one for each deployment that shares it",
};

pub(crate) const JWT_SECRET_FILE: Flag = Flag {
    name: "jwt-secret-file",
    variable: "RELAY_JWT_SECRET_FILE",
    value: Some("FILE"),
    default: None,
    help: "The secret that tokens are signed with (HS256, at least 32 bytes); without it everybody \
           may do everything",
};

pub(crate) const ADMIN_LISTEN: Flag = Flag {
    name: "admin-listen",
    variable: "RELAY_ADMIN_LISTEN",
    value: Some("ADDR"),
    default: None,
    help: "Where health is asked for, instead of the main listener",
};

pub(crate) const ALLOW_ANONYMOUS: Flag = Flag {
    name: "allow-anonymous",
    variable: "RELAY_ALLOW_ANONYMOUS",
    value: None,
    default: Some("false"),
    help: "Without a secret, listen on more than loopback all the same",
};

pub(crate) const JWT_AUDIENCE: Flag = Flag {
    name: "jwt-audience",
    variable: "RELAY_JWT_AUDIENCE",
    value: Some("NAME"),
    default: None,
    help: "Accept only tokens whose `aud` names this",
};

pub(crate) const JWT_ISSUER: Flag = Flag {
    name: "jwt-issuer",
    variable: "RELAY_JWT_ISSUER",
    value: Some("NAME"),
    default: None,
    help: "Accept only tokens whose `iss` is this",
};

pub(crate) const ALLOW_ORIGIN: Flag = Flag {
    name: "allow-origin",
    variable: "RELAY_ALLOW_ORIGIN",
    value: Some("ORIGINS"),
    default: None,
    help: "Whose pages may use the relay besides its own: origins such as https://app.example, separated by \
           commas; or `*`, with a secret only",
};

pub(crate) const DRAIN: Flag = Flag {
    name: "drain",
    variable: "RELAY_DRAIN",
    value: Some("DURATION"),
    default: Some("5s"),
    help: "Over how long a stopping relay sends its connections elsewhere",
};

pub(crate) const LEASE: Flag = Flag {
    name: "lease",
    variable: "RELAY_LEASE",
    value: Some("DURATION"),
    default: Some("15s"),
    help: "After how long an agent that does not renew its lease is declared lost; the same for all \
           replicas and agents",
};

pub(crate) const RETAIN: Flag = Flag {
    name: "retain",
    variable: "RELAY_RETAIN",
    value: Some("KIND=SIZE/AGE,…"),
    default: None,
    help: "How much journals keep, for example session=16MiB/24h; of session, global, other, commands and \
           service; the same for all replicas",
};

pub(crate) const MEMORY: Flag = Flag {
    name: "memory",
    variable: "RELAY_MEMORY",
    value: Some("BYTES"),
    default: None,
    help: "How much may wait for browsers, agents and callers, all together; half of what the \
           machine or the container allows",
};

pub(crate) const WORKERS: Flag = Flag {
    name: "workers",
    variable: "RELAY_WORKERS",
    value: Some("NUMBER"),
    default: None,
    help: "How many workers share the channels, 1 to 64, each with a connection to Redis; one for each core",
};

pub(crate) const DEMO_PAGE: Flag = Flag {
    name: "demo-page",
    variable: "RELAY_DEMO_PAGE",
    value: None,
    default: Some("false"),
    help: "Show the demo's page at /, for a demo agent that publishes through the same Redis",
};

pub(crate) const LOG_FORMAT: Flag = Flag {
    name: "log-format",
    variable: "RELAY_LOG_FORMAT",
    value: Some("json|text"),
    default: None,
    help: "How the log on stderr looks; text on a terminal, otherwise JSON",
};

pub(crate) const SESSION: Flag = Flag {
    name: "session",
    variable: "RELAY_SESSION",
    value: Some("ID"),
    default: Some("demo"),
    help: "The session in which the demo agent works; its plan has the same id",
};

pub(crate) const AGENT_ID: Flag = Flag {
    name: "agent-id",
    variable: "RELAY_AGENT_ID",
    value: Some("ID"),
    default: Some("demo"),
    help: "The id under which commands reach the demo agent",
};

/// What is logged, a level or directives; not a flag, because it is for diagnosis.
pub(crate) const LOG_VARIABLE: &str = "RELAY_LOG";

const SERVING: &[&Flag] = &[
    &LISTEN,
    &REDIS,
    &PREFIX,
    &JWT_SECRET_FILE,
    &JWT_AUDIENCE,
    &JWT_ISSUER,
    &ADMIN_LISTEN,
    &ALLOW_ANONYMOUS,
    &ALLOW_ORIGIN,
    &DRAIN,
    &LEASE,
    &RETAIN,
    &MEMORY,
    &WORKERS,
    &DEMO_PAGE,
    &LOG_FORMAT,
];

pub(crate) const SERVE: Subcommand = Subcommand {
    name: "serve",
    about: "Run a replica of the relay; without --redis its journals live in this process",
    flags: SERVING,
};

pub(crate) const DEMO: Subcommand = Subcommand {
    name: "demo",
    about: "Run a relay, an agent and a page that shows it, all in this process",
    flags: &[&LISTEN, &ALLOW_ANONYMOUS, &LOG_FORMAT],
};

pub(crate) const DEMO_AGENT: Subcommand = Subcommand {
    name: "demo-agent",
    about: "Run the demo's agent alone, against a Redis",
    flags: &[&REDIS, &PREFIX, &LEASE, &SESSION, &AGENT_ID, &LOG_FORMAT],
};

pub(crate) const CHECK: Subcommand = Subcommand {
    name: "check",
    about: "Say what `serve` would do with the same flags and variables, without doing it",
    flags: SERVING,
};

pub(crate) const SUBCOMMANDS: [&Subcommand; 4] = [&SERVE, &DEMO, &DEMO_AGENT, &CHECK];

/// Every flag of every subcommand, some more than once.
pub(crate) fn all() -> impl Iterator<Item = &'static Flag> {
    SUBCOMMANDS.iter().flat_map(|subcommand| subcommand.flags.iter().copied())
}

/// The one of `names` that `written` was probably meant to be.
pub(crate) fn nearest<'a>(
    written: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    /// Lets one letter in five be wrong and a word be missing, and does not guess beyond that.
    const LIKENESS_MIN: f64 = 0.8;
    names
        .into_iter()
        .map(|name| (strsim::jaro_winkler(&written.to_uppercase(), &name.to_uppercase()), name))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_named_after_its_flag() {
        for flag in all() {
            let name = flag.name.replace('-', "_").to_uppercase();
            assert_eq!(flag.variable, format!("RELAY_{name}"));
        }
    }

    #[test]
    fn the_nearest_name_is_found_and_not_guessed() {
        let variables = || all().map(|flag| flag.variable);
        for (written, meant) in [
            ("RELAY_JWT_SECRET_FIEL", Some("RELAY_JWT_SECRET_FILE")),
            ("RELAY_JWT_SECRET", Some("RELAY_JWT_SECRET_FILE")),
            ("RELAY_REDIS_URL", Some("RELAY_REDIS")),
            ("RELAY_LISTEN_ADDR", Some("RELAY_LISTEN")),
            ("relay_drain", Some("RELAY_DRAIN")),
            ("XYZ", None),
        ] {
            assert_eq!(nearest(written, variables()), meant, "{written}");
        }
        let names = || all().map(|flag| flag.name);
        assert_eq!(nearest("lisen", names()), Some("listen"));
        assert_eq!(nearest("colour", names()), None);
    }

    /// The README's table names each flag with its variable and its default.
    #[test]
    fn the_readme_lists_every_flag() {
        let readme = include_str!("../../README.md");
        let row = |flag: &Flag| {
            let start = format!("| `--{}", flag.name);
            readme.lines().find(|line| {
                line.strip_prefix(&start).is_some_and(|rest| rest.starts_with(['`', ' ']))
            })
        };
        for flag in all() {
            let row = row(flag).unwrap_or_else(|| panic!("no row for --{}", flag.name));
            assert!(row.contains(&format!("`{}`", flag.variable)), "{row}");
            let default = flag.default.filter(|_| flag.value.is_some());
            assert!(default.is_none_or(|default| row.contains(&format!("`{default}`"))), "{row}");
        }
        assert!(readme.contains(LOG_VARIABLE));
    }
}
