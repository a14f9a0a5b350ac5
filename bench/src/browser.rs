//! A browser that waits for one thing after the other, to measure latency and not load.

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// A connection with subscriptions.
#[derive(Debug)]
pub(crate) struct Browser {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Browser {
    /// Subscribed to `channels`, and told so.
    pub(crate) async fn open(port: u16, channels: &[String]) -> Result<Self> {
        Self::at(&format!("ws://127.0.0.1:{port}/ws"), channels).await
    }

    /// The same with a token.
    pub(crate) async fn open_as(port: u16, token: &str, channels: &[String]) -> Result<Self> {
        Self::at(&format!("ws://127.0.0.1:{port}/ws?token={token}"), channels).await
    }

    async fn at(url: &str, channels: &[String]) -> Result<Self> {
        let (socket, _) = connect_async(url).await?;
        let mut browser = Self { socket };
        if !channels.is_empty() {
            browser.subscribe(channels).await?;
        }
        Ok(browser)
    }

    /// Subscribes to `channels`, and waits until it was told so.
    pub(crate) async fn subscribe(&mut self, channels: &[String]) -> Result<()> {
        self.send(&json!({"type": "subscribe", "channels": channels})).await?;
        for _ in channels {
            self.until(|text| text.contains("\"caught_up\"")).await?;
        }
        Ok(())
    }

    /// Subscribes and unsubscribes without waiting for any answer until `end`; how often.
    pub(crate) async fn alternate(self, channel: &str, end: Instant) -> Result<u64> {
        let (mut write, mut read) = self.socket.split();
        let frame =
            |kind: &str| Message::text(json!({"type": kind, "channel": channel}).to_string());
        let writing = async {
            let mut done = 0;
            while Instant::now() < end {
                write.feed(frame("subscribe")).await?;
                write.send(frame("unsubscribe")).await?;
                done += 1;
            }
            anyhow::Ok(done)
        };
        let reading = async {
            while read.next().await.context("the relay closed the connection")??.is_text() {}
            bail!("the relay closed the connection")
        };
        tokio::select! { done = writing => done, failed = reading => failed }
    }

    pub(crate) async fn send(&mut self, frame: &Value) -> Result<()> {
        Ok(self.socket.send(Message::text(frame.to_string())).await?)
    }

    /// Waits for a frame that `is_it`.
    pub(crate) async fn until(&mut self, is_it: impl Fn(&str) -> bool) -> Result<()> {
        loop {
            match self.socket.next().await.context("the relay closed the connection")?? {
                Message::Text(text) if is_it(&text) => return Ok(()),
                Message::Close(frame) => bail!("the relay closed the connection: {frame:?}"),
                _ => {}
            }
        }
    }
}
