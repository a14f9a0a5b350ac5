//! What an agent says stands in the journal: all of it, once, in the order in which it was said.

use std::time::Duration;

use crate::cluster::{PATIENCE, Way, event, events, said, times};
use publisher_sdk::vocabulary::{TextComplete, ToolStart};
use publisher_sdk::{Agent, FlushError, OpenError, PublishError, Reason};
use serde_json::{Value, json};
use tokio::time::sleep;

on_every_way! {
    an_event_never_overtakes_the_text_before_it,
    awaited_and_sent_events_stand_in_one_order,
    offsets_are_consecutive,
    parallel_turns_never_mix,
    text_of_any_size_arrives_in_events_of_bounded_size,
    what_the_buffer_has_no_room_for_is_refused_and_everything_else_arrives,
    an_agent_that_is_dropped_still_writes_what_it_said,
    a_closed_agent_has_written_everything_and_takes_nothing,
    mistakes_are_found_before_anything_is_written,
    an_agents_life_is_told_on_its_own_channel_and_on_the_firehose,
    nothing_lost_means_a_quiet_flush,
}

async fn an_event_never_overtakes_the_text_before_it(way: Way) {
    let (agent, journal) = way.agent().await;
    let session = agent.session("s").await.unwrap();

    session.text_delta("t1", "before").unwrap();
    session.send_event(&ToolStart::new("Bash", "u1", json!({}))).unwrap();
    session.text_delta("t1", "between").unwrap();
    session.publish("custom", &json!({})).await.unwrap();
    session.text_delta("t1", "after").unwrap();
    session.send_event(&TextComplete::new("all").turn_id("t1")).unwrap();
    session.flush().await.unwrap();

    let expected = ["before", "tool_start", "between", "custom", "after", "text_complete"];
    assert_eq!(said(&journal, "session:s").await, expected);
}

async fn awaited_and_sent_events_stand_in_one_order(way: Way) {
    let (agent, journal) = way.agent().await;
    let channel = agent.channel("project:p").unwrap();
    let mut expected = Vec::new();

    for n in 0..500 {
        let name = format!("e{n}");
        match n % 5 {
            0 => drop(channel.publish(&name, &n).await.unwrap()),
            _ => channel.send(&name, &n).unwrap(),
        }
        expected.push(name);
    }
    agent.flush().await.unwrap();

    assert_eq!(said(&journal, "project:p").await, expected);
}

async fn offsets_are_consecutive(way: Way) {
    let (agent, _) = way.agent().await;
    let session = agent.session("s").await.unwrap();

    let first = session.publish("a", &()).await.unwrap();
    session.text_delta(None, "x").unwrap();
    let second = session.publish("b", &()).await.unwrap();

    assert_eq!((first.unwrap().n, second.unwrap().n), (1, 3));
}

async fn parallel_turns_never_mix(way: Way) {
    let (agent, journal) = way.agent().await;
    let session = agent.session("s").await.unwrap();

    for n in 0..100 {
        session.text_delta("left", &format!("l{n} ")).unwrap();
        session.text_delta("right", &format!("r{n} ")).unwrap();
        if n % 7 == 0 {
            sleep(Duration::from_millis(3)).await;
        }
    }
    session.flush().await.unwrap();

    let events = events(&journal, "session:s").await;
    let text = |turn: &str| {
        let of_turn = events.iter().filter(|(_, data)| data["turnId"] == turn);
        of_turn.map(|(_, data)| data["delta"].as_str().unwrap()).collect::<String>()
    };
    let expected = |turn: char| (0..100).map(|n| format!("{turn}{n} ")).collect::<String>();
    assert_eq!(text("left"), expected('l'));
    assert_eq!(text("right"), expected('r'));
}

async fn text_of_any_size_arrives_in_events_of_bounded_size(way: Way) {
    let (agent, journal) = way.agent().await;
    let session = agent.session("s").await.unwrap();
    let text = "\u{1}🦀\"\n".repeat(60_000);

    session.text_delta("t1", &text).unwrap();
    session.flush().await.unwrap();

    let said = said(&journal, "session:s").await;
    assert!(said.concat() == text, "not a character is lost");
    assert!(said.iter().all(|delta| serde_json::to_string(delta).unwrap().len() < 64 * 1024));
}

