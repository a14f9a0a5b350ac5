//! What is asked of an agent is done once or not at all, and the sender is told which.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hyper::Method;
use publisher_sdk::{Agent, Journal};
use serde_json::{Value, json};
use tests::{Browser, Cluster, http, until};

fn cancel(agent_id: &str) -> Value {
    json!({"type": "cancel_agent", "agent_id": agent_id})
}

fn command(agent_id: &str, name: &str) -> Value {
    json!({"type": "command", "agent_id": agent_id, "name": name})
}

async fn both(cluster: &Cluster) -> [Browser; 2] {
    [cluster.browser_on(0).connect().await, cluster.browser_on(1).connect().await]
}

/// F33: without an agent a command is refused, and an agent that comes later does not receive it.
#[tokio::test]
async fn what_must_not_wait_is_refused_at_once_and_never_done_later() {
    let cluster = Cluster::with_replicas(2).await;
    for browser in &mut both(&cluster).await {
        let no_wait =
            json!({"type": "command", "agent_id": "late", "name": "x", "may_wait": false});
        let request = json!({"type": "request", "agent_id": "late", "method": "x"});
        for frame in [cancel("late"), no_wait, request] {
            let answer = browser.ask(frame).await;
            let error = if answer["type"] == "response" { &answer["error"] } else { &answer };
            let expected = (&json!("agent_unavailable"), &json!(true));
            assert_eq!((&error["code"], &error["retryable"]), expected, "{answer}");
        }
    }

    let mut agent = cluster.actor("late").await;
    let ack = cluster.browser().connect().await.ask(command("late", "first")).await;

    assert_eq!((&ack["listeners"], &ack["queued"]), (&json!(1), &Value::Null), "{ack}");
    assert_eq!(&*agent.next().await.name, "first");
}

/// A Cancel that is quicker than the run it is for.
#[tokio::test]
async fn a_cancel_that_names_its_run_waits_for_it() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().connect().await;

    let frame = json!({"type": "cancel_agent", "agent_id": "a1", "run_id": "r1", "reason": "oops"});
    let ack = browser.ask(frame).await;
    let mut agent = cluster.actor("a1").await;

    let expected = json!({"status": "accepted", "listeners": 0, "queued": true});
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&ack[field], value, "{ack}");
    }
    let heard = agent.next().await;
    let data: Value = serde_json::from_str(&heard.data).unwrap();
    assert_eq!(data, json!({"agent_id": "a1", "run_id": "r1", "reason": "oops"}));
    assert!(agent.takes(&heard).await);
}

/// What waits does not wait for ever, and everybody is told of its end.
#[tokio::test]
async fn a_command_that_nobody_takes_in_time_expires_and_all_screens_say_so() {
    let cluster = Cluster::with_replicas(2).await;
    let mut screens = both(&cluster).await;
    for screen in &mut screens {
        screen.subscribe("agent:a1").await;
    }

    let mut frame = command("a1", "go");
    frame["expires_in_ms"] = json!(200);
    let ack = screens[0].ask(frame.clone()).await;

    assert_eq!((&ack["status"], &ack["queued"]), (&json!("accepted"), &json!(true)), "{ack}");
    for screen in &mut screens {
        let told = screen.wait_for("command_status", |f| f["event"] == "command_status").await;
        let expected = json!({"command_id": ack["command_id"], "status": "expired"});
        assert_eq!(told["data"], expected, "{told}");
    }
    let mut late = cluster.actor("a1").await;
    let next = screens[0].ask(command("a1", "next")).await;
    let heard = late.next().await;
    assert_eq!(next["command_id"], *heard.command_id, "what has expired is not heard");
    frame["command_id"] = ack["command_id"].clone();
    let again = screens[1].ask(frame).await;
    assert_eq!(again["status"], "expired", "{again}");
}

