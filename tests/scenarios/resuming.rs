//! Coming back, to any replica, at any age: exactly what was missed.

use serde_json::{Value, json};
use tests::{Cluster, History};

/// Two turns that stream at the same time, a tool between them, and text that needs escaping.
fn a_run() -> Vec<Value> {
    let event =
        |name: &str, data: Value| json!({"channel": "session:42", "event": name, "data": data});
    let delta =
        |turn: &str, text: &str| event("text_delta", json!({"delta": text, "turnId": turn}));
    let mut run = Vec::new();
    for step in 0..4 {
        run.extend((0..4).map(|i| delta("a", &format!("a{step}{i}\"\u{1f600} "))));
        run.push(event(
            "tool_start",
            json!({"toolName": "ls", "toolUseId": step, "toolInput": {}}),
        ));
        run.extend((0..3).map(|i| delta("b", &format!("b{step}{i}\n"))));
        run.push(delta("a", "|"));
        run.push(event(
            "tool_result",
            json!({"toolUseId": step, "toolName": "ls", "result": "ok"}),
        ));
    }
    run
}

/// What a person sees in the end: each turn's text, and the other events in order.
fn screen(seen: &History) -> (String, String, Vec<Value>) {
    let others = seen.events("session:42").iter().filter(|event| event.name != "text_delta");
    let others = others.map(|event| json!([event.name, event.data])).collect();
    (seen.text("session:42", Some("a")), seen.text("session:42", Some("b")), others)
}

/// Invariant 5 and 6: live, and then cut after each single event of a recorded run.
#[tokio::test]
async fn a_browser_cut_anywhere_resumes_on_the_other_replica_and_sees_all_once() {
    let cluster = Cluster::with_replicas(2).await;
    let mut live = cluster.browser_on(0).connect().await;
    live.subscribe_since("session:42", Some("start")).await;
    let run = a_run();
    let offsets = cluster.replicas[0].publish_all(&run).await;
    live.wait_until("the whole run", |seen| seen.offset("session:42").as_ref() == offsets.last())
        .await;
    let whole = screen(live.history());
    let frames: Vec<Value> = live.frames().cloned().collect();

    for cut in 0..=frames.len() {
        let mut seen = History::default();
        for frame in &frames[..cut] {
            seen.take(frame, &frame.to_string()).unwrap();
        }
        let back = cluster.browser_on(1).continuing(seen).back_on("session:42").await;

        assert_eq!(screen(back.history()), whole, "cut after {cut} frames");
        assert!(back.history().resets("session:42").is_empty(), "cut after {cut} frames");
    }
}

/// The same with events so large that the position falls in and out of what the replica still holds
/// in memory, and that not everything fits into one write.
#[tokio::test]
async fn a_browser_cut_anywhere_among_large_events_resumes_and_sees_all_once() {
    let cluster = Cluster::with_replicas(1).await;
    let channel = format!("session:{}", "x".repeat(128));
    let mut live = cluster.browser().connect().await;
    live.subscribe_since(&channel, Some("start")).await;
    let pad = "x".repeat(1_940);
    let event = |i| json!({"channel": channel, "event": "number", "data": {"i": i, "pad": pad}});
    let events: Vec<Value> = (0..100).map(event).collect();
    let offsets = cluster.replicas[0].publish_all(&events).await;
    live.expect_numbers(&channel, 0..100).await;

    for (cut, offset) in offsets.iter().enumerate() {
        let mut back = cluster.browser().connect().await;
        back.subscribe_since(&channel, Some(offset)).await;

        back.settle().await;
        let numbers: Vec<u64> = (cut as u64 + 1..100).collect();
        assert_eq!(back.history().numbers(&channel), numbers, "cut after {cut}");
    }
}

