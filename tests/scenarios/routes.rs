//! The routes that subscribe at once and send flat events.

use serde_json::{Value, json};
use tests::{Cluster, Token};

/// `/ws/events` is the firehose of every agent's lifecycle.
#[tokio::test]
async fn ws_events_is_the_firehose_flat_and_at_once() {
    let cluster = Cluster::with_replicas(2).await;
    let mut browser = cluster.browser_on(1).path("/ws/events").connect().await;
    let subscribed = browser.wait_for_type("subscribed").await;
    assert_eq!(subscribed["channel"], "global:events", "{subscribed}");
    browser.wait_for_type("caught_up").await;

    let data = json!({"agent_id": "a1", "task": "tidy"});
    let offset = cluster.replicas[0].publish("global:events", "agent_spawned", data).await;

    let mut event = browser.wait_for_type("agent_spawned").await;
    let timestamp = event["timestamp"].take();
    assert!(timestamp.as_str().is_some_and(|t| t.len() == 24 && t.ends_with('Z')), "{timestamp}");
    let expected = json!({"agent_id": "a1", "task": "tidy", "type": "agent_spawned",
        "channel": "global:events", "offset": offset, "timestamp": null});
    assert_eq!(event, expected);
}

/// `/ws/{session_id}` is one session, flat, at once.
#[tokio::test]
async fn the_route_of_a_session_is_subscribed_to_it_flat_and_at_once() {
    let cluster = Cluster::with_replicas(2).await;
    let mut browser = cluster.browser().path("/ws/s-1").connect().await;
    browser.wait_for_type("caught_up").await;

    let offset =
        cluster.replicas[1].publish("session:s-1", "text_delta", json!({"delta": "Hi"})).await;

    let mut event = browser.wait_for_type("text_delta").await;
    event["timestamp"].take();
    let expected = json!({"delta": "Hi", "type": "text_delta", "sessionId": "s-1", "offset": offset,
        "timestamp": null});
    assert_eq!(event, expected);
}

/// `?since=` resumes, at either endpoint, and `?format=` overrides the endpoint's shape.
#[tokio::test]
async fn the_routes_honour_since_and_format() {
    let cluster = Cluster::with_replicas(2).await;
    for (path, channel) in [("/ws/events", "global:events"), ("/ws/s1", "session:s1")] {
        let offsets = cluster.replicas[0].publish_numbers(channel, 0..5).await;
        for (since, first) in [("start", 0), (offsets[2].as_str(), 3)] {
            for format in ["flat", "envelope"] {
                let path = format!("{path}?since={since}&format={format}");
                let mut browser = cluster.browser_on(1).path(&path).connect().await;
                browser.expect_numbers(channel, first..5).await;
                let event = browser.frames().last().unwrap();
                assert_eq!(event["type"] == "event", format == "envelope", "{path}: {event}");
            }
        }
    }
}

/// An invalid `since` or `format` is answered with an error, not guessed.
#[tokio::test]
async fn a_route_refuses_a_query_that_it_cannot_read() {
    let cluster = Cluster::with_replicas(1).await;
    for query in ["since=yesterday", "format=xml", "since=1-2"] {
        let status = cluster.browser().path(&format!("/ws/s1?{query}")).refused().await;
        assert_eq!(status, 400, "{query}");
    }
    for id in ["a%20b", "a:b", "%7Bx%7D", &"x".repeat(129)] {
        let status = cluster.browser().path(&format!("/ws/{id}")).refused().await;
        assert!([400, 404].contains(&status), "{id}: {status}");
    }
}

/// `/ws` waits to be asked.
#[tokio::test]
async fn the_plain_route_is_subscribed_to_nothing() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().connect().await;

    cluster.replicas[0].publish_numbers("global:events", 0..3).await;
    browser.subscribe("session:1").await;
    cluster.replicas[0].publish_numbers("session:1", 0..1).await;
    browser.expect_numbers("session:1", 0..1).await;

    assert!(browser.events("global:events").is_empty());
}

/// The first frame of every connection.
#[tokio::test]
async fn the_first_frame_is_connected() {
    let cluster = Cluster::with_replicas(1).await;
    for path in ["/ws", "/ws/events", "/ws/s1"] {
        let browser = cluster.browser().path(path).connect().await;

        let connected: &Value = browser.frames().next().unwrap();

        assert_eq!(connected["type"], "connected", "{path}");
        assert!(
            connected["connection_id"].as_str().is_some_and(|id| !id.is_empty()),
            "{connected}"
        );
        assert_eq!(connected["ping_interval_ms"], 15_000, "{connected}");
        let server_time = connected["server_time"].as_u64().unwrap();
        assert!(server_time / 1_000 + 60 > tests::token::now(), "{connected}");
    }
}

/// Data that uses the relay's own field names: the relay's come last and win in JavaScript.
#[tokio::test]
async fn a_flat_events_own_fields_cannot_pose_as_the_relays() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().path("/ws/s1").connect().await;
    browser.wait_for_type("caught_up").await;

    let forged =
        json!({"type": "subscribed", "offset": "1-1-1", "sessionId": "other", "timestamp": 0});
    let offset = cluster.replicas[0].publish("session:s1", "note", forged).await;

    let event = browser.wait_for_type("note").await;
    assert_eq!((&event["sessionId"], &event["offset"]), (&json!("s1"), &json!(offset)), "{event}");
}

/// Data that is not an object is put into `data`; an empty object leaves nothing behind.
#[tokio::test]
async fn flat_data_that_is_not_an_object_is_put_into_data() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().path("/ws/s1").connect().await;
    browser.wait_for_type("caught_up").await;

    for (data, shown) in
        [(json!([1, 2]), json!([1, 2])), (json!("x"), json!("x")), (json!({}), Value::Null)]
    {
        cluster.replicas[0].publish("session:s1", "note", data).await;
        assert_eq!(browser.wait_for_type("note").await["data"], shown);
    }
}

/// `/ws/events` is no session's, whatever it is called.
#[tokio::test]
async fn a_session_that_is_called_as_a_route_has_a_path_of_its_own() {
    let cluster = Cluster::options().with_secret().set().await;
    let token = Token::of("ada").allowing("subscribe", &["session:*"]).sign();
    let at = |path: &str| cluster.browser().path(path).token(&token);

    let mut session = at("/ws/session:events").connect().await;
    let subscribed = session.wait_for_type("subscribed").await;
    let mut other = at("/ws/session:42").connect().await;
    let other = other.wait_for_type("subscribed").await;
    let mut clash = at("/ws/events").connect().await;
    let refused = clash.wait_for_type("error").await;

    assert_eq!((&subscribed["sessionId"], &other["sessionId"]), (&json!("events"), &json!("42")));
    assert_eq!(refused["code"], "not_found", "{refused}");
    assert!(refused["message"].as_str().unwrap().contains("`/ws/session:events`"), "{refused}");
}
