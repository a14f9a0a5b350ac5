//! Authentication: a token becomes a [`Principal`] once, at the route. Nothing behind it ever sees a token.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use protocol::Grant;
use protocol::limits::TOKEN_BYTES_MAX;
use serde::Deserialize;
use thiserror::Error;

/// The shortest secret that HS256 allows: as long as its hash (RFC 7518 §3.2).
const SECRET_BYTES_MIN: usize = 32;

/// What tokens are signed with: HS256.
#[derive(Clone)]
pub struct Key(DecodingKey);

/// The secret is too short for a key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "the secret has {0} bytes, HS256 needs at least {SECRET_BYTES_MIN}: `openssl rand -hex 32` makes one"
)]
pub struct KeyError(usize);

impl Key {
    /// The key for a secret of at least 32 bytes.
    ///
    /// # Errors
    /// [`KeyError`] where it is shorter.
    pub fn hs256(secret: &[u8]) -> Result<Self, KeyError> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(KeyError(secret.len()));
        }
        DecodingKey::from_secret(secret).map(Self).map_err(|_| KeyError(secret.len()))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(***)")
    }
}

/// Who makes a call or a connection, and what is permitted to them.
#[derive(Clone, Debug)]
pub(crate) struct Principal {
    /// The token's `sub`; absent where no key is configured.
    pub(crate) user: Option<Box<str>>,
    /// Whose places its commands take while they wait: the user's; without users the connection's, or those
    /// that all who come by HTTP share.
    pub(crate) sender: Box<str>,
    pub(crate) grant: Grant,
    /// When the grant ends, as time since the Unix epoch.
    expires_at: Option<Duration>,
}

impl Principal {
    /// How long the grant still lasts; `None` for ever.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        Some(self.expires_at?.saturating_sub(now()))
    }
}

/// Which check the token did not pass. For the log only: none quotes a word of the token, which anybody may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum Unauthorized {
    #[error("there is none")]
    Missing,
    #[error("it has more than {TOKEN_BYTES_MAX} bytes")]
    TooLarge,
    #[error("it is not a JWT with an `alg` that is known")]
    Malformed,
    #[error("its `alg` is not HS256")]
    Algorithm,
    #[error("it is not signed with the key")]
    Signature,
    #[error("it has ended: `exp`")]
    Expired,
    #[error("it does not hold yet: `nbf`")]
    NotYet,
    #[error("a claim is missing or is not what it must be: `sub`, `exp`, `nbf` or `relay`")]
    Claims,
    #[error("its grant has a pattern that misleads, or too many")]
    Grant,
}

impl From<jsonwebtoken::errors::Error> for Unauthorized {
    fn from(error: jsonwebtoken::errors::Error) -> Self {
        use jsonwebtoken::errors::ErrorKind;
        match error.kind() {
            ErrorKind::InvalidAlgorithm
            | ErrorKind::InvalidAlgorithmName
            | ErrorKind::UnsupportedAlgorithm => Self::Algorithm,
            ErrorKind::InvalidSignature => Self::Signature,
            ErrorKind::ExpiredSignature => Self::Expired,
            ErrorKind::ImmatureSignature => Self::NotYet,
            ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) => Self::Claims,
            // Of the claims: the header was read before.
            ErrorKind::Json(_) => Self::Claims,
            _ => Self::Malformed,
        }
    }
}

