//! An address as it may be shown, in an error or a log.

/// The longest address that is shown, in characters.
const SHOWN: usize = 200;

/// `url` without what nobody else may know: no user, no password, no query.
pub fn without_secrets(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let separator = if scheme.is_empty() { "" } else { "://" };
    let (hidden, host) = match rest.rsplit_once('@') {
        Some((_, host)) => ("***@", host),
        None => ("", rest),
    };
    format!("{scheme}{separator}{hidden}{host}").chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_address_holds_no_secret() {
        for (url, shown) in [
            ("redis://h:6379/2", "redis://h:6379/2"),
            ("redis://user:p@ss@h:6379", "redis://***@h:6379"),
            ("user:pass@h:6379", "***@h:6379"),
            ("https://h/?token=abc", "https://h/"),
            ("", ""),
        ] {
            assert_eq!(without_secrets(url), shown);
        }
    }
}
