//! `check`: says what `serve` would do, and does not do it.

use journal::{Journal, Retention, without_secrets};

use crate::arguments::{Given, Source};
use crate::flags::{Flag, JWT_SECRET_FILE, LOG_FORMAT, REDIS, RETAIN};
use crate::retain;

/// Prints the configuration, and whether a relay can work with its Redis: false where it cannot, whatever is waited
/// for. A Redis that does not answer is not a mistake: the relay starts without it, and serves as soon as it is there.
#[expect(clippy::print_stdout, reason = "the report is what was asked for")]
pub(crate) async fn run(given: &Given, journal: &Journal, retention: &Retention) -> bool {
    print!("The configuration is valid.\n\n{}\n{}", effective(given), kept(retention));
    if journal.is_in_memory() {
        return true;
    }
    match journal.ready().await {
        Ok(()) => println!("\nRedis answers, writes, and permits all that a relay does."),
        Err(error) if error.is_lasting() => {
            println!(
                "\nError: {error}.\nThe relay would start and never be ready. Waiting does not help: correct the \
                 address, the password,\nthe certificate or the rights of the user (PROTOCOL.md lists them)."
            );
            return false;
        }
        Err(error) => {
            println!(
                "\nWarning: {error}.\nThe relay would start, not be ready, and serve as soon as Redis answers and \
                 writes."
            );
            return true;
        }
    }
    if let Ok(Some(policy)) = journal.eviction().await {
        println!(
            "\nWarning: maxmemory-policy is `{policy}`, so Redis will delete journals when it \
             reaches its maxmemory.\nSet it to noeviction."
        );
    }
    if let Ok(malformed) = journal.malformed_retention().await
        && !malformed.is_empty()
    {
        println!(
            "\nWarning: the retention settings in Redis for {} cannot be read, so the \
             defaults hold.\n`serve` writes them anew when it starts.",
            malformed.join(", ")
        );
    }
    true
}

/// Every flag with its value and where that is from; no secret.
fn effective(given: &Given) -> String {
    let row = |flag: &&Flag| {
        let (shown, source) = match given.value(flag) {
            Some(value) if flag.name == REDIS.name => (without_secrets(&value.text), value.source),
            Some(value) => (value.text, value.source),
            None => (absence(flag.name).to_owned(), Source::Default),
        };
        format!("  {:<16} {shown} ({source})\n", flag.name)
    };
    given.subcommand.flags.iter().map(row).collect()
}

/// How much each journal keeps.
fn kept(retention: &Retention) -> String {
    let row = |(kind, keep)| format!("  {kind:<16} {}\n", retain::shown(&keep));
    let rows: String = retention.fields().into_iter().map(row).collect();
    format!("Journals keep at most so many bytes, for so long, and so many entries:\n\n{rows}")
}

/// What it means that a flag without default was not given.
fn absence(name: &str) -> &'static str {
    if name == REDIS.name {
        "none: the journals live in this process' memory"
    } else if name == JWT_SECRET_FILE.name {
        "none: everybody may do everything"
    } else if name == RETAIN.name {
        "the defaults"
    } else if name == LOG_FORMAT.name {
        "text on a terminal, otherwise json"
    } else {
        "none"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments;

    #[test]
    fn the_effective_configuration_holds_no_password() {
        let line = "agent-relay check --redis redis://user:canary@h:1/2 --drain 1s";
        let words = line.split_whitespace().map(Into::into);
        let variables = [("RELAY_LISTEN".into(), "127.0.0.1:1".into())];
        let (given, _) = arguments::parse(words, &variables).unwrap();

        let table = effective(&given);

        for row in [
            "  listen           127.0.0.1:1 (variable)\n",
            "  redis            redis://***@h:1/2 (flag)\n",
            "  drain            1s (flag)\n",
            "  allow-anonymous  false (default)\n",
            "  admin-listen     none (default)\n",
        ] {
            assert!(table.contains(row), "{table}");
        }
        assert!(!table.contains("canary"), "{table}");
    }

    #[test]
    fn what_is_kept_is_shown_for_every_kind_of_journals() {
        let table = kept(&retain::retention("session=16MiB/48h").unwrap());
        for row in [
            "  session          16MiB/48h/100000\n",
            "  global           8MiB/1h/100000\n",
            "  other            2MiB/24h/10000\n",
            "  commands         16MiB/24h/4096\n",
            "  service          16MiB/24h/4096\n",
        ] {
            assert!(table.contains(row), "{table}");
        }
    }
}
