//! Who may do what, and for how long.

use hyper::Method;
use serde_json::{Value, json};
use tests::token::SECRET;
use tests::{Cluster, Token};

async fn guarded(replicas: usize) -> Cluster {
    Cluster::options().replicas(replicas).with_secret().set().await
}

/// F54: an invalid token is refused before the upgrade, and over HTTP.
#[tokio::test]
async fn a_token_that_is_not_valid_is_401_before_the_upgrade() {
    let cluster = guarded(1).await;
    let good = Token::of("eve").allowing("subscribe", &["*"]).allowing("publish", &["*"]);
    let hs256 = json!({"alg": "HS256", "typ": "JWT"});
    let signed = good.sign();
    let (body, signature) = signed.rsplit_once('.').unwrap();
    let (header, _) = body.split_once('.').unwrap();
    let stolen_signature = {
        let richer = good.clone().allowing("command", &["*"]).sign();
        let claims = richer.split('.').nth(1).unwrap().to_owned();
        format!("{header}.{claims}.{signature}")
    };
    let bad = [
        ("empty", String::new()),
        ("no JWT", "abc".to_owned()),
        ("three dots", "...".to_owned()),
        ("expired", good.clone().ending_in(-3_600).sign()),
        ("no exp", good.clone().without("exp").sign()),
        ("exp as a string", good.clone().with("exp", json!("99999999999")).sign()),
        ("exp null", good.clone().with("exp", Value::Null).sign()),
        ("exp negative", good.clone().with("exp", json!(-1)).sign()),
        ("no sub", good.clone().without("sub").sign()),
        ("sub as a number", good.clone().with("sub", json!(7)).sign()),
        ("not yet", good.clone().with("nbf", json!(tests::token::now() + 3_600)).sign()),
        ("nbf as a string", good.clone().with("nbf", json!("1")).sign()),
        ("another secret", good.sign_as(&hs256, "another secret, which is long enough too")),
        ("no secret", good.sign_as(&hs256, "")),
        ("alg none", good.unsigned("none")),
        ("alg nOnE", good.unsigned("nOnE")),
        ("alg HS256 unsigned", good.unsigned("HS256")),
        ("alg HS384", good.sign_as(&json!({"alg": "HS384"}), SECRET)),
        ("alg RS256", good.sign_as(&json!({"alg": "RS256"}), SECRET)),
        ("no alg", good.sign_as(&json!({"typ": "JWT"}), SECRET)),
        ("no signature", body.to_owned()),
        ("another's signature", stolen_signature),
        ("relay is not an object", good.clone().with("relay", json!("all")).sign()),
        ("relay is a list", good.clone().with("relay", json!([["*"], ["*"]])).sign()),
        ("sub is empty", good.clone().with("sub", json!("")).sign()),
        ("iat to come", good.clone().with("iat", json!(tests::token::now() + 3_600)).sign()),
        ("ends in 11 years", good.clone().ending_in(11 * 366 * 86_400).sign()),
        ("an unknown crit", good.sign_as(&json!({"alg": "HS256", "crit": ["exp"]}), SECRET)),
        ("b64 false", good.sign_as(&json!({"alg": "HS256", "b64": false}), SECRET)),
        ("10 KiB", good.clone().with("pad", json!("x".repeat(10 * 1024))).sign()),
    ];
    for (what, token) in bad {
        assert_eq!(cluster.browser().token(&token).refused().await, 401, "{what}");
        let query = cluster.browser().path(&format!("/ws?token={token}"));
        assert_eq!(query.refused().await, 401, "{what}, in the query");
        let bearer = format!("Bearer {token}");
        let headers = [("Authorization", bearer.as_str())];
        let address = cluster.replicas[0].address();
        let path = "/api/v1/channels/session:1/events";
        let reply = tests::http::call(&address, Method::GET, path, &headers, "").await.unwrap();
        assert_eq!((reply.status, reply.error_code().as_str()), (401, "unauthorized"), "{what}");
    }
    cluster.browser().token(&good.sign()).connect().await.settle().await;
}

