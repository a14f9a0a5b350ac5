//! An id stands for what was asked: the same again is a repetition, anything else under the same id is refused.

use serde_json::{Value, json};
use tests::{Browser, Cluster, Token};

const SESSION: &str = "session:42";

/// An agent that speaks for itself, with leases on its own channel and on `channel`.
async fn agent_on(cluster: &Cluster, id: &str, channel: &str) -> Browser {
    let mut agent = cluster.browser().path(&format!("/ws/agents/{id}")).connect().await;
    for (n, of) in [(1, &*format!("agent:{id}")), (2, channel)] {
        let leased = call(&mut agent, "lease", n, of, json!({})).await;
        assert_eq!(leased["type"], "ack", "{leased}");
    }
    agent
}

/// The reply to a call.
async fn call(agent: &mut Browser, kind: &str, id: u64, channel: &str, data: Value) -> Value {
    agent.send(json!({"type": kind, "id": id, "channel": channel, "data": data})).await;
    agent.wait_for("the reply", |frame| frame["id"] == id && frame["type"] != "command").await
}

fn question(request_id: &str, command: &str) -> Value {
    json!({"request_id": request_id, "asks": "permission", "question": {"toolName": "Bash", "command": command}, "expires_in_ms": 60_000})
}

/// A model numbers its calls from 0: a yes to `ls` is no yes to `rm`.
#[tokio::test]
async fn an_answer_holds_for_what_was_shown_and_for_nothing_else() {
    let cluster = Cluster::with_replicas(1).await;
    let mut agent = agent_on(&cluster, "a1", SESSION).await;
    let mut other = agent_on(&cluster, "a2", SESSION).await;
    let mut page = cluster.browser().connect().await;
    page.subscribe(SESSION).await;
    let asked = call(&mut agent, "ask", 3, SESSION, question("Bash_0", "ls -la")).await;
    let while_pending = call(&mut agent, "ask", 4, SESSION, question("Bash_0", "rm -rf /")).await;
    let yes = json!({"type": "permission_response", "requestId": "Bash_0", "allowed": true});
    page.ask(yes).await;

    let again = call(&mut agent, "ask", 5, SESSION, question("Bash_0", "ls -la")).await;
    let with = |name: &str, value: Value| {
        let mut other = question("Bash_0", "ls -la");
        other[name] = value;
        other
    };
    let changed = [
        ("question", question("Bash_0", "rm -rf /")),
        ("asks", with("asks", json!("budget"))),
        ("default", with("default", json!(true))),
        ("digest", with("digest", json!("d2"))),
    ];
    let mut refused = vec![("question", while_pending)];
    for (n, (part, ask)) in (6..).zip(changed) {
        refused.push((part, call(&mut agent, "ask", n, SESSION, ask).await));
    }
    refused
        .push(("agent", call(&mut other, "ask", 3, SESSION, question("Bash_0", "ls -la")).await));

    assert_eq!(asked["data"]["answer"], Value::Null, "{asked}");
    assert_eq!(again["data"]["answer"]["allowed"], true, "{again}");
    for (part, reply) in refused {
        let told = (&reply["type"], &reply["code"], &reply["retryable"]);
        assert_eq!(told, (&json!("error"), &json!("conflict"), &json!(false)), "{part}: {reply}");
        let message = reply["message"].as_str().unwrap();
        assert!(message.contains(&format!("`{part}`")), "it names the part: {reply}");
    }
    page.settle().await;
    let shown = page.events(SESSION).iter().filter(|event| event.name == "permission_request");
    assert_eq!(shown.count(), 1, "nothing else was shown");
}

