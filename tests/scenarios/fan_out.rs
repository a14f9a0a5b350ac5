//! Events reach everybody who asked for them, and nobody else.

use serde_json::{Value, json};
use tests::Cluster;

/// The product in one sentence.
#[tokio::test]
async fn every_subscriber_on_every_replica_gets_every_event_once_and_in_order() {
    let cluster = Cluster::with_replicas(2).await;
    let mut browsers = Vec::new();
    for replica in [0, 0, 1, 1] {
        browsers.push(cluster.browser_on(replica).subscribed_to("session:42").await);
    }

    for i in 0..200 {
        let replica = &cluster.replicas[i as usize % 2];
        replica.publish("session:42", "number", json!({"i": i})).await;
    }

    for browser in &mut browsers {
        browser.expect_numbers("session:42", 0..200).await;
    }
}

/// The other half of it.
#[tokio::test]
async fn a_subscriber_of_one_session_sees_nothing_of_another() {
    let cluster = Cluster::with_replicas(2).await;
    let mut mine = cluster.browser_on(0).subscribed_to("session:mine").await;
    let mut theirs = cluster.browser_on(1).subscribed_to("session:theirs").await;

    for replica in &cluster.replicas {
        replica.publish_numbers("session:theirs", 0..50).await;
        replica.publish_numbers("session:mine2", 0..50).await;
        replica.publish("session:mine", "last", json!({})).await;
    }

    mine.wait_until("both last events", |seen| seen.events("session:mine").len() == 2).await;
    let theirs_seen = |seen: &tests::History| seen.events("session:theirs").len() == 100;
    theirs.wait_until("everything of theirs", theirs_seen).await;
    assert!(mine.frames().all(|frame| !frame.to_string().contains("theirs")), "a leak");
    assert!(mine.frames().all(|frame| !frame.to_string().contains("mine2")), "a leak");
}

/// Two agents write to one channel at once: everybody sees one and the same order, in which each
/// agent's own order is kept.
#[tokio::test]
async fn two_publishers_at_once_make_one_order_that_keeps_both_of_theirs() {
    let cluster = Cluster::with_replicas(2).await;
    let mut here = cluster.browser_on(0).subscribed_to("project:p").await;
    let mut there = cluster.browser_on(1).subscribed_to("project:p").await;

    let publish = async |replica: usize, who: &str| {
        for i in 0..100 {
            let data = json!({"who": who, "i": i});
            cluster.replicas[replica].publish("project:p", "step", data).await;
        }
    };
    tokio::join!(publish(0, "ada"), publish(1, "bob"));

    for browser in [&mut here, &mut there] {
        browser.wait_until("200 steps", |seen| seen.events("project:p").len() == 200).await;
        for who in ["ada", "bob"] {
            let own = browser.events("project:p").iter().filter(|step| step.data["who"] == who);
            let order: Vec<u64> = own.map(|step| step.data["i"].as_u64().unwrap()).collect();
            assert_eq!(order, (0..100).collect::<Vec<_>>(), "{who}'s order");
        }
    }
    let order = |browser: &tests::Browser| -> Vec<String> {
        browser.events("project:p").iter().map(|step| step.raw.clone()).collect()
    };
    assert_eq!(order(&here), order(&there), "one order, byte for byte");
}

/// A publisher that saw no answer asks again, elsewhere.
#[tokio::test]
async fn a_retried_publish_is_one_event_through_whichever_replica() {
    let cluster = Cluster::with_replicas(2).await;
    let mut browser = cluster.browser().subscribed_to("session:42").await;
    let body =
        json!({"channel": "session:42", "event": "paid", "data": {"cents": 5}, "id": "invoice-7"});

    let mut offsets = Vec::new();
    for replica in [0, 1, 1, 0] {
        let reply = cluster.replicas[replica].post("/api/v1/publish", body.to_string()).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        offsets.push(reply.json()["offset"].clone());
    }
    cluster.replicas[0].publish("session:42", "last", json!({})).await;

    browser
        .wait_until("the last event", |seen| {
            seen.events("session:42").last().is_some_and(|e| e.name == "last")
        })
        .await;
    let names: Vec<&str> = browser.events("session:42").iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names, ["paid", "last"]);
    assert!(offsets.iter().all(|offset| *offset == offsets[0]), "{offsets:?}");
}

