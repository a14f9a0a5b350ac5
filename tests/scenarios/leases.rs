//! Every viewer knows which agents are alive; the runs of a dead one have an end, and no agent writes into
//! the run of its successor.

use std::time::Duration;

use publisher_sdk::{Agent, FlushError, Reason};
use serde_json::{Value, json};
use tests::process::Process;
use tests::wait::pause;
use tests::{Browser, Cluster, Event, PATIENCE, replica, until};

const OWN: &str = "agent:worker";
const SESSION: &str = "session:show";
const FIREHOSE: &str = "global:events";

/// An agent as a process of its own: the demo's.
fn worker(cluster: &Cluster) -> Process {
    let url = cluster.redis.url();
    let words = ["demo-agent", "--redis", &url, "--session", "show", "--agent-id", "worker"];
    replica::run(&[&words.map(str::to_owned)[..], &cluster.lease_flag()].concat(), &[])
}

async fn cluster(replicas: usize) -> Cluster {
    Cluster::options().replicas(replicas).short_leases().set().await
}

/// A browser that sees all that the worker says.
async fn watching(cluster: &Cluster, replica: usize) -> Browser {
    let mut browser = cluster.browser_on(replica).subscribed_to(SESSION).await;
    for channel in [OWN, FIREHOSE] {
        browser.subscribe(channel).await;
    }
    browser
}

/// Waits until the worker has begun its `nth` run and streams; the run's id.
async fn streaming(browser: &mut Browser, nth: usize) -> String {
    browser.wait_until("the run is announced", |seen| runs(seen.events(OWN)).len() >= nth).await;
    let id = runs(browser.events(OWN))[nth - 1].clone();
    let is_its_text = |event: &Event| event.name == "text_delta" && is_of(event, &id);
    browser.wait_until("its text", |seen| seen.events(SESSION).iter().any(is_its_text)).await;
    id
}

fn runs(events: &[Event]) -> Vec<String> {
    let spawned = events.iter().filter(|event| event.name == "agent_spawned");
    spawned.map(|event| event.data["runId"].as_str().unwrap().to_owned()).collect()
}

/// The demo's ids of turns and tools begin with their run's.
fn is_of(event: &Event, run: &str) -> bool {
    event.raw.contains(run)
}

/// The `agent_lost` of each channel, when all have come and no more do.
async fn losses(browser: &mut Browser) -> Vec<Vec<Value>> {
    let channels = [SESSION, OWN, FIREHOSE];
    let lost = |browser: &Browser, channel: &str| {
        let lost = browser.events(channel).iter().filter(|event| event.name == "agent_lost");
        lost.map(|event| event.data.clone()).collect::<Vec<_>>()
    };
    for channel in channels {
        let is_lost = |event: &Event| event.name == "agent_lost";
        browser.wait_until("agent_lost", |seen| seen.events(channel).iter().any(is_lost)).await;
    }
    // Every replica has looked for lost agents since.
    pause(Duration::from_millis(1_500)).await;
    browser.settle().await;
    channels.map(|channel| lost(browser, channel)).into()
}

/// F29: when an agent is killed, everybody is told, once; and its open run is named.
#[tokio::test]
async fn a_killed_agent_is_declared_lost_once_on_its_channels_with_its_open_run() {
    let cluster = cluster(2).await;
    let mut browsers = [watching(&cluster, 0).await, watching(&cluster, 1).await];
    let mut agent = worker(&cluster);
    let run = streaming(&mut browsers[0], 1).await;

    agent.kill9();

    for browser in &mut browsers {
        for lost in losses(browser).await {
            let expected = json!({"agent_id": "worker", "reason": "lost", "runs": [run]});
            assert_eq!(lost, [expected]);
        }
        let after = browser.events(SESSION).iter().skip_while(|event| event.name != "agent_lost");
        assert_eq!(after.count(), 1, "it is the last that is said");
    }
}

/// F30: stopped for longer than its lease, replaced, and woken: it is told that it is fenced, and no event of it
/// gets into its successor's run.
#[tokio::test]
async fn an_agent_that_stood_still_cannot_write_into_the_run_of_its_successor() {
    let cluster = cluster(2).await;
    let mut browser = watching(&cluster, 1).await;
    let mut agent = worker(&cluster);
    let first = streaming(&mut browser, 1).await;

    agent.signal(rustix::process::Signal::STOP);
    for lost in losses(&mut browser).await {
        assert_eq!((lost.len(), &lost[0]["runs"]), (1, &json!([first])));
    }
    let _successor = worker(&cluster);
    let second = streaming(&mut browser, 2).await;
    agent.signal(rustix::process::Signal::CONT);
    let ended = agent.exit().await;

    assert_eq!(ended.code(), Some(1), "it says why:\n{}", agent.log().tail(5));
    assert!(agent.log().tail(5).contains("taken over"), "{}", agent.log().tail(5));
    expect_one_writer(&mut browser, &first, &second).await;
}

