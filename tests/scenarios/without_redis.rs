//! The embedded journal: the same promises, one process.

use serde_json::{Value, json};
use tests::endpoint::Endpoint;
use tests::replica::Setup;
use tests::{Browser, Replica};

async fn embedded() -> Replica {
    let flags = vec!["--retain=other=1000".to_owned()];
    Replica::start(Setup { flags, ..Setup::serve(None) }).await
}

async fn on(replica: &Replica, channel: &str) -> Browser {
    Endpoint::of(replica).subscribed_to(channel).await
}

/// A first look needs no Redis.
#[tokio::test]
async fn without_redis_events_are_fanned_out_all_the_same() {
    let replica = embedded().await;
    let mut one = on(&replica, "session:42").await;
    let mut two = on(&replica, "session:42").await;

    replica.publish_numbers("session:42", 0..100).await;
    replica.publish("session:other", "secret", json!({})).await;

    for browser in [&mut one, &mut two] {
        browser.expect_numbers("session:42", 0..100).await;
    }
    assert_eq!(replica.get("/readyz").await.status, 200);
}

/// Coming back works as with Redis.
#[tokio::test]
async fn without_redis_a_browser_resumes_and_misses_nothing() {
    let replica = embedded().await;
    let mut browser = on(&replica, "session:42").await;
    replica.publish_numbers("session:42", 0..10).await;
    browser.expect_numbers("session:42", 0..10).await;

    let seen = browser.leave().await;
    replica.publish_numbers("session:42", 10..20).await;
    let mut back = Endpoint::of(&replica).continuing(seen).back_on("session:42").await;

    back.expect_numbers("session:42", 0..20).await;
    assert!(back.history().resets("session:42").is_empty());
}

/// Retries, retention and late joins are those of the journal, in memory as in Redis.
#[tokio::test]
async fn without_redis_retries_retention_and_late_joins_are_the_same() {
    let replica = embedded().await;
    let first = replica.publish_stubbornly("session:42", 0, "once").await;
    let again = replica.publish_stubbornly("session:42", 0, "once").await;
    assert_eq!(first, again);

    let old = replica.publish_numbers("project:p", 0..1_500).await;
    let mut late = Endpoint::of(&replica).connect().await;
    let subscribed = late.subscribe_since("project:p", Some(&old[0])).await;

    assert_eq!(subscribed["recovered"], false, "{subscribed}");
    assert_eq!(late.history().resets("project:p"), ["retention"]);
    let delta =
        json!({"channel": "session:text", "event": "text_delta", "data": {"delta": "word "}});
    replica.publish_all(&vec![delta; 3_000]).await;
    late.subscribe_since("session:text", Some("start")).await;
    assert_eq!(late.history().text("session:text", None), "word ".repeat(3_000));
    assert!(late.events("session:text").len() <= 20);
}

/// A restart loses it all, and says so: positions of the process before are of another epoch.
#[tokio::test]
async fn without_redis_a_restart_is_a_reset() {
    let mut replica = embedded().await;
    let mut browser = on(&replica, "session:42").await;
    replica.publish_numbers("session:42", 0..5).await;
    browser.expect_numbers("session:42", 0..5).await;

    replica.kill9();
    replica.restart().await;
    replica.publish_numbers("session:42", 100..103).await;
    let mut back = Endpoint::of(&replica).continuing(browser.vanish()).back_on("session:42").await;

    back.wait_until("a reset", |seen| seen.resets("session:42") == ["epoch"]).await;
    assert_eq!(back.history().numbers_since_reset("session:42"), [100, 101, 102]);
}

/// The operator reads in the log what this is.
#[tokio::test]
async fn without_redis_the_log_says_that_this_is_one_process_and_gone_when_it_exits() {
    let replica = embedded().await;

    let warned = replica.log().wait("a warning about the embedded journal", |line| {
        let line: Value = serde_json::from_str(line).ok()?;
        let text = line.to_string().to_lowercase();
        (text.contains("embedded") || text.contains("memory")).then_some(text)
    });

    assert!(warned.await.contains("process"), "{}", replica.log().text());
}
