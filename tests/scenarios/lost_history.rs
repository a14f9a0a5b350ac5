//! Redis lost what it had acknowledged. What cannot be repaired is told by a `reset`, never by silence.

use tests::{Browser, Cluster, History};

const CHANNEL: &str = "session:42";

fn was_told(seen: &History) -> bool {
    let reasons = seen.resets(CHANNEL);
    assert!(reasons.iter().all(|reason| reason != "retention"), "{reasons:?}");
    !reasons.is_empty()
}

/// Waits for the reset and the number after it, and checks that what follows the reset is whole.
async fn expect_told_then(browser: &mut Browser, last: u64) {
    browser.wait_until("a reset", was_told).await;
    let is_there = |seen: &History| seen.numbers_since_reset(CHANNEL).last() == Some(&last);
    browser.wait_until(&format!("number {last} after the reset"), is_there).await;
    let numbers = browser.history().numbers_since_reset(CHANNEL);
    assert!(
        numbers.is_sorted_by(|a, b| a < b),
        "out of order, or twice in a new history: {numbers:?}"
    );
}

/// F09: a backup was restored; pages that were closed meanwhile come back with positions that the
/// restored Redis has never given out, or has given to something else.
#[tokio::test]
async fn after_a_rollback_a_page_that_comes_back_is_told() {
    let mut cluster = Cluster::with_replicas(2).await;
    let mut browser = cluster.browser_on(0).subscribed_to(CHANNEL).await;
    cluster.replicas[0].publish_numbers(CHANNEL, 0..5).await;
    let backup = cluster.redis.snapshot().await;
    cluster.replicas[0].publish_numbers(CHANNEL, 5..10).await;
    browser.expect_numbers(CHANNEL, 0..10).await;
    let seen = browser.vanish();
    let too = seen.clone();

    cluster.redis.come_back_as(&backup).await;
    let mut soon = cluster.browser_on(1).continuing(seen).connect().await;
    soon.subscribe_since(CHANNEL, too.offset(CHANNEL).as_deref()).await;
    cluster.replicas[1].publish_numbers(CHANNEL, 100..120).await;
    let mut late = cluster.browser_on(0).continuing(too).back_on(CHANNEL).await;

    expect_told_then(&mut soon, 119).await;
    expect_told_then(&mut late, 119).await;
}

/// The same when no replica is left that remembers: new replicas let the rolled-back journal grow again,
/// over the numbers that the page has seen with other content.
#[tokio::test]
async fn a_journal_that_grew_again_over_what_was_seen_is_told() {
    let mut cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().subscribed_to(CHANNEL).await;
    cluster.replicas[0].publish_numbers(CHANNEL, 0..5).await;
    let backup = cluster.redis.snapshot().await;
    cluster.replicas[0].publish_numbers(CHANNEL, 5..10).await;
    browser.expect_numbers(CHANNEL, 0..10).await;
    cluster.replicas[0].kill9();

    cluster.redis.come_back_as(&backup).await;
    cluster.add_replica().await;
    cluster.replicas[1].publish_numbers(CHANNEL, 100..120).await;
    let mut back = cluster.browser_on(1).continuing(browser.vanish()).back_on(CHANNEL).await;

    expect_told_then(&mut back, 119).await;
    let numbers = back.history().numbers_since_reset(CHANNEL);
    assert_eq!(numbers, (0..5).chain(100..120).collect::<Vec<_>>(), "everything retained");
}

/// A page that stays open through the crash and the rollback.
#[tokio::test]
async fn after_a_rollback_a_page_that_stayed_connected_is_told() {
    let mut cluster = Cluster::with_replicas(2).await;
    let mut browser = cluster.browser_on(0).subscribed_to(CHANNEL).await;
    cluster.replicas[1].publish_numbers(CHANNEL, 0..5).await;
    let backup = cluster.redis.snapshot().await;
    cluster.replicas[1].publish_numbers(CHANNEL, 5..10).await;
    browser.expect_numbers(CHANNEL, 0..10).await;

    cluster.redis.come_back_as(&backup).await;
    cluster.replicas[1].publish_numbers(CHANNEL, 100..103).await;

    expect_told_then(&mut browser, 102).await;
    browser.settle().await;
}

