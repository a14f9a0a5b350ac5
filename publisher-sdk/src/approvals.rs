//! ▲ Questions that an agent asks people and waits for: permissions and budgets.
//!
//! [`Publisher`](crate::Publisher) → **approvals** → [`journal`] → a person → [`inbox`](crate::commands)
//! → **approvals**
//!
//! The question is kept on its channel, and the answer beside it, whatever dies in between. Each asking has an id of
//! its own; a workflow that goes on after a restart gives a durable one, and gets the pending question or its answer.

mod asking;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use journal::{Asked, Holder, NewApproval};
use protocol::limits::APPROVAL_WAIT_MAX;
use protocol::{ApprovalAnswer, Asks, Channel};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::agent::Inner;
use crate::commands::consumer::Outlet;
use crate::link::{LinkError, persist, persist_until};
use crate::options::CONNECT_TIMEOUT;
use crate::{AskError, Publisher, Run};
use asking::Asking;

/// How long people have to answer by default.
const EXPIRES_IN: Duration = Duration::from_secs(3_600);
/// How often a pending question is asked again: an answer that was lost on its way, together with
/// the commands of the channel, is found so.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// How long after a question has expired its asker waits for a reaper to resolve it, before it does so
/// itself: perhaps no relay is running.
const GRACE: Duration = Duration::from_secs(5);

/// May the agent do this? Asked with [`Publisher::ask_permission`].
#[derive(Clone, Debug)]
pub struct PermissionRequest {
    tool_name: String,
    command: String,
    description: String,
    tool_use_id: Option<String>,
    common: Common,
}

/// May the agent go on, though its budget is spent? Asked with [`Publisher::ask_budget`].
#[derive(Clone, Debug, Default)]
pub struct BudgetRequest {
    fields: Map<String, Value>,
    common: Common,
}

#[derive(Clone, Debug)]
struct Common {
    durable_id: Option<String>,
    expires_in: Duration,
    default: bool,
    digest: Option<String>,
    /// Is cancelled with the run to which the question belongs.
    run: Option<CancellationToken>,
}

impl Default for Common {
    fn default() -> Self {
        let expires_in = EXPIRES_IN;
        Self { durable_id: None, expires_in, default: false, digest: None, run: None }
    }
}

/// What becomes of a permission request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Permission {
    /// Whether the agent may.
    pub allowed: bool,
    /// The same from now on; the agent has to remember it.
    pub always_allow: bool,
    /// Who decided; `None` where nobody did in time, or nobody has a name.
    pub by: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// Nobody decided in time: this is the default.
    pub timed_out: bool,
}

/// What becomes of a spent budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Budget {
    /// Go on.
    Continue,
    /// Stop; also where nobody answered in time, unless the request says otherwise.
    Stop,
}

macro_rules! common_options {
    ($default:ident, $default_doc:literal) => {
        /// For a workflow that goes on after a restart: under this id the same question, asked again by this
        /// agent, gets what is pending or its answer, for 25 hours after it ended. It stands for all that is asked,
        /// so anything else under it is refused; it is not for the ids that a model gives to its calls. Default:
        /// each asking has an id of its own.
        #[must_use]
        pub fn durable_id(mut self, id: impl Into<String>) -> Self {
            self.common.durable_id = Some(id.into());
            self
        }

        /// How long people have: at most a week. Default: an hour.
        #[must_use]
        pub fn expires_in(mut self, time: Duration) -> Self {
            self.common.expires_in = time.min(APPROVAL_WAIT_MAX);
            self
        }

        #[doc = $default_doc]
        #[must_use]
        pub fn $default(mut self) -> Self {
            self.common.default = true;
            self
        }

        /// The question belongs to `run`: if the run is cancelled, the question ends. It is resolved with a no, with
        /// the reason `the run was cancelled`, and asking ends with
        /// [`AskError::Cancelled`](crate::AskError::Cancelled).
        #[must_use]
        pub fn for_run(mut self, run: &Run) -> Self {
            self.common.run = Some(run.token());
            self
        }

        /// The digest of what is shown: an answer that names another one is refused.
        #[must_use]
        pub fn digest(mut self, digest: impl Into<String>) -> Self {
            self.common.digest = Some(digest.into());
            self
        }
    };
}