/// A page's script cannot see the status of a refused upgrade: it is let in, told whether to come back, and let go.
#[tokio::test]
async fn a_page_with_a_token_that_is_not_valid_learns_so_from_the_close_code() {
    let cluster = guarded(1).await;
    let good = Token::of("eve").allowing("subscribe", &["*"]);
    let page = |path: &str, token: &str| {
        let endpoint = cluster.browser().path(path).header("Origin", "https://app.example");
        // The script of a page: the relay selects the subprotocol, or the client library would refuse the upgrade.
        match token {
            "" => endpoint,
            token => endpoint
                .header("Sec-WebSocket-Protocol", &format!("agent-relay.v1, bearer.{token}")),
        }
    };
    let hs256 = json!({"alg": "HS256", "typ": "JWT"});
    for (token, code, says) in [
        (good.clone().ending_in(-1).sign(), 4401, "has ended"),
        (
            good.clone().with("nbf", json!(tests::token::now() + 3_600)).sign(),
            4401,
            "not valid yet",
        ),
        (good.sign_as(&hs256, "another secret, which is long enough too"), 4501, "not signed"),
        (good.clone().with("relay", json!([["*"]])).sign(), 4501, "expected an object"),
        ("abc".to_owned(), 4501, "not a JWT"),
        (String::new(), 4501, "no token"),
    ] {
        for path in ["/ws", "/ws/events", "/ws/s1"] {
            let (found, reason) = page(path, &token).turned_away().await;
            assert_eq!(found, code, "{says}: {reason}");
            assert!(reason.contains(says), "`{reason}` does not say `{says}`");
        }
        // An agent, and whoever is not a page, can see a status.
        let agent = page("/ws/agents/a1", &token);
        assert_eq!(agent.refused().await, 401, "{says}");
        assert_eq!(cluster.browser().token(&token).refused().await, 401, "{says}");
    }
    page("/ws", &good.sign()).connect().await.settle().await;
}

/// A 401 says in JSON which check failed, and how one authenticates.
#[tokio::test]
async fn a_refused_token_is_answered_with_the_reason() {
    let cluster = guarded(1).await;
    let address = cluster.replicas[0].address();
    let bearer = format!("Bearer {}", Token::of("eve").ending_in(-1).sign());
    for path in ["/ws/agents/a1", "/ws", "/api/v1/agents"] {
        let headers = [("Authorization", bearer.as_str())];
        let reply = tests::http::call(&address, Method::GET, path, &headers, "").await.unwrap();
        assert_eq!((reply.status, reply.error_code().as_str()), (401, "unauthorized"), "{path}");
        assert!(reply.text().contains("the token has ended"), "{path}: {}", reply.text());
        assert_eq!(reply.header("WWW-Authenticate"), "Bearer", "{path}");
    }
}

/// `--jwt-audience` and `--jwt-issuer` turn away what was made for others.
#[tokio::test]
async fn a_token_for_another_audience_or_of_another_issuer_is_refused() {
    let options = Cluster::options().replicas(1).with_secret();
    let options = options.flag("--jwt-audience").flag("relay").flag("--jwt-issuer").flag("id");
    let cluster = options.set().await;
    let token = Token::of("ada").with("aud", json!(["other", "relay"])).with("iss", json!("id"));
    cluster.browser().token(&token.sign()).connect().await.settle().await;
    for bad in [
        token.clone().with("aud", json!("other")),
        token.clone().without("aud"),
        token.clone().with("iss", json!("other")),
        token.clone().without("iss"),
    ] {
        assert_eq!(cluster.browser().token(&bad.sign()).refused().await, 401, "{bad:?}");
    }
}

/// What is accepted of a token's way in: schemes in any case, spaces, headers that come twice.
#[tokio::test]
async fn a_token_is_found_however_a_client_writes_its_headers() {
    let cluster = guarded(1).await;
    let token = Token::of("ada").sign();
    let address = cluster.replicas[0].address();
    for bearer in ["bearer ", "BEARER  ", "Bearer   "] {
        let value = format!("{bearer}{token}");
        cluster.browser().header("Authorization", &value).connect().await.settle().await;
    }
    // What proxies and hand-written clients send; checked by hand, as a library would merge the headers.
    let head = format!(
        "GET /ws HTTP/1.1\r\nHost: {address}\r\nConnection: keep-alive\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: agent-relay.v1\r\nSec-WebSocket-Protocol: bearer.{token}\r\n\r\n"
    );
    let answer = tests::http::Raw::send(&address, &head).await.head().await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    assert!(answer.contains("sec-websocket-protocol: agent-relay.v1\r\n"), "{answer}");
}

