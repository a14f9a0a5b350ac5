//! What the users of Redis may do: the least that is documented is enough for everything, and where it is not
//! there, `/readyz`, the log and `check` say so. Every scenario's replicas and agents have these rights.

use publisher_sdk::{Agent, PermissionRequest};
use serde_json::{Value, json};
use tests::endpoint::Endpoint;
use tests::process::free_port;
use tests::replica::Setup;
use tests::{Cluster, PATIENCE, Redis, Replica, until};

use crate::operating::verdict;

/// A tour of the product, in which Redis refuses nothing.
#[tokio::test]
async fn the_documented_rights_are_enough_for_the_whole_product() {
    let cluster = Cluster::options().replicas(2).short_leases().set().await;
    let _: redis::Value = cluster.redis.run(&["ACL", "LOG", "RESET"]).await;
    let agent = cluster.agent("a1").await;
    let session = agent.session("42").await.unwrap();
    let mut browser = cluster.browser().subscribed_to("session:42").await;
    browser.subscribe("agent:a1").await;
    let mut firehose = cluster.browser_on(1).path("/ws/events").connect().await;

    // Events, with and without a key, read again.
    session.text_delta("t1", "hello").unwrap();
    agent.flush().await.unwrap();
    cluster.replicas[0].publish_stubbornly("session:42", 0, "once").await;
    cluster.replicas[1].publish_stubbornly("session:42", 0, "once").await;
    cluster.replicas[0].publish_numbers("session:42", 1..300).await;
    browser.expect_numbers("session:42", 0..300).await;
    let events = cluster.replicas[1].get("/api/v1/channels/session:42/events?limit=1000").await;
    assert_eq!(events.status, 200);

    // Commands: taken, and waiting for an agent that comes later.
    let go = |id: &str| json!({"type": "command", "agent_id": id, "name": "go"});
    assert_eq!(browser.ask(go("late")).await["queued"], true);
    let late = cluster.agent("late").await;
    for (id, agent) in [("late", &late), ("a1", &agent)] {
        browser.ask(go(id)).await;
        let mut commands = agent.commands();
        let command = tokio::time::timeout(PATIENCE, commands.next()).await.unwrap().unwrap();
        command.applied();
    }

    // A question, a request with an agent that has no Redis, and a Cancel that reaches a child.
    let asking = {
        let session = session.clone();
        let ask = PermissionRequest::new("Bash", "ls", "Lists");
        tokio::spawn(async move { session.ask_permission(ask).await })
    };
    let is_it = |frame: &Value| frame["event"] == "permission_request";
    let question = browser.wait_for("the question", is_it).await;
    let id = &question["data"]["request"]["requestId"];
    let yes = json!({"type": "permission_response", "requestId": id, "allowed": true});
    assert_eq!(browser.ask(yes).await["type"], "ack");
    tokio::time::timeout(PATIENCE, asking).await.unwrap().unwrap().unwrap();
    let relay = format!("http://{}", cluster.replicas[1].address());
    let linked = Agent::options().id("linked").connect(&relay).await.unwrap();
    let echo = linked.serve("echo", async |request| Ok(request.read::<Value>()?));
    let _service = echo.await.unwrap();
    let request = json!({"type": "request", "method": "echo.say", "params": {"n": 1}});
    assert_eq!(browser.ask(request).await["result"]["n"], 1);
    let run = session.begin_run("r1");
    run.announce(&json!({"task": "t"})).await.unwrap();
    let options = cluster.agent_options("child").child_of(&run);
    let child = options.connect(&cluster.redis.url_of("agent")).await.unwrap();
    let helping = child.begin_run("helping");
    let stop = json!({"type": "command", "channel": "session:42", "name": "cancel_agent"});
    browser.ask(stop).await;
    tokio::time::timeout(PATIENCE, helping.cancelled()).await.unwrap();

    // Who is there, and an agent that dies.
    for path in ["/api/v1/agents", "/api/v1/stats", "/api/v1/channels/session:42"] {
        assert_eq!(cluster.replicas[0].get(path).await.status, 200, "{path}");
    }
    let dying = cluster.actor("dying").await;
    drop(dying);
    let lost = |frame: &Value| frame["type"] == "agent_lost" && frame["agent_id"] == "dying";
    firehose.wait_for("the dead agent is told", lost).await;
    run.stop().await.unwrap();
    agent.close().await.unwrap();
    linked.close().await.unwrap();

    let refused: Vec<redis::Value> = cluster.redis.run(&["ACL", "LOG"]).await;
    let mut refused: Vec<String> = refused.iter().map(|entry| format!("{entry:?}")).collect();
    // Newer servers know it, and the library does without it.
    refused.retain(|entry| !entry.contains("setinfo"));
    assert!(refused.is_empty(), "Redis refused: {refused:#?}");
}

