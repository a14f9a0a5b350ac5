//! What people ask of an agent reaches it once, or they are told; and Cancel cancels what it means.

mod stage;

use std::time::Duration;

use journal::{Name, NewEntry};
use publisher_sdk::Agent;
use serde_json::json;
use stage::{agent, command, event, events, next, nobody_listens};
use tokio::time::timeout;

#[tokio::test]
async fn a_command_arrives_with_who_asked_and_with_its_arguments() {
    let (agent, journal) = agent().await;
    let mut commands = agent.commands();

    command(&journal, "agent:a", "set_model", "c1", json!({"model": "large"})).await;

    let command = next(&mut commands).await;
    assert_eq!((command.name.as_str(), command.command_id.as_str()), ("set_model", "c1"));
    assert_eq!(command.by.as_deref(), Some("ann"));
    assert_eq!(command.channel.as_str(), "agent:a");
    assert_eq!(command.read::<serde_json::Value>().unwrap(), json!({"model": "large"}));
}

#[tokio::test]
async fn an_agent_hears_its_sessions_as_long_as_it_holds_them() {
    let (agent, journal) = agent().await;
    let mut commands = agent.commands();
    let session = agent.session("s").await.unwrap();
    let again = agent.session("s").await.unwrap();

    command(&journal, "session:s", "one", "c1", json!({})).await;
    assert_eq!(next(&mut commands).await.channel.as_str(), "session:s");
    drop(session);
    command(&journal, "session:s", "two", "c2", json!({})).await;
    assert_eq!(next(&mut commands).await.name, "two");
    drop(again);
    command(&journal, "session:s", "three", "c3", json!({})).await;
    command(&journal, "agent:a", "four", "c4", json!({})).await;

    assert_eq!(next(&mut commands).await.name, "four");
    nobody_listens(&journal, "session:s").await;
}

#[tokio::test]
async fn an_agent_that_is_gone_listens_no_longer() {
    let (agent, journal) = agent().await;
    let session = agent.session("s").await.unwrap();
    let mut commands = agent.commands();

    drop((agent, session));

    assert!(timeout(Duration::from_secs(5), commands.next()).await.unwrap().is_none());
    nobody_listens(&journal, "agent:a").await;
    nobody_listens(&journal, "session:s").await;
}

#[tokio::test]
async fn the_same_command_happens_once() {
    let (agent, journal) = agent().await;
    let mut commands = agent.commands();

    for (name, id) in [("one", "c1"), ("one", "c1"), ("two", "c2"), ("one", "c1"), ("three", "c3")]
    {
        command(&journal, "agent:a", name, id, json!({})).await;
    }

    for expected in ["one", "two", "three"] {
        assert_eq!(next(&mut commands).await.name, expected);
    }
}

#[tokio::test]
async fn what_was_sent_before_an_agent_listened_is_not_done_even_if_it_comes_again() {
    let (first, journal) = agent().await;
    for n in 0..50 {
        command(&journal, "agent:a", "old", &format!("c{n}"), json!({})).await;
    }
    first.close().await.unwrap();
    let agent = Agent::options().id("a").attach(journal.clone()).await.unwrap();
    let mut commands = agent.commands();

    command(&journal, "agent:a", "old", "c7", json!({})).await;
    command(&journal, "agent:a", "new", "c99", json!({})).await;

    assert_eq!(next(&mut commands).await.name, "new");
}

