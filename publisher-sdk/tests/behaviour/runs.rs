//! A run always has an end that everybody is told, once.

use std::future::pending;

use crate::cluster::{Way, command, event, events, until};
use publisher_sdk::{Agent, ConnectError, PublishError, Reason, RunIdError, ScopeError};
use serde_json::{Value, json};
use tokio::sync::oneshot;

on_every_way! {
    an_announced_run_always_says_how_it_ended,
    both_ends_of_a_run_are_said_by_it_and_agree,
    a_scope_ends_its_run_as_its_work_ends,
    what_a_cancelled_run_began_is_cancelled_and_has_not_failed,
    an_error_of_cancelled_work_is_the_cancels,
    a_run_keeps_its_session_open,
    a_run_whose_id_is_too_long_is_refused_by_name,
    an_agent_that_closes_ends_its_open_runs_once,
    a_run_that_stops_while_its_agent_closes_says_its_end,
    an_end_is_said_though_there_is_too_much_to_say,
    open_runs_stand_in_the_record_of_who_is_alive,
    a_child_is_known_to_its_parent_until_it_ends,
}

fn ends(said: Vec<(String, Value)>) -> Vec<String> {
    let is_end = |name: &str| name.starts_with("agent_") && name != "agent_spawned";
    let ends = said.into_iter().filter(|(name, _)| is_end(name));
    ends.map(|(name, data)| {
        let reason = data["reason"].as_str().map(|reason| format!(" {reason}"));
        format!(
            "{} {name}{}",
            data["runId"].as_str().expect("a run has an id"),
            reason.unwrap_or_default()
        )
    })
    .collect()
}

async fn an_announced_run_always_says_how_it_ended(way: Way) {
    let (agent, journal) = way.agent().await;
    let begin = async |id: &str| {
        let run = agent.begin_run(id);
        run.announce(&()).await.unwrap();
        run
    };

    begin("1").await.complete().await.unwrap();
    begin("2").await.fail("no luck").await.unwrap();
    drop(begin("3").await);
    let cancelled = begin("4").await;
    cancelled.cancel(Reason::Timeout);
    cancelled.cancel(Reason::Budget);
    drop(cancelled);
    drop(agent.begin_run("5"));
    begin("6").await.stop().await.unwrap();
    let doomed = begin("7").await;
    let panicking = tokio::spawn(async move { assert_eq!(doomed.id(), "", "on purpose") });
    assert!(panicking.await.is_err());
    agent.flush().await.unwrap();

    let expected = [
        "1 agent_completed",
        "2 agent_failed",
        "3 agent_failed",
        "4 agent_cancelled timeout",
        "6 agent_cancelled shutdown",
        "7 agent_failed",
    ];
    assert_eq!(ends(events(&journal, "agent:a").await), expected);
    assert_eq!(ends(events(&journal, "global:events").await), expected);
    let said = events(&journal, "agent:a").await;
    assert_eq!(said.last().unwrap().1["error"], "the agent panicked");
}

async fn a_scope_ends_its_run_as_its_work_ends(way: Way) {
    let (agent, journal) = way.agent().await;
    let begin = async |id: &str| {
        let run = agent.begin_run(id);
        run.announce(&()).await.unwrap();
        run
    };
    // The scope lends the run, and can be a task.
    let one = begin("1").await;
    let one = tokio::spawn(one.scope(async |run| {
        tokio::task::yield_now().await;
        run.id().parse::<u32>()
    }));
    assert_eq!(one.await.unwrap().unwrap(), 1);
    let two = begin("2").await.scope(async |_| Err::<u32, _>("no luck")).await;
    assert!(matches!(two, Err(ScopeError::Failed("no luck"))));
    let three = begin("3").await;
    three.cancel(Reason::Budget.saying("1,000 tokens"));
    let three = three.scope(async |_| pending::<Result<u32, String>>().await).await;
    let Err(ScopeError::Cancelled(why)) = three else { panic!("{three:?}") };
    assert_eq!((why.reason, why.detail.as_deref()), (Reason::Budget, Some("1,000 tokens")));

    let expected = ["1 agent_completed", "2 agent_failed", "3 agent_cancelled budget"];
    assert_eq!(ends(events(&journal, "agent:a").await), expected);
}