/// After its end a token is worth nothing on any door, at once.
#[tokio::test]
async fn after_a_tokens_end_nothing_is_accepted() {
    let cluster = guarded(1).await;
    let token = |seconds| {
        let token = Token::of("ada").allowing("publish", &["*"]).allowing("serve", &["*"]);
        token.allowing("subscribe", &["*"]).ending_in(seconds).sign()
    };
    let mut agent = cluster.browser().path("/ws/agents/a1").token(&token(2)).connect().await;
    let (code, _) = agent.wait_for_close().await;
    assert_eq!(code, 4401, "an agent's connection ends, too");

    // A body that is late: its head was in time.
    let address = cluster.replicas[0].address();
    let body = r#"{"channel":"session:1","event":"late","data":{}}"#;
    let ending = token(2);
    let head = format!(
        "POST /api/v1/publish HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {ending}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        body.len()
    );
    let mut socket = tests::http::Raw::send(&address, &head).await;
    assert!(socket.head().await.starts_with("HTTP/1.1 100"), "the body is awaited");
    tests::until("the token has ended", async || {
        (cluster.browser().token(&ending).refused().await == 401).then_some(())
    })
    .await;
    socket.write(body).await;
    let answer = socket.head().await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    let read = cluster.replicas[0].get("/api/v1/channels/session:1/events").await;
    assert_eq!(read.json()["events"], json!([]), "nothing was published");
}

/// No token at all, at any endpoint.
#[tokio::test]
async fn without_a_token_no_route_opens() {
    let cluster = guarded(1).await;
    for path in ["/ws", "/ws/events", "/ws/s1"] {
        assert_eq!(cluster.browser().path(path).refused().await, 401, "{path}");
    }
    let address = cluster.replicas[0].address();
    for (method, path) in
        [(Method::GET, "/api/v1/channels/session:1/events"), (Method::POST, "/api/v1/publish")]
    {
        let body = json!({"channel": "session:1", "event": "x", "data": {}}).to_string();
        let reply = tests::http::call(&address, method, path, &[], body).await.unwrap();
        assert_eq!((reply.status, reply.error_code().as_str()), (401, "unauthorized"), "{path}");
    }
    for path in ["/healthz", "/readyz"] {
        let reply = tests::http::call(&address, Method::GET, path, &[], "").await.unwrap();
        assert_eq!(reply.status, 200, "{path} asks for no token");
    }
}

/// A browser cannot set headers on a WebSocket: the token also comes as a subprotocol or in the
/// query.
#[tokio::test]
async fn the_token_may_come_as_header_as_subprotocol_or_in_the_query() {
    let cluster = guarded(1).await;
    let token = Token::of("ada").allowing("subscribe", &["session:1"]).sign();
    let routes = [
        cluster.browser().token(&token),
        cluster
            .browser()
            .header("Sec-WebSocket-Protocol", &format!("agent-relay.v1, bearer.{token}")),
        cluster.browser().path(&format!("/ws?token={token}")),
    ];
    for endpoint in routes {
        let mut browser = endpoint.subscribed_to("session:1").await;
        let connected = browser.frames().next().unwrap();
        assert_eq!((&connected["type"], &connected["user"]), (&json!("connected"), &json!("ada")));
        browser.settle().await;
    }
}

/// F61: what the grant does not name is not there.
#[tokio::test]
async fn a_token_without_the_grant_sees_and_does_nothing() {
    let cluster = guarded(2).await;
    let token = Token::of("eve").allowing("subscribe", &["session:eve", "project:e*"]).sign();
    let mut eve = cluster.browser().token(&token).subscribed_to("session:eve").await;
    eve.subscribe("project:eden").await;

    for channel in
        ["session:ada", "session:eve2", "session:ev", "project:ada", "user:eve", "global:events"]
    {
        let error = eve.ask(json!({"type": "subscribe", "channel": channel})).await;
        assert_eq!(
            (&error["type"], &error["code"]),
            (&json!("error"), &json!("not_found")),
            "{error}"
        );
        assert_eq!(error["channel"], channel, "{error}");
    }
    for command in [
        json!({"type": "cancel_agent", "agent_id": "a1"}),
        json!({"type": "command", "channel": "session:eve", "name": "go", "data": {}}),
    ] {
        let error = eve.ask(command).await;
        assert_eq!(
            (&error["type"], &error["code"]),
            (&json!("error"), &json!("not_found")),
            "{error}"
        );
    }
    let response = eve.ask(json!({"type": "request", "method": "sessions.create"})).await;
    assert_eq!(response["error"]["code"], "not_found", "{response}");

    cluster.replicas[1].publish_numbers("session:ada", 0..5).await;
    cluster.replicas[1].publish_numbers("session:eve", 0..5).await;
    eve.expect_numbers("session:eve", 0..5).await;
    assert!(
        eve.frames()
            .all(|frame| !tests::history::is_event(frame) || frame["channel"] != "session:ada")
    );
}

