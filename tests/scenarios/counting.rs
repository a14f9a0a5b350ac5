//! Connections and subscribers are counted across replicas.

use serde_json::{Value, json};
use tests::{Cluster, Replica, until};

async fn subscribers(replica: &Replica, channel: &str) -> u64 {
    replica.get(&format!("/api/v1/channels/{channel}")).await.json()["subscribers"]
        .as_u64()
        .unwrap()
}

async fn stats(replica: &Replica) -> Value {
    replica.get("/api/v1/stats").await.json()
}

#[tokio::test]
async fn subscribers_are_counted_across_replicas_and_right_again_after_one_is_killed() {
    let mut cluster = Cluster::with_replicas(2).await;
    let mut browsers = Vec::new();
    for replica in [0, 0, 0, 1, 1] {
        browsers.push(cluster.browser_on(replica).subscribed_to("session:42").await);
    }
    for replica in &cluster.replicas {
        let all = async || (subscribers(replica, "session:42").await == 5).then_some(());
        until("both replicas count all five", all).await;
        until("and their connections", async || {
            (stats(replica).await["connections"] == 5).then_some(())
        })
        .await;
    }

    cluster.replicas[0].kill9();

    let left = &cluster.replicas[1];
    let two = async || (subscribers(left, "session:42").await == 2).then_some(());
    until("the dead replica's count no more", two).await;
    let stats = stats(left).await;
    assert_eq!(
        (&stats["connections"], stats["replicas"].as_array().unwrap().len()),
        (&2.into(), 1)
    );

    drop(browsers.pop());
    let one = async || (subscribers(left, "session:42").await == 1).then_some(());
    until("a browser that has left no longer counts", one).await;
}

/// A message for one connection, sent through any replica, reaches that one and no other.
#[tokio::test]
async fn a_message_reaches_the_one_connection_it_is_for() {
    let cluster = Cluster::with_replicas(2).await;
    let mut mine = cluster.browser_on(1).connect().await;
    let mut other = cluster.browser_on(1).connect().await;
    let id = mine.frames().find(|frame| frame["type"] == "connected").unwrap()["connection_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = |id: &str| format!("/api/v1/connections/{id}/messages");
    let body = json!({"event": "hello", "data": {"to": "you"}}).to_string();

    let sent = cluster.replicas[0].post(&path(&id), body.clone()).await;
    let gone =
        cluster.replicas[0].post(&path("5f0c6d0e1a2b4c3d8e9f0a1b2c3d4e5f-1"), body.clone()).await;
    let none = cluster.replicas[0].post(&path("nobody"), body).await;

    assert_eq!((sent.status, gone.status, none.status), (200, 404, 404), "{}", sent.text());
    let heard = mine.wait_for("the message", |frame| frame["event"] == "hello").await;
    assert_eq!((&heard["data"]["to"], &heard["connection_id"]), (&json!("you"), &json!(id)));
    other.settle().await;
    assert_eq!(other.count("event"), 0);
}
