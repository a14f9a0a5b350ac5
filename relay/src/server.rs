//! The composition root: builds the parts, binds, serves, drains.
//!
//! The accept loop is our own: `axum::serve` has no timeout for a request's head, so a peer that sends one byte now
//! and then would hold a socket for ever.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use crate::agents::Offers;
use crate::commands::Commands;
use crate::connections::{ConnectionRegistry, ConnectionState};
use crate::events::Events;
use crate::memory::Memory;
use crate::routes::heads::{Exchange, HEAD_BUFFER, Heads, WHEN_FULL};
use crate::routes::traffic::{Counted, HeldBody};
use crate::routes::turns::Turns;
use crate::routes::{self, AppState, Peer};
use crate::supervisor::{Supervisor, TaskFailure};
use crate::users::Users;
use crate::{Config, ConfigError, counts, reaper};

/// The pause after a failed accept: when the process is out of file descriptors, trying at once again
/// would only burn the processor (F23).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Messages for connections that may wait to be handed over.
const MESSAGES: usize = 1024;
/// What a drain may take beyond its spread.
const DRAIN_GRACE: Duration = Duration::from_secs(5);
/// While it drains, a peer that reads nothing of its answer for this long is not waited for.
const DRAIN_STALL: Duration = Duration::from_secs(1);
/// Files that the main listener leaves for everything else: Redis, the admin listener, the page's reload. Where even
/// those are few, half of all.
const FILES_RESERVED: u64 = 64;

/// Why a replica does not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address cannot be listened on.
    #[error("cannot listen on {addr}")]
    Bind {
        /// Which.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// A replica that serves. Dropping it stops at once, its connections too; [`drain`](Self::drain) sends them
/// elsewhere first.
#[derive(Debug)]
pub struct Running {
    addr: SocketAddr,
    admin_addr: Option<SocketAddr>,
    app: Arc<AppState>,
    /// Ends the accepting on the main listener.
    accepting: CancellationToken,
    requests: TaskTracker,
}

/// Starts a replica. Redis need not be there: the replica listens, is live, and becomes ready when Redis
/// is. Must be called within a tokio runtime.
///
/// # Errors
/// [`StartError`] where the configuration is contradictory or an address cannot be listened on.
pub async fn start(config: Config) -> Result<Running, StartError> {
    config.check()?;
    let (listener, addr) = bind(config.listen).await?;
    let admin = match config.admin_listen {
        Some(addr) => Some(bind(addr).await?),
        None => None,
    };
    let supervisor = Supervisor::new();
    let (accepting, requests) = (CancellationToken::new(), TaskTracker::new());
    let (messages, mut for_connections) = mpsc::channel(MESSAGES);
    let memory = Memory::new(config.memory);
    let room = SocketLimits::of(config.open_files);
    let viewers = Arc::new(ConnectionState {
        events: Events::start(&config.journal, config.workers, &memory, &supervisor),
        commands: Commands::start(&config.journal, messages, &supervisor),
        registry: ConnectionRegistry::default(),
        key: config.key.clone(),
        leaving: CancellationToken::new(),
        drain_over: config.drain,
    });
    let app = Arc::new(AppState {
        events: Arc::clone(&viewers.events),
        commands: viewers.commands.clone(),
        offers: Offers::start(&config.journal, &supervisor),
        redis_works: Arc::new(AtomicBool::new(config.journal.is_in_memory())),
        journal: config.journal,
        key: config.key,
        allow_anonymous: config.allow_anonymous,
        origins: config.origins,
        leaving: viewers.leaving.clone(),
        drain_over: config.drain,
        connections: TaskTracker::new(),
        viewers: Arc::clone(&viewers),
        memory: Arc::clone(&memory),
        turns: Turns::new(),
        users: Users::new(room.most),
        supervisor: supervisor.clone(),
    });
    let mut status = app.events.status();
    supervisor.run("connection news", async move {
        let mut is_leaving = false;
        loop {
            tokio::select! {
                Some((number, frame)) = for_connections.recv() => viewers.registry.hand_over(number, frame),
                Ok(()) = status.changed() => viewers.registry.news(),
                () = viewers.leaving.cancelled(), if !is_leaving => {
                    is_leaving = true;
                    viewers.registry.news();
                }
                else => return,
            }
        }
    });
    let journal = app.journal.clone();
    supervisor.run("journal", async move {
        let task = journal.failed().await;
        tracing::error!(task, "a task of the journal has panicked");
    });
    let (journal, works) = (app.journal.clone(), Arc::clone(&app.redis_works));
    supervisor.restart("reaper", move || reaper::run(journal.clone(), Arc::clone(&works)));
    let (journal, events) = (app.journal.clone(), Arc::clone(&app.events));
    let connections = app.connections.clone();
    supervisor.restart("counts", move || {
        counts::report(journal.clone(), Arc::clone(&events), connections.clone())
    });
    supervisor.run("memory", Arc::clone(&memory).keep());
    let routes = routes::main(&app, admin.is_none(), config.page);
    let peers = Peers {
        supervisor: supervisor.clone(),
        accepting: accepting.clone(),
        tasks: requests.clone(),
        memory: Arc::clone(&memory),
        room,
        when_full: routes::full(&app, admin.is_none()),
    };
    supervisor.run("accept loop", accept(listener, routes, peers));
    let mut admin_addr = None;
    if let Some((listener, addr)) = admin {
        admin_addr = Some(addr);
        // Health is asked for until the very end.
        let peers = Peers {
            supervisor: supervisor.clone(),
            accepting: CancellationToken::new(),
            tasks: TaskTracker::new(),
            memory,
            room: SocketLimits::without_bound(),
            when_full: Router::new(),
        };
        supervisor.run("admin accept loop", accept(listener, routes::admin(&app), peers));
    }
    Ok(Running { addr, admin_addr, app, accepting, requests })
}

impl Running {
    /// Where it listens, with the port that the system picked.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where it answers about its health, if not on the main listener.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin_addr
    }

    /// Waits until a task has failed that the replica cannot serve without. It is not ready from then on; what
    /// is left to do is to [drain](Self::drain) it.
    pub async fn failed(&self) -> TaskFailure {
        self.app.supervisor.failed().await
    }

    /// Leaves: accepts no new connections, tells every connection to come back elsewhere, spread over the drain
    /// time, serves each until it has gone or its time is up, and finishes requests under way.
    pub async fn drain(self) {
        self.send_away().await;
    }

    /// Whether all have gone in time.
    async fn send_away(&self) -> bool {
        self.app.leaving.cancel();
        self.accepting.cancel();
        self.app.connections.close();
        self.requests.close();
        let gone = async {
            self.app.connections.wait().await;
            self.requests.wait().await;
        };
        let is_gone = tokio::time::timeout(self.app.drain_over + DRAIN_GRACE, gone).await.is_ok();
        if !is_gone {
            let left = self.app.connections.len();
            tracing::warn!(left, "some connections did not leave in time");
        }
        is_gone
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.app.supervisor.stop();
    }
}

