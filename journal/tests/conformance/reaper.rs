//! What reapers do about deadlines whose records have gone, and when several reapers meet.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use journal::{Journal, Lease, NewApproval, Reaper, SendError};
use protocol::Channel;
use redis::AsyncCommands;
use serde_json::Value;

use crate::gate::{Gate, proxy};
use crate::states::{agent, approval, channel, command, told};
use crate::{LEASE, Server, open};

pub(crate) async fn poll_for(reaper: &mut Reaper, time: Duration) {
    let until = tokio::time::Instant::now() + time;
    while tokio::time::Instant::now() < until {
        drop(reaper.poll().await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

pub(crate) async fn losses(journal: &Journal, on: &Channel) -> Vec<Value> {
    let told = told(journal, on).await.into_iter();
    told.filter(|(name, _)| name == "agent_lost").map(|(_, data)| data).collect()
}

/// Every replica was away for longer than the record lasts: 25 h after its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approval_whose_record_has_expired_is_not_pending_for_ever() {
    let server = Server::start().await;
    let journal = open(&server);
    let lease = agent(&journal, "a").await;
    let own = lease.channel().clone();
    let new = NewApproval { expires_in: Duration::from_millis(300), ..approval(&own, "q1") };
    journal.ask(lease.holder(), &new).await.unwrap();
    let mut redis = server.connection().await;
    let gone: u64 = redis
        .del(format!("relay:{{{}}}:approval:{own}:q1", protocol::partition_tag(own.partition())))
        .await
        .unwrap();
    assert_eq!(gone, 1);
    tokio::time::sleep(Duration::from_millis(400)).await;
    let mut reaper = Reaper::new(journal.clone());
    poll_for(&mut reaper, Duration::from_secs(1)).await;
    let pending = journal.pending(&own).await.unwrap().1;
    assert!(pending.is_empty(), "nobody can answer it: {pending:?}");
}

/// Every replica was away for longer than the record lasts: ten minutes after its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_whose_records_have_expired_do_not_fill_the_channel_for_ever() {
    let server = Server::start().await;
    let journal = open(&server);
    let own = channel("session:1");
    let mut redis = server.connection().await;
    for _ in 0..256 {
        let mut new = command(&own);
        new.expires_in = Duration::from_millis(300);
        let sent = journal.send(&new).await.unwrap();
        let gone: u64 = redis
            .del(format!(
                "relay:{{{}}}:command:{own}:{}",
                protocol::partition_tag(own.partition()),
                sent.key
            ))
            .await
            .unwrap();
        assert_eq!(gone, 1);
    }
    tokio::time::sleep(Duration::from_millis(400)).await;
    let mut reaper = Reaper::new(journal.clone());
    poll_for(&mut reaper, Duration::from_secs(4)).await;
    let due: u64 = redis
        .zcard(format!("relay:{{{}}}:deadlines", protocol::partition_tag(own.partition())))
        .await
        .unwrap();
    assert_eq!(due, 0, "nothing is due any more");
    let sent = journal.send(&command(&own)).await;
    assert!(!matches!(sent, Err(SendError::Busy(_))), "{sent:?}");
}

/// Two reapers find a lease due. The slower one forgets the deadline when the agent is back already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reaper_does_not_take_the_deadline_of_a_new_lease() {
    let server = Server::start().await;
    let direct = open(&server);
    let gates = Arc::new(vec![Gate::new(b"EVALSHA"), Gate::new(b"ZREM")]);
    let port = proxy(Arc::new(AtomicU16::new(server.port)), Arc::clone(&gates)).await;
    let slow = Journal::open(&format!("redis://127.0.0.1:{port}")).unwrap().with_lease(LEASE);
    let (mut fast_reaper, mut slow_reaper) =
        (Reaper::new(direct.clone()), Reaper::new(slow.clone()));
    slow.agents_on(&channel("agent:a")).await.unwrap();
    drop(agent(&direct, "a").await);
    let until = tokio::time::Instant::now() + LEASE - Duration::from_millis(300);
    while tokio::time::Instant::now() < until {
        fast_reaper.poll().await.unwrap();
        slow_reaper.poll().await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Due, and the grace period of the first poll is over.
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    for gate in gates.iter() {
        gate.armed.store(true, Ordering::SeqCst);
    }
    let slow_poll = tokio::spawn(async move { slow_reaper.poll().await });
    let waited = tokio::time::timeout(Duration::from_secs(4), gates[0].hit.acquire()).await;
    waited.expect("it looks at the lease").unwrap().forget();
    fast_reaper.poll().await.unwrap();
    assert_eq!(losses(&direct, &channel("agent:a")).await.len(), 1, "lost by the first reaper");
    gates[0].open.add_permits(1);
    let waited = tokio::time::timeout(Duration::from_secs(4), gates[1].hit.acquire()).await;
    waited.expect("it forgets the deadline").unwrap().forget();
    let back = agent(&direct, "a").await;
    gates[1].open.add_permits(1);
    slow_poll.await.unwrap().unwrap();

    let live = direct.agents_on(&channel("agent:a")).await.unwrap();
    // And it dies before its first renewal.
    drop(back);
    poll_for(&mut fast_reaper, LEASE * 2).await;
    let lost = losses(&direct, &channel("agent:a")).await.len();
    assert_eq!((live.concat().as_str(), lost), ("a", 2));
}

/// One record that no step can change must not keep every dead agent alive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_cannot_be_read_does_not_stop_the_judging_of_leases() {
    let server = Server::start().await;
    let journal = open(&server);
    let mut redis = server.connection().await;
    let own = Channel::agent("a").unwrap();
    let tag = protocol::partition_tag(own.partition());
    let id = "00000000-0000-0000-0000-000000000000";
    let _: () =
        redis.hset(format!("relay:{{{tag}}}:command:{own}:{id}"), "not", "ours").await.unwrap();
    let _: () = redis
        .zadd(format!("relay:{{{tag}}}:deadlines"), format!("expire {own} {id}"), 1)
        .await
        .unwrap();
    drop(agent(&journal, "a").await);

    poll_for(&mut Reaper::new(journal.clone()), 3 * LEASE).await;

    assert_eq!(losses(&journal, &own).await.len(), 1);
}

/// What Redis has lost is written again beside the renewals of what was written again before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_leases_that_redis_lost_are_restored_and_none_lapses() {
    const LEASES: usize = 4_000;
    let server = Server::start().await;
    let journal = open(&server);
    let own = agent(&journal, "a").await;
    let incarnation = Some(own.holder().incarnation);
    let taking = (0..LEASES).map(|n| {
        let (journal, session) = (journal.clone(), channel(&format!("session:{n}")));
        async move { journal.lease(&session, "a", incarnation, None).await.unwrap() }
    });
    let held: Vec<Lease> = stream::iter(taking).buffer_unordered(64).collect().await;
    let mut reaper = Reaper::new(journal.clone());
    let _: () = redis::cmd("FLUSHALL").query_async(&mut server.connection().await).await.unwrap();

    poll_for(&mut reaper, 4 * LEASE).await;

    let lost = held.iter().filter(|lease| lease.lost().is_cancelled()).count();
    assert_eq!(lost, 0, "of {LEASES}");
    let told = futures_util::future::join_all(
        held.iter().map(|lease| async { losses(&journal, lease.channel()).await.len() }),
    );
    assert_eq!(told.await.into_iter().sum::<usize>(), 0);
    for lease in &held {
        assert_eq!(journal.agents_on(lease.channel()).await.unwrap().len(), 1);
    }
}
