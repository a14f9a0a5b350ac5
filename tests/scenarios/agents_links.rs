//! The connection of an agent that has no Redis: what it may say, in which order it is done, and when it is dead.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use publisher_sdk::{Agent, ConnectError, Link, PublishError};
use serde_json::{Value, json};
use tests::chaos::Chaos;
use tests::wait::pause;
use tests::{Browser, Cluster, PATIENCE, Token, until};

/// An agent that speaks for itself, with the lease of its own channel.
async fn raw_agent(cluster: &Cluster) -> Browser {
    let mut agent = cluster.browser().path("/ws/agents/raw").connect().await;
    agent.send(json!({"type": "lease", "id": 1, "channel": "agent:raw"})).await;
    let leased = agent.wait_for("the lease", |frame| frame["id"] == 1).await;
    assert_eq!(leased["type"], "ack", "{leased}");
    agent
}

async fn reply(agent: &mut Browser, id: u64) -> Value {
    agent.wait_for("the reply", |frame| frame["id"] == id).await
}

/// What is too large or malformed is answered with an error with its id and the right code; the connection stays open.
#[tokio::test]
async fn an_agents_wrong_frame_is_answered_with_its_id_and_code() {
    let cluster = Cluster::with_replicas(1).await;
    let mut agent = raw_agent(&cluster).await;
    let publish = |id: u64, more: Value| {
        let mut frame = json!({"type": "publish", "id": id, "channel": "session:42"});
        frame.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        frame
    };
    for (frame, code) in [
        (publish(2, json!({"event": "x", "data": "x".repeat(80_000)})), "too_large"),
        (publish(3, json!({"event": "x", "data": "x".repeat(66_000)})), "too_large"),
        (publish(4, json!({"event": "ack", "data": {}})), "reserved_name"),
        (publish(5, json!({"event": "x"})), "bad_request"),
        (publish(6, json!({"data": {}})), "bad_request"),
        (json!({"type": "release", "id": 7, "channel": "nowhere"}), "bad_request"),
        (json!({"type": "dance", "id": 8, "channel": "session:42"}), "bad_request"),
        (
            json!({"type": "ask", "id": 12, "channel": "session:42", "data": {
                "request_id": "q", "asks": "permission", "expires_in_ms": 1_000,
                "question": {"pad": "x".repeat(62_000)},
            }}),
            "too_large",
        ),
    ] {
        let id = frame["id"].as_u64().unwrap();
        agent.send(frame).await;
        let error = reply(&mut agent, id).await;
        assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!(code)), "{error}");
    }
    agent.send(publish(9, json!({"event": "x", "data": null}))).await;
    assert!(reply(&mut agent, 9).await["offset"].is_string(), "null is data");

    agent.send(publish(10, json!({"event": "x", "data": "x".repeat(1_200_000)}))).await;
    assert_eq!(agent.wait_for_close().await.0, 1009);
}

/// An id that is in use for another call is refused; the same call again is the repetition.
#[tokio::test]
async fn an_agents_id_names_one_call() {
    let cluster = Cluster::with_replicas(1).await;
    let mut agent = raw_agent(&cluster).await;
    let publish = |n: u64| json!({"type": "publish", "id": 2, "channel": "session:42", "event": "x", "data": {"n": n}});

    cluster.redis.freeze();
    agent.send(publish(1)).await;
    agent.send(publish(2)).await;
    agent.send(publish(1)).await;
    let refused = reply(&mut agent, 2).await;
    cluster.redis.thaw();
    let published = reply(&mut agent, 2).await;

    assert_eq!(refused["code"], "conflict", "{refused}");
    assert!(published["offset"].is_string(), "{published}");
    let events = cluster.replicas[0].get("/api/v1/channels/session:42/events").await.json();
    let data: Vec<&Value> =
        events["events"].as_array().unwrap().iter().map(|e| &e["data"]).collect();
    assert_eq!(data, [&json!({"n": 1})]);
}

/// An id that was used stands for what was published with it: what cannot be a new event is refused, not dropped.
#[tokio::test]
async fn an_agents_publishes_have_ascending_ids() {
    let cluster = Cluster::with_replicas(1).await;
    let mut agent = raw_agent(&cluster).await;
    let publish = |id: u64, n: u64| json!({"type": "publish", "id": id, "channel": "session:42", "event": "x", "data": {"n": n}});
    for (id, n, is_new) in [(5, 1, true), (5, 2, false), (4, 3, false), (6, 4, true)] {
        agent.send(publish(id, n)).await;
        let reply = reply(&mut agent, id).await;
        match is_new {
            true => assert!(reply["offset"].is_string(), "{reply}"),
            false => assert_eq!(reply["code"], "conflict", "{reply}"),
        }
    }
}

