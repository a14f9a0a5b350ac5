//! What people decide reaches the agent it is for, once, wherever it runs; and everybody gets an
//! answer.

use publisher_sdk::{Agent, Commands, Run};
use serde_json::{Value, json};
use tests::{Cluster, PATIENCE, until};

async fn next(commands: &mut Commands) -> publisher_sdk::Command {
    let command = tokio::time::timeout(PATIENCE, commands.next()).await;
    command.expect("a command arrives").expect("the agent lives")
}

/// Cancel cancels, from any replica; and it cancels this agent and no other.
#[tokio::test]
async fn cancel_reaches_the_one_agent_through_any_replica() {
    let cluster = Cluster::with_replicas(2).await;
    for replica in 0..2 {
        let (mine, other) = (format!("mine{replica}"), format!("other{replica}"));
        let (agent, bystander) = (cluster.agent(&mine).await, cluster.agent(&other).await);
        let (run, untouched) = (agent.begin_run("r1"), bystander.begin_run("r1"));
        let mut browser = cluster.browser_on(replica).connect().await;

        let cancel = json!({"type": "cancel_agent", "agent_id": mine, "reason": "enough"});
        let ack = browser.ask(cancel).await;
        let cancellation = tokio::time::timeout(PATIENCE, run.cancelled()).await.unwrap();
        let go = json!({"type": "command", "agent_id": other, "name": "go", "data": {"n": 1}});
        browser.ask(go).await;
        let command = next(&mut bystander.commands()).await;

        assert_eq!((&ack["type"], &ack["status"]), (&json!("ack"), &json!("accepted")), "{ack}");
        assert!(ack["listeners"].as_u64().is_some_and(|count| count >= 1), "{ack}");
        assert!(ack["command_id"].is_string(), "{ack}");
        assert_eq!(cancellation.detail.as_deref(), Some("enough"));
        assert_eq!((command.name.as_str(), &*command.data), ("go", r#"{"n":1}"#));
        assert!(!untouched.is_cancelled(), "the other agent was cancelled");
    }
}

/// A Cancel without an agent is answered so, and does not wait for an agent that comes later.
#[tokio::test]
async fn cancelling_nobody_is_answered_and_hits_nobody_later() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().connect().await;

    let error = browser.ask(json!({"type": "cancel_agent", "agent_id": "late"})).await;
    let agent = cluster.agent("late").await;
    let run = agent.begin_run("r1");
    browser.ask(json!({"type": "command", "agent_id": "late", "name": "go", "data": {}})).await;
    let command = next(&mut agent.commands()).await;

    assert_eq!(error["code"], "agent_unavailable", "{error}");
    assert_eq!(command.name, "go");
    assert!(!run.is_cancelled());
}

/// A browser that leaves changes nothing, however it leaves (invariant 7).
#[tokio::test]
async fn a_browser_that_leaves_touches_no_agent() {
    let mut cluster = Cluster::with_replicas(2).await;
    let agent = cluster.agent("a1").await;
    let session = agent.session("42").await.unwrap();
    let run = session.begin_run("r1");
    for replica in 0..2 {
        cluster.browser_on(replica).subscribed_to("session:42").await.leave().await;
        cluster.browser_on(replica).path("/ws/42").connect().await.vanish();
        let mut mute = cluster.browser_on(replica).subscribed_to("agent:a1").await;
        mute.stop_reading();
    }

    cluster.replicas[0].kill9();
    let mut browser = cluster.browser_on(1).connect().await;
    browser.ask(json!({"type": "command", "agent_id": "a1", "name": "go"})).await;

    assert_eq!(next(&mut agent.commands()).await.name, "go", "the first and only command");
    assert!(!run.is_cancelled());
}

/// F34: a command is done once, however often and wherever it is sent.
#[tokio::test]
async fn a_command_sent_again_and_elsewhere_is_done_once() {
    let cluster = Cluster::with_replicas(2).await;
    let agent = cluster.agent("a1").await;
    let mut browsers =
        [cluster.browser_on(0).connect().await, cluster.browser_on(1).connect().await];
    let id = "6f1f3cf3-94c7-4c8b-9f8e-2f3a4b5c6d7e";
    let command = json!({"type": "command", "agent_id": "a1", "name": "pay", "command_id": id});

    for _ in 0..3 {
        for browser in &mut browsers {
            let ack = browser.ask(command.clone()).await;
            assert_eq!((&ack["type"], &ack["command_id"]), (&json!("ack"), &json!(id)), "{ack}");
        }
    }
    browsers[1].ask(json!({"type": "command", "agent_id": "a1", "name": "last"})).await;

    let mut commands = agent.commands();
    let first = next(&mut commands).await;
    assert_eq!((first.name.as_str(), first.command_id.as_str()), ("pay", id));
    assert_eq!(next(&mut commands).await.name, "last");
    // Not by the agent's merit alone: the record itself holds it once, for agents of any language.
    let keys: Vec<String> = cluster.redis.run(&["KEYS", "*:commands:agent:a1"]).await;
    let length: u64 = cluster.redis.run(&["XLEN", &keys[0]]).await;
    assert_eq!((keys.len(), length), (1, 2), "entries in the journal of the agent's commands");
}

/// A command to a session reaches the agent that opened it, and tells it who asks.
#[tokio::test]
async fn a_command_to_a_session_reaches_its_agent_and_says_who_asks() {
    let cluster = Cluster::options().with_secret().set().await;
    let agent = cluster.agent("a1").await;
    let _session = agent.session("42").await.unwrap();
    let token = tests::Token::of("ada").allowing("command", &["session:42"]).sign();
    let mut browser = cluster.browser_on(1).token(&token).connect().await;

    let data = json!({"text": "faster", "by": "somebody else"});
    let command = json!({"type": "command", "channel": "session:42", "name": "steer", "data": data, "by": "eve"});
    let ack = browser.ask(command).await;

    assert_eq!(ack["type"], "ack", "{ack}");
    let command = next(&mut agent.commands()).await;
    assert_eq!((command.name.as_str(), command.by.as_deref()), ("steer", Some("ada")));
    assert_eq!(command.channel.as_str(), "session:42");
    assert_eq!(command.read::<Value>().unwrap(), data);
}

/// Stop on a session's page stops what was begun there, by whichever agent, and nothing else.
#[tokio::test]
async fn a_cancel_of_a_session_reaches_the_agents_spawned_for_its_runs() {
    let cluster = Cluster::with_replicas(2).await;
    let parent = cluster.agent("parent").await;
    let (here, there) =
        (parent.session("here").await.unwrap(), parent.session("there").await.unwrap());
    let (mine, other) = (here.begin_run("mine"), there.begin_run("other"));
    let spawn = async |id: &str, run: &Run| {
        let options = Agent::options().id(id).child_of(run);
        options.connect(&cluster.redis.url()).await.unwrap()
    };
    let child = spawn("child", &mine).await;
    let helping = child.begin_run("helping");
    let grandchild = spawn("grandchild", &helping).await;
    let stranger = spawn("stranger", &other).await;
    let (digging, working) = (grandchild.begin_run("digging"), stranger.begin_run("working"));
    let mut browser = cluster.browser_on(1).connect().await;

    let stop = json!({"type": "command", "channel": "session:here", "name": "cancel_agent"});
    let ack = browser.ask(stop).await;

    assert_eq!(ack["listeners"], 3, "{ack}");
    for run in [&mine, &helping, &digging] {
        tokio::time::timeout(PATIENCE, run.cancelled()).await.unwrap();
    }
    assert!(!other.is_cancelled() && !working.is_cancelled());
}

/// Whoever may watch a session sees which agents work on it, and who spawned them, and nothing of other sessions.
#[tokio::test]
async fn a_viewer_of_a_session_sees_its_tree_of_agents() {
    let cluster = Cluster::options().replicas(1).with_secret().set().await;
    let parent = cluster.agent("parent").await;
    let (here, there) =
        (parent.session("here").await.unwrap(), parent.session("there").await.unwrap());
    let (mine, other) = (here.begin_run("mine"), there.begin_run("other"));
    mine.announce(&()).await.unwrap();
    let spawn = async |id: &str, run: &Run| {
        let options = Agent::options().id(id).child_of(run);
        options.connect(&cluster.redis.url()).await.unwrap()
    };
    let child = spawn("child", &mine).await;
    let elsewhere = child.session("elsewhere").await.unwrap();
    let helping = elsewhere.begin_run("helping");
    let _grandchild = spawn("grandchild", &helping).await;
    let _stranger = spawn("stranger", &other).await;
    let get = async |channel: &str| {
        let token = tests::Token::of("ada").allowing("subscribe", &["session:here"]).sign();
        let bearer = format!("Bearer {token}");
        let headers = [("Authorization", bearer.as_str())];
        let path = format!("/api/v1/channels/{channel}/agents");
        let address = cluster.replicas[0].address();
        tests::http::call(&address, hyper::Method::GET, &path, &headers, "").await.unwrap()
    };

    let tree = until("its run is noted", async || {
        let tree = get("session:here").await.json();
        (tree["agents"][2]["runs_total"] == 1).then_some(tree)
    })
    .await;

    let shown = |at: usize| {
        let agent = &tree["agents"][at];
        assert!(agent["since"].is_u64(), "{tree}");
        (agent["agent_id"].clone(), agent["runs"].clone(), agent["parent"].clone())
    };
    assert_eq!(tree["agents"].as_array().map(Vec::len), Some(3), "{tree}");
    assert_eq!(
        shown(0),
        (json!("child"), json!([]), json!({"agent_id": "parent", "run_id": "mine"}))
    );
    assert_eq!(
        shown(1),
        (json!("grandchild"), json!([]), json!({"agent_id": "child", "run_id": "helping"}))
    );
    assert_eq!(shown(2), (json!("parent"), json!(["mine"]), Value::Null));
    assert_eq!(tree["more"], false);
    for channel in ["session:there", "agent:parent"] {
        assert_eq!(get(channel).await.error_code(), "not_found", "{channel}");
    }
}

/// Orders keep their order.
#[tokio::test]
async fn the_commands_of_one_browser_arrive_in_the_order_they_were_sent() {
    let cluster = Cluster::with_replicas(1).await;
    let agent = cluster.agent("a1").await;
    let mut browser = cluster.browser().connect().await;

    for i in 0..100 {
        browser.send(json!({"type": "command", "agent_id": "a1", "name": "step", "data": i})).await;
    }

    let mut commands = agent.commands();
    for i in 0..100 {
        assert_eq!(next(&mut commands).await.data.parse::<u64>(), Ok(i));
    }
}

/// A request is always answered: nobody serves this one.
#[tokio::test]
async fn a_request_that_nobody_serves_gets_its_typed_response() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().connect().await;

    let request = json!({"type": "request", "method": "sessions.create", "params": {}});
    let response = browser.ask(request).await;

    assert_eq!(response["type"], "response", "{response}");
    let error = &response["error"];
    assert_eq!(
        (&error["code"], &error["retryable"]),
        (&json!("no_worker"), &json!(true)),
        "{response}"
    );
    assert!(error["message"].as_str().is_some_and(|text| text.contains("sessions")), "{response}");
}

/// F35: a command while Redis is away is refused as retryable, and done once when it is retried.
#[tokio::test]
async fn a_command_while_redis_is_away_is_answered_and_done_once_when_retried() {
    let cluster = Cluster::options().with_chaos().set().await;
    let agent = cluster.agent("a1").await;
    let mut browser = cluster.browser_on(0).connect().await;
    let id = "0b0d9c55-9a35-4f6a-8a5b-8f3d5d0f9a11";
    let command = json!({"type": "command", "agent_id": "a1", "name": "pay", "command_id": id});

    cluster.chaos().cut();
    let mut answer = browser.ask(command.clone()).await;
    assert_eq!(
        (&answer["code"], &answer["retryable"]),
        (&json!("unavailable"), &json!(true)),
        "{answer}"
    );
    cluster.chaos().restore();
    while answer["type"] != "ack" {
        answer = browser.ask(command.clone()).await;
    }
    browser.ask(command).await;
    browser.ask(json!({"type": "command", "agent_id": "a1", "name": "last"})).await;

    let mut commands = agent.commands();
    assert_eq!(next(&mut commands).await.name, "pay");
    assert_eq!(next(&mut commands).await.name, "last");
}