async fn both_ends_of_a_run_are_said_by_it_and_agree(way: Way) {
    let (agent, journal) = way.agent().await;
    let session = agent.session("s").await.unwrap();
    let plan = agent.channel("plan:p").unwrap();
    let begin = async |id: &str| {
        let run = session.begin_run(id);
        run.announce(&()).await.unwrap();
        session.text_delta(None, id).unwrap();
        run
    };
    begin("1").await.complete().await.unwrap();
    begin("2").await.fail("no luck").await.unwrap();
    drop(begin("3").await);
    let cancelled = begin("4").await;
    cancelled.cancel(Reason::Budget);
    drop(cancelled);
    drop(session.begin_run("said nothing"));
    plan.begin_run("on a plan").complete().await.unwrap();
    let closed = begin("5").await;
    agent.close().await.unwrap();
    drop(closed);

    let said = events(&journal, "session:s").await;
    let said: Vec<Value> = said.into_iter().map(|(_, data)| data).collect();
    let complete = |run: &str, outcome: &str| json!({"runId": run, "outcome": outcome});
    let delta = |run: &str| json!({"delta": run});
    let expected = [
        delta("1"),
        complete("1", "completed"),
        delta("2"),
        complete("2", "failed"),
        delta("3"),
        complete("3", "failed"),
        delta("4"),
        complete("4", "cancelled"),
        delta("5"),
        complete("5", "cancelled"),
    ];
    assert_eq!(said, expected);
    let planned = [("complete".to_owned(), complete("on a plan", "completed"))];
    assert_eq!(events(&journal, "plan:p").await, planned);
    let expected = [
        "1 agent_completed",
        "2 agent_failed",
        "3 agent_failed",
        "4 agent_cancelled budget",
        "on a plan agent_completed",
        "5 agent_cancelled shutdown",
    ];
    assert_eq!(ends(events(&journal, "agent:a").await), expected);
    let copied = ends(events(&journal, "global:events").await);
    assert_eq!(copied, expected, "what a session tells is not copied");
}

/// Only the one run is named: what its work had begun is dropped with it.
async fn what_a_cancelled_run_began_is_cancelled_and_has_not_failed(way: Way) {
    let (agent, journal) = way.agent().await;
    let session = agent.session("s").await.unwrap();
    let run = session.begin_run("whole");
    run.announce(&()).await.unwrap();
    let (begun, has_begun) = oneshot::channel();
    let work = run.scope(async |run| {
        let (within, part) = (session.begin_run("within"), run.begin_run("part"));
        let child = way.enter(Agent::options().id("child").child_of(run)).await;
        let helping = child.begin_run("helping");
        for run in [&within, &part, &helping] {
            run.announce(&()).await.unwrap();
        }
        begun.send(()).unwrap();
        pending::<Result<(), String>>().await
    });
    let pressed = async {
        has_begun.await.unwrap();
        let cancel = json!({"agent_id": "a", "run_id": "whole", "reason": "wrong branch"});
        command(&journal, "agent:a", "cancel_agent", cancel).await;
    };

    let (worked, ()) = tokio::join!(work, pressed);

    assert!(matches!(worked, Err(ScopeError::Cancelled(_))), "{worked:?}");
    agent.flush().await.unwrap();
    let mut ended = ends(events(&journal, "agent:a").await);
    ended.sort_unstable();
    let expected =
        ["part agent_cancelled user", "whole agent_cancelled user", "within agent_cancelled user"];
    assert_eq!(ended, expected);
    let helping = event(&journal, "agent:child", "agent_cancelled").await;
    assert_eq!((&helping["by"], &helping["detail"]), (&json!("ann"), &json!("wrong branch")));
}

/// A child that was cancelled is an error to the work that waits for it.
async fn an_error_of_cancelled_work_is_the_cancels(way: Way) {
    let (agent, journal) = way.agent().await;
    let worked = agent.begin_run("1").scope(async |run| {
        run.cancel(Reason::Timeout);
        Err::<(), _>("the child was cancelled")
    });
    assert!(
        matches!(worked.await, Err(ScopeError::Cancelled(why)) if why.reason == Reason::Timeout)
    );
    assert_eq!(ends(events(&journal, "agent:a").await), ["1 agent_cancelled timeout"]);
}

async fn a_run_keeps_its_session_open(way: Way) {
    let (agent, journal) = way.agent().await;
    let run = agent.session("s").await.unwrap().begin_run("1");
    command(&journal, "session:s", "cancel_agent", json!({"agent_id": "a"})).await;
    assert_eq!(run.cancelled().await.reason, Reason::User);
}