/// Two agents of two sessions may use one id: each is answered on its own channel, and an answer without an address
/// is for the only one that its sender may answer.
#[tokio::test]
async fn an_id_of_another_session_is_another_question() {
    let cluster = Cluster::options().with_secret().set().await;
    let agent = |id: &str, channel: &str| {
        let own = format!("agent:{id}");
        let token = Token::of(id).allowing("serve", &[&own, channel]);
        let token = token.allowing("publish", &[&own, channel]).sign();
        cluster.browser().path(&format!("/ws/agents/{id}")).token(&token)
    };
    let mut asking = Vec::new();
    for (id, channel) in [("a1", "session:1"), ("a2", "session:2")] {
        let mut agent = agent(id, channel).connect().await;
        call(&mut agent, "lease", 1, &format!("agent:{id}"), json!({})).await;
        call(&mut agent, "lease", 2, channel, json!({})).await;
        let asked = call(&mut agent, "ask", 3, channel, question("q1", "ls")).await;
        assert_eq!(asked["type"], "ack", "{asked}");
        assert!(!asked.to_string().contains("session:1"), "no stranger's channel is named");
        asking.push(agent);
    }
    let page = |channels: &[&str]| Token::of("ada").allowing("command", channels).sign();
    let mut both = cluster.browser().token(&page(&["session:1", "session:2"])).connect().await;
    let mut second = cluster.browser().token(&page(&["session:2"])).connect().await;
    let answer = |more: Value| {
        let mut answer = json!({"type": "permission_response", "requestId": "q1", "allowed": true});
        answer.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        answer
    };

    let ambiguous = both.ask(answer(json!({}))).await;
    let only = second.ask(answer(json!({}))).await;
    let foreign = second.ask(answer(json!({"sessionId": "1"}))).await;
    let unknown = second.ask(answer(json!({"channel": "session:7"}))).await;
    let by_session = both.ask(answer(json!({"sessionId": "1"}))).await;
    let late = both.ask(answer(json!({"channel": "session:2"}))).await;
    let twice = both.ask(answer(json!({"channel": "session:2", "sessionId": "2"}))).await;

    assert_eq!((&ambiguous["code"], &ambiguous["retryable"]), (&json!("ambiguous"), &json!(false)));
    assert!(!ambiguous.to_string().contains("session:"), "{ambiguous}");
    assert_eq!(only["status"], "applied", "{only}");
    assert_eq!((&foreign["code"], &foreign["message"]), (&unknown["code"], &unknown["message"]));
    assert_eq!(foreign["code"], "not_found", "{foreign}");
    assert_eq!(by_session["status"], "applied", "{by_session}");
    assert_eq!(late["code"], "already_resolved", "{late}");
    assert_eq!(twice["code"], "bad_request", "{twice}");
}

/// The same answer may be sent again; another one under its `command_id` is not taken for it.
#[tokio::test]
async fn the_command_id_of_an_answer_stands_for_that_answer() {
    let cluster = Cluster::with_replicas(1).await;
    let agent = cluster.actor("a1").await.opens(SESSION).await;
    agent.asks(SESSION, "p1", std::time::Duration::from_secs(60)).await;
    let mut page = cluster.browser().connect().await;
    let answer = |allowed: bool| json!({"type": "permission_response", "requestId": "p1", "allowed": allowed, "command_id": "0b5c4d8e-9d3f-4f37-8f0e-2c7a5d1e6b90"});

    let replies =
        [page.ask(answer(true)).await, page.ask(answer(true)).await, page.ask(answer(false)).await];

    assert_eq!(replies[..2].iter().map(|one| &one["status"]).collect::<Vec<_>>(), ["applied"; 2]);
    assert_eq!(replies[2]["code"], "conflict", "{}", replies[2]);
    assert!(replies[2]["message"].as_str().unwrap().contains("`allowed`"), "{}", replies[2]);
}

