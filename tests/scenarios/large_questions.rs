//! Many large questions wait on one channel: every joiner is told of all, and they cost little.

use std::ops::Range;

use futures_util::SinkExt;
use serde_json::{Value, json};
use tests::{Browser, Cluster, until};
use tokio_tungstenite::tungstenite::Message;

const SESSION: &str = "session:42";
const QUESTIONS: usize = 64;
const FRAME_BYTES_MAX: usize = 64 * 1024;

/// Two agents that have asked as much as they may.
async fn asking(cluster: &Cluster) -> [Browser; 2] {
    let half = QUESTIONS / 2;
    [asks(cluster, "a", 0..half).await, asks(cluster, "b", half..QUESTIONS).await]
}

async fn asks(cluster: &Cluster, id: &str, questions: Range<usize>) -> Browser {
    let mut agent = cluster.browser().path(&format!("/ws/agents/{id}")).connect().await;
    let question = json!({"request": {"toolName": "x".repeat(60_000)}});
    let lease = |id: usize, channel: &str| json!({"type": "lease", "id": id, "channel": channel});
    agent.send(lease(1, &format!("agent:{id}"))).await;
    agent.send(lease(2, SESSION)).await;
    let last = 2 + questions.end;
    for n in questions {
        let data = json!({
            "request_id": format!("q{n}"),
            "asks": "permission",
            "question": question,
            "expires_in_ms": 600_000,
        });
        agent.send(json!({"type": "ask", "id": 3 + n, "channel": SESSION, "data": data})).await;
    }
    let asked = agent.wait_for("the last question", |frame| frame["id"] == last).await;
    assert_eq!(asked["type"], "ack", "{asked}");
    agent
}

/// The questions that a joiner was told of, from its `subscribed` to the last frame that was announced.
async fn told(joiner: &mut Browser) -> Vec<String> {
    joiner.subscribe(SESSION).await;
    let mut ids = Vec::new();
    for frame in joiner.frames() {
        assert!(frame.to_string().len() <= FRAME_BYTES_MAX, "{} bytes", frame.to_string().len());
        let pending = frame["pending"].as_array().into_iter().flatten();
        ids.extend(pending.map(|one| one["request_id"].as_str().unwrap().to_owned()));
    }
    ids.sort();
    ids
}

fn subscribe() -> Message {
    Message::text(json!({"type": "subscribe", "channel": SESSION}).to_string())
}

#[tokio::test]
async fn many_large_questions_come_in_frames_that_every_client_can_read() {
    let cluster = Cluster::with_replicas(1).await;
    let _agents = asking(&cluster).await;
    let mut all: Vec<String> = (0..QUESTIONS).map(|n| format!("q{n}")).collect();
    all.sort();

    for _ in 0..2 {
        let mut joiner = cluster.browser().connect().await;
        assert_eq!(told(&mut joiner).await, all);
        // What happens from then on comes after them.
        let kinds: Vec<&str> = joiner.frames().filter_map(|frame| frame["type"].as_str()).collect();
        assert_eq!(kinds.last(), Some(&"caught_up"), "{kinds:?}");
        let subscribed = joiner.frames().find(|frame| frame["type"] == "subscribed").unwrap();
        assert_eq!(subscribed["pending_more"], true);
    }
}

/// Each of 20 browsers asks for them 16 times and reads nothing.
#[tokio::test]
async fn many_large_questions_are_not_copied_for_each_browser() {
    const MIB: u64 = 1024 * 1024;
    let cluster = Cluster::with_replicas(1).await;
    let _agents = asking(&cluster).await;
    let mut first = cluster.browser().connect().await;
    assert_eq!(told(&mut first).await.len(), QUESTIONS);
    let replica = &cluster.replicas[0];
    let before = replica.resident_bytes();

    let mut sockets = Vec::new();
    for _ in 0..20 {
        let mut socket = cluster.browser().holding_little().connect_raw().await;
        for _ in 0..16 {
            socket.send(subscribe()).await.unwrap();
        }
        sockets.push(socket);
    }
    until("all have subscribed", async || {
        let channel: Value = replica.get(&format!("/api/v1/channels/{SESSION}")).await.json();
        (channel["subscribers"] == 21).then_some(())
    })
    .await;
    let mut last = cluster.browser().connect().await;
    assert_eq!(told(&mut last).await.len(), QUESTIONS);

    let grown = replica.resident_bytes().saturating_sub(before);
    assert!(grown < 80 * MIB, "20 browsers read nothing of 4 MB: {} MiB grown", grown / MIB);
}
