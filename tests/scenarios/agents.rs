//! What an agent says through the SDK is on every screen, whatever happens to Redis.

use std::time::Duration;

use publisher_sdk::vocabulary::{TextComplete, ToolResult, ToolStart};
use publisher_sdk::{Agent, PermissionRequest, Publisher, RequestError};
use serde_json::json;
use tests::chaos::Chaos;
use tests::wait::pause;
use tests::{Cluster, History, PATIENCE, Persistence};

const CHANNEL: &str = "session:42";

/// The answer of an agent, word by word.
fn words(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("word{i} ")).collect()
}

/// Says `{"i": i}` for each of `numbers`, awaited or not, at a pace that lets things happen between.
async fn count(session: &Publisher, numbers: std::ops::Range<u64>) {
    for i in numbers {
        session.send("number", &json!({"i": i})).unwrap();
        pause(Duration::from_millis(5)).await;
    }
}

/// "Ten lines, and every token and tool call of my agent is on the user's screen."
#[tokio::test]
async fn everything_an_agent_says_is_on_every_screen_in_the_order_it_was_said() {
    let cluster = Cluster::with_replicas(2).await;
    let agent = cluster.agent("a1").await;
    let session = agent.session("42").await.unwrap();
    let mut screens = [
        cluster.browser_on(0).subscribed_to(CHANNEL).await,
        cluster.browser_on(1).subscribed_to(CHANNEL).await,
    ];

    let run = session.begin_run("r1");
    for word in words(300) {
        session.text_delta("t1", &word).unwrap();
    }
    session.send_event(&ToolStart::new("ls", "u1", json!({"path": "."}))).unwrap();
    session.send_event(&ToolResult::new("u1", "ls", "README.md")).unwrap();
    for word in words(300) {
        session.text_delta("t1", &word).unwrap();
    }
    session.publish_event(&TextComplete::new("done").turn_id("t1")).await.unwrap();
    run.complete().await.unwrap();

    for screen in &mut screens {
        let is_over =
            |seen: &History| seen.events(CHANNEL).last().is_some_and(|e| e.name == "complete");
        screen.wait_until("complete", is_over).await;
        let events = screen.events(CHANNEL);
        assert_eq!(screen.history().text(CHANNEL, Some("t1")), words(300).concat().repeat(2));
        let mut names: Vec<&str> = events.iter().map(|event| event.name.as_str()).collect();
        names.dedup();
        let order =
            ["text_delta", "tool_start", "tool_result", "text_delta", "text_complete", "complete"];
        assert_eq!(names, order);
        let before_tool = events.iter().take_while(|event| event.name == "text_delta");
        let text: String = before_tool.map(|event| event.data["delta"].as_str().unwrap()).collect();
        assert_eq!(text, words(300).concat(), "all text before the tool stands before it");
    }
}

/// The firehose carries every agent's life, the agent's own channel too.
#[tokio::test]
async fn an_agents_life_is_on_its_own_channel_and_on_the_firehose() {
    let cluster = Cluster::with_replicas(2).await;
    let mut firehose = cluster.browser_on(1).path("/ws/events").connect().await;
    firehose.wait_for_type("caught_up").await;
    let mut own = cluster.browser_on(0).subscribed_to("agent:a1").await;
    let agent = cluster.agent("a1").await;

    let run = agent.begin_run("r1");
    run.announce(&json!({"task": "tidy"})).await.unwrap();
    run.complete().await.unwrap();

    for name in ["agent_spawned", "agent_completed"] {
        let frame = firehose.wait_for_type(name).await;
        assert_eq!((&frame["agent_id"], &frame["runId"]), (&json!("a1"), &json!("r1")), "{frame}");
        let is_it = |frame: &serde_json::Value| frame["event"] == name;
        let frame = own.wait_for(name, is_it).await;
        assert_eq!(frame["data"]["agent_id"], "a1", "{frame}");
    }
}

