//! ▲ Services: workers that answer requests, each request by one of them.
//!
//! [`consumer`](crate::commands) → **service** → a handler → [`report`](crate::commands)
//!
//! A worker takes a request when it has a free permit, so requests go to a worker that has one. A worker that
//! dies before it began leaves the request to the others.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use protocol::{Channel, Kind};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::agent::Inner;
use crate::commands::consumer::Outlet;
use crate::commands::inbox::{Inbox, Membership};
use crate::commands::progress::Progress;
use crate::options::CONNECT_TIMEOUT;
use crate::{Agent, Command, OpenError, PublishError, RequestError};

/// How many requests a worker answers at a time, unless it says otherwise.
const AT_ONCE: usize = 16;

/// Something that somebody asks of a service, and waits for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Request {
    /// What is asked for, `sessions.create` for example.
    pub method: String,
    /// With which arguments: JSON. See [`read`](Self::read).
    pub params: Box<str>,
    /// Who asks: the token's subject. `None` where the relay asks for no tokens.
    pub by: Option<String>,
    /// The request's own id; made again with the same one, it is answered once.
    pub command_id: String,
    progress: Progress,
}

impl Request {
    /// Tells the waiting callers how far the request has come: any JSON, at most 64 KiB. Does not wait. Only the
    /// latest counts: progress that comes faster than the journal takes it is left out, and nothing is kept for
    /// callers that come later.
    ///
    /// # Errors
    /// [`PublishError`] if the data is not JSON, or too large.
    ///
    /// ```
    /// # use publisher_sdk::{Agent, Journal, RequestError};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let agent = Agent::options().attach(Journal::in_memory()).await?;
    /// let handler = async |request: publisher_sdk::Request| {
    ///     for file in 0..7 {
    ///         let progress = serde_json::json!({"done": file, "of": 7});
    ///         request.progress(&progress).map_err(|e| RequestError::new("failed", e.to_string()))?;
    ///     }
    ///     Ok(serde_json::json!("all files are done"))
    /// };
    /// let _files = agent.serve("files", handler).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn progress(&self, data: &impl Serialize) -> Result<(), PublishError> {
        self.progress.say(data)
    }

    /// The arguments as a type.
    ///
    /// # Errors
    /// `bad_request`, ready to be handed on with `?`.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, RequestError> {
        serde_json::from_str(&self.params)
            .map_err(|error| RequestError::new("bad_request", error.to_string()))
    }
}

/// The options of a service. Made by [`Agent::service`].
#[derive(Clone, Debug)]
pub struct ServiceOptions {
    agent: Agent,
    name: String,
    at_once: usize,
    is_idempotent: bool,
}

/// A service that is being served, until this is dropped: then nothing is taken any more, and what was
/// begun is answered.
#[derive(Debug)]
#[must_use = "the service is served until this is dropped"]
pub struct Service {
    pool: Arc<Pool>,
    _membership: Membership,
    _agent: Arc<Inner>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.pool.permits.close();
    }
}

impl Agent {
    /// Serves `service:{name}` with the defaults of [`service`](Self::service).
    ///
    /// # Errors
    /// As [`ServiceOptions::serve`].
    ///
    /// ```
    /// # use publisher_sdk::{Agent, Journal};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let agent = Agent::options().attach(Journal::in_memory()).await?;
    /// use publisher_sdk::RequestError;
    ///
    /// let _sessions = agent
    ///     .serve("sessions", async |request| match request.method.as_str() {
    ///         "sessions.create" => Ok(serde_json::json!({"id": "42"})),
    ///         other => Err(RequestError::new("no_method", format!("unknown method `{other}`"))),
    ///     })
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn serve<F, R>(
        &self,
        name: &str,
        handler: impl Fn(Request) -> F + Send + Sync + 'static,
    ) -> Result<Service, OpenError>
    where
        F: Future<Output = Result<R, RequestError>> + Send + 'static,
        R: Serialize + 'static,
    {
        self.service(name).serve(handler).await
    }

    /// How the service `name` shall be served: how many requests at a time, whether twice does harm.
    pub fn service(&self, name: &str) -> ServiceOptions {
        let (agent, name) = (self.clone(), name.to_owned());
        ServiceOptions { agent, name, at_once: AT_ONCE, is_idempotent: false }
    }
}

