//! An agent played by hand, on the record itself: it can be slow, misbehave or die at any moment, which the SDK
//! would not let it do.

use std::time::Duration;

use journal::{
    ApprovalAnswer, Asked, Asks, Command, CommandOutcome, Follower, Journal, Lease, Name,
    NewApproval, Parent, Since, Status, Take, Update,
};
use publisher_sdk::Channel;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{Cluster, PATIENCE};

/// An agent that does with its commands what the scenario says. Dropped, it is dead: its leases run out.
#[derive(Debug)]
pub struct Actor {
    journal: Journal,
    follower: Follower,
    /// The first is on its own channel.
    leases: Vec<Lease>,
    commands: mpsc::Receiver<Command>,
}

impl Cluster {
    /// An actor by the name of `id`, alive on `agent:{id}`. A second of the same name takes over.
    ///
    /// # Panics
    /// When Redis does not let it.
    pub async fn actor(&self, id: &str) -> Actor {
        Actor::enter(self, id, None).await
    }

    /// The same, spawned by a run of another.
    pub async fn child(&self, id: &str, agent_id: &str, run_id: &str) -> Actor {
        let parent =
            Parent { agent_id: agent_id.into(), run_id: Some(run_id.into()), session: None };
        Actor::enter(self, id, Some(parent)).await
    }
}

impl Actor {
    async fn enter(cluster: &Cluster, id: &str, parent: Option<Parent>) -> Self {
        let journal = Journal::open(&cluster.redis.url()).expect("the address of a Redis");
        let journal = journal.with_lease(cluster.lease());
        let own = Channel::agent(id).expect("an agent's id");
        let lease = journal.lease(&own, id, None, parent.as_ref()).await.expect("a lease");
        if let Some(parent) = &parent {
            journal.adopt(parent, lease.holder()).await.expect("the parent is told");
        }
        let (follower, mut updates) = journal.follow();
        let (heard, commands) = mpsc::channel(10_000);
        tokio::spawn(async move {
            while let Some(update) = updates.next().await {
                let Update::Entries { name, entries } = update else { continue };
                for entry in entries {
                    let Some(command) = Command::read(&name.channel, &entry) else { continue };
                    if heard.send(command).await.is_err() {
                        return;
                    }
                }
            }
        });
        follower.follow(&Name::commands(own), Some(Since::Start));
        Self { journal, follower, leases: vec![lease], commands }
    }

    /// Also receives the commands of `channel`, or takes requests from it.
    pub async fn opens(mut self, channel: &str) -> Self {
        let channel: Channel = channel.parse().expect("a channel");
        let own = self.leases[0].holder().clone();
        let lease = self.journal.lease(&channel, &own.agent, Some(own.incarnation), None).await;
        self.leases.push(lease.expect("a lease"));
        self.follower.follow(&Name::commands(channel), Some(Since::Start));
        self
    }

    /// The next command, taken or not.
    ///
    /// # Panics
    /// When none comes.
    pub async fn next(&mut self) -> Command {
        let next = tokio::time::timeout(PATIENCE, self.commands.recv()).await;
        next.expect("a command arrives").expect("the record is followed")
    }

    /// Takes the command, whether that is allowed or not: is it now this agent's?
    pub async fn takes(&self, command: &Command) -> bool {
        let key = command.key.expect("a command that is to be taken");
        let holder = self.leases[0].holder();
        let take = self.journal.take(&command.channel, key, holder, false).await;
        take.expect("Redis answers") == Take::Yours
    }

    /// Says that the command is done; whether that is still this agent's to say.
    pub async fn applies(&self, command: &Command, detail: Value) -> bool {
        self.finishes(command, Status::Applied, detail).await
    }

    /// Says that the command is not going to be done.
    pub async fn rejects(&self, command: &Command, detail: Value) -> bool {
        self.finishes(command, Status::Rejected, detail).await
    }

    async fn finishes(&self, command: &Command, status: Status, detail: Value) -> bool {
        let key = command.key.expect("a command that is to be taken");
        let outcome = CommandOutcome { status, detail: Some(detail.to_string().into()) };
        let said =
            self.journal.finish(&command.channel, key, self.leases[0].holder(), &outcome).await;
        said.expect("Redis answers")
    }

    /// Takes the next request and replies to it.
    pub async fn serves(&mut self, reply: Value) -> Command {
        let request = self.next().await;
        assert!(self.takes(&request).await && self.applies(&request, reply).await, "{request:?}");
        request
    }

    /// Asks for a permission, denied where nobody answers in time.
    pub async fn asks(&self, channel: &str, request_id: &str, expires_in: Duration) {
        let asked = self
            .ask(channel, request_id, Asks::Permission, json!({"toolName": "rm"}), expires_in)
            .await;
        assert_eq!(asked, Asked::Pending);
    }

    /// Asks again what [`asks`](Self::asks) asked, and has the answer.
    ///
    /// # Panics
    /// When the question has no answer.
    pub async fn asks_again(&self, channel: &str, request_id: &str) -> ApprovalAnswer {
        match self
            .ask(channel, request_id, Asks::Permission, json!({"toolName": "rm"}), PATIENCE)
            .await
        {
            Asked::Answered(answer) => answer,
            Asked::Pending => panic!("`{request_id}` has no answer"),
        }
    }

    /// Asks whether to go on though the budget is spent.
    pub async fn asks_for_budget(&self, channel: &str, request_id: &str) {
        let asked = self.ask(channel, request_id, Asks::Budget, json!({}), PATIENCE * 10).await;
        assert_eq!(asked, Asked::Pending);
    }

    async fn ask(
        &self,
        channel: &str,
        id: &str,
        asks: Asks,
        question: Value,
        expires_in: Duration,
    ) -> Asked {
        let new = NewApproval {
            channel: channel.parse().expect("a channel"),
            request_id: id.into(),
            asks,
            question: question.to_string().into(),
            expires_in,
            default: false,
            digest: Some("d1".into()),
            durable: true,
        };
        let asked = self.journal.ask(self.leases[0].holder(), &new).await;
        asked.expect("Redis answers")
    }

    /// The answer in a command that carries one.
    ///
    /// # Panics
    /// When it carries none.
    pub fn answer(command: &Command) -> ApprovalAnswer {
        assert_eq!(command.key, None, "an answer needs no taking: {command:?}");
        let data: Value = serde_json::from_str(&command.data).expect("a command's data is JSON");
        serde_json::from_value(data["answer"].clone()).expect("an answer")
    }

    /// Leaves properly.
    pub async fn leaves(self) {
        for lease in self.leases {
            lease.release().await.expect("Redis answers");
        }
    }
}
