//! How a browser comes in: which replica, which path, which token, how much it can hold.

use futures_util::StreamExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error, handshake::client::Request};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::balancer::Balancer;
use crate::history::History;
use crate::process::Log;
use crate::{Browser, PATIENCE, Replica};

/// A WebSocket after its handshake.
pub type Socket = WebSocketStream<TcpStream>;

/// A browser that is about to connect.
#[derive(Clone, Debug)]
pub struct Endpoint {
    address: String,
    log: Log,
    path: String,
    token: Option<String>,
    headers: Vec<(&'static str, String)>,
    receive_buffer: Option<u32>,
    history: History,
}

impl Endpoint {
    /// Through `/ws` of `replica`.
    pub fn of(replica: &Replica) -> Self {
        Self::at(replica.address(), replica.log().clone())
    }

    /// Through `/ws` of the replica that the balancer picks.
    pub fn through(balancer: &Balancer) -> Self {
        Self::at(balancer.address(), balancer.log().clone())
    }

    fn at(address: String, log: Log) -> Self {
        Self {
            address,
            log,
            path: "/ws".to_owned(),
            token: None,
            headers: Vec::new(),
            receive_buffer: None,
            history: History::default(),
        }
    }

    /// Through another path, with its query.
    #[must_use]
    pub fn path(self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self }
    }

    /// With a token, as `Authorization: Bearer`.
    #[must_use]
    pub fn token(self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self }
    }

    /// With a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// With a receive buffer of a few KiB, so that the other end notices at once when this one does not read.
    #[must_use]
    pub fn holding_little(self) -> Self {
        Self { receive_buffer: Some(4 * 1024), ..self }
    }

    /// As the person whose earlier connection saw `history`.
    #[must_use]
    pub fn continuing(self, history: History) -> Self {
        Self { history, ..self }
    }

    /// Connects and waits for `connected`.
    ///
    /// # Panics
    /// When the relay refuses.
    pub async fn connect(self) -> Browser {
        let (socket, log, history) = self.knock().await.unwrap_or_else(|refusal| {
            panic!("the relay refused the connection: {refusal:?}");
        });
        let mut browser = Browser::new(socket, log, history);
        browser.wait_for_type("connected").await;
        browser
    }

    /// Connects, subscribes to `channel` from the head and waits until that stands.
    ///
    /// # Panics
    /// When the relay refuses.
    pub async fn subscribed_to(self, channel: &str) -> Browser {
        let mut browser = self.connect().await;
        browser.subscribe(channel).await;
        browser
    }

    /// Connects, and comes back to `channel` where its history ends; everything missed has arrived.
    ///
    /// # Panics
    /// When the relay refuses.
    pub async fn back_on(self, channel: &str) -> Browser {
        let since = self.history.offset(channel);
        let mut browser = self.connect().await;
        browser.subscribe_since(channel, since.as_deref()).await;
        browser
    }

    /// The HTTP status with which the relay refuses; 101 where it does not.
    ///
    /// # Panics
    /// When it hangs up instead.
    pub async fn refused(self) -> u16 {
        match self.knock().await {
            Ok(_) => 101,
            Err(Error::Http(response)) => response.status().as_u16(),
            Err(other) => panic!("the relay must refuse with a status, not by: {other}"),
        }
    }

    /// Connects without reading anything: for what no WebSocket client would send.
    ///
    /// # Panics
    /// When the relay refuses.
    pub async fn connect_raw(self) -> Socket {
        self.knock().await.expect("the relay lets the connection in").0
    }

    /// The close code and its reason with which the relay lets a page go that it has let in to be told.
    ///
    /// # Panics
    /// When the relay refuses before the upgrade, sends a frame, or does not close.
    pub async fn turned_away(self) -> (u16, String) {
        let mut socket = self.connect_raw().await;
        let message = tokio::time::timeout(PATIENCE, socket.next()).await;
        match message.expect("the relay closes") {
            Some(Ok(Message::Close(Some(frame)))) => {
                (frame.code.into(), frame.reason.as_str().to_owned())
            }
            other => panic!("not a close frame with a code: {other:?}"),
        }
    }

    async fn knock(self) -> Result<(Socket, Log, History), Error> {
        let request = self.request()?;
        let handshake = async {
            let socket = TcpSocket::new_v4()?;
            if let Some(bytes) = self.receive_buffer {
                socket.set_recv_buffer_size(bytes)?;
            }
            let address = self.address.parse().expect("a replica's address is one");
            client_async(request, socket.connect(address).await?).await
        };
        let (socket, _) = tokio::time::timeout(PATIENCE, handshake).await.unwrap_or_else(|_| {
            panic!("no handshake within {PATIENCE:?}; the replica logged:\n{}", self.log.tail(20))
        })?;
        Ok((socket, self.log, self.history))
    }

    fn request(&self) -> Result<Request, Error> {
        let mut request = format!("ws://{}{}", self.address, self.path).into_client_request()?;
        let bearer = self.token.as_ref().map(|token| ("Authorization", format!("Bearer {token}")));
        for (name, value) in self.headers.iter().cloned().chain(bearer) {
            let value = HeaderValue::from_str(&value).expect("a header's value");
            request.headers_mut().insert(name, value);
        }
        Ok(request)
    }
}