/// F34: sent five times through three replicas at once, and again after reconnecting.
#[tokio::test]
async fn a_repeated_command_is_done_once_and_learns_what_became_of_the_first() {
    let cluster = Cluster::with_replicas(3).await;
    let mut agent = cluster.actor("a1").await;
    let id = "6f1f3cf3-94c7-4c8b-9f8e-2f3a4b5c6d7e";
    let mut frame = command("a1", "pay");
    frame["command_id"] = json!(id);
    let send = |replica: usize| {
        let (endpoint, frame) = (cluster.browser_on(replica), frame.clone());
        async move { endpoint.connect().await.ask(frame).await }
    };

    let acks = join_all((0..5).map(|i| send(i % 3))).await;
    let heard = agent.next().await;
    let taken = agent.takes(&heard).await;
    let delivered = send(0).await;
    assert!(taken && agent.applies(&heard, json!("paid")).await);
    let applied = [send(0).await, send(2).await];
    send(0).await;
    cluster.browser().connect().await.ask(command("a1", "last")).await;

    for ack in &acks {
        let expected = (&json!("ack"), &json!(id), &json!("accepted"));
        assert_eq!((&ack["type"], &ack["command_id"], &ack["status"]), expected, "{ack}");
    }
    assert_eq!(delivered["status"], "delivered", "{delivered}");
    for ack in applied {
        assert_eq!((&ack["status"], &ack["detail"]), (&json!("applied"), &json!("paid")), "{ack}");
    }
    assert_eq!(&*agent.next().await.name, "last", "the next after the first and only");
}

/// F37: a page that sends too much is told to wait, and its own Cancel goes through; nobody else is affected.
#[tokio::test]
async fn a_storm_of_commands_is_limited_and_hinders_nobody() {
    const STORM: usize = 5_000;
    let cluster = Cluster::with_replicas(1).await;
    let mut agent = cluster.actor("a1").await;
    let mut storming = cluster.browser().connect().await;
    let mut other = cluster.browser().connect().await;
    let begun = Instant::now();

    for n in 0..STORM {
        storming.send(command("a1", &format!("n{n}"))).await;
    }
    for id in 0..20 {
        let request = json!({"type": "request", "id": id, "agent_id": "a1", "method": "x"});
        storming.send(request).await;
    }
    storming.send(json!({"type": "cancel_agent", "id": "stop", "agent_id": "a1"})).await;
    let ack = other.ask(command("a1", "mine")).await;
    let mut delivered = Vec::new();
    while !delivered.iter().any(|name| name == "mine") {
        delivered.push(agent.next().await.name.to_string());
    }

    assert_eq!(ack["type"], "ack", "{ack}");
    // Where the relay reads the storm slowly, the pace permits them, and no place is left.
    let is_limited =
        |frame: &Value| ["rate_limited", "busy"].iter().any(|code| frame["error"]["code"] == *code);
    let response = storming.wait_for("a response that says so", is_limited).await;
    assert_eq!(response["type"], "response", "{response}");
    let stop = storming.wait_for("its own Stop", |frame| frame["id"] == "stop").await;
    assert_eq!(stop["type"], "ack", "{stop}");
    while !delivered.iter().any(|name| name == "cancel_agent") {
        delivered.push(agent.next().await.name.to_string());
    }
    let errors: Vec<&Value> = storming.frames().filter(|frame| frame["type"] == "error").collect();
    let admitted = STORM - errors.len();
    let most = 200 + 100 * (begun.elapsed().as_secs() as usize + 1);
    assert!((200..=most).contains(&admitted), "{admitted}, at most {most}");
    assert!(delivered.len() <= admitted + 22, "the agent sees no more than was admitted");
    for error in errors {
        assert_eq!(error["retryable"], true, "{error}");
        // The agent takes nothing, so 256 of the storm's own may come to wait.
        if error["code"] != "busy" || admitted < 256 {
            assert_eq!(error["code"], "rate_limited", "{error}");
            assert!(error["retry_after_ms"].as_u64().is_some_and(|ms| (1..=10).contains(&ms)));
        }
    }
}

