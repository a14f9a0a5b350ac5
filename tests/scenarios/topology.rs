//! The whole product as `docker-compose.yml` sets it up, as processes: a load balancer in front of two
//! replicas, an agent that publishes through Redis.

use std::process::Command;

use tests::balancer::Balancer;
use tests::endpoint::Endpoint;
use tests::process::Process;
use tests::replica::run;
use tests::{Cluster, Page};

/// F18: a replica is killed; its browsers come back through the same address and go on.
#[tokio::test]
async fn behind_a_load_balancer_a_killed_replica_costs_nobody_an_event() {
    let cluster = Cluster::options().replicas(2).set().await;
    let Cluster { replicas, redis, .. } = cluster;
    let mut replicas: [_; 2] = replicas.try_into().unwrap();
    let balancer = Balancer::in_front_of(&replicas).await;
    let channel = "session:42";
    replicas[1].publish_numbers(channel, 0..10).await;
    let mut browsers = Vec::new();
    for _ in 0..6 {
        let mut browser = Endpoint::through(&balancer).connect().await;
        browser.subscribe_since(channel, Some("start")).await;
        browsers.push(browser);
    }

    replicas[0].kill9();
    replicas[1].publish_numbers(channel, 10..20).await;

    for browser in browsers {
        let endpoint = Endpoint::through(&balancer).continuing(browser.vanish());
        let mut back = endpoint.back_on(channel).await;
        back.expect_numbers(channel, 0..20).await;
    }
    drop(redis);
}

/// The page behind the load balancer shows the agent, which knows nothing of the balancer or the replicas.
#[tokio::test]
async fn the_composed_product_shows_its_agent_on_the_page() {
    let cluster = Cluster::options().flag("--demo-page").replicas(2).set().await;
    let words = ["demo-agent", "--redis", &cluster.redis.url()].map(ToOwned::to_owned);
    let _agent = run(&words, &[]);
    let Cluster { replicas, redis, .. } = cluster;
    let replicas: [_; 2] = replicas.try_into().unwrap();
    let balancer = Balancer::in_front_of(&replicas).await;

    let page = Page::open(&format!("http://{}/", balancer.address())).await;

    let streams = "document.querySelector('#run')?.dataset.status === 'running' \
                   && document.querySelector('#text')?.textContent.length > 20";
    page.wait("a run streams", streams).await;
    drop(redis);
}

#[tokio::test]
async fn the_compose_file_is_valid() {
    let mut command = Command::new("docker-compose");
    command.args(["config", "-q"]).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut compose = Process::spawn("docker-compose", command, "Install it: ./test.sh does");

    let code = compose.exit().await.code();

    assert_eq!(code, Some(0), "{}", compose.log().text());
}
