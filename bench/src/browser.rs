//! A browser that waits for one thing after the other, to measure latency and not load.

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
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
        let (socket, _) = connect_async(format!("ws://127.0.0.1:{port}/ws")).await?;
        let mut browser = Self { socket };
        browser.send(&json!({"type": "subscribe", "channels": channels})).await?;
        for _ in channels {
            browser.until(|text| text.contains("\"caught_up\"")).await?;
        }
        Ok(browser)
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
