//! A replica one of whose tasks fails, and one that is dropped.

use std::time::Duration;

use journal::{Journal, Kept, Name, NewEntry, Since};
use protocol::limits::{
    KEPT_BRIEFLY_BYTES_BURST, KEPT_BRIEFLY_BYTES_PER_SECOND, KEPT_LONG_BYTES_BURST,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::*;

/// How often a caller that does not read asks for a MiB.
const ASKED: usize = 8;

async fn replica() -> Running {
    replica_with(|_| {}).await
}

async fn replica_with(change: impl FnOnce(&mut Config)) -> Running {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = Config::new(listen, Journal::in_memory());
    change(&mut config);
    start(config).await.unwrap()
}

async fn connect(running: &Running, request: &str) -> TcpStream {
    let mut socket = TcpStream::connect(running.addr()).await.unwrap();
    let head = format!("GET {request}Host: localhost\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    socket
}

async fn ask(running: &Running, path: &str) -> String {
    let mut socket = connect(running, &format!("{path} HTTP/1.1\r\n")).await;
    socket.write_all(b"Connection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

/// A browser after its handshake, with the `connected` that it has received.
async fn browser(running: &Running) -> TcpStream {
    websocket(running, "/ws").await
}

async fn websocket(running: &Running, path: &str) -> TcpStream {
    let mut socket = knock(running, path).await;
    receives(&mut socket, "connected").await;
    socket
}

/// A WebSocket's handshake, not answered yet.
async fn knock(running: &Running, path: &str) -> TcpStream {
    let mut socket = connect(running, &format!("{path} HTTP/1.1\r\n")).await;
    let rest = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(rest.as_bytes()).await.unwrap();
    socket
}

/// Reads until this was received; returns all that was.
async fn receives(socket: &mut TcpStream, what: &str) -> String {
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains(what) {
        let read = tokio::time::timeout(Duration::from_secs(20), socket.read_buf(&mut heard)).await;
        let heard = String::from_utf8_lossy(&heard);
        assert!(read.unwrap().unwrap() > 0, "ended before `{what}`: {heard}");
    }
    String::from_utf8_lossy(&heard).into_owned()
}

/// Waits until `is_so`.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    waited.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

async fn until_ready(running: &Running) {
    let is_ready = async || ask(running, "/readyz").await.starts_with("HTTP/1.1 200");
    until("it is ready", is_ready).await;
}

#[tokio::test]
async fn a_replica_whose_task_fails_is_not_ready_says_so_and_sends_its_browsers_away() {
    let running = replica().await;
    until_ready(&running).await;
    let mut browser = browser(&running).await;

    running.app.supervisor.run("feed", async { panic!("out of luck") });
    let failure = running.failed().await;

    assert_eq!((failure.name, &*failure.reason), ("feed", "panicked: out of luck"));
    let ready = ask(&running, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    assert!(ready.contains("task `feed` panicked"), "{ready}");
    assert!(ask(&running, "/healthz").await.starts_with("HTTP/1.1 200"));
    let told = tokio::spawn(async move { receives(&mut browser, "reconnect").await });
    running.drain().await;
    told.await.unwrap();
}

#[tokio::test]
async fn a_replica_that_is_dropped_ends_its_connections_at_once() {
    let running = replica().await;
    let mut browser = browser(&running).await;
    let addr = running.addr();

    drop(running);

    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(20), browser.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "it is still connected");
    until("it accepts nobody", async || TcpStream::connect(addr).await.is_err()).await;
}

/// A MiB of events, and callers that ask for it again and again, more than the system takes for them, and read nothing.
async fn unread(running: &Running, count: usize) -> Vec<TcpStream> {
    let name = Name::events("session:42".parse().unwrap());
    let data = format!("\"{}\"", "x".repeat(60_000));
    let entries = (0..20).map(|_| NewEntry::new("x", data.clone())).collect();
    running.app.journal.append(&name, entries).await.unwrap();
    let mut sockets = Vec::new();
    for _ in 0..count {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(64 * 1024).unwrap();
        let mut socket = socket.connect(running.addr()).await.unwrap();
        let path = "/api/v1/channels/session:42/events?limit=1000";
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        socket.write_all(head.repeat(ASKED).as_bytes()).await.unwrap();
        sockets.push(socket);
    }
    sockets
}

/// How many bytes of its answers each of them gets.
async fn read_all(sockets: Vec<TcpStream>) -> Vec<usize> {
    let mut read = Vec::new();
    for mut socket in sockets {
        let mut answer = Vec::new();
        let whole = async {
            // Cut off, it may end with an error.
            while answer.len() < ASKED * 1_000_000
                && socket.read_buf(&mut answer).await.is_ok_and(|n| n > 0)
            {}
        };
        tokio::time::timeout(Duration::from_secs(20), whole).await.expect("the answer, or its end");
        read.push(answer.len());
    }
    read
}

/// Those who do not read are closed, the first one first; those who do notice nothing.
#[tokio::test]
async fn answers_that_nobody_reads_stay_within_the_budget() {
    const BUDGET: usize = 8 * 1024 * 1024;
    let running = replica_with(|config| config.memory = BUDGET).await;
    until_ready(&running).await;
    let mut reader = browser(&running).await;

    let memory = &running.app.memory;
    let before = memory.entered();
    let sockets = unread(&running, 40).await;
    // All have their answers, or have lost them, when only those that fit are left.
    let all_answered = || memory.entered() == before + 40 && memory.sockets() == memory.owing() + 1;
    until("within the budget", async || all_answered() && !memory.is_over()).await;

    let whole: Vec<bool> =
        read_all(sockets).await.iter().map(|read| *read >= ASKED * 1_000_000).collect();
    let kept = whole.iter().filter(|whole| **whole).count();
    assert!(kept >= 2, "those that fit are kept: {whole:?}");
    assert!(!whole[0], "the first one has owed longest: {whole:?}");
    assert!(whole[whole.len() - 1], "the last one has not: {whole:?}");
    let frame = br#"{"type":"ping","id":1}"#;
    let head = [0x81, 0x80 | frame.len() as u8, 0, 0, 0, 0];
    reader.write_all(&[&head[..], frame].concat()).await.unwrap();
    receives(&mut reader, "pong").await;
    browser(&running).await;
}

#[tokio::test]
async fn a_body_that_does_not_fit_is_refused() {
    let running = replica_with(|config| config.memory = 1_000_000).await;
    until_ready(&running).await;
    let data = "x".repeat(60_000);
    let events = vec![format!(r#"{{"channel":"session:42","event":"x","data":"{data}"}}"#); 10];
    let body = format!("[{}]", events.join(","));
    let mut socket = TcpStream::connect(running.addr()).await.unwrap();
    let length = body.len();
    let head = format!(
        "POST /api/v1/publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    // The relay may have answered before it has read everything.
    socket.write_all(body.as_bytes()).await.ok();
    receives(&mut socket, "HTTP/1.1 503").await;

    let name = Name::events("session:42".parse().unwrap());
    let written = running.app.journal.read(&name, Since::Start, 9).await.unwrap();
    assert!(written.entries.is_empty());
}

/// It waits for those who leave, and for an answer that is being read, not for one that is not.
#[tokio::test]
async fn a_drain_does_not_wait_for_peers_that_do_not_read() {
    let running = replica_with(|config| config.drain = Duration::ZERO).await;
    until_ready(&running).await;
    let sockets = unread(&running, 3).await;
    until("they owe their answers", async || running.app.memory.owing() == 3).await;

    assert!(running.send_away().await, "the drain was over before its grace");
    drop(sockets);
}

/// A viewer counts for no more: its WebSocket is closed in good order where it reads, and not waited for where it does not.
#[tokio::test]
async fn a_drain_does_not_wait_for_viewers_that_do_not_read() {
    let running = replica_with(|config| config.drain = Duration::ZERO).await;
    until_ready(&running).await;
    let name = Name::events("session:42".parse().unwrap());
    let data = format!("\"{}\"", "x".repeat(60_000));
    // More than the system takes for them.
    let entries = (0..130).map(|_| NewEntry::new("x", data.clone())).collect();
    running.app.journal.append(&name, entries).await.unwrap();
    let mut viewers = Vec::new();
    for _ in 0..3 {
        viewers.push(knock(&running, "/ws/42?since=start").await);
    }
    until("they owe their events", async || running.app.memory.owing() == 3).await;

    assert!(running.send_away().await, "the drain was over before its grace");
    drop(viewers);
}

#[test]
fn the_main_listener_leaves_files_for_everything_else() {
    assert_eq!(SocketLimits::of(Some(1_024)), SocketLimits { most: 960, with_health: 992 });
    assert_eq!(SocketLimits::of(Some(20)), SocketLimits { most: 10, with_health: 15 });
    assert_eq!(SocketLimits::of(None), SocketLimits::without_bound());
}

/// Where no file is left for more, health is still answered and everything else is refused.
#[tokio::test]
async fn a_full_replica_answers_for_its_health() {
    let running = replica_with(|config| config.open_files = Some(16)).await;
    until_ready(&running).await;
    let mut browsers = Vec::new();
    until("no socket is left", async || running.app.memory.sockets() == 0).await;
    for _ in 0..8 {
        browsers.push(browser(&running).await);
    }

    let refused = ask(&running, "/api/v1/agents").await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("open files"), "{refused}");
    assert!(ask(&running, "/readyz").await.starts_with("HTTP/1.1 200"));

    drop(browsers);
    until("a socket is gone", async || running.app.memory.sockets() < 8).await;
    assert!(ask(&running, "/api/v1/agents").await.starts_with("HTTP/1.1 200"));
}

/// A replica with room for 32 connections: one user gets 8 of them, as a page or as an agent.
#[tokio::test]
async fn one_user_leaves_places_to_the_others() {
    let secret = b"0123456789abcdef0123456789abcdef";
    let running = replica_with(|config| {
        config.open_files = Some(64);
        config.key = Some(crate::Key::hs256(secret).unwrap());
    })
    .await;
    until_ready(&running).await;
    let path = |path: &str, user: &str| {
        let key = jsonwebtoken::EncodingKey::from_secret(secret);
        let claims = serde_json::json!({
            "sub": user, "exp": jsonwebtoken::get_current_timestamp() + 60, "relay": {"serve": ["agent:*"]},
        });
        let token = jsonwebtoken::encode(&Default::default(), &claims, &key.unwrap()).unwrap();
        format!("{path}?token={token}")
    };
    let mut of_ann = vec![websocket(&running, &path("/ws/agents/a", "ann")).await];
    for _ in 1..8 {
        of_ann.push(websocket(&running, &path("/ws", "ann")).await);
    }

    for one_more in ["/ws", "/ws/agents/b"] {
        let mut refused = knock(&running, &path(one_more, "ann")).await;
        let heard = receives(&mut refused, "this user holds 8 connections of this replica").await;
        assert!(heard.starts_with("HTTP/1.1 503") && heard.contains("retry-after: 1"), "{heard}");
    }
    websocket(&running, &path("/ws", "bob")).await;

    drop(of_ann.pop());
    let mut refused = true;
    while refused {
        let mut socket = knock(&running, &path("/ws", "ann")).await;
        let mut status = [0; 12];
        socket.read_exact(&mut status).await.unwrap();
        refused = status == *b"HTTP/1.1 503";
    }
}

/// Sockets that say nothing take no file that is left for everything else, and health is answered between them.
#[tokio::test]
async fn silent_sockets_do_not_take_the_last_files() {
    let running = replica_with(|config| config.open_files = Some(16)).await;
    until_ready(&running).await;
    let memory = &running.app.memory;
    until("no socket is left", async || memory.sockets() == 0).await;
    let mut browsers = Vec::new();
    for _ in 0..8 {
        browsers.push(browser(&running).await);
    }

    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(running.addr()).await.unwrap());
    }
    until("those that fit are accepted", async || memory.sockets() >= 12).await;
    assert!(ask(&running, "/healthz").await.starts_with("HTTP/1.1 200"));

    assert!(memory.sockets() <= 12, "{}", memory.sockets());
}

/// Pieces of no bytes are no message, however many come.
#[tokio::test]
async fn a_message_in_pieces_without_end_is_not_read_for_ever() {
    const HEADS: [u8; 6] = [0, 0x80, 0, 0, 0, 0];
    let running = replica().await;
    until_ready(&running).await;
    for (path, largest) in [("/ws", 64 * 1024), ("/ws/agents/a", 1024 * 1024)] {
        let mut socket = websocket(&running, path).await;
        socket.write_all(&[1, 0x80, 0, 0, 0, 0]).await.unwrap();
        let pieces = HEADS.repeat(1_000);
        for _ in 0..8 * largest / pieces.len() {
            // Closed in between, it takes no more.
            socket.write_all(&pieces).await.ok();
        }
        receives(&mut socket, "too many frames that cannot be read").await;
    }
}

async fn publish(running: &Running, event: &str) -> String {
    let mut socket = TcpStream::connect(running.addr()).await.unwrap();
    let length = event.len();
    let head = format!(
        "POST /api/v1/publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{event}"
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Without tokens all of HTTP is one sender.
#[tokio::test]
async fn what_one_publisher_has_kept_beside_the_journals_comes_at_a_pace() {
    let running = replica().await;
    let (growth, brief) = (running.app.journal.growth(), Kept::Briefly { is_cancel: false });
    let event = |channel: &str| format!(r#"{{"channel":"{channel}","event":"x","data":{{}}}}"#);
    for (channel, left) in [("session:1", 1024), ("session:1", 1024), ("session:2", 2048)] {
        assert!(publish(&running, &event(channel)).await.starts_with("HTTP/1.1 200"));
        let all = KEPT_LONG_BYTES_BURST;
        assert!(growth.admit("http", Kept::Long, all - left / 2).is_err(), "{channel}");
    }
    assert!(growth.admit("http", Kept::Long, KEPT_LONG_BYTES_BURST - 2048).is_ok());

    growth.charge("http", brief, KEPT_BRIEFLY_BYTES_BURST + 60 * KEPT_BRIEFLY_BYTES_PER_SECOND);
    let with_id = event("session:1").replace("{\"channel\"", "{\"id\":\"i\",\"channel\"");
    for refused in [with_id.clone(), format!("[{with_id}]")] {
        let answer = publish(&running, &refused).await;
        assert!(answer.contains("rate_limited"), "{answer}");
        assert!(answer.contains("retry_after_ms"), "{answer}");
    }
}