/// "Stop" means all of it, also when the one that began it has gone.
#[tokio::test]
async fn a_cancel_reaches_the_agents_that_were_spawned_under_it() {
    let cluster = Cluster::with_replicas(1).await;
    let parent = cluster.actor("parent").await;
    let mut family = [
        cluster.child("child", "parent", "r1").await,
        cluster.child("grandchild", "child", "c1").await,
    ];
    let mut other = cluster.child("other", "parent", "r2").await;
    // Its own grandparent: that must not go round for ever.
    let _odd = cluster.child("child", "grandchild", "g1").await;
    family[0] = cluster.child("child", "parent", "r1").await;
    let mut browser = cluster.browser().connect().await;

    let mut frame = cancel("parent");
    (frame["run_id"], frame["reason"]) = (json!("r1"), json!("enough"));
    frame["command_id"] = json!("0b0d9c55-9a35-4f6a-8a5b-8f3d5d0f9a11");
    let ack = browser.ask(frame.clone()).await;
    let again = browser.ask(frame).await;
    parent.leaves().await;
    let all = browser.ask(cancel("parent")).await;

    assert_eq!((&ack["listeners"], &again["listeners"]), (&json!(3), &json!(3)), "{ack} {again}");
    assert_eq!((&all["type"], &all["listeners"]), (&json!("ack"), &json!(3)), "{all}");
    for agent in &mut family {
        for reason in [json!("enough"), Value::Null] {
            let heard = agent.next().await;
            let data: Value = serde_json::from_str(&heard.data).unwrap();
            assert_eq!((&*heard.name, &data["reason"]), ("cancel_agent", &reason));
            assert_eq!(data["run_id"], Value::Null, "whatever it runs");
        }
    }
    let heard: Value = serde_json::from_str(&other.next().await.data).unwrap();
    assert_eq!(heard, json!({"agent_id": "other"}), "only the Cancel of everything reaches it");
}

/// A Cancel reaches many, and says how many.
#[tokio::test]
async fn a_cancel_reaches_all_of_many_that_were_spawned() {
    let cluster = Cluster::with_replicas(1).await;
    let journal = Journal::open(&cluster.redis.url()).unwrap();
    let child = |n: usize| {
        let options = Agent::options().id(format!("child-{n}")).child_of_agent("boss");
        options.attach(journal.clone())
    };
    let boss = cluster.agent("boss").await;
    let children = join_all((0..300).map(child)).await;
    let mut browser = cluster.browser().connect().await;

    let all = browser.ask(cancel("boss")).await;

    assert!(children.iter().all(Result::is_ok) && !boss.is_fenced());
    let numbers = (&all["listeners"], &all["reached"], &all["of"]);
    assert_eq!(numbers, (&json!(301), &json!(300), &json!(300)), "{all}");
}

/// A misspelled name does not look like success: nobody is known there, and nobody subscribes to it.
#[tokio::test]
async fn a_misspelled_name_is_said_to_be_unknown() {
    let cluster = Cluster::with_replicas(1).await;
    cluster.actor("worker").await.leaves().await;
    let relay = &cluster.replicas[0];
    let mut browser = cluster.browser().subscribed_to("session:42").await;

    let away = browser.ask(command("worker", "go")).await;
    let misspelled = browser.ask(command("wroker", "go")).await;
    let by_http = relay.post("/api/v1/commands", command("wroker", "go").to_string()).await;
    let publish = async |channel: &str| {
        let body = json!({"channel": channel, "event": "x", "data": 1}).to_string();
        relay.post("/api/v1/publish", body).await.json()["subscribers"].clone()
    };

    let said =
        |ack: &Value| [ack["listeners"].clone(), ack["queued"].clone(), ack["known"].clone()];
    assert_eq!(said(&away), [json!(0), json!(true), Value::Null], "{away}");
    for ack in [misspelled, by_http.json()] {
        assert_eq!(said(&ack), [json!(0), json!(true), json!(false)], "{ack}");
    }
    until("the subscriber is counted", async || (publish("session:42").await == 1).then_some(()))
        .await;
    assert_eq!(publish("session:24").await, 0);
    let event = |channel: &str| json!({"channel": channel, "event": "x", "data": 1});
    let list =
        json!([event("session:42"), event("nowhere"), event("session:24"), event("session:42")]);
    let results = relay.post("/api/v1/publish", list.to_string()).await.json()["results"].clone();
    let subscribers: Vec<&Value> =
        results.as_array().unwrap().iter().map(|result| &result["subscribers"]).collect();
    assert_eq!(subscribers, [&json!(1), &Value::Null, &json!(0), &json!(1)], "{results}");
}

