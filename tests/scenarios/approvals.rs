//! A question waits for everybody who may answer it, on every screen; the first answer is the answer.

use std::time::Duration;

use publisher_sdk::{Agent, PermissionRequest};
use serde_json::{Value, json};
use tests::actor::Actor;
use tests::endpoint::Endpoint;
use tests::replica::Setup;
use tests::{Browser, Cluster, Redis, Replica, Token};

const SESSION: &str = "session:42";
const MINUTE: Duration = Duration::from_secs(60);

fn allow(request_id: &str, allowed: bool) -> Value {
    json!({"type": "permission_response", "requestId": request_id, "allowed": allowed})
}

fn pending(frame: &Value) -> Vec<&str> {
    let pending = frame["pending"].as_array().unwrap_or_else(|| panic!("no `pending`: {frame}"));
    pending.iter().map(|one| one["request_id"].as_str().unwrap()).collect()
}

/// F36: approve and deny at the same moment, on two replicas, a thousand times.
#[tokio::test]
async fn of_simultaneous_answers_on_two_replicas_exactly_one_wins() {
    const ROUNDS: usize = 1_000;
    const COMMANDS_BURST: usize = 200;
    let cluster = Cluster::options().with_secret().set().await;
    let mut agent = cluster.actor("a1").await.opens(SESSION).await;
    let token = |user: &str| Token::of(user).allowing("command", &[SESSION]).sign();
    let (ada, ben) = (token("ada"), token("ben"));
    let both = async || {
        let ada = cluster.browser_on(0).token(&ada).connect().await;
        (ada, cluster.browser_on(1).token(&ben).connect().await)
    };
    let (mut ada, mut ben) = both().await;
    let mut wins = [0, 0];

    for round in 0..ROUNDS {
        if round % COMMANDS_BURST == COMMANDS_BURST - 1 {
            // One connection may not answer so quickly for so long.
            (ada, ben) = both().await;
        }
        let id = format!("p{round}");
        agent.asks(SESSION, &id, MINUTE).await;
        let (yes, no) = tokio::join!(ada.ask(allow(&id, true)), ben.ask(allow(&id, false)));

        let heard = Actor::answer(&agent.next().await);
        let is_yes = heard.by.as_deref() == Some("ada");
        let (winner, loser) = if is_yes { (&yes, &no) } else { (&no, &yes) };
        wins[usize::from(is_yes)] += 1;
        assert_eq!(
            (&winner["type"], &winner["status"]),
            (&json!("ack"), &json!("applied")),
            "{winner}"
        );
        assert_eq!(
            (heard.allowed, heard.by.as_deref()),
            (is_yes, Some(if is_yes { "ada" } else { "ben" }))
        );
        assert_eq!(loser["code"], "already_resolved", "{loser}");
        let told = (&loser["by"], &loser["decision"], &loser["at"]);
        let decision = if is_yes { "allowed" } else { "denied" };
        assert_eq!(told, (&json!(heard.by), &json!(decision), &json!(heard.at)), "{loser}");
    }

    println!("wins by replica: {wins:?}");
    let mut reader = Token::of("eve").allowing("subscribe", &[SESSION]);
    reader = reader.allowing("command", &[]);
    let mut screen = cluster.browser_on(1).token(&reader.sign()).connect().await;
    screen.subscribe_since(SESSION, None).await;
    let resolved = screen.events(SESSION).iter().filter(|e| e.name == "permission_resolved");
    assert_eq!(resolved.count(), ROUNDS, "everybody is told of each once");
}