/// A successor has taken the agent over: its predecessor holds nothing any more, and gets nothing new.
#[tokio::test]
async fn a_fenced_predecessor_is_fenced_on_all_channels() {
    let cluster = Cluster::options().short_leases().set().await;
    let mut old = raw_agent(&cluster).await;
    let lease = |id: u64, channel: &str| json!({"type": "lease", "id": id, "channel": channel});
    old.send(lease(2, "session:1")).await;
    assert_eq!(reply(&mut old, 2).await["type"], "ack");

    let _new = raw_agent(&cluster).await;
    old.wait_for_type("fenced").await;
    old.send(lease(3, "session:2")).await;
    assert_eq!(reply(&mut old, 3).await["code"], "fenced");
    old.send(json!({"type": "publish", "id": 4, "channel": "session:1", "event": "x", "data": {}}))
        .await;
    assert_eq!(reply(&mut old, 4).await["code"], "fenced");
    until("its other leases end", async || {
        let channel = cluster.replicas[0].get("/api/v1/channels/session:1").await.json();
        (channel["agents"] == json!([])).then_some(())
    })
    .await;
}

/// An answer is not a command to be taken. Its agent gets it, also while others begin to follow the channel.
#[tokio::test]
async fn an_answer_reaches_its_agent_while_others_begin_to_follow() {
    let cluster = Cluster::with_replicas(1).await;
    let mut asking = raw_agent(&cluster).await;
    let mut other = cluster.browser().path("/ws/agents/other").connect().await;
    other.send(json!({"type": "lease", "id": 1, "channel": "agent:other"})).await;
    let mut page = cluster.browser().connect().await;
    page.subscribe("session:42").await;
    let call = |kind: &str, id: u64, data: Value| json!({"type": kind, "id": id, "channel": "session:42", "data": data});
    asking.send(call("lease", 2, json!({"incarnation": null}))).await;
    asking.send(call("follow", 3, json!({"since": "start"}))).await;
    asking.wait_for_type("live").await;
    for n in 0..100_u64 {
        let request_id = format!("q{n}");
        let ask = json!({"request_id": request_id, "asks": "permission", "question": {}, "expires_in_ms": 60_000});
        asking.send(call("ask", 10 + n, ask)).await;
        reply(&mut asking, 10 + n).await;
        let answer =
            json!({"type": "permission_response", "requestId": request_id, "allowed": true});
        tokio::join!(
            other.send(call("follow", 10 + n, json!({"since": "start"}))),
            page.send(answer)
        );

        let answered = |frame: &Value| frame["data"]["data"]["request_id"] == request_id;
        asking.wait_for(&format!("the answer to {request_id}"), answered).await;
    }
}

/// Calls of a channel are done in their order, however quickly they come.
#[tokio::test]
async fn an_agents_calls_of_one_channel_do_not_overtake_each_other() {
    let cluster = Cluster::with_replicas(1).await;
    let mut agent = raw_agent(&cluster).await;
    agent.send(json!({"type": "lease", "id": 2, "channel": "session:42"})).await;
    for n in 0..50_u64 {
        let question = json!({"toolName": "rm"});
        let ask = json!({"request_id": format!("q{n}"), "asks": "permission", "question": question, "expires_in_ms": 60_000});
        let answer = json!({"allowed": true, "at": 1, "command_id": format!("c{n}")});
        let resolve =
            json!({"request_id": format!("q{n}"), "asks": "permission", "answer": answer});
        let (id, channel) = (10 + 2 * n, "session:42");
        agent.send(json!({"type": "ask", "id": id, "channel": channel, "data": ask})).await;
        agent
            .send(json!({"type": "resolve", "id": id + 1, "channel": channel, "data": resolve}))
            .await;
    }
    for n in 0..50_u64 {
        let resolved = reply(&mut agent, 11 + 2 * n).await;
        assert_eq!(resolved["data"], "yours", "{resolved}");
    }
}

/// A relay that does not read further because Redis is slow does not take that for the agent's silence.
#[tokio::test]
async fn an_agent_is_not_cut_off_because_its_relay_stopped_reading() {
    let cluster = Cluster::with_replicas(1).await;
    let mut agent = raw_agent(&cluster).await;
    cluster.redis.freeze();
    let data = "x".repeat(4_000);
    let sending = async {
        for id in 2..3_002_u64 {
            agent.send(json!({"type": "publish", "id": id, "channel": "session:42", "event": "x", "data": data})).await;
        }
    };
    let waiting = async {
        pause(Duration::from_secs(16)).await;
        cluster.redis.thaw();
    };
    tokio::join!(sending, waiting);

    let last = agent.wait_for("the last reply", |frame| frame["id"] == 3_001).await;
    assert!(last["offset"].is_string(), "{last}");
    // The relay renews it again up to half a second after Redis is back; nobody else would take it anew.
    let is_held = async || {
        let channel = cluster.replicas[0].get("/api/v1/channels/agent:raw").await.json();
        (channel["agents"] == json!(["raw"])).then_some(())
    };
    until("it holds its lease", is_held).await;
}

