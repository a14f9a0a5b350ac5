//! Redis dies, stalls, forgets, hangs up. No browser is disconnected, and it costs only time.

use std::time::Duration;

use serde_json::{Value, json};
use tests::wait::pause;
use tests::{Browser, Cluster, Persistence, Redis, Replica, until};

const CHANNEL: &str = "session:42";

/// A publisher that does not give up: each number once, in order.
async fn publish_stubbornly(replica: &Replica, numbers: std::ops::Range<u64>) {
    for i in numbers {
        replica.publish_stubbornly(CHANNEL, i, &format!("number-{i}")).await;
    }
}

async fn wait_for_status(browser: &mut Browser, status: &str) {
    let is_it = |f: &Value| f["type"] == "relay_status" && f["redis"] == status;
    browser.wait_for(&format!("relay_status {status}"), is_it).await;
}

/// Runs until `work` is done, what disturbs it again and again.
async fn while_disturbed(redis: &Redis, words: &[&str], work: impl Future<Output = ()>) -> u32 {
    let mut times = 0;
    let disturb = async {
        loop {
            let _: redis::Value = redis.run(words).await;
            times += 1;
            pause(Duration::from_millis(200)).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = disturb => {}
    }
    times
}

/// F01: killed under load, back a moment later: nothing lost, nothing doubled, nobody disconnected.
#[tokio::test]
async fn redis_killed_under_load_costs_nobody_an_event_or_a_connection() {
    let mut cluster = Cluster::options().persistence(Persistence::Always).set().await;
    let mut here = cluster.browser_on(0).subscribed_to(CHANNEL).await;
    let mut there = cluster.browser_on(1).subscribed_to(CHANNEL).await;
    let Cluster { redis, replicas, .. } = &mut cluster;

    let crash = async {
        here.wait_until("some load", |seen| seen.numbers(CHANNEL).len() > 50).await;
        redis.kill9();
        wait_for_status(&mut here, "degraded").await;
        wait_for_status(&mut there, "degraded").await;
        redis.restart().await;
        wait_for_status(&mut here, "ok").await;
        wait_for_status(&mut there, "ok").await;
    };
    tokio::join!(publish_stubbornly(&replicas[0], 0..200), crash);
    publish_stubbornly(&replicas[1], 200..250).await;

    for browser in [&mut here, &mut there] {
        browser.expect_numbers(CHANNEL, 0..250).await;
        assert!(browser.history().resets(CHANNEL).is_empty());
        browser.settle().await;
    }
}

/// F03: Redis stalls for some seconds; what was under way then is not done twice.
#[tokio::test]
async fn a_stalled_redis_doubles_nothing_and_disconnects_nobody() {
    let cluster = Cluster::with_replicas(2).await;
    let mut browser = cluster.browser().subscribed_to(CHANNEL).await;

    let stall = async {
        browser.wait_until("some load", |seen| seen.numbers(CHANNEL).len() > 20).await;
        cluster.redis.freeze();
        pause(Duration::from_secs(6)).await;
        cluster.redis.thaw();
    };
    tokio::join!(publish_stubbornly(&cluster.replicas[0], 0..100), stall);

    browser.expect_numbers(CHANNEL, 0..100).await;
    assert!(browser.history().resets(CHANNEL).is_empty());
    browser.settle().await;
}

/// F10: the connections on which events are pushed are killed again and again.
#[tokio::test]
async fn killing_the_pubsub_connections_again_and_again_is_not_noticed() {
    let cluster = Cluster::with_replicas(2).await;
    let mut here = cluster.browser_on(0).subscribed_to(CHANNEL).await;
    let mut there = cluster.browser_on(1).subscribed_to(CHANNEL).await;

    let load = async {
        for i in 0..150 {
            cluster.replicas[0].publish(CHANNEL, "number", json!({"i": i})).await;
            pause(Duration::from_millis(20)).await;
        }
    };
    let kills = while_disturbed(&cluster.redis, &["CLIENT", "KILL", "TYPE", "pubsub"], load).await;

    assert!(kills > 8, "only {kills} kills: the test would prove nothing");
    for browser in [&mut here, &mut there] {
        browser.expect_numbers(CHANNEL, 0..150).await;
        assert!(browser.history().resets(CHANNEL).is_empty());
    }
}

/// The last push is lost and silence follows: it is found without anybody asking.
#[tokio::test]
async fn the_last_event_before_a_silence_is_found_though_its_push_was_lost() {
    let cluster = Cluster::with_replicas(2).await;
    let mut browser = cluster.browser().subscribed_to(CHANNEL).await;
    cluster.replicas[1].publish_numbers(CHANNEL, 0..5).await;
    browser.expect_numbers(CHANNEL, 0..5).await;

    for i in 5..10 {
        let _: redis::Value = cluster.redis.run(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        cluster.replicas[1].publish(CHANNEL, "number", json!({"i": i})).await;
    }

    browser.expect_numbers(CHANNEL, 0..10).await;
}

/// F14: the scripts are gone again and again, two agents talk.
#[tokio::test]
async fn flushing_the_scripts_under_load_disturbs_nobodys_order() {
    let cluster = Cluster::with_replicas(2).await;
    let mut browser = cluster.browser().subscribed_to("project:p").await;

    let talk = async |replica: usize, who: &str| {
        for i in 0..100 {
            let data = json!({"who": who, "i": i});
            cluster.replicas[replica].publish("project:p", "step", data).await;
            pause(Duration::from_millis(20)).await;
        }
    };
    let load = async {
        tokio::join!(talk(0, "ada"), talk(1, "bob"));
    };
    let flushes = while_disturbed(&cluster.redis, &["SCRIPT", "FLUSH"], load).await;

    assert!(flushes > 5, "only {flushes} flushes: the test would prove nothing");
    browser.wait_until("200 steps", |seen| seen.events("project:p").len() == 200).await;
    for who in ["ada", "bob"] {
        let own = browser.events("project:p").iter().filter(|step| step.data["who"] == who);
        let order: Vec<u64> = own.map(|step| step.data["i"].as_u64().unwrap()).collect();
        assert_eq!(order, (0..100).collect::<Vec<_>>(), "{who}'s order");
    }
}

/// F11: one replica loses its way to Redis. Its browsers are told and stay; the others notice nothing.
#[tokio::test]
async fn a_replica_cut_off_from_redis_tells_its_browsers_and_heals() {
    let cluster = Cluster::options().with_chaos().set().await;
    let mut cut_off = cluster.browser_on(0).subscribed_to(CHANNEL).await;
    let mut other = cluster.browser_on(1).subscribed_to(CHANNEL).await;
    cluster.replicas[1].publish_numbers(CHANNEL, 0..10).await;
    cut_off.expect_numbers(CHANNEL, 0..10).await;

    cluster.chaos().cut();
    wait_for_status(&mut cut_off, "degraded").await;
    cluster.replicas[1].publish_numbers(CHANNEL, 10..30).await;
    other.expect_numbers(CHANNEL, 0..30).await;
    cluster.chaos().restore();
    wait_for_status(&mut cut_off, "ok").await;

    cut_off.expect_numbers(CHANNEL, 0..30).await;
    assert_eq!(other.count("relay_status"), 0);
}

/// Cut off while it was away from a channel that nobody else follows: subscribing waits or is refused
/// as retryable, and succeeds afterwards.
#[tokio::test]
async fn a_browser_that_comes_while_redis_is_away_is_served_when_it_is_back() {
    let cluster = Cluster::options().with_chaos().set().await;
    cluster.replicas[1].publish_numbers(CHANNEL, 0..10).await;
    let mut witness = cluster.browser_on(0).subscribed_to("session:other").await;
    cluster.chaos().cut();
    wait_for_status(&mut witness, "degraded").await;

    let mut browser = cluster.browser_on(0).connect().await;
    browser.send(json!({"type": "subscribe", "channel": CHANNEL, "since": "start"})).await;
    cluster.chaos().restore();
    wait_for_status(&mut witness, "ok").await;

    let of_channel = |f: &Value| f["channel"] == CHANNEL;
    let first = browser.wait_for("an answer", of_channel).await;
    if first["type"] == "error" {
        assert_eq!((&first["code"], &first["retryable"]), (&json!("unavailable"), &json!(true)));
        browser.subscribe_since(CHANNEL, Some("start")).await;
    }
    browser.expect_numbers(CHANNEL, 0..10).await;
}

/// F32: the append happened, its answer is lost on the way; the publisher asks again.
#[tokio::test]
async fn a_publish_whose_answer_was_lost_is_one_event_when_it_is_retried() {
    let cluster = Cluster::options().with_chaos().set().await;
    let mut browser = cluster.browser_on(1).subscribed_to(CHANNEL).await;
    cluster.replicas[0].publish_numbers(CHANNEL, 0..1).await;

    cluster.chaos().swallow_replies();
    let lose_the_answer = async {
        browser.expect_numbers(CHANNEL, 0..2).await;
        cluster.chaos().break_connections();
        cluster.chaos().restore();
    };
    tokio::join!(cluster.replicas[0].publish_stubbornly(CHANNEL, 1, "once"), lose_the_answer);
    cluster.replicas[1].publish_stubbornly(CHANNEL, 1, "once").await;
    cluster.replicas[0].publish_numbers(CHANNEL, 2..3).await;

    browser.expect_numbers(CHANNEL, 0..3).await;
}

/// While Redis is away a publisher is told so, soon, and that it may try again.
#[tokio::test]
async fn publishing_while_redis_is_away_is_503_and_retryable() {
    let mut cluster = Cluster::with_replicas(1).await;
    cluster.redis.kill9();

    let body = json!({"channel": CHANNEL, "event": "x", "data": {}, "id": "x-1"}).to_string();
    let reply = cluster.replicas[0].post("/api/v1/publish", body).await;

    assert_eq!((reply.status, reply.error_code().as_str()), (503, "unavailable"));
    assert_eq!(reply.json()["error"]["retryable"], true);
    cluster.redis.restart().await;
    cluster.replicas[0].publish_stubbornly(CHANNEL, 0, "x-2").await;
}

/// F27: the order of starting does not matter.
#[tokio::test]
async fn a_relay_that_starts_before_redis_serves_as_soon_as_redis_does() {
    let mut cluster = Cluster::options().replicas(1).before_redis().set().await;
    assert_eq!(cluster.replicas[0].get("/healthz").await.status, 200);
    assert_eq!(cluster.replicas[0].get("/readyz").await.status, 503);
    let mut browser = cluster.browser().connect().await;

    cluster.redis.restart().await;
    cluster.replicas[0].ready().await;
    browser.subscribe(CHANNEL).await;
    cluster.replicas[0].publish_numbers(CHANNEL, 0..5).await;

    browser.expect_numbers(CHANNEL, 0..5).await;
}

/// Alive does not depend on Redis, ready does.
#[tokio::test]
async fn a_replica_without_redis_is_alive_but_not_ready() {
    let mut cluster = Cluster::with_replicas(1).await;
    let becomes = async |cluster: &Cluster, status: u16| {
        until(&format!("/readyz says {status}"), async || {
            (cluster.replicas[0].get("/readyz").await.status == status).then_some(())
        })
        .await;
        assert_eq!(cluster.replicas[0].get("/healthz").await.status, 200);
    };
    becomes(&cluster, 200).await;

    cluster.redis.kill9();
    becomes(&cluster, 503).await;
    cluster.redis.restart().await;
    becomes(&cluster, 200).await;
}