/// One right less, and the replica says so before it is given a browser.
#[tokio::test]
async fn a_relay_that_lacks_a_right_is_not_ready_and_says_which() {
    let cluster = Cluster::with_replicas(0).await;
    // Scripts, what they run, and what is run beside them.
    for (right, name) in [("evalsha", "EVALSHA"), ("xtrim", "XTRIM"), ("subscribe", "SUBSCRIBE")] {
        let right = |sign: &str| format!("{sign}{right}");
        let _: String = cluster.redis.run(&["ACL", "SETUSER", "relay", &right("-")]).await;

        let replica = Replica::start(cluster.setup()).await;
        let named = |line: &str| {
            (line.contains("reaper paused") && line.contains(name)).then(|| line.to_owned())
        };
        replica.log().wait("a warning that names the right", named).await;
        assert_eq!(replica.get("/readyz").await.status, 503, "{name}");
        let url = cluster.redis.url_of("relay");
        let (code, said) = verdict(&["check", "--redis", &url], &[]).await;
        assert!(code == Some(1) && said.contains(name), "{name}: {code:?} {said}");

        let _: String = cluster.redis.run(&["ACL", "SETUSER", "relay", &right("+")]).await;
        replica.ready().await;
        let (code, said) = verdict(&["check", "--redis", &url], &[]).await;
        assert_eq!(code, Some(0), "{name}: {said}");
    }
}

/// A Redis that takes no writes is of no use to a relay.
#[tokio::test]
async fn a_replica_is_not_ready_while_redis_refuses_writes() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().subscribed_to("session:42").await;
    for (maxmemory, status) in [("1", 503), ("0", 200)] {
        let _: String = cluster.redis.run(&["CONFIG", "SET", "maxmemory", maxmemory]).await;
        until(&format!("/readyz says {status}"), async || {
            (cluster.replicas[0].get("/readyz").await.status == status).then_some(())
        })
        .await;
    }
    browser.settle().await;
}

/// A cluster of one node is a Redis like any other. A node beside others has some channels only: to say that it is
/// well because those work would be a lie.
#[tokio::test]
async fn a_node_of_a_cluster_is_enough_where_it_is_the_only_one() {
    let nodes = [Redis::start_node().await, Redis::start_node().await];
    let alone = Redis::start_node().await;
    let _: String = alone.run(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).await;
    Redis::share_slots([&nodes[0], &nodes[1]]).await;
    let check = async |url: &str| verdict(&["check", "--redis", url], &[]).await;

    let replica = Replica::start(Setup::serve(Some(alone.url_of("relay")))).await;
    replica.ready().await;
    let mut browser = Endpoint::of(&replica).subscribed_to("session:42").await;
    for channel in ["session:42", "session:43", "agent:a1"] {
        replica.publish(channel, "x", json!({})).await;
    }
    browser.wait_for_type("event").await;
    let (code, said) = check(&alone.url_of("relay")).await;
    assert_eq!(code, Some(0), "{said}");

    for node in &nodes {
        let (code, said) = check(&node.url_of("relay")).await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("one of several in a cluster"), "{said}");
        let replica = Replica::start(Setup::serve(Some(node.url_of("relay")))).await;
        let why = |line: &str| line.contains("one of several in a cluster").then_some(());
        replica.log().wait("a warning that names the cluster", why).await;
        assert_eq!(replica.get("/readyz").await.status, 503);
    }
}

/// `check` tells what will never work from what is not there yet.
#[tokio::test]
async fn check_ends_with_1_where_waiting_does_not_help() {
    let cluster = Cluster::with_replicas(0).await;
    let address = cluster.redis.address();
    let dir = tempfile::TempDir::new().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    let port = free_port().to_string();
    let words = ["CONFIG", "SET", "tls-cert-file", cert, "tls-key-file", key, "tls-ca-cert-file"];
    let words = words.into_iter().chain([cert, "tls-auth-clients", "no", "tls-port", &port]);
    let _: String = cluster.redis.run(&words.collect::<Vec<_>>()).await;
    for (url, is, word) in [
        (format!("redis://{address}"), 0, "answers"),
        (format!("redis://127.0.0.1:{}", free_port()), 0, "as soon as Redis answers"),
        (format!("redis://relay:wrong@{address}"), 1, "authentication"),
        (format!("redis://{address}/99"), 1, "DB index is out of range"),
        (format!("rediss://localhost:{port}"), 1, "invalid peer certificate"),
        (format!("rediss://localhost:{port}/#insecure"), 2, "SSL_CERT_FILE"),
    ] {
        let (code, said) = verdict(&["check", "--redis", &url], &[]).await;

        assert_eq!(code, Some(is), "{url}: {said}");
        assert!(said.contains(word) && !said.contains("wrong@"), "{url}: {said}");
    }
    let trusted = [("SSL_CERT_FILE", cert)];
    let url = format!("rediss://localhost:{port}");
    let (code, said) = verdict(&["check", "--redis", &url], &trusted).await;
    assert_eq!(code, Some(0), "{said}");
}
