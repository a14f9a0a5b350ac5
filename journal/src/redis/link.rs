//! The live link: a pub/sub connection of its own, read by its owner's task, remade for ever.
//!
//! [`follow`](crate::follow) polls it; [`socket`](super::socket) connects it, [`resp`](super::resp) reads it.
//!
//! Pub/sub never shares a connection with commands, and nothing is queued between the socket and the owner: an owner that
//! stands still does not read, and Redis cuts the link at its output limit, which is healed like any other break. The link
//! *probes*: after a failover a link can look healthy and receive nothing, so a silent link must receive its own
//! probe within seconds, or it is cut. Time in which its owner did not look is not held against it.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use deadpool_redis::Pool;
use redis::{AsyncCommands, ConnectionInfo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::keys::Keys;
use super::resp::{self, Push};
use super::socket::{self, Socket};
use super::wire;
use crate::backoff::Backoff;
use crate::link::{FollowId, Signal};
use crate::{Name, Side};

/// How long connecting, or confirming a batch of subscriptions, may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A link that received nothing for this long sends itself a probe…
const PROBE_AFTER: Duration = Duration::from_secs(2);
/// …and is cut if it has not received it this much later.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Found so late, a deadline passed because the owner did not look: it is set anew.
const LATE: Duration = Duration::from_millis(500);
/// How many journals are followed with one command.
const FOLLOW_BATCH: usize = 500;

/// One follower's link.
pub(crate) struct RedisLink {
    info: ConnectionInfo,
    keys: Keys,
    pool: Pool,
    address: Box<str>,
    phase: Phase,
    followed: Notifications,
    backoff: Backoff,
    /// Failed attempts since it stood last.
    failures: u64,
    was_away: bool,
}

#[derive(Debug)]
enum Phase {
    New,
    Connecting(AbortOnDropHandle<Result<Socket, String>>),
    Up(Box<StandingLink>),
    Pausing(Pin<Box<Sleep>>),
}

/// What comes in, by the name under which it is published.
#[derive(Debug)]
struct Notifications {
    /// Where the link receives its probes, and where it can be notified.
    probe: String,
    ids: HashMap<Box<[u8]>, (FollowId, Side)>,
}

/// A connection that stands.
#[derive(Debug)]
struct StandingLink {
    socket: Socket,
    since: Instant,
    /// What is to be asked, in order.
    asks: VecDeque<Ask>,
    /// What was asked, and is not confirmed yet.
    asked: Option<Unconfirmed>,
    /// What is to be written.
    output: Vec<u8>,
    written: usize,
    /// When something was read last, and when a message was among it.
    read: Instant,
    heard: Instant,
    probed: Option<Instant>,
    /// At the next deadline, or before.
    timer: Pin<Box<Sleep>>,
}

#[derive(Debug)]
enum Ask {
    Follow(Vec<(FollowId, Box<[u8]>)>),
    Unfollow(Vec<Box<[u8]>>),
}

#[derive(Debug)]
struct Unconfirmed {
    /// So many confirmations are still to come.
    left: usize,
    follows: Vec<FollowId>,
    since: Instant,
}

impl RedisLink {
    pub(super) fn new(info: ConnectionInfo, keys: Keys, pool: Pool) -> Self {
        let address: Box<str> = Uuid::new_v4().simple().to_string().into();
        let followed = Notifications { probe: keys.probe(&address), ids: HashMap::new() };
        let (backoff, phase) = (Backoff::default(), Phase::New);
        Self { info, keys, pool, address, phase, followed, backoff, failures: 0, was_away: false }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn follow(&mut self, names: Vec<(FollowId, Name)>) {
        let Phase::Up(standing) = &mut self.phase else { return };
        for (id, name) in names {
            let notification: Box<[u8]> = self.keys.notification(&name).into_bytes().into();
            self.followed.ids.insert(notification.clone(), (id, name.side));
            match standing.asks.back_mut() {
                Some(Ask::Follow(batch)) if batch.len() < FOLLOW_BATCH => {
                    batch.push((id, notification));
                }
                _ => standing.asks.push_back(Ask::Follow(vec![(id, notification)])),
            }
        }
    }

    pub(crate) fn unfollow(&mut self, name: &Name) {
        let Phase::Up(standing) = &mut self.phase else { return };
        let notification = self.keys.notification(name).into_bytes();
        let Some((notification, _)) = self.followed.ids.remove_entry(&*notification) else {
            return;
        };
        match standing.asks.back_mut() {
            Some(Ask::Unfollow(batch)) if batch.len() < FOLLOW_BATCH => batch.push(notification),
            _ => standing.asks.push_back(Ask::Unfollow(vec![notification])),
        }
    }

    pub(crate) fn poll_signal(&mut self, cx: &mut Context<'_>) -> Poll<Signal> {
        loop {
            match &mut self.phase {
                Phase::New => self.connect(),
                Phase::Connecting(connecting) => match ready!(Pin::new(connecting).poll(cx)) {
                    Ok(Ok(socket)) => return Poll::Ready(self.stands(socket)),
                    Ok(Err(reason)) => self.not_connected(&reason),
                    Err(error) => self.not_connected(&error.to_string()),
                },
                Phase::Up(standing) => {
                    match ready!(standing.poll_signal(cx, &self.followed, &self.pool)) {
                        Ok(signal) => return Poll::Ready(signal),
                        Err(reason) => return Poll::Ready(self.broke(&reason)),
                    }
                }
                Phase::Pausing(pause) => {
                    ready!(pause.as_mut().poll(cx));
                    self.connect();
                }
            }
        }
    }

    /// In a task, since a handshake has deadlines, and reading certificates takes its time.
    fn connect(&mut self) {
        let (info, probe) = (self.info.clone(), self.followed.probe.clone());
        self.phase = Phase::Connecting(AbortOnDropHandle::new(tokio::spawn(async move {
            let connecting = timeout(ANSWER_TIMEOUT, socket::connect(&info, &probe)).await;
            connecting.unwrap_or_else(|_| Err("no answer".to_owned()))
        })));
    }

    fn stands(&mut self, socket: Socket) -> Signal {
        if self.was_away {
            let (address, failures) = (self.info.addr(), self.failures);
            tracing::warn!(%address, failures, "redis follow link up again");
        }
        self.phase = Phase::Up(Box::new(StandingLink::new(socket)));
        Signal::Up
    }

    fn not_connected(&mut self, reason: &str) {
        if self.failures == 0 {
            let address = self.info.addr();
            tracing::warn!(%address, reason, "redis cannot be reached for following");
        }
        (self.failures, self.was_away) = (self.failures + 1, true);
        self.pause();
    }

    fn broke(&mut self, reason: &str) -> Signal {
        tracing::warn!(address = %self.info.addr(), reason, "redis follow link down");
        (self.failures, self.was_away) = (0, true);
        // A link that breaks at once does not show that all is well.
        if matches!(&self.phase, Phase::Up(up) if up.since.elapsed() > ANSWER_TIMEOUT) {
            self.backoff.reset();
        }
        // What was followed is followed anew once it is up.
        self.followed.ids = HashMap::new();
        self.pause();
        Signal::Down
    }

    fn pause(&mut self) {
        self.phase = Phase::Pausing(Box::pin(tokio::time::sleep(self.backoff.next())));
    }
}

impl std::fmt::Debug for RedisLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The way to Redis holds a password.
        f.debug_struct("RedisLink").field("address", &self.address).finish_non_exhaustive()
    }
}

