//! What an operator meets: start, configuration, logs, strangers at the endpoint.

use serde_json::{Value, json};
use tests::endpoint::Endpoint;
use tests::process::Process;
use tests::replica::{Setup, launch, run};
use tests::{Cluster, Replica, Token, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Runs the binary to its end: the exit code and everything it said.
pub(crate) async fn verdict(
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> (Option<i32>, String) {
    let arguments: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let mut process: Process = run(&arguments, &variables.iter().map(own).collect::<Vec<_>>());
    let code = process.exit().await.code();
    // The last lines may still be on their way from the pipe to the log.
    let said = until("it says why it ended", async || {
        let said = process.log().text();
        (code == Some(0) || !said.is_empty()).then_some(said)
    });
    (code, said.await)
}

/// F28: everything wrong is listed at once, each with its name, and nothing starts.
#[tokio::test]
async fn a_wrong_configuration_lists_every_mistake_and_exits_with_2() {
    let wrong =
        ["--listen", "nonsense", "--redis", "http://x", "--jwt-secret-file", "/no/such/file"];
    for subcommand in ["serve", "check"] {
        let (code, said) = verdict(&[&[subcommand], &wrong[..]].concat(), &[]).await;

        assert_eq!(code, Some(2), "{subcommand}: {said}");
        for word in ["nonsense", "http://x", "/no/such/file"] {
            assert!(said.contains(word), "{subcommand} does not name {word}:\n{said}");
        }
    }
    let variables = [("RELAY_LISTEN", "nonsense"), ("RELAY_REDIS", "http://x")];
    let (code, said) = verdict(&["serve"], &variables).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("nonsense") && said.contains("http://x"), "{said}");
}

/// F28: what cannot be meant.
#[tokio::test]
async fn a_dangerous_or_unknown_configuration_is_refused_with_2() {
    let dir = tempfile::TempDir::new().unwrap();
    let short = dir.path().join("short");
    std::fs::write(&short, "0123456789012345678901234567890").unwrap();
    let short = short.display().to_string();
    for (arguments, word) in [
        (vec!["serve", "--lisen", "127.0.0.1:0"], "--lisen"),
        (vec!["serve", "--listen", "0.0.0.0:0"], "--allow-anonymous"),
        (vec!["serve", "--jwt-secret-file", &short], "32"),
        (vec!["serve", "--log-format", "loud"], "loud"),
        (vec!["dance"], "dance"),
    ] {
        let (code, said) = verdict(&arguments, &[]).await;
        assert_eq!(code, Some(2), "{arguments:?}: {said}");
        assert!(said.contains(word), "{arguments:?} does not say `{word}`:\n{said}");
    }
}

/// `check` accepts what would start, without starting it.
#[tokio::test]
async fn check_accepts_what_would_start() {
    let (code, said) = verdict(&["check", "--redis", "redis://127.0.0.1:1"], &[]).await;

    assert_eq!(code, Some(0), "{said}");
}

/// Two deployments in one Redis have nothing to do with each other.
#[tokio::test]
async fn deployments_with_two_prefixes_share_a_redis_and_nothing_else() {
    let cluster = Cluster::with_replicas(1).await;
    let mut setup = Setup::serve(Some(cluster.redis.url()));
    setup.flags = ["--prefix", "staging"].map(str::to_owned).to_vec();
    let staging = Replica::start(setup).await;
    staging.ready().await;
    let mut browsers = [
        Endpoint::of(&cluster.replicas[0]).subscribed_to("session:42").await,
        Endpoint::of(&staging).subscribed_to("session:42").await,
    ];

    let url = format!("{}?prefix=staging", cluster.redis.url());
    let agent = publisher_sdk::Agent::options().id("a1").connect(&url).await.unwrap();
    let session = agent.session("42").await.unwrap();
    session.publish("here", &json!({"i": 0})).await.unwrap();
    cluster.replicas[0].publish("session:42", "there", json!({"i": 0})).await;

    for (browser, name) in browsers.iter_mut().zip(["there", "here"]) {
        let event = browser.wait_for_type("event").await;
        assert_eq!(event["event"], name, "{event}");
    }
    let keys: Vec<String> = cluster.redis.run(&["KEYS", "*"]).await;
    for prefix in ["relay:", "staging:"] {
        assert!(keys.iter().any(|key| key.starts_with(prefix)), "{prefix}: {keys:?}");
    }
    let (code, said) =
        verdict(&["check", "--redis", &cluster.redis.url(), "--prefix", "Not one"], &[]).await;
    assert!(code == Some(2) && said.contains("prefix"), "{code:?} {said}");
}

/// A Redis that may delete a journal to make room is not the one that our promises need: said at the
/// start, whenever Redis is reached again, and by `check`.
#[tokio::test]
async fn a_redis_that_evicts_is_warned_about_whenever_it_is_reached() {
    let mut cluster = Cluster::with_replicas(1).await;
    let warning = |line: &str| {
        let is_it = line.contains("WARN") && line.contains("maxmemory-policy");
        is_it.then(|| line.to_owned())
    };

    let () = cluster.redis.run(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    let _: u64 = cluster.redis.run(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    let line = cluster.replicas[0].log().wait("a warning by who came back", warning).await;
    cluster.add_replica().await;
    cluster.replicas[1].log().wait("a warning by who starts", warning).await;
    let check = run(&["check", "--redis", &cluster.redis.url()].map(str::to_owned), &[]);
    let said =
        |line: &str| line.contains("Warning: maxmemory-policy is `allkeys-lru`").then_some(());
    check.log().wait("a warning by `check`", said).await;

    // And that was the first: at the start all was well.
    assert!(line.contains("allkeys-lru") && line.contains("noeviction"), "{line}");
}

/// F28: a port that is taken is an error with its name, not a panic.
#[tokio::test]
async fn a_taken_port_is_named_and_nothing_runs() {
    let cluster = Cluster::with_replicas(1).await;
    let address = cluster.replicas[0].address();
    let mut second = launch(&Setup {
        listen: address.parse().unwrap(),
        ..Setup::serve(Some(cluster.redis.url()))
    });

    let code = second.exit().await.code();

    assert!(code.is_some_and(|code| code != 0), "{code:?}");
    let port = address.rsplit_once(':').unwrap().1.to_owned();
    second.log().wait("the port is named", |line| line.contains(&port).then_some(())).await;
    assert!(!second.log().text().contains("panicked"), "{}", second.log().text());
}

/// A misspelt variable changes nothing, so the log warns of it.
#[tokio::test]
async fn an_unknown_variable_is_warned_about_with_the_nearest_name() {
    let cluster = Cluster::with_replicas(0).await;
    let mut setup = cluster.setup();
    setup.variables = vec![("RELAY_JWT_SECRET_FIEL".to_owned(), "x".to_owned())];

    let replica = Replica::start(setup).await;

    let named = |line: &str| {
        (line.contains("RELAY_JWT_SECRET_FIEL") && line.contains("RELAY_JWT_SECRET_FILE"))
            .then_some(())
    };
    replica.log().wait("a warning that names both", named).await;
}

/// Every flag has its variable.
#[tokio::test]
async fn variables_do_what_flags_do() {
    let cluster = Cluster::with_replicas(0).await;
    let variables = [("RELAY_LISTEN", "127.0.0.1:0"), ("RELAY_REDIS", &cluster.redis.url())]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let process = run(&["serve", "--log-format", "json"].map(str::to_owned), &variables);

    let address = process.log().wait("`listening`", tests::replica::listening).await;

    let address = address.to_string();
    until("it is ready, so it has found its Redis", async || {
        let ready = tests::http::call(&address, hyper::Method::GET, "/readyz", &[], "").await;
        (ready.unwrap().status == 200).then_some(())
    })
    .await;
}

/// F64: logs never hold tokens or payloads, however much is logged.
#[tokio::test]
async fn the_log_holds_no_token_and_no_payload() {
    const CANARY: &str = "canary-7f3a";
    let cluster = Cluster::options().replicas(0).with_secret().set().await;
    let mut setup = cluster.setup();
    setup.variables = vec![("RELAY_LOG".to_owned(), "trace".to_owned())];
    let replica = Replica::start(setup).await;
    let token = Token::of("ada").allowing("subscribe", &["*"]).allowing("command", &["*"]).sign();
    let signature = token.rsplit_once('.').unwrap().1.to_owned();
    let expired = Token::of("ada").ending_in(-3_600).sign();
    let endpoint = || Endpoint::of(&replica);

    let mut browser = endpoint().token(&token).subscribed_to("session:42").await;
    let mut by_query = endpoint().path(&format!("/ws/s1?token={token}")).connect().await;
    let protocols = format!("agent-relay.v1, bearer.{token}");
    endpoint().header("Sec-WebSocket-Protocol", &protocols).connect().await.settle().await;
    endpoint().token(&expired).refused().await;
    endpoint().path(&format!("/ws?token={expired}")).refused().await;
    replica.publish("session:42", "note", json!({"text": CANARY})).await;
    browser.wait_for_type("event").await;
    browser.ask(json!({"type": "cancel_agent", "agent_id": "a1", "reason": CANARY})).await;
    browser.ask(json!({"type": "dance", "text": CANARY})).await;
    browser.ask(json!({"type": "auth", "token": token})).await;
    replica
        .post("/api/v1/publish", format!(r#"{{"channel":"session:42","data":"{CANARY}"}}"#))
        .await;
    by_query.settle().await;
    replica.ask_to_go();
    browser.wait_for_close().await;

    let log = replica.log().text();
    let expired = expired.rsplit_once('.').unwrap().1;
    for secret in [CANARY, signature.as_str(), expired, tests::token::SECRET] {
        let line = log.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "`{secret}` is in the log: {line:?}");
    }
    assert!(log.contains("TRACE"), "no trace is logged: the test would prove nothing");
}

/// Every line of a JSON log is JSON, also with the strangest visitors.
#[tokio::test]
async fn every_line_of_the_log_is_json() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().connect().await;
    browser.send(json!({"type": "subscribe", "channel": "x\n{\"level\":\"forged\"}"})).await;
    browser.wait_for_type("error").await;
    cluster.replicas[0].ask_to_go();
    browser.wait_for_close().await;

    for line in cluster.replicas[0].log().lines() {
        assert!(serde_json::from_str::<Value>(&line).is_ok_and(|line| line.is_object()), "{line}");
    }
}

/// What strangers send cannot forge a line of the log, steer the terminal that shows it, or fill the disk: of each
/// kind of line so many a second, then their number.
#[tokio::test]
async fn strangers_do_not_write_the_log() {
    const CANARY: &str = "canary-7f3a";
    let cluster = Cluster::options().replicas(1).with_secret().set().await;
    let (address, log) = (cluster.replicas[0].address(), cluster.replicas[0].log());
    let header =
        json!({"alg": format!("{CANARY}\n\u{1b}[2J{{\"level\":\"ERROR\"}}"), "typ": "JWT"});
    let bearer = format!("Bearer {}", Token::of("eve").sign_as(&header, tests::token::SECRET));
    let refused = |line: &&Value| line["message"] == "a token was refused";
    let left_out = |line: &&Value| line["kind"] == "a token was refused";
    let lines = || {
        let lines = log.lines().into_iter();
        let lines: Vec<Value> = lines.map(|line| serde_json::from_str(&line).unwrap()).collect();
        lines
    };
    let mut calls = 0;

    until("lines are left out", async || {
        for _ in 0..50 {
            let headers = [("Authorization", bearer.as_str())];
            let path = "/api/v1/stats";
            let reply = tests::http::call(&address, hyper::Method::GET, path, &headers, "").await;
            assert_eq!(reply.unwrap().status, 401);
            calls += 1;
        }
        lines().iter().any(|line| left_out(&line)).then_some(())
    })
    .await;

    until("each refusal is a line, or is counted", async || {
        let lines = lines();
        let counts = lines.iter().filter(left_out).map(|line| line["left_out"].as_u64().unwrap());
        let written = lines.iter().filter(refused).count() as u64;
        (written + counts.sum::<u64>() == calls).then_some(())
    })
    .await;
    let lines = lines();
    let line = lines.iter().find(refused).unwrap();
    assert!(line["check"].as_str().is_some_and(|check| check.contains("HS256")), "{line}");
    assert!(!log.text().contains(CANARY), "{line}");
}

/// F58: a client that sends nothing, or sends byte by byte, is cut; others get in meanwhile.
#[tokio::test]
async fn a_socket_that_sends_no_request_is_cut() {
    let cluster = Cluster::with_replicas(1).await;
    let mut sockets = Vec::new();
    for start in ["", "GET", "GET /ws HTTP/1.1\r\nHost: x\r\nX-Slow: "] {
        let mut socket = TcpStream::connect(cluster.replicas[0].address()).await.unwrap();
        socket.write_all(start.as_bytes()).await.unwrap();
        sockets.push((start, socket));
    }

    cluster.browser().connect().await.settle().await;

    for (start, mut socket) in sockets {
        let mut rest = Vec::new();
        let reading = tokio::time::timeout(tests::PATIENCE, socket.read_to_end(&mut rest)).await;
        assert!(reading.is_ok(), "a socket that sent only {start:?} is still open");
    }
}

/// F59, F63: oversized requests are refused, and nothing of the inside is shown outside.
#[tokio::test]
async fn oversized_requests_are_refused_and_the_inside_is_not_shown() {
    let cluster = Cluster::options().replicas(1).with_secret().set().await;
    let address = cluster.replicas[0].address();
    let long = format!("/{}", "x".repeat(100_000));
    let many: Vec<(String, String)> =
        (0..200).map(|i| (format!("X-{i}"), "x".repeat(500))).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();

    for (path, headers) in [(long.as_str(), &[][..]), ("/healthz", &many[..])] {
        // To hang up is to refuse as well.
        if let Ok(reply) = tests::http::call(&address, hyper::Method::GET, path, headers, "").await
        {
            assert!((400..500).contains(&reply.status), "{}", reply.status);
        }
    }
    for path in ["/metrics", "/debug", "/api/v1/stats"] {
        let reply = tests::http::call(&address, hyper::Method::GET, path, &[], "").await.unwrap();
        assert!([401, 404].contains(&reply.status), "{path} is open: {}", reply.status);
    }
    cluster.replicas[0].get("/healthz").await;
}