/// Three quarters of the room may be full of events that wait for Redis: the rest is read at once.
#[tokio::test]
async fn an_agent_whose_events_wait_is_still_heard() {
    let cluster = Cluster::with_replicas(1).await;
    let mut agent = raw_agent(&cluster).await;
    cluster.redis.freeze();
    let data = "x".repeat(3_900);
    for id in 2..770_u64 {
        agent.send(json!({"type": "publish", "id": id, "channel": "session:42", "event": "x", "data": data})).await;
    }
    let withdraw =
        json!({"type": "withdraw", "id": 1_000, "channel": "session:42", "data": {"call": 999}});
    agent.send(withdraw).await;
    let heard = reply(&mut agent, 1_000).await;
    let answered = agent.frames().filter(|frame| frame["offset"].is_string()).count();
    cluster.redis.thaw();

    assert_eq!((&heard["data"]["withdrawn"], answered), (&json!(false), 0), "{heard}");
    assert!(reply(&mut agent, 769).await["offset"].is_string());
}

/// The relay's back pressure does not count as silence; but an agent that reads nothing and lets no byte through is gone,
/// however much it asks.
#[tokio::test]
async fn an_agent_that_floods_and_reads_nothing_loses_its_lease() {
    let cluster = Cluster::options().short_leases().set().await;
    let mut agent = raw_agent(&cluster).await;
    let ask =
        json!({"request_id": "q", "asks": "permission", "question": {}, "expires_in_ms": 60_000});
    let answer = json!({"allowed": true, "at": 1, "command_id": "c", "reason": "x".repeat(4_000)});
    let resolve = json!({"request_id": "q", "asks": "permission", "answer": answer});
    let call = |kind: &str, id: u64, data: &Value| json!({"type": kind, "id": id, "channel": "agent:raw", "data": data});
    agent.send(call("ask", 2, &ask)).await;
    agent.send(call("resolve", 3, &resolve)).await;
    reply(&mut agent, 3).await;
    agent.stop_reading();
    let flooding = async {
        for id in 4.. {
            // Each reply has 4 KB.
            agent.send(call("ask", id, &ask)).await;
        }
    };
    let lost = async || {
        let channel = cluster.replicas[0].get("/api/v1/channels/agent:raw").await.json();
        (channel["agents"] == json!([])).then_some(())
    };
    tokio::select! {
        () = flooding => {}
        () = until("it is lost", lost) => {}
    }
}

/// Whatever an agent sends, a relay from which nothing arrives is dead.
#[tokio::test]
async fn a_dead_relay_is_noticed_while_the_agent_talks() {
    let cluster = Cluster::with_replicas(1).await;
    let proxy = Chaos::in_front_of(cluster.replicas[0].address()).await;
    let url = proxy.url().replace("redis://", "http://");
    let agent = Agent::options().id("a").connect(&url).await.unwrap();
    let session = agent.session("42").await.unwrap();

    proxy.swallow_replies();
    let talking = tokio::spawn(async move {
        loop {
            session.send("number", &json!({})).unwrap();
            pause(Duration::from_millis(250)).await;
        }
    });
    let came = || cluster.replicas[0].log().text().matches("an agent has connected").count();
    until("it came again", async || (came() > 1).then_some(())).await;
    talking.abort();
}

/// A process of many agents opens one link; each has a connection of its own.
#[tokio::test]
async fn many_agents_of_one_process_come_in_through_one_relay() {
    let cluster = Cluster::with_replicas(1).await;
    let link = Link::open(&format!("http://{}", cluster.replicas[0].address())).unwrap();
    let agents: Vec<Agent> = (0..8)
        .map(|n| Agent::options().id(format!("a{n}")).attach(link.clone()))
        .collect::<FuturesUnordered<_>>()
        .map(Result::unwrap)
        .collect()
        .await;
    for agent in &agents {
        let session = agent.session(agent.id()).await.unwrap();
        session.publish("here", &json!({"id": agent.id()})).await.unwrap();
    }
    let known = cluster.replicas[0].get("/api/v1/agents").await.json();
    assert_eq!(known["agents"].as_array().unwrap().len(), 8, "{known}");
    assert!(agents.iter().all(|agent| !agent.is_fenced()));
}