/// F31: two processes, one id.
#[tokio::test]
async fn of_two_processes_with_one_id_the_newer_writes_and_the_older_ends() {
    let cluster = cluster(2).await;
    let mut browser = watching(&cluster, 0).await;
    let mut older = worker(&cluster);
    let first = streaming(&mut browser, 1).await;

    let mut newer = worker(&cluster);
    let second = streaming(&mut browser, 2).await;
    let ended = older.exit().await;

    assert_eq!(ended.code(), Some(1), "{}", older.log().tail(5));
    for lost in losses(&mut browser).await {
        assert_eq!((lost.len(), &lost[0]["reason"]), (1, &json!("replaced")));
    }
    expect_one_writer(&mut browser, &first, &second).await;
    assert!(newer.is_running());
}

/// From the first word of `second` on, nothing of `first` is said.
async fn expect_one_writer(browser: &mut Browser, first: &str, second: &str) {
    let enough = |event: &Event| event.name == "text_delta" && is_of(event, second);
    browser
        .wait_until("more text", |seen| {
            seen.events(SESSION).iter().filter(|e| enough(e)).count() > 20
        })
        .await;
    for channel in [SESSION, OWN] {
        let since = browser.events(channel).iter().skip_while(|event| !is_of(event, second));
        let strays: Vec<&str> =
            since.filter(|event| is_of(event, first)).map(|event| event.raw.as_str()).collect();
        assert!(strays.is_empty(), "{channel}: {strays:#?}");
    }
}

/// Asked to end, an agent leaves: its run is cancelled, and it is not declared lost.
#[tokio::test]
async fn an_agent_that_is_asked_to_end_is_gone_and_not_lost() {
    let cluster = cluster(1).await;
    let mut browser = watching(&cluster, 0).await;
    let mut agent = worker(&cluster);
    let run = streaming(&mut browser, 1).await;

    agent.signal(rustix::process::Signal::TERM);
    assert_eq!(agent.exit().await.code(), Some(0), "{}", agent.log().tail(5));

    let is_end = |event: &Event| event.name == "agent_cancelled" && is_of(event, &run);
    browser.wait_until("its end", |seen| seen.events(FIREHOSE).iter().any(is_end)).await;
    let end = browser.events(FIREHOSE).iter().find(|event| is_end(event)).unwrap();
    assert_eq!(end.data["reason"], "shutdown");
    pause(cluster.lease() + Duration::from_secs(1)).await;
    browser.settle().await;
    assert!(browser.events(SESSION).iter().all(|event| event.name != "agent_lost"));
    let cancel = json!({"type": "cancel_agent", "agent_id": "worker"});
    assert_eq!(browser.ask(cancel).await["code"], "agent_unavailable");
}

/// No agent is declared lost because Redis was away, however long.
#[tokio::test]
async fn while_redis_stands_still_no_agent_is_lost() {
    let cluster = cluster(2).await;
    let mut browser = cluster.browser().subscribed_to(OWN).await;
    let agent = cluster.agent("worker").await;
    let run = agent.begin_run("r1");
    run.announce(&()).await.unwrap();

    cluster.redis.freeze();
    pause(cluster.lease() * 3).await;
    cluster.redis.thaw();
    pause(cluster.lease() + Duration::from_secs(2)).await;
    run.complete().await.unwrap();

    let is_end = |event: &Event| event.name == "agent_completed";
    browser.wait_until("the run's end", |seen| seen.events(OWN).iter().any(is_end)).await;
    assert!(browser.events(OWN).iter().all(|event| event.name != "agent_lost"));
    assert!(!agent.is_fenced());
}

/// An agent that ends while Redis stands still releases its leases when Redis is back.
#[tokio::test]
async fn an_agent_that_closes_while_redis_stands_still_is_gone_and_not_lost() {
    // Redis is away for longer than closing waits, and for less than a lease.
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().subscribed_to(OWN).await;
    let agent = cluster.agent("worker").await;
    let _session = agent.session("show").await.unwrap();

    cluster.redis.freeze();
    let closing = tokio::spawn(agent.close());
    pause(Duration::from_secs(12)).await;
    cluster.redis.thaw();
    let closed = closing.await.unwrap();

    assert!(matches!(closed, Err(FlushError::Unfinished { count: 0 })), "{closed:?}");
    let gone = async || {
        let agents = cluster.replicas[0].get("/api/v1/agents").await.json();
        agents["agents"].as_array().is_some_and(Vec::is_empty).then_some(())
    };
    until("no agent is alive", gone).await;
    browser.settle().await;
    assert!(browser.events(OWN).iter().all(|event| event.name != "agent_lost"));
}

