//! Every example in Rust of the two READMEs is compiled and run here, as it is printed: a test compares them.

#![allow(clippy::panic, clippy::unwrap_used, reason = "what goes wrong in a test ends it")]

mod cluster;

use std::sync::OnceLock;

use cluster::{PATIENCE, Way, command, ended, event, events, outcome, request};
use journal::{ApprovalAnswer, Asks, Journal, Resolved, Status};
use publisher_sdk::{Agent, Budget, Publisher, Reason, RequestError, Run};
use serde_json::{Value, json};
use tests::{Persistence, Redis};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Without what rustfmt and a reader may choose: comments, white space, commas at the end.
fn bare(code: &str) -> String {
    let line = |line: &str| line.split("// ").next().unwrap_or_default().to_owned();
    let mut bare: String = code.lines().map(line).collect();
    bare.retain(|c| !c.is_whitespace());
    bare.replace(",)", ")").replace(",}", "}")
}

#[test]
fn every_example_that_is_printed_stands_here() {
    let here = bare(include_str!("documented.rs"));
    let readmes = [include_str!("../README.md"), include_str!("../../README.md")];
    let mut count = 0;
    for example in readmes.iter().flat_map(|readme| readme.split("```rust\n").skip(1)) {
        let example = example.split("```").next().unwrap_or_default();
        let printed = bare(&example.replace("\"redis://127.0.0.1:6379\"", "redis_url()"));
        assert!(here.contains(&printed), "not run here:\n{example}");
        count += 1;
    }
    assert_eq!(count, 5, "examples in all");
}

static REDIS_URL: OnceLock<String> = OnceLock::new();

/// The Redis of this process, where an example gives an address.
fn redis_url() -> &'static str {
    REDIS_URL.get().expect("the test started it")
}

mod readme {
    use super::redis_url;

    use publisher_sdk::Agent;

    #[tokio::main]
    async fn main() -> Result<(), Box<dyn std::error::Error>> {
        let agent = Agent::options().id("helper").connect(redis_url()).await?;
        let session = agent.session("42").await?;
        let run = session.begin_run("run-1");
        run.announce(&serde_json::json!({"task": "Count to a hundred"})).await?;
        for i in 1..=100 {
            if run.is_cancelled() {
                run.stop().await?;
                return Ok(agent.close().await?);
            }
            session.text_delta("turn-1", &format!("{i} "))?;
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        run.complete().await?;
        Ok(agent.close().await?)
    }

    pub(super) fn run() -> Result<(), String> {
        main().map_err(|error| error.to_string())
    }
}

/// The first examples of both READMEs use a Redis, one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_examples_publish_and_can_be_cancelled() {
    let redis = Redis::start(Persistence::None).await;
    REDIS_URL.set(redis.url()).unwrap();
    let journal = Journal::open(&redis.url()).unwrap();

    let example = tokio::task::spawn_blocking(readme::run);
    event(&journal, "session:42", "text_delta").await;
    let cancel = json!({"agent_id": "helper"});
    let cancel = command(&journal, "agent:helper", "cancel_agent", cancel).await;
    assert_eq!(ended(&journal, "agent:helper", cancel).await.last().unwrap().0, "applied");
    example.await.unwrap().unwrap();
    let complete = event(&journal, "session:42", "complete").await;
    assert_eq!(complete, json!({"runId": "run-1", "outcome": "cancelled"}));

    sdk_readme().await.unwrap();
    let said = events(&journal, "session:42").await.into_iter().map(|(name, _)| name);
    let mut said: Vec<String> = said.skip_while(|name| name != "complete").skip(1).collect();
    // Two pieces of text may have joined.
    said.dedup();
    let expected =
        ["text_delta", "text_complete", "tool_start", "tool_result", "message.created", "complete"];
    assert_eq!(said, expected);
}

async fn sdk_readme() -> Outcome {
    use publisher_sdk::Agent;
    use publisher_sdk::vocabulary::{TextComplete, ToolResult, ToolStart};
    use serde_json::json;

    let agent = Agent::options().id("helper").connect(redis_url()).await?;
    let session = agent.session("42").await?;

    let run = session.begin_run("run-1");
    run.announce(&json!({"task": "Tidy up"})).await?;
    session.text_delta("t1", "Looking ")?;
    session.text_delta("t1", "around.")?;
    session.send_event(&TextComplete::new("Looking around.").turn_id("t1"))?;
    session.send_event(&ToolStart::new("Bash", "u1", json!({"command": "ls"})))?;
    session.send_event(&ToolResult::new("u1", "Bash", "notes.txt"))?;
    session.send("message.created", &json!({"role": "user"}))?;
    run.complete().await?;
    agent.close().await?;
    Ok(())
}

