//! The demo agent keeps the contract with the page, works at a human pace, and stops when told to.

#![expect(clippy::unwrap_used, reason = "what goes wrong in a test ends it")]

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use journal::{ApprovalAnswer, Asks, Journal, Name, NewCommand, Since, WaitingClass};
use publisher_sdk::Agent;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

struct Show {
    journal: Journal,
    shutdown: CancellationToken,
    agent: JoinHandle<Result<(), demo::DemoError>>,
}

impl Show {
    async fn begin() -> Self {
        let show = Self::begin_alone().await;
        tokio::spawn(say_yes(show.journal.clone(), show.shutdown.clone()));
        show
    }

    /// With nobody there who answers.
    async fn begin_alone() -> Self {
        let journal = Journal::in_memory();
        let agent = Agent::options().id("demo").attach(journal.clone()).await.unwrap();
        let shutdown = CancellationToken::new();
        let running = shutdown.clone();
        let agent = tokio::spawn(async move { demo::run_agent(agent, "demo", running).await });
        Self { journal, shutdown, agent }
    }

    async fn events(&self, channel: &str) -> Vec<(String, Value)> {
        let mut events = Vec::new();
        self.read_on(channel, &mut Since::Start, &mut events).await;
        events
    }

    async fn read_on(&self, channel: &str, since: &mut Since, into: &mut Vec<(String, Value)>) {
        let name = Name::events(channel.parse().unwrap());
        loop {
            let page = self.journal.read(&name, *since, 1_000).await.unwrap();
            into.extend(
                page.entries.iter().map(|entry| {
                    (entry.name.to_string(), serde_json::from_str(&entry.data).unwrap())
                }),
            );
            *since = page.end().map_or(*since, Since::Offset);
            if !page.has_more() {
                return;
            }
        }
    }