/// Redis came back empty: each living agent writes its lease again, with all that is known of it.
#[tokio::test]
async fn an_agent_is_known_again_with_its_runs_after_redis_lost_everything() {
    let mut cluster = cluster(1).await;
    let parent = cluster.agent("boss").await;
    let task = parent.begin_run("task");
    let options = cluster.agent_options("worker").child_of(&task);
    let agent = options.connect(&cluster.redis.url()).await.unwrap();
    let session = agent.session("show").await.unwrap();
    let run = session.begin_run("r1");
    run.announce(&()).await.unwrap();
    let known = async |cluster: &Cluster| {
        let agents = cluster.replicas[0].get("/api/v1/agents").await.json();
        let worker = agents["agents"].as_array()?.iter().find(|a| a["agent_id"] == "worker")?;
        let is_all = worker["runs"] == json!(["r1"])
            && worker["channels"] == json!([OWN, SESSION])
            && worker["parent"] == json!({"agent_id": "boss", "run_id": "task"});
        is_all.then(|| worker["since"].clone())
    };
    let since = until("all is known", async || known(&cluster).await).await;

    cluster.redis.kill9();
    cluster.redis.restart().await;

    let again = until("all is known again", async || known(&cluster).await).await;
    assert_eq!(again, since);
    // Its parent is told of it after that.
    until("it is adopted again", async || {
        let tree = cluster.replicas[0].get("/api/v1/channels/agent:boss/agents").await.json();
        (tree["agents"].as_array()?.len() == 2).then_some(())
    })
    .await;
    let mut browser = cluster.browser().connect().await;
    let cancel = json!({"type": "cancel_agent", "agent_id": "boss", "run_id": "task"});
    assert_eq!(browser.ask(cancel).await["listeners"], 2, "its child is known as well");
    for cancelled in [run.cancelled(), task.cancelled()] {
        tokio::time::timeout(PATIENCE, cancelled).await.unwrap();
    }
    assert!(!agent.is_fenced());
}

/// A restart finds what was sent meanwhile, and what was begun is not begun again.
#[tokio::test]
async fn a_restarted_agent_finds_its_commands_and_what_was_begun_is_answered() {
    let cluster = cluster(2).await;
    let mut dead = cluster.actor("worker").await;
    let mut browser = cluster.browser().subscribed_to(OWN).await;
    let command = |name: &str| json!({"type": "command", "agent_id": "worker", "name": name});
    let begun = browser.ask(command("begun")).await;
    let taken = dead.next().await;
    assert!(dead.takes(&taken).await);
    let waits = browser.ask(command("waits")).await;
    assert_eq!(waits["type"], "ack", "{waits}");
    drop(dead);

    let agent = cluster.agent("worker").await;
    let mut commands = agent.commands();
    let found = tokio::time::timeout(PATIENCE, commands.next()).await.unwrap().unwrap();
    assert_eq!(json!(found.command_id), waits["command_id"]);
    found.applied();

    for (ack, last, detail) in
        [(&begun, "rejected", json!("lost")), (&waits, "applied", Value::Null)]
    {
        let is_last = |event: &Event| {
            event.name == "command_status"
                && event.data["command_id"] == ack["command_id"]
                && event.data["status"] == last
        };
        browser.wait_until(last, |seen| seen.events(OWN).iter().any(is_last)).await;
        let status = browser.events(OWN).iter().find(|event| is_last(event)).unwrap();
        assert_eq!(status.data["detail"], detail);
    }
    browser.ask(command("last")).await;
    let next = tokio::time::timeout(PATIENCE, commands.next()).await.unwrap().unwrap();
    assert_eq!(next.name, "last", "nothing comes twice");
}

/// A cancel with a run's id, sent before the agent is up, is applied when the run begins.
#[tokio::test]
async fn a_cancel_that_names_a_run_waits_for_it() {
    let cluster = cluster(2).await;
    let mut browser = cluster.browser().subscribed_to(OWN).await;
    let cancel = json!({"type": "cancel_agent", "agent_id": "worker", "run_id": "r1"});
    let ack = browser.ask(cancel).await;
    assert_eq!(ack["type"], "ack", "{ack}");

    let agent: Agent = cluster.agent("worker").await;
    let is_delivered = |event: &Event| event.data["status"] == "delivered";
    browser.wait_until("delivered", |seen| seen.events(OWN).iter().any(is_delivered)).await;
    let run = agent.begin_run("r1");

    // "delivered" can be seen here before the agent hears that the Cancel is its own.
    let cancellation = tokio::time::timeout(PATIENCE, run.cancelled()).await.unwrap();
    assert_eq!(cancellation.reason, Reason::User);
    let is_applied = |event: &Event| event.data["status"] == "applied";
    browser.wait_until("applied", |seen| seen.events(OWN).iter().any(is_applied)).await;
}