async fn a_run_whose_id_is_too_long_is_refused_by_name(way: Way) {
    let (agent, journal) = way.agent().await;
    let session = agent.session("s").await.unwrap();
    let longest = session.begin_run("x".repeat(128));
    longest.announce(&()).await.unwrap();
    let run = session.begin_run("x".repeat(129));
    let refused = run.announce(&()).await.unwrap_err();
    assert!(matches!(refused, PublishError::RunId(RunIdError { bytes: 129, .. })), "{refused}");
    assert!(refused.to_string().contains("at most 128 bytes"), "{refused}");
    let child = Agent::options().child_of(&run).attach(journal.clone()).await.unwrap_err();
    assert!(matches!(child, ConnectError::RunId(_)), "{child}");
    assert!(matches!(run.complete().await, Err(PublishError::RunId(_))));
    longest.complete().await.unwrap();
    assert_eq!(events(&journal, "session:s").await.len(), 1, "of the first run only");
}

async fn an_agent_that_closes_ends_its_open_runs_once(way: Way) {
    let (agent, journal) = way.agent().await;
    let run = agent.begin_run("1");
    run.announce(&()).await.unwrap();

    agent.close().await.unwrap();

    assert_eq!(run.cancellation().unwrap().reason, Reason::Shutdown);
    run.complete().await.unwrap();
    assert_eq!(ends(events(&journal, "agent:a").await), ["1 agent_cancelled shutdown"]);
    assert_eq!(ends(events(&journal, "global:events").await), ["1 agent_cancelled shutdown"]);
    assert!(
        journal.alive(None, 100).await.unwrap().agents.is_empty(),
        "it is gone, and will not be missed"
    );
}

/// As after a signal: the run is told that the agent ends, and says its own end meanwhile.
async fn a_run_that_stops_while_its_agent_closes_says_its_end(way: Way) {
    let (agent, journal) = way.agent().await;
    let run = agent.begin_run("1");
    run.announce(&()).await.unwrap();

    let (stopped, closed) = tokio::join!(run.stop(), agent.close());

    stopped.unwrap();
    closed.unwrap();
    for channel in ["agent:a", "global:events"] {
        assert_eq!(
            ends(events(&journal, channel).await),
            ["1 agent_cancelled shutdown"],
            "{channel}"
        );
    }
}

async fn an_end_is_said_though_there_is_too_much_to_say(way: Way) {
    let (agent, journal) = way.agent().await;
    let (long, dropped) = (agent.begin_run("long"), agent.begin_run("dropped"));
    long.announce(&()).await.unwrap();
    dropped.announce(&()).await.unwrap();
    long.fail(&"x".repeat(70_000)).await.unwrap();
    drop(dropped);
    agent.flush().await.unwrap();

    let said = ends(events(&journal, "global:events").await);
    assert_eq!(said, ["long agent_failed", "dropped agent_failed"]);
}

async fn open_runs_stand_in_the_record_of_who_is_alive(way: Way) {
    let (agent, journal) = way.agent().await;
    let session = agent.session("s").await.unwrap();
    let (one, two) = (session.begin_run("1"), agent.begin_run("2"));
    one.announce(&()).await.unwrap();
    two.announce(&()).await.unwrap();
    until("both are noted, and the channels", async || {
        let alive = journal.alive(None, 100).await.unwrap().agents;
        let alive = &alive[0];
        let channels: Vec<&str> = alive.channels.iter().map(|c| &**c).collect();
        (alive.runs.concat() == "12" && channels == ["agent:a", "session:s"]).then_some(())
    })
    .await;

    one.complete().await.unwrap();
    drop((two, session));

    until("nothing is noted", async || {
        let alive = journal.alive(None, 100).await.unwrap().agents;
        (alive[0].runs.is_empty() && alive[0].channels.len() == 1).then_some(())
    })
    .await;
}

async fn a_child_is_known_to_its_parent_until_it_ends(way: Way) {
    let (parent, journal) = way.agent().await;
    let session = parent.session("s").await.unwrap();
    let run = session.begin_run("r1");
    let own = "agent:a".parse().unwrap();
    let options = || Agent::options().id("child");

    let child = way.enter(options().child_of(&run)).await;
    for channel in [&own, session.channel()] {
        assert_eq!(journal.children(channel, Some("r1")).await.unwrap().concat(), "child");
    }
    child.close().await.unwrap();
    for channel in [&own, session.channel()] {
        assert!(journal.children(channel, None).await.unwrap().is_empty());
    }

    let _child = way.enter(options().child_of_agent("a")).await;
    assert_eq!(journal.children(&own, None).await.unwrap().concat(), "child");
    let alive = journal.alive(None, 100).await.unwrap().agents;
    assert_eq!(alive[1].parent.as_ref().map(|parent| &*parent.agent_id), Some("a"));
}