    /// Waits until `channel` holds `count` events of this name.
    async fn until(&self, channel: &str, name: &str, count: usize) {
        let (mut since, mut events) = (Since::Start, Vec::new());
        let waiting = async {
            while events.iter().filter(|(found, _)| found == name).count() < count {
                sleep(Duration::from_millis(5)).await;
                self.read_on(channel, &mut since, &mut events).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(300), waiting).await;
        assert!(waited.is_ok(), "{count} × `{name}` on {channel}, but {events:#?}");
    }

    async fn command(&self, channel: &str, name: &str, data: Value) {
        let command = NewCommand {
            channel: channel.parse().unwrap(),
            name: name.into(),
            data: data.to_string().into(),
            command_id: Uuid::from_u128(7),
            by: Some("ann".into()),
            sender: "ann".into(),
            class: WaitingClass::Ordinary,
            expires_in: Duration::from_secs(60),
            may_wait: false,
            answer_to: None,
        };
        self.journal.send(&command).await.unwrap();
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.agent.await.unwrap().unwrap();
    }
}

/// A person who is there and allows whatever is asked.
async fn say_yes(journal: Journal, until: CancellationToken) {
    while !until.is_cancelled() {
        sleep(Duration::from_secs(1)).await;
        for (channel, asks) in [("session:demo", Asks::Permission), ("agent:demo", Asks::Budget)] {
            let channel = channel.parse().unwrap();
            for pending in journal.pending(&channel).await.unwrap().1 {
                let answer = ApprovalAnswer {
                    allowed: true,
                    always: false,
                    reason: None,
                    by: Some("ann".into()),
                    at: 1,
                    timed_out: false,
                    command_id: Uuid::new_v4().to_string().into(),
                };
                journal.resolve(&channel, &pending.request_id, asks, &answer, None).await.unwrap();
            }
        }
    }
}

/// Each run's session events, by its id, in order.
fn runs(session: Vec<(String, Value)>) -> Vec<(String, Vec<(String, Value)>)> {
    let mut runs: Vec<(String, Vec<(String, Value)>)> = Vec::new();
    for (name, data) in session {
        if name == "message.created" {
            runs.push((data["runId"].as_str().unwrap().to_owned(), Vec::new()));
        }
        runs.last_mut().expect("a run begins with what the user asked").1.push((name, data));
    }
    runs
}

#[tokio::test(start_paused = true)]
async fn five_runs_are_told_completely_and_in_a_humans_time() {
    let show = Show::begin().await;
    let mut took = Vec::new();
    for n in 1..=5 {
        show.until("agent:demo", "agent_spawned", n).await;
        let began = Instant::now();
        show.until("session:demo", "complete", n).await;
        took.push(began.elapsed().as_secs_f32());
    }
    show.until("session:demo", "message.created", 6).await;
    let (session, plan) = (show.events("session:demo").await, show.events("plan:demo").await);
    let (agent, global) = (show.events("agent:demo").await, show.events("global:events").await);
    show.end().await;

    assert!(took.iter().all(|seconds| (20.0..=35.0).contains(seconds)), "{took:?}");

    let mut outcomes = BTreeMap::<String, u32>::new();
    let mut interleaved = false;
    for (id, events) in &runs(session)[..5] {
        let (mut turns, mut tools) = (HashMap::<String, String>::new(), Vec::new());
        let mut last_turn = String::new();
        let mut switches = 0;
        assert_eq!(events[0].1["role"], "user");
        for (name, data) in events {
            let text = |field: &str| {
                data[field].as_str().unwrap_or_else(|| panic!("{name}: {data}")).to_owned()
            };
            match name.as_str() {
                "text_delta" => {
                    turns.entry(text("turnId")).or_default().push_str(&text("delta"));
                    switches += u32::from(last_turn != text("turnId"));
                    last_turn = text("turnId");
                }
                "text_complete" => assert_eq!(turns.remove(&text("turnId")), Some(text("text"))),
                "tool_start" => tools.push((text("toolUseId"), text("toolName"))),
                "tool_result" => {
                    assert_eq!(tools.pop(), Some((text("toolUseId"), text("toolName"))));
                    assert!(!text("result").is_empty());
                }
                "complete" => {
                    assert_eq!(text("runId"), *id);
                    *outcomes.entry(text("outcome")).or_default() += 1;
                }
                "permission_request" => assert!(data["request"]["command"].is_string(), "{data}"),
                "permission_resolved" => assert_eq!(data["allowed"], true),
                "message.created" | "error" => assert_eq!(text("runId"), *id),
                other => panic!("{other} is not in the contract"),
            }
        }
        assert!(turns.is_empty() && tools.is_empty(), "everything begun was ended");
        interleaved |= switches > 50;
        assert_eq!(events.last().unwrap().0, "complete");
    }
    assert_eq!(outcomes, BTreeMap::from([("completed".to_owned(), 4), ("failed".to_owned(), 1)]));
    assert!(interleaved, "two writers at the same time");

    let names = |events: &[(String, Value)]| {
        events.iter().fold(BTreeMap::<String, usize>::new(), |mut counts, (name, _)| {
            *counts.entry(name.clone()).or_default() += 1;
            counts
        })
    };
    let plan_names = names(&plan);
    assert_eq!((plan_names["plan_completed"], plan_names["plan_failed"]), (4, 1));
    assert_eq!(plan_names["execution_update"], 6);
    for (_, data) in plan.iter().filter(|(name, _)| name == "execution_update") {
        assert!(data["steps"].as_array().unwrap().iter().all(|step| step["name"].is_string()));
    }
    for name in ["budget_exhausted", "budget_resolved"] {
        assert!(names(&agent).contains_key(name) && names(&global).contains_key(name), "{name}");
    }
    for (name, count) in [("agent_completed", 4), ("agent_failed", 1), ("agent_spawned", 6)] {
        assert_eq!((names(&agent)[name], names(&global)[name]), (count, count), "{name}");
    }
}

/// An agent that runs a command because nobody looked would tell the wrong story.
#[tokio::test(start_paused = true)]
async fn what_nobody_answers_is_denied() {
    let show = Show::begin_alone().await;

    show.until("session:demo", "permission_timeout", 1).await;
    show.until("session:demo", "message.created", 2).await;

    let (_, first) = runs(show.events("session:demo").await).swap_remove(0);
    show.end().await;
    let [(name, answer), (end, complete)] = &first[first.len() - 2..] else { panic!("{first:#?}") };
    assert_eq!(
        (&**name, &**end),
        ("permission_timeout", "complete"),
        "nothing was done: {first:#?}"
    );
    assert_eq!(answer["allowed"], false, "{answer}");
    assert_eq!(complete["outcome"], "cancelled", "{complete}");
}

#[tokio::test(start_paused = true)]
async fn a_cancel_stops_the_run_within_one_token() {
    let show = Show::begin().await;
    show.until("session:demo", "text_delta", 5).await;

    show.command("agent:demo", "cancel_agent", json!({"agent_id": "demo", "reason": "enough"}))
        .await;
    let cancelled = Instant::now();
    show.until("session:demo", "complete", 1).await;
    assert!(cancelled.elapsed() < Duration::from_millis(60), "{:?}", cancelled.elapsed());
    show.until("agent:demo", "agent_cancelled", 1).await;

    let (session, plan) = (show.events("session:demo").await, show.events("plan:demo").await);
    let said = |name: &str| {
        let texts = session.iter().filter(|(found, _)| found == name);
        texts.map(|(_, data)| data[name.trim_start_matches("text_")].clone()).collect::<Vec<_>>()
    };
    let deltas: String = said("text_delta").iter().map(|delta| delta.as_str().unwrap()).collect();
    let (_, complete) = session.iter().find(|(name, _)| name == "text_complete").unwrap();
    assert_eq!(complete["text"], deltas.as_str(), "what was written stays");
    assert_eq!(session.last().unwrap().1["outcome"], "cancelled");
    let statuses: Vec<_> = plan.iter().filter(|(name, _)| name == "step_status").collect();
    assert_eq!(statuses.len(), 1 + 4);
    assert!(statuses[1..].iter().all(|(_, data)| data["status"] == "cancelled"));
    let agent = show.events("agent:demo").await;
    let (_, agent) = agent.iter().find(|(name, _)| name == "agent_cancelled").unwrap();
    assert_eq!((&agent["by"], &agent["reason"]), (&json!("ann"), &json!("user")));

    show.until("session:demo", "message.created", 2).await;
    show.end().await;
}

#[tokio::test(start_paused = true)]
async fn on_shutdown_the_run_is_cancelled_and_everything_is_written() {
    let show = Show::begin().await;
    show.until("session:demo", "tool_start", 1).await;
    let journal = show.journal.clone();

    show.end().await;

    let name = Name::events("global:events".parse().unwrap());
    let page = journal.read(&name, Since::Start, 100).await.unwrap();
    let last: Value = serde_json::from_str(&page.entries.last().unwrap().data).unwrap();
    assert_eq!(&*page.entries.last().unwrap().name, "agent_cancelled");
    assert_eq!(last["reason"], "shutdown");
}

#[tokio::test(start_paused = true)]
async fn a_command_the_agent_does_not_know_is_declined_aloud() {
    let show = Show::begin().await;
    show.until("session:demo", "message.created", 1).await;

    show.command("session:demo", "sing", json!({})).await;
    show.until("session:demo", "command_status", 2).await;

    let session = show.events("session:demo").await;
    let (_, status) = session.iter().rfind(|(name, _)| name == "command_status").unwrap();
    let id = json!(Uuid::from_u128(7));
    assert_eq!((&status["command_id"], &status["status"]), (&id, &json!("rejected")));
    show.end().await;
}

#[test]
fn the_page_is_whole() {
    assert!(demo::PAGE.trim_start().to_lowercase().starts_with("<!doctype html>"));
}
