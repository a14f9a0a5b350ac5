//! Tokens: whatever a caller shows, and whatever an issuer signs.

use std::time::{SystemTime, UNIX_EPOCH};

use protocol::{Channel, Grant, Object};
use serde_json::{Map, Value};

use crate::auth::{Claims, Key, Unauthorized, authenticate};

/// What an error says is short, however long what it is about.
const REASON_BYTES_MAX: usize = 1_024;

/// What is not signed is refused. Claims become a grant that is valid, and permits what it lists and nothing else.
pub fn tokens(bytes: &[u8]) {
    let key = Key::hs256(&[7; 32]).expect("it is long enough");
    let text = String::from_utf8_lossy(bytes);
    let unsigned = authenticate(Some(&key), Some(&text)).map(drop);
    check_short(&unsigned.expect_err("it is not signed"));

    if let Ok(Object(claims)) = serde_json::from_str::<Object<Claims>>(&text) {
        let named = key.clone().for_audience("relay").of_issuer("issuer");
        match claims.check(&named) {
            Ok(principal) => {
                assert!(principal.user.as_deref().is_some_and(|user| !user.is_empty()));
                assert!(principal.grant.check().is_ok());
            }
            Err(why) => check_short(&why),
        }
    }

    // The same as a grant, in claims that are right.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let claims = format!(r#"{{"sub":"ada","exp":{},"relay":{text}}}"#, now + 60);
    let Ok(Object(claims)) = serde_json::from_str::<Object<Claims>>(&claims) else { return };
    match claims.check(&key) {
        Ok(principal) => {
            // A text may close the claims and go on with others.
            if let Ok(listed) = serde_json::from_str(&text) {
                check_grant(&principal.grant, &listed);
            }
        }
        Err(why) => check_short(&why),
    }
}

fn check_short(why: &Unauthorized) {
    let why = why.to_string();
    assert!(why.len() <= REASON_BYTES_MAX, "{why}");
}

fn check_grant(grant: &Grant, listed: &Map<String, Value>) {
    let patterns = |right: &str| {
        let list = listed.get(right).and_then(Value::as_array).into_iter().flatten();
        list.filter_map(Value::as_str)
    };
    let permits = |right: &str, name: &str| {
        patterns(right).any(|pattern| {
            let prefix = pattern.strip_suffix('*');
            pattern == name || prefix.is_some_and(|prefix| name.starts_with(prefix))
        })
    };
    let of_lists = ["subscribe", "command", "publish", "serve"].into_iter().flat_map(patterns);
    let of_lists: Vec<Channel> =
        of_lists.filter_map(|pattern| pattern.replace('*', "x").parse().ok()).collect();
    let others = ["session:42", "agent:a1", "service:s", "global:events"];
    let others = others.map(|name| name.parse::<Channel>().expect("a channel"));
    for channel in of_lists.iter().chain(&others) {
        let name = channel.as_str();
        assert_eq!(grant.may_subscribe(channel), permits("subscribe", name), "{name}");
        assert_eq!(grant.may_command(channel), permits("command", name), "{name}");
        assert_eq!(grant.may_publish(channel), permits("publish", name), "{name}");
        assert_eq!(grant.may_serve(channel), permits("serve", name), "{name}");
    }
    for method in patterns("request").chain(["sessions.create"]) {
        let method = method.replace('*', "x");
        assert_eq!(grant.may_request(&method), permits("request", &method), "{method}");
    }
    assert_eq!(grant.may_administer(), listed.get("admin") == Some(&Value::Bool(true)));
}
