//! What an operator reads in the log about connections, refusals and Redis.

use serde_json::{Value, json};
use tests::endpoint::Endpoint;
use tests::replica::{Setup, run};
use tests::{Cluster, Persistence, Redis, Replica, Token};

/// Waits for a line with these fields.
async fn line(replica: &Replica, fields: Value) -> Value {
    let wanted = fields.as_object().unwrap();
    let is_it = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        wanted.iter().all(|(name, value)| line[name] == *value).then_some(line)
    };
    replica.log().wait(&format!("a line with {fields}"), is_it).await
}

/// Who came, what was subscribed to, and how it ended: to be found by the connection's id, its user and its address.
/// More detail of one part hides nothing else.
#[tokio::test]
async fn the_life_of_a_connection_is_in_the_log() {
    let cluster = Cluster::options().replicas(0).with_secret().set().await;
    let mut setup = cluster.setup();
    setup.variables = vec![("RELAY_LOG".to_owned(), "relay=debug".to_owned())];
    // It waits for `listening`, a line of another part.
    let replica = Replica::start(setup).await;
    let token = Token::of("ada").allowing("subscribe", &["session:42"]).sign();

    let mut browser = Endpoint::of(&replica).token(&token).subscribed_to("session:42").await;

    let opened = line(&replica, json!({"message": "a connection was opened", "user": "ada"})).await;
    let (id, peer) = (&opened["connection"], &opened["peer"]);
    assert!(id.is_string() && peer.as_str().unwrap().starts_with("127.0.0.1:"), "{opened}");
    let with = |mut line: Value| {
        line["connection"] = id.clone();
        line["peer"] = peer.clone();
        line["user"] = json!("ada");
        line["level"] = json!("DEBUG");
        line
    };
    let subscribed = json!({"message": "a connection has subscribed", "channel": "session:42"});
    line(&replica, with(subscribed)).await;
    replica.ask_to_go();
    browser.wait_for_close().await;
    let closed = json!({"message": "a connection was closed", "code": 1012});
    line(&replica, with(closed)).await;
}

/// Which check, from where, to which path.
#[tokio::test]
async fn a_refusal_says_why_from_where_and_to_which_path() {
    let cluster = Cluster::options().replicas(1).with_secret().set().await;
    let replica = &cluster.replicas[0];
    let ended = Token::of("ada").ending_in(-3_600).sign();

    assert_eq!(cluster.browser().path("/ws/s1").token(&ended).refused().await, 401);
    let agent = Endpoint::of(replica).path("/ws/agents/a1").token(&Token::of("eve").sign());
    assert_eq!(agent.refused().await, 404);

    let refused = json!({"message": "a token was refused", "level": "INFO", "path": "/ws/s1"});
    let refused = line(replica, refused).await;
    assert_eq!(refused["check"], "the token has ended", "{refused}");
    assert!(refused["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{refused}");
    let refused = json!({"message": "a connection was refused", "level": "INFO", "user": "eve"});
    let refused = line(replica, refused).await;
    assert_eq!(refused["path"], "/ws/agents/a1", "{refused}");
    assert!(refused["why"].as_str().unwrap().contains("agent:a1"), "{refused}");
}

/// With its address, as loud when it comes as when it goes, and once for each change.
#[tokio::test]
async fn redis_that_goes_and_comes_is_warned_about_with_its_address() {
    let mut cluster = Cluster::with_replicas(1).await;
    let (replica, redis) = (&cluster.replicas[0], &mut cluster.redis);
    // Appending has a connection of its own.
    replica.publish("session:42", "x", json!({})).await;
    let address = redis.address();
    let said = async |message: &str| {
        line(replica, json!({"message": message, "level": "WARN", "address": address})).await
    };

    redis.kill9();
    said("redis follow link down").await;
    let event = r#"{"channel":"session:42","event":"x","data":{}}"#;
    let (published, again) = tokio::join!(replica.post("/api/v1/publish", event), async {
        said("redis append connection lost").await;
        redis.restart().await;
        said("redis follow link up again").await;
        said("redis takes appends again").await
    });

    assert!([200, 503].contains(&published.status), "{}", published.text());
    assert!(again["failures"].as_u64() > Some(0) && again["seconds"].is_u64(), "{again}");
    let lines = replica.log().lines();
    let lines = |change: &str| lines.iter().filter(|line| line.contains(change)).count();
    assert_eq!(lines("redis append connection lost"), 1, "not one for each attempt");
    // Several links follow.
    assert!(lines("redis follow link up") <= lines("redis follow link down"));
}

/// A viewer for whom bytes wait.
#[tokio::test]
async fn a_slow_connection_is_in_the_log() {
    let mut setup = Setup::serve(None);
    setup.variables = vec![("RELAY_LOG".to_owned(), "relay=debug".to_owned())];
    let replica = Replica::start(setup).await;
    let mut slow = Endpoint::of(&replica).holding_little().subscribed_to("session:42").await;
    let opened = line(&replica, json!({"message": "a connection was opened"})).await;
    slow.stop_reading();

    let event = json!({"channel": "session:42", "event": "x", "data": "x".repeat(60_000)});
    replica.publish_all(&vec![event; 130]).await;

    let message = "a connection is slow: bytes wait for it";
    let fields = json!({"message": message, "level": "DEBUG", "connection": opened["connection"]});
    let line = line(&replica, fields).await;
    assert_eq!(line["peer"], opened["peer"], "{line}");
}

/// The order in which Redis and agents are started does not matter, and who waits says for what.
#[tokio::test]
async fn an_agent_that_waits_for_its_redis_says_so() {
    let mut redis = Redis::absent(Persistence::None);
    let words = ["demo-agent", "--redis", &redis.url_of("agent"), "--log-format", "json"];
    let words = words.map(str::to_owned);
    let mut agent = run(&words, &[]);
    let address = redis.address();
    let says = |what: &'static str| {
        let address = address.clone();
        move |line: &str| {
            let line: Value = serde_json::from_str(line).ok()?;
            let at = line["at"].as_str()?.to_owned();
            (line["message"] == what && at.contains(&address)).then_some(at)
        }
    };

    let at = agent.log().wait("that it waits", says("still no answer, waiting")).await;
    assert!(!at.contains("pw"), "{at}");
    redis.restart().await;
    agent.log().wait("that it is there", says("connected")).await;
    assert!(agent.is_running(), "{}", agent.log().tail(10));
}