#[rustfmt::skip]
async fn cancel(run: Run) -> Outcome {
    async fn work(is_cancelled: CancellationToken) {
        is_cancelled.cancelled().await;
        std::future::pending().await
    }

    tokio::select! {
        cancellation = run.cancelled() => {
            tracing::info!(by = ?cancellation.by, reason = ?cancellation.reason, "cancelled");
            run.stop().await?;
        }
        () = work(run.token()) => run.complete().await?,
    }
    Ok(())
}

#[tokio::test]
async fn the_example_of_a_cancel_stops_the_run() {
    let (agent, journal) = Way::in_process().await.agent().await;
    let run = agent.begin_run("r1");
    run.cancel(Reason::Timeout);
    cancel(run).await.unwrap();
    assert_eq!(event(&journal, "agent:a", "agent_cancelled").await["reason"], "timeout");
}

#[rustfmt::skip]
async fn other_commands(agent: Agent) -> Outcome {
    fn set_model(model: String) {
        assert_eq!(model, "large");
    }

    let mut commands = agent.commands();
    while let Some(command) = commands.next().await {
        match (command.name.as_str(), command.method()) {
            ("set_model", _) => { set_model(command.read()?); command.applied() }
            (_, Some("status")) => command.reply(&json!({"queue": 3})),
            _ => command.rejected("unknown"),
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_example_of_commands_does_them_and_answers() {
    let (agent, journal) = Way::in_process().await.agent().await;
    let serving = tokio::spawn({
        let agent = agent.clone();
        async move { other_commands(agent).await.map_err(|error| error.to_string()) }
    });
    let set = command(&journal, "agent:a", "set_model", json!("large")).await;
    assert_eq!(ended(&journal, "agent:a", set).await.last().unwrap().0, "applied");
    let asked = request(&journal, "agent:a", "status", Value::Null).await;
    let replied = outcome(&journal, "agent:a", asked).await;
    assert_eq!(replied, (Status::Applied, json!({"queue": 3})));
    let other = request(&journal, "agent:a", "set_mode", Value::Null).await;
    assert_eq!(outcome(&journal, "agent:a", other).await.0, Status::Rejected);
    agent.close().await.unwrap();
    timeout(PATIENCE, serving).await.unwrap().unwrap().unwrap();
}

#[rustfmt::skip]
async fn questions_and_services(journal: &Journal, agent: &Agent, session: &Publisher, run: &Run) -> Outcome {
    use publisher_sdk::{BudgetRequest, PermissionRequest};

    async fn create(title: String) -> String {
        format!("session of {title}")
    }

    let request = PermissionRequest::new("Bash", "rm -r build", "Deletes the build directory")
        .durable_id("run-1-rm")
        .for_run(run);
    let permission = session.ask_permission(request).await?;
    let budget = agent.own_channel().ask_budget(BudgetRequest::new().field("tokens_used", 9_000)).await?;

    let _serving = agent.service("sessions").at_once(16).serve(async |request| match request.method.as_str() {
        "sessions.create" => Ok(json!({"id": create(request.read()?).await})),
        _ => Err(RequestError::new("no_method", "unknown method")),
    }).await?;

    assert!(permission.allowed);
    assert_eq!(budget, Budget::Continue);
    let asked = cluster::request(journal, "service:sessions", "sessions.create", json!("ann")).await;
    let created = (Status::Applied, json!({"id": "session of ann"}));
    assert_eq!(outcome(journal, "service:sessions", asked).await, created);
    Ok(())
}

async fn answer(journal: &Journal, channel: &str, id: &Value, asks: Asks) {
    let answer = ApprovalAnswer {
        allowed: true,
        always: false,
        reason: None,
        by: None,
        at: 1,
        timed_out: false,
        command_id: Uuid::new_v4().to_string().into(),
    };
    let (channel, id) = (channel.parse().unwrap(), id.as_str().unwrap());
    assert_eq!(journal.resolve(&channel, id, asks, &answer, None).await, Ok(Resolved::Yours));
}

#[tokio::test]
async fn the_example_of_questions_and_services_asks_and_serves() {
    let (agent, journal) = Way::in_process().await.agent().await;
    let session = agent.session("s").await.unwrap();
    let run = session.begin_run("run-1");
    let answers = async {
        let asked = event(&journal, "session:s", "permission_request").await;
        answer(&journal, "session:s", &asked["request"]["requestId"], Asks::Permission).await;
        let asked = event(&journal, "agent:a", "budget_exhausted").await;
        answer(&journal, "agent:a", &asked["request_id"], Asks::Budget).await;
    };
    let (done, ()) =
        tokio::join!(questions_and_services(&journal, &agent, &session, &run), answers);
    done.unwrap();
}
