//! What people ask of an agent reaches it once, or they are told that it did not. A Cancel cancels only what it names.

use std::time::Duration;

use crate::cluster::{
    PATIENCE, Way, command, ended, events, new_command, next, nobody_is_on, outcome, request,
    statuses, until,
};
use journal::{Name, NewEntry, Status};
use publisher_sdk::{Agent, Reason, RequestError};
use serde_json::{Value, json};
use tokio::time::timeout;

on_every_way! {
    a_command_arrives_with_who_asked_and_with_its_arguments,
    every_viewer_sees_what_becomes_of_a_command,
    an_agent_receives_its_sessions_commands_as_long_as_it_holds_them,
    an_agent_that_is_gone_listens_no_longer,
    the_same_command_happens_once,
    a_restarted_agent_finds_what_was_sent_while_it_was_away_and_repeats_nothing,
    a_command_that_cannot_be_read_does_not_stop_the_next,
    a_command_that_nobody_wants_waits_and_expires_and_is_not_done_later,
    a_call_for_a_command_that_is_given_up_loses_no_command,
    many_more_commands_than_fit_in_memory_are_all_done_in_order,
    a_request_is_answered_with_a_result_or_with_a_typed_error,
    cancel_cancels_and_says_who_and_why,
    cancel_cancels_though_nobody_takes_commands,
    a_cancel_for_one_run_leaves_the_others_alone,
    a_cancel_that_names_a_run_is_applied_when_the_run_begins_also_by_a_later_agent,
    a_cancel_without_a_current_run_does_nothing_later_on,
    a_cancel_sent_to_a_session_cancels_the_runs_begun_there,
    a_malformed_cancel_cancels_nothing_and_is_rejected_aloud,
}

fn said(statuses: &[(&str, Value)]) -> Vec<(String, Value)> {
    statuses.iter().map(|(status, detail)| ((*status).to_owned(), detail.clone())).collect()
}

async fn a_command_arrives_with_who_asked_and_with_its_arguments(way: Way) {
    let (agent, journal) = way.agent().await;
    let mut commands = agent.commands();

    let id = command(&journal, "agent:a", "set_model", json!({"model": "large"})).await;

    let command = next(&mut commands).await;
    assert_eq!((command.name.as_str(), command.command_id), ("set_model", id.to_string()));
    assert_eq!(command.by.as_deref(), Some("ann"));
    assert_eq!(command.channel.as_str(), "agent:a");
    assert_eq!(serde_json::from_str::<Value>(&command.data).unwrap(), json!({"model": "large"}));
}

async fn every_viewer_sees_what_becomes_of_a_command(way: Way) {
    let (agent, journal) = way.agent().await;
    let mut commands = agent.commands();

    let done = command(&journal, "agent:a", "a", json!({})).await;
    next(&mut commands).await.applied();
    let refused = command(&journal, "agent:a", "b", json!({})).await;
    next(&mut commands).await.rejected("not today");
    let wordy = command(&journal, "agent:a", "b", json!({})).await;
    next(&mut commands).await.rejected(&"no ".repeat(30_000));
    let dropped = command(&journal, "agent:a", "c", json!({})).await;
    drop(next(&mut commands).await);
    let panicked = command(&journal, "agent:a", "d", json!({})).await;
    let taken = next(&mut commands).await;
    let panicking = tokio::spawn(async move { assert!(taken.method().is_some(), "on purpose") });
    assert!(panicking.await.is_err());

    let delivered = ("delivered", Value::Null);
    for (id, last) in [
        (done, ("applied", Value::Null)),
        (refused, ("rejected", json!("not today"))),
        (wordy, ("rejected", json!("no ".repeat(30_000)[..4_096]))),
        (dropped, ("rejected", json!("the agent dropped it"))),
        (panicked, ("rejected", json!("the agent panicked over it"))),
    ] {
        assert_eq!(ended(&journal, "agent:a", id).await, said(&[delivered.clone(), last]));
    }
}

