//! The order in which Redis and agents are started does not matter.

use std::time::Duration;

use crate::cluster::{PATIENCE, events};
use journal::Journal;
use publisher_sdk::{Agent, ConnectError};
use tests::{Persistence, Redis};
use tokio::time::timeout;

#[tokio::test]
async fn an_agent_that_starts_before_its_redis_waits_for_it() {
    let mut redis = Redis::absent(Persistence::None);
    let url = redis.url();
    let connecting = tokio::spawn(async move { Agent::options().id("early").connect(&url).await });
    // Where waiting is bounded, the error is shown in words, with its cause.
    let bounded = Agent::options().connect_timeout(Duration::from_millis(1_500));
    let error = bounded.connect("redis://user:secret@127.0.0.1:1").await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }) && error.is_retryable(), "{error}");
    let shown = format!("{error:?}");
    let words = "`redis://***@127.0.0.1:1` did not answer within 1.5s: check that Redis";
    assert!(shown.starts_with(words), "{shown}");
    assert!(!shown.contains("Unreachable") && !shown.contains("secret"), "{shown}");

    redis.restart().await;

    let agent = timeout(PATIENCE, connecting).await.unwrap().unwrap().unwrap();
    agent.session("s").await.unwrap().publish("here", &()).await.unwrap();
    let journal = Journal::open(&redis.url()).unwrap();
    assert_eq!(events(&journal, "session:s").await.len(), 1);
}