impl StandingLink {
    fn new(socket: Socket) -> Self {
        let now = Instant::now();
        let timer = Box::pin(tokio::time::sleep_until(now + PROBE_AFTER));
        let (asks, output) = (VecDeque::new(), Vec::new());
        Self {
            socket,
            since: now,
            asks,
            asked: None,
            output,
            written: 0,
            read: now,
            heard: now,
            probed: None,
            timer,
        }
    }

    /// The next signal, or why the link must be made anew. Deadlines are looked at last, when all that came in was read.
    fn poll_signal(
        &mut self,
        cx: &mut Context<'_>,
        followed: &Notifications,
        pool: &Pool,
    ) -> Poll<Result<Signal, String>> {
        loop {
            match self.take(followed) {
                Ok(Some(signal)) => return Poll::Ready(Ok(signal)),
                Ok(None) => {}
                Err(reason) => return Poll::Ready(Err(reason)),
            }
            self.ask();
            match self.poll_write(cx).and_then(|()| self.poll_read(cx)) {
                Ok(Poll::Ready(())) => {}
                Ok(Poll::Pending) => match self.poll_deadlines(cx, &followed.probe, pool) {
                    Poll::Ready(reason) => return Poll::Ready(Err(reason)),
                    Poll::Pending => return Poll::Pending,
                },
                Err(reason) => return Poll::Ready(Err(reason)),
            }
        }
    }

    /// Takes what was read, up to the first signal in it.
    fn take(&mut self, followed: &Notifications) -> Result<Option<Signal>, String> {
        while let Some(push) = self.socket.reader.next().map_err(|error| error.to_string())? {
            match push {
                Push::Message { channel, payload } => {
                    (self.heard, self.probed) = (self.read, None);
                    if let Some(signal) = followed.signal(channel, payload) {
                        return Ok(Some(signal));
                    }
                }
                Push::Subscribed(_) | Push::Unsubscribed(_) => {
                    if let Some(signal) = self.confirmed()? {
                        return Ok(Some(signal));
                    }
                }
                Push::Refused(why) => return Err(socket::refused(why)),
                Push::Done => return Err("redis answers what it was not asked".to_owned()),
            }
        }
        Ok(None)
    }