impl PermissionRequest {
    /// Whether the agent may use the tool `tool_name` for `command`; `description` says to people
    /// what that does.
    pub fn new(
        tool_name: impl Into<String>,
        command: impl Into<String>,
        description: impl Into<String>,
    ) -> Self {
        let (tool_name, command) = (tool_name.into(), command.into());
        let (description, common) = (description.into(), Common::default());
        Self { tool_name, command, description, tool_use_id: None, common }
    }

    /// The program's own id of the tool call, as pages know it from `tool_start`. It may come again.
    #[must_use]
    pub fn tool_use_id(mut self, id: impl Into<String>) -> Self {
        self.tool_use_id = Some(id.into());
        self
    }

    common_options!(
        allowed_by_default,
        "Where nobody answers in time the agent may. Default: it may not."
    );
}

impl BudgetRequest {
    /// Whether the agent may go on.
    pub fn new() -> Self {
        Self::default()
    }

    /// A field of the event `budget_exhausted`, `tokens_used` for example.
    #[must_use]
    pub fn field(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.fields.insert(name.into(), value.into());
        self
    }

    common_options!(
        continued_by_default,
        "Where nobody answers in time the agent goes on. Default: it stops."
    );
}

impl Publisher {
    /// Asks people whether the agent may, and waits for the first answer or for the default.
    ///
    /// What was said on the channel before is written before the question. While Redis is away this
    /// waits. If the future is dropped, or the agent ends, the question is withdrawn, unless it has a
    /// [durable id](PermissionRequest::durable_id). Asked [within](PermissionRequest::for_run) a run it ends with the run.
    ///
    /// # Errors
    /// [`AskError`].
    ///
    /// ```
    /// # async fn example(session: publisher_sdk::Publisher, run: publisher_sdk::Run) -> Result<(), Box<dyn std::error::Error>> {
    /// use publisher_sdk::{AskError, PermissionRequest};
    ///
    /// let request = PermissionRequest::new("Bash", "rm -r build", "Deletes the build directory");
    /// match session.ask_permission(request.for_run(&run)).await {
    ///     Ok(permission) if permission.allowed => { /* … */ }
    ///     Ok(_denied) => {}
    ///     Err(AskError::Cancelled) => run.stop().await?,
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn ask_permission(&self, ask: PermissionRequest) -> Result<Permission, AskError> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Shown<'a> {
            tool_name: String,
            command: String,
            description: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            tool_use_id: Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            digest: Option<&'a str>,
        }
        let PermissionRequest { tool_name, command, description, tool_use_id, common } = ask;
        let digest = common.digest.as_deref();
        let shown = Shown { tool_name, command, description, tool_use_id, digest };
        let question = serde_json::to_string(&shown).expect("texts serialise");
        let answer = self.ask(Asks::Permission, common, question).await?;
        Ok(Permission {
            allowed: answer.allowed,
            always_allow: answer.always,
            by: answer.by.map(Into::into),
            reason: answer.reason.map(Into::into),
            timed_out: answer.timed_out,
        })
    }

    /// Asks people whether the agent may go on, though its budget is spent:
    /// `agent.own_channel().ask_budget(…)`. Waits as [`ask_permission`](Self::ask_permission) does.
    /// On the agent's own channel, `global:events` is told as well.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask_budget(&self, ask: BudgetRequest) -> Result<Budget, AskError> {
        let BudgetRequest { mut fields, common } = ask;
        fields.insert("agent_id".to_owned(), self.agent().lifecycle.channel.id().into());
        fields.remove("request_id");
        fields.remove("expires_at");
        let question = Value::Object(fields).to_string();
        let answer = self.ask(Asks::Budget, common, question).await?;
        Ok(if answer.allowed { Budget::Continue } else { Budget::Stop })
    }

    /// Boxed: an application's futures stay small.
    fn ask(
        &self,
        asks: Asks,
        common: Common,
        question: String,
    ) -> BoxFuture<'_, Result<ApprovalAnswer, AskError>> {
        self.ask_and_wait(asks, common, question).boxed()
    }

    async fn ask_and_wait(
        &self,
        asks: Asks,
        common: Common,
        question: String,
    ) -> Result<ApprovalAnswer, AskError> {
        let agent = self.agent();
        let Common { durable_id, expires_in, default, digest, run } = common;
        let durable = durable_id.is_some();
        let request_id = durable_id.unwrap_or_else(|| Uuid::new_v4().to_string());
        protocol::check_idempotency_key(&request_id)
            .map_err(|_| AskError::Id(request_id.clone()))?;
        protocol::check_question(&question)?;
        // Answers come as the channel's commands.
        let outlet = Outlet::Queue(Arc::clone(&agent.inbox.queue));
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let _membership = agent.inbox.join(self.channel(), outlet, deadline).await?;
        let mut answers = agent.inbox.approvals.expect(self.channel(), &request_id);
        let approval = NewApproval {
            channel: self.channel().clone(),
            request_id: request_id.into(),
            asks,
            question: question.into(),
            expires_in,
            default,
            digest: digest.map(Into::into),
            durable,
        };
        let mut asking = Asking::new(agent, &approval);
        let answered = agent.answered(approval.clone(), &mut answers.0);
        let fenced = agent.inbox.leases.fenced();
        let run = run.unwrap_or_default();
        let asked = tokio::select! {
            biased;
            () = fenced.cancelled() => Err(AskError::Fenced),
            () = agent.inbox.stopped.cancelled() => Err(AskError::Closed),
            () = run.cancelled() => {
                let command_id = format!("cancelled-{}", approval.request_id).into();
                let no = nobodys(&approval, "the run was cancelled");
                let no = ApprovalAnswer { allowed: false, timed_out: false, command_id, ..no };
                let (agent, fenced) = (Arc::downgrade(agent), fenced.clone());
                self.agent().inbox.in_background(async move {
                    let Some(agent) = agent.upgrade() else { return };
                    let resolving = agent.resolve(&approval, no);
                    let resolving = timeout(approval.expires_in, resolving);
                    drop(fenced.run_until_cancelled(resolving).await);
                });
                Err(AskError::Cancelled)
            }
            answer = answered => answer,
        };
        // It has ended, or ends with the lease.
        asking.waits = false;
        asked
    }
}