/// An event under the id of another is not acknowledged as that other, nor lost in silence.
#[tokio::test]
async fn a_publish_under_the_id_of_another_event_is_a_conflict() {
    let cluster = Cluster::with_replicas(2).await;
    let publish = async |replica: usize, channel: &str, event: &str, data: Value| {
        let body = json!({"channel": channel, "event": event, "data": data, "id": "build-7"});
        cluster.replicas[replica].post("/api/v1/publish", body.to_string()).await
    };
    let first = publish(0, SESSION, "built", json!({"ok": true})).await.json();

    let again = publish(1, SESSION, "built", json!({"ok": true})).await.json();
    let elsewhere = publish(1, "session:43", "built", json!({"ok": false})).await;
    for (part, event, data) in
        [("data", "built", json!({"ok": false})), ("event", "x", json!({"ok": true}))]
    {
        let reply = publish(1, SESSION, event, data).await;
        assert_eq!((reply.status, &*reply.error_code()), (409, "conflict"), "{}", reply.text());
        assert_eq!(reply.json()["error"]["retryable"], false);
        assert!(reply.text().contains(&format!("`{part}`")), "{}", reply.text());
    }
    let after = publish(0, SESSION, "built", json!({"ok": true})).await.json();

    assert_eq!((&again["offset"], &after["offset"]), (&first["offset"], &first["offset"]));
    assert_eq!(elsewhere.status, 200, "another channel's ids are others: {}", elsewhere.text());
    let read = cluster.replicas[0].get("/api/v1/channels/session:42/events").await.json();
    assert_eq!(read["events"].as_array().unwrap().len(), 1, "{read}");
}

/// A `command_id` stands for one command of one user to one channel.
#[tokio::test]
async fn a_command_under_the_id_of_another_is_a_conflict() {
    let cluster = Cluster::with_replicas(2).await;
    let mut agent = cluster.actor("a1").await.opens(SESSION).await;
    let mut pages = [cluster.browser_on(0).connect().await, cluster.browser_on(1).connect().await];
    let id = |n: u32| format!("0b5c4d8e-9d3f-4f37-8f0e-{n:012}");
    let command = |name: &str, data: Value| json!({"type": "command", "channel": SESSION, "name": name, "data": data, "command_id": id(1)});
    let cancel = |n: u32, more: Value| {
        let mut cancel = json!({"type": "cancel_agent", "agent_id": "a1", "command_id": id(n)});
        cancel.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        cancel
    };
    let request = |method: &str, params: Value| json!({"type": "request", "channel": SESSION, "method": method, "params": params, "timeout_ms": 60_000, "command_id": id(3)});
    let first = pages[0].ask(command("pause", json!({"n": 1}))).await;
    let stop = pages[0].ask(cancel(2, json!({"run_id": "r1", "reason": "why"}))).await;
    let mut asked = request("a.b", json!({"n": 1}));
    asked["id"] = json!("asked");
    pages[0].send(asked).await;
    while &*agent.next().await.name != "request" {}

    for (frame, part) in [
        (command("pause", json!({"n": 1})), ""),
        (command("pause", json!({"n": 2})), "data"),
        (command("resume", json!({"n": 1})), "name"),
        (cancel(2, json!({"run_id": "r1", "reason": "another word"})), ""),
        (cancel(2, json!({"run_id": "r2"})), "run_id"),
        (cancel(2, json!({})), "run_id"),
        (request("a.b", json!({"n": 2})), "params"),
        (request("a.c", json!({"n": 1})), "method"),
        (json!({"type": "command", "agent_id": "a1", "name": "resume", "command_id": id(1)}), ""),
    ] {
        let reply = pages[1].ask(frame.clone()).await;
        let error = if reply["type"] == "response" { &reply["error"] } else { &reply };
        if part.is_empty() {
            assert_eq!(reply["type"], "ack", "{frame}: {reply}");
        } else {
            assert_eq!(error["code"], "conflict", "{frame}: {reply}");
            assert!(error["message"].as_str().unwrap().contains(&format!("`{part}`")), "{reply}");
        }
    }
    assert_eq!((&first["type"], &stop["type"]), (&json!("ack"), &json!("ack")));
}
