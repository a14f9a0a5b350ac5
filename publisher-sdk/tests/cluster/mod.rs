//! Helpers for the tests of the SDK's promises: an agent that comes in on some way, the content of the
//! journal, and a person who sends commands.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::panic, clippy::unwrap_used, reason = "what goes wrong in a test ends it")]

mod way;

use std::time::Duration;

use journal::{Journal, Name, NewCommand, Since, Status, WaitingClass};
use protocol::Channel;
use publisher_sdk::{Command, Commands};
use serde_json::{Value, json};
use uuid::Uuid;

pub(crate) use way::Way;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What stands on `channel`: names and data.
pub(crate) async fn events(journal: &Journal, channel: &str) -> Vec<(String, Value)> {
    let name = Name::events(channel.parse().unwrap());
    let read = |entry: &protocol::Entry| {
        (entry.name.to_string(), serde_json::from_str(&entry.data).unwrap())
    };
    let (mut since, mut events) = (Since::Start, Vec::new());
    loop {
        let page = journal.read(&name, since, 100_000).await.unwrap();
        events.extend(page.entries.iter().map(|entry| read(entry)));
        since = page.end().map_or(since, Since::Offset);
        if !page.has_more() {
            return events;
        }
    }
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
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(data) => data,
        Err(_) => panic!("no `{name}` on {channel}, but {:?}", events(journal, channel).await),
    }
}

/// A command of user `ann`, as a relay sends it; it waits a minute for an agent that takes it.
pub(crate) fn new_command(channel: &str, name: &str, data: &Value) -> NewCommand {
    NewCommand {
        channel: channel.parse().unwrap(),
        name: name.into(),
        data: data.to_string().into(),
        command_id: Uuid::new_v4(),
        by: Some("ann".into()),
        // Each has places of its own: how many one sender has is not tested here.
        sender: Uuid::new_v4().to_string().into(),
        class: WaitingClass::Ordinary,
        expires_in: Duration::from_secs(60),
        may_wait: true,
        answer_to: None,
    }
}

/// Sends a command of user `ann`; its id.
pub(crate) async fn command(journal: &Journal, channel: &str, name: &str, data: Value) -> Uuid {
    let command = new_command(channel, name, &data);
    journal.send(&command).await.unwrap();
    command.command_id
}

/// Sends a request of user `ann`; where its answer is found.
pub(crate) async fn request(journal: &Journal, channel: &str, method: &str, params: Value) -> Uuid {
    let data = json!({"method": method, "params": params});
    let mut command = new_command(channel, "request", &data);
    command.answer_to = Some("nobody".into());
    journal.send(&command).await.unwrap().key
}

/// Waits until the command or request `key` is over; what became of it, and the detail.
pub(crate) async fn outcome(journal: &Journal, channel: &str, key: Uuid) -> (Status, Value) {
    let channel: Channel = channel.parse().unwrap();
    let ended = until("the command is over", async || {
        let outcome = journal.outcome(&channel, key).await.unwrap().expect("it is remembered");
        outcome.status.is_final().then_some(outcome)
    });
    let outcome = ended.await;
    let detail =
        outcome.detail.map_or(Value::Null, |detail| serde_json::from_str(&detail).unwrap());
    (outcome.status, detail)
}

/// What was said of the command `id` on `channel` so far: status and detail.
pub(crate) async fn statuses(journal: &Journal, channel: &str, id: Uuid) -> Vec<(String, Value)> {
    let said = events(journal, channel).await.into_iter();
    let said =
        said.filter(|(name, data)| name == "command_status" && data["command_id"] == json!(id));
    said.map(|(_, data)| (data["status"].as_str().unwrap().to_owned(), data["detail"].clone()))
        .collect()
}

/// Waits until the last word of the command `id` is said; all that was said of it.
pub(crate) async fn ended(journal: &Journal, channel: &str, id: Uuid) -> Vec<(String, Value)> {
    until("the command's last word", async || {
        let said = statuses(journal, channel, id).await;
        said.last().is_some_and(|(status, _)| status != "delivered").then_some(said)
    })
    .await
}

/// The next command, which must be there soon.
pub(crate) async fn next(commands: &mut Commands) -> Command {
    let next = tokio::time::timeout(PATIENCE, commands.next());
    next.await.expect("a command").expect("the agent lives")
}

/// Waits until no agent is known to be on `channel`.
pub(crate) async fn nobody_is_on(journal: &Journal, channel: &str) {
    let channel: Channel = channel.parse().unwrap();
    until("the lease is released", async || {
        journal.agents_on(&channel).await.unwrap().is_empty().then_some(())
    })
    .await;
}

/// Probes until the probe yields something.
pub(crate) async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let probing = async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, probing).await.unwrap_or_else(|_| panic!("in vain: {what}"))
}
