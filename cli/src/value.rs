//! What a single value means: addresses, durations, switches, secrets, addresses of Redis.
//!
//! Pure but for the secret's file. A refusal says why, and what to write instead.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use journal::{LEASE_MAX, LEASE_MIN};
use relay::{Key, Origins};

/// A longer drain is a slip: what starts the replicas anew will not wait for it.
const DURATION_MAX: Duration = Duration::from_secs(600);
/// Less would close connections that do nothing wrong.
const MEMORY_MIN: usize = 64 * 1024 * 1024;
/// Each worker is a connection to Redis of its own.
const WORKERS_MAX: usize = 64;
/// A larger file is not a secret but some other file.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// Why a value is invalid, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) why: String,
    pub(crate) instead: String,
}

impl Refusal {
    fn new(why: impl Into<String>, instead: impl Into<String>) -> Self {
        Self { why: why.into(), instead: instead.into() }
    }
}

/// An IP address and a port.
pub(crate) fn address(text: &str) -> Result<SocketAddr, Refusal> {
    text.parse().map_err(|_| {
        let port = text.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
        let port = port.unwrap_or(8080);
        Refusal::new(
            "an IP address and a port are needed",
            format!("Write `127.0.0.1:{port}`, or `0.0.0.0:{port}` for every interface."),
        )
    })
}

/// `250ms`, `5s`, `2m`.
pub(crate) fn duration(text: &str) -> Result<Duration, Refusal> {
    let refuse = |why: &str| Refusal::new(why, "Write for example `500ms`, `5s` or `1m`.");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| refuse("a whole number and a unit are needed"))?;
    let milliseconds = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "" => return Err(refuse("the unit is missing")),
        _ => return Err(refuse("the unit must be `ms`, `s` or `m`")),
    };
    milliseconds
        .map(Duration::from_millis)
        .filter(|duration| *duration <= DURATION_MAX)
        .ok_or_else(|| refuse("more than ten minutes cannot be meant"))
}

/// `512MiB`, `2GiB`.
pub(crate) fn memory(text: &str) -> Result<usize, Refusal> {
    let refuse = |why: &str| Refusal::new(why, "Write for example `512MiB` or `2GiB`.");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: usize =
        number.parse().map_err(|_| refuse("a whole number and a unit are needed"))?;
    let bytes = match unit {
        "MiB" => number.checked_mul(1024 * 1024),
        "GiB" => number.checked_mul(1024 * 1024 * 1024),
        "" => return Err(refuse("the unit is missing")),
        _ => return Err(refuse("the unit must be `MiB` or `GiB`")),
    };
    let bytes = bytes.ok_or_else(|| refuse("no machine has so much"))?;
    if bytes < MEMORY_MIN {
        return Err(refuse("less than 64 MiB is too little to serve with"));
    }
    Ok(bytes)
}

/// A number of workers.
pub(crate) fn workers(text: &str) -> Result<NonZeroUsize, Refusal> {
    let workers = text.parse().ok().filter(|workers| (1..=WORKERS_MAX).contains(workers));
    workers.and_then(NonZeroUsize::new).ok_or_else(|| {
        let why = format!("a whole number from 1 to {WORKERS_MAX} is needed");
        Refusal::new(why, "Leave it out for one worker for each core.")
    })
}

/// How long a lease lasts.
pub(crate) fn lease(text: &str) -> Result<Duration, Refusal> {
    let lease = duration(text)?;
    if (LEASE_MIN..=LEASE_MAX).contains(&lease) {
        return Ok(lease);
    }
    let why = format!("a lease lasts between {LEASE_MIN:?} and {LEASE_MAX:?}");
    Err(Refusal::new(why, "Write for example `15s`, the default."))
}