/// Every answer that does not count has its code, and touches nothing.
#[tokio::test]
async fn unknown_foreign_late_and_wrong_answers_each_have_their_code() {
    let cluster = Cluster::options().with_secret().set().await;
    let agent = cluster.actor("a1").await.opens(SESSION).await;
    agent.asks(SESSION, "p1", MINUTE).await;
    agent.asks(SESSION, "brief", Duration::from_millis(50)).await;
    agent.asks_for_budget("agent:a1", "b1").await;
    let token = |patterns: &[&str]| Token::of("ada").allowing("command", patterns).sign();
    let mut ada = cluster.browser_on(0).token(&token(&[SESSION])).connect().await;
    let mut eve = cluster.browser_on(1).token(&token(&["session:43"])).connect().await;

    let unknown = ada.ask(allow("p2", true)).await;
    let foreign = eve.ask(allow("p1", true)).await;
    let wrong_kind = ada.ask(json!({"type": "budget_continue", "request_id": "p1"})).await;
    let mut other = allow("p1", true);
    other["digest"] = json!("d2");
    let other_digest = ada.ask(other).await;
    let budget = ada.ask(json!({"type": "budget_stop", "request_id": "b1"})).await;
    tests::wait::pause(Duration::from_millis(60)).await;
    let late = ada.ask(allow("brief", true)).await;

    for (answer, code) in [
        (&unknown, "not_found"),
        (&foreign, "not_found"),
        (&wrong_kind, "bad_request"),
        (&other_digest, "digest_mismatch"),
        (&budget, "not_found"),
        (&late, "expired"),
    ] {
        let found = (&answer["type"], &answer["code"], &answer["retryable"]);
        assert_eq!(found, (&json!("error"), &json!(code), &json!(false)), "{answer}");
    }
    assert_eq!((&late["decision"], &late["by"]), (&json!("denied"), &Value::Null), "{late}");
    let message = |frame: &Value| frame["message"].as_str().unwrap().replace("p2", "p1");
    assert_eq!(message(&unknown), message(&foreign), "nobody learns what there is");
    let mut right = allow("p1", true);
    right["digest"] = json!("d1");
    assert_eq!(ada.ask(right).await["status"], "applied", "the question still waits");
}

/// The same answer again is the same answer; only another one comes too late.
#[tokio::test]
async fn an_answer_that_is_sent_again_gets_the_same_ack_on_every_replica() {
    let cluster = Cluster::with_replicas(2).await;
    let agent = cluster.actor("a1").await.opens(SESSION).await;
    agent.asks(SESSION, "p1", MINUTE).await;
    let mut answer = allow("p1", true);
    (answer["alwaysAllow"], answer["command_id"]) =
        (json!(true), json!("6f1f3cf3-94c7-4c8b-9f8e-2f3a4b5c6d7e"));

    let mut acks = Vec::new();
    for replica in [0, 1, 0] {
        let mut browser = cluster.browser_on(replica).connect().await;
        let mut ack = browser.ask(answer.clone()).await;
        ack["id"].take();
        acks.push(ack);
    }
    let by_http = cluster.replicas[1].post("/api/v1/commands", answer.to_string()).await;
    let other = cluster.replicas[1].post("/api/v1/commands", allow("p1", true).to_string()).await;

    assert!(acks.iter().all(|ack| *ack == acks[0] && ack["status"] == "applied"), "{acks:?}");
    assert_eq!((by_http.status, &by_http.json()["status"]), (200, &json!("applied")));
    assert_eq!((other.status, other.error_code().as_str()), (409, "already_resolved"));
    assert_eq!(other.json()["error"]["decision"], "allowed", "{}", other.text());
    let heard = Actor::answer(&{ agent }.next().await);
    assert!(heard.allowed && heard.always);
}

/// A tab that was opened late sees the question; one that was opened after the answer does not.
#[tokio::test]
async fn a_late_joiner_sees_what_waits_for_an_answer() {
    let cluster = Cluster::with_replicas(2).await;
    let agent = cluster.actor("a1").await.opens(SESSION).await;
    let mut early = cluster.browser_on(0).connect().await;
    let nothing = early.subscribe(SESSION).await;
    agent.asks(SESSION, "p1", MINUTE).await;
    agent.asks_for_budget("agent:a1", "b1").await;

    let mut late = cluster.browser_on(1).connect().await;
    let at_head = late.subscribe(SESSION).await;
    let own = late.subscribe("agent:a1").await;
    let from_start =
        cluster.browser_on(0).connect().await.subscribe_since(SESSION, Some("start")).await;
    let mut flat = cluster.browser_on(1).path("/ws/42").connect().await;
    let by_route = flat.wait_for_type("subscribed").await;
    let plan = late.subscribe("plan:7").await;

    assert!(pending(&nothing).is_empty());
    for frame in [&at_head, &from_start, &by_route] {
        assert_eq!(pending(frame), ["p1"], "{frame}");
        let question = &frame["pending"][0];
        assert_eq!(question["event"], "permission_request", "{question}");
        assert_eq!(question["data"]["request"]["toolName"], "rm", "{question}");
        assert!(question["expires_at"].is_u64(), "{question}");
    }
    assert_eq!((pending(&own), &plan["pending"]), (vec!["b1"], &Value::Null));
    assert_eq!(at_head["head"], from_start["head"]);

    let again = early.ask(json!({"type": "subscribe", "channel": SESSION})).await;
    assert_eq!(early.events(SESSION)[0].name, "permission_request");
    early.ask(allow("p1", false)).await;
    for browser in [&mut early, &mut late] {
        let is_told = |event: &tests::Event| {
            event.name == "permission_resolved" && event.data["allowed"] == false
        };
        browser.wait_until("its end", |seen| seen.events(SESSION).iter().any(is_told)).await;
    }
    assert_eq!(pending(&again), ["p1"], "a repeated subscribe says it, too");
    for replica in 0..2 {
        let frame = cluster.browser_on(replica).connect().await.subscribe(SESSION).await;
        assert!(pending(&frame).is_empty(), "{frame}");
    }
}