/// A final refusal by a relay is reported at once, with its reason.
#[tokio::test]
async fn a_permanent_refusal_is_said_at_once() {
    let cluster = Cluster::options().replicas(1).with_secret().set().await;
    let url = format!("http://{}", cluster.replicas[0].address());
    let token = Token::of("w").allowing("serve", &["agent:mine"]).sign();
    let child = Agent::options().id("mine").token(&token).child_of_agent("other");
    let refused = child.connect(&url).await.unwrap_err();
    // One that was tried again until the end of its time would be another error.
    assert!(matches!(refused, ConnectError::Refused { .. }), "{refused}");
}

/// When its token has ended, an agent is told so in answer to its calls, and does not hang.
#[tokio::test]
async fn an_agent_whose_token_has_ended_is_told_so() {
    let cluster = Cluster::options().replicas(1).with_secret().set().await;
    let url = format!("http://{}", cluster.replicas[0].address());
    let token =
        Token::of("w").allowing("serve", &["agent:mine"]).allowing("publish", &["agent:mine"]);
    let agent =
        Agent::options().id("mine").token(token.ending_in(5).sign()).connect(&url).await.unwrap();
    let own = agent.own_channel();
    let talking = async {
        loop {
            if let Err(error) = own.publish("x", &json!({})).await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, talking).await.expect("it hangs");
    assert!(!error.is_retryable() || matches!(error, PublishError::Journal(_)), "{error}");
    let next =
        tokio::time::timeout(PATIENCE, own.publish("x", &json!({}))).await.expect("it hangs");
    assert!(next.is_err_and(|error| !error.is_retryable()));
}

/// No frame grows with the number of sessions: an agent may have many, and all are known.
#[tokio::test]
async fn an_agent_behind_a_relay_may_have_ten_thousand_channels() {
    let mut cluster = Cluster::options().replicas(2).long_leases().set().await;
    let url = format!("http://{}", cluster.replicas[1].address());
    let agent = Agent::options().id("a").connect(&url).await.unwrap();
    let id = |n: u32| format!("{n:0>100}");
    let mut sessions = Vec::new();
    for many in (0..9_999).collect::<Vec<u32>>().chunks(100) {
        let opening = many.iter().map(|n| {
            let (agent, id) = (agent.clone(), id(*n));
            async move { agent.session(&id).await }
        });
        sessions.extend(futures_util::future::join_all(opening).await);
    }
    let opened: Vec<_> = sessions.into_iter().map(Result::unwrap).collect();
    let known = async |cluster: &Cluster| {
        let agents = cluster.replicas[0].get("/api/v1/agents").await.json();
        (agents["agents"][0]["channels_total"] == 10_000).then_some(())
    };
    until("all its channels are known", async || known(&cluster).await).await;

    cluster.replicas[1].kill9();
    cluster.replicas[1].restart().await;
    opened[7].publish("back", &json!({})).await.unwrap();
    until("they still are", async || known(&cluster).await).await;
    assert!(!agent.is_fenced());
}

/// Nobody enters a list of Cancels that the token does not grant: neither an agent's nor a session's.
#[tokio::test]
async fn a_stranger_receives_no_cancels() {
    let cluster = Cluster::options().replicas(1).with_secret().set().await;
    let token = Token::of("w")
        .allowing("serve", &["agent:raw", "session:own"])
        .allowing("command", &["agent:own-boss"]);
    let agent = cluster.browser().path("/ws/agents/raw").token(&token.sign());
    let mut agent = agent.connect().await;
    let mut call = async |id: u64, kind: &str, data: Value| {
        agent.send(json!({"type": kind, "id": id, "channel": "agent:raw", "data": data})).await;
        reply(&mut agent, id).await
    };
    let theirs = json!({"agent_id": "boss"});
    let their_session = json!({"agent_id": "own-boss", "session": "session:theirs"});
    let own = json!({"agent_id": "own-boss", "session": "session:own"});

    let mut refused = vec![
        call(1, "lease", json!({"parent": theirs})).await,
        call(2, "lease", json!({"parent": their_session})).await,
    ];
    let leased = call(3, "lease", json!({"parent": own})).await;
    refused.push(call(4, "adopt", theirs).await);
    refused.push(call(5, "adopt", their_session.clone()).await);
    refused.push(call(6, "disown", their_session).await);
    let served = json!({"channels": {"added": ["session:theirs"]}});
    refused.push(call(7, "note", served).await);
    let adopted = call(8, "adopt", own).await;

    for error in refused {
        assert_eq!(
            (&error["type"], &error["code"]),
            (&json!("error"), &json!("not_found")),
            "{error}"
        );
    }
    for ack in [leased, adopted] {
        assert_eq!(ack["type"], "ack", "{ack}");
    }
}