    /// One more subscription is confirmed, or its end.
    fn confirmed(&mut self) -> Result<Option<Signal>, String> {
        let Some(asked) = &mut self.asked else {
            return Err("redis confirms what it was not asked".to_owned());
        };
        asked.left -= 1;
        if asked.left > 0 {
            return Ok(None);
        }
        let follows = std::mem::take(&mut asked.follows);
        self.asked = None;
        Ok((!follows.is_empty()).then_some(Signal::Confirmed(follows)))
    }

    /// Asks the next, once what was asked before is confirmed.
    fn ask(&mut self) {
        if self.asked.is_some() {
            return;
        }
        let (command, names, follows): (&[u8], Vec<Box<[u8]>>, _) = match self.asks.pop_front() {
            None => return,
            Some(Ask::Follow(batch)) => {
                let (ids, names) = batch.into_iter().unzip();
                (b"SUBSCRIBE", names, ids)
            }
            Some(Ask::Unfollow(names)) => (b"UNSUBSCRIBE", names, Vec::new()),
        };
        let parts: Vec<&[u8]> =
            std::iter::once(command).chain(names.iter().map(|name| &**name)).collect();
        resp::command(&mut self.output, parts.into_iter());
        self.asked = Some(Unconfirmed { left: names.len(), follows, since: Instant::now() });
    }

    /// Writes as much as the socket takes.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<(), String> {
        if self.output.is_empty() {
            return Ok(());
        }
        let mut stream = Pin::new(&mut self.socket.stream);
        while self.written < self.output.len() {
            match stream.as_mut().poll_write(cx, &self.output[self.written..]) {
                Poll::Ready(Ok(0)) => return Err("redis closed it".to_owned()),
                Poll::Ready(Ok(bytes)) => self.written += bytes,
                Poll::Ready(Err(error)) => return Err(error.to_string()),
                Poll::Pending => return Ok(()),
            }
        }
        match stream.poll_flush(cx) {
            Poll::Ready(Ok(())) => {
                (self.output, self.written) = (Vec::new(), 0);
                Ok(())
            }
            Poll::Ready(Err(error)) => Err(error.to_string()),
            Poll::Pending => Ok(()),
        }
    }

    /// Reads once.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, String> {
        let mut room = ReadBuf::new(self.socket.reader.room());
        match Pin::new(&mut self.socket.stream).poll_read(cx, &mut room) {
            Poll::Pending => Ok(Poll::Pending),
            Poll::Ready(Err(error)) => Err(error.to_string()),
            Poll::Ready(Ok(())) => match room.filled().len() {
                0 => Err("redis closed it".to_owned()),
                bytes => {
                    self.socket.reader.filled(bytes);
                    self.read = Instant::now();
                    Ok(Poll::Ready(()))
                }
            },
        }
    }

    /// Waits for the next deadline. Ready with the reason where one has passed.
    fn poll_deadlines(&mut self, cx: &mut Context<'_>, to: &str, pool: &Pool) -> Poll<String> {
        loop {
            let probing = self.probed.map_or(self.heard + PROBE_AFTER, |at| at + PROBE_TIMEOUT);
            let asking = self.asked.as_ref().map(|asked| asked.since + ANSWER_TIMEOUT);
            let next = asking.map_or(probing, |asking| asking.min(probing));
            // While messages come in, the deadline moves on and the timer stays.
            if self.timer.deadline() > next {
                self.timer.as_mut().reset(next);
            }
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            if let (Some(asked), Some(deadline)) = (&mut self.asked, asking)
                && deadline <= now
            {
                if now < deadline + LATE {
                    return Poll::Ready("a subscription was not confirmed".to_owned());
                }
                asked.since = now;
            }
            if probing <= now {
                if self.probed.is_some() && now < probing + LATE {
                    return Poll::Ready("it did not receive its own probe".to_owned());
                }
                self.probed = Some(now);
                // Beside the reading: a pool that waits must not keep the link from being read.
                tokio::spawn(probe(pool.clone(), to.to_owned()));
            }
            // What has come up next is looked for anew.
            self.timer.as_mut().reset(now + PROBE_TIMEOUT.min(PROBE_AFTER));
        }
    }
}

impl Notifications {
    /// What a message means; `None` where nobody wants it.
    fn signal(&self, channel: &[u8], payload: Option<&[u8]>) -> Option<Signal> {
        let Some((id, side)) = self.ids.get(channel) else {
            // A probe is empty; a message with a text is for our owner.
            let text = payload.filter(|_| channel == self.probe.as_bytes())?;
            let text = std::str::from_utf8(text).ok().filter(|text| !text.is_empty())?;
            return Some(Signal::Notified(text.into()));
        };
        // A notification that cannot be read is a lost notification: an empty batch has the journal read.
        let entries = payload.and_then(|payload| wire::notification(*side, payload));
        Some(Signal::Entries(*id, entries.unwrap_or_default()))
    }
}

async fn probe(pool: Pool, to: String) {
    if let Ok(mut connection) = pool.get().await {
        // A failed probe is noticed because it does not arrive.
        drop(connection.publish::<_, _, ()>(to, "").await);
    }
}
