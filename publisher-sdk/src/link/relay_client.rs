//! The agent's end of the connection to a relay: one WebSocket, remade for ever.
//!
//! [`relay_link`](super::relay_link) → **client** → a relay's `/ws/agents/{agent_id}`
//!
//! What has no reply when the connection breaks is sent again on the next one, in its order; the relay, or
//! the next one, knows by the id what it has done. RelayLeases are taken back first, then what is followed. A
//! connection on which nothing was heard for [`SILENCE_MAX`] is dead, whatever is sent.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use journal::{LEASE_DEFAULT, Name, Reason, Since, Update, without_secrets};
use protocol::agent::body::{LeaseCall, WithdrawCall};
use protocol::{AgentCall, AgentMessage, CallBody, Channel, Entry};
use rand::Rng;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, interval, sleep_until, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, Request};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::LinkError;
use super::follow::{FollowRequest, FollowRequests};
use super::relay_calls::{ReplySender, WaitingCalls};
use crate::ConnectError;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The relay pings every five seconds: a connection on which nothing is heard for this long is dead.
const SILENCE_MAX: Duration = Duration::from_secs(12);
/// Frames between this task and the one that writes: a few, so that the order of calls is decided late.
const WRITE_QUEUE: usize = 16;
/// The longest pause between two attempts to connect: well within a lease.
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// The same where the relay refuses the agent.
const REFUSED_BACKOFF_MAX: Duration = Duration::from_secs(15);
/// How often calls that were given up are looked for.
const TICK: Duration = Duration::from_millis(500);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What the client is asked for.
#[derive(Debug)]
pub(super) enum Job {
    Call {
        channel: Channel,
        body: CallBody,
        reply: ReplySender,
        /// What it takes of the buffer, given back with the reply.
        room: Option<Arc<OwnedSemaphorePermit>>,
    },
    /// Is a relay within reach?
    Ready(oneshot::Sender<Result<(), LinkError>>),
}

/// The leases that are taken back on every connection.
#[derive(Clone, Debug, Default)]
pub(super) struct RelayLeases(Arc<Mutex<Vec<HeldLease>>>);

type HeldLease = (Channel, u64, CancellationToken);

impl RelayLeases {
    pub(super) fn hold(&self, channel: &Channel, incarnation: u64, lost: &CancellationToken) {
        self.forget(channel);
        self.all().push((channel.clone(), incarnation, lost.clone()));
    }

    pub(super) fn forget(&self, channel: &Channel) {
        self.all().retain(|(held, ..)| held != channel);
    }

    /// All of them are lost.
    fn all_lost(&self) {
        for (_, _, lost) in self.all().drain(..) {
            lost.cancel();
        }
    }

    fn lost(&self, channel: &Channel) {
        for (_, _, lost) in self.all().iter().filter(|(held, ..)| held == channel) {
            lost.cancel();
        }
        self.forget(channel);
    }

    fn all(&self) -> MutexGuard<'_, Vec<HeldLease>> {
        self.0.lock().expect("no code panics with this lock held")
    }
}

#[derive(Debug)]
pub(super) struct Client {
    request: Request<()>,
    jobs: mpsc::Receiver<Job>,
    calls: WaitingCalls,
    leases: RelayLeases,
    /// Frames that go before the calls: leases and what is followed.
    first: VecDeque<String>,
    /// RelayLeases that are being taken back, by the id of the call.
    restoring: HashMap<u64, Channel>,
    /// Whose commands are followed, and where to go on after the next reconnect.
    followed: HashMap<Channel, Since>,
    requests: Arc<FollowRequests>,
    updates: mpsc::Sender<Update>,
    is_up: bool,
    /// The relay refuses the agent, and says why.
    refused: Option<String>,
    heard_at: Instant,
    waiting: Vec<oneshot::Sender<Result<(), LinkError>>>,
}

/// How a connection ended.
enum Ended {
    /// The agent has ended.
    Unwanted,
    Lost(String),
}