async fn bind(addr: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let bound = async {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        Ok((listener, addr))
    };
    bound.await.map_err(|source| StartError::Bind { addr, source })
}

/// Who has come in through one listener.
#[derive(Clone, Debug)]
struct Peers {
    supervisor: Supervisor,
    /// Cancelled: nobody new, and each request under way is the last of its socket.
    accepting: CancellationToken,
    tasks: TaskTracker,
    memory: Arc<Memory>,
    room: SocketLimits,
    /// What is served where there is no room for more.
    when_full: Router,
}

/// How many sockets may be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SocketLimits {
    /// From here on only health is answered.
    most: usize,
    /// From here on nobody is let in.
    with_health: usize,
}

impl SocketLimits {
    fn of(open_files: Option<u64>) -> Self {
        let Some(files) = open_files else { return Self::without_bound() };
        let reserved = FILES_RESERVED.min(files / 2);
        let (most, with_health) = (files - reserved, files - reserved / 2);
        let sockets = |files| usize::try_from(files).unwrap_or(usize::MAX);
        Self { most: sockets(most), with_health: sockets(with_health) }
    }

    fn without_bound() -> Self {
        Self { most: usize::MAX, with_health: usize::MAX }
    }
}

async fn accept(listener: TcpListener, routes: Router, peers: Peers) {
    loop {
        if peers.memory.sockets() >= peers.room.with_health {
            tokio::select! {
                () = tokio::time::sleep(ACCEPT_PAUSE) => continue,
                () = peers.accepting.cancelled() => break,
            }
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = peers.accepting.cancelled() => break,
        };
        match accepted {
            // A delta waits for no other.
            Ok((socket, _)) if socket.set_nodelay(true).is_err() => {}
            Ok((socket, peer)) => {
                let is_full = peers.memory.sockets() >= peers.room.most;
                let (routes, patience) = match is_full {
                    true => (peers.when_full.clone(), WHEN_FULL),
                    false => (routes.clone(), Duration::MAX),
                };
                // It counts before the next one is accepted.
                let socket = Counted::new(socket, &peers.memory);
                let served = serve(socket, Peer(peer), routes, patience, peers.clone());
                peers.supervisor.serve(&peers.tasks, served);
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    // It accepts no more connections, which is not a failure.
    std::future::pending().await
}

async fn serve(socket: Counted, peer: Peer, routes: Router, patience: Duration, peers: Peers) {
    let Peers { accepting, memory, .. } = peers;
    let traffic = socket.traffic();
    let exchange = Exchange::default();
    let socket = Heads::new(socket, exchange.clone(), patience);
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        let answering = exchange.begin();
        request.extensions_mut().insert(peer);
        let (response, memory) = (routes.clone().call(request), Arc::clone(&memory));
        async move {
            let response = response.await.map(|response| answering.with(response));
            response.map(|response| response.map(|body| HeldBody::new(body, memory)))
        }
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .header_read_timeout(None)
            .max_buf_size(HEAD_BUFFER)
            .serve_connection(TokioIo::new(socket), service)
            .with_upgrades()
    );
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = accepting.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                served = connection => served,
                () = traffic.stands_still(DRAIN_STALL) => return,
            }
        }
    };
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "an HTTP connection has failed");
    }
}

#[cfg(test)]
mod tests;
