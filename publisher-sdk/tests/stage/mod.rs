//! What the promises of the SDK are told with: an agent over a journal in memory, what stands in
//! the journal, and a person who sends commands.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::panic, clippy::unwrap_used, reason = "what goes wrong in a test ends it")]

use std::time::Duration;

use journal::{Journal, Name, NewEntry, Since};
use protocol::Channel;
use publisher_sdk::{Agent, Command, Commands};
use serde_json::{Value, json};

/// The agent `a` over a new journal.
pub(crate) async fn agent() -> (Agent, Journal) {
    let journal = Journal::in_memory();
    let agent = Agent::options().id("a").attach(journal.clone()).await.unwrap();
    (agent, journal)
}

/// What stands on `channel`: names and data.
pub(crate) async fn events(journal: &Journal, channel: &str) -> Vec<(String, Value)> {
    let name = Name::events(channel.parse().unwrap());
    let page = journal.read(&name, Since::Start, 100_000).await.unwrap();
    let read = |entry: &protocol::Entry| {
        (entry.name.to_string(), serde_json::from_str(&entry.data).unwrap())
    };
    page.entries.iter().map(|entry| read(entry)).collect()
}

/// What stands on `channel`, in short: the text of deltas, the name of all else.
pub(crate) async fn said(journal: &Journal, channel: &str) -> Vec<String> {
    let short = |(name, data): (String, Value)| match data["delta"].as_str() {
        Some(text) => text.to_owned(),
        None => name,
    };
    events(journal, channel).await.into_iter().map(short).collect()
}

/// When the events of `channel` were written.
pub(crate) async fn times(journal: &Journal, channel: &str) -> Vec<u64> {
    let name = Name::events(channel.parse().unwrap());
    let page = journal.read(&name, Since::Start, 1_000).await.unwrap();
    page.entries.iter().map(|entry| entry.time_us).collect()
}

/// Waits until `channel` holds an event `name`, and gives its data.
pub(crate) async fn event(journal: &Journal, channel: &str, name: &str) -> Value {
    let waiting = async {
        loop {
            let events = events(journal, channel).await;
            if let Some((_, data)) = events.into_iter().find(|(found, _)| found == name) {
                return data;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    match tokio::time::timeout(Duration::from_secs(5), waiting).await {
        Ok(data) => data,
        Err(_) => panic!("no `{name}` on {channel}, but {:?}", events(journal, channel).await),
    }
}

/// What a relay appends for a command of user `ann`.
pub(crate) async fn command(journal: &Journal, channel: &str, name: &str, id: &str, data: Value) {
    let channel: Channel = channel.parse().unwrap();
    let data = json!({"command_id": id, "by": "ann", "data": data}).to_string();
    journal.append(&Name::commands(channel), vec![NewEntry::new(name, data)]).await.unwrap();
}

/// The next command, which must be there soon.
pub(crate) async fn next(commands: &mut Commands) -> Command {
    let next = tokio::time::timeout(Duration::from_secs(5), commands.next());
    next.await.expect("a command").expect("the agent lives")
}

/// Waits until whoever sends a command to `channel` is told that no agent hears it.
pub(crate) async fn nobody_listens(journal: &Journal, channel: &str) {
    let name = Name::commands(channel.parse().unwrap());
    let waiting = async {
        let probe = || vec![NewEntry::new("probe", "{}")];
        while journal.append(&name, probe()).await.unwrap()[0].listeners > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(5), waiting).await;
    waited.expect("the commands are followed no longer");
}