impl Inner {
    async fn answered(
        &self,
        approval: NewApproval,
        answers: &mut watch::Receiver<Option<ApprovalAnswer>>,
    ) -> Result<ApprovalAnswer, AskError> {
        // The journal writes the question at once: what waits in the buffer comes first.
        self.lifecycle.buffer.written().await;
        let ends = Instant::now() + approval.expires_in;
        let remaining = || ends.saturating_duration_since(Instant::now());
        let mut is_pending = false;
        while !remaining().is_zero() {
            // From before it is asked: what is lost just after the question was taken counts as well.
            let mut lost = std::pin::pin!(self.inbox.approvals.lost.notified());
            lost.as_mut().enable();
            let asking = persist_until(ends, async || {
                // The question expires at the time that it shows, even if it could only be asked late.
                let approval = NewApproval { expires_in: remaining(), ..approval.clone() };
                let inbox = Arc::clone(&self.inbox);
                let asking = async move { inbox.link.ask(inbox.leases.holder(), &approval).await };
                self.inbox.at_home(asking).await
            });
            match asking.await {
                Ok(Asked::Answered(answer)) => return Ok(answer),
                Ok(Asked::Pending) => is_pending = true,
                Err(LinkError::Conflict(why)) => return Err(AskError::Conflict(why)),
                Err(LinkError::Fenced) => {
                    self.inbox.leases.fenced().cancel();
                    return Err(AskError::Fenced);
                }
                Err(LinkError::Busy) => return Err(AskError::Busy),
                Err(LinkError::Refused(why)) => return Err(AskError::Refused(why)),
                Err(LinkError::Unauthorized(why)) => return Err(AskError::Unauthorized(why)),
                Err(LinkError::Unavailable(_)) => break,
            }
            let patience = ASK_AGAIN.min(remaining() + GRACE);
            tokio::select! {
                answer = told(answers, patience) => if let Some(answer) = answer {
                    return Ok(answer);
                },
                () = lost => {}
            }
        }
        let expired = nobodys(&approval, "nobody answered in time");
        if !is_pending {
            // What stands under its id may be another question.
            return Ok(expired);
        }
        if let Some(answer) = told(answers, GRACE).await {
            return Ok(answer);
        }
        // Nobody has answered, and no reaper has said so: no relay is running.
        Ok(self.resolve(&approval, expired).await)
    }