/// Origins of pages, as browsers write them; or `*`.
pub(crate) fn origins(text: &str) -> Result<Origins, Refusal> {
    let origins: Vec<&str> = text.split(',').map(str::trim).collect();
    match origins.iter().find(|origin| **origin != "*" && !is_origin(origin)) {
        None => Ok(Origins::new(origins.into_iter().map(str::to_owned))),
        Some(odd) => Err(Refusal::new(
            format!("`{odd}` is not an origin"),
            "Write for example `https://app.example,http://localhost:3000`: scheme, host and port, without a path.",
        )),
    }
}

fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    !scheme.is_empty()
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        && !authority.is_empty()
        && authority.bytes().all(is_host)
}

/// Yes or no.
pub(crate) fn switch(text: &str) -> Result<bool, Refusal> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(Refusal::new("it is neither yes nor no", "Write `true` or `false`.")),
    }
}

/// The key in a file, and what is to be said about the file.
pub(crate) fn key_file(path: &Path) -> Result<(Key, Option<String>), Refusal> {
    let unreadable = |error: io::Error| {
        Refusal::new(
            format!("it cannot be read ({error})"),
            "Make a secret with `openssl rand -hex 32` and give the name of the file that holds it.",
        )
    };
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.permissions().mode();
    let mut secret = Vec::new();
    file.take(SECRET_BYTES_MAX + 1).read_to_end(&mut secret).map_err(unreadable)?;
    if secret.len() as u64 > SECRET_BYTES_MAX {
        return Err(Refusal::new(
            format!("it holds more than {} KiB", SECRET_BYTES_MAX / 1024),
            "Give the file that holds the secret and nothing else.",
        ));
    }
    let key = Key::hs256(without_newline(&secret))
        .map_err(|error| Refusal::new(error.to_string(), "Write a longer secret into the file."))?;
    let is_open = mode & 0o004 != 0;
    let warning = is_open.then(|| {
        let path = path.display();
        format!("every user of this machine can read the secret in `{path}`: chmod 600 {path}")
    });
    Ok((key, warning))
}

/// Editors and `echo` end a file with a newline; the backend that signs tokens does not sign with it.
fn without_newline(secret: &[u8]) -> &[u8] {
    let secret = secret.strip_suffix(b"\n").unwrap_or(secret);
    secret.strip_suffix(b"\r").unwrap_or(secret)
}

