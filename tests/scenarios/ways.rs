//! An agent comes in by Redis, or through a relay with or without Redis: viewers see no difference.

use std::time::{Duration, Instant};

use publisher_sdk::{
    Agent, AskError, Cancellation, ConnectError, OpenError, PermissionRequest, PublishError, Reason,
};
use serde_json::{Value, json};
use tests::endpoint::Endpoint;
use tests::replica::Setup;
use tests::wait::pause;
use tests::{Cluster, PATIENCE, Persistence, Replica, Token, until};

/// A way in, and the replica on which the people are.
struct Way {
    name: &'static str,
    url: String,
    /// What stands in the way, kept alive.
    cluster: Option<Cluster>,
    embedded: Option<Replica>,
}

impl Way {
    async fn all() -> [Self; 3] {
        let by_redis = Cluster::with_replicas(1).await;
        let through_relay = Cluster::with_replicas(2).await;
        let embedded = Replica::start(Setup::serve(None)).await;
        let relay = |replica: &Replica| format!("http://{}", replica.address());
        [
            Self {
                name: "redis",
                url: by_redis.redis.url(),
                cluster: Some(by_redis),
                embedded: None,
            },
            Self {
                name: "relay",
                url: relay(&through_relay.replicas[1]),
                cluster: Some(through_relay),
                embedded: None,
            },
            Self {
                name: "embedded",
                url: relay(&embedded),
                cluster: None,
                embedded: Some(embedded),
            },
        ]
    }

    fn replica(&self) -> &Replica {
        self.cluster.as_ref().map_or_else(|| self.embedded.as_ref().unwrap(), |s| &s.replicas[0])
    }

    async fn agent(&self) -> Agent {
        let agent = Agent::options().id("a").connect(&self.url).await;
        agent.unwrap_or_else(|error| panic!("by {}: {error}", self.name))
    }
}