/// However questions and joins interleave, state and events together give the truth.
#[tokio::test]
async fn what_is_pending_and_the_events_after_it_always_add_up() {
    let cluster = Cluster::with_replicas(2).await;
    let agent = cluster.actor("a1").await.opens(SESSION).await;
    let mut answering = cluster.browser_on(0).connect().await;
    let mut joiners: Vec<Browser> = Vec::new();

    for round in 0..40 {
        let id = format!("p{round}");
        let (joiner, ()) = tokio::join!(
            cluster.browser_on(round % 2).subscribed_to(SESSION),
            agent.asks(SESSION, &id, MINUTE)
        );
        let (second, ack) =
            tokio::join!(cluster.browser_on((round + 1) % 2).subscribed_to(SESSION), async {
                if round % 2 == 0 { answering.ask(allow(&id, true)).await } else { json!({}) }
            });
        assert_ne!(ack["type"], "error", "{ack}");
        joiners.extend([joiner, second]);
    }
    cluster.replicas[0].publish(SESSION, "last", json!({})).await;

    let expected: Vec<String> = (0..40).filter(|i| i % 2 == 1).map(|i| format!("p{i}")).collect();
    for mut joiner in joiners {
        joiner.wait_for("the last event", |f| f["event"] == "last").await;
        let mut open = std::collections::BTreeSet::new();
        for frame in joiner.frames() {
            let id = |frame: &Value, pointer: &str| {
                frame.pointer(pointer).unwrap().as_str().unwrap().to_owned()
            };
            if frame["type"] == "subscribed" {
                open = pending(frame).into_iter().map(str::to_owned).collect();
            } else if frame["event"] == "permission_request" {
                open.insert(id(frame, "/data/request/requestId"));
            } else if frame["event"] == "permission_resolved" {
                open.remove(&id(frame, "/data/requestId"));
            }
        }
        let joined_late = open.iter().cloned().collect::<Vec<_>>();
        let mut sorted = expected.clone();
        sorted.sort();
        assert_eq!(joined_late, sorted);
    }
}

/// An answer is kept for the agent, and the default is decided without it.
#[tokio::test]
async fn answers_and_defaults_wait_for_an_agent_that_is_away() {
    let cluster = Cluster::with_replicas(2).await;
    let agent = cluster.actor("a1").await.opens(SESSION).await;
    agent.asks(SESSION, "p1", MINUTE).await;
    agent.asks(SESSION, "brief", Duration::from_millis(300)).await;
    let mut browser = cluster.browser_on(1).subscribed_to(SESSION).await;
    agent.leaves().await;

    let ack = browser.ask(allow("p1", true)).await;
    let is_timeout = |frame: &Value| frame["event"] == "permission_timeout";
    let told = browser.wait_for("permission_timeout", is_timeout).await;
    let successor = cluster.actor("a1").await.opens(SESSION).await;

    assert_eq!((&ack["status"], &ack["queued"]), (&json!("applied"), &json!(true)), "{ack}");
    let expected = (&json!("brief"), &json!(false));
    assert_eq!((&told["data"]["requestId"], &told["data"]["allowed"]), expected, "{told}");
    let answers =
        [successor.asks_again(SESSION, "p1").await, successor.asks_again(SESSION, "brief").await];
    assert_eq!(answers.map(|a| (a.allowed, a.timed_out)), [(true, false), (false, true)]);
}