/// F01, from the agent's side: it talks on while Redis is dead, and nothing of it is lost or doubled.
#[tokio::test]
async fn an_agent_talks_on_while_redis_is_dead_and_nothing_is_lost_or_doubled() {
    let mut cluster = Cluster::options().persistence(Persistence::Always).set().await;
    let agent = cluster.agent("a1").await;
    let session = agent.session("42").await.unwrap();
    let mut here = cluster.browser_on(0).subscribed_to(CHANNEL).await;
    let mut there = cluster.browser_on(1).subscribed_to(CHANNEL).await;

    let crash = async {
        here.wait_until("some load", |seen| seen.numbers(CHANNEL).len() > 50).await;
        cluster.redis.kill9();
        here.wait_for("degraded", |f| f["redis"] == "degraded").await;
        cluster.redis.restart().await;
    };
    tokio::join!(count(&session, 0..600), crash);
    agent.flush().await.unwrap();

    for browser in [&mut here, &mut there] {
        browser.expect_numbers(CHANNEL, 0..600).await;
        assert!(browser.history().resets(CHANNEL).is_empty());
    }
    assert_eq!(agent.lost_count(), 0);
}

/// F14: two agents, and the scripts are gone again and again.
#[tokio::test]
async fn two_agents_and_a_script_flush_under_load_keep_their_orders() {
    let cluster = Cluster::with_replicas(1).await;
    let (ada, bob) = (cluster.agent("ada").await, cluster.agent("bob").await);
    let both = [ada.session("ada").await.unwrap(), bob.session("bob").await.unwrap()];
    let mut browser = cluster.browser().subscribed_to("session:ada").await;
    browser.subscribe("session:bob").await;

    let flush = async {
        for _ in 0..10 {
            let _: redis::Value = cluster.redis.run(&["SCRIPT", "FLUSH"]).await;
            pause(Duration::from_millis(100)).await;
        }
    };
    tokio::join!(count(&both[0], 0..300), count(&both[1], 0..300), flush);

    browser.expect_numbers("session:ada", 0..300).await;
    browser.expect_numbers("session:bob", 0..300).await;
}

/// F32: appends whose answers are lost, in the middle of a pipeline, again and again.
#[tokio::test]
async fn lost_answers_and_broken_pipelines_neither_double_nor_reorder_what_an_agent_says() {
    let cluster = Cluster::with_replicas(1).await;
    let chaos = Chaos::in_front_of(cluster.redis.address()).await;
    let agent = Agent::options().id("a1").connect(&chaos.url()).await.unwrap();
    let session = agent.session("42").await.unwrap();
    let mut browser = cluster.browser().subscribed_to(CHANNEL).await;

    let disturb = async {
        for _ in 0..8 {
            chaos.swallow_replies();
            pause(Duration::from_millis(100)).await;
            chaos.break_connections();
            chaos.restore();
            pause(Duration::from_millis(200)).await;
        }
    };
    tokio::join!(count(&session, 0..500), disturb);
    agent.flush().await.unwrap();

    browser.expect_numbers(CHANNEL, 0..500).await;
}

/// F09, from the agent's side: what Redis acknowledged and then forgot, the agent says again; the pages
/// are told that history changed.
#[tokio::test]
async fn what_redis_acknowledged_and_forgot_an_agent_says_again() {
    let mut cluster = Cluster::with_replicas(1).await;
    let agent = cluster.agent("a1").await;
    let session = agent.session("42").await.unwrap();
    let mut browser = cluster.browser().subscribed_to(CHANNEL).await;
    count(&session, 0..5).await;
    agent.flush().await.unwrap();
    let backup = cluster.redis.snapshot().await;
    count(&session, 5..10).await;
    agent.flush().await.unwrap();
    browser.expect_numbers(CHANNEL, 0..10).await;

    cluster.redis.come_back_as(&backup).await;
    count(&session, 10..15).await;
    agent.flush().await.unwrap();

    browser.wait_until("a reset", |seen| !seen.resets(CHANNEL).is_empty()).await;
    let is_last = |seen: &History| seen.numbers_since_reset(CHANNEL).last() == Some(&14);
    browser.wait_until("number 14 after the reset", is_last).await;
    let mut reader = cluster.browser().connect().await;
    reader.subscribe_since(CHANNEL, Some("start")).await;
    assert_eq!(reader.history().numbers(CHANNEL), (0..15).collect::<Vec<_>>());
}

