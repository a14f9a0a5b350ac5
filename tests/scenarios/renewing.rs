//! A token is renewed on a connection that stands, and what the new one does not permit ends.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use publisher_sdk::{Agent, ConnectError};
use serde_json::{Value, json};
use tests::{Cluster, Token, until};

async fn guarded() -> Cluster {
    Cluster::options().replicas(1).with_secret().set().await
}

/// Waits until the relay does not take the token any more.
async fn has_ended(cluster: &Cluster, token: &str) {
    until("the token has ended", async || {
        (cluster.browser().token(token).refused().await == 401).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_page_that_renews_its_token_outlives_the_first_one() {
    let cluster = guarded().await;
    let token = Token::of("ada").allowing("subscribe", &["session:1", "session:2"]);
    let mut browser = cluster.browser().token(&token.sign()).connect().await;
    browser.subscribe("session:1").await;
    browser.subscribe("session:2").await;
    let second = Token::of("ada").allowing("subscribe", &["session:1"]).sign();
    // One that ends soon is renewed at once, however long the rest takes.
    let first = token.clone().ending_in(3).sign();
    browser.send(json!({"type": "auth", "token": first})).await;

    let answer = browser.ask(json!({"type": "auth", "token": second})).await;

    assert_eq!(answer["type"], "authenticated", "{answer}");
    assert!(answer["expires_at"].as_u64().unwrap() > tests::token::now() * 1_000, "{answer}");
    let ended = browser.wait_for_type("unsubscribed").await;
    assert_eq!((&ended["channel"], &ended["reason"]), (&json!("session:2"), &json!("revoked")));
    has_ended(&cluster, &first).await;
    cluster.replicas[0].publish_numbers("session:2", 0..1).await;
    cluster.replicas[0].publish_numbers("session:1", 0..3).await;
    browser.expect_numbers("session:1", 0..3).await;
    assert!(browser.events("session:2").is_empty(), "it is not permitted any more");
}

/// A token of somebody else, or none at all, changes nothing: the one before holds until its end.
#[tokio::test]
async fn a_token_that_is_refused_leaves_the_one_before() {
    let cluster = guarded().await;
    let token = Token::of("ada").allowing("subscribe", &["session:1"]);
    let mut browser = cluster.browser().token(&token.sign()).connect().await;
    for bad in [Token::of("eve").sign(), token.clone().ending_in(-1).sign(), "abc".to_owned()] {
        let error = browser.ask(json!({"type": "auth", "token": bad})).await;
        assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("unauthorized")));
    }
    browser.subscribe("session:1").await;
}

/// An agent's lease outside its new grant ends alone, and everybody is told that its runs there are over; without its own
/// channel all ends.
#[tokio::test]
async fn an_agents_lease_outside_its_new_token_ends_and_its_runs_are_told_as_over() {
    let cluster = guarded().await;
    let grant = |serve: &[&str]| {
        Token::of("a1").allowing("serve", serve).allowing("publish", &["*"]).sign()
    };
    let everything = Token::of("eve").allowing("subscribe", &["*"]).sign();
    let mut viewer = cluster.browser().token(&everything).subscribed_to("session:1").await;
    viewer.subscribe("agent:a1").await;
    let first = grant(&["agent:a1", "session:1"]);
    let mut agent = cluster.browser().path("/ws/agents/a1").token(&first).connect().await;
    let mut last = 0;
    let mut call = |kind: &str, channel: &str, data: Value| {
        last += 1;
        (last, json!({"type": kind, "id": last, "channel": channel, "data": data}))
    };
    let mut incarnation = Value::Null;
    for (kind, channel, data) in [
        ("lease", "agent:a1", json!({})),
        ("lease", "session:1", json!({})),
        ("note", "session:1", json!({"runs": {"added": ["r1", "r2"]}})),
    ] {
        let (id, frame) = call(kind, channel, data);
        agent.send(frame).await;
        let ack = agent.wait_for("the ack", |frame| frame["id"] == id).await;
        assert_eq!(ack["type"], "ack", "{ack}");
        if channel == "agent:a1" {
            incarnation = ack["data"]["incarnation"].clone();
        }
    }
    assert!(incarnation.is_u64(), "{incarnation}");

    agent.send(json!({"type": "auth", "id": 100, "token": grant(&["agent:a1"])})).await;

    let authenticated = agent.wait_for_type("authenticated").await;
    assert_eq!(authenticated["id"], 100, "{authenticated}");
    assert_eq!(agent.wait_for_type("released").await["channel"], "session:1");
    let lost = viewer.wait_for("`agent_lost`", |frame| frame["event"] == "agent_lost").await;
    assert_eq!(lost["channel"], "session:1", "{lost}");
    let data = json!({"agent_id": "a1", "reason": "revoked", "runs": ["r1", "r2"]});
    assert_eq!(lost["data"], data, "{lost}");
    // It lives on.
    agent
        .send(
            json!({"type": "publish", "id": 101, "channel": "agent:a1", "event": "hi", "data": {}}),
        )
        .await;
    let ack = agent.wait_for("the ack", |frame| frame["id"] == 101).await;
    assert_eq!(ack["type"], "ack", "{ack}");
    agent.send(json!({"type": "lease", "id": 102, "channel": "session:1"})).await;
    let error = agent.wait_for("the error", |frame| frame["id"] == 102).await;
    assert_eq!(error["code"], "not_found", "{error}");

    agent.send(json!({"type": "auth", "id": 103, "token": grant(&["session:1"])})).await;

    let (code, _) = agent.wait_for_close().await;
    assert_eq!(code, 4501);
    let of_its_life =
        |frame: &Value| frame["event"] == "agent_lost" && frame["channel"] == "agent:a1";
    let lost = viewer.wait_for("`agent_lost` of the agent itself", of_its_life).await;
    assert_eq!(lost["data"]["reason"], "revoked", "{lost}");
}

/// What waits when the grant shrinks is not done any more; what is under way ends, and then the lease does, with its
/// questions.
#[tokio::test]
async fn what_an_agent_asked_for_before_its_grant_shrank_is_not_done_afterwards() {
    let cluster = guarded().await;
    let grant = |on: &[&str]| Token::of("a1").allowing("serve", on).allowing("publish", on).sign();
    let (all, own) = (["agent:a1", "session:1"], ["agent:a1"]);
    let everything = Token::of("eve").allowing("subscribe", &["*"]).sign();
    let mut viewer = cluster.browser().token(&everything).subscribed_to("session:1").await;
    let mut agent = cluster.browser().path("/ws/agents/a1").token(&grant(&all)).connect().await;
    let call = |kind: &str, id: u64, channel: &str, data: Value| json!({"type": kind, "id": id, "channel": channel, "event": "late", "data": data});
    let ask = |id: u64, request_id: &str| {
        let data = json!({"request_id": request_id, "asks": "permission", "question": {}, "expires_in_ms": 600_000});
        call("ask", id, "session:1", data)
    };
    agent.send(call("lease", 1, "agent:a1", json!({}))).await;
    agent.send(call("lease", 2, "session:1", json!({}))).await;
    agent.send(ask(3, "early")).await;
    agent.wait_for("the ack", |frame| frame["id"] == 3).await;

    cluster.redis.freeze();
    agent.send(ask(10, "under-way")).await;
    agent.send(call("publish", 11, "session:1", json!({}))).await;
    agent.send(call("note", 12, "session:1", json!({"runs": {"added": ["r1"]}}))).await;
    agent.send(call("publish", 13, "session:1", json!({}))).await;
    agent.send(json!({"type": "auth", "id": 20, "token": grant(&own)})).await;
    agent.wait_for_type("authenticated").await;
    cluster.redis.thaw();

    assert_eq!(agent.wait_for_type("released").await["channel"], "session:1");
    let reply = |id: u64| agent.frames().find(|frame| frame["id"] == id).unwrap().clone();
    for id in 11..=13 {
        let reply = reply(id);
        assert_eq!(reply["code"], "not_found", "{reply}");
    }
    let is_withdrawn = |frame: &Value| {
        frame["event"] == "permission_resolved" && frame["data"]["requestId"] == "early"
    };
    let ended = viewer.wait_for("its end", is_withdrawn).await;
    assert_eq!(ended["data"]["reason"], "withdrawn", "{ended}");
    let path = format!("/api/v1/channels/session:1?token={everything}");
    let channel = cluster.replicas[0].get(&path).await.json();
    assert_eq!(channel["pending"], json!([]), "the one under way is withdrawn as well: {channel}");
    assert!(viewer.frames().all(|frame| frame["event"] != "late"), "a publish was done");
    // It lives on.
    agent.send(call("publish", 21, "agent:a1", json!({}))).await;
    let ack = agent.wait_for("the ack", |frame| frame["id"] == 21).await;
    assert_eq!(ack["type"], "ack", "{ack}");
}

/// A repeated `lease` that Redis does not answer leaves the lease that is held, and so what a new token may end.
#[tokio::test]
async fn a_lease_whose_repetition_failed_is_still_ended_by_a_new_token() {
    let cluster = guarded().await;
    let grant = |serve: &[&str]| Token::of("a1").allowing("serve", serve).sign();
    let first = grant(&["agent:a1", "session:1"]);
    let mut agent = cluster.browser().path("/ws/agents/a1").token(&first).connect().await;
    let mut call = async |id: u64, channel: &str| {
        agent.send(json!({"type": "lease", "id": id, "channel": channel})).await;
        agent.wait_for("the reply", |frame| frame["id"] == id).await
    };
    assert_eq!(call(1, "agent:a1").await["type"], "ack");
    assert_eq!(call(2, "session:1").await["type"], "ack");
    cluster.redis.freeze();
    let failed = call(3, "session:1").await;
    assert_eq!(failed["code"], "unavailable", "{failed}");
    cluster.redis.thaw();
    assert_eq!(call(4, "agent:a1").await["type"], "ack");

    agent.send(json!({"type": "auth", "id": 5, "token": grant(&["agent:a1"])})).await;

    assert_eq!(agent.wait_for_type("released").await["channel"], "session:1");
}

/// The SDK asks its source at each connect and before the end, and shows the new token on the connection that stands.
#[tokio::test]
async fn an_agent_with_a_token_source_outlives_its_tokens_on_one_connection() {
    let cluster = guarded().await;
    let everything = Token::of("eve").allowing("subscribe", &["*"]).sign();
    let mut viewer = cluster.browser().token(&everything).subscribed_to("session:1").await;
    let token = |seconds| {
        let token = Token::of("a1").allowing("serve", &["agent:a1", "session:1"]);
        token.allowing("publish", &["*"]).ending_in(seconds).sign()
    };
    let (first, asked) = (Arc::new(OnceLock::new()), Arc::new(AtomicU64::new(0)));
    let source = {
        let (first, asked) = (Arc::clone(&first), Arc::clone(&asked));
        move || {
            let is_first = asked.fetch_add(1, Ordering::SeqCst) == 0;
            let token =
                if is_first { first.get_or_init(|| token(5)).clone() } else { token(3_600) };
            async move { Ok(token) }
        }
    };
    let url = format!("http://{}", cluster.replicas[0].address());
    let agent = Agent::options().id("a1").token_source(source).connect(&url).await.unwrap();
    let session = agent.session("1").await.unwrap();

    has_ended(&cluster, first.get().unwrap()).await;
    session.publish("after", &json!({})).await.unwrap();

    viewer.wait_for("the event", |frame| frame["event"] == "after").await;
    assert_eq!(asked.load(Ordering::SeqCst), 2, "at the connect and before the end");
    let log = cluster.replicas[0].log().text();
    assert_eq!(log.matches("an agent has connected").count(), 1, "{log}");
    agent.close().await.unwrap();
}

/// A refused token is an error of its own: another token is needed, not another address.
#[tokio::test]
async fn an_agent_whose_token_is_refused_is_told_so() {
    let cluster = guarded().await;
    let url = format!("http://{}", cluster.replicas[0].address());
    let connect = async |token: &str| {
        let connected = Agent::options().id("a1").token(token).connect(&url).await;
        connected.map(drop).unwrap_err()
    };
    let expired = connect(&Token::of("a1").allowing("serve", &["*"]).ending_in(-1).sign()).await;
    assert!(
        matches!(&expired, ConnectError::Unauthorized { why, .. } if why.contains("has ended")),
        "{expired}"
    );
    let other = connect(&Token::of("a1").allowing("serve", &["agent:a2"]).sign()).await;
    assert!(matches!(other, ConnectError::Refused { .. }), "{other}");
}
