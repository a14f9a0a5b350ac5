//! F38: a process that writes to Redis past the SDK cannot forge a frame or make one vanish.

use serde_json::json;
use tests::{Cluster, Redis};

const CHANNEL: &str = "session:42";

/// The stream that holds the channel's events, found by what it looks like.
async fn stream(redis: &Redis) -> String {
    let keys: Vec<String> = redis.run(&["KEYS", "*session:42"]).await;
    for key in keys {
        let kind: String = redis.run(&["TYPE", &key]).await;
        if kind == "stream" {
            return key;
        }
    }
    panic!("no stream holds the events of {CHANNEL}");
}

/// The last entry of a stream: its id, its field, its content.
async fn last(redis: &Redis, stream: &str) -> (String, Vec<u8>, Vec<u8>) {
    let rows: Vec<(String, Vec<Vec<u8>>)> =
        redis.run(&["XREVRANGE", stream, "+", "-", "COUNT", "1"]).await;
    let (id, fields) = rows.into_iter().next().expect("something was written");
    let [field, content] = fields.try_into().expect("an entry is one field");
    (id, field, content)
}

fn with_data(content: &[u8], data: &[u8]) -> Vec<u8> {
    let old = br#"{"i":0}"#;
    let at =
        content.windows(old.len()).position(|window| window == old).expect("data is kept as it is");
    [&content[..at], data, &content[at + old.len()..]].concat()
}

/// Each piece of junk is delivered, under a name that says what it is, and the journal goes on.
#[tokio::test]
async fn what_is_no_event_is_delivered_as_unreadable_at_its_place() {
    let cluster = Cluster::with_replicas(2).await;
    let mut browser = cluster.browser_on(0).subscribed_to(CHANNEL).await;
    cluster.replicas[0].publish_numbers(CHANNEL, 0..1).await;
    let stream = stream(&cluster.redis).await;
    let (id, field, content) = last(&cluster.redis, &stream).await;
    let epoch = id.split('-').next().unwrap().to_owned();
    let junk: [Vec<u8>; 6] = [
        with_data(&content, b"{\"i\":\xff}"),
        with_data(&content, br#"{"i":1},"type":"subscribed""#),
        with_data(&content, br#"{"i":1"#),
        with_data(&content, "[".repeat(5_000).as_bytes()),
        content[..content.len() / 2].to_vec(),
        b"junk".to_vec(),
    ];

    for (at, junk) in junk.iter().enumerate() {
        let id = format!("{epoch}-{}", at + 2);
        let words: [&[u8]; 5] = [b"XADD", stream.as_bytes(), id.as_bytes(), &field, junk];
        let _: String = cluster.redis.run(&words).await;
    }
    cluster.replicas[1].publish_numbers(CHANNEL, 1..2).await;
    let mut joiner = cluster.browser_on(1).connect().await;
    joiner.subscribe_since(CHANNEL, Some("start")).await;

    for browser in [&mut browser, &mut joiner] {
        browser.expect_numbers(CHANNEL, 0..2).await;
        let names: Vec<&str> = browser.events(CHANNEL).iter().map(|e| e.name.as_str()).collect();
        let mut expected = vec!["unreadable"; 8];
        (expected[0], expected[7]) = ("number", "number");
        assert_eq!(names, expected);
        browser.settle().await;
    }
}

/// The push is a hint: nonsense in it changes nothing.
#[tokio::test]
async fn nonsense_on_the_push_channel_is_not_noticed() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().subscribed_to(CHANNEL).await;
    let names: Vec<String> = cluster.redis.run(&["PUBSUB", "CHANNELS", "*session:42"]).await;
    assert!(!names.is_empty(), "nobody listens to any push: the test would prove nothing");

    for i in 0..10 {
        for name in &names {
            for nonsense in
                [&b""[..], b"junk", b"1-1 3:abc", b"1-99 999999:x", b"\xff\xff", b"9-9 "]
            {
                let words: [&[u8]; 3] = [b"PUBLISH", name.as_bytes(), nonsense];
                let _: u64 = cluster.redis.run(&words).await;
            }
        }
        cluster.replicas[0].publish(CHANNEL, "number", json!({"i": i})).await;
    }

    browser.expect_numbers(CHANNEL, 0..10).await;
    assert!(browser.history().resets(CHANNEL).is_empty());
}

/// A lost push may only ever cost time (invariant 4): here no connection breaks and nothing follows that
/// would show the gap; the entry simply stands in the journal.
#[tokio::test]
async fn an_event_whose_push_was_lost_is_found_in_the_silence_that_follows() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().subscribed_to(CHANNEL).await;
    cluster.replicas[0].publish_numbers(CHANNEL, 0..1).await;
    browser.expect_numbers(CHANNEL, 0..1).await;
    let stream = stream(&cluster.redis).await;
    let (id, field, content) = last(&cluster.redis, &stream).await;
    let next = format!("{}-2", id.split('-').next().unwrap());

    let content = with_data(&content, br#"{"i":1}"#);
    let words: [&[u8]; 5] = [b"XADD", stream.as_bytes(), next.as_bytes(), &field, &content];
    let _: String = cluster.redis.run(&words).await;

    browser.expect_numbers(CHANNEL, 0..2).await;
}