impl Client {
    pub(super) fn start(
        url: &str,
        agent: &str,
        token: Option<&str>,
        jobs: mpsc::Receiver<Job>,
        leases: RelayLeases,
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
            calls: WaitingCalls::default(),
            leases,
            first: VecDeque::new(),
            restoring: HashMap::new(),
            followed: HashMap::new(),
            requests,
            updates,
            is_up: false,
            refused: None,
            heard_at: Instant::now(),
            waiting: Vec::new(),
        };
        tokio::spawn(client.run());
        Ok(())
    }

    async fn run(mut self) {
        let requests = Arc::clone(&self.requests);
        let mut attempts = 0_u32;
        loop {
            let most = if self.refused.is_some() { REFUSED_BACKOFF_MAX } else { BACKOFF_MAX };
            let longest = most.min(Duration::from_millis(25) * 2_u32.pow(attempts.min(10)));
            let pause = longest.mul_f64(rand::rng().random());
            let pause = if attempts == 0 { Duration::ZERO } else { pause };
            let mut connecting = Box::pin(connect(self.request.clone(), pause));
            let mut tick = interval(TICK);
            let connected = loop {
                tokio::select! {
                    connected = &mut connecting => break connected,
                    job = self.jobs.recv(), if self.calls.has_room() => match job {
                        Some(job) => self.accept(job),
                        None => return,
                    },
                    request = requests.next() => self.on_request(request),
                    _ = tick.tick() => drop(self.calls.given_up()),
                }
            };
            attempts += 1;
            match connected {
                Ok(socket) => {
                    let began = Instant::now();
                    self.refused = None;
                    let Ended::Lost(why) = self.serve(socket).await else { return };
                    // One that ends at once is no better than none.
                    if began.elapsed() > BACKOFF_MAX {
                        attempts = 0;
                    }
                    tracing::warn!(why, "relay connection lost; calls without a reply are kept");
                    self.calls.begin_anew();
                    self.say_link(false).await;
                }
                Err(error) => self.on_no_connection(error),
            }
        }
    }

    /// An outage is waited out. A refusal is everybody's answer, at once.
    fn on_no_connection(&mut self, error: LinkError) {
        if let LinkError::Refused(why) = &error {
            if self.refused.replace(why.clone()).is_none() {
                tracing::warn!(why, "the relay refuses the agent");
            }
            self.calls.refuse_all(why);
            if self.heard_at.elapsed() > LEASE_DEFAULT {
                self.leases.all_lost();
            }
        } else {
            tracing::debug!(%error, "the relay cannot be reached; waiting calls are kept");
        }
        for waiting in self.waiting.drain(..) {
            drop(waiting.send(Err(error.clone())));
        }
    }

    /// Serves one connection to its end.
    async fn serve(&mut self, socket: Socket) -> Ended {
        let (sink, mut stream) = socket.split();
        let (frames, to_write) = mpsc::channel(WRITE_QUEUE);
        let requests = Arc::clone(&self.requests);
        // Beside the reading: a relay that does not read must still be heard.
        let writer = AbortOnDropHandle::new(tokio::spawn(write(sink, to_write)));
        let mut tick = interval(TICK);
        self.heard_at = Instant::now();
        let ended = loop {
            let may_write = self.is_up && (!self.first.is_empty() || self.calls.has_unsent());
            tokio::select! {
                heard = next(&mut stream) => {
                    self.heard_at = Instant::now();
                    let heard = match heard {
                        Ok(heard) => heard,
                        Err(why) => break Ended::Lost(why),
                    };
                    if let Some(message) = heard
                        && let Err(why) = self.on_message(message).await
                    {
                        break Ended::Lost(why);
                    }
                }
                () = sleep_until(self.heard_at + SILENCE_MAX) => {
                    break Ended::Lost("nothing was heard of it".to_owned());
                }
                slot = frames.reserve(), if may_write => {
                    let Ok(slot) = slot else { break Ended::Lost("it cannot be written to".to_owned()) };
                    if let Some(text) = self.first.pop_front().or_else(|| self.calls.next_to_send()) {
                        slot.send(text);
                    }
                }
                job = self.jobs.recv(), if self.calls.has_room() => match job {
                    Some(job) => self.accept(job),
                    None => break Ended::Unwanted,
                },
                request = requests.next() => self.on_request(request),
                _ = tick.tick() => self.withdraw(),
            }
        };
        self.is_up = false;
        self.first.clear();
        drop(frames);
        if matches!(ended, Ended::Unwanted) {
            // Give what was said last the time to go out.
            drop(timeout(CONNECT_TIMEOUT, writer).await);
        }
        ended
    }

    /// What must be said first on a new connection: the agent's own lease, the others, what is followed.
    fn restore(&mut self) {
        self.is_up = true;
        self.restoring.clear();
        let leases = self.leases.all().clone();
        for (channel, incarnation, _) in leases {
            let call = LeaseCall { incarnation: Some(incarnation), parent: None };
            let id = self.say_first(&channel, CallBody::Lease(call));
            self.restoring.insert(id, channel);
        }
        for (channel, since) in self.followed.clone() {
            self.say_first(&channel, CallBody::Follow(since));
        }
    }

    /// Before every call that waits.
    fn say_first(&mut self, channel: &Channel, body: CallBody) -> u64 {
        let call = AgentCall { id: self.calls.next_id(), channel: channel.clone(), body };
        self.first.push_back(call.to_text());
        call.id
    }

    fn accept(&mut self, job: Job) {
        match job {
            Job::Call { channel, body, reply, room } => match &self.refused {
                Some(why) => drop(reply.send(Err(LinkError::Refused(why.clone())))),
                None => self.calls.add(channel, body, reply, room),
            },
            Job::Ready(answer) if self.is_up => drop(answer.send(Ok(()))),
            Job::Ready(answer) => match &self.refused {
                Some(why) => drop(answer.send(Err(LinkError::Refused(why.clone())))),
                None => self.waiting.push(answer),
            },
        }
    }

    fn on_request(&mut self, request: FollowRequest) {
        match request {
            FollowRequest::Follow(channel, since) => {
                self.followed.insert(channel.clone(), since);
                if self.is_up {
                    self.say_first(&channel, CallBody::Follow(since));
                }
            }
            FollowRequest::Unfollow(channel) => {
                if self.followed.remove(&channel).is_some() && self.is_up {
                    self.say_first(&channel, CallBody::Unfollow);
                }
            }
        }
    }

    /// Takes back what was sent for callers who wait no more.
    fn withdraw(&mut self) {
        for (call, channel) in self.calls.given_up() {
            self.say_first(&channel, CallBody::Withdraw(WithdrawCall { call }));
        }
    }

    /// An error says why this connection is of no use.
    async fn on_message(&mut self, message: AgentMessage) -> Result<(), String> {
        match message {
            AgentMessage::Connected => {
                self.restore();
                self.say_link(true).await;
            }
            AgentMessage::Reconnect => return Err("the replica goes down".to_owned()),
            AgentMessage::Ack { id, .. } | AgentMessage::Error { id: Some(id), .. } => {
                self.on_reply(id, message)?;
            }
            AgentMessage::Error { id: None, error } => {
                tracing::warn!(code = &*error.code, error.message, "the relay refuses a frame");
            }
            AgentMessage::Fenced { channel } => self.leases.lost(&channel),
            AgentMessage::Live { channel, offset } => {
                let name = Name::commands(channel);
                drop(self.updates.send(Update::Live { name, head: offset }).await);
            }
            AgentMessage::Reset { channel } => {
                self.followed.insert(channel.clone(), Since::Start);
                let (name, reason) = (Name::commands(channel), Reason::HistoryChanged);
                drop(self.updates.send(Update::Reset { name, reason, head: None }).await);
            }
            AgentMessage::Command { channel, offset, name, time_us, data } => {
                let Some(since) = self.followed.get_mut(&channel) else { return Ok(()) };
                *since = Since::Offset(offset);
                let entry = Entry { offset, time_us, name, data: data.get().into() };
                let (name, entries) = (Name::commands(channel), vec![Arc::new(entry)]);
                drop(self.updates.send(Update::Entries { name, entries }).await);
            }
        }
        Ok(())
    }

    fn on_reply(&mut self, id: u64, message: AgentMessage) -> Result<(), String> {
        let restoring = self.restoring.remove(&id);
        match (restoring, &message) {
            (Some(channel), AgentMessage::Error { error, .. }) => match LinkError::of(error) {
                // Without it everything that follows would fail: come back, and say all of it again.
                LinkError::Unavailable(why) => Err(why.to_string()),
                why => {
                    tracing::warn!(%channel, %why, "a lease is lost");
                    self.leases.lost(&channel);
                    Ok(())
                }
            },
            (Some(_), _) => Ok(()),
            (None, _) => {
                if let Some(unwanted) = self.calls.on_reply(id, message) {
                    // Its caller has given up waiting for it.
                    self.say_first(&unwanted, CallBody::Release);
                }
                Ok(())
            }
        }
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
async fn next(stream: &mut SplitStream<Socket>) -> Result<Option<AgentMessage>, String> {
    match stream.next().await {
        None => Err("the relay closed it".to_owned()),
        Some(Err(error)) => Err(error.to_string()),
        Some(Ok(Message::Text(text))) => match AgentMessage::parse(&text) {
            Ok(message) => Ok(message),
            Err(error) => {
                tracing::warn!(error, "a frame of the relay cannot be read");
                Ok(None)
            }
        },
        Some(Ok(Message::Close(Some(frame)))) => {
            Err(format!("the relay closed it: {} {}", u16::from(frame.code), frame.reason))
        }
        Some(Ok(_)) => Ok(None),
    }
}

async fn write(mut sink: SplitSink<Socket, Message>, mut frames: mpsc::Receiver<String>) {
    while let Some(text) = frames.recv().await {
        if sink.feed(Message::text(text)).await.is_err() {
            return;
        }
        if frames.is_empty() && sink.flush().await.is_err() {
            return;
        }
    }
    // The reading end notices a connection that is broken.
    sink.close().await.ok();
}