/// What an agent says arrives, in order; what people ask of it arrives, and its outcome comes back.
#[tokio::test]
async fn an_agent_does_the_same_whichever_way_it_comes_in() {
    for way in Way::all().await {
        let agent = way.agent().await;
        let session = agent.session("42").await.unwrap();
        let mut browser = Endpoint::of(way.replica()).subscribed_to("session:42").await;

        for word in ["one ", "two ", "three"] {
            session.text_delta("t1", word).unwrap();
        }
        session.send("done", &json!({"by": way.name})).unwrap();
        browser
            .wait_until("what it says", |seen| seen.text("session:42", None) == "one two three")
            .await;
        let what = "what it says last";
        let is_done = |frame: &Value| frame["event"] == "done" && frame["data"]["by"] == way.name;
        browser.wait_for(what, is_done).await;

        let go =
            json!({"type": "command", "channel": "session:42", "name": "go", "data": {"n": 1}});
        let ack = browser.ask(go).await;
        let mut commands = agent.commands();
        let command = tokio::time::timeout(PATIENCE, commands.next()).await.unwrap().unwrap();
        assert_eq!((command.name.as_str(), &*command.data), ("go", r#"{"n":1}"#));
        command.applied();
        let applied = |frame: &Value| {
            frame["event"] == "command_status" && frame["data"]["status"] == "applied"
        };
        let status = browser.wait_for("its outcome", applied).await;
        assert_eq!(status["data"]["command_id"], ack["command_id"], "by {}", way.name);

        let run = session.begin_run("r1");
        run.announce(&json!({"task": "t"})).await.unwrap();
        let cancel = json!({"type": "cancel_agent", "agent_id": "a", "reason": "enough"});
        assert_eq!(browser.ask(cancel).await["type"], "ack");
        let cancelled = tokio::time::timeout(PATIENCE, run.cancelled()).await.unwrap();
        let Cancellation { reason, detail, .. } = cancelled;
        assert_eq!((reason, detail.as_deref()), (Reason::User, Some("enough")));
        run.stop().await.unwrap();

        let asking = {
            let session = session.clone();
            tokio::spawn(async move {
                let ask = PermissionRequest::new("Bash", "rm -r build", "Deletes a directory");
                session.ask_permission(ask.durable_id("q1")).await
            })
        };
        browser.wait_for("the question", |frame| frame["event"] == "permission_request").await;
        let yes = json!({"type": "permission_response", "requestId": "q1", "allowed": true});
        assert_eq!(browser.ask(yes).await["type"], "ack");
        let permission = tokio::time::timeout(PATIENCE, asking).await.unwrap().unwrap().unwrap();
        assert!(permission.allowed, "by {}", way.name);

        let _service = agent.serve("sums", async |request| {
            let terms: Vec<u64> = request.read()?;
            Ok(json!(terms.iter().sum::<u64>()))
        });
        let _service = _service.await.unwrap();
        let add = json!({"type": "request", "method": "sums.add", "params": [1, 2]});
        assert_eq!(browser.ask(add).await["result"], 3, "by {}", way.name);

        agent.close().await.unwrap();
        let gone = async || {
            let agents = way.replica().get("/api/v1/agents").await.json();
            agents["agents"].as_array().is_some_and(Vec::is_empty).then_some(())
        };
        until("it has left", gone).await;
    }
}

/// The replica through which the agent speaks is killed and comes back: the agent goes on, and what it says
/// arrives once.
#[tokio::test]
async fn an_agent_goes_on_when_its_relay_is_killed() {
    let mut cluster = Cluster::with_replicas(2).await;
    let url = format!("http://{}", cluster.replicas[1].address());
    let agent = Agent::options().id("a").connect(&url).await.unwrap();
    let session = agent.session("42").await.unwrap();
    let mut browser = cluster.browser_on(0).subscribed_to("session:42").await;
    for i in 0..50 {
        session.send("number", &json!({"i": i})).unwrap();
    }

    cluster.replicas[1].kill9();
    for i in 50..100 {
        session.send("number", &json!({"i": i})).unwrap();
    }
    cluster.replicas[1].restart().await;
    for i in 100..150 {
        session.send("number", &json!({"i": i})).unwrap();
    }

    browser.expect_numbers("session:42", 0..150).await;
    let mut commands = agent.commands();
    let go = json!({"type": "command", "channel": "session:42", "name": "go", "data": {}});
    browser.ask(go).await;
    let command = tokio::time::timeout(PATIENCE, commands.next()).await.unwrap().unwrap();
    assert_eq!(command.name, "go");
    assert!(!agent.is_fenced(), "it was away for less than a lease");
}

/// The same while Redis is away as well: the relay that comes back cannot give it its leases at first.
#[tokio::test]
async fn an_agent_goes_on_when_its_relay_is_killed_and_redis_is_away() {
    let mut cluster = Cluster::options().persistence(Persistence::Always).set().await;
    let url = format!("http://{}", cluster.replicas[1].address());
    let agent = Agent::options().id("a").connect(&url).await.unwrap();
    let session = agent.session("42").await.unwrap();
    let mut browser = cluster.browser_on(0).subscribed_to("session:42").await;
    session.send("number", &json!({"i": 0})).unwrap();
    agent.flush().await.unwrap();

    cluster.redis.kill9();
    cluster.replicas[1].kill9();
    session.send("number", &json!({"i": 1})).unwrap();
    cluster.replicas[1].restart().await;
    let came = || cluster.replicas[1].log().text().matches("an agent has connected").count();
    until("it asked for its leases in vain, and came again", async || (came() > 1).then_some(()))
        .await;
    session.send("number", &json!({"i": 2})).unwrap();
    cluster.redis.restart().await;

    browser.expect_numbers("session:42", 0..3).await;
    assert!(!agent.is_fenced());
}

/// Without the grant an agent cannot come in, publish or receive anything.
#[tokio::test]
async fn a_token_says_which_agent_one_may_be() {
    let cluster = Cluster::options().replicas(1).with_secret().set().await;
    let url = format!("http://{}", cluster.replicas[0].address());
    let mine = Token::of("worker")
        .allowing("serve", &["agent:mine"])
        .allowing("publish", &["session:42"])
        .sign();
    let endpoint = |id: &str| cluster.browser().path(&format!("/ws/agents/{id}"));

    assert_eq!(endpoint("mine").refused().await, 401);
    assert_eq!(endpoint("other").token(&mine).refused().await, 404);
    assert_eq!(endpoint("mine").token(&mine).refused().await, 101);

    let agent = Agent::options().id("mine").token(&mine).connect(&url).await.unwrap();
    let plan = agent.channel("plan:7").unwrap();
    assert!(plan.publish("x", &json!({})).await.is_err(), "not granted");
    let session = agent.channel("session:42").unwrap();
    session.publish("x", &json!({})).await.unwrap();
    let opened = agent.session("42").await;
    assert!(matches!(opened, Err(OpenError::Refused(_))), "it may speak, not listen: {opened:?}");
    let asked = session.ask_permission(PermissionRequest::new("Bash", "ls", "Lists")).await;
    assert!(matches!(asked, Err(AskError::Refused(_))), "{asked:?}");
    let other = async |token: &str| {
        let other = Agent::options().id("other").token(token).connect(&url).await.unwrap_err();
        assert!(!other.is_retryable(), "{other}");
        other
    };
    assert!(matches!(other("none").await, ConnectError::Unauthorized { .. }), "no token at all");
    assert!(matches!(other(&mine).await, ConnectError::Refused { .. }), "another agent's");
}

/// From one replica to the other, and back: the same agent, whose events arrive everywhere.
#[tokio::test]
async fn an_agent_goes_from_replica_to_replica_and_back() {
    let cluster = Cluster::with_replicas(2).await;
    let mut lease = json!({});
    for (visit, replica) in [0, 1, 0, 1].into_iter().enumerate() {
        let mut agent = cluster.browser_on(replica).path("/ws/agents/raw").connect().await;
        let id = 10 * visit;
        agent.send(json!({"type": "lease", "id": id, "channel": "agent:raw", "data": lease})).await;
        let leased = agent.wait_for("the lease", |frame| frame["id"] == id).await;
        assert_eq!(leased["type"], "ack", "visit {visit}: {leased}");
        lease = leased["data"].clone();
        let publish = json!({"type": "publish", "id": id + 1, "channel": "agent:raw", "event": "x", "data": {}});
        agent.send(publish).await;
        let said = agent.wait_for("the ack", |frame| frame["id"] == id + 1).await;
        assert_eq!(said["type"], "ack", "visit {visit}: {said}");
    }
}

/// What is known of an agent is known after its relay was killed, and told when it dies.
#[tokio::test]
async fn an_agent_that_came_back_to_its_relay_is_known_with_all_its_runs() {
    let mut cluster = Cluster::with_replicas(2).await;
    let url = format!("http://{}", cluster.replicas[1].address());
    let agent = Agent::options().id("a").child_of_agent("boss").connect(&url).await.unwrap();
    let session = agent.session("42").await.unwrap();
    let run = session.begin_run("r1");
    run.announce(&()).await.unwrap();
    let known = async |cluster: &Cluster| {
        let agents = cluster.replicas[0].get("/api/v1/agents").await.json();
        agents["agents"].as_array()?.iter().find(|agent| agent["agent_id"] == "a").cloned()
    };
    let before = until("its channels are known", async || {
        known(&cluster).await.filter(|agent| agent["channels"].as_array().unwrap().len() == 2)
    })
    .await;
    let mut browser = cluster.browser_on(0).subscribed_to("session:42").await;

    cluster.replicas[1].kill9();
    cluster.replicas[1].restart().await;
    session.publish("back", &json!({})).await.unwrap();

    assert_eq!(known(&cluster).await.unwrap(), before);
    cluster.replicas[1].kill9();
    let lost = browser.wait_for("its loss", |frame| frame["event"] == "agent_lost").await;
    assert_eq!(lost["data"]["runs"], json!(["r1"]), "{lost}");
}

/// Lost while its relay was away, an agent learns it once and for all, and leaves the relay in peace.
#[tokio::test]
async fn an_agent_that_was_lost_behind_its_relay_learns_it_and_knocks_no_more() {
    let mut cluster = Cluster::with_replicas(2).await;
    let url = format!("http://{}", cluster.replicas[1].address());
    let agent = Agent::options().id("a").connect(&url).await.unwrap();
    let session = agent.session("42").await.unwrap();
    let mut browser = cluster.browser_on(0).subscribed_to("session:42").await;
    session.send("number", &json!({"i": 0})).unwrap();

    cluster.replicas[1].kill9();
    let talking = tokio::spawn(async move {
        while !matches!(session.publish("late", &json!({})).await, Err(PublishError::Fenced)) {}
    });
    browser.wait_for("its loss", |frame| frame["event"] == "agent_lost").await;
    cluster.replicas[1].restart().await;

    tokio::time::timeout(PATIENCE, agent.fenced()).await.unwrap();
    tokio::time::timeout(PATIENCE, talking).await.unwrap().unwrap();
    pause(Duration::from_secs(2)).await;
    let came = cluster.replicas[1].log().text().matches("an agent has connected").count();
    assert!(came <= 3, "it came back {came} times");
    browser.settle().await;
    assert!(browser.events("session:42").iter().all(|event| event.name != "late"));
}

/// What was asked in vain while the relay was away is not done behind the agent's back, and can be asked again.
#[tokio::test]
async fn a_session_that_could_not_be_opened_is_nobodys() {
    let mut cluster = Cluster::with_replicas(2).await;
    let url = format!("http://{}", cluster.replicas[1].address());
    let agent = Agent::options().id("a").connect(&url).await.unwrap();

    cluster.replicas[1].kill9();
    assert!(agent.session("42").await.is_err());
    cluster.replicas[1].restart().await;
    agent.own_channel().publish("back", &json!({})).await.unwrap();

    let stands = cluster.replicas[0].get("/api/v1/channels/session:42").await.json();
    assert_eq!(stands["agents"], json!([]));
    agent.session("42").await.unwrap().publish("open", &json!({})).await.unwrap();
    assert!(!agent.is_fenced());
}

/// A token for one agent does not let it become the child of another, and receive that one's Cancels.
#[tokio::test]
async fn an_agent_becomes_nobodys_child_without_the_grant() {
    let cluster = Cluster::options().replicas(1).with_secret().set().await;
    let mallory = Token::of("mallory").allowing("serve", &["agent:m"]).sign();
    let mut m = cluster.browser().path("/ws/agents/m").token(&mallory).connect().await;
    for (id, call, channel, data, code) in [
        (1, "lease", "agent:m", json!({}), Value::Null),
        (2, "adopt", "agent:m", json!({"agent_id": "victim"}), json!("not_found")),
        (3, "adopt", "agent:m", json!({"agent_id": "m"}), Value::Null),
        (
            4,
            "finish",
            "agent:m",
            json!({"key": "0b5c4d8e-9d3f-4f37-8f0e-2c7a5d1e6b90", "status": "accepted"}),
            json!("bad_request"),
        ),
        (5, "resolve", "agent:m", json!({}), json!("bad_request")),
    ] {
        m.send(json!({"type": call, "id": id, "channel": channel, "data": data})).await;
        let said = m.wait_for("an answer", |frame| frame["id"] == id).await;
        assert_eq!(said["code"], code, "{call}: {said}");
    }
}

/// F30, behind a relay: the relay renews the lease as long as the agent shows signs of life, and an agent that
/// falls silent is lost within one lease.
#[tokio::test]
async fn an_agent_that_falls_silent_behind_a_relay_is_lost_within_its_lease() {
    let cluster = Cluster::options().short_leases().set().await;
    let mut browser = cluster.browser_on(1).subscribed_to("agent:raw").await;
    let mut agent = cluster.browser().path("/ws/agents/raw").connect().await;
    agent.send(json!({"type": "lease", "id": 1, "channel": "agent:raw"})).await;
    agent.wait_for("the lease", |frame| frame["id"] == 1).await;
    let runs = json!({"type": "note", "id": 2, "channel": "agent:raw", "data": {"runs": {"added": ["r1"]}}});
    agent.send(runs).await;
    agent.wait_for("the note", |frame| frame["id"] == 2).await;

    // From here on no ping is answered.
    agent.stop_reading();
    let silent = Instant::now();
    let lost = browser.wait_for("its loss", |frame| frame["event"] == "agent_lost").await;

    assert_eq!(lost["data"]["runs"], json!(["r1"]), "{lost}");
    // A lease and a second, and three for a busy machine.
    let took = silent.elapsed();
    let lease = cluster.lease();
    assert!(took < lease + Duration::from_secs(4), "a lease of {lease:?} ended after {took:?}");
    drop(agent);
}

/// A frame that is not a call is answered with an error, and the connection stays open.
#[tokio::test]
async fn what_an_agent_says_wrong_disturbs_nothing_else() {
    let cluster = Cluster::with_replicas(1).await;
    let mut agent = cluster.browser().path("/ws/agents/raw").connect().await;
    for (wrong, code) in [
        (json!({"type": "dance"}), "bad_request"),
        (
            json!({"type": "publish", "id": 1, "channel": "session:42", "event": "x", "data": {}}),
            "bad_request",
        ),
        (json!({"type": "take", "id": 2, "channel": "agent:raw", "data": {}}), "bad_request"),
    ] {
        agent.send(wrong.clone()).await;
        let error = agent.wait_for_type("error").await;
        assert_eq!(error["code"], code, "{wrong}: {error}");
    }
    agent.send(json!({"type": "lease", "id": 3, "channel": "agent:raw"})).await;
    let leased = agent.wait_for("the lease", |frame| frame["id"] == 3).await;
    assert!(leased["data"]["incarnation"].is_u64(), "{leased}");
    agent
        .send(json!({"type": "publish", "id": 4, "channel": "session:42", "event": "ack", "data": {}}))
        .await;
    let refused = agent.wait_for("the refusal", |frame| frame["id"] == 4).await;
    assert_eq!(refused["type"], "error", "{refused}");
    agent
        .send(json!({"type": "publish", "id": 5, "channel": "session:42", "event": "x", "data": {"a": 1}}))
        .await;
    let published = agent.wait_for("the offset", |frame| frame["id"] == 5).await;
    assert!(published["offset"].is_string(), "{published}");
}