/// A fail-over to a Redis that was behind, through a proxy: no connection breaks, nothing hints at
/// the loss but the content.
#[tokio::test]
async fn a_rollback_without_any_broken_connection_is_told() {
    let cluster = Cluster::with_replicas(2).await;
    let mut browser = cluster.browser_on(0).subscribed_to(CHANNEL).await;
    cluster.replicas[1].publish_numbers(CHANNEL, 0..5).await;
    let backup = cluster.redis.snapshot().await;
    cluster.replicas[1].publish_numbers(CHANNEL, 5..10).await;
    browser.expect_numbers(CHANNEL, 0..10).await;

    cluster.redis.become_silently(&backup).await;
    cluster.replicas[1].publish_numbers(CHANNEL, 100..103).await;

    expect_told_then(&mut browser, 102).await;
}

/// F14: everything is deleted under open pages; the next event begins a new epoch.
#[tokio::test]
async fn flushall_begins_a_new_epoch_for_open_pages_and_for_those_that_come_back() {
    let cluster = Cluster::with_replicas(2).await;
    let mut open = cluster.browser_on(0).subscribed_to(CHANNEL).await;
    let mut closed = cluster.browser_on(1).subscribed_to(CHANNEL).await;
    cluster.replicas[0].publish_numbers(CHANNEL, 0..10).await;
    open.expect_numbers(CHANNEL, 0..10).await;
    closed.expect_numbers(CHANNEL, 0..10).await;
    let seen = closed.vanish();

    let _: () = cluster.redis.run(&["FLUSHALL"]).await;
    cluster.replicas[1].publish_numbers(CHANNEL, 100..103).await;
    let mut back = cluster.browser_on(1).continuing(seen).back_on(CHANNEL).await;

    for browser in [&mut open, &mut back] {
        expect_told_then(browser, 102).await;
        assert_eq!(browser.history().resets(CHANNEL), ["epoch"]);
    }
}

/// F02: a Redis without persistence crashes: every page receives exactly one `reset` for each channel.
#[tokio::test]
async fn a_crash_without_persistence_is_one_reset_on_each_channel() {
    let mut cluster = Cluster::with_replicas(2).await;
    let mut browser = cluster.browser_on(0).subscribed_to(CHANNEL).await;
    browser.subscribe("plan:7").await;
    cluster.replicas[1].publish_numbers(CHANNEL, 0..10).await;
    cluster.replicas[1].publish_numbers("plan:7", 0..10).await;
    browser.expect_numbers(CHANNEL, 0..10).await;
    browser.expect_numbers("plan:7", 0..10).await;

    cluster.redis.kill9();
    cluster.redis.restart().await;
    for i in 100..103 {
        cluster.replicas[1].publish_stubbornly(CHANNEL, i, &format!("a{i}")).await;
        cluster.replicas[1].publish_stubbornly("plan:7", i, &format!("b{i}")).await;
    }

    expect_told_then(&mut browser, 102).await;
    let both = |seen: &History| seen.numbers_since_reset("plan:7").last() == Some(&102);
    browser.wait_until("number 102 on plan:7", both).await;
    assert_eq!(browser.history().resets(CHANNEL), ["epoch"]);
    assert_eq!(browser.history().resets("plan:7"), ["epoch"]);
}

/// A position from another deployment, or made up, is answered with a `reset`: no error, no silence.
#[tokio::test]
async fn a_position_that_was_never_given_out_is_a_reset() {
    let cluster = Cluster::with_replicas(1).await;
    let offsets = cluster.replicas[0].publish_numbers(CHANNEL, 0..5).await;
    let epoch = offsets[4].split('-').next().unwrap().to_owned();
    let beyond = format!("{epoch}-9-77");
    let forged = format!("{epoch}-3-1");
    for (since, reason) in [
        ("1000-3-7", "epoch"),
        (beyond.as_str(), "history_changed"),
        (forged.as_str(), "history_changed"),
    ] {
        let mut browser = cluster.browser().connect().await;

        let subscribed = browser.subscribe_since(CHANNEL, Some(since)).await;

        assert_eq!(subscribed["recovered"], false, "{since}: {subscribed}");
        assert_eq!(browser.history().resets(CHANNEL), [reason], "{since}");
        assert_eq!(browser.history().numbers(CHANNEL), [0, 1, 2, 3, 4], "{since}");
    }
}