/// The principal of `token`, if it is signed with `key`.
pub(crate) fn authenticate(
    key: Option<&Key>,
    token: Option<&str>,
) -> Result<Principal, Unauthorized> {
    #[derive(Deserialize)]
    struct Claims {
        sub: Box<str>,
        exp: u64,
        /// The library ignores an `nbf` that is not a number.
        #[expect(dead_code, reason = "only its type is checked here, its value by the library")]
        nbf: Option<u64>,
        #[serde(default)]
        relay: Grant,
    }

    let Some(key) = key else {
        let (sender, grant) = ("http".into(), Grant::everything());
        return Ok(Principal { user: None, sender, grant, expires_at: None });
    };
    let token = token.ok_or(Unauthorized::Missing)?;
    if token.len() > TOKEN_BYTES_MAX {
        return Err(Unauthorized::TooLarge);
    }
    let mut validation = Validation::new(Algorithm::HS256);
    validation.set_required_spec_claims(&["exp", "sub"]);
    validation.validate_nbf = true;
    // `aud` is not checked: one relay serves one issuer's key.
    validation.validate_aud = false;
    // A grant's end closes the connection, so a leeway would only admit a connection that is closed at once.
    validation.leeway = 0;
    jsonwebtoken::decode_header(token).map_err(|_| Unauthorized::Malformed)?;
    let claims = jsonwebtoken::decode::<Claims>(token, &key.0, &validation)?.claims;
    claims.relay.check().map_err(|_| Unauthorized::Grant)?;
    let expires_at = Some(Duration::from_secs(claims.exp));
    let (sender, user) = (claims.sub.clone(), Some(claims.sub));
    Ok(Principal { user, sender, grant: claims.relay, expires_at })
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{EncodingKey, Header};
    use serde_json::{Value, json};

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn sign(claims: &Value, secret: &[u8], algorithm: Algorithm) -> String {
        let key = EncodingKey::from_secret(secret).unwrap();
        jsonwebtoken::encode(&Header::new(algorithm), claims, &key).unwrap()
    }

    fn check(token: &str) -> Result<Principal, Unauthorized> {
        authenticate(Some(&Key::hs256(SECRET).unwrap()), Some(token))
    }

    fn soon() -> u64 {
        now().as_secs() + 60
    }

    #[test]
    fn a_short_secret_is_not_a_key() {
        assert_eq!(Key::hs256(&SECRET[1..]).unwrap_err(), KeyError(31));
    }

    #[test]
    fn a_valid_token_says_who_and_what() {
        let claims = json!({"sub": "ada", "exp": soon(), "relay": {"subscribe": ["session:42"]}});
        let principal = check(&sign(&claims, SECRET, Algorithm::HS256)).unwrap();
        assert_eq!(principal.user.as_deref(), Some("ada"));
        assert!(principal.grant.may_subscribe(&"session:42".parse().unwrap()));
        assert!(!principal.grant.may_command(&"session:42".parse().unwrap()));
        assert!(principal.remaining().unwrap() <= Duration::from_secs(60));
    }

    /// F54, the part that concerns one secret.
    #[test]
    fn everything_else_is_refused_and_the_check_is_named() {
        let good = json!({"sub": "ada", "exp": soon()});
        let with = |change: Value| {
            let mut claims = good.clone();
            claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            sign(&claims, SECRET, Algorithm::HS256)
        };
        let without = |name: &str| {
            let mut claims = good.clone();
            claims.as_object_mut().unwrap().remove(name);
            sign(&claims, SECRET, Algorithm::HS256)
        };
        let none = {
            let signed = sign(&good, SECRET, Algorithm::HS256);
            let payload = signed.split('.').nth(1).unwrap();
            format!("eyJhbGciOiJub25lIn0.{payload}.")
        };
        let key = Key::hs256(SECRET).unwrap();
        for (why, token, check) in [
            ("expired", with(json!({"exp": now().as_secs() - 1})), Unauthorized::Expired),
            ("not yet valid", with(json!({"nbf": soon()})), Unauthorized::NotYet),
            ("nbf as text", with(json!({"nbf": "1"})), Unauthorized::Claims),
            ("exp as text", with(json!({"exp": "99999999999"})), Unauthorized::Claims),
            ("exp as fraction", with(json!({"exp": 99999999999.5})), Unauthorized::Claims),
            ("sub as number", with(json!({"sub": 7})), Unauthorized::Claims),
            ("no exp", without("exp"), Unauthorized::Claims),
            ("no sub", without("sub"), Unauthorized::Claims),
            (
                "a pattern that misleads",
                with(json!({"relay": {"subscribe": ["session:*:x"]}})),
                Unauthorized::Grant,
            ),
            (
                "another secret",
                sign(&good, b"another-secret-another-secret-32", Algorithm::HS256),
                Unauthorized::Signature,
            ),
            ("another algorithm", sign(&good, SECRET, Algorithm::HS384), Unauthorized::Algorithm),
            ("alg none", none, Unauthorized::Malformed),
            ("too long", with(json!({"x": "x".repeat(TOKEN_BYTES_MAX)})), Unauthorized::TooLarge),
            ("empty", String::new(), Unauthorized::Malformed),
        ] {
            assert_eq!(authenticate(Some(&key), Some(&token)).unwrap_err(), check, "{why}");
        }
        assert_eq!(authenticate(Some(&key), None).unwrap_err(), Unauthorized::Missing);
    }
}
