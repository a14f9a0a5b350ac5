//! What an operator reads in the log about connections, refusals and Redis.

use serde_json::{Value, json};
use tests::endpoint::Endpoint;
use tests::{Cluster, Replica, Token};

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

/// With its address, and as loud when it comes as when it goes.
#[tokio::test]
async fn redis_that_goes_and_comes_is_warned_about_with_its_address() {
    let mut cluster = Cluster::with_replicas(1).await;
    let address = cluster.redis.address();
    let said = async |cluster: &Cluster, message: &str| {
        let fields = json!({"message": message, "level": "WARN", "address": address});
        line(&cluster.replicas[0], fields).await
    };

    cluster.redis.kill9();
    said(&cluster, "redis follow link down").await;
    cluster.redis.restart().await;
    said(&cluster, "redis follow link up again").await;
}