/// Where what was seen is not continued, what waits is told anew.
#[tokio::test]
async fn a_reset_says_what_waits_for_an_answer() {
    let cluster = Cluster::with_replicas(1).await;
    let agent = cluster.actor("a1").await.opens(SESSION).await;
    cluster.replicas[0].publish(SESSION, "old", json!({})).await;
    let mut browser = cluster.browser().subscribed_to(SESSION).await;
    let seen = browser.history().offset(SESSION).unwrap();

    let _: i64 = cluster.redis.run(&["DEL", "relay:{343}:events:session:42"]).await;
    agent.asks(SESSION, "p1", MINUTE).await;
    let reset = browser.wait_for_type("reset").await;
    let mut back = cluster.browser().connect().await;
    let subscribed = back.subscribe_since(SESSION, Some(&seen)).await;

    assert_eq!(pending(&reset), ["p1"], "{reset}");
    assert_eq!((pending(&subscribed), &subscribed["recovered"]), (vec!["p1"], &json!(false)));
    let reset = back.frames().find(|frame| frame["type"] == "reset").unwrap();
    assert_eq!(pending(reset), ["p1"], "{reset}");
}

/// What cannot be read while Redis is away is waited for, and nobody waits for somebody else's.
#[tokio::test]
async fn a_join_while_redis_is_away_is_answered_when_it_is_back() {
    let cluster = Cluster::options().with_chaos().set().await;
    let agent = cluster.actor("a1").await.opens(SESSION).await;
    agent.asks(SESSION, "p1", MINUTE).await;
    let _watching = cluster.browser_on(0).subscribed_to(SESSION).await;
    let _plan = cluster.browser_on(0).subscribed_to("plan:7").await;
    let mut browser = cluster.browser_on(0).connect().await;

    cluster.chaos().cut();
    browser.wait_for("degraded", |f| f["redis"] == "degraded").await;
    for id in 0..100 {
        browser.send(json!({"type": "subscribe", "id": id, "channel": SESSION})).await;
        browser.send(json!({"type": "unsubscribe", "channel": SESSION})).await;
    }
    browser.send(json!({"type": "subscribe", "id": "s", "channel": SESSION})).await;
    let plan = browser.subscribe("plan:7").await;
    cluster.chaos().restore();
    let session = browser.wait_for("subscribed", |f| f["id"] == "s").await;

    browser.settle().await;
    assert_eq!(plan["type"], "subscribed", "{plan}");
    assert_eq!(pending(&session), ["p1"], "{session}");
    assert_eq!(browser.count("subscribed"), 2, "those that were given up are not answered");
}

/// Nobody is asked for an agent that is gone, and who answers all the same is told so.
#[tokio::test]
async fn a_question_goes_with_its_asker() {
    let cluster = Cluster::options().short_leases().set().await;
    let mut browser = cluster.browser_on(1).subscribed_to(SESSION).await;
    let raw = async |id: &str, session: &str| {
        let mut agent = cluster.browser().path(&format!("/ws/agents/{id}")).connect().await;
        for (n, channel) in [(1, format!("agent:{id}")), (2, session.to_owned())] {
            agent.send(json!({"type": "lease", "id": n, "channel": channel})).await;
            agent.wait_for("the lease", |frame| frame["id"] == n).await;
        }
        agent
    };
    let call = async |agent: &mut Browser, kind: &str, n: u64, data: Value| {
        agent.send(json!({"type": kind, "id": n, "channel": SESSION, "data": data})).await;
        let reply = agent.wait_for("the reply", |frame| frame["id"] == n).await;
        assert_eq!(reply["type"], "ack", "{reply}");
    };
    let ask = |id: &str| json!({"request_id": id, "asks": "permission", "question": {}, "expires_in_ms": 60_000});
    let mut agent = raw("a1", SESSION).await;
    for (n, id) in (3..).zip(["given-up", "left"]) {
        call(&mut agent, "ask", n, ask(id)).await;
    }
    call(&mut agent, "unask", 5, json!({"request_id": "given-up"})).await;
    call(&mut agent, "release", 6, Value::Null).await;
    let mut dies = raw("a2", SESSION).await;
    call(&mut dies, "ask", 3, ask("lost")).await;
    drop(dies);

    for id in ["given-up", "left", "lost"] {
        let is_withdrawn = |event: &tests::Event| {
            let told = (&event.data["requestId"], &event.data["reason"]);
            event.name == "permission_resolved" && told == (&json!(id), &json!("withdrawn"))
        };
        let is_told = |seen: &tests::History| seen.events(SESSION).iter().any(is_withdrawn);
        browser.wait_until("its end", is_told).await;
        let late = browser.ask(allow(id, true)).await;
        let told = (&late["code"], &late["decision"]);
        assert_eq!(told, (&json!("already_resolved"), &json!("withdrawn")), "{late}");
    }
    let joined = cluster.browser_on(0).connect().await.subscribe(SESSION).await;
    assert!(pending(&joined).is_empty(), "{joined}");
}

