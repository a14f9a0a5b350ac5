//! Subscribing, again, to many, to too many, and stopping.

use serde_json::{Value, json};
use tests::{Browser, Cluster};

/// Without `since` a repeated subscribe asks where we are, and may change the shape.
#[tokio::test]
async fn subscribing_again_answers_the_position_and_changes_the_format_at_most() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().subscribed_to("session:42").await;
    let offsets = cluster.replicas[0].publish_numbers("session:42", 0..3).await;
    browser.expect_numbers("session:42", 0..3).await;

    let again =
        browser.ask(json!({"type": "subscribe", "channel": "session:42", "format": "flat"})).await;
    cluster.replicas[0].publish_numbers("session:42", 3..5).await;

    assert_eq!(again["type"], "subscribed", "{again}");
    assert_eq!(again["offset"], json!(offsets[2]), "{again}");
    browser.expect_numbers("session:42", 0..5).await;
    let last = &browser.events("session:42")[4];
    assert!(
        last.raw.starts_with(r#"{"i":4,"type":"number","sessionId":"42","offset":""#),
        "{}",
        last.raw
    );
}

/// With `since` it starts over.
#[tokio::test]
async fn subscribing_again_with_since_starts_over_from_there() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().subscribed_to("session:42").await;
    let offsets = cluster.replicas[0].publish_numbers("session:42", 0..5).await;
    browser.expect_numbers("session:42", 0..5).await;

    browser.subscribe_since("session:42", Some(&offsets[1])).await;
    cluster.replicas[0].publish_numbers("session:42", 5..6).await;

    let numbers = |seen: &tests::History| seen.numbers("session:42");
    browser.wait_until("number 5", |seen| numbers(seen).last() == Some(&5)).await;
    assert_eq!(numbers(browser.history()), [0, 1, 2, 3, 4, 2, 3, 4, 5]);
}

/// Nothing comes after `unsubscribed`; the rest of the connection goes on.
#[tokio::test]
async fn after_unsubscribed_nothing_comes_of_that_channel() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().subscribed_to("session:a").await;
    browser.subscribe("session:b").await;
    cluster.replicas[0].publish_numbers("session:a", 0..2).await;
    browser.expect_numbers("session:a", 0..2).await;

    let answer = browser.ask(json!({"type": "unsubscribe", "channel": "session:a"})).await;
    cluster.replicas[0].publish_numbers("session:a", 2..9).await;
    cluster.replicas[0].publish_numbers("session:b", 0..1).await;

    assert_eq!(
        (&answer["type"], &answer["channel"]),
        (&json!("unsubscribed"), &json!("session:a"))
    );
    browser.expect_numbers("session:b", 0..1).await;
    assert_eq!(browser.history().numbers("session:a"), [0, 1]);
}

/// Gone and back on one connection: what was said meanwhile is not lost.
#[tokio::test]
async fn unsubscribing_and_coming_back_on_the_same_connection_loses_nothing() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().subscribed_to("session:42").await;
    let offsets = cluster.replicas[0].publish_numbers("session:42", 0..3).await;
    browser.expect_numbers("session:42", 0..3).await;

    browser.ask(json!({"type": "unsubscribe", "channels": ["session:42"]})).await;
    cluster.replicas[0].publish_numbers("session:42", 3..6).await;
    browser.subscribe_since("session:42", Some(&offsets[2])).await;

    browser.expect_numbers("session:42", 0..6).await;
}

/// One frame, many channels, each from where it was left; a wrong one is refused alone.
#[tokio::test]
async fn many_channels_are_resumed_in_one_frame_and_a_wrong_one_is_refused_alone() {
    let cluster = Cluster::with_replicas(1).await;
    let a = cluster.replicas[0].publish_numbers("session:a", 0..5).await;
    cluster.replicas[0].publish_numbers("plan:b", 0..5).await;
    let mut browser = cluster.browser().connect().await;

    let since = json!({"session:a": a[2], "plan:b": "start"});
    let channels = json!(["session:a", "kitchen:sink", "plan:b", "user:c"]);
    browser.send(json!({"type": "subscribe", "id": 7, "channels": channels, "since": since})).await;

    let error = browser.wait_for_type("error").await;
    assert_eq!(error["channel"], "kitchen:sink", "{error}");
    assert_eq!((&error["id"], &error["code"]), (&json!(7), &json!("bad_request")), "{error}");
    let numbers = |channel: &'static str| move |seen: &tests::History| seen.numbers(channel);
    browser.wait_until("a", |seen| numbers("session:a")(seen) == [3, 4]).await;
    browser.wait_until("b", |seen| numbers("plan:b")(seen) == [0, 1, 2, 3, 4]).await;
    while browser.count("caught_up") < 3 {
        browser.next().await;
    }
    assert_eq!(browser.count("subscribed"), 3);
}

/// F45: there is an end to it, it is said, and the connection lives.
#[tokio::test]
async fn the_257th_subscription_is_refused_and_the_others_stand() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().connect().await;
    let channels: Vec<String> = (0..300).map(|i| format!("session:{i}")).collect();

    browser.send(json!({"type": "subscribe", "channels": channels})).await;
    while browser.count("caught_up") < 256 || browser.count("error") < 44 {
        browser.next().await;
    }

    let is_refusal = |frame: &&Value| frame["type"] == "error";
    assert!(browser.frames().filter(is_refusal).all(|error| error["code"] == "limit_exceeded"));
    let refused = browser.frames().find(is_refusal).unwrap()["channel"].clone();
    assert_eq!(refused, "session:256");
    cluster.replicas[0].publish_numbers("session:255", 0..1).await;
    browser.expect_numbers("session:255", 0..1).await;
    browser.ask(json!({"type": "unsubscribe", "channel": "session:0"})).await;
    browser.subscribe("session:256").await;
}

/// `sessionId` and `plan_id` are answered in kind, and flat.
#[tokio::test]
async fn a_subscription_by_session_id_or_plan_id_is_answered_in_kind() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().connect().await;
    for (field, channel) in [("sessionId", "session:x"), ("plan_id", "plan:x")] {
        let mut subscribe = json!({"type": "subscribe"});
        subscribe[field] = json!("x");
        let subscribed = browser.ask(subscribe).await;
        assert_eq!((&subscribed["type"], &subscribed[field]), (&json!("subscribed"), &json!("x")));
        assert_eq!(subscribed["channel"], Value::Null, "{subscribed}");

        cluster.replicas[0].publish(channel, "step_status", json!({"step_index": 1})).await;

        let event = browser.wait_for_type("step_status").await;
        assert_eq!((&event["step_index"], &event[field]), (&json!(1), &json!("x")), "{event}");
        let mut unsubscribe = json!({"type": "unsubscribe"});
        unsubscribe[field] = json!("x");
        let unsubscribed = browser.ask(unsubscribe).await;
        assert_eq!(unsubscribed[field], "x", "{unsubscribed}");
    }
}

/// Many pages on one channel, coming and going: those that stay notice nothing.
#[tokio::test]
async fn neighbours_that_come_and_go_are_not_noticed() {
    let cluster = Cluster::with_replicas(2).await;
    let mut staying = cluster.browser_on(0).subscribed_to("session:42").await;

    for round in 0..20 {
        let mut passing: Browser = cluster.browser_on(0).subscribed_to("session:42").await;
        cluster.replicas[1].publish_numbers("session:42", round * 5..round * 5 + 5).await;
        passing.expect_numbers("session:42", round * 5..round * 5 + 5).await;
        if round % 2 == 0 {
            passing.leave().await;
        }
    }

    staying.expect_numbers("session:42", 0..100).await;
}