/// Whether `url` has the scheme of a Redis; the rest is the journal's to judge.
pub(crate) fn redis_scheme(url: &str) -> Result<(), Refusal> {
    let (scheme, rest) = url.split_once(':').unwrap_or(("", url));
    let is_redis = ["redis", "rediss"].contains(&scheme);
    if is_redis && rest.starts_with("//") {
        return Ok(());
    }
    let instead = if is_redis {
        format!("Write `{scheme}://{}`.", journal::without_secrets(rest.trim_start_matches('/')))
    } else {
        "Write `redis://127.0.0.1:6379`, or `rediss://…` for TLS.".to_owned()
    };
    Err(Refusal::new("not an address of a Redis", instead))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_written_as_browsers_write_them() {
        for good in
            ["*", "https://a.example", "http://localhost:3000, https://b.example", "app://x"]
        {
            assert!(origins(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "a.example",
            "https://",
            "https://a.example/",
            "https://*.example",
            "null",
            "https://a,",
        ] {
            assert!(origins(bad).is_err(), "{bad}");
        }
    }
    use std::fs;

    #[test]
    fn an_address_is_an_ip_and_a_port() {
        assert_eq!(address("127.0.0.1:0").unwrap().port(), 0);
        assert!(address("[::1]:8080").unwrap().is_ipv6());
        for (text, instead) in [
            ("nonsense", "127.0.0.1:8080"),
            ("9000", "127.0.0.1:9000"),
            (":9000", "0.0.0.0:9000"),
            ("localhost:9000", "127.0.0.1:9000"),
            ("127.0.0.1:70000", "127.0.0.1:8080"),
        ] {
            let refusal = address(text).unwrap_err();
            assert!(refusal.instead.contains(instead), "{text}: {refusal:?}");
        }
    }

    #[test]
    fn a_duration_is_a_number_and_a_unit() {
        for (text, milliseconds) in
            [("0s", 0), ("250ms", 250), ("5s", 5_000), ("2m", 120_000), ("600s", 600_000)]
        {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(milliseconds), "{text}");
        }
        for (text, why) in [
            ("5", "unit is missing"),
            ("5h", "`ms`, `s` or `m`"),
            ("-5s", "whole number"),
            ("1.5s", "unit must be"),
            ("s", "whole number"),
            ("601s", "ten minutes"),
            ("18446744073709551615m", "ten minutes"),
            ("99999999999999999999s", "whole number"),
        ] {
            let refusal = duration(text).unwrap_err();
            assert!(refusal.why.contains(why), "{text}: {refusal:?}");
        }
    }

    #[test]
    fn an_amount_of_memory_is_a_number_and_a_unit() {
        assert_eq!(memory("64MiB").unwrap(), 64 << 20);
        assert_eq!(memory("2GiB").unwrap(), 2 << 30);
        for (text, why) in [
            ("2147483648", "unit is missing"),
            ("2GB", "`MiB` or `GiB`"),
            ("-1GiB", "whole number"),
            ("63MiB", "too little"),
            ("18446744073709551615GiB", "no machine"),
        ] {
            let refusal = memory(text).unwrap_err();
            assert!(refusal.why.contains(why), "{text}: {refusal:?}");
        }
    }

    #[test]
    fn a_number_of_workers_has_bounds() {
        assert_eq!((workers("1").unwrap().get(), workers("64").unwrap().get()), (1, 64));
        for text in ["0", "65", "-1", "two", ""] {
            assert!(workers(text).unwrap_err().why.contains("from 1 to 64"), "{text}");
        }
    }

    #[test]
    fn a_switch_is_yes_or_no() {
        assert_eq!((switch("1"), switch("TRUE"), switch("no")), (Ok(true), Ok(true), Ok(false)));
        assert!(switch("maybe").is_err());
    }

    #[test]
    fn a_secret_is_the_file_without_its_newline() {
        let dir = tempfile::TempDir::new().unwrap();
        let file = dir.path().join("secret");
        let with = |content: &[u8], mode: u32| {
            fs::write(&file, content).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            key_file(&file)
        };
        let long = [b'x'; 32];
        assert!(with(&long, 0o600).unwrap().1.is_none());
        assert!(with(&long, 0o640).unwrap().1.is_none());
        assert!(with(&long, 0o644).unwrap().1.unwrap().contains("chmod 600"));

        for short in [&b"0123456789012345678901234567890\n"[..], b"", b"\r\n"] {
            let refusal = with(short, 0o600).unwrap_err();
            assert!(refusal.why.contains("32"), "{refusal:?}");
        }
        assert!(with(&[b'x'; 70_000], 0o600).unwrap_err().why.contains("64 KiB"));
        assert!(key_file(&dir.path().join("none")).unwrap_err().why.contains("cannot be read"));
        assert!(key_file(dir.path()).unwrap_err().why.contains("cannot be read"));
    }

    #[test]
    fn one_newline_ends_a_file_and_the_rest_belongs_to_the_secret() {
        for (content, secret) in
            [("a", "a"), ("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), (" a ", " a ")]
        {
            assert_eq!(without_newline(content.as_bytes()), secret.as_bytes());
        }
    }

    #[test]
    fn only_addresses_of_a_redis_are_taken() {
        assert_eq!(redis_scheme("redis://h"), Ok(()));
        assert_eq!(redis_scheme("rediss://h"), Ok(()));
        for (url, instead) in [
            ("redis:/cache:6379", "`redis://cache:6379`"),
            ("redis:user:pass@h", "`redis://***@h`"),
            ("http://h", "`redis://127.0.0.1:6379`"),
            ("h:6379", "`redis://127.0.0.1:6379`"),
        ] {
            let refusal = redis_scheme(url).unwrap_err();
            assert!(refusal.instead.contains(instead), "{url}: {refusal:?}");
        }
    }
}