async fn what_the_buffer_has_no_room_for_is_refused_and_everything_else_arrives(way: Way) {
    let agent = way.enter(Agent::options().id("a").buffer(256 * 1024)).await;
    let journal = &way.journal;
    let session = agent.session("s").await.unwrap();
    let large = "x".repeat(60_000);

    // More than the whole buffer: refused however quickly the writer makes room.
    let refused = session.text_delta("t1", &"x".repeat(300_000)).unwrap_err();
    // More than may wait at once: how many of them find room depends on the writer.
    let accepted = (0..20).filter(|_| session.send("large", &large).is_ok()).count();
    agent.flush().await.unwrap();

    assert!(matches!(refused, PublishError::Full { limit: 262_144 }), "{refused}");
    assert!(accepted >= 4, "{accepted}");
    assert_eq!(said(journal, "session:s").await, vec!["large"; accepted]);
    session.send("large", &large).unwrap();
}

async fn an_agent_that_is_dropped_still_writes_what_it_said(way: Way) {
    let (agent, journal) = way.agent().await;
    let session = agent.session("s").await.unwrap();
    session.text_delta("t1", "first").unwrap();
    event(&journal, "session:s", "text_delta").await;

    session.text_delta("t1", " last words").unwrap();
    drop((agent, session));

    let written = async {
        while said(&journal, "session:s").await != ["first", " last words"] {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, written).await.expect("the last words");
}

async fn a_closed_agent_has_written_everything_and_takes_nothing(way: Way) {
    let (agent, journal) = way.agent().await;
    let session = agent.session("s").await.unwrap();
    let clone = agent.clone();
    session.text_delta("t1", "a").unwrap();
    session.send("b", &()).unwrap();

    agent.close().await.unwrap();

    assert_eq!(said(&journal, "session:s").await, ["a", "b"]);
    assert!(matches!(session.send("c", &()), Err(PublishError::Closed)));
    assert!(matches!(session.text_delta(None, "c"), Err(PublishError::Closed)));
    assert!(matches!(session.publish("c", &()).await, Err(PublishError::Closed)));
    assert!(matches!(clone.session("x").await, Err(OpenError::Closed)));
    assert!(matches!(clone.close().await, Ok(())), "closing twice is not a mistake");
}

async fn mistakes_are_found_before_anything_is_written(way: Way) {
    let (agent, journal) = way.agent().await;
    let session = agent.session("s").await.unwrap();

    let refused = [
        session.publish("two words", &()).await.unwrap_err(),
        session.publish("ack", &()).await.unwrap_err(),
        session.publish("large", &"x".repeat(70_000)).await.unwrap_err(),
        session.publish("map", &std::collections::HashMap::from([((1, 2), 3)])).await.unwrap_err(),
        session.text_delta("t".repeat(200).as_str(), "x").unwrap_err(),
        agent.spawned(&"no object").await.unwrap_err(),
    ];

    for error in refused {
        assert!(!error.is_retryable() && error.had_no_effect(), "{error}");
    }
    assert!(events(&journal, "session:s").await.is_empty());
    assert!(matches!(agent.channel("plan:a b"), Err(OpenError::Address(_))));
    assert!(matches!(agent.channel("service:x"), Err(OpenError::CommandsOnly(_))));
}

async fn an_agents_life_is_told_on_its_own_channel_and_on_the_firehose(way: Way) {
    let (agent, journal) = way.agent().await;

    agent.spawned(&json!({"task": "x", "agent_id": "somebody else"})).await.unwrap();
    agent.completed(&()).await.unwrap();
    agent.failed("boom", &json!({"runId": "r"})).await.unwrap();
    agent.cancelled(Reason::User, &json!({"by": "ann"})).await.unwrap();

    let expected: Vec<(String, Value)> = [
        ("agent_spawned", json!({"agent_id": "a", "task": "x"})),
        ("agent_completed", json!({"agent_id": "a"})),
        ("agent_failed", json!({"agent_id": "a", "error": "boom", "runId": "r"})),
        ("agent_cancelled", json!({"agent_id": "a", "reason": "user", "by": "ann"})),
    ]
    .map(|(name, data)| (name.to_owned(), data))
    .into();
    assert_eq!(events(&journal, "agent:a").await, expected);
    assert_eq!(events(&journal, "global:events").await, expected);
    let (own, global) = (times(&journal, "agent:a").await, times(&journal, "global:events").await);
    assert!(own.iter().zip(&global).all(|(own, global)| own < global), "the own channel first");
}

async fn nothing_lost_means_a_quiet_flush(way: Way) {
    let (agent, _) = way.agent().await;
    let flushed: Result<(), FlushError> = agent.flush().await;
    flushed.unwrap();
    assert_eq!(agent.lost_count(), 0);
}
