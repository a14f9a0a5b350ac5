//! A program that blocks its own executor: its agent lives, is seen to hang, and is lost in the end.

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::cluster::events;
use journal::{Journal, Reaper};
use publisher_sdk::{Agent, AgentOptions};
use relay::{Config, Running};
use serde_json::Value;
use tests::{Persistence, Redis};
use tokio::time::timeout;

const LEASE: Duration = Duration::from_secs(3);
/// Longer than two leases.
const UNRESPONSIVE_AFTER: Duration = Duration::from_secs(7);

/// A program whose one thread is blocked as soon as its session is open, until it is told to go on.
struct Blocked {
    go_on: mpsc::Sender<()>,
    /// Whether its agent was fenced.
    program: JoinHandle<bool>,
}

impl Blocked {
    fn start(url: String, options: AgentOptions) -> Self {
        let (go_on, told) = mpsc::channel();
        let program = std::thread::spawn(move || {
            let executor =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            executor.block_on(async move {
                let agent = options.connect(&url).await.unwrap();
                let session = agent.session("s").await.unwrap();
                told.recv().unwrap();
                if session.publish("back", &()).await.is_err() {
                    timeout(Duration::from_secs(5), agent.fenced()).await.unwrap();
                }
                let is_fenced = agent.is_fenced();
                agent.close().await.ok();
                is_fenced
            })
        });
        Self { go_on, program }
    }

    fn ends_fenced(self) -> bool {
        self.go_on.send(()).unwrap();
        self.program.join().unwrap()
    }
}

fn options() -> AgentOptions {
    Agent::options().id("a").lease(LEASE).unresponsive_after(UNRESPONSIVE_AFTER)
}

/// Looks for dead agents, as a replica does, until an event `name` stands on the session.
async fn until(journal: &Journal, name: &str) -> Vec<(String, Value)> {
    let mut reaper = Reaper::new(journal.clone());
    let waiting = async {
        loop {
            // Where Redis takes its time, the next poll does it.
            drop(reaper.poll().await);
            let said = events(journal, "session:s").await;
            if said.iter().any(|(found, _)| found == name) {
                return said;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(40), waiting).await.unwrap_or_else(|_| panic!("no `{name}`"))
}

async fn it_lives_and_is_seen(journal: &Journal, url: String) {
    let program = Blocked::start(url, options());

    let said = until(journal, "agent.status_changed").await;

    let [(_, status)] = &said[..] else { panic!("{said:?}") };
    assert_eq!(status["status"], "unresponsive", "{status}");
    assert!(status["since"].as_u64().is_some(), "{status}");
    let fenced = tokio::task::spawn_blocking(move || program.ends_fenced()).await.unwrap();
    assert!(!fenced, "it lives");
    let said = events(journal, "session:s").await;
    let names: Vec<&str> = said.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[0], "agent.status_changed");
    assert!(names.contains(&"back") && !names.contains(&"agent_lost"), "{names:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_executor_is_blocked_lives_and_its_session_is_told() {
    let redis = Redis::start(Persistence::None).await;
    let journal = Journal::open(&redis.url()).unwrap().with_lease(LEASE);
    it_lives_and_is_seen(&journal, redis.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_it_is_behind_a_relay() {
    let redis = Redis::start(Persistence::None).await;
    let journal = Journal::open(&redis.url()).unwrap().with_lease(LEASE);
    let listen = "127.0.0.1:0".parse().unwrap();
    let relay: Running = relay::start(Config::new(listen, journal.clone())).await.unwrap();
    it_lives_and_is_seen(&journal, format!("http://{}", relay.addr())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_executor_is_blocked_for_too_long_is_lost() {
    let redis = Redis::start(Persistence::None).await;
    let journal = Journal::open(&redis.url()).unwrap().with_lease(LEASE);
    let options = options().unresponsive_after(Duration::from_secs(1)).lost_after(LEASE);
    let program = Blocked::start(redis.url(), options);

    let said = until(&journal, "agent_lost").await;

    assert_eq!(said[0].0, "agent.status_changed", "{said:?}");
    let fenced = tokio::task::spawn_blocking(move || program.ends_fenced()).await.unwrap();
    assert!(fenced, "it goes on as a lost agent does");
}
