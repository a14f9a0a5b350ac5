//! Tokens, good and bad, made by hand so that a mistake of the relay's JWT library is not shared.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

/// The secret of every cluster that has one: 40 bytes.
pub const SECRET: &str = "a secret of the scenarios, 40 bytes long";

/// A token in the making: who, until when, and the grant.
#[derive(Clone, Debug)]
pub struct Token {
    claims: Value,
}

impl Token {
    /// A token for `user` that allows nothing and holds for an hour.
    pub fn of(user: &str) -> Self {
        Self { claims: json!({"sub": user, "exp": now() + 3_600, "relay": {}}) }
    }

    /// A token that allows everything.
    pub fn of_the_operator() -> Self {
        Self::of("operator")
            .allowing("subscribe", &["*"])
            .allowing("command", &["*"])
            .allowing("request", &["*"])
            .allowing("publish", &["*"])
    }

    /// Adds a list of the grant: `subscribe`, `command`, `request`, `publish` or `serve`.
    #[must_use]
    pub fn allowing(mut self, what: &str, patterns: &[&str]) -> Self {
        self.claims["relay"][what] = json!(patterns);
        self
    }

    /// Adds what only operators have.
    #[must_use]
    pub fn administering(mut self) -> Self {
        self.claims["relay"]["admin"] = json!(true);
        self
    }

    /// Ends the token so many seconds from now (or ended it, where negative).
    #[must_use]
    pub fn ending_in(self, seconds: i64) -> Self {
        let end = now() as i64 + seconds;
        self.with("exp", json!(end))
    }

    /// Sets a claim.
    #[must_use]
    pub fn with(mut self, claim: &str, value: Value) -> Self {
        self.claims[claim] = value;
        self
    }

    /// Removes a claim.
    #[must_use]
    pub fn without(mut self, claim: &str) -> Self {
        self.claims.as_object_mut().unwrap().remove(claim);
        self
    }

    /// The token as text, as the relay wants it.
    pub fn sign(&self) -> String {
        self.sign_as(&json!({"alg": "HS256", "typ": "JWT"}), SECRET)
    }

    /// The token as text with any header, signed HS256 with any secret.
    pub fn sign_as(&self, header: &Value, secret: &str) -> String {
        let message = format!("{}.{}", part(header), part(&self.claims));
        // To HMAC, which fills keys up with zeros, this is the empty one; the library refuses that.
        let secret = if secret.is_empty() { "\0" } else { secret };
        let key = EncodingKey::from_secret(secret.as_bytes()).expect("a secret is not empty");
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256)
            .expect("HMAC takes any key and message");
        format!("{message}.{signature}")
    }

    /// The token as text with a header that names `alg` and no signature at all.
    pub fn unsigned(&self, alg: &str) -> String {
        format!("{}.{}.", part(&json!({"alg": alg, "typ": "JWT"})), part(&self.claims))
    }
}

/// The present, Unix seconds.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

fn part(json: &Value) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(json.to_string())
}
