//! What an agent asks people is answered once, whatever happens meanwhile.

use crate::cluster::{Way, event, events, said};
use journal::{ApprovalAnswer, Asks, Journal, Resolved};
use publisher_sdk::{Agent, AskError, Budget, BudgetRequest, PermissionRequest, Reason};
use serde_json::{Value, json};
use std::time::Duration;
use tests::{Persistence, Redis};
use uuid::Uuid;

on_every_way! {
    a_permission_is_asked_after_what_was_said_and_answered_by_a_person,
    a_budget_is_asked_for_on_the_agents_channel_and_the_firehose_is_told,
    a_question_asked_within_a_run_ends_with_it,
    a_question_that_is_given_up_is_withdrawn,
    an_agent_that_asks_again_after_a_restart_gets_the_answer_it_missed,
}

fn request() -> PermissionRequest {
    PermissionRequest::new("Bash", "rm -r build", "Deletes the build directory")
}

/// `ben` answers.
async fn answer(journal: &Journal, channel: &str, id: &str, asks: Asks, allowed: bool) {
    let answer = ApprovalAnswer {
        allowed,
        always: allowed,
        reason: Some("as usual".into()),
        by: Some("ben".into()),
        at: 1,
        timed_out: false,
        command_id: Uuid::new_v4().to_string().into(),
    };
    let resolved =
        journal.resolve(&channel.parse().expect("a channel"), id, asks, &answer, None).await;
    assert_eq!(resolved, Ok(Resolved::Yours));
}

async fn a_permission_is_asked_after_what_was_said_and_answered_by_a_person(way: Way) {
    let (agent, journal) = way.agent().await;
    let session = agent.session("s").await.unwrap();
    session.text_delta("t", "I would ").unwrap();
    session.text_delta("t", "like to").unwrap();

    let (permission, question) =
        tokio::join!(session.ask_permission(request().digest("d1")), async {
            let question = event(&journal, "session:s", "permission_request").await;
            let id = question["request"]["requestId"].as_str().unwrap();
            answer(&journal, "session:s", id, Asks::Permission, true).await;
            question
        });

    let permission = permission.unwrap();
    assert!(permission.allowed && permission.always_allow && !permission.timed_out);
    assert_eq!(
        (permission.by.as_deref(), permission.reason.as_deref()),
        (Some("ben"), Some("as usual"))
    );
    let shown = &question["request"];
    assert_eq!(shown["toolName"], "Bash");
    assert_eq!(shown["command"], "rm -r build");
    assert_eq!(shown["description"], "Deletes the build directory");
    assert_eq!(shown["digest"], "d1");
    assert!(question["expires_at"].is_u64(), "{question}");
    let said = said(&journal, "session:s").await;
    assert_eq!(said[said.len() - 2..], ["permission_request", "permission_resolved"]);
    assert_eq!(said[..said.len() - 2].concat(), "I would like to");
}

async fn a_budget_is_asked_for_on_the_agents_channel_and_the_firehose_is_told(way: Way) {
    let (agent, journal) = way.agent().await;
    let own = agent.own_channel();
    for (id, allowed, expected) in [("b1", true, Budget::Continue), ("b2", false, Budget::Stop)] {
        let ask = BudgetRequest::new().durable_id(id).field("tokens_used", 1_000);
        let (budget, ()) = tokio::join!(own.ask_budget(ask), async {
            crate::cluster::until("it is asked", async || {
                let pending = journal.pending(&"agent:a".parse().unwrap()).await.unwrap().1;
                pending.first().map(drop)
            })
            .await;
            answer(&journal, "agent:a", id, Asks::Budget, allowed).await;
        });
        assert_eq!(budget.unwrap(), expected);
    }
    let told = event(&journal, "global:events", "budget_exhausted").await;
    assert_eq!(
        (&told["request_id"], &told["agent_id"], &told["tokens_used"]),
        (&json!("b1"), &json!("a"), &json!(1_000))
    );
    let resolved: Vec<Value> = (events(&journal, "agent:a").await.into_iter())
        .filter(|(name, _)| name == "budget_resolved")
        .map(|(_, data)| data["decision"].clone())
        .collect();
    assert_eq!(resolved, [json!("continue"), json!("stop")]);
}

