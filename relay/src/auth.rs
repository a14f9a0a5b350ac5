//! Authentication: a token becomes a [`Principal`], at the route or where a connection renews it.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use protocol::frame::Refusal;
use protocol::limits::TOKEN_BYTES_MAX;
use protocol::{CloseCode, ErrorCode, Grant, Object, json_error};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use thiserror::Error;
use uuid::Uuid;

/// The shortest secret that HS256 allows: as long as its hash (RFC 7518 §3.2).
const SECRET_BYTES_MIN: usize = 32;
/// How far an issuer's clock may be ahead of ours: `nbf` and `iat`. After `exp` there is none: a grant's end
/// closes what it had let in.
const LEEWAY: Duration = Duration::from_secs(60);
/// A token that is valid for longer was made by mistake, mostly with milliseconds for seconds.
const LIFETIME_MAX: Duration = Duration::from_secs(10 * 366 * 24 * 3_600);

/// Without a key everybody may do everything.
static EVERYTHING: LazyLock<Arc<Grant>> = LazyLock::new(|| Arc::new(Grant::everything()));

/// What tokens are signed with: HS256.
#[derive(Clone)]
pub struct Key {
    secret: DecodingKey,
    /// What `aud` must name; absent: it is not looked at.
    audience: Option<Box<str>>,
    /// What `iss` must be; absent: it is not looked at.
    issuer: Option<Box<str>>,
}

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
        let secret = DecodingKey::from_secret(secret).map_err(|_| KeyError(secret.len()))?;
        Ok(Self { secret, audience: None, issuer: None })
    }

    /// Only for tokens whose `aud` names this audience.
    #[must_use]
    pub fn for_audience(self, audience: impl Into<Box<str>>) -> Self {
        Self { audience: Some(audience.into()), ..self }
    }

    /// Only for tokens of this `iss`.
    #[must_use]
    pub fn of_issuer(self, issuer: impl Into<Box<str>>) -> Self {
        Self { issuer: Some(issuer.into()), ..self }
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
    /// Shared: each connection has a principal of its own.
    pub(crate) grant: Arc<Grant>,
    /// When the grant ends, as time since the Unix epoch.
    expires_at: Option<Duration>,
}

impl Principal {
    /// The same on a WebSocket: without users each connection has places of its own.
    pub(crate) fn on_a_connection(self: Arc<Self>) -> Arc<Self> {
        match self.user {
            Some(_) => self,
            None => Arc::new(Self { sender: Uuid::new_v4().to_string().into(), ..(*self).clone() }),
        }
    }

    /// How long the grant still lasts; `None` for ever.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        Some(self.expires_at?.saturating_sub(now()))
    }

    /// When the grant ends, Unix milliseconds; 0 where it does not.
    pub(crate) fn expires_at_ms(&self) -> u64 {
        self.expires_at.unwrap_or_default().as_millis() as u64
    }

    /// Whether the grant has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.expires_at.is_some_and(|end| now() >= end)
    }
}

/// Why a token is refused. The text is for the caller and for the log: it holds nothing that an unsigned token says.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum Unauthorized {
    #[error("no token was given")]
    Missing,
    #[error("the token has more than {TOKEN_BYTES_MAX} bytes")]
    Long,
    #[error("the token is not a JWT that is signed with HS256")]
    Malformed,
    #[error("the token is not signed with the secret of this relay")]
    Signature,
    #[error("the token's `{0}` {1}")]
    Claim(&'static str, &'static str),
    #[error("the token's `relay`: {0}")]
    Grant(String),
    #[error("the token has ended")]
    Ended,
    #[error("the token is not valid yet")]
    NotYet,
}

impl Unauthorized {
    /// What a page is told, which cannot see a status: whether to come back with another token.
    pub(crate) fn close_code(&self) -> CloseCode {
        match self {
            Self::Ended | Self::NotYet => CloseCode::TokenExpired,
            _ => CloseCode::TokenRefused,
        }
    }
}

impl From<jsonwebtoken::errors::Error> for Unauthorized {
    fn from(error: jsonwebtoken::errors::Error) -> Self {
        match error.kind() {
            ErrorKind::InvalidSignature => Self::Signature,
            _ => Self::Malformed,
        }
    }
}

/// A token's claims, each looked into by itself, so that the one that is wrong is named.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Claims {
    sub: Option<Box<RawValue>>,
    exp: Option<Box<RawValue>>,
    nbf: Option<Box<RawValue>>,
    iat: Option<Box<RawValue>>,
    aud: Option<Box<RawValue>>,
    iss: Option<Box<RawValue>>,
    relay: Option<Box<RawValue>>,
}

