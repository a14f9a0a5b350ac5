//! A replica one of whose tasks fails, and one that is dropped.

use std::time::Duration;

use journal::Journal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

async fn replica() -> Running {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    start(Config::new(listen, Journal::in_memory())).await.unwrap()
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
    let mut socket = connect(running, "/ws HTTP/1.1\r\n").await;
    let rest = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(rest.as_bytes()).await.unwrap();
    receives(&mut socket, "connected").await;
    socket
}

async fn receives(socket: &mut TcpStream, what: &str) {
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains(what) {
        let read = tokio::time::timeout(Duration::from_secs(20), socket.read_buf(&mut heard)).await;
        assert!(read.unwrap().unwrap() > 0, "ended before `{what}`: {heard:?}");
    }
}

async fn until_ready(running: &Running) {
    while !ask(running, "/readyz").await.starts_with("HTTP/1.1 200") {
        tokio::task::yield_now().await;
    }
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
    let is_refused = async {
        while TcpStream::connect(addr).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), is_refused).await.expect("it accepts nobody");
}
