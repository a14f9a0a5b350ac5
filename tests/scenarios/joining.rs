//! Late join: everything that was said, in a handful of frames.

use serde_json::{Value, json};
use tests::Cluster;

/// Late join costs O(messages), not O(tokens): 5,000 tokens of one answer are one thing to show.
#[tokio::test]
async fn a_late_joiner_gets_a_long_answer_in_a_handful_of_frames_byte_for_byte() {
    let cluster = Cluster::with_replicas(2).await;
    let words =
        ["Hel", "lo ", "\u{1f600}", "é", "\n\t", "\"quoted\" ", "\\", "\u{2028}", "</script>"];
    let tokens: Vec<&str> = words.into_iter().cycle().take(5_000).collect();
    let delta = |token: &&str| json!({"channel": "session:42", "event": "text_delta", "data": {"delta": token, "turnId": "t1"}});
    cluster.replicas[0].publish_all(&tokens.iter().map(delta).collect::<Vec<_>>()).await;

    let mut joiner = cluster.browser_on(1).connect().await;
    joiner.subscribe_since("session:42", Some("start")).await;

    assert_eq!(joiner.history().text("session:42", Some("t1")), tokens.concat());
    let events = joiner.events("session:42");
    assert!(events.len() <= 20, "{} frames", events.len());
    assert_eq!(events.iter().map(|event| event.merged).sum::<u64>(), 5_000);
}

/// Only what is alike is joined: other events stay where they were, between the deltas.
#[tokio::test]
async fn joining_deltas_moves_nothing_across_another_event() {
    let cluster = Cluster::with_replicas(1).await;
    let event =
        |name: &str, data: Value| json!({"channel": "session:42", "event": name, "data": data});
    let run = [
        event("text_delta", json!({"delta": "a", "turnId": "1"})),
        event("text_delta", json!({"delta": "b", "turnId": "1"})),
        event("text_delta", json!({"delta": "x", "turnId": "2"})),
        event("text_delta", json!({"delta": "y", "turnId": "2"})),
        event("tool_start", json!({"toolName": "ls", "toolUseId": "u", "toolInput": {}})),
        event("text_delta", json!({"delta": "c", "turnId": "1"})),
        event("text_delta", json!({"delta": "d", "turnId": "1", "extra": true})),
        event("text_delta", json!({"delta": "e"})),
        event("text_delta", json!({"delta": "f"})),
    ];
    cluster.replicas[0].publish_all(&run).await;

    let mut joiner = cluster.browser().connect().await;
    joiner.subscribe_since("session:42", Some("start")).await;

    let shown = |event: &tests::Event| {
        (event.data["delta"].as_str().unwrap_or("-").to_owned(), event.merged)
    };
    let expected = [("ab", 2), ("xy", 2), ("-", 1), ("c", 1), ("d", 1), ("ef", 2)];
    let got: Vec<(String, u64)> = joiner.events("session:42").iter().map(shown).collect();
    assert_eq!(got, expected.map(|(text, merged)| (text.to_owned(), merged)));
}

/// A page is open before its agent says anything: the first word is there.
#[tokio::test]
async fn a_browser_that_joined_before_the_first_event_misses_nothing() {
    let cluster = Cluster::with_replicas(2).await;
    let mut browsers = Vec::new();
    for since in
        [json!("start"), json!(null), json!({"session:new": null}), json!({"session:new": "start"})]
    {
        let mut browser = cluster.browser().connect().await;
        let frame = json!({"type": "subscribe", "channels": ["session:new"], "since": since});
        let subscribed = browser.ask(frame).await;
        assert_eq!(subscribed["type"], "subscribed", "{subscribed}");
        assert_eq!(subscribed["offset"], Value::Null, "{subscribed}");
        browsers.push(browser);
    }

    cluster.replicas[1].publish_numbers("session:new", 0..3).await;

    for browser in &mut browsers {
        browser.expect_numbers("session:new", 0..3).await;
        assert!(browser.history().resets("session:new").is_empty());
    }
}

/// The same, when the page was away while the first word was said: the `offset: null` that it stored
/// is a position like any other.
#[tokio::test]
async fn coming_back_with_the_offset_null_loses_no_first_event() {
    let cluster = Cluster::with_replicas(2).await;
    let seen = cluster.browser_on(0).subscribed_to("session:new").await.vanish();
    assert_eq!(seen.offset("session:new"), None);

    cluster.replicas[0].publish_numbers("session:new", 0..3).await;
    let mut back = cluster.browser_on(1).continuing(seen).back_on("session:new").await;
    cluster.replicas[0].publish_numbers("session:new", 3..5).await;

    back.expect_numbers("session:new", 0..5).await;
    assert!(back.history().resets("session:new").is_empty());
}

/// No `since` means: from now on.
#[tokio::test]
async fn without_since_a_browser_starts_at_the_head() {
    let cluster = Cluster::with_replicas(1).await;
    let offsets = cluster.replicas[0].publish_numbers("session:42", 0..10).await;

    let mut browser = cluster.browser().connect().await;
    let subscribed = browser.subscribe("session:42").await;
    cluster.replicas[0].publish_numbers("session:42", 10..12).await;

    assert_eq!(subscribed["offset"], json!(offsets[9]), "{subscribed}");
    assert_eq!(subscribed["head"], json!(offsets[9]), "{subscribed}");
    browser.expect_numbers("session:42", 10..12).await;
}

/// "start" asks for all that is retained; it is never answered with a reset.
#[tokio::test]
async fn from_the_start_is_everything_retained_and_never_a_reset() {
    let cluster = Cluster::options().replicas(1).flag("--retain=other=1000").set().await;
    cluster.replicas[0].publish_numbers("project:p", 0..1_500).await;

    let mut joiner = cluster.browser().connect().await;
    let subscribed = joiner.subscribe_since("project:p", Some("start")).await;

    let numbers = joiner.history().numbers("project:p");
    assert!((1_000..1_500).contains(&numbers.len()), "{} of 1,000 retained", numbers.len());
    assert_eq!(numbers.last(), Some(&1_499));
    assert_eq!(subscribed["recovered"], true, "{subscribed}");
    assert!(joiner.history().resets("project:p").is_empty());
}

/// What is retained does not look like all that ever was.
#[tokio::test]
async fn from_the_start_of_what_was_trimmed_says_that_it_is_truncated() {
    let cluster = Cluster::options().replicas(1).flag("--retain=other=1000").set().await;
    let replica = &cluster.replicas[0];
    replica.publish_numbers("project:whole", 0..10).await;
    replica.publish_numbers("project:trimmed", 0..1_500).await;

    for (channel, truncated) in [("project:whole", Value::Null), ("project:trimmed", json!(true))] {
        let mut joiner = cluster.browser().connect().await;
        let subscribed = joiner.subscribe_since(channel, Some("start")).await;
        assert_eq!(subscribed["truncated"], truncated, "{subscribed}");

        let path = format!("/api/v1/channels/{channel}/events");
        let page = replica.get(&path).await.json();
        assert_eq!(page["truncated"], truncated, "{channel} by HTTP");
        let rest = format!("{path}?since={}", page["offset"].as_str().unwrap());
        assert_eq!(
            replica.get(&rest).await.json()["truncated"],
            Value::Null,
            "{channel}: the rest"
        );
    }
}
