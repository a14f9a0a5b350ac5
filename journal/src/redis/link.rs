//! The live link: a pub/sub connection of its own, supervised here, remade for ever.
//!
//! Pub/sub never shares a connection with commands: redis-rs takes an unasked-for unsubscribe push for
//! the answer to a command, and its own reconnecting gives up in silence. So this task connects, follows
//! what is wanted, and *probes*: after a failover a link can look healthy and receive nothing, so a silent
//! link must receive its own probe within seconds, or it is cut.

use std::time::Duration;

use deadpool_redis::Pool;
use futures_util::StreamExt;
use protocol::UNREADABLE;
use redis::aio::{PubSubSink, PubSubStream};
use redis::{AsyncCommands, Client, ConnectionInfo, Msg};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::keys::Keys;
use super::wire;
use crate::Name;
use crate::backoff::Backoff;
use crate::link::{self, Deliver, FarEnd, Link, Request, Signal};

/// How long connecting, or confirming a batch of subscriptions, may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A link that received nothing for this long sends itself a probe…
const PROBE_AFTER: Duration = Duration::from_secs(2);
/// …and is cut if it has not received it this much later.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How many journals are followed with one command.
const FOLLOW_BATCH: usize = 500;

pub(super) fn start(info: ConnectionInfo, keys: Keys, pool: Pool) -> Link {
    let address = Uuid::new_v4().simple().to_string();
    let probe = keys.probe(&address);
    let (link, far_end) = link::new(&address);
    tokio::spawn(Supervisor { info, keys, pool, probe }.run(far_end));
    link
}

struct Supervisor {
    info: ConnectionInfo,
    keys: Keys,
    pool: Pool,
    /// Where this link listens for its probes, and where it can be notified.
    probe: String,
}

impl Supervisor {
    async fn run(self, mut far_end: FarEnd) {
        let address = self.info.addr().to_string();
        let mut backoff = Backoff::default();
        // Failed attempts since it stood last.
        let mut failures = 0_u64;
        let mut was_away = false;
        while !far_end.deliver.is_closed() {
            match self.connect().await {
                Ok((sink, stream)) => {
                    if was_away {
                        tracing::warn!(%address, failures, "redis follow link up again");
                    }
                    let since = Instant::now();
                    // What was asked of the last link is asked again after `Up`.
                    while far_end.requests.try_recv().is_ok() {}
                    far_end.deliver.signal(Signal::Up).await;
                    let reason = tokio::select! {
                        reason = self.ask(sink, &mut far_end.requests, &far_end.deliver) => reason,
                        reason = self.listen(stream, &far_end.deliver) => reason,
                    };
                    if far_end.deliver.is_closed() {
                        return;
                    }
                    tracing::warn!(%address, reason, "redis follow link down");
                    far_end.deliver.signal(Signal::Down).await;
                    (failures, was_away) = (0, true);
                    // A link that breaks at once does not show that all is well.
                    if since.elapsed() > ANSWER_TIMEOUT {
                        backoff.reset();
                    }
                }
                Err(reason) => {
                    if failures == 0 {
                        tracing::warn!(%address, reason, "redis cannot be reached for following");
                    }
                    (failures, was_away) = (failures + 1, true);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next()) => {}
                // While the link is down requests are dropped: they are made again after `Up`.
                () = async { while far_end.requests.recv().await.is_some() {} } => return,
            }
        }
    }

    async fn connect(&self) -> Result<(PubSubSink, PubSubStream), String> {
        let client = Client::open(self.info.clone()).map_err(|error| error.to_string())?;
        let connecting = async {
            let (mut sink, stream) = client.get_async_pubsub().await?.split();
            sink.subscribe(&self.probe).await?;
            Ok((sink, stream))
        };
        match timeout(ANSWER_TIMEOUT, connecting).await {
            Ok(Ok(connected)) => Ok(connected),
            Ok(Err(error)) => Err(redis::RedisError::to_string(&error)),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    /// Follows and unfollows what is asked for, until something fails.
    async fn ask(
        &self,
        mut sink: PubSubSink,
        requests: &mut mpsc::Receiver<Request>,
        deliver: &Deliver,
    ) -> String {
        while let Some(request) = requests.recv().await {
            let asked = match request {
                Request::Follow(names) => self.follow(&mut sink, names, deliver).await,
                Request::Unfollow(name) => {
                    let notification = self.keys.notification(&name);
                    answered(sink.unsubscribe(notification)).await
                }
            };
            if let Err(why) = asked {
                return why;
            }
        }
        "nobody follows any more".to_owned()
    }

    async fn follow(
        &self,
        sink: &mut PubSubSink,
        names: Vec<Name>,
        deliver: &Deliver,
    ) -> Result<(), String> {
        for names in names.chunks(FOLLOW_BATCH) {
            let notifications: Vec<String> =
                names.iter().map(|name| self.keys.notification(name)).collect();
            answered(sink.subscribe(notifications)).await?;
            deliver.signal(Signal::Confirmed(names.to_vec())).await;
        }
        Ok(())
    }

    /// Hands on what comes in, until the link breaks or receives nothing any more.
    async fn listen(&self, mut stream: PubSubStream, deliver: &Deliver) -> String {
        let mut heard = Instant::now();
        let mut probed: Option<Instant> = None;
        loop {
            let deadline = probed.map_or(heard + PROBE_AFTER, |at| at + PROBE_TIMEOUT);
            tokio::select! {
                // Messages first: a busy link needs no probe.
                biased;
                message = stream.next() => match message {
                    None => return "redis closed it".to_owned(),
                    Some(message) => {
                        (heard, probed) = (Instant::now(), None);
                        if !self.deliver(&message, deliver) {
                            return "nobody follows any more".to_owned();
                        }
                    }
                },
                () = tokio::time::sleep_until(deadline) => {
                    if probed.is_some() {
                        return "it did not hear its own probe".to_owned();
                    }
                    probed = Some(Instant::now());
                    // Beside the listening: a pool that waits must not keep the link from being read.
                    tokio::spawn(probe(self.pool.clone(), self.probe.clone()));
                }
            }
        }
    }

    /// False where nobody follows any more.
    fn deliver(&self, message: &Msg, deliver: &Deliver) -> bool {
        if message.get_channel_name() == self.probe {
            // A probe is empty; a message with a text is for our owner.
            if let Ok(text) = message.get_payload::<String>()
                && !text.is_empty()
            {
                deliver.notified(&text);
            }
            return true;
        }
        let Some(name) = self.keys.name(message.get_channel_name()) else { return true };
        let entries =
            wire::notification(name.side, message.get_payload_bytes()).unwrap_or_default();
        // A notification that cannot be read is a lost notification: an empty batch has the journal read. So is one with
        // an unreadable entry: whether such an entry stands there only the journal can tell.
        let is_readable = entries.iter().all(|entry| &*entry.name != UNREADABLE);
        deliver.entries(name, if is_readable { entries } else { Vec::new() })
    }
}

async fn probe(pool: Pool, to: String) {
    if let Ok(mut connection) = pool.get().await {
        // A failed probe is noticed because it does not arrive.
        drop(connection.publish::<_, _, ()>(to, "").await);
    }
}

async fn answered(asked: impl Future<Output = redis::RedisResult<()>>) -> Result<(), String> {
    match timeout(ANSWER_TIMEOUT, asked).await {
        Ok(asked) => asked.map_err(|error| error.to_string()),
        Err(_) => Err("a subscription was not confirmed".to_owned()),
    }
}
