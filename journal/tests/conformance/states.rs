//! Helpers for the tests of commands, approvals and leases, on both backends.

use std::time::Duration;

use journal::{
    Asks, Command, CommandOutcome, Journal, Lease, Name, NewApproval, NewCommand, Since, Status,
    WaitingClass,
};
use protocol::Channel;
use uuid::Uuid;

pub(crate) fn channel(text: &str) -> Channel {
    text.parse().unwrap()
}

pub(crate) fn command(to: &Channel) -> NewCommand {
    NewCommand {
        channel: to.clone(),
        name: "do_it".into(),
        data: r#"{"a":1}"#.into(),
        command_id: Uuid::new_v4(),
        by: Some("ada".into()),
        sender: "ann".into(),
        class: WaitingClass::Ordinary,
        expires_in: Duration::from_secs(60),
        may_wait: true,
        answer_to: None,
    }
}

/// A question of an agent, which is withdrawn with it.
pub(crate) fn approval(on: &Channel, id: &str) -> NewApproval {
    NewApproval {
        channel: on.clone(),
        request_id: id.into(),
        asks: Asks::Permission,
        question: "{}".into(),
        expires_in: Duration::from_secs(60),
        default: false,
        digest: None,
        durable: false,
    }
}

pub(crate) async fn agent(journal: &Journal, id: &str) -> Lease {
    journal.lease(&Channel::agent(id).unwrap(), id, None, None).await.unwrap()
}

/// Names and data of a channel's events.
pub(crate) async fn told(journal: &Journal, channel: &Channel) -> Vec<(String, serde_json::Value)> {
    let page = journal.read(&Name::events(channel.clone()), Since::Start, 1000).await.unwrap();
    let told = page.entries.iter();
    told.map(|entry| (entry.name.to_string(), serde_json::from_str(&entry.data).unwrap())).collect()
}

pub(crate) async fn statuses(journal: &Journal, channel: &Channel) -> Vec<String> {
    let told = told(journal, channel).await.into_iter();
    told.filter(|(name, _)| name == "command_status")
        .map(|(_, data)| data["status"].as_str().unwrap().to_owned())
        .collect()
}

pub(crate) async fn commands(journal: &Journal, channel: &Channel) -> Vec<Command> {
    let page = journal.read(&Name::commands(channel.clone()), Since::Start, 1000).await.unwrap();
    page.entries.iter().map(|entry| Command::read(channel, entry).unwrap()).collect()
}

pub(crate) fn applied() -> CommandOutcome {
    CommandOutcome { status: Status::Applied, detail: Some(r#""ok""#.into()) }
}
