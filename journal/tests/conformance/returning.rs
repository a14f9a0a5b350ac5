//! An agent that comes back, to any replica, keeps its incarnation; two agents that begin at once get two.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use journal::{AppendError, Journal, Name, NoteCall, Parent, Reaper, Take};
use serde_json::json;

use crate::gate::{Gate, proxy};
use crate::reaper::{losses, poll_for};
use crate::states::{agent, channel, command};
use crate::{LEASE, Server, entry, open};

/// The agent has come back to another replica; then the first one notices that it has been silent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_has_come_back_elsewhere_is_not_let_lapse() {
    let server = Server::start().await;
    let [one, two, third] = [(); 3].map(|()| open(&server));
    let mut reaper = Reaper::new(third.clone());
    poll_for(&mut reaper, LEASE + Duration::from_secs(1)).await;
    let own = channel("agent:a");
    let before = one.lease(&own, "a", None, None).await.unwrap();
    let held = (own.clone(), before.holder().clone(), before.taking());
    // As the client restores it on the new connection.
    let incarnation = Some(before.holder().incarnation);
    let _after = two.lease(&own, "a", incarnation, None).await.unwrap();

    // What a relay does after five sixths of a lease of silence.
    drop(before);
    one.let_lapse(&[held], LEASE / 6).await.unwrap();
    poll_for(&mut reaper, LEASE + Duration::from_secs(1)).await;

    let lost = losses(&third, &channel("agent:a")).await;
    assert!(lost.is_empty(), "it lives, behind the other replica: {lost:?}");
}

/// A relayed agent goes from one replica to another and back within a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_comes_back_to_the_first_replica_is_not_fenced() {
    let server = Server::start().await;
    let (one, two) = (open(&server), open(&server));
    let lease = agent(&one, "a").await;
    let own = Name::events(lease.channel().clone());
    for (n, journal) in [&one, &two, &one].into_iter().enumerate() {
        let (_desk_retakes, holder) = (
            journal
                .lease(lease.channel(), "a", Some(lease.holder().incarnation), None)
                .await
                .unwrap(),
            lease.holder(),
        );
        let said = journal
            .as_producer(holder)
            .append(&own, vec![entry("x").with_key(format!("a.{n}"))])
            .await;
        assert!(!matches!(said, Err(AppendError::Fenced)), "visit {n}: {said:?}");
        said.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A relayed agent reconnects in the middle of a run, and dies later on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_taken_back_keeps_its_runs_and_its_parent() {
    let journal = Journal::in_memory().with_lease(LEASE);
    let mut reaper = Reaper::new(journal.clone());
    let parent = Parent { agent_id: "p".into(), run_id: None, session: None };
    let own = channel("agent:a");
    let lease = journal.lease(&own, "a", None, Some(&parent)).await.unwrap();
    journal.adopt(&parent, lease.holder()).await.unwrap();
    let incarnation = Some(lease.holder().incarnation);
    lease.note(&NoteCall::begun(["r1".into()])).await.unwrap();
    drop(lease);
    let lease = journal.lease(&own, "a", incarnation, None).await.unwrap();
    let alive = journal.alive(None, 1_000).await.unwrap().agents.remove(0);
    drop(lease);
    poll_for(&mut reaper, LEASE + Duration::from_secs(2)).await;
    let lost = losses(&journal, &channel("agent:a")).await;
    let children = journal.children(&channel("agent:p"), None).await.unwrap();
    assert_eq!(alive.runs.concat(), "r1");
    assert_eq!(lost[0]["runs"], json!(["r1"]));
    assert!(children.is_empty());
}

/// A session is closed while the agent's connection breaks: the call is said again on the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_said_again_on_the_next_connection_releases() {
    let journal = Journal::in_memory().with_lease(LEASE);
    let mut reaper = Reaper::new(journal.clone());
    let own = agent(&journal, "a").await;
    let (holder, session) = (own.holder().clone(), channel("session:1"));
    let incarnation = Some(holder.incarnation);
    // Its relay is gone before it has released what it was asked to release.
    drop(journal.lease(&session, "a", incarnation, None).await.unwrap());
    journal.release(&session, &holder, None).await.unwrap();
    poll_for(&mut reaper, LEASE + Duration::from_secs(2)).await;
    let lost = losses(&journal, &channel("session:1")).await;
    assert!(lost.is_empty());
    assert!(journal.lease(&session, "a", incarnation, None).await.is_ok());
}

/// Two processes of one id start at the same moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_begin_in_the_same_millisecond_are_two_incarnations() {
    let server = Server::start().await;
    let (one, two) = (open(&server), open(&server));
    one.ready().await.unwrap();
    two.ready().await.unwrap();
    let mut same = 0;
    for n in 0..200 {
        let id = format!("a{n}");
        let (x, y) = tokio::join!(agent(&one, &id), agent(&two, &id));
        if x.holder() == y.holder() {
            same += 1;
            let sent = one.send(&command(x.channel())).await.unwrap();
            let (a, b) = (
                one.take(x.channel(), sent.key, x.holder(), false).await,
                two.take(y.channel(), sent.key, y.holder(), false).await,
            );
            assert_eq!((a, b), (Ok(Take::Yours), Ok(Take::Yours)));
        }
    }
    assert_eq!(same, 0, "of 200 pairs so many were one incarnation, and both got the same command");
}

/// `Presence::take` is dropped at its deadline, between the commit and the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_whose_taking_was_given_up_does_not_end_the_agent() {
    let server = Server::start().await;
    let direct = open(&server);
    let gates = Arc::new(vec![Gate::new(b"HGETALL")]);
    let port = proxy(Arc::new(AtomicU16::new(server.port)), Arc::clone(&gates)).await;
    let theirs = Journal::open(&format!("redis://127.0.0.1:{port}")).unwrap().with_lease(LEASE);
    let mut reaper = Reaper::new(direct.clone());
    let own = agent(&theirs, "a").await;
    let session = channel("session:1");
    gates[0].armed.store(true, Ordering::SeqCst);
    let joining = theirs.lease(&session, "a", Some(own.holder().incarnation), None);
    assert!(tokio::time::timeout(Duration::from_secs(1), joining).await.is_err());
    gates[0].open.add_permits(1);

    poll_for(&mut reaper, LEASE + Duration::from_secs(2)).await;
    let lost = losses(&direct, &session).await;
    let again = theirs.lease(&session, "a", Some(own.holder().incarnation), None).await;
    assert!(lost.is_empty() && again.is_ok());
}