/// A replica comes back, and with it all who looked at one session, each from where it was: what Redis
/// is asked does not grow with them.
#[tokio::test]
async fn a_storm_of_resumes_on_one_channel_costs_redis_a_handful_of_reads() {
    const BROWSERS: usize = 500;
    let cluster = Cluster::with_replicas(1).await;
    let offsets = cluster.replicas[0].publish_numbers("session:42", 0..1_700).await;
    let recent = &offsets[offsets.len() - 1 - BROWSERS..];
    let mut browsers = Vec::new();
    for _ in 0..BROWSERS {
        browsers.push(cluster.browser().connect().await);
    }
    // All that is asked while it stands still, it finds at once.
    cluster.replicas[0].freeze();
    for (browser, offset) in browsers.iter_mut().zip(recent) {
        let frame = json!({"type": "subscribe", "channel": "session:42", "since": offset});
        browser.send(frame).await;
    }
    // What only pages are read with: one for each 64 entries, and one for the oldest.
    let before = cluster.redis.calls("xrange").await;

    cluster.replicas[0].thaw();

    let first = 1_700 - BROWSERS as u64;
    for (browser, from) in browsers.iter_mut().zip(first..) {
        browser.expect_numbers("session:42", from..1_700).await;
        assert!(browser.history().resets("session:42").is_empty());
    }
    let reads = cluster.redis.calls("xrange").await - before;
    assert!((1..=20 * 10).contains(&reads), "{reads} reads for {BROWSERS} browsers");
}

/// The same between the frames of a catch-up, where deltas are merged: each merged frame is a place
/// to come back to.
#[tokio::test]
async fn a_browser_cut_between_merged_frames_resumes_and_sees_all_once() {
    let cluster = Cluster::with_replicas(2).await;
    cluster.replicas[0].publish_all(&a_run()).await;
    let mut first = cluster.browser_on(0).connect().await;
    first.subscribe_since("session:42", Some("start")).await;
    let whole = screen(first.history());
    let frames: Vec<Value> = first.frames().cloned().collect();
    let merged = first.events("session:42").iter().filter(|event| event.merged > 1).count();
    assert!(merged >= 8, "only {merged} merged frames: the test would prove nothing");

    for cut in 0..=frames.len() {
        let mut seen = History::default();
        for frame in &frames[..cut] {
            seen.take(frame, &frame.to_string()).unwrap();
        }
        let back = cluster.browser_on(1).continuing(seen).back_on("session:42").await;

        assert_eq!(screen(back.history()), whole, "cut after {cut} frames");
    }
}

/// A train journey: the connection breaks again and again, each time elsewhere, while the agent
/// talks on.
#[tokio::test]
async fn a_browser_that_is_cut_again_and_again_while_the_agent_talks_sees_all_once() {
    let cluster = Cluster::with_replicas(2).await;
    let talk = async {
        for i in 0..60 {
            cluster.replicas[i as usize % 2].publish_numbers("session:42", i * 5..i * 5 + 5).await;
        }
    };
    let start = cluster.browser().subscribed_to("session:42").await.vanish();
    let travel = async {
        let mut seen = start;
        for stop in 1.. {
            let mut browser =
                cluster.browser_on(stop % 2).continuing(seen).back_on("session:42").await;
            if browser.history().numbers("session:42").last() == Some(&299) {
                return (browser, stop);
            }
            browser.next().await;
            seen = browser.vanish();
        }
        unreachable!("the journey ends at number 299")
    };

    let ((mut browser, stops), ()) = tokio::join!(travel, talk);

    browser.expect_numbers("session:42", 0..300).await;
    assert!(stops > 5, "only {stops} cuts: the test would prove nothing");
    assert!(browser.history().resets("session:42").is_empty());
}

/// F17: a replica is killed; its browsers find everything on the other one.
#[tokio::test]
async fn a_killed_replica_costs_its_browsers_a_reconnect_and_not_an_event() {
    let mut cluster = Cluster::with_replicas(2).await;
    let mut browser = cluster.browser_on(0).subscribed_to("session:42").await;
    cluster.replicas[0].publish_numbers("session:42", 0..20).await;
    browser.expect_numbers("session:42", 0..20).await;

    cluster.replicas[0].kill9();
    browser.wait_for_close().await;
    cluster.replicas[1].publish_numbers("session:42", 20..40).await;
    let mut back = cluster.browser_on(1).continuing(browser.vanish()).back_on("session:42").await;
    cluster.replicas[1].publish_numbers("session:42", 40..50).await;

    back.expect_numbers("session:42", 0..50).await;
    assert!(back.history().resets("session:42").is_empty());
}