/// The principal of `token`, if it is signed with `key`.
pub(crate) fn authenticate(
    key: Option<&Key>,
    token: Option<&str>,
) -> Result<Principal, Unauthorized> {
    let Some(key) = key else {
        let (sender, grant) = ("http".into(), Arc::clone(&EVERYTHING));
        return Ok(Principal { user: None, sender, grant, expires_at: None });
    };
    let token = token.ok_or(Unauthorized::Missing)?;
    if token.len() > TOKEN_BYTES_MAX {
        return Err(Unauthorized::Long);
    }
    // The library checks the header and the signature, the rest is checked here.
    let mut validation = Validation::new(Algorithm::HS256);
    validation.set_required_spec_claims::<&str>(&[]);
    (validation.validate_exp, validation.validate_aud) = (false, false);
    let Object(claims) =
        jsonwebtoken::decode::<Object<Claims>>(token, &key.secret, &validation)?.claims;
    claims.check(key)
}

/// The principal that `token` makes of one that is there already.
pub(crate) fn renew(
    key: Option<&Key>,
    before: &Principal,
    token: &str,
) -> Result<Principal, Refusal> {
    if key.is_none() {
        return Err(Refusal::new(ErrorCode::Unsupported, "`auth`: this relay asks for no tokens"));
    }
    let refused = |why: &dyn fmt::Display| {
        tracing::info!(%why, "a token was refused");
        let message = format!("the token is refused, the one before holds until its end: {why}");
        Refusal::new(ErrorCode::Unauthorized, message)
    };
    let principal = authenticate(key, Some(token)).map_err(|why| refused(&why))?;
    if principal.user != before.user {
        return Err(refused(&"it is of another user"));
    }
    Ok(principal)
}

impl Claims {
    /// What is wrong for good is found first: what only time changes is the last to be said.
    pub(crate) fn check(self, key: &Key) -> Result<Principal, Unauthorized> {
        const SECONDS: &str = "must be a whole number of Unix seconds";
        let user = claim::<Box<str>>("sub", self.sub.as_deref(), "must be a text")?;
        let user = user.filter(|user| !user.is_empty());
        let user = user.ok_or(Unauthorized::Claim("sub", "must name a user"))?;
        let exp = claim("exp", self.exp.as_deref(), SECONDS)?;
        let exp = exp.ok_or(Unauthorized::Claim("exp", "is missing"))?;
        let (now, expires_at) = (now(), Duration::from_secs(exp));
        if expires_at > now + LIFETIME_MAX {
            return Err(Unauthorized::Claim("exp", "is more than ten years from now"));
        }
        let nbf = claim("nbf", self.nbf.as_deref(), SECONDS)?;
        let iat = claim("iat", self.iat.as_deref(), SECONDS)?;
        if let Some(audience) = &key.audience {
            let is_named = is_for(self.aud.as_deref(), audience);
            is_named.ok_or(Unauthorized::Claim("aud", "does not name this relay"))?;
        }
        if let Some(issuer) = &key.issuer {
            let iss = claim::<Box<str>>("iss", self.iss.as_deref(), "must be a text")?;
            let is_it = iss.filter(|iss| iss == issuer);
            is_it.ok_or(Unauthorized::Claim("iss", "is not the issuer of this relay's tokens"))?;
        }
        let grant = self
            .relay
            .map_or(Ok(Object(Grant::default())), |relay| serde_json::from_str(relay.get()));
        let Object(grant) = grant.map_err(|error| Unauthorized::Grant(json_error(&error)))?;
        grant.check().map_err(|error| Unauthorized::Grant(error.to_string()))?;
        if now >= expires_at {
            return Err(Unauthorized::Ended);
        }
        let begins = [nbf, iat].into_iter().flatten().max().map(Duration::from_secs);
        if begins.is_some_and(|begins| begins > now + LEEWAY) {
            return Err(Unauthorized::NotYet);
        }
        let (sender, expires_at) = (user.clone(), Some(expires_at));
        Ok(Principal { user: Some(user), sender, grant: Arc::new(grant), expires_at })
    }
}

fn claim<T: DeserializeOwned>(
    name: &'static str,
    value: Option<&RawValue>,
    must: &'static str,
) -> Result<Option<T>, Unauthorized> {
    let value = value.map(|value| serde_json::from_str(value.get())).transpose();
    value.map_err(|_| Unauthorized::Claim(name, must))
}

