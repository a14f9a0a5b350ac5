//! The ways by which an agent comes in. What stands in the way is real: a `redis-server`, a relay's
//! sockets on loopback.

use journal::Journal;
use publisher_sdk::{Agent, AgentOptions};
use relay::{Config, Running};
use tests::{Persistence, Redis};

/// A way in, and a journal in which is seen what happens there.
#[derive(Debug)]
pub(crate) struct Way {
    /// The record behind it, as a relay sees it.
    pub(crate) journal: Journal,
    /// What an agent connects to; none: it uses the journal of its own process.
    url: Option<String>,
    _relay: Option<Running>,
    _redis: Option<Redis>,
}

impl Way {
    pub(crate) async fn in_process() -> Self {
        Self { journal: Journal::in_memory(), url: None, _relay: None, _redis: None }
    }

    pub(crate) async fn by_redis() -> Self {
        let redis = Redis::start(Persistence::None).await;
        let journal = Journal::open(&redis.url()).unwrap();
        Self { journal, url: Some(redis.url()), _relay: None, _redis: Some(redis) }
    }

    pub(crate) async fn through_a_relay() -> Self {
        let redis = Redis::start(Persistence::None).await;
        let way = Self::through(Journal::open(&redis.url()).unwrap()).await;
        // Not the relay's own: it sees nothing that is not in Redis.
        let journal = Journal::open(&redis.url()).unwrap();
        Self { journal, _redis: Some(redis), ..way }
    }

    pub(crate) async fn through_a_relay_without_redis() -> Self {
        Self::through(Journal::in_memory()).await
    }

    async fn through(journal: Journal) -> Self {
        let listen = "127.0.0.1:0".parse().unwrap();
        let relay = relay::start(Config::new(listen, journal.clone())).await.unwrap();
        let url = Some(format!("http://{}", relay.addr()));
        Self { journal, url, _relay: Some(relay), _redis: None }
    }

    /// Lets an agent in.
    pub(crate) async fn enter(&self, options: AgentOptions) -> Agent {
        match &self.url {
            Some(url) => options.connect(url).await.unwrap(),
            None => options.attach(self.journal.clone()).await.unwrap(),
        }
    }

    /// The agent `a`, and the journal in which it is seen.
    pub(crate) async fn agent(&self) -> (Agent, Journal) {
        (self.enter(Agent::options().id("a")).await, self.journal.clone())
    }
}