/// A page must not show a question that nobody waits for any more.
async fn a_question_asked_within_a_run_ends_with_it(way: Way) {
    let (agent, journal) = way.agent().await;
    let session = agent.session("s").await.unwrap();
    let run = session.begin_run("r1");

    let (asked, ()) = tokio::join!(session.ask_permission(request().for_run(&run)), async {
        event(&journal, "session:s", "permission_request").await;
        run.cancel(Reason::User);
    });

    assert!(matches!(asked, Err(AskError::Cancelled)), "{asked:?}");
    let resolved = event(&journal, "session:s", "permission_resolved").await;
    assert_eq!(resolved["allowed"], json!(false));
    assert_eq!(resolved["reason"], json!("the run was cancelled"));
    assert!(journal.pending(session.channel()).await.unwrap().1.is_empty());
}

/// The caller stops waiting, or the agent closes.
async fn a_question_that_is_given_up_is_withdrawn(way: Way) {
    let (agent, journal) = way.agent().await;
    let session = agent.session("s").await.unwrap();
    let is_withdrawn = async |n: usize| {
        crate::cluster::until("it is withdrawn", async || {
            let told = events(&journal, "session:s").await;
            let ended = told.iter().filter(|(name, _)| name == "permission_resolved");
            (ended.filter(|(_, data)| data["reason"] == "withdrawn").count() == n).then_some(())
        })
        .await;
        assert!(journal.pending(session.channel()).await.unwrap().1.is_empty());
    };
    tokio::select! {
        answered = session.ask_permission(request()) => panic!("{answered:?}"),
        _ = event(&journal, "session:s", "permission_request") => {}
    }
    is_withdrawn(1).await;

    let (asker, own) = (session.clone(), request());
    let asking = tokio::spawn(async move { asker.ask_permission(own).await });
    crate::cluster::until("it is asked", async || {
        let pending = journal.pending(session.channel()).await.unwrap().1;
        pending.first().map(drop)
    })
    .await;
    agent.close().await.unwrap();
    let asked = asking.await.unwrap();
    assert!(matches!(asked, Err(AskError::Closed)), "{asked:?}");
    is_withdrawn(2).await;
}

/// The answer cannot be written, and nobody waits for it any more.
#[tokio::test]
async fn a_cancelled_question_ends_with_its_agent_also_while_redis_is_away() {
    let mut redis = Redis::start(Persistence::None).await;
    let journal = Journal::open(&redis.url()).unwrap();
    let agent = Agent::options().id("a").connect(&redis.url()).await.unwrap();
    let session = agent.session("s").await.unwrap();
    let run = session.begin_run("r1");
    let (asker, ask) = (session.clone(), request().for_run(&run));
    let asking = tokio::spawn(async move { asker.ask_permission(ask).await });
    event(&journal, "session:s", "permission_request").await;

    redis.kill9();
    run.cancel(Reason::User);
    for _ in 0..10 {
        // It begins to refuse.
        tokio::task::yield_now().await;
    }
    let closing = tokio::spawn(agent.close());

    let asked = tokio::time::timeout(Duration::from_secs(5), asking).await;
    closing.abort();
    let asked = asked.expect("it ends").unwrap();
    assert!(matches!(asked, Err(AskError::Cancelled)), "{asked:?}");
}

/// The crash between resolving an approval and telling the agent.
async fn an_agent_that_asks_again_after_a_restart_gets_the_answer_it_missed(way: Way) {
    let (first, journal) = way.agent().await;
    let session = first.session("s").await.unwrap();
    let ask = || request().durable_id("p1");
    tokio::select! {
        answered = session.ask_permission(ask()) => panic!("{answered:?}"),
        _ = event(&journal, "session:s", "permission_request") => {}
    }
    assert_eq!(said(&journal, "session:s").await, ["permission_request"], "it is pending still");

    let second = way.enter(Agent::options().id("a")).await;
    let session = second.session("s").await.unwrap();
    answer(&journal, "session:s", "p1", Asks::Permission, true).await;

    assert!(session.ask_permission(ask()).await.unwrap().allowed);
    assert!(session.ask_permission(ask()).await.unwrap().allowed, "as often as it asks");
    let other = PermissionRequest::new("Bash", "rm -r /", "Deletes the build directory");
    let other = session.ask_permission(other.durable_id("p1")).await;
    let Err(AskError::Conflict(why)) = other else { panic!("{other:?}") };
    assert!(why.contains("`question`"), "{why}");
    let invalid = session.ask_permission(request().durable_id("not an id")).await;
    assert!(matches!(invalid, Err(AskError::Id(_))), "{invalid:?}");
    assert_eq!(said(&journal, "session:s").await, ["permission_request", "permission_resolved"]);
}