/// Whether an `aud`, a text or a list of texts, names `audience`.
fn is_for(aud: Option<&RawValue>, audience: &str) -> Option<()> {
    let aud = aud?.get();
    let one = serde_json::from_str::<Box<str>>(aud).map(|one| vec![one]);
    let all: Vec<Box<str>> = one.or_else(|_| serde_json::from_str(aud)).ok()?;
    all.iter().any(|one| **one == *audience).then_some(())
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
    fn everything_else_is_refused_and_the_reason_says_which_check() {
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
        let with_header = |name: &str, value: Value| {
            let mut header = Header::new(Algorithm::HS256);
            header.extras.insert(name, value);
            let key = EncodingKey::from_secret(SECRET).unwrap();
            jsonwebtoken::encode(&header, &good, &key).unwrap()
        };
        let none = {
            let signed = sign(&good, SECRET, Algorithm::HS256);
            let payload = signed.split('.').nth(1).unwrap();
            format!("eyJhbGciOiJub25lIn0.{payload}.")
        };
        let list = sign(&json!(["ada", soon(), {"subscribe": ["*"]}]), SECRET, Algorithm::HS256);
        for (token, says) in [
            (with(json!({"exp": now().as_secs()})), "has ended"),
            (with(json!({"nbf": soon() + 10})), "not valid yet"),
            (with(json!({"iat": soon() + 10})), "not valid yet"),
            (with(json!({"nbf": "1"})), "`nbf` must be"),
            (with(json!({"iat": "1"})), "`iat` must be"),
            (with(json!({"exp": "99999999999"})), "`exp` must be"),
            (with(json!({"exp": 99999999999.5})), "`exp` must be"),
            (with(json!({"exp": -1})), "`exp` must be"),
            (with(json!({"exp": now().as_secs() + 11 * 366 * 86_400})), "ten years"),
            (with(json!({"exp": now().as_millis() as u64})), "ten years"),
            (with(json!({"sub": 7})), "`sub` must be a text"),
            (with(json!({"sub": ""})), "`sub` must name a user"),
            (without("exp"), "`exp` is missing"),
            (without("sub"), "`sub` must name a user"),
            (with(json!({"relay": {"subscribe": ["session:*:x"]}})), "`session:*:x`"),
            (with(json!({"relay": [["session:*"]]})), "expected an object"),
            (with(json!({"relay": "all"})), "expected an object"),
            (with_header("crit", json!(["exp"])), "not a JWT"),
            (with_header("crit", json!(["b64"])), "not a JWT"),
            (with_header("b64", json!(false)), "not a JWT"),
            (list, "not a JWT"),
            (sign(&good, b"another-secret-another-secret-32", Algorithm::HS256), "not signed with"),
            (sign(&good, SECRET, Algorithm::HS384), "not a JWT"),
            (none, "not a JWT"),
            (with(json!({"x": "x".repeat(TOKEN_BYTES_MAX)})), "8192 bytes"),
            (String::new(), "not a JWT"),
        ] {
            let why = check(&token).unwrap_err().to_string();
            assert!(why.contains(says), "`{why}` does not say `{says}`");
        }
        let without_a_token = authenticate(Some(&Key::hs256(SECRET).unwrap()), None);
        assert_eq!(without_a_token.unwrap_err(), Unauthorized::Missing);
    }

    /// An issuer's clock may be a little ahead of ours; a token's end is its end.
    #[test]
    fn the_clock_of_the_issuer_may_be_a_minute_ahead() {
        let ahead = now().as_secs() + 55;
        let claims = json!({"sub": "ada", "exp": soon(), "nbf": ahead, "iat": ahead});
        assert!(check(&sign(&claims, SECRET, Algorithm::HS256)).is_ok());
    }

    #[test]
    fn audience_and_issuer_are_checked_where_they_are_configured() {
        let key = Key::hs256(SECRET).unwrap().for_audience("relay").of_issuer("https://id.example");
        let checked = |change: Value| {
            let mut claims =
                json!({"sub": "ada", "exp": soon(), "aud": "relay", "iss": "https://id.example"});
            claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            let token = sign(&claims, SECRET, Algorithm::HS256);
            authenticate(Some(&key), Some(&token)).map(drop).map_err(|why| why.to_string())
        };
        assert_eq!(checked(json!({})), Ok(()));
        assert_eq!(checked(json!({"aud": ["other", "relay"]})), Ok(()));
        for aud in [json!("other"), json!(["other"]), json!([]), json!(null), json!(7), json!({})] {
            let why = checked(json!({"aud": aud})).unwrap_err();
            assert!(why.contains("`aud` does not name this relay"), "{aud}: {why}");
        }
        for iss in [json!("https://evil.example"), json!(null), json!(["https://id.example"])] {
            let why = checked(json!({"iss": iss})).unwrap_err();
            assert!(why.contains("`iss`"), "{iss}: {why}");
        }
        let anything = json!({"sub": "ada", "exp": soon(), "aud": "x", "iss": "y"});
        assert!(check(&sign(&anything, SECRET, Algorithm::HS256)).is_ok());
    }
}
