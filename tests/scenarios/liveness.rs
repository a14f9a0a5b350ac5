//! Signs of life, in both directions. These tests take as long as the pace of the pings.

use std::time::Duration;

use tests::Cluster;
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
