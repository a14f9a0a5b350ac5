//! What commands promise, on both backends.

use std::time::Duration;

use journal::{CommandOutcome, Lease, Reaper, SendError, Status, Take, Update};
use uuid::Uuid;

use crate::states::{agent, applied, channel, command, commands, statuses, told};
use crate::{next, on_both};

on_both! {
    async fn a_command_is_taken_by_one_and_its_life_is_told(backend) {
        let (a, b) = (agent(&backend.journal, "a").await, agent(&backend.journal, "b").await);
        let session = channel("session:1");
        let sent = backend.journal.send(&command(&session)).await.unwrap();
        let read = commands(&backend.journal, &session).await.remove(0);
        assert_eq!((read.key, &*read.data, read.by.as_deref()), (Some(sent.key), r#"{"a":1}"#, Some("ada")));

        let take = |lease: &Lease| {
            let (journal, holder, session) = (backend.journal.clone(), lease.holder().clone(), session.clone());
            async move { journal.take(&session, sent.key, &holder, false).await.unwrap() }
        };
        let (x, y) = tokio::join!(take(&a), take(&b));
        let (winner, loser) = if x == Take::Yours { (&a, &b) } else { (&b, &a) };
        assert_eq!([x, y].iter().filter(|take| **take == Take::Yours).count(), 1);
        assert_eq!(take(winner).await, Take::Yours, "a retry of the same");

        let finish = |lease: &Lease, outcome: CommandOutcome| {
            let (journal, holder, session) = (backend.journal.clone(), lease.holder().clone(), session.clone());
            async move { journal.finish(&session, sent.key, &holder, &outcome).await.unwrap() }
        };
        assert!(!finish(loser, applied()).await, "not the loser's to say");
        assert!(finish(winner, applied()).await);
        assert!(finish(winner, applied()).await, "a retry of the same");
        assert!(!finish(winner, CommandOutcome { status: Status::Rejected, detail: None }).await);
        assert_eq!(take(winner).await, Take::Gone);
        assert_eq!(statuses(&backend.journal, &session).await, ["delivered", "applied"]);
    }
}

on_both! {
    async fn a_repeated_command_learns_the_fate_and_is_not_done_again(backend) {
        let lease = agent(&backend.journal, "a").await;
        let to = lease.channel().clone();
        let new = command(&to);
        let five = futures_util::future::join_all((0..5).map(|_| backend.journal.send(&new))).await;
        assert!(five.iter().all(|sent| sent.as_ref().unwrap().outcome.status == Status::Accepted));
        let key = five[0].as_ref().unwrap().key;
        assert_eq!(commands(&backend.journal, &to).await.len(), 1);

        backend.journal.take(&to, key, lease.holder(), false).await.unwrap();
        backend.journal.finish(&to, key, lease.holder(), &applied()).await.unwrap();

        let again = backend.journal.send(&new).await.unwrap();
        assert_eq!((again.outcome, again.listeners), (applied(), 1));
        let mut others = new.clone();
        others.by = Some("ben".into());
        let other = backend.journal.send(&others).await.unwrap();
        assert_eq!(other.outcome.status, Status::Accepted, "another user's id is another command");
    }
}

on_both! {
    async fn what_must_not_wait_is_refused_where_no_agent_lives(backend) {
        let to = channel("agent:nobody");
        let mut new = command(&to);
        new.may_wait = false;
        assert_eq!(backend.journal.send(&new).await, Err(SendError::NoAgent));
        assert!(commands(&backend.journal, &to).await.is_empty(), "never executed later");

        let lease = agent(&backend.journal, "nobody").await;
        assert_eq!(backend.journal.send(&new).await.unwrap().listeners, 1);
        lease.release().await.unwrap();
        assert_eq!(backend.journal.send(&command(&to)).await.unwrap().listeners, 0);
    }
}

on_both! {
    async fn what_nobody_takes_fills_the_channel_and_is_never_trimmed(backend) {
        let to = channel("agent:slow");
        for _ in 0..256 {
            backend.journal.send(&command(&to)).await.unwrap();
        }
        assert_eq!(backend.journal.send(&command(&to)).await, Err(SendError::Busy { limit: 256 }));

        let lease = agent(&backend.journal, "slow").await;
        let waiting = commands(&backend.journal, &to).await;
        assert_eq!(waiting.len(), 256);
        backend.journal.take(&to, waiting[0].key.unwrap(), lease.holder(), false).await.unwrap();
        assert!(backend.journal.send(&command(&to)).await.is_ok(), "one was taken");
    }
}

on_both! {
    async fn what_nobody_takes_in_time_expires(backend) {
        let lease = agent(&backend.journal, "a").await;
        let to = lease.channel().clone();
        let mut new = command(&to);
        new.expires_in = Duration::from_millis(50);
        let (early, late) = (backend.journal.send(&new).await.unwrap(), {
            new.command_id = Uuid::new_v4();
            backend.journal.send(&new).await.unwrap()
        });
        tokio::time::sleep(Duration::from_millis(80)).await;

        assert_eq!(backend.journal.take(&to, early.key, lease.holder(), false).await, Ok(Take::Gone));
        Reaper::new(backend.journal.clone()).poll().await.unwrap();

        assert_eq!(statuses(&backend.journal, &to).await, ["expired", "expired"]);
        let outcome = backend.journal.outcome(&to, late.key).await.unwrap().unwrap();
        assert_eq!(outcome.status, Status::Expired);
    }
}

on_both! {
    async fn whoever_asks_is_rung_when_the_answer_is_there(backend) {
        let (follower, mut updates) = backend.journal.follow();
        assert!(matches!(next(&mut updates, "the link").await, Update::Link { up: true }));
        let service = channel("service:files");
        let worker = backend.journal.lease(&service, "w", Some(7), None).await.unwrap();
        let mut new = command(&service);
        new.answer_to = Some(follower.address().into());
        let sent = backend.journal.send(&new).await.unwrap();

        backend.journal.take(&service, sent.key, worker.holder(), false).await.unwrap();
        backend.journal.finish(&service, sent.key, worker.holder(), &applied()).await.unwrap();

        loop {
            if let Update::Notified { text } = next(&mut updates, "the ring").await {
                assert_eq!(*text, *sent.key.to_string());
                break;
            }
        }
        assert_eq!(backend.journal.outcome(&service, sent.key).await, Ok(Some(applied())));
        assert!(told(&backend.journal, &service).await.is_empty(), "nobody else's business");
    }
}