impl ServiceOptions {
    /// How many requests are answered at a time, at least 1. Default: 16. More wait for this worker or
    /// another.
    #[must_use]
    pub fn at_once(self, requests: usize) -> Self {
        Self { at_once: requests.clamp(1, Semaphore::MAX_PERMITS), ..self }
    }

    /// Handling a request twice does no harm: if this worker dies while it handles one, another worker handles it
    /// again. Otherwise the answer is then that the worker was lost.
    #[must_use]
    pub fn idempotent(self) -> Self {
        Self { is_idempotent: true, ..self }
    }

    /// Serves: each request goes to one call of `handler` on one of all workers. The reply is carried as it is written:
    /// the order of keys and every digit of a `RawValue`, too. A handler that panics answers `handler_panicked`, and
    /// nothing else is disturbed.
    ///
    /// # Errors
    /// [`OpenError`]; [`AlreadyServed`](OpenError::AlreadyServed) where this agent does.
    pub async fn serve<F, R>(
        self,
        handler: impl Fn(Request) -> F + Send + Sync + 'static,
    ) -> Result<Service, OpenError>
    where
        F: Future<Output = Result<R, RequestError>> + Send + 'static,
        R: Serialize + 'static,
    {
        let channel = Channel::new(Kind::Service, &self.name)?;
        let agent = Arc::clone(self.agent.inner());
        let pool = Arc::new(Pool {
            permits: Arc::new(Semaphore::new(self.at_once)),
            handler: Box::new(move |request| {
                let reply = handler(request);
                Box::pin(async move { written(&reply.await?) })
            }),
            is_idempotent: self.is_idempotent,
            program: Handle::current(),
        });
        let (deadline, outlet) =
            (Instant::now() + CONNECT_TIMEOUT, Outlet::Pool(Arc::clone(&pool)));
        let membership = agent.open(&channel, outlet, deadline).await?;
        Ok(Service { pool, _membership: membership, _agent: agent })
    }
}

type Handler =
    dyn Fn(Request) -> BoxFuture<'static, Result<Box<RawValue>, RequestError>> + Send + Sync;

/// The reply as it goes to the caller.
fn written(reply: &impl Serialize) -> Result<Box<RawValue>, RequestError> {
    to_raw_value(reply).map_err(|error| RequestError::new("bad_reply", error.to_string()))
}

/// The permits of one worker.
pub(crate) struct Pool {
    permits: Arc<Semaphore>,
    handler: Box<Handler>,
    is_idempotent: bool,
    /// The executor on which requests are handled.
    program: Handle,
}

/// A free permit.
pub(crate) struct Worker {
    pool: Arc<Pool>,
    permit: OwnedSemaphorePermit,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("free", &self.permits.available_permits())
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// Waits for a free permit; `None` where nothing is taken any more.
    pub(crate) async fn worker(self: &Arc<Self>) -> Option<Worker> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok()?;
        Some(Worker { pool: Arc::clone(self), permit })
    }
}

impl Worker {
    pub(crate) fn is_idempotent(&self) -> bool {
        self.pool.is_idempotent
    }

    /// Handles a request that was taken; closing the agent waits for it.
    pub(crate) fn work(self, command: Command, inbox: &Inbox) {
        let Some(method) = command.method() else {
            return command.rejected("a service answers requests, and takes no other commands");
        };
        let request = Request {
            method: method.to_owned(),
            params: command.data.clone(),
            by: command.by.clone(),
            command_id: command.command_id.clone(),
            progress: command.progress_handle(),
        };
        let report = command.into_report();
        let program = self.pool.program.clone();
        inbox.in_program(&program, async move {
            // A panic in the call itself, or in the future it gives.
            let handling = AssertUnwindSafe(async { (self.pool.handler)(request).await });
            match handling.catch_unwind().await {
                Ok(Ok(result)) => report.replied(&result),
                Ok(Err(error)) => report.refused(&error),
                Err(_) => report.refused(&RequestError::new(
                    "handler_panicked",
                    "the service's handler panicked over the request",
                )),
            }
            drop(self.permit);
        });
    }
}
