//! What leases promise, on both backends; and what is counted and kept of those that hold them.

use std::time::Duration;

use journal::{
    AppendError, Asked, COUNTS_LIFETIME, Holder, Journal, LeaseError, Name, NewApproval, NoteCall,
    Reaper, Status, Take,
};
use protocol::Channel;
use uuid::Uuid;

use crate::states::{agent, applied, approval, channel, command, commands, told};
use crate::{LEASE, on_both};

on_both! {
    async fn a_newer_incarnation_fences_the_older_and_answers_for_it(backend) {
        let old = agent(&backend.journal, "a").await;
        let own = old.channel().clone();
        old.note(&NoteCall::begun(["r1".into()])).await.unwrap();
        let sent = backend.journal.send(&command(&own)).await.unwrap();
        let waiting = backend.journal.send(&command(&own)).await.unwrap();
        backend.journal.take(&own, sent.key, old.holder(), false).await.unwrap();

        let new = agent(&backend.journal, "a").await;

        assert!(new.holder().incarnation > old.holder().incarnation);
        assert_eq!(backend.journal.take(&own, waiting.key, old.holder(), false).await, Ok(Take::Fenced));
        assert_eq!(backend.journal.finish(&own, sent.key, old.holder(), &applied()).await, Ok(false));
        assert_eq!(old.note(&NoteCall::default()).await, Err(LeaseError::Fenced));
        let older = backend.journal.lease(&own, "a", Some(old.holder().incarnation), None).await;
        assert!(matches!(older, Err(LeaseError::Fenced)));
        assert_eq!(backend.journal.take(&own, waiting.key, new.holder(), false).await, Ok(Take::Yours));
        let outcome = backend.journal.outcome(&own, sent.key).await.unwrap().unwrap();
        assert_eq!((outcome.status, outcome.detail.as_deref()), (Status::Rejected, Some(r#""lost""#)));
        for channel in [own, Channel::global_events()] {
            let lost: Vec<_> = told(&backend.journal, &channel).await.into_iter()
                .filter(|(name, _)| name == "agent_lost").collect();
            assert_eq!(lost.len(), 1, "{channel}");
            assert_eq!((&lost[0].1["runs"][0], &lost[0].1["reason"]), (&"r1".into(), &"replaced".into()));
        }
    }
}

on_both! {
    async fn a_revoked_lease_ends_alone_and_what_it_leaves_is_settled(backend) {
        let journal = &backend.journal;
        let (session, own) = (channel("session:1"), agent(journal, "a").await);
        let holder = own.holder();
        let there = async || journal.lease(&session, "a", Some(holder.incarnation), None).await.unwrap();
        let lease = there().await;
        let run = |id: &str| NoteCall::begun([id.into()]);
        lease.note(&run("r1")).await.unwrap();
        own.note(&run("r2")).await.unwrap();
        let sent = journal.send(&command(&session)).await.unwrap();
        journal.take(&session, sent.key, holder, false).await.unwrap();
        for (on, id, durable) in [(&session, "left", false), (&session, "kept", true), (own.channel(), "own", false)] {
            let new = NewApproval { durable, ..approval(on, id) };
            assert_eq!(journal.ask(holder, &new).await, Ok(Asked::Pending));
        }
        let pending = async |on: &Channel| -> Vec<String> {
            let pending = journal.pending(on).await.unwrap().1;
            pending.iter().map(|one| one.request_id.to_string()).collect()
        };

        lease.revoke().await.unwrap();
        lease.revoke().await.unwrap();

        assert!(journal.agents_on(&session).await.unwrap().is_empty());
        assert_eq!((pending(&session).await, pending(own.channel()).await), (vec!["kept".into()], vec!["own".into()]));
        let outcome = journal.outcome(&session, sent.key).await.unwrap().unwrap();
        assert_eq!(outcome.status, Status::Rejected, "what it had taken is answered");
        let lost: Vec<serde_json::Value> = told(journal, &session).await.into_iter()
            .filter(|(name, _)| name == "agent_lost").map(|(_, data)| data).collect();
        let expected = serde_json::json!({"agent_id": "a", "reason": "revoked", "runs": ["r1"]});
        assert_eq!(lost, [expected], "once");
        for elsewhere in [own.channel(), &Channel::global_events()] {
            let told = told(journal, elsewhere).await;
            assert!(told.iter().all(|(name, _)| name != "agent_lost"), "{elsewhere}: {told:?}");
        }
        assert!(!lease.lost().is_cancelled() && !own.lost().is_cancelled(), "it is not fenced");
        own.note(&run("r3")).await.unwrap();
        journal.as_producer(holder).append(&Name::events(session.clone()), vec![crate::entry("x")]).await.unwrap();

        // Permitted again, it takes the lease anew; what was revoked before does not touch that.
        let again = there().await;
        lease.revoke().await.unwrap();
        again.note(&run("r4")).await.unwrap();
        assert_eq!(journal.agents_on(&session).await.unwrap(), [Box::<str>::from("a")]);
    }
}

on_both! {
    async fn a_fenced_incarnation_publishes_no_more(backend) {
        let old = agent(&backend.journal, "a").await;
        let own = Name::events(old.channel().clone());
        let older = backend.journal.as_producer(old.holder());
        let say = |journal: &Journal, text: &str| {
            let (journal, own, entry) = (journal.clone(), own.clone(), crate::entry(text));
            async move { journal.append(&own, vec![entry]).await.map(drop) }
        };
        say(&older, "one").await.unwrap();
        say(&older, "two").await.unwrap();

        let new = agent(&backend.journal, "a").await;

        let newer = backend.journal.as_producer(new.holder());
        say(&newer, "three").await.unwrap();
        assert_eq!(say(&older, "late").await, Err(AppendError::Fenced));
        say(&newer, "four").await.unwrap();
        assert_eq!(say(&older, "later").await, Err(AppendError::Fenced));
        assert_eq!(told(&backend.journal, new.channel()).await.len(), 4);
    }
}

on_both! {
    async fn an_agent_that_leaves_of_its_own_will_is_not_lost(backend) {
        let lease = agent(&backend.journal, "a").await;
        let own = lease.channel().clone();
        assert_eq!(&*backend.journal.alive(None, 1_000).await.unwrap().agents[0].agent_id, "a");
        lease.release().await.unwrap();

        assert!(backend.journal.alive(None, 1_000).await.unwrap().agents.is_empty());
        assert!(backend.journal.agents_on(&own).await.unwrap().is_empty());
        assert!(told(&backend.journal, &own).await.is_empty());
        let again = backend.journal.lease(&own, "a", None, None).await.unwrap();
        assert_eq!(backend.journal.agents_on(&own).await.unwrap().concat(), "a");
        drop(again);
    }
}

on_both! {
    /// A worker that dies: its leases end by themselves, once, whichever replica looks; no other leases end.
    async fn a_dead_agent_is_lost_once_and_what_it_left_is_settled(backend) {
        let journal = &backend.journal;
        let (dead, alive) = (agent(journal, "dead").await, agent(journal, "alive").await);
        let (session, service) = (channel("session:1"), channel("service:files"));
        let incarnation = Some(dead.holder().incarnation);
        let on_session = journal.lease(&session, "dead", incarnation, None).await.unwrap();
        let on_service = journal.lease(&service, "dead", incarnation, None).await.unwrap();
        on_session.note(&NoteCall::begun(["r1".into()])).await.unwrap();
        let holder = dead.holder().clone();
        let taken = journal.send(&command(&session)).await.unwrap();
        journal.take(&session, taken.key, &holder, false).await.unwrap();
        let mut new = command(&service);
        new.answer_to = Some("nobody".into());
        let again = journal.send(&new).await.unwrap();
        journal.take(&service, again.key, &holder, true).await.unwrap();
        new.command_id = Uuid::new_v4();
        let once = journal.send(&new).await.unwrap();
        journal.take(&service, once.key, &holder, false).await.unwrap();

        // Dead: nobody renews any more.
        drop((dead, on_session, on_service));
        let mut reapers = [Reaper::new(journal.clone()), Reaper::new(journal.clone())];
        let deadline = tokio::time::Instant::now() + LEASE + Duration::from_secs(5);
        while journal.alive(None, 1_000).await.unwrap().agents.len() > 1 || reapers_have_work(journal, &session).await {
            assert!(tokio::time::Instant::now() < deadline, "it is still not lost");
            let [one, other] = &mut reapers;
            let (x, y) = tokio::join!(one.poll(), other.poll());
            x.and(y).unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }

        for channel in [&session, &Channel::agent("dead").unwrap(), &Channel::global_events()] {
            let lost = told(journal, channel).await.into_iter().filter(|(name, _)| name == "agent_lost");
            assert_eq!(lost.count(), 1, "{channel}");
        }
        let lost = told(journal, &session).await.into_iter().find(|(name, _)| name == "agent_lost").unwrap();
        assert_eq!(lost.1["runs"][0], "r1");
        let outcome = journal.outcome(&session, taken.key).await.unwrap().unwrap();
        assert_eq!((outcome.status, outcome.detail.as_deref()), (Status::Rejected, Some(r#""lost""#)));
        let outcome = journal.outcome(&service, once.key).await.unwrap().unwrap();
        assert_eq!(outcome.status, Status::Rejected, "it may have been begun");
        assert_eq!(journal.outcome(&service, again.key).await.unwrap().unwrap().status, Status::Accepted);
        let offered = commands(journal, &service).await;
        assert_eq!(offered.iter().filter(|command| command.key == Some(again.key)).count(), 2);
        assert_eq!(journal.take(&service, again.key, alive.holder(), true).await, Ok(Take::Yours));

        assert_eq!(journal.take(&session, taken.key, &holder, false).await, Ok(Take::Gone));
        let back = journal.lease(&session, "dead", incarnation, None).await;
        assert!(matches!(back, Err(LeaseError::Fenced)), "it learns that it was lost");
        assert_eq!(journal.alive(None, 1_000).await.unwrap().agents.len(), 1, "the other lives on");
    }
}

async fn reapers_have_work(journal: &Journal, session: &Channel) -> bool {
    !journal.agents_on(session).await.unwrap().is_empty()
        || !told(journal, &Channel::global_events())
            .await
            .iter()
            .any(|(name, _)| name == "agent_lost")
}

on_both! {
    /// Redis, or the replica, was away: so may the renewals have been.
    async fn after_an_absence_everybody_gets_a_whole_lease(backend) {
        let mut reaper = Reaper::new(backend.journal.clone());
        let lease = agent(&backend.journal, "a").await;
        drop(lease);
        tokio::time::sleep(LEASE + Duration::from_millis(200)).await;

        reaper.poll().await.unwrap();
        tokio::time::sleep(LEASE / 2).await;
        reaper.poll().await.unwrap();

        let told = told(&backend.journal, &channel("agent:a")).await;
        assert!(told.is_empty(), "lost though nobody had looked: {told:?}");
    }
}

on_both! {
    async fn leases_are_renewed_as_long_as_they_are_held(backend) {
        let mut reaper = Reaper::new(backend.journal.clone());
        let leases = [agent(&backend.journal, "a").await, agent(&backend.journal, "b").await];
        let until = tokio::time::Instant::now() + LEASE * 2;
        while tokio::time::Instant::now() < until {
            reaper.poll().await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        assert_eq!(backend.journal.alive(None, 1_000).await.unwrap().agents.len(), 2);
        assert!(leases.iter().all(|lease| !lease.lost().is_cancelled()));
    }
}

on_both! {
    /// A replica that is killed reports nothing any more: its figures no longer count.
    async fn what_a_dead_replica_counted_counts_no_more(backend) {
        let (journal, one, two) = (&backend.journal, channel("session:1"), channel("session:2"));
        journal.report_counts("a", 5, &[(one.clone(), 3), (two.clone(), 2)]).await.unwrap();
        journal.report_counts("b", 7, &[(one.clone(), 4)]).await.unwrap();
        journal.report_counts("b", 6, &[(one.clone(), 1)]).await.unwrap();
        assert_eq!(journal.subscribers(&one).await, Ok(4));
        assert_eq!(journal.replicas().await.unwrap().iter().map(|r| r.connections).sum::<u64>(), 11);
        journal.report_counts("b", 6, &[(one.clone(), 0)]).await.unwrap();
        assert_eq!(journal.subscribers(&one).await, Ok(3));

        let deadline = tokio::time::Instant::now() + COUNTS_LIFETIME + Duration::from_millis(300);
        while tokio::time::Instant::now() < deadline {
            journal.report_counts("b", 6, &[]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }

        assert_eq!(journal.subscribers(&one).await, Ok(0));
        assert_eq!(journal.replicas().await.unwrap().len(), 1);
    }
}

/// A replica that is killed cannot take its counts back.
#[tokio::test]
async fn the_counts_of_a_dead_replica_do_not_stay_in_redis() {
    let server = crate::Server::start().await;
    let journal = Journal::open(&server.url()).unwrap();
    let mut redis = server.connection().await;
    let session = channel("session:1");
    let counts =
        format!("relay:{{{}}}:counts:{session}", protocol::partition_tag(session.partition()));
    let (dead, gone): (&str, u64) = ("dead", 1_000);
    let _: () = redis::cmd("HSET")
        .arg(&counts)
        .arg(dead)
        .arg(format!("3 {gone}"))
        .query_async(&mut redis)
        .await
        .unwrap();

    journal.report_counts("alive", 1, &[(session.clone(), 2)]).await.unwrap();

    let said: Vec<String> = redis::cmd("HKEYS").arg(&counts).query_async(&mut redis).await.unwrap();
    assert_eq!(said, ["alive"]);
    assert_eq!(journal.subscribers(&session).await, Ok(2));
    let lives: i64 = redis::cmd("PTTL").arg(&counts).query_async(&mut redis).await.unwrap();
    assert!((1..=120_000).contains(&lives), "{lives}");
}

on_both! {
    async fn children_are_found_by_their_parent(backend) {
        let session = channel("session:s");
        let parent = |run: Option<&str>| journal::Parent {
            agent_id: "p".into(),
            run_id: run.map(Into::into),
            session: run.map(|_| session.clone()),
        };
        let child = |agent: &str, incarnation| Holder { agent: agent.into(), incarnation };
        let (first, second) = (child("c1", 1), child("c1", 2));
        backend.journal.adopt(&parent(Some("r1")), &first).await.unwrap();
        backend.journal.adopt(&parent(None), &child("c2", 1)).await.unwrap();
        let own = channel("agent:p");
        assert_eq!(backend.journal.children(&own, Some("r1")).await.unwrap().concat(), "c1");
        assert_eq!(backend.journal.children(&own, None).await.unwrap().len(), 2);
        assert_eq!(backend.journal.children(&session, None).await.unwrap().concat(), "c1");
        assert!(backend.journal.children(&session, Some("r2")).await.unwrap().is_empty());

        backend.journal.adopt(&parent(Some("r1")), &second).await.unwrap();
        backend.journal.disown(&parent(Some("r1")), &first).await.unwrap();
        assert_eq!(backend.journal.children(&session, None).await.unwrap().concat(), "c1", "a fenced predecessor");

        backend.journal.disown(&parent(Some("r1")), &second).await.unwrap();
        backend.journal.adopt(&parent(Some("r1")), &first).await.unwrap();
        assert!(backend.journal.children(&own, Some("r1")).await.unwrap().is_empty());
        assert!(backend.journal.children(&session, None).await.unwrap().is_empty());
    }
}

on_both! {
    /// An agent that begins runs without end, or repeats itself, keeps a bounded note.
    async fn a_lease_keeps_a_bounded_number_of_open_runs(backend) {
        let lease = agent(&backend.journal, "a").await;
        let begun = |from: usize, to: usize| NoteCall::begun((from..to).map(|n| n.to_string().into()));
        for thousand in 0..10 {
            lease.note(&begun(thousand * 1_000, (thousand + 1) * 1_000)).await.unwrap();
        }
        assert_eq!(lease.note(&begun(10_000, 10_001)).await, Err(LeaseError::Full));
        assert_eq!(lease.note(&begun(0, 1_000)).await, Ok(()), "they are noted already");
        lease.note(&NoteCall::ended(["7".into()])).await.unwrap();
        assert_eq!(lease.note(&begun(10_000, 10_001)).await, Ok(()));
        let alive = backend.journal.alive(None, 10).await.unwrap().agents.remove(0);
        assert_eq!(alive.runs_total, 10_000);
    }
}