    /// Resolves the approval, unless somebody was first; the answer that holds.
    async fn resolve(&self, approval: &NewApproval, answer: ApprovalAnswer) -> ApprovalAnswer {
        let resolving = persist(async || {
            let (inbox, approval, answer) =
                (Arc::clone(&self.inbox), approval.clone(), answer.clone());
            let resolving = async move {
                let NewApproval { channel, request_id, asks, .. } = approval;
                inbox.link.resolve(&channel, &request_id, asks, &answer).await
            };
            self.inbox.at_home(resolving).await
        });
        match resolving.await {
            Ok(journal::Resolved::Already(first)) => first,
            // Refused or fenced, this agent cannot resolve it any more: its deadline does.
            Ok(_) | Err(_) => answer,
        }
    }
}

/// What holds where no person has answered.
fn nobodys(approval: &NewApproval, why: &str) -> ApprovalAnswer {
    ApprovalAnswer {
        allowed: approval.default,
        always: false,
        reason: Some(why.into()),
        by: None,
        // The journal's clock says when.
        at: 0,
        timed_out: true,
        command_id: format!("timeout-{}", approval.request_id).into(),
    }
}

async fn told(
    answers: &mut watch::Receiver<Option<ApprovalAnswer>>,
    patience: Duration,
) -> Option<ApprovalAnswer> {
    let answered = timeout(patience, answers.wait_for(Option::is_some)).await;
    answered.ok()?.ok()?.clone()
}

/// The questions that somebody in this process waits for.
#[derive(Debug, Default)]
pub(crate) struct Approvals {
    expected: Arc<Mutex<Expected>>,
    /// Wakes the askers when answers may have been lost.
    lost: Notify,
}

/// By channel and id.
type Expected = HashMap<(Channel, Box<str>), watch::Sender<Option<ApprovalAnswer>>>;

/// One caller that waits for an answer.
struct WaitingAsker(
    watch::Receiver<Option<ApprovalAnswer>>,
    Arc<Mutex<Expected>>,
    (Channel, Box<str>),
);

impl Approvals {
    fn expect(&self, channel: &Channel, request_id: &str) -> WaitingAsker {
        let key = (channel.clone(), request_id.into());
        let answers = lock(&self.expected).entry(key.clone()).or_default().subscribe();
        WaitingAsker(answers, Arc::clone(&self.expected), key)
    }

    /// Answers may have been lost: what waits for one is asked again at once.
    pub(crate) fn ask_again(&self) {
        self.lost.notify_waiters();
    }

    /// An answer has come on the channel.
    pub(crate) fn tell(&self, holder: &Holder, channel: &Channel, told: Told) {
        let Told { request_id, agent_id, answer } = told;
        if agent_id == holder.agent
            && let Some(answers) = lock(&self.expected).get(&(channel.clone(), request_id))
        {
            answers.send_replace(Some(answer));
        }
    }
}

impl Drop for WaitingAsker {
    fn drop(&mut self) {
        let mut expected = lock(&self.1);
        // This one's receiver still counts.
        if expected.get(&self.2).is_some_and(|answers| answers.receiver_count() == 1) {
            expected.remove(&self.2);
        }
    }
}

fn lock(expected: &Mutex<Expected>) -> MutexGuard<'_, Expected> {
    expected.lock().expect("no code panics with this lock held")
}

/// The data of a command that tells an agent the answer to its question.
#[derive(Debug, Deserialize)]
pub(crate) struct Told {
    request_id: Box<str>,
    agent_id: Box<str>,
    answer: ApprovalAnswer,
}

impl Told {
    pub(crate) fn read(command: &journal::Command) -> Option<Self> {
        let names = ["permission_response", "budget_continue", "budget_stop"];
        let may_be = names.contains(&&*command.name);
        may_be.then(|| serde_json::from_str(&command.data).ok()).flatten()
    }
}