/// Who watches all agents sees which budgets wait for an answer, and nothing else of what is asked.
#[tokio::test]
async fn a_budget_that_waits_for_an_answer_is_pending_on_the_firehose() {
    let cluster = Cluster::options().with_secret().set().await;
    let agent = cluster.actor("a1").await.opens(SESSION).await;
    agent.asks_for_budget("agent:a1", "b1").await;
    agent.asks(SESSION, "p1", MINUTE).await;
    let token = |command: &[&str]| {
        let token = Token::of("ada").allowing("subscribe", &["global:events"]);
        token.allowing("command", command).sign()
    };
    let firehose =
        |command: &[&str]| cluster.browser_on(1).path("/ws/events").token(&token(command));
    let mut watching = firehose(&[]).connect().await;
    let subscribed = watching.wait_for_type("subscribed").await;
    let answer = json!({"type": "budget_continue", "request_id": "b1", "channel": "agent:a1"});

    let refused = watching.ask(answer.clone()).await;
    let applied = firehose(&["agent:a1"]).connect().await.ask(answer).await;
    watching.wait_for("its end", |frame| frame["type"] == "budget_resolved").await;
    let mut late = firehose(&[]).connect().await;
    let after = late.wait_for_type("subscribed").await;

    assert_eq!(pending(&subscribed), ["b1"], "{subscribed}");
    assert_eq!(subscribed["pending"][0]["channel"], "agent:a1", "{subscribed}");
    assert_eq!((&refused["code"], &applied["status"]), (&json!("not_found"), &json!("applied")));
    assert!(pending(&after).is_empty(), "{after}");
}

/// One clock says until when a question may be answered, and it is not the agent's.
#[tokio::test]
async fn a_questions_end_is_told_by_the_clock_of_redis() {
    let redis = Redis::start_an_hour_ahead().await;
    let replica = Replica::start(Setup::serve(Some(redis.url_of("relay")))).await;
    replica.ready().await;
    let agent = Agent::options().id("a1").connect(&redis.url_of("agent")).await.unwrap();
    let session = agent.session("42").await.unwrap();
    let mut early = Endpoint::of(&replica).subscribed_to(SESSION).await;
    let clock = async || {
        let (seconds, micros): (u64, u64) = redis.run(&["TIME"]).await;
        seconds * 1_000 + micros / 1_000
    };
    let begun = clock().await;
    assert!(begun > tests::token::now() * 1_000 + 3_500_000, "the clocks differ");
    let ask = PermissionRequest::new("Bash", "ls", "Lists").expires_in(MINUTE);
    let asking = tokio::spawn(async move { session.ask_permission(ask).await });

    let is_it = |frame: &Value| frame["event"] == "permission_request";
    let asked = early.wait_for("the question", is_it).await;
    let late = Endpoint::of(&replica).connect().await.subscribe(SESSION).await;

    let ends = asked["data"]["expires_at"].as_u64().unwrap();
    assert!((begun + 60_000..=clock().await + 60_000).contains(&ends), "{begun}: {asked}");
    assert_eq!(late["pending"][0]["expires_at"], ends, "{late}");
    let id = asked["data"]["request"]["requestId"].as_str().unwrap();
    assert_eq!(early.ask(allow(id, true)).await["type"], "ack");
    let answer = tokio::time::timeout(tests::PATIENCE, asking).await.unwrap().unwrap().unwrap();
    assert!(answer.allowed && !answer.timed_out, "{answer:?}");
}