async fn an_agent_receives_its_sessions_commands_as_long_as_it_holds_them(way: Way) {
    let (agent, journal) = way.agent().await;
    let mut commands = agent.commands();
    let session = agent.session("s").await.unwrap();
    let again = agent.session("s").await.unwrap();

    command(&journal, "session:s", "one", json!({})).await;
    assert_eq!(next(&mut commands).await.channel.as_str(), "session:s");
    drop(session);
    command(&journal, "session:s", "two", json!({})).await;
    assert_eq!(next(&mut commands).await.name, "two");
    drop(again);
    nobody_is_on(&journal, "session:s").await;
    command(&journal, "session:s", "three", json!({})).await;
    command(&journal, "agent:a", "four", json!({})).await;

    assert_eq!(next(&mut commands).await.name, "four");
    let _session = agent.session("s").await.unwrap();
    assert_eq!(next(&mut commands).await.name, "three", "it waited for an agent");
}

async fn an_agent_that_is_gone_listens_no_longer(way: Way) {
    let (agent, journal) = way.agent().await;
    let session = agent.session("s").await.unwrap();
    let mut commands = agent.commands();

    drop((agent, session));

    assert!(timeout(PATIENCE, commands.next()).await.unwrap().is_none());
    nobody_is_on(&journal, "agent:a").await;
    nobody_is_on(&journal, "session:s").await;
}

async fn the_same_command_happens_once(way: Way) {
    let (agent, journal) = way.agent().await;
    let mut commands = agent.commands();
    let [one, two, three] = ["one", "two", "three"].map(|n| new_command("agent:a", n, &json!({})));

    let mut keys = Vec::new();
    for new in [&one, &one, &two, &one, &three] {
        keys.push(journal.send(new).await.unwrap().key);
    }

    for expected in ["one", "two", "three"] {
        let command = next(&mut commands).await;
        assert_eq!(command.name, expected);
        command.applied();
    }
    assert_eq!(outcome(&journal, "agent:a", keys[0]).await.0, Status::Applied);
}

async fn a_restarted_agent_finds_what_was_sent_while_it_was_away_and_repeats_nothing(way: Way) {
    let (first, journal) = way.agent().await;
    let mut commands = first.commands();
    let done = command(&journal, "agent:a", "done", json!({})).await;
    next(&mut commands).await.applied();
    let begun = command(&journal, "agent:a", "begun", json!({})).await;
    let _begun = next(&mut commands).await;
    command(&journal, "agent:a", "waits", json!({})).await;
    ended(&journal, "agent:a", done).await;

    // As after a crash: no lease was released.
    let second = way.enter(Agent::options().id("a")).await;
    command(&journal, "agent:a", "new", json!({})).await;

    let mut commands = second.commands();
    assert_eq!(next(&mut commands).await.name, "waits");
    assert_eq!(next(&mut commands).await.name, "new");
    assert_eq!(
        ended(&journal, "agent:a", begun).await.last(),
        Some(&("rejected".into(), json!("lost")))
    );
}

