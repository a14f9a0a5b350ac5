//! A browser that does not read slows no other down, and misses nothing.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tests::{Browser, Cluster, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_tungstenite::tungstenite::Message;

/// `number` events of some size each.
fn padded(channel: &str, numbers: std::ops::Range<u64>, bytes: usize) -> Vec<Value> {
    let pad = "x".repeat(bytes);
    let event = |i| json!({"channel": channel, "event": "number", "data": {"i": i, "pad": pad}});
    numbers.map(event).collect()
}

async fn not_reading(cluster: &Cluster, replica: usize, channel: &str) -> Browser {
    let mut browser = cluster.browser_on(replica).holding_little().subscribed_to(channel).await;
    browser.stop_reading();
    browser
}

/// F39: 7 MiB go by, more than all the buffers between the relay and a page hold; the channel
/// remembers 8 MiB.
#[tokio::test]
async fn a_browser_that_stops_reading_slows_nobody_and_catches_up_when_it_reads_again() {
    let cluster = Cluster::with_replicas(2).await;
    let mut slow = not_reading(&cluster, 0, "session:42").await;
    let mut neighbour = cluster.browser_on(0).subscribed_to("session:42").await;
    let mut elsewhere = cluster.browser_on(1).subscribed_to("session:42").await;

    cluster.replicas[0].publish_all(&padded("session:42", 0..700, 10_000)).await;
    neighbour.expect_numbers("session:42", 0..700).await;
    elsewhere.expect_numbers("session:42", 0..700).await;
    slow.read_again();

    slow.expect_numbers("session:42", 0..700).await;
    assert!(slow.history().resets("session:42").is_empty());
    slow.settle().await;
}

/// 5 MB at a time, which the channel remembers, so that the quick browser never misses any.
async fn publish_in_pieces(cluster: &Cluster, quick: &mut Browser, numbers: std::ops::Range<u64>) {
    for from in numbers.step_by(100) {
        cluster.replicas[0].publish_all(&padded("session:42", from..from + 100, 50_000)).await;
        quick.expect_numbers("session:42", 0..from + 100).await;
    }
}

/// F40: what goes by while nobody reads it takes no memory, however much it is and however many do
/// not read. Those that missed more than the channel remembers are told when they read again.
#[tokio::test]
async fn browsers_that_do_not_read_cost_a_bounded_amount_of_memory() {
    const MIB: u64 = 1024 * 1024;
    let cluster = Cluster::with_replicas(1).await;
    // The first events let pools and tails reach their usual size.
    let mut quick = cluster.browser().subscribed_to("session:42").await;
    publish_in_pieces(&cluster, &mut quick, 0..300).await;
    let mut slow = Vec::new();
    for _ in 0..8 {
        slow.push(not_reading(&cluster, 0, "session:42").await);
    }
    let before = cluster.replicas[0].resident_bytes();

    publish_in_pieces(&cluster, &mut quick, 300..1_000).await;

    let grown = cluster.replicas[0].resident_bytes().saturating_sub(before);
    assert!(grown < 25 * MIB, "35 MB went by, 8 browsers did not read: {} MiB grown", grown / MIB);
    for browser in &mut slow {
        browser.read_again();
        let is_last = |seen: &tests::History| seen.numbers("session:42").last() == Some(&999);
        browser.wait_until("the last number", is_last).await;
    }
}

/// Text that was missed comes merged: a browser that reads again has little to read.
#[tokio::test]
async fn a_slow_browser_gets_the_deltas_that_it_missed_as_few_frames() {
    let cluster = Cluster::with_replicas(1).await;
    let mut slow = not_reading(&cluster, 0, "session:42").await;
    let mut quick = cluster.browser().subscribed_to("session:42").await;

    // First something that fills every buffer on the way, then the text.
    cluster.replicas[0].publish_all(&padded("session:42", 0..600, 10_000)).await;
    let text: Vec<String> = (0..3_000).map(|i| format!("word{i} ")).collect();
    let delta =
        |word| json!({"channel": "session:42", "event": "text_delta", "data": {"delta": word}});
    cluster.replicas[0].publish_all(&text.iter().map(delta).collect::<Vec<_>>()).await;
    let whole = text.concat();
    quick.wait_until("the text", |seen| seen.text("session:42", None) == whole).await;
    slow.read_again();

    let end = quick.history().offset("session:42");
    slow.wait_until("the end", |seen| seen.offset("session:42") == end).await;
    assert_eq!(slow.history().text("session:42", None), whole);
    let deltas = slow.events("session:42").iter().filter(|event| event.name == "text_delta");
    let merged: Vec<u64> = deltas.map(|event| event.merged).collect();
    assert!(merged.len() < 100, "{} frames for 3,000 deltas: {merged:?}", merged.len());
}

/// One connection, one channel with many events and one with few: the few are delivered.
#[tokio::test]
async fn a_busy_channel_does_not_starve_a_quiet_one_of_the_same_browser() {
    let cluster = Cluster::with_replicas(1).await;
    let mut slow = cluster.browser().holding_little().subscribed_to("session:loud").await;
    slow.subscribe("session:quiet").await;
    slow.stop_reading();
    cluster.replicas[0].publish_all(&padded("session:loud", 0..700, 10_000)).await;
    cluster.replicas[0].publish_numbers("session:quiet", 0..1).await;

    slow.read_again();
    slow.expect_numbers("session:quiet", 0..1).await;

    slow.expect_numbers("session:loud", 0..700).await;
}

