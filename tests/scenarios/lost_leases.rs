//! Redis loses what it knew of leases, or takes no writes for a while. No living agent is declared lost because
//! of it, and each run ends once.

use publisher_sdk::Agent;
use serde_json::{Value, json};
use tests::wait::pause;
use tests::{Browser, Cluster};

const OWN: &str = "agent:worker";
const FIREHOSE: &str = "global:events";
const ENDS: [&str; 4] = ["agent_completed", "agent_failed", "agent_cancelled", "agent_lost"];

async fn cluster() -> Cluster {
    Cluster::options().replicas(2).short_leases().set().await
}

async fn watching(cluster: &Cluster) -> Browser {
    let mut browser = cluster.browser().subscribed_to(OWN).await;
    browser.subscribe(FIREHOSE).await;
    browser
}

/// How often an end of the run was said on the channel.
fn ends(browser: &Browser, channel: &str, run: &str) -> Vec<String> {
    let events = browser.events(channel).iter();
    let is_end = |event: &&tests::Event| {
        ENDS.contains(&&*event.name)
            && (event.data["runId"] == run
                || event.data["runs"].as_array().is_some_and(|runs| runs.contains(&json!(run))))
    };
    events.filter(is_end).map(|event| event.name.clone()).collect()
}

fn losses(browser: &Browser) -> Vec<&Value> {
    let events = browser.events(FIREHOSE).iter();
    events.filter(|event| event.name == "agent_lost").map(|event| &event.data).collect()
}

/// (b) A restored backup, a truncated file: the leases in it ran out long ago.
#[tokio::test]
async fn a_redis_that_comes_back_from_an_older_file_ends_no_living_agent() {
    let mut cluster = cluster().await;
    let agents: Vec<Agent> = {
        let mut agents = Vec::new();
        for n in 0..10 {
            agents.push(cluster.agent(&format!("a{n}")).await);
        }
        agents
    };
    let past = cluster.redis.snapshot().await;
    pause(cluster.lease() * 2).await;

    cluster.redis.come_back_as(&past).await;
    let mut browser = watching(&cluster).await;
    pause(cluster.lease() * 2).await;
    browser.settle().await;

    assert!(losses(&browser).is_empty(), "{:?}", losses(&browser));
    assert!(agents.iter().all(|agent| !agent.is_fenced()));
}

/// (c) The memory is full, or too few replicas are there, for longer than a lease.
#[tokio::test]
async fn a_redis_that_refuses_writes_for_a_while_ends_no_agent_and_each_run_once() {
    let cluster = cluster().await;
    let mut browser = watching(&cluster).await;
    let agent = cluster.agent("worker").await;
    let session = agent.session("show").await.unwrap();
    for (setting, refusing, usual) in [("maxmemory", "1", "0"), ("min-replicas-to-write", "1", "0")]
    {
        let run = session.begin_run(setting);
        run.announce(&()).await.unwrap();
        let _: redis::Value = cluster.redis.run(&["CONFIG", "SET", setting, refusing]).await;
        let ending = tokio::spawn(run.complete());
        pause(cluster.lease() * 2).await;
        let _: redis::Value = cluster.redis.run(&["CONFIG", "SET", setting, usual]).await;
        ending.await.unwrap().unwrap();
        pause(cluster.lease() * 2).await;
        browser.settle().await;

        assert!(!agent.is_fenced(), "{setting}");
        for channel in [OWN, FIREHOSE] {
            assert_eq!(
                ends(&browser, channel, setting),
                ["agent_completed"],
                "{setting} {channel}"
            );
        }
        assert!(losses(&browser).is_empty(), "{setting}");
    }
}

/// (a) All is gone, and the agents go on at once.
#[tokio::test]
async fn a_flushed_redis_fences_no_agent_whatever_it_does_next() {
    let cluster = cluster().await;
    let agent = cluster.agent("worker").await;
    for step in 0..12 {
        let run = agent.begin_run(format!("r{step}"));
        let kept = if step % 4 == 1 {
            None
        } else {
            Some(agent.session(&format!("s{step}")).await.unwrap())
        };
        run.announce(&()).await.unwrap();
        let () = cluster.redis.run(&["FLUSHALL"]).await;
        match step % 4 {
            0 => run.complete().await.unwrap(),
            1 => drop(agent.session(&format!("s{step}")).await.unwrap()),
            2 => agent.begin_run("other").announce(&()).await.unwrap(),
            _ => drop(kept),
        }
        assert!(!agent.is_fenced(), "step {step}");
    }
    pause(cluster.lease()).await;
    assert!(!agent.is_fenced());
}
