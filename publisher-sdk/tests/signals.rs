//! A process that is asked to end leaves no run open. Alone in its file: the signal reaches the whole
//! process.

mod cluster;

use std::process::Command;

use cluster::{PATIENCE, events};
use publisher_sdk::{Agent, Reason};
use serde_json::json;
use tokio::time::timeout;

#[tokio::test]
async fn an_agent_whose_process_is_asked_to_end_ends_its_runs_and_leaves() {
    let way = cluster::Way::in_process().await;
    let (agent, journal) = way.agent().await;
    let gone = way.enter(Agent::options().id("gone")).await;
    let nothing_to_do = gone.shutdown_on_signal().unwrap();
    drop(gone);
    timeout(PATIENCE, nothing_to_do).await.unwrap().unwrap().unwrap();
    let session = agent.session("s").await.unwrap();
    let (willing, stubborn) = (session.begin_run("willing"), session.begin_run("stubborn"));
    willing.announce(&()).await.unwrap();
    stubborn.announce(&()).await.unwrap();
    let ended = agent.shutdown_on_signal().unwrap();

    let pid = std::process::id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let why = timeout(PATIENCE, willing.cancelled()).await.unwrap();
    session.publish("last words", &()).await.unwrap_err();
    session.publish("last_words", &()).await.unwrap();
    willing.stop().await.unwrap();
    timeout(PATIENCE, ended).await.unwrap().unwrap().unwrap();

    assert_eq!(why.reason, Reason::Shutdown);
    assert_eq!(stubborn.cancellation().unwrap().reason, Reason::Shutdown);
    let said = events(&journal, "agent:a").await;
    let ends: Vec<_> = said.iter().filter(|(name, _)| name == "agent_cancelled").collect();
    assert_eq!(ends.len(), 2, "{said:?}");
    assert_eq!((&ends[0].1["runId"], &ends[1].1["runId"]), (&json!("willing"), &json!("stubborn")));
    assert!(ends.iter().all(|(_, data)| data["reason"] == "shutdown"));
    assert!(journal.alive(None, 100).await.unwrap().agents.is_empty());
}