/// While Redis pauses, three browsers want to catch up on one channel. The second reads nothing any more, or a byte a
/// second: the third gets what it asked for all the same, and so it is for each kind of read.
#[tokio::test]
async fn a_browser_that_does_not_read_holds_up_nobodys_catch_up() {
    for (what, since, trickles) in [
        ("a page", Some("start"), false),
        ("a page", Some("start"), true),
        ("what waits for an answer", None, false),
        ("what waits for an answer", None, true),
    ] {
        let cluster = Cluster::with_replicas(1).await;
        cluster.replicas[0].publish_numbers("session:42", 0..10).await;
        let mut first = cluster.browser().connect().await;
        let mut slow = ByteReader::connect(&cluster.replicas[0].address()).await;
        let mut last = cluster.browser().connect().await;
        // Followed from here on: what is asked for while Redis pauses is read at once.
        first.subscribe("session:42").await;
        let subscribe = json!({"type": "subscribe", "channel": "session:42", "since": since});

        let () = cluster.redis.run(&["CLIENT", "PAUSE", "4000"]).await;
        first.send(subscribe.clone()).await;
        slow.send(&subscribe).await;
        slow.clog().await;
        if trickles {
            slow.trickle();
        }
        let asked = Instant::now();
        last.send(subscribe.clone()).await;

        first.wait_for_type("caught_up").await;
        last.wait_for_type("caught_up").await;
        assert!(asked.elapsed() < Duration::from_secs(15), "{what}: {:?}", asked.elapsed());
    }
}

/// A browser's socket, read byte by byte or not at all.
struct ByteReader {
    up: OwnedWriteHalf,
    down: Option<OwnedReadHalf>,
}

impl ByteReader {
    async fn connect(address: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4 * 1024).unwrap();
        let mut socket = socket.connect(address.parse().unwrap()).await.unwrap();
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(socket.read_u8().await.unwrap());
        }
        assert!(answer.starts_with(b"HTTP/1.1 101"));
        let (down, up) = socket.into_split();
        Self { up, down: Some(down) }
    }

    /// A text frame, masked with zeros.
    async fn send(&mut self, frame: &Value) {
        let text = frame.to_string();
        let length = u16::try_from(text.len()).unwrap().to_be_bytes();
        let head = [0x81, 0x80 | 126, length[0], length[1], 0, 0, 0, 0];
        self.up.write_all(&[&head, text.as_bytes()].concat()).await.unwrap();
    }

    /// Sends what is answered, and reads none of the answers, until the relay can write no more of them.
    async fn clog(&mut self) {
        let strangers: Vec<String> = (0..250).map(|i| format!("session:stranger-{i}")).collect();
        let frame = json!({"type": "unsubscribe", "channels": strangers});
        for _ in 0..300 {
            // The relay reads no more from it: it is as clogged as can be.
            if tokio::time::timeout(Duration::from_millis(300), self.send(&frame)).await.is_err() {
                return;
            }
        }
    }

    /// Takes a byte a second from here on.
    fn trickle(&mut self) {
        let Some(mut down) = self.down.take() else { return };
        tokio::spawn(async move {
            while down.read_u8().await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }
}

/// Of pings whose pong cannot be written only the last is answered: they cost no memory, and the frames of their
/// sender are still received. It is so for browsers and for agents.
#[tokio::test]
async fn pings_whose_pongs_nobody_reads_cost_a_bounded_amount_of_memory() {
    const MIB: u64 = 1024 * 1024;
    const PINGS: usize = 100_000;
    let subscribe = json!({"type": "subscribe", "channel": "session:42"});
    let lease = json!({"type": "lease", "id": 1, "channel": "agent:raw"});
    for (path, frame) in [("/ws", subscribe), ("/ws/agents/raw", lease)] {
        let cluster = Cluster::with_replicas(1).await;
        let replica = &cluster.replicas[0];
        let mut socket = cluster.browser().path(path).holding_little().connect_raw().await;
        let before = replica.resident_bytes();

        let last = format!("{:0125}", PINGS - 1);
        for i in 0..PINGS {
            socket.feed(Message::Ping(format!("{i:0125}").into())).await.unwrap();
        }
        socket.send(Message::text(frame.to_string())).await.unwrap();
        until("the relay has read it all", async || {
            let channel = replica.get("/api/v1/channels/session:42").await.json();
            let agents = replica.get("/api/v1/agents").await.json();
            let is_leased = agents["agents"].as_array().is_some_and(|agents| !agents.is_empty());
            (channel["subscribers"] == 1 || is_leased).then_some(())
        })
        .await;

        let grown = replica.resident_bytes().saturating_sub(before);
        assert!(grown < 6 * MIB, "{path}: no pong was read: {} MiB grown", grown / MIB);
        let is_last = |message: &Message| matches!(message, Message::Pong(text) if **text == *last.as_bytes());
        let reading = async { while !is_last(&socket.next().await.unwrap().unwrap()) {} };
        tokio::time::timeout(tests::PATIENCE, reading).await.expect("the last ping is answered");
    }
}