async fn a_command_that_cannot_be_read_does_not_stop_the_next(way: Way) {
    let (agent, journal) = way.agent().await;
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

async fn a_command_that_nobody_wants_waits_and_expires_and_is_not_done_later(way: Way) {
    let (agent, journal) = way.agent().await;
    let mut brief = new_command("agent:a", "brief", &json!({}));
    brief.expires_in = Duration::from_millis(30);
    let key = journal.send(&brief).await.unwrap().key;
    let patient = command(&journal, "agent:a", "patient", json!({})).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert!(statuses(&journal, "agent:a", patient).await.is_empty(), "it is not taken unwanted");

    let mut commands = agent.commands();
    assert_eq!(next(&mut commands).await.name, "patient");

    assert_eq!(outcome(&journal, "agent:a", key).await.0, Status::Expired);
}

async fn a_call_for_a_command_that_is_given_up_loses_no_command(way: Way) {
    let (agent, journal) = way.agent().await;
    let mut commands = agent.commands();
    assert!(timeout(Duration::from_millis(20), commands.next()).await.is_err());
    let mut sent = Vec::new();
    for n in 0..50 {
        sent.push(command(&journal, "agent:a", "work", json!(n)).await);
    }

    let mut seen = Vec::new();
    let mut patience = 0;
    while seen.len() < sent.len() {
        if let Ok(Some(command)) = timeout(Duration::from_micros(patience), commands.next()).await {
            seen.push(command.read::<usize>().unwrap());
            command.applied();
        }
        patience = (patience + 50) % 2_000;
    }

    assert_eq!(seen, (0..50).collect::<Vec<_>>());
}

async fn many_more_commands_than_fit_in_memory_are_all_done_in_order(way: Way) {
    let (agent, journal) = way.agent().await;
    let handled = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let handler = std::sync::Arc::clone(&handled);
    let service = agent.service("sums").at_once(1);
    let mut keys = Vec::new();
    for n in 0..3_000 {
        keys.push(request(&journal, "service:sums", "sums.add", json!(n)).await);
    }

    let _service = service
        .serve(move |request| {
            handler.lock().unwrap().push(request.read::<u64>().unwrap());
            async { Ok(Value::Null) }
        })
        .await
        .unwrap();

    // As long as it goes on: how fast it goes is not promised here.
    let mut count = 0;
    while count < 3_000 {
        let more = async || Some(handled.lock().unwrap().len()).filter(|now| *now > count);
        count = until("more are handled", more).await;
    }
    assert_eq!(*handled.lock().unwrap(), (0..3_000).collect::<Vec<_>>());
}

async fn a_request_is_answered_with_a_result_or_with_a_typed_error(way: Way) {
    let (agent, journal) = way.agent().await;
    let _session = agent.session("s").await.unwrap();
    let mut commands = agent.commands();
    let asked = request(&journal, "session:s", "model", json!({"n": 1})).await;
    let command = next(&mut commands).await;
    assert_eq!((command.name.as_str(), command.method()), ("request", Some("model")));
    assert_eq!(command.read::<Value>().unwrap(), json!({"n": 1}));
    command.reply(&json!({"name": "large"}));
    let refused = request(&journal, "agent:a", "model", json!({})).await;
    next(&mut commands).await.refuse(&RequestError::new("busy", "later").retryable());
    let dropped = request(&journal, "agent:a", "model", json!({})).await;
    drop(next(&mut commands).await);

    assert_eq!(
        outcome(&journal, "session:s", asked).await,
        (Status::Applied, json!({"name": "large"}))
    );
    let busy = json!({"code": "busy", "message": "later", "retryable": true});
    assert_eq!(outcome(&journal, "agent:a", refused).await, (Status::Rejected, busy));
    let dropped = outcome(&journal, "agent:a", dropped).await;
    assert_eq!((dropped.0, &dropped.1["code"]), (Status::Rejected, &json!("rejected")));
    assert!(events(&journal, "agent:a").await.is_empty(), "a request is nobody else's business");
}

async fn cancel_cancels_and_says_who_and_why(way: Way) {
    let (agent, journal) = way.agent().await;
    let mut commands = agent.commands();
    let run = agent.begin_run("run-1");
    run.announce(&json!({"task": "x"})).await.unwrap();
    let token = run.token();

    let data = json!({"agent_id": "a", "reason": "enough"});
    let id = command(&journal, "agent:a", "cancel_agent", data).await;

    let cancellation = timeout(PATIENCE, run.cancelled()).await.unwrap();
    assert_eq!((cancellation.reason, cancellation.by.as_deref()), (Reason::User, Some("ann")));
    assert_eq!(cancellation.detail.as_deref(), Some("enough"));
    assert!(token.is_cancelled());
    let statuses = ended(&journal, "agent:a", id).await;
    assert_eq!(statuses, said(&[("delivered", Value::Null), ("applied", Value::Null)]));
    let seen = next(&mut commands).await;
    assert_eq!(seen.name, "cancel_agent", "it can be seen, too");
    seen.rejected("what is done is done");
    run.stop().await.unwrap();
    let said = events(&journal, "global:events").await;
    let expected = json!({
        "agent_id": "a", "runId": "run-1", "reason": "user", "by": "ann", "detail": "enough"
    });
    assert_eq!(said.last().unwrap(), &("agent_cancelled".to_owned(), expected));
    assert_eq!(ended(&journal, "agent:a", id).await, statuses, "nothing more is said of it");
}

async fn cancel_cancels_though_nobody_takes_commands(way: Way) {
    let (agent, journal) = way.agent().await;
    let run = agent.begin_run("run-1");
    for n in 0..200 {
        command(&journal, "agent:a", "work", json!(n)).await;
    }

    command(&journal, "agent:a", "cancel_agent", json!({"agent_id": "a"})).await;

    timeout(PATIENCE, run.cancelled()).await.unwrap();
}

async fn a_cancel_for_one_run_leaves_the_others_alone(way: Way) {
    let (agent, journal) = way.agent().await;
    let (one, two) = (agent.begin_run("run-1"), agent.begin_run("run-2"));

    let early = command(&journal, "agent:a", "cancel_agent", json!({"run_id": "run-3"})).await;
    let id = command(&journal, "agent:a", "cancel_agent", json!({"run_id": "run-2"})).await;
    ended(&journal, "agent:a", id).await;

    assert!(two.is_cancelled());
    assert!(!one.is_cancelled());
    let token = two.token();
    two.complete().await.unwrap();
    let late = command(&journal, "agent:a", "cancel_agent", json!({"run_id": "run-2"})).await;
    let late = ended(&journal, "agent:a", late).await;
    assert_eq!(late.last(), Some(&("rejected".into(), json!("the run has ended"))));
    assert!(token.is_cancelled() && !one.is_cancelled());
    assert_eq!(statuses(&journal, "agent:a", early).await, said(&[("delivered", Value::Null)]));
}

async fn a_cancel_that_names_a_run_is_applied_when_the_run_begins_also_by_a_later_agent(way: Way) {
    let (agent, journal) = way.agent().await;
    let early = command(&journal, "agent:a", "cancel_agent", json!({"run_id": "run-1"})).await;
    until("it is delivered", async || {
        (!statuses(&journal, "agent:a", early).await.is_empty()).then_some(())
    })
    .await;

    let run = agent.begin_run("run-1");

    timeout(PATIENCE, run.cancelled()).await.unwrap();
    assert_eq!(ended(&journal, "agent:a", early).await.last().unwrap().0, "applied");
    let never = command(&journal, "agent:a", "cancel_agent", json!({"run_id": "run-2"})).await;
    until("it is delivered", async || {
        (!statuses(&journal, "agent:a", never).await.is_empty()).then_some(())
    })
    .await;
    drop(run);
    agent.close().await.unwrap();
    let never = ended(&journal, "agent:a", never).await;
    assert_eq!(never.last().unwrap(), &("rejected".into(), json!("no such run has begun")));

    let before = command(&journal, "agent:a", "cancel_agent", json!({"run_id": "run-3"})).await;
    let stray = command(&journal, "agent:a", "cancel_agent", json!({})).await;
    let agent = way.enter(Agent::options().id("a")).await;
    let other = agent.begin_run("run-4");
    until("it is delivered", async || {
        (!statuses(&journal, "agent:a", before).await.is_empty()).then_some(())
    })
    .await;
    timeout(PATIENCE, agent.begin_run("run-3").cancelled()).await.unwrap();
    assert_eq!(ended(&journal, "agent:a", before).await.last().unwrap().0, "applied");
    let stray = ended(&journal, "agent:a", stray).await;
    assert_eq!(stray.last().unwrap().1, json!("it was sent before the agent was there"));
    assert!(!other.is_cancelled(), "it was not meant");
}

async fn a_cancel_without_a_current_run_does_nothing_later_on(way: Way) {
    let (agent, journal) = way.agent().await;
    let finished = agent.begin_run("run-1");
    let token = finished.token();
    finished.complete().await.unwrap();

    let id = command(&journal, "agent:a", "cancel_agent", json!({"agent_id": "a"})).await;

    let status = ended(&journal, "agent:a", id).await;
    assert_eq!(status.last(), Some(&("rejected".into(), json!("nothing runs"))));
    assert!(!token.is_cancelled());
    assert!(!agent.begin_run("run-2").is_cancelled());
    assert!(!agent.begin_run("run-1").is_cancelled());
}

async fn a_cancel_sent_to_a_session_cancels_the_runs_begun_there(way: Way) {
    let (agent, journal) = way.agent().await;
    let (one, two) = (agent.session("1").await.unwrap(), agent.session("2").await.unwrap());
    let (mine, other) = (one.begin_run("run"), two.begin_run("run"));

    let id = command(&journal, "session:1", "cancel_agent", json!({})).await;
    ended(&journal, "session:1", id).await;

    assert!(mine.is_cancelled());
    assert!(!other.is_cancelled());
}

async fn a_malformed_cancel_cancels_nothing_and_is_rejected_aloud(way: Way) {
    let (agent, journal) = way.agent().await;
    let run = agent.begin_run("run-1");

    let id = command(&journal, "agent:a", "cancel_agent", json!({"run_id": 1})).await;

    assert_eq!(ended(&journal, "agent:a", id).await.last().unwrap().0, "rejected");
    assert!(!run.is_cancelled());
}
