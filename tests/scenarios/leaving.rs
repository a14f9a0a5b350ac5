//! A replica that goes down on purpose loses nothing and sends its browsers elsewhere.

use serde_json::json;
use tests::{Cluster, until};

/// F20: SIGTERM while an agent talks.
#[tokio::test]
async fn a_replica_that_is_asked_to_go_loses_nothing() {
    let mut cluster = Cluster::with_replicas(2).await;
    let mut browsers = Vec::new();
    for _ in 0..3 {
        browsers.push(cluster.browser_on(0).subscribed_to("session:42").await);
    }
    cluster.replicas[1].publish_numbers("session:42", 0..10).await;

    cluster.replicas[0].ask_to_go();
    for i in 1..20 {
        cluster.replicas[1].publish_numbers("session:42", i * 10..i * 10 + 10).await;
    }
    let mut back = Vec::new();
    for mut browser in browsers {
        let reconnect = browser.wait_for_type("reconnect").await;
        assert!(reconnect["after_ms"].is_u64(), "{reconnect}");
        let (code, _) = browser.wait_for_close().await;
        assert_eq!(code, 1012);
        back.push(cluster.browser_on(1).continuing(browser.vanish()).back_on("session:42").await);
    }

    for browser in &mut back {
        browser.expect_numbers("session:42", 0..200).await;
        assert!(browser.history().resets("session:42").is_empty());
    }
    assert_eq!(cluster.replicas[0].exit_code().await, Some(0));
}

/// A load balancer must not send new browsers to a replica that goes.
#[tokio::test]
async fn a_replica_that_goes_is_not_ready_and_takes_no_new_browsers() {
    let mut cluster = Cluster::with_replicas(1).await;
    let mut staying = cluster.browser().subscribed_to("session:42").await;
    let address = cluster.replicas[0].address();

    cluster.replicas[0].ask_to_go();
    staying.wait_for_type("reconnect").await;

    until("/readyz is 503 or nobody answers", async || {
        let get = tests::http::call(&address, hyper::Method::GET, "/readyz", &[], "").await;
        get.map_or(Some(()), |reply| (reply.status == 503).then_some(()))
    })
    .await;
    staying.wait_for_close().await;
    assert_eq!(cluster.replicas[0].exit_code().await, Some(0));
}

/// What was answered with an offset is in Redis, also when the replica goes at that very moment.
#[tokio::test]
async fn what_a_going_replica_has_acknowledged_is_there() {
    let mut cluster = Cluster::with_replicas(2).await;
    let mut acknowledged = Vec::new();
    let address = cluster.replicas[0].address();
    let mut i = 0;

    loop {
        if i == 50 {
            cluster.replicas[0].ask_to_go();
        }
        let body =
            json!({"channel": "session:42", "event": "number", "data": {"i": i}}).to_string();
        let path = "/api/v1/publish";
        match tests::http::call(&address, hyper::Method::POST, path, &[], body).await {
            Ok(reply) if reply.status == 200 => acknowledged.push(i),
            Ok(reply) => assert_eq!(reply.status, 503, "{}", reply.text()),
            Err(_) => break,
        }
        i += 1;
    }

    let mut reader = cluster.browser_on(1).connect().await;
    reader.subscribe_since("session:42", Some("start")).await;
    let there = reader.history().numbers("session:42");
    assert!(acknowledged.len() >= 50, "{}", acknowledged.len());
    assert!(acknowledged.iter().all(|i| there.contains(i)), "{acknowledged:?} but {there:?}");
    assert_eq!(cluster.replicas[0].exit_code().await, Some(0));
}

/// With nobody connected there is nothing to wait for.
#[tokio::test]
async fn an_idle_replica_goes_at_once_with_code_0() {
    let mut cluster = Cluster::with_replicas(1).await;

    cluster.replicas[0].ask_to_go();

    assert_eq!(cluster.replicas[0].exit_code().await, Some(0));
}