/// An agent that ends has said everything.
#[tokio::test]
async fn an_agent_that_closes_has_said_everything() {
    let cluster = Cluster::with_replicas(1).await;
    let agent = cluster.agent("a1").await;
    let session = agent.session("42").await.unwrap();

    for word in words(2_000) {
        session.text_delta(None, &word).unwrap();
    }
    drop(session);
    agent.close().await.unwrap();

    let mut joiner = cluster.browser().connect().await;
    joiner.subscribe_since(CHANNEL, Some("start")).await;
    assert_eq!(joiner.history().text(CHANNEL, None), words(2_000).concat());
}

/// What a person answers reaches the agent that waits, though Redis crashes in between.
#[tokio::test]
async fn a_question_is_answered_by_a_person_though_redis_crashes_meanwhile() {
    let mut cluster = Cluster::options().persistence(Persistence::Always).set().await;
    let agent = cluster.agent("a1").await;
    let session = agent.session("42").await.unwrap();
    let mut browser = cluster.browser_on(1).subscribed_to(CHANNEL).await;
    session.text_delta("t1", "May I?").unwrap();
    let asking = tokio::spawn({
        let session = session.clone();
        let request = PermissionRequest::new("Bash", "rm -r build", "Deletes what was built");
        async move { session.ask_permission(request.durable_id("q1")).await }
    });
    let is_asked = |seen: &History| seen.events(CHANNEL).len() == 2;
    browser.wait_until("text and question", is_asked).await;

    cluster.redis.kill9();
    browser.wait_for("degraded", |f| f["redis"] == "degraded").await;
    cluster.redis.restart().await;
    browser.wait_for("ok", |f| f["redis"] == "ok").await;
    let yes = json!({"type": "permission_response", "requestId": "q1", "allowed": true, "alwaysAllow": true});
    while browser.ask(yes.clone()).await["type"] != "ack" {}

    let permission = tokio::time::timeout(PATIENCE, asking).await.unwrap().unwrap().unwrap();
    assert!(permission.allowed && permission.always_allow && !permission.timed_out);
    let names: Vec<&str> = browser.events(CHANNEL).iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names[..2], ["text_delta", "permission_request"]);
}

/// A service written with the SDK answers through any replica, also when its handler panics.
#[tokio::test]
async fn a_service_answers_through_any_replica_and_a_panic_disturbs_nobody() {
    let cluster = Cluster::with_replicas(2).await;
    let agent = cluster.agent("w1").await;
    let _service = agent
        .serve("sums", async |request| match request.method.as_str() {
            "sums.add" => Ok(json!(request.read::<Vec<u64>>()?.iter().sum::<u64>())),
            "sums.panic" => panic!("on purpose"),
            _ => Err(RequestError::new("no_method", "unknown method")),
        })
        .await
        .unwrap();
    for replica in 0..2 {
        let mut browser = cluster.browser_on(replica).connect().await;
        for (method, answer) in [
            ("sums.panic", ("code", json!("handler_panicked"))),
            ("sums.mul", ("code", json!("no_method"))),
        ] {
            let frame = json!({"type": "request", "method": method, "params": [1, 2]});
            let response = browser.ask(frame).await;
            assert_eq!(response["error"][answer.0], answer.1, "{response}");
        }
        let frame = json!({"type": "request", "method": "sums.add", "params": [1, 2]});
        assert_eq!(browser.ask(frame).await["result"], 3);
    }
}
