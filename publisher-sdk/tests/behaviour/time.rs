//! What takes long: the test controls the clock, so these agents use a journal in memory.

use std::time::Duration;

use journal::Journal;
use publisher_sdk::{Agent, PermissionRequest};
use tokio::time::{sleep, timeout};

use crate::cluster::{events, said};

const TICK: Duration = Duration::from_millis(50);

/// The agent `a` over a new journal.
async fn agent() -> (Agent, Journal) {
    let journal = Journal::in_memory();
    let agent = Agent::options().id("a").attach(journal.clone()).await.unwrap();
    (agent, journal)
}

#[tokio::test(start_paused = true)]
async fn the_first_token_leaves_at_once_and_the_others_with_the_tick() {
    let (agent, journal) = agent().await;
    let session = agent.session("s").await.unwrap();

    session.text_delta("t1", "The").unwrap();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(said(&journal, "session:s").await, ["The"]);

    for token in [" quick", " brown", " fox"] {
        session.text_delta("t1", token).unwrap();
    }
    sleep(TICK).await;
    assert_eq!(said(&journal, "session:s").await, ["The", " quick brown fox"]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_tokens_costs_one_entry_per_tick() {
    let (agent, journal) = agent().await;
    let session = agent.session("s").await.unwrap();

    for _ in 0..200 {
        session.text_delta("t1", "word ").unwrap();
        sleep(Duration::from_millis(10)).await;
    }
    session.flush().await.unwrap();

    let said = said(&journal, "session:s").await;
    assert_eq!(said.concat(), "word ".repeat(200));
    assert!((40..=42).contains(&said.len()), "2 s are 40 ticks, not {}", said.len());
}

#[tokio::test(start_paused = true)]
async fn a_flush_does_not_wait_for_the_tick() {
    let (agent, journal) = agent().await;
    let session = agent.session("s").await.unwrap();
    session.text_delta("t1", "a").unwrap();
    session.flush().await.unwrap();
    session.text_delta("t1", "b").unwrap();
    let before = tokio::time::Instant::now();

    session.flush().await.unwrap();

    assert_eq!(before.elapsed(), Duration::ZERO);
    assert_eq!(said(&journal, "session:s").await, ["a", "b"]);
}

#[tokio::test]
async fn without_a_window_every_token_leaves_at_once() {
    let journal = Journal::in_memory();
    let agent =
        Agent::options().batch_window(Duration::ZERO).attach(journal.clone()).await.unwrap();
    let session = agent.session("s").await.unwrap();

    for token in ["a", "b", "c"] {
        session.text_delta(None, token).unwrap();
        tokio::task::yield_now().await;
    }
    session.flush().await.unwrap();

    assert_eq!(said(&journal, "session:s").await, ["a", "b", "c"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_sessions_at_once_keep_each_its_own_order() {
    let (agent, journal) = agent().await;
    let writers = (0..8).map(|n| {
        let agent = agent.clone();
        tokio::spawn(async move {
            let session = agent.session(&n.to_string()).await.unwrap();
            for step in 0..1_000 {
                match step % 10 {
                    9 => drop(session.publish("mark", &step).await.unwrap()),
                    4 => session.send("note", &step).unwrap(),
                    _ => session.text_delta("t", &format!("{step} ")).unwrap(),
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    agent.close().await.unwrap();

    for n in 0..8 {
        let mut steps = String::new();
        for (_, data) in events(&journal, &format!("session:{n}")).await {
            match data["delta"].as_str() {
                Some(text) => steps.push_str(text),
                None => steps.push_str(&format!("{data} ")),
            }
        }
        let expected: String = (0..1_000).map(|step| format!("{step} ")).collect();
        assert_eq!(steps, expected, "session {n}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_agent_that_was_replaced_learns_it_by_its_next_renewal() {
    let (old, journal) = agent().await;
    let new = Agent::options().id("a").attach(journal.clone()).await.unwrap();

    timeout(Duration::from_secs(6), old.fenced()).await.unwrap();

    sleep(Duration::from_secs(60)).await;
    assert!(!new.is_fenced());
}

/// With no relay there, the agent keeps the time itself; the question is over for everybody.
#[tokio::test(start_paused = true)]
async fn a_question_that_nobody_answers_gets_its_default() {
    let (agent, journal) = agent().await;
    let session = agent.session("s").await.unwrap();
    let soon = Duration::from_secs(20);
    let request = || PermissionRequest::new("Bash", "ls", "Lists");

    let denied = session.ask_permission(request().expires_in(soon)).await.unwrap();
    let allowed = request().expires_in(soon).allowed_by_default();
    let allowed = session.ask_permission(allowed).await.unwrap();

    assert!(denied.timed_out && !denied.allowed && denied.by.is_none());
    assert!(allowed.timed_out && allowed.allowed);
    assert!(journal.pending(session.channel()).await.unwrap().1.is_empty());
}