#[tokio::test]
async fn a_command_that_cannot_be_read_does_not_stop_the_next() {
    let (agent, journal) = agent().await;
    let mut commands = agent.commands();
    let name = Name::commands("agent:a".parse().unwrap());

    for bad in ["null", "[]", "{}", r#"{"command_id":7}"#, "no json"] {
        journal.append(&name, vec![NewEntry::new("bad", bad)]).await.unwrap();
    }
    let bare = NewEntry::new("bare", r#"{"command_id":"c1"}"#);
    journal.append(&name, vec![bare]).await.unwrap();

    let command = next(&mut commands).await;
    assert_eq!((command.name.as_str(), &*command.data, command.by), ("bare", "null", None));
}

#[tokio::test]
async fn a_command_that_finds_no_room_is_rejected_aloud() {
    let (agent, journal) = agent().await;
    for n in 0..257 {
        command(&journal, "agent:a", "work", &format!("c{n}"), json!({})).await;
    }

    let status = event(&journal, "agent:a", "command_status").await;

    assert_eq!(status["command_id"], "c256");
    assert_eq!(status["status"], "rejected");
    let mut commands = agent.commands();
    for n in 0..256 {
        assert_eq!(next(&mut commands).await.command_id, format!("c{n}"));
    }
}

#[tokio::test]
async fn what_nobody_took_is_rejected_aloud_when_the_agent_ends() {
    let (agent, journal) = agent().await;
    let session = agent.session("s").await.unwrap();
    let mut commands = agent.commands();
    command(&journal, "session:s", "first", "c1", json!({})).await;
    assert_eq!(next(&mut commands).await.name, "first");
    command(&journal, "session:s", "second", "c2", json!({})).await;
    command(&journal, "agent:a", "marker", "c3", json!({})).await;
    assert_eq!(next(&mut commands).await.name, "second");

    drop(session);
    agent.close().await.unwrap();

    let status = event(&journal, "agent:a", "command_status").await;
    assert_eq!(status["command_id"], "c3");
    assert!(events(&journal, "session:s").await.is_empty(), "what was taken is not rejected");
    assert!(commands.next().await.is_none());
}

#[tokio::test]
async fn cancel_cancels_and_says_who_and_why() {
    let (agent, journal) = agent().await;
    let mut commands = agent.commands();
    let mut run = agent.begin_run("run-1");
    run.announce(&json!({"task": "x"})).await.unwrap();
    let token = run.token();

    command(
        &journal,
        "agent:a",
        "cancel_agent",
        "c1",
        json!({"agent_id": "a", "reason": "enough"}),
    )
    .await;

    let cancellation = timeout(Duration::from_secs(5), run.cancelled()).await.unwrap();
    assert_eq!(cancellation.by.as_deref(), Some("ann"));
    assert_eq!(cancellation.reason.as_deref(), Some("enough"));
    assert!(token.is_cancelled());
    assert_eq!(next(&mut commands).await.name, "cancel_agent", "it can be seen, too");
    run.stop().await.unwrap();
    let said = events(&journal, "global:events").await;
    let expected = json!({"agent_id": "a", "runId": "run-1", "by": "ann", "reason": "enough"});
    assert_eq!(said.last().unwrap(), &("agent_cancelled".to_owned(), expected));
}

#[tokio::test]
async fn cancel_cancels_though_nobody_takes_commands() {
    let (agent, journal) = agent().await;
    let run = agent.begin_run("run-1");
    for n in 0..300 {
        command(&journal, "agent:a", "work", &format!("w{n}"), json!({})).await;
    }

    command(&journal, "agent:a", "cancel_agent", "c1", json!({"agent_id": "a"})).await;

    timeout(Duration::from_secs(5), run.cancelled()).await.unwrap();
}

#[tokio::test]
async fn a_cancel_for_one_run_leaves_the_others_alone() {
    let (agent, journal) = agent().await;
    let mut commands = agent.commands();
    let (one, two) = (agent.begin_run("run-1"), agent.begin_run("run-2"));

    command(&journal, "agent:a", "cancel_agent", "c1", json!({"run_id": "run-3"})).await;
    command(&journal, "agent:a", "cancel_agent", "c2", json!({"run_id": "run-2"})).await;
    next(&mut commands).await;
    next(&mut commands).await;

    assert!(two.is_cancelled());
    assert!(!one.is_cancelled());
}

#[tokio::test]
async fn a_cancel_without_a_current_run_does_nothing_later_on() {
    let (agent, journal) = agent().await;
    let mut commands = agent.commands();
    let finished = agent.begin_run("run-1");
    let token = finished.token();
    finished.complete().await.unwrap();

    command(&journal, "agent:a", "cancel_agent", "c1", json!({"agent_id": "a"})).await;
    assert_eq!(next(&mut commands).await.name, "cancel_agent");

    assert!(!token.is_cancelled());
    assert!(!agent.begin_run("run-2").is_cancelled());
    assert!(!agent.begin_run("run-1").is_cancelled());
}

#[tokio::test]
async fn a_cancel_sent_to_a_session_cancels_the_runs_begun_there() {
    let (agent, journal) = agent().await;
    let mut commands = agent.commands();
    let (one, two) = (agent.session("1").await.unwrap(), agent.session("2").await.unwrap());
    let (mine, other) = (one.begin_run("run"), two.begin_run("run"));

    command(&journal, "session:1", "cancel_agent", "c1", json!({})).await;
    next(&mut commands).await;

    assert!(mine.is_cancelled());
    assert!(!other.is_cancelled());
}

#[tokio::test]
async fn a_malformed_cancel_cancels_nothing_and_is_rejected_aloud() {
    let (agent, journal) = agent().await;
    let run = agent.begin_run("run-1");

    command(&journal, "agent:a", "cancel_agent", "c1", json!({"run_id": 1})).await;

    assert_eq!(event(&journal, "agent:a", "command_status").await["command_id"], "c1");
    assert!(!run.is_cancelled());
}

#[tokio::test]
async fn an_announced_run_always_says_how_it_ended() {
    let (agent, journal) = agent().await;
    let begin = async |id: &str| {
        let mut run = agent.begin_run(id);
        run.announce(&()).await.unwrap();
        run
    };

    begin("1").await.complete().await.unwrap();
    begin("2").await.fail("no luck").await.unwrap();
    drop(begin("3").await);
    let cancelled = begin("4").await;
    cancelled.cancel("shutting down");
    drop(cancelled);
    drop(agent.begin_run("5"));
    agent.flush().await.unwrap();

    let ends = |said: Vec<(String, serde_json::Value)>| {
        let ends = said.into_iter().filter(|(name, _)| name != "agent_spawned");
        ends.map(|(name, data)| format!("{} {name}", data["runId"].as_str().unwrap())).collect()
    };
    let expected = ["1 agent_completed", "2 agent_failed", "3 agent_failed", "4 agent_cancelled"];
    let own: Vec<String> = ends(events(&journal, "agent:a").await);
    assert_eq!(own, expected);
    let global: Vec<String> = ends(events(&journal, "global:events").await);
    assert_eq!(global, expected);
}
