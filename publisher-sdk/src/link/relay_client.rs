//! The agent's end of the way through a relay: one WebSocket, remade for ever.
//!
//! What has no answer when the connection breaks is said again on the next one, in its order; the relay, or
//! the next one, knows by the id what it has done. Leases are taken back first, then what is followed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use journal::{Name, Reason, Since, Update};
use protocol::agent::body;
use protocol::{AgentCall, AgentFrame, AgentHears, AgentNews, Channel, Entry, Offset};
use rand::Rng;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, Request};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use tokio_util::sync::CancellationToken;

use super::LinkError;
use super::follow::{FollowRequest, FollowRequests};
use crate::ConnectError;
use crate::options::without_secrets;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The relay pings every five seconds: a connection that is silent for this long is dead.
const SILENCE_MAX: Duration = Duration::from_secs(12);
/// What may wait to be written, or to be followed.
const QUEUE: usize = 1024;
/// The longest pause between two attempts to connect: well within a lease.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What the client is asked for.
#[derive(Debug)]
pub(super) enum Job {
    Call {
        call: AgentCall,
        channel: Channel,
        event: Option<Box<str>>,
        data: Box<RawValue>,
        answer: oneshot::Sender<Result<AgentHears, LinkError>>,
        /// The room that it takes in the buffer, given back with the answer.
        room: Option<Arc<OwnedSemaphorePermit>>,
    },
    /// Is a relay within reach?
    Ready(oneshot::Sender<Result<(), LinkError>>),
}

/// The leases that are taken back on every connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases(Arc<Mutex<Vec<Held>>>);

type Held = (Channel, u64, CancellationToken);

impl Leases {
    pub(super) fn hold(&self, channel: &Channel, incarnation: u64, lost: &CancellationToken) {
        self.forget(channel);
        self.all().push((channel.clone(), incarnation, lost.clone()));
    }

    pub(super) fn forget(&self, channel: &Channel) {
        self.all().retain(|(held, ..)| held != channel);
    }

    fn fenced(&self, channel: &Channel) {
        for (_, _, lost) in self.all().iter().filter(|(held, ..)| held == channel) {
            lost.cancel();
        }
        self.forget(channel);
    }

    fn all(&self) -> MutexGuard<'_, Vec<Held>> {
        self.0.lock().expect("no code panics with this lock held")
    }
}

/// A call without an answer.
#[derive(Debug)]
struct Pending {
    text: String,
    call: AgentCall,
    channel: Channel,
    answer: oneshot::Sender<Result<AgentHears, LinkError>>,
    _room: Option<Arc<OwnedSemaphorePermit>>,
}

#[derive(Debug)]
pub(super) struct Client {
    request: Request<()>,
    jobs: mpsc::Receiver<Job>,
    last_id: u64,
    pending: BTreeMap<u64, Pending>,
    leases: Leases,
    /// Leases that are being taken back, by the id of the call.
    restoring: HashMap<u64, Channel>,
    /// Whose commands are followed, and where to go on after the next reconnect.
    followed: HashMap<Channel, Since>,
    requests: Arc<FollowRequests>,
    updates: mpsc::Sender<Update>,
    is_up: bool,
    waiting: Vec<oneshot::Sender<Result<(), LinkError>>>,
}

impl Client {
    pub(super) fn start(
        url: &str,
        agent: &str,
        token: Option<&str>,
        jobs: mpsc::Receiver<Job>,
        leases: Leases,
        (requests, updates): (Arc<FollowRequests>, mpsc::Sender<Update>),
    ) -> Result<(), ConnectError> {
        let refuse = |why: String| ConnectError::RelayUrl { url: without_secrets(url), why };
        let rest = url
            .strip_prefix("http")
            .ok_or_else(|| refuse("the scheme must be http or https".to_owned()))?;
        let address = format!("ws{}/ws/agents/{agent}", rest.trim_end_matches('/'));
        let request = address.into_client_request();
        let mut request = request.map_err(|error| refuse(error.to_string()))?;
        if let Some(token) = token {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            let mut value =
                value.map_err(|_| refuse("the token is not printable ASCII".to_owned()))?;
            value.set_sensitive(true);
            request.headers_mut().insert("Authorization", value);
        }
        // As for Redis: rustls panics at the first handshake without a provider.
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = Self {
            request,
            jobs,
            last_id: 0,
            pending: BTreeMap::new(),
            leases,
            restoring: HashMap::new(),
            followed: HashMap::new(),
            requests,
            updates,
            is_up: false,
            waiting: Vec::new(),
        };
        tokio::spawn(client.run());
        Ok(())
    }

