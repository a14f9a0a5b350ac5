//! The smallest HTTP client that serves the scenarios: one connection per call, no redirects.

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::HeaderMap;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::PATIENCE;

/// A request that is written by hand: for what no library would send.
#[derive(Debug)]
pub struct Raw(TcpStream);

impl Raw {
    /// Sends a text on a connection of its own.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub async fn send(address: &str, text: &str) -> Self {
        let mut raw = Self(TcpStream::connect(address).await.expect("the relay listens"));
        raw.write(text).await;
        raw
    }

    /// Sends more.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub async fn write(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.expect("the relay takes it");
    }

    /// The head of the next answer; where the connection ends before it does, what came.
    ///
    /// # Panics
    /// When neither comes.
    pub async fn head(&mut self) -> String {
        let mut head = Vec::new();
        let reading = async {
            while !head.ends_with(b"\r\n\r\n") {
                match self.0.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("the relay answers or hangs up");
        String::from_utf8_lossy(&head).into_owned()
    }

    /// Everything that comes until the relay hangs up.
    ///
    /// # Panics
    /// When it does not.
    pub async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        let reading = self.0.read_to_end(&mut rest);
        drop(tokio::time::timeout(PATIENCE, reading).await.expect("the relay hangs up"));
        String::from_utf8_lossy(&rest).into_owned()
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Reply {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When the body is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("no JSON ({error}) with status {}: {}", self.status, self.text())
        })
    }

    /// The `code` of the error that the body holds.
    pub fn error_code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// A header's value, empty where it is absent.
    pub fn header(&self, name: &str) -> String {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    }
}

/// Asks, and waits for the whole answer. A body is said to be JSON where `headers` say nothing else.
///
/// # Errors
/// Where the connection is refused or breaks.
pub async fn call(
    address: &str,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Result<Reply, Box<dyn std::error::Error + Send + Sync>> {
    let exchange = async {
        let stream = TcpStream::connect(address).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driving = tokio::spawn(connection);
        let is_post = method == Method::POST;
        let mut request = Request::builder().method(method).uri(path).header("Host", address);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if is_post && !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("Content-Type")) {
            request = request.header("Content-Type", "application/json");
        }
        let response = sender.send_request(request.body(Full::new(body.into()))?).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        driving.abort();
        Ok(Reply { status: head.status.as_u16(), headers: head.headers, body })
    };
    tokio::time::timeout(PATIENCE, exchange).await?
}
