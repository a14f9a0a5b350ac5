//! The cluster: one Redis, some replicas in front of it.

use std::time::Duration;

use publisher_sdk::{Agent, AgentOptions};

use crate::chaos::Chaos;
use crate::endpoint::Endpoint;
use crate::redis::as_user;
use crate::replica::Setup;
use crate::token::{SECRET, Token};
use crate::{Persistence, Redis, Replica};

/// A Redis and its replicas; everything ends with it.
#[derive(Debug)]
pub struct Cluster {
    /// The replicas.
    pub replicas: Vec<Replica>,
    chaos: Option<Chaos>,
    /// The Redis.
    pub redis: Redis,
    options: Options,
    // For the secret's file.
    dir: tempfile::TempDir,
}

/// How a cluster is to be set.
#[derive(Clone, Debug)]
pub struct Options {
    replicas: usize,
    persistence: Persistence,
    has_chaos: bool,
    has_secret: bool,
    has_redis: bool,
    lease: Duration,
    flags: Vec<String>,
}

impl Cluster {
    /// The usual cluster: a Redis that keeps nothing on disk, open replicas.
    pub async fn with_replicas(replicas: usize) -> Self {
        Self::options().replicas(replicas).set().await
    }

    /// A cluster of two replicas, with what the options say.
    pub fn options() -> Options {
        Options {
            replicas: 2,
            persistence: Persistence::None,
            has_chaos: false,
            has_secret: false,
            has_redis: true,
            lease: Duration::from_secs(15),
            flags: Vec::new(),
        }
    }

    /// A browser that is about to connect to the first replica.
    pub fn browser(&self) -> Endpoint {
        self.browser_on(0)
    }

    /// A browser that is about to connect to a replica.
    pub fn browser_on(&self, replica: usize) -> Endpoint {
        Endpoint::of(&self.replicas[replica])
    }

    /// An agent, written with the SDK, that speaks to the cluster's Redis.
    ///
    /// # Panics
    /// When it cannot connect.
    pub async fn agent(&self, id: &str) -> Agent {
        let url = self.redis.url_of("agent");
        self.agent_options(id).connect(&url).await.expect("the agent connects")
    }

    /// What such an agent is made with.
    pub fn agent_options(&self, id: &str) -> AgentOptions {
        Agent::options().id(id).lease(self.options.lease)
    }

    /// How long leases last.
    pub fn lease(&self) -> Duration {
        self.options.lease
    }

    /// The proxy between the first replica and Redis, on a cluster that was set `with_chaos`.
    ///
    /// # Panics
    /// On any other.
    pub fn chaos(&self) -> &Chaos {
        self.chaos.as_ref().expect("the cluster was set `with_chaos`")
    }

    /// Starts one more replica and, where Redis is there, waits until it is ready.
    pub async fn add_replica(&mut self) {
        let replica = Replica::start(self.setup()).await;
        if self.options.has_redis {
            replica.ready().await;
        }
        self.replicas.push(replica);
    }

    /// The flag that tells how long leases last.
    pub fn lease_flag(&self) -> [String; 2] {
        ["--lease".to_owned(), format!("{}ms", self.options.lease.as_millis())]
    }

    /// How a further replica would be started.
    pub fn setup(&self) -> Setup {
        let through_chaos = self.chaos.as_ref().filter(|_| self.replicas.is_empty());
        let url = through_chaos.map_or_else(|| self.redis.url(), Chaos::url);
        // With the least rights, so that each scenario shows that they are enough.
        let mut setup = Setup::serve(Some(as_user(&url, "relay")));
        setup.flags.clone_from(&self.options.flags);
        setup.flags.extend(self.lease_flag());
        if self.options.has_secret {
            let file = self.dir.path().join("secret");
            std::fs::write(&file, SECRET).expect("writes the secret");
            setup.flags.extend(["--jwt-secret-file".to_owned(), file.display().to_string()]);
            setup.bearer = Some(Token::of_the_operator().sign());
        }
        setup
    }
}

impl Options {
    /// With so many replicas.
    #[must_use]
    pub fn replicas(self, replicas: usize) -> Self {
        Self { replicas, ..self }
    }

    /// With a Redis that keeps this on disk.
    #[must_use]
    pub fn persistence(self, persistence: Persistence) -> Self {
        Self { persistence, ..self }
    }

    /// With a proxy between the first replica and Redis.
    #[must_use]
    pub fn with_chaos(self) -> Self {
        Self { has_chaos: true, ..self }
    }

    /// With replicas that want tokens.
    #[must_use]
    pub fn with_secret(self) -> Self {
        Self { has_secret: true, ..self }
    }

    /// With a Redis that is not there yet.
    #[must_use]
    pub fn before_redis(self) -> Self {
        Self { has_redis: false, ..self }
    }

    /// With leases of three seconds: long enough for an agent on a busy machine to renew its own.
    #[must_use]
    pub fn short_leases(self) -> Self {
        Self { lease: Duration::from_secs(3), ..self }
    }

    /// With leases of a minute: a busy machine takes long to take back thousands of them.
    #[must_use]
    pub fn long_leases(self) -> Self {
        Self { lease: Duration::from_secs(60), ..self }
    }

    /// With a further flag for each replica.
    #[must_use]
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// Sets the cluster.
    pub async fn set(self) -> Cluster {
        let redis = if self.has_redis {
            Redis::start(self.persistence).await
        } else {
            Redis::absent(self.persistence)
        };
        let chaos =
            if self.has_chaos { Some(Chaos::in_front_of(redis.address()).await) } else { None };
        let dir = tempfile::TempDir::new().expect("a temporary directory");
        let replicas = Vec::new();
        let count = self.replicas;
        let mut cluster = Cluster { replicas, chaos, redis, options: self, dir };
        for _ in 0..count {
            cluster.add_replica().await;
        }
        cluster
    }
}