/// Invariant 1: nothing on the way interprets an event's data. Invariant 11: any name goes.
#[tokio::test]
async fn an_events_data_arrives_byte_for_byte_under_any_name() {
    let cluster = Cluster::with_replicas(2).await;
    let mut browser = cluster.browser_on(1).subscribed_to("session:42").await;
    let odd = r#"{"z":1,"a":1e400,"big":123456789012345678901234567890,"z":0.10,"half":"\ud83d","e":"\u00e9é😀","list" : [ 1 ,2 ]}"#;

    let body =
        format!(r#"{{"channel":"session:42","event":"tool.v2:never-heard_of","data":{odd}}}"#);
    let reply = cluster.replicas[0].post("/api/v1/publish", body).await;

    assert_eq!(reply.status, 200, "{}", reply.text());
    browser.wait_until("the event", |seen| seen.events("session:42").len() == 1).await;
    let event = &browser.events("session:42")[0];
    assert_eq!(event.name, "tool.v2:never-heard_of");
    assert!(event.raw.contains(&format!(r#""data":{odd}"#)), "changed on the way: {}", event.raw);
}

/// A theme or a setting changes: every open page receives it, flat, without a subscription.
#[tokio::test]
async fn everyone_receives_global_everyone_without_subscribing() {
    let cluster = Cluster::with_replicas(2).await;
    let mut browsers = Vec::new();
    for (replica, path) in [(0, "/ws"), (1, "/ws"), (0, "/ws/events"), (1, "/ws/s1")] {
        browsers.push(cluster.browser_on(replica).path(path).connect().await);
    }

    cluster.replicas[0]
        .publish("global:everyone", "config_changed", json!({"changeType": "theme"}))
        .await;

    for browser in &mut browsers {
        let frame = browser.wait_for_type("config_changed").await;
        assert_eq!(frame["changeType"], "theme");
        assert_eq!(frame["channel"], "global:everyone");
        assert!(frame["offset"].is_string() && frame["timestamp"].is_string(), "{frame}");
    }
}

/// Its record is kept for an hour, so it often begins anew between two changes: the first one after that is
/// delivered like any other, and a client that never subscribed receives no reset.
#[tokio::test]
async fn everyone_receives_the_first_change_after_the_record_began_anew() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().connect().await;
    cluster.replicas[0].publish("global:everyone", "config_changed", json!({"n": 1})).await;
    assert_eq!(browser.wait_for_type("config_changed").await["n"], 1);

    for n in 2..5 {
        let streams: Vec<String> = cluster.redis.run(&["KEYS", "*:events:global:everyone"]).await;
        let _: u64 = cluster.redis.run(&["DEL", &streams[0]]).await;
        cluster.replicas[0].publish("global:everyone", "config_changed", json!({"n": n})).await;

        assert_eq!(browser.wait_for_type("config_changed").await["n"], n);
    }
    assert_eq!(browser.count("reset"), 0);
}

/// What one replica takes, all show: none holds anything that another would need (invariant 3).
#[tokio::test]
async fn a_replica_that_was_added_a_second_ago_serves_like_the_others() {
    let mut cluster = Cluster::with_replicas(1).await;
    let mut old = cluster.browser_on(0).subscribed_to("session:42").await;
    cluster.replicas[0].publish_numbers("session:42", 0..10).await;

    cluster.add_replica().await;
    let mut new = cluster.browser_on(1).connect().await;
    new.subscribe_since("session:42", Some("start")).await;
    cluster.replicas[1].publish_numbers("session:42", 10..20).await;

    for browser in [&mut old, &mut new] {
        browser.expect_numbers("session:42", 0..20).await;
    }
}

/// The envelope of an event has exactly the fields that the wire names.
#[tokio::test]
async fn an_event_is_what_the_protocol_says() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().connect().await;
    let subscribed = browser.subscribe("user:u1").await;

    let offset = cluster.replicas[0].publish("user:u1", "note", json!({"text": "hi"})).await;

    let mut event = browser.wait_for_type("event").await;
    let ts = event["ts"].take();
    assert!(ts.as_u64().is_some_and(|ms| ms / 1_000 + 60 > tests::token::now()), "{ts}");
    let expected = json!({"type": "event", "channel": "user:u1", "offset": offset, "event": "note",
        "ts": null, "data": {"text": "hi"}});
    assert_eq!(event, expected);
    assert_eq!(subscribed["offset"], Value::Null, "never written: {subscribed}");
    assert_eq!(subscribed["recovered"], true, "{subscribed}");
}