/// The same over HTTP; and the message of a refusal does not depend on whether anything is there.
#[tokio::test]
async fn over_http_denied_and_missing_look_the_same() {
    let cluster = guarded(1).await;
    cluster.replicas[0].publish_numbers("session:ada", 0..5).await;
    let token = Token::of("eve")
        .allowing("subscribe", &["session:eve"])
        .allowing("publish", &["session:eve"]);
    let bearer = format!("Bearer {}", token.sign());
    let address = cluster.replicas[0].address();
    let headers = [("Authorization", bearer.as_str())];
    let call = async |method: Method, path: String, body: Value| {
        tests::http::call(&address, method, &path, &headers, body.to_string()).await.unwrap()
    };

    let mut texts = Vec::new();
    for channel in ["session:ada", "session:nobody"] {
        let read =
            call(Method::GET, format!("/api/v1/channels/{channel}/events"), Value::Null).await;
        assert_eq!((read.status, read.error_code().as_str()), (404, "not_found"));
        let event = json!({"channel": channel, "event": "x", "data": {}});
        let publish = call(Method::POST, "/api/v1/publish".to_owned(), event.clone()).await;
        assert_eq!((publish.status, publish.error_code().as_str()), (404, "not_found"));
        let mine = json!({"channel": "session:eve", "event": "x", "data": {}});
        let both = call(Method::POST, "/api/v1/publish".to_owned(), json!([event, mine])).await;
        assert_eq!(both.json()["results"][0]["error"]["code"], "not_found", "{}", both.text());
        assert!(both.json()["results"][1]["offset"].is_string(), "{}", both.text());
        texts.push((read.text() + &publish.text()).replace(channel, "X"));
    }

    assert_eq!(texts[0], texts[1]);
}

/// A endpoint whose channel is not granted still opens: one error, and then it is a connection like any.
#[tokio::test]
async fn a_route_whose_channel_is_not_granted_says_so_once_and_lives_on() {
    let cluster = guarded(1).await;
    let token = Token::of("eve").allowing("subscribe", &["session:eve"]).sign();
    for (path, channel) in [("/ws/events", "global:events"), ("/ws/ada", "session:ada")] {
        let mut browser = cluster.browser().path(path).token(&token).connect().await;

        let error = browser.wait_for_type("error").await;
        assert_eq!(error["code"], "not_found", "{error}");
        assert_eq!(tests::history::channel_of(&error).as_deref(), Some(channel), "{error}");

        browser.subscribe("session:eve").await;
        cluster.replicas[0].publish(channel, "secret", json!({})).await;
        cluster.replicas[0].publish_numbers("session:eve", 0..1).await;
        browser.wait_until("number 0", |seen| !seen.numbers("session:eve").is_empty()).await;
        assert_eq!((browser.count("error"), browser.count("secret")), (1, 0));
    }
}

/// F56: a token's end is announced, and is the connection's end.
#[tokio::test]
async fn a_tokens_end_is_announced_and_closes_the_connection() {
    let cluster = guarded(1).await;
    let token = Token::of("ada").allowing("subscribe", &["session:1"]).ending_in(5).sign();
    let mut browser = cluster.browser().token(&token).connect().await;

    let expiring = browser.wait_for_type("token_expiring").await;
    browser.subscribe("session:1").await;
    cluster.replicas[0].publish_numbers("session:1", 0..3).await;
    let (code, _) = browser.wait_for_close().await;

    assert!(expiring["in_ms"].as_u64().is_some_and(|ms| ms <= 5_000), "{expiring}");
    assert_eq!(code, 4401);
    assert_eq!(browser.count("token_expiring"), 1);
    let fresh = Token::of("ada").allowing("subscribe", &["session:1"]).sign();
    let seen = browser.vanish();
    let mut back = cluster.browser().token(&fresh).continuing(seen).back_on("session:1").await;
    cluster.replicas[0].publish_numbers("session:1", 3..5).await;
    back.expect_numbers("session:1", 0..5).await;
}

/// F57: a relay without a key trusts everybody who reaches loopback, so no page of a foreign origin may use
/// a browser on that machine; a page of its own may.
#[tokio::test]
async fn a_page_of_a_foreign_origin_is_refused_by_a_relay_without_keys() {
    let cluster = Cluster::with_replicas(1).await;
    let port = cluster.replicas[0].address().rsplit_once(':').unwrap().1.to_owned();
    for origin in [
        "https://evil.example".to_owned(),
        "null".to_owned(),
        format!("http://127.0.0.1.evil.example:{port}"),
        format!("http://evil.example:{port}"),
    ] {
        let status = cluster.browser().header("Origin", &origin).refused().await;
        assert_eq!(status, 403, "{origin}");
    }
    // DNS rebinding: the page's own name leads to loopback, so that it is of the relay's origin.
    let rebound = cluster.browser().header("Host", &format!("evil.example:{port}"));
    assert_eq!(rebound.refused().await, 403);
    let own = format!("http://127.0.0.1:{port}");
    cluster.browser().header("Origin", &own).connect().await.settle().await;
}
