//! Signs of life, in both directions. These tests take as long as the pace of the pings.

use std::time::Duration;

use serde_json::{Value, json};
use tests::wait::pause;
use tests::{Browser, Cluster};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A page's script cannot see WebSocket pings, so it can ask for some that it sees; and a client that answers the
/// others stays connected, however silent it is.
#[tokio::test]
async fn a_silent_page_that_asks_receives_signs_of_life_and_stays() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().path("/ws?heartbeat=1").connect().await;

    for _ in 0..3 {
        browser.wait_for_type("ping").await;
    }

    browser.settle().await;
}

/// F41: a peer that neither sends nor accepts a byte is cut.
#[tokio::test]
async fn a_peer_that_answers_no_ping_is_cut() {
    let cluster = Cluster::with_replicas(1).await;
    let mut socket = TcpStream::connect(cluster.replicas[0].address()).await.unwrap();
    let hello = "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(hello.as_bytes()).await.unwrap();

    let mut heard = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(90), socket.read_to_end(&mut heard)).await;

    assert!(end.is_ok(), "still connected after 90 s of silence");
    let closes = |code: u16| heard.windows(2).any(|pair| pair == code.to_be_bytes());
    assert!(heard.windows(2).any(|pair| pair == [0x89, 0]), "no ping was sent");
    assert!(closes(4408), "it was not told why");
}

/// What an agent says to a replica that stands still it says again to another, and goes on there: nothing of it is done
/// when the first one wakes.
#[tokio::test]
async fn a_replica_that_stood_still_does_nothing_of_what_it_finds_when_it_wakes() {
    let cluster = Cluster::options().short_leases().set().await;
    let call = |id: u64, kind: &str, channel: &str, data: Value| json!({"type": kind, "id": id, "channel": channel, "data": data});
    let question = json!({"request_id": "q", "asks": "permission", "question": {"toolName": "Bash"}, "expires_in_ms": 60_000});
    let connect =
        async |replica: usize| cluster.browser_on(replica).path("/ws/agents/a").connect().await;
    let acked = async |agent: &mut Browser, call: Value| {
        agent.send(call.clone()).await;
        let reply = agent.wait_for("its ack", |frame| frame["id"] == call["id"]).await;
        assert_eq!(reply["type"], "ack", "{reply}");
        reply["data"].clone()
    };
    let mut before = connect(0).await;
    let own = acked(&mut before, call(1, "lease", "agent:a", json!({}))).await;
    acked(&mut before, call(2, "lease", "session:42", own.clone())).await;

    cluster.replicas[0].freeze();
    before.send(call(3, "ask", "session:42", question.clone())).await;
    before.send(call(4, "note", "session:42", json!({"runs": {"added": ["r1"]}}))).await;
    let mut after = connect(1).await;
    acked(&mut after, call(5, "lease", "agent:a", own.clone())).await;
    acked(&mut after, call(6, "lease", "session:42", own.clone())).await;
    acked(&mut after, call(7, "ask", "session:42", question)).await;
    acked(&mut after, call(8, "unask", "session:42", json!({"request_id": "q"}))).await;
    // Longer than an agent waits for a replica that says nothing.
    pause(cluster.lease()).await;
    cluster.replicas[0].thaw();

    assert_eq!(before.wait_for_close().await.0, 4408);
    let mut publish = call(9, "publish", "session:42", json!({}));
    publish["event"] = json!("x");
    acked(&mut after, publish).await;
    let channel = cluster.replicas[1].get("/api/v1/channels/session:42").await.json();
    assert_eq!(channel["pending"], json!([]), "{channel}");
    let agents = cluster.replicas[1].get("/api/v1/channels/session:42/agents").await.json();
    assert_eq!(agents["agents"][0]["runs"], json!([]), "{agents}");
}