/// One token leaves commands on ever more channels that nobody serves: it has to wait, and nobody else has.
#[tokio::test]
async fn one_sender_does_not_fill_redis_with_commands_that_nobody_takes() {
    let cluster = Cluster::with_replicas(1).await;
    let relay = &cluster.replicas[0];
    let _agent = cluster.actor("served").await;
    let mut browser = cluster.browser().connect().await;
    let send = async |agent_id: &str| {
        let mut frame = command(agent_id, "go");
        frame["data"] = json!("x".repeat(60_000));
        relay.post("/api/v1/commands", frame.to_string()).await
    };

    let mut sent = 0;
    let refused = loop {
        let reply = send(&format!("invented-{sent}")).await;
        if reply.status != 200 {
            break reply;
        }
        sent += 1;
        assert!(sent < 1_000, "4 MiB are 60 of them, and each second brings about one more");
    };

    assert_eq!((refused.status, refused.error_code().as_str()), (429, "rate_limited"));
    let wait = &refused.json()["error"]["retry_after_ms"];
    assert!(wait.as_u64().is_some_and(|ms| ms > 0), "{}", refused.text());
    assert_eq!(send("served").await.status, 200, "an agent is there to take it");
    assert_eq!(browser.ask(command("invented", "go")).await["type"], "ack", "another sender");
}

/// An agent that takes nothing is not flooded with commands, and no other agent is affected.
#[tokio::test]
async fn a_channel_on_which_too_much_waits_says_that_it_is_busy() {
    let cluster = Cluster::with_replicas(2).await;
    let [mut here, mut there] = both(&cluster).await;

    let mut quick = cluster.actor("quick").await;

    // One sender's, so they come as fast as one page may send.
    for _ in 0..256 {
        assert_eq!(ask_in_time(&mut here, command("slow", "step")).await["type"], "ack");
    }
    let answer = ask_in_time(&mut here, command("slow", "step")).await;
    assert_eq!(there.ask(command("slow", "step")).await["type"], "ack", "its places are its own");
    assert_eq!(ask_in_time(&mut here, command("quick", "go")).await["listeners"], 1);
    assert_eq!(&*quick.next().await.name, "go");

    assert_eq!((&answer["code"], &answer["retryable"]), (&json!("busy"), &json!(true)), "{answer}");
    let mut agent = cluster.actor("slow").await;
    let first = agent.next().await;
    assert!(agent.takes(&first).await);
    let again = ask_in_time(&mut here, command("slow", "step")).await;
    assert_eq!(again["type"], "ack", "one was taken: {again}");
}

/// Without tokens all of HTTP is one sender, whatever a call says of itself.
#[tokio::test]
async fn a_header_makes_no_caller_of_http_a_sender_of_its_own() {
    let cluster = Cluster::with_replicas(1).await;
    let address = cluster.replicas[0].address();
    let send = async || {
        let headers = [("Content-Type", "application/json"), ("Sec-WebSocket-Version", "13")];
        let body = command("slow", "step").to_string();
        http::call(&address, Method::POST, "/api/v1/commands", &headers, body).await.unwrap()
    };
    for _ in 0..256 {
        assert_eq!(send().await.status, 200);
    }
    assert_eq!(send().await.error_code(), "busy");
}

