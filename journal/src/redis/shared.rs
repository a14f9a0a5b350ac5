//! One pipelined connection for all short questions: what a state is, and its steps.
//!
//! A pool asks each connection that it hands out whether it still stands, so each question would cost two
//! round trips. Here many callers share one connection; a caller that finds it broken lets go of it, and the next
//! caller makes it anew. Long reads, pages and lists, go through the pool, so that no short question waits behind them.

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Client, Cmd, ErrorKind, Pipeline, RedisFuture, RedisResult, ServerErrorKind, Value};
use tokio::sync::{Mutex, MutexGuard};

use super::{permissions, unavailable};
use crate::Unavailable;

/// After this time without an answer a connection may be dead: what is asked here takes milliseconds.
const SUSPICIOUS: Duration = Duration::from_secs(1);

/// The connection, made when it is first needed.
#[derive(Debug)]
pub(super) struct Shared {
    client: Client,
    /// What its user must be allowed to run.
    needed: Vec<Vec<String>>,
    state: Mutex<SharedState>,
}

#[derive(Debug, Default)]
struct SharedState {
    connection: Option<MultiplexedConnection>,
    /// Counts connections: a late failure of an old one shall not cost us the new one.
    number: u64,
    /// When connecting failed last, and why: a caller that waited for that attempt does not make its own.
    failed: Option<(Instant, Unavailable)>,
}

/// The connection in one caller's hand.
pub(super) struct Lent<'a> {
    shared: &'a Shared,
    number: u64,
    connection: MultiplexedConnection,
}

impl Shared {
    pub(super) fn new(client: Client, needed: Vec<Vec<String>>) -> Self {
        Self { client, needed, state: Mutex::default() }
    }

    pub(super) async fn lend(&self) -> Result<Lent<'_>, Unavailable> {
        let asked = Instant::now();
        let mut state = self.state.lock().await;
        let connection = match &state.connection {
            Some(connection) => connection.clone(),
            None => self.connect(&mut state, asked).await?,
        };
        Ok(Lent { shared: self, number: state.number, connection })
    }

    async fn connect(
        &self,
        state: &mut MutexGuard<'_, SharedState>,
        asked: Instant,
    ) -> Result<MultiplexedConnection, Unavailable> {
        match &state.failed {
            Some((at, why)) if *at > asked => return Err(why.clone()),
            _ => {}
        }
        match self.permitted().await {
            Ok(connection) => {
                state.number += 1;
                state.connection = Some(connection.clone());
                Ok(connection)
            }
            Err(why) => {
                state.failed = Some((Instant::now(), why.clone()));
                Err(why)
            }
        }
    }

    /// A new connection, whose user may run all steps.
    async fn permitted(&self) -> Result<MultiplexedConnection, Unavailable> {
        let config = super::connection_config();
        let connection = self.client.get_multiplexed_async_connection_with_config(&config).await;
        let mut connection = connection.map_err(unavailable)?;
        match permissions::missing(&mut connection, &self.needed).await.map_err(unavailable)? {
            None => Ok(connection),
            Some(why) => Err(Unavailable(why)),
        }
    }
}

/// An answer that is waited for. A caller that leaves before it has come, after so long, gives the connection up:
/// perhaps no other caller waits long enough to find it dead.
struct PendingAnswer<'a> {
    shared: &'a Shared,
    number: u64,
    since: Instant,
    is_answered: bool,
}

impl<'a> PendingAnswer<'a> {
    fn of(lent: &Lent<'a>) -> Self {
        let (shared, number) = (lent.shared, lent.number);
        Self { shared, number, since: Instant::now(), is_answered: false }
    }
}

impl Drop for PendingAnswer<'_> {
    fn drop(&mut self) {
        if !self.is_answered
            && self.since.elapsed() >= SUSPICIOUS
            // Locked: somebody connects, or lets go of it.
            && let Ok(mut state) = self.shared.state.try_lock()
            && state.number == self.number
        {
            state.connection = None;
        }
    }
}

impl Lent<'_> {
    /// Lets go of a connection that has failed, and of one to a server that has been demoted.
    async fn judge<T>(&self, answer: RedisResult<T>) -> RedisResult<T> {
        if let Err(error) = &answer {
            let is_demoted = error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly);
            if is_demoted || error.code().is_none() {
                let mut state = self.shared.state.lock().await;
                if state.number == self.number {
                    state.connection = None;
                }
            }
        }
        answer
    }
}

impl ConnectionLike for Lent<'_> {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        async move {
            let mut asked = PendingAnswer::of(self);
            let answer = self.connection.req_packed_command(cmd).await;
            asked.is_answered = true;
            self.judge(answer.and_then(Value::extract_error)).await
        }
        .boxed()
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        async move {
            let mut asked = PendingAnswer::of(self);
            let answer = self.connection.req_packed_commands(pipeline, offset, count).await;
            asked.is_answered = true;
            let answer =
                answer.and_then(|values| values.into_iter().map(Value::extract_error).collect());
            self.judge(answer).await
        }
        .boxed()
    }

    fn get_db(&self) -> i64 {
        self.connection.get_db()
    }
}
