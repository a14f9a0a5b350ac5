//! The composition root: builds the parts, binds, serves, drains. Owns every task.
//!
//! The accept loop is our own: `axum::serve` has no header timeout, so a peer that sends one byte now and
//! then would hold a socket for ever.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use crate::agents::Offers;
use crate::commands::Commands;
use crate::events::Events;
use crate::routes::traffic::Counted;
use crate::routes::{self, AppState};
use crate::{Config, ConfigError, counts, reaper};

/// A request's head must be there within this time (F58).
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A request's head must fit in here; a token has up to 8 KiB.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The pause after a failed accept: when the process is out of file descriptors, trying at once again
/// would only burn the processor (F23).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Messages for connections that may wait to be handed over.
const MESSAGES: usize = 1024;
/// What a drain may take beyond its spread.
const DRAIN_GRACE: Duration = Duration::from_secs(5);

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

/// A replica that serves. Dropping it stops at once; [`drain`](Self::drain) lets nobody fall.
#[derive(Debug)]
pub struct Running {
    addr: SocketAddr,
    admin_addr: Option<SocketAddr>,
    app: Arc<AppState>,
    /// Ends the accept loops and what follows the journals.
    stop: CancellationToken,
    accepting: CancellationToken,
    requests: TaskTracker,
}

/// Starts a replica. Redis need not be there: the replica listens, is live, and becomes ready when Redis
/// is. Must be called within a tokio runtime.
///
/// # Errors
/// [`StartError`] where the configuration or an address is no good.
pub async fn start(config: Config) -> Result<Running, StartError> {
    config.check()?;
    let (listener, addr) = bind(config.listen).await?;
    let admin = match config.admin_listen {
        Some(addr) => Some(bind(addr).await?),
        None => None,
    };
    let stop = CancellationToken::new();
    let accepting = stop.child_token();
    let requests = TaskTracker::new();
    let (messages, mut for_connections) = mpsc::channel(MESSAGES);
    let app = Arc::new(AppState {
        events: Events::start(&config.journal, stop.clone()),
        commands: Commands::start(&config.journal, messages, stop.clone()),
        offers: Offers::start(&config.journal, stop.clone()),
        journal: config.journal,
        key: config.key,
        allow_anonymous: config.allow_anonymous,
        leaving: CancellationToken::new(),
        drain_over: config.drain,
        connections: TaskTracker::new(),
        registry: Arc::default(),
    });
    let registry = Arc::clone(&app.registry);
    tokio::spawn(async move {
        while let Some((number, frame)) = for_connections.recv().await {
            registry.hand_over(number, frame);
        }
    });
    tokio::spawn(reaper::run(app.journal.clone(), stop.clone()));
    tokio::spawn(counts::report(
        app.journal.clone(),
        Arc::clone(&app.events),
        app.connections.clone(),
        stop.clone(),
    ));
    let routes = routes::main(&app, admin.is_none(), config.page);
    tokio::spawn(accept(listener, routes, accepting.clone(), requests.clone()));
    let mut admin_addr = None;
    if let Some((listener, addr)) = admin {
        admin_addr = Some(addr);
        // Health is asked for until the very end.
        tokio::spawn(accept(listener, routes::admin(&app), stop.clone(), TaskTracker::new()));
    }
    Ok(Running { addr, admin_addr, app, stop, accepting, requests })
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

    /// Leaves: accepts nobody new, tells every connection to come back elsewhere, spread over the drain
    /// time, serves each until it has gone or its time is up, and finishes requests under way.
    pub async fn drain(self) {
        self.app.leaving.cancel();
        self.accepting.cancel();
        self.app.connections.close();
        self.requests.close();
        let gone = async {
            self.app.connections.wait().await;
            self.requests.wait().await;
        };
        if tokio::time::timeout(self.app.drain_over + DRAIN_GRACE, gone).await.is_err() {
            tracing::warn!(
                left = self.app.connections.len(),
                "some connections did not leave in time"
            );
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
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

async fn accept(
    listener: TcpListener,
    routes: Router,
    stop: CancellationToken,
    requests: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((socket, _)) => {
                requests.spawn(serve(socket, routes.clone(), stop.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(socket: TcpStream, routes: Router, stop: CancellationToken) {
    // A delta waits for no other.
    if socket.set_nodelay(true).is_err() {
        return;
    }
    let socket = Counted::new(socket);
    let traffic = socket.traffic();
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(Arc::clone(&traffic));
        routes.clone().call(request)
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(socket), service)
            .with_upgrades()
    );
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a peer's connection ended badly");
    }
}
