//! Whose pages may use the relay, and what a browser must be told so that it lets them (CORS).

use protocol::ErrorCode;

/// The origins that were named by `--allow-origin`; none: nothing was named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(Vec<Box<str>>);

impl Origins {
    /// Pages of these origins, as browsers write them (`https://app.example`); `*` stands for all.
    pub fn new(origins: impl IntoIterator<Item = String>) -> Self {
        Self(origins.into_iter().map(|origin| origin.to_ascii_lowercase().into()).collect())
    }

    /// Whether nothing was named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether pages of every origin are named.
    pub fn is_every(&self) -> bool {
        self.0.iter().any(|one| **one == *"*")
    }

    /// Whether pages of this origin are named.
    pub(crate) fn names(&self, origin: &str) -> bool {
        self.is_every() || self.0.iter().any(|one| one.eq_ignore_ascii_case(origin))
    }
}

/// Whether a page of `origin` may use a relay that the page calls `host`.
///
/// Without a key anybody on this machine may do everything, so a page from elsewhere, open in a browser
/// on this machine, must not: browsers let any page open a WebSocket to loopback, and say where the page
/// is from.
pub(crate) fn check_origin(
    origin: &str,
    host: &str,
    named: &Origins,
    has_key: bool,
) -> Result<(), (ErrorCode, &'static str)> {
    let authority = origin.split_once("://").map_or("", |(_, authority)| authority);
    let is_own = !authority.is_empty() && authority.eq_ignore_ascii_case(host);
    if is_own || named.names(origin) {
        return Ok(());
    }
    let refused = |why| Err((ErrorCode::Forbidden, why));
    match (named.is_empty(), has_key) {
        (false, _) => {
            refused("pages of this origin are not allowed: --allow-origin does not name it")
        }
        (true, true) => Ok(()),
        (true, false) if is_loopback(authority) => Ok(()),
        (true, false) => refused("a relay without a key serves no page of another origin"),
    }
}

/// Whether an authority, `host[:port]`, is this machine for whoever uses it.
pub(crate) fn is_loopback(authority: &str) -> bool {
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => authority,
    };
    matches!(name, "localhost" | "127.0.0.1" | "[::1]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_allowed_by_its_origin() {
        let none = Origins::default();
        let listed = Origins::new(["https://App.example".to_owned()]);
        let every = Origins::new(["*".to_owned()]);
        let host = "relay.example:8080";
        for (origin, named, has_key, is_allowed) in [
            ("http://relay.example:8080", &none, false, true),
            ("http://localhost:3000", &none, false, true),
            ("https://app.example", &none, false, false),
            ("null", &none, false, false),
            ("", &none, false, false),
            ("https://app.example", &none, true, true),
            ("null", &none, true, true),
            ("https://app.example", &listed, true, true),
            ("https://app.example", &listed, false, true),
            ("http://app.example", &listed, true, false),
            ("https://app.example:444", &listed, true, false),
            ("https://app.example.evil", &listed, true, false),
            ("http://localhost:3000", &listed, false, false),
            ("null", &listed, true, false),
            ("http://relay.example:8080", &listed, true, true),
            ("https://anything", &every, true, true),
        ] {
            let found = check_origin(origin, host, named, has_key).is_ok();
            assert_eq!(found, is_allowed, "{origin} {named:?} {has_key}");
        }
    }

    #[test]
    fn loopback_is_known_by_its_names_only() {
        for authority in ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]", "[::1]:80"] {
            assert!(is_loopback(authority), "{authority}");
        }
        for authority in ["", "127.0.0.1.evil:80", "localhost.evil", "[::2]:80", "evil:localhost"] {
            assert!(!is_loopback(authority), "{authority}");
        }
    }
}
