//! Connections that are open and do not work: to a server that was demoted, or through a network that has
//! forgotten them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use journal::{Journal, NoteCall, Reaper};

use crate::gate::{black_hole, proxy};
use crate::reaper::{losses, poll_for};
use crate::states::{agent, channel, command};
use crate::{LEASE, Server, open};

/// The master was demoted; connections to it stand. New ones reach the new master.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_renewed_after_a_failover_that_breaks_no_connection() {
    let (old, new) = (Server::start().await, Server::start().await);
    let target = Arc::new(AtomicU16::new(old.port));
    let port = proxy(Arc::clone(&target), Arc::default()).await;
    let journal = Journal::open(&format!("redis://127.0.0.1:{port}")).unwrap().with_lease(LEASE);
    let lease = agent(&journal, "a").await;
    let (mut to_old, mut to_new) = (old.connection().await, new.connection().await);
    // Otherwise the copy of the master stays in the tests' directory, and every later server begins with it.
    for server in [&mut to_old, &mut to_new] {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET")
            .arg("repl-diskless-load")
            .arg("swapdb")
            .arg("repl-diskless-sync-delay")
            .arg("0")
            .query_async::<()>(server)
            .await
            .unwrap();
    }
    let replicaof = |host: &str, port: &str| redis::cmd("REPLICAOF").arg(host).arg(port).to_owned();
    replicaof("127.0.0.1", &old.port.to_string()).query_async::<()>(&mut to_new).await.unwrap();
    // Until it has been renewed once.
    tokio::time::sleep(LEASE / 2).await;
    target.store(new.port, Ordering::SeqCst);
    replicaof("NO", "ONE").query_async::<()>(&mut to_new).await.unwrap();
    replicaof("127.0.0.1", &new.port.to_string()).query_async::<()>(&mut to_old).await.unwrap();

    let direct = open(&new);
    let mut reaper = Reaper::new(direct.clone());
    // What short questions ask heals at once.
    lease.note(&NoteCall::begun(["r1".into()])).await.unwrap();
    poll_for(&mut reaper, LEASE * 3).await;
    let lost = losses(&direct, &channel("agent:a")).await;
    assert!(lost.is_empty() && !lease.lost().is_cancelled(), "{lost:?}");
}

/// Requests with a timeout of two seconds, after the network has silently dropped the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_leave_early_do_not_keep_a_dead_connection() {
    let server = Server::start().await;
    let generation = Arc::new(AtomicU16::new(0));
    let port = black_hole(&server, Arc::clone(&generation)).await;
    let journal = Journal::open(&format!("redis://127.0.0.1:{port}")).unwrap().with_lease(LEASE);
    let own = channel("session:1");
    journal.send(&command(&own)).await.unwrap();
    generation.fetch_add(1, Ordering::SeqCst);
    // As `reply_to` in relay/src/commands/request.rs: `timeout(PATIENCE.min(*timeout), send)`.
    let mut outcomes = Vec::new();
    for _ in 0..10 {
        let sent = tokio::time::timeout(Duration::from_secs(2), async {
            journal.send(&command(&own)).await
        })
        .await;
        outcomes.push(sent.is_ok_and(|sent| sent.is_ok()));
    }
    assert!(outcomes[9], "{outcomes:?}");
}