    async fn run(mut self) {
        let requests = Arc::clone(&self.requests);
        let mut attempts = 0_u32;
        loop {
            let longest = BACKOFF_MAX.min(Duration::from_millis(25) * 2_u32.pow(attempts.min(8)));
            let pause = longest.mul_f64(rand::rng().random());
            let pause = if attempts == 0 { Duration::ZERO } else { pause };
            let mut connecting = Box::pin(connect(self.request.clone(), pause));
            let connected = loop {
                tokio::select! {
                    connected = &mut connecting => break connected,
                    job = self.jobs.recv() => match job {
                        Some(job) => drop(self.accept(job)),
                        None => return,
                    },
                    request = requests.next() => drop(self.on_request(request)),
                }
            };
            attempts += 1;
            match connected {
                Ok(socket) => {
                    let began = Instant::now();
                    let why = match self.serve(socket).await {
                        Some(why) => why,
                        None => return,
                    };
                    // One that ends at once is no better than none.
                    if began.elapsed() > BACKOFF_MAX {
                        attempts = 0;
                    }
                    tracing::warn!(why, "the way through the relay is lost; what waits is kept");
                    self.say_link(false).await;
                }
                Err(why) => {
                    // Once per outage: a token that has expired would otherwise go unnoticed.
                    if attempts == 1 {
                        tracing::warn!(%why, "the relay cannot be reached; waiting calls are kept");
                    }
                    for waiting in self.waiting.drain(..) {
                        drop(waiting.send(Err(why.clone())));
                    }
                }
            }
        }
    }

    /// Serves one connection to its end; `None` when nobody needs it any more.
    async fn serve(&mut self, socket: Socket) -> Option<String> {
        let (sink, mut stream) = socket.split();
        let (lines, to_write) = mpsc::channel(QUEUE);
        let requests = Arc::clone(&self.requests);
        // Beside the reading: a relay that does not read must still be heard.
        let writer = tokio::spawn(write(sink, to_write));
        let why = loop {
            tokio::select! {
                heard = timeout(SILENCE_MAX, next(&mut stream)) => match heard {
                    Err(_) => break Some("it is silent".to_owned()),
                    Ok(Err(why)) => break Some(why),
                    Ok(Ok(None)) => {}
                    Ok(Ok(Some(hears))) if hears.news == AgentNews::Connected => {
                        for text in self.restore() {
                            drop(lines.send(text).await);
                        }
                        self.say_link(true).await;
                    }
                    Ok(Ok(Some(hears))) if hears.news == AgentNews::Reconnect => {
                        break Some("the replica goes down".to_owned());
                    }
                    Ok(Ok(Some(hears))) => {
                        match self.on_news(hears).await {
                            Ok(None) => {}
                            Ok(Some(text)) => drop(lines.send(text).await),
                            Err(why) => break Some(why),
                        }
                    }
                },
                job = self.jobs.recv() => match job {
                    Some(job) => {
                        if let Some(text) = self.accept(job) && self.is_up {
                            drop(lines.send(text).await);
                        }
                    }
                    None => break None,
                },
                request = requests.next() => {
                    if let Some(text) = self.on_request(request) && self.is_up {
                        drop(lines.send(text).await);
                    }
                }
            }
        };
        self.is_up = false;
        drop(lines);
        if why.is_none() {
            // Give what was said last the time to go out.
            drop(timeout(CONNECT_TIMEOUT, writer).await);
        }
        why
    }