/// Asks, and comes back when the relay says so where it was too soon.
async fn ask_in_time(page: &mut Browser, frame: Value) -> Value {
    loop {
        let reply = page.ask(frame.clone()).await;
        if reply["code"] != "rate_limited" {
            return reply;
        }
        let wait = reply["retry_after_ms"].as_u64().expect("a refusal that says how long");
        tokio::time::sleep(Duration::from_millis(wait)).await;
    }
}

/// The same by HTTP, for clients without a socket.
#[tokio::test]
async fn commands_are_taken_by_http_as_well() {
    let cluster = Cluster::with_replicas(2).await;
    let mut agent = cluster.actor("a1").await;
    let id = "6f1f3cf3-94c7-4c8b-9f8e-2f3a4b5c6d7e";
    let body = json!({"agent_id": "a1", "name": "pay", "data": {"n": 1}, "command_id": id});

    let replies = [
        cluster.replicas[0].post("/api/v1/commands", body.to_string()).await,
        cluster.replicas[1].post("/api/v1/commands", body.to_string()).await,
    ];
    let nobody = cluster.replicas[0].post("/api/v1/commands", cancel("nobody").to_string()).await;
    let wrong = cluster.replicas[0].post("/api/v1/commands", r#"{"type":"ping"}"#).await;

    for reply in replies {
        let ack = reply.json();
        assert_eq!((reply.status, &ack["command_id"]), (200, &json!(id)), "{ack}");
        assert_eq!(ack["status"], "accepted", "{ack}");
    }
    assert_eq!(&*agent.next().await.name, "pay");
    assert_eq!((nobody.status, nobody.error_code().as_str()), (503, "agent_unavailable"));
    assert_eq!((wrong.status, wrong.error_code().as_str()), (400, "bad_request"));
}

/// Which agents are alive, for the operator and for everybody who may watch a channel.
#[tokio::test]
async fn who_is_alive_can_be_asked_for() {
    let cluster = Cluster::options().with_secret().set().await;
    let child = cluster.child("b2", "a1", "r1").await.opens("session:42").await;
    let _agent = cluster.actor("a1").await;
    child.asks("session:42", "p1", Duration::from_secs(60)).await;
    let get = async |path: &str, token: tests::Token| {
        let bearer = format!("Bearer {}", token.sign());
        let headers = [("Authorization", bearer.as_str())];
        let address = cluster.replicas[1].address();
        http::call(&address, Method::GET, path, &headers, "").await.unwrap()
    };
    let ada = || tests::Token::of("ada").allowing("subscribe", &["session:42"]);

    let agents = get("/api/v1/agents", ada().administering()).await.json();
    let channel = get("/api/v1/channels/session:42", ada()).await.json();

    let ids: Vec<&Value> =
        agents["agents"].as_array().unwrap().iter().map(|a| &a["agent_id"]).collect();
    assert_eq!(ids, ["a1", "b2"], "{agents}");
    assert_eq!(agents["agents"][1]["parent"], json!({"agent_id": "a1", "run_id": "r1"}));
    assert!(agents["agents"][1]["since"].is_u64(), "{agents}");
    assert_eq!(channel["agents"], json!(["b2"]), "{channel}");
    assert_eq!(channel["pending"][0]["request_id"], "p1", "{channel}");
    assert!(channel["head"].is_string(), "{channel}");
    assert_eq!(get("/api/v1/agents", ada()).await.error_code(), "not_found");
    assert_eq!(get("/api/v1/channels/session:43", ada()).await.error_code(), "not_found");
    child.leaves().await;
    until("the one that left is gone", async || {
        let agents = get("/api/v1/agents", ada().administering()).await.json();
        (agents["agents"].as_array().unwrap().len() == 1).then_some(())
    })
    .await;
}
