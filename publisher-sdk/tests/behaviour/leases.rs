//! An agent is known to be alive. An agent that is fenced is told so, and nothing more of it is published.

use std::time::Duration;

use crate::cluster::{PATIENCE, Way, command, ended, events, next, nobody_is_on, until};
use publisher_sdk::{Agent, AskError, OpenError, PermissionRequest, PublishError, Reason};
use serde_json::json;
use tokio::time::timeout;

on_every_way! {
    of_two_agents_with_one_id_the_newer_goes_on_and_the_older_learns_it,
    a_session_has_one_lease_however_many_handles_and_however_quickly_they_come_and_go,
    a_command_can_be_reported_after_its_session_was_closed,
    an_agent_that_closes_releases_all_and_can_come_back,
}

async fn of_two_agents_with_one_id_the_newer_goes_on_and_the_older_learns_it(way: Way) {
    let (old, journal) = way.agent().await;
    let session = old.session("s").await.unwrap();
    let run = session.begin_run("r1");
    run.announce(&()).await.unwrap();
    session.publish("before", &()).await.unwrap();
    let mut commands = old.commands();
    let asking = session.ask_permission(PermissionRequest::new("Bash", "ls", "Lists"));
    let pressed = async {
        crate::cluster::event(&journal, "session:s", "permission_request").await;
        let new = way.enter(Agent::options().id("a")).await;
        let opened = new.session("s").await.unwrap();
        // The older one is told by whatever it does first, and by its next renewal.
        session.publish("after", &()).await.unwrap_err();
        (new, opened)
    };

    let (asked, (new, opened)) = tokio::join!(asking, pressed);
    timeout(PATIENCE, old.fenced()).await.unwrap();

    assert!(matches!(asked, Err(AskError::Fenced)), "{asked:?}");
    assert!(old.is_fenced() && !new.is_fenced());
    let cancelled = timeout(PATIENCE, run.cancelled()).await.unwrap();
    assert_eq!(cancelled.reason, Reason::Lost);
    assert!(timeout(PATIENCE, commands.next()).await.unwrap().is_none());
    assert!(matches!(session.publish("x", &()).await, Err(PublishError::Fenced)));
    assert!(matches!(session.send("x", &()), Err(PublishError::Fenced)));
    assert!(matches!(session.text_delta(None, "x"), Err(PublishError::Fenced)));
    assert!(matches!(old.session("t").await, Err(OpenError::Fenced)));
    drop(run);
    old.close().await.ok();

    let id = command(&journal, "session:s", "go", json!({})).await;
    next(&mut new.commands()).await.applied();
    ended(&journal, "session:s", id).await;
    opened.publish("on", &()).await.unwrap();
    let said = events(&journal, "session:s").await;
    let names: Vec<&str> = said.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "before",
        "permission_request",
        "agent_lost",
        "permission_resolved",
        "command_status",
        "command_status",
        "on",
    ];
    assert_eq!(names, expected);
    assert_eq!(said[3].1["reason"], "withdrawn");
    assert_eq!((&said[2].1["reason"], &said[2].1["runs"]), (&json!("replaced"), &json!(["r1"])));
    let lost = events(&journal, "global:events").await;
    assert_eq!(lost.iter().filter(|(name, _)| name == "agent_lost").count(), 1);
    assert!(!lost.iter().any(|(name, _)| name == "agent_cancelled"), "that was said already");
    assert_eq!(journal.agents_on(&"agent:a".parse().unwrap()).await.unwrap().len(), 1);
}

async fn a_session_has_one_lease_however_many_handles_and_however_quickly_they_come_and_go(
    way: Way,
) {
    let (agent, journal) = way.agent().await;
    let session = "session:s".parse().unwrap();
    for _ in 0..50 {
        let handles = tokio::join!(agent.session("s"), agent.session("s"));
        assert_eq!(journal.agents_on(&session).await.unwrap().concat(), "a");
        drop(handles);
    }
    let held = agent.session("s").await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(journal.agents_on(&session).await.unwrap().concat(), "a");
    drop(held);
    nobody_is_on(&journal, "session:s").await;
    assert!(!agent.is_fenced());
}

/// The lease lasts as long as a report is due there.
async fn a_command_can_be_reported_after_its_session_was_closed(way: Way) {
    let (agent, journal) = way.agent().await;
    let session = agent.session("s").await.unwrap();
    let id = command(&journal, "session:s", "go", json!({})).await;
    let taken = next(&mut agent.commands()).await;
    drop(session);
    tokio::time::sleep(Duration::from_millis(20)).await;

    taken.applied();

    assert_eq!(ended(&journal, "session:s", id).await.last().unwrap().0, "applied");
    nobody_is_on(&journal, "session:s").await;
}

async fn an_agent_that_closes_releases_all_and_can_come_back(way: Way) {
    let (agent, journal) = way.agent().await;
    let session = agent.session("s").await.unwrap();
    let _service = agent.serve("sums", async |_| Ok(json!(1))).await.unwrap();
    let id = command(&journal, "agent:a", "go", json!({})).await;
    next(&mut agent.commands()).await.applied();

    let kept = agent.clone();
    agent.close().await.unwrap();

    assert_eq!(ended(&journal, "agent:a", id).await.last().unwrap().0, "applied");
    for channel in ["agent:a", "session:s", "service:sums"] {
        assert!(
            journal.agents_on(&channel.parse().unwrap()).await.unwrap().is_empty(),
            "{channel}"
        );
    }
    assert!(matches!(session.publish("x", &()).await, Err(PublishError::Closed)));
    assert!(matches!(kept.session("t").await, Err(OpenError::Closed)));
    kept.close().await.unwrap();
    let again = way.enter(Agent::options().id("a")).await;
    again.session("s").await.unwrap().publish("back", &()).await.unwrap();
    assert!(events(&journal, "agent:a").await.iter().all(|(name, _)| name != "agent_lost"));
    until("it is alive", async || {
        (journal.alive(None, 100).await.unwrap().agents.len() == 1).then_some(())
    })
    .await;
}