/// F19: a replica that stood still for a while goes on where it was.
#[tokio::test]
async fn a_replica_that_was_frozen_goes_on_without_a_gap() {
    let cluster = Cluster::with_replicas(2).await;
    let mut browser = cluster.browser_on(0).subscribed_to("session:42").await;
    let mut other = cluster.browser_on(1).subscribed_to("session:42").await;

    cluster.replicas[0].freeze();
    cluster.replicas[1].publish_numbers("session:42", 0..50).await;
    other.expect_numbers("session:42", 0..50).await;
    cluster.replicas[0].thaw();
    cluster.replicas[1].publish_numbers("session:42", 50..60).await;

    browser.expect_numbers("session:42", 0..60).await;
    assert!(browser.history().resets("session:42").is_empty());
}

/// F16: away for longer than the channel remembers. What is gone is gone, and said so.
#[tokio::test]
async fn away_beyond_retention_is_told_so_and_given_what_is_left() {
    let cluster = Cluster::options().replicas(2).flag("--retain=other=1000").set().await;
    let mut browser = cluster.browser_on(0).subscribed_to("project:p").await;
    cluster.replicas[0].publish_numbers("project:p", 0..10).await;
    browser.expect_numbers("project:p", 0..10).await;
    let seen = browser.vanish();

    cluster.replicas[0].publish_numbers("project:p", 10..1_510).await;
    let mut back = cluster.browser_on(1).continuing(seen).back_on("project:p").await;
    cluster.replicas[0].publish_numbers("project:p", 1_510..1_512).await;

    back.wait_until("what came after", |seen| seen.numbers("project:p").last() == Some(&1_511))
        .await;
    assert_eq!(back.history().resets("project:p"), ["retention"]);
    let numbers = back.history().numbers_since_reset("project:p");
    assert!(numbers.len() >= 1_000, "{} of 1,000 retained", numbers.len());
    assert_eq!(numbers, (numbers[0]..1_512).collect::<Vec<_>>());
    let subscribed = back.frames().find(|frame| frame["type"] == "subscribed").unwrap();
    assert_eq!(subscribed["recovered"], false, "{subscribed}");
}

/// Just at the edge nothing is lost: the entry that was seen last has just been trimmed, the next
/// one is still there.
#[tokio::test]
async fn away_for_exactly_as_long_as_the_channel_remembers_is_not_a_reset() {
    let cluster = Cluster::options().replicas(2).flag("--retain=other=1000").set().await;
    let mut browser = cluster.browser_on(0).subscribed_to("project:p").await;
    cluster.replicas[0].publish_numbers("project:p", 0..1).await;
    browser.expect_numbers("project:p", 0..1).await;
    let seen = browser.vanish();

    cluster.replicas[0].publish_numbers("project:p", 1..1_001).await;
    let mut back = cluster.browser_on(1).continuing(seen).back_on("project:p").await;

    back.expect_numbers("project:p", 0..1_001).await;
    assert!(back.history().resets("project:p").is_empty());
}

/// Storing the last offset seen, whichever frame carried it, is always safe: also that of the
/// `subscribed` and the `caught_up`.
#[tokio::test]
async fn every_offset_that_a_frame_carries_is_a_place_to_come_back_to() {
    let cluster = Cluster::with_replicas(2).await;
    cluster.replicas[0].publish_all(&a_run()).await;
    let mut first = cluster.browser_on(0).connect().await;
    first.subscribe_since("session:42", Some("start")).await;
    let end = first.history().offset("session:42");
    let carried = first.frames().filter_map(|frame| frame["offset"].as_str().map(str::to_owned));

    for offset in carried.collect::<Vec<_>>() {
        let mut back = cluster.browser_on(1).connect().await;
        let subscribed = back.subscribe_since("session:42", Some(&offset)).await;

        assert_eq!(subscribed["recovered"], true, "{offset}: {subscribed}");
        assert_eq!(back.history().offset("session:42"), end, "{offset}");
    }
}