    /// What must be said first on a new connection.
    fn restore(&mut self) -> Vec<String> {
        self.is_up = true;
        let mut texts = Vec::new();
        self.restoring.clear();
        let leases = self.leases.all().clone();
        for (channel, incarnation, _) in leases {
            let body = body::LeaseCall { incarnation: Some(incarnation), parent: None };
            let (id, text) = self.frame(AgentCall::Lease, &channel, None, raw(&body));
            self.restoring.insert(id, channel);
            texts.push(text);
        }
        let followed: Vec<Channel> = self.followed.keys().cloned().collect();
        texts.extend(followed.iter().filter_map(|channel| self.follow(channel)));
        // What nobody waits for any more would be had by nobody.
        let is_unwanted = |pending: &Pending| {
            let is_for_its_caller = matches!(pending.call, AgentCall::Lease | AgentCall::Take);
            is_for_its_caller && pending.answer.is_closed()
        };
        self.pending.retain(|_, pending| !is_unwanted(pending));
        texts.extend(self.pending.values().map(|pending| pending.text.clone()));
        texts
    }

    fn frame(
        &mut self,
        call: AgentCall,
        channel: &Channel,
        event: Option<Box<str>>,
        data: Box<RawValue>,
    ) -> (u64, String) {
        self.last_id += 1;
        let (id, channel, data) = (self.last_id, channel.clone(), Some(data));
        let frame = AgentFrame { call, id, channel, event, data };
        (id, serde_json::to_string(&frame).expect("plain data"))
    }

    /// What to send for it now, if anything.
    fn accept(&mut self, job: Job) -> Option<String> {
        match job {
            Job::Call { call, channel, event, data, answer, room } => {
                if call == AgentCall::Lease {
                    // It is wanted again: on the next connection nobody releases it.
                    let releases =
                        |p: &Pending| p.call == AgentCall::Release && p.channel == channel;
                    self.pending.retain(|_, pending| !releases(pending));
                }
                let (id, text) = self.frame(call, &channel, event, data);
                let pending = Pending { text: text.clone(), call, channel, answer, _room: room };
                self.pending.insert(id, pending);
                Some(text)
            }
            Job::Ready(answer) => {
                if self.is_up {
                    drop(answer.send(Ok(())));
                } else {
                    self.waiting.push(answer);
                }
                None
            }
        }
    }

    fn on_request(&mut self, request: FollowRequest) -> Option<String> {
        match request {
            FollowRequest::Follow(channel, since) => {
                self.followed.insert(channel.clone(), since);
                self.follow(&channel)
            }
            FollowRequest::Unfollow(channel) => {
                self.followed.remove(&channel)?;
                Some(self.frame(AgentCall::Unfollow, &channel, None, raw(&())).1)
            }
        }
    }

    fn follow(&mut self, channel: &Channel) -> Option<String> {
        let since = match self.followed.get(channel)? {
            Since::Start => "start".to_owned(),
            Since::Offset(offset) => offset.to_string(),
        };
        let body = body::FollowCall { since: Some(since) };
        Some(self.frame(AgentCall::Follow, channel, None, raw(&body)).1)
    }

    /// What to send for it now, if anything. An error says why this connection is of no use.
    async fn on_news(&mut self, hears: AgentHears) -> Result<Option<String>, String> {
        match hears.news {
            AgentNews::Ack | AgentNews::Error => return self.on_answer(hears),
            AgentNews::Fenced => {
                if let Some(channel) = &hears.channel {
                    self.leases.fenced(channel);
                }
            }
            AgentNews::Command | AgentNews::Live | AgentNews::Reset => self.on_journal(hears).await,
            AgentNews::Connected
            | AgentNews::RelayStatus
            | AgentNews::Reconnect
            | AgentNews::Ping => {}
        }
        Ok(None)
    }

    fn on_answer(&mut self, hears: AgentHears) -> Result<Option<String>, String> {
        let Some(id) = hears.id else { return Ok(None) };
        let is_done = hears.news == AgentNews::Ack;
        if let Some(channel) = self.restoring.remove(&id).filter(|_| !is_done) {
            match LinkError::of(&hears) {
                LinkError::Fenced => self.leases.fenced(&channel),
                // Without it everything that follows would be refused: come back, and say all of it again.
                _ => return Err(hears.message.unwrap_or_default()),
            }
        }
        if let Some(pending) = self.pending.remove(&id) {
            let answer = if is_done { Ok(hears) } else { Err(LinkError::of(&hears)) };
            if pending.answer.send(answer).is_err() && is_done && pending.call == AgentCall::Lease {
                // Nobody waited so long: it is nobody's.
                return Ok(Some(
                    self.frame(AgentCall::Release, &pending.channel, None, raw(&())).1,
                ));
            }
        }
        Ok(None)
    }

    async fn on_journal(&mut self, hears: AgentHears) {
        let Some(channel) = hears.channel else { return };
        let Some(since) = self.followed.get_mut(&channel) else { return };
        let offset = hears.offset.as_deref().and_then(|offset| offset.parse::<Offset>().ok());
        let name = Name::commands(channel);
        let update = match (hears.news, offset) {
            (AgentNews::Command, Some(offset)) => {
                *since = Since::Offset(offset);
                let data = hears.data.as_ref().map_or("null", |data| data.get()).into();
                let time_us = hears.time_us.unwrap_or_default();
                let entry = Entry { offset, time_us, name: hears.name.unwrap_or_default(), data };
                Update::Entries { name, entries: vec![Arc::new(entry)] }
            }
            (AgentNews::Reset, head) => {
                *since = Since::Start;
                Update::Reset { name, reason: Reason::HistoryChanged, head }
            }
            (_, head) => Update::Live { name, head },
        };
        drop(self.updates.send(update).await);
    }

    async fn say_link(&mut self, up: bool) {
        if up {
            for waiting in self.waiting.drain(..) {
                drop(waiting.send(Ok(())));
            }
        }
        drop(self.updates.send(Update::Link { up }).await);
    }
}

fn raw(body: &impl serde::Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(body).expect("plain data")
}

async fn connect(request: Request<()>, pause: Duration) -> Result<Socket, LinkError> {
    tokio::time::sleep(pause).await;
    match timeout(CONNECT_TIMEOUT, connect_async(request)).await {
        Ok(Ok((socket, _))) => Ok(socket),
        Ok(Err(Error::Http(answer))) if answer.status().is_client_error() => {
            let body = answer.body().as_deref().unwrap_or_default();
            let said: Option<Value> = serde_json::from_slice(body).ok();
            let why = said.as_ref().and_then(|said| said["error"]["message"].as_str());
            let status = answer.status().to_string();
            Err(LinkError::Refused(why.map_or(status, ToOwned::to_owned)))
        }
        Ok(Err(error)) => Err(LinkError::unavailable(&error.to_string())),
        Err(_) => Err(LinkError::unavailable("no answer")),
    }
}

/// The next frame; `None` for one that says nothing.
async fn next(stream: &mut SplitStream<Socket>) -> Result<Option<AgentHears>, String> {
    match stream.next().await {
        None => Err("the relay closed it".to_owned()),
        Some(Err(error)) => Err(error.to_string()),
        Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
            Ok(hears) => Ok(Some(hears)),
            Err(error) => {
                tracing::debug!(%error, "a frame of the relay is not understood");
                Ok(None)
            }
        },
        Some(Ok(_)) => Ok(None),
    }
}

async fn write(mut sink: SplitSink<Socket, Message>, mut texts: mpsc::Receiver<String>) {
    while let Some(text) = texts.recv().await {
        if sink.feed(Message::text(text)).await.is_err() {
            return;
        }
        if texts.is_empty() && sink.flush().await.is_err() {
            return;
        }
    }
    // The reading end notices a connection that is broken.
    sink.close().await.ok();
}
