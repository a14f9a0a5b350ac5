//! What commands, prompts and leases promise, on both homes.

use std::time::Duration;

use journal::{
    Answer, AppendError, AskError, Asked, Asks, Command, Fate, Journal, Keeper, LEASE, Lease,
    LeaseError, Name, NewCommand, NewPrompt, Resolved, SendError, Since, Status, TALLY_LASTS, Take,
    Update,
};
use protocol::Channel;
use uuid::Uuid;

use crate::{next, on_both};

fn channel(text: &str) -> Channel {
    text.parse().unwrap()
}

fn command(to: &Channel) -> NewCommand {
    NewCommand {
        channel: to.clone(),
        name: "do_it".into(),
        data: r#"{"a":1}"#.into(),
        command_id: Uuid::new_v4(),
        by: Some("ada".into()),
        expires_in: Duration::from_secs(60),
        may_wait: true,
        answer_to: None,
    }
}

async fn agent(journal: &Journal, id: &str) -> Lease {
    journal.lease(&Channel::agent(id).unwrap(), id, None, None).await.unwrap()
}

/// Names and data of a channel's events.
async fn told(journal: &Journal, channel: &Channel) -> Vec<(String, serde_json::Value)> {
    let page = journal.read(&Name::events(channel.clone()), Since::Start, 1000).await.unwrap();
    let told = page.entries.iter();
    told.map(|entry| (entry.name.to_string(), serde_json::from_str(&entry.data).unwrap())).collect()
}

async fn statuses(journal: &Journal, channel: &Channel) -> Vec<String> {
    let told = told(journal, channel).await.into_iter();
    told.filter(|(name, _)| name == "command_status")
        .map(|(_, data)| data["status"].as_str().unwrap().to_owned())
        .collect()
}

async fn commands(journal: &Journal, channel: &Channel) -> Vec<Command> {
    let page = journal.read(&Name::commands(channel.clone()), Since::Start, 1000).await.unwrap();
    page.entries.iter().map(|entry| Command::read(channel, entry).unwrap()).collect()
}

fn applied() -> Fate {
    Fate { status: Status::Applied, detail: Some(r#""ok""#.into()) }
}

on_both! {
    async fn a_command_is_taken_by_one_and_its_life_is_told(home) {
        let (a, b) = (agent(&home.journal, "a").await, agent(&home.journal, "b").await);
        let session = channel("session:1");
        let sent = home.journal.send(&command(&session)).await.unwrap();
        let read = commands(&home.journal, &session).await.remove(0);
        assert_eq!((read.key, &*read.data, read.by.as_deref()), (Some(sent.key), r#"{"a":1}"#, Some("ada")));

        let take = |lease: &Lease| {
            let (journal, holder, session) = (home.journal.clone(), lease.holder().clone(), session.clone());
            async move { journal.take(&session, sent.key, &holder, false).await.unwrap() }
        };
        let (x, y) = tokio::join!(take(&a), take(&b));
        let (winner, loser) = if x == Take::Yours { (&a, &b) } else { (&b, &a) };
        assert_eq!([x, y].iter().filter(|take| **take == Take::Yours).count(), 1);
        assert_eq!(take(winner).await, Take::Yours, "a retry of the same");

        let finish = |lease: &Lease, fate: Fate| {
            let (journal, holder, session) = (home.journal.clone(), lease.holder().clone(), session.clone());
            async move { journal.finish(&session, sent.key, &holder, &fate).await.unwrap() }
        };
        assert!(!finish(loser, applied()).await, "not the loser's to say");
        assert!(finish(winner, applied()).await);
        assert!(finish(winner, applied()).await, "a retry of the same");
        assert!(!finish(winner, Fate { status: Status::Rejected, detail: None }).await);
        assert_eq!(take(winner).await, Take::Gone);
        assert_eq!(statuses(&home.journal, &session).await, ["delivered", "applied"]);
    }
}

on_both! {
    async fn a_repeated_command_learns_the_fate_and_is_not_done_again(home) {
        let lease = agent(&home.journal, "a").await;
        let to = lease.channel().clone();
        let new = command(&to);
        let five = futures_util::future::join_all((0..5).map(|_| home.journal.send(&new))).await;
        assert!(five.iter().all(|sent| sent.as_ref().unwrap().fate.status == Status::Accepted));
        let key = five[0].as_ref().unwrap().key;
        assert_eq!(commands(&home.journal, &to).await.len(), 1);

        home.journal.take(&to, key, lease.holder(), false).await.unwrap();
        home.journal.finish(&to, key, lease.holder(), &applied()).await.unwrap();

        let again = home.journal.send(&new).await.unwrap();
        assert_eq!((again.fate, again.listeners), (applied(), 1));
        let mut others = new.clone();
        others.by = Some("ben".into());
        let other = home.journal.send(&others).await.unwrap();
        assert_eq!(other.fate.status, Status::Accepted, "another user's id is another command");
    }
}

on_both! {
    async fn what_must_not_wait_is_refused_where_no_agent_lives(home) {
        let to = channel("agent:nobody");
        let mut new = command(&to);
        new.may_wait = false;
        assert_eq!(home.journal.send(&new).await, Err(SendError::NoAgent));
        assert!(commands(&home.journal, &to).await.is_empty(), "never executed later");

        let lease = agent(&home.journal, "nobody").await;
        assert_eq!(home.journal.send(&new).await.unwrap().listeners, 1);
        lease.release().await.unwrap();
        assert_eq!(home.journal.send(&command(&to)).await.unwrap().listeners, 0);
    }
}

on_both! {
    async fn what_nobody_takes_fills_the_channel_and_is_never_trimmed(home) {
        let to = channel("agent:slow");
        for _ in 0..256 {
            home.journal.send(&command(&to)).await.unwrap();
        }
        assert_eq!(home.journal.send(&command(&to)).await, Err(SendError::Busy { limit: 256 }));

        let lease = agent(&home.journal, "slow").await;
        let waiting = commands(&home.journal, &to).await;
        assert_eq!(waiting.len(), 256);
        home.journal.take(&to, waiting[0].key.unwrap(), lease.holder(), false).await.unwrap();
        assert!(home.journal.send(&command(&to)).await.is_ok(), "one was taken");
    }
}

on_both! {
    async fn what_nobody_takes_in_time_expires(home) {
        let lease = agent(&home.journal, "a").await;
        let to = lease.channel().clone();
        let mut new = command(&to);
        new.expires_in = Duration::from_millis(50);
        let (early, late) = (home.journal.send(&new).await.unwrap(), {
            new.command_id = Uuid::new_v4();
            home.journal.send(&new).await.unwrap()
        });
        tokio::time::sleep(Duration::from_millis(80)).await;

        assert_eq!(home.journal.take(&to, early.key, lease.holder(), false).await, Ok(Take::Gone));
        Keeper::new(home.journal.clone()).poll().await.unwrap();

        assert_eq!(statuses(&home.journal, &to).await, ["expired", "expired"]);
        let fate = home.journal.fate(&to, late.key).await.unwrap().unwrap();
        assert_eq!(fate.status, Status::Expired);
    }
}

on_both! {
    async fn whoever_asks_is_rung_when_the_answer_is_there(home) {
        let (follower, mut updates) = home.journal.follow();
        assert!(matches!(next(&mut updates, "the link").await, Update::Link { up: true }));
        let service = channel("service:files");
        let worker = home.journal.lease(&service, "w", Some(7), None).await.unwrap();
        let mut new = command(&service);
        new.answer_to = Some(follower.address().into());
        let sent = home.journal.send(&new).await.unwrap();

        home.journal.take(&service, sent.key, worker.holder(), false).await.unwrap();
        home.journal.finish(&service, sent.key, worker.holder(), &applied()).await.unwrap();

        loop {
            if let Update::Rung { text } = next(&mut updates, "the ring").await {
                assert_eq!(*text, *sent.key.to_string());
                break;
            }
        }
        assert_eq!(home.journal.fate(&service, sent.key).await, Ok(Some(applied())));
        assert!(told(&home.journal, &service).await.is_empty(), "nobody else's business");
    }
}

on_both! {
    async fn a_newer_incarnation_fences_the_older_and_answers_for_it(home) {
        let old = agent(&home.journal, "a").await;
        let own = old.channel().clone();
        old.note_runs(vec!["r1".into()]).await.unwrap();
        let sent = home.journal.send(&command(&own)).await.unwrap();
        let waiting = home.journal.send(&command(&own)).await.unwrap();
        home.journal.take(&own, sent.key, old.holder(), false).await.unwrap();

        let new = agent(&home.journal, "a").await;

        assert!(new.holder().incarnation > old.holder().incarnation);
        assert_eq!(home.journal.take(&own, waiting.key, old.holder(), false).await, Ok(Take::Fenced));
        assert_eq!(home.journal.finish(&own, sent.key, old.holder(), &applied()).await, Ok(false));
        assert_eq!(old.note_runs(Vec::new()).await, Err(LeaseError::Fenced));
        let older = home.journal.lease(&own, "a", Some(old.holder().incarnation), None).await;
        assert!(matches!(older, Err(LeaseError::Fenced)));
        assert_eq!(home.journal.take(&own, waiting.key, new.holder(), false).await, Ok(Take::Yours));
        let fate = home.journal.fate(&own, sent.key).await.unwrap().unwrap();
        assert_eq!((fate.status, fate.detail.as_deref()), (Status::Rejected, Some(r#""lost""#)));
        for channel in [own, Channel::global_events()] {
            let lost: Vec<_> = told(&home.journal, &channel).await.into_iter()
                .filter(|(name, _)| name == "agent_lost").collect();
            assert_eq!(lost.len(), 1, "{channel}");
            assert_eq!((&lost[0].1["runs"][0], &lost[0].1["reason"]), (&"r1".into(), &"replaced".into()));
        }
    }
}

on_both! {
    async fn a_fenced_incarnation_publishes_no_more(home) {
        let old = agent(&home.journal, "a").await;
        let own = Name::events(old.channel().clone());
        let older = home.journal.as_producer(old.holder());
        let say = |journal: &Journal, text: &str| {
            let (journal, own, entry) = (journal.clone(), own.clone(), crate::entry(text));
            async move { journal.append(&own, vec![entry]).await.map(drop) }
        };
        say(&older, "one").await.unwrap();
        say(&older, "two").await.unwrap();

        let new = agent(&home.journal, "a").await;

        let newer = home.journal.as_producer(new.holder());
        say(&newer, "three").await.unwrap();
        assert_eq!(say(&older, "late").await, Err(AppendError::Fenced));
        say(&newer, "four").await.unwrap();
        assert_eq!(say(&older, "later").await, Err(AppendError::Fenced));
        assert_eq!(told(&home.journal, new.channel()).await.len(), 4);
    }
}

on_both! {
    async fn an_agent_that_leaves_of_its_own_will_is_not_lost(home) {
        let lease = agent(&home.journal, "a").await;
        let own = lease.channel().clone();
        assert_eq!(&*home.journal.alive().await.unwrap()[0].agent_id, "a");
        lease.release().await.unwrap();

        assert!(home.journal.alive().await.unwrap().is_empty());
        assert!(home.journal.agents_on(&own).await.unwrap().is_empty());
        assert!(told(&home.journal, &own).await.is_empty());
        let again = home.journal.lease(&own, "a", None, None).await.unwrap();
        assert_eq!(home.journal.agents_on(&own).await.unwrap().concat(), "a");
        drop(again);
    }
}

on_both! {
    /// A worker that dies: leases end by themselves, once, whoever looks; nobody else's do.
    async fn a_dead_agent_is_lost_once_and_what_it_left_is_settled(home) {
        let journal = &home.journal;
        let (dead, alive) = (agent(journal, "dead").await, agent(journal, "alive").await);
        let (session, service) = (channel("session:1"), channel("service:files"));
        let incarnation = Some(dead.holder().incarnation);
        let on_session = journal.lease(&session, "dead", incarnation, None).await.unwrap();
        let on_service = journal.lease(&service, "dead", incarnation, None).await.unwrap();
        on_session.note_runs(vec!["r1".into()]).await.unwrap();
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
        let mut keepers = [Keeper::new(journal.clone()), Keeper::new(journal.clone())];
        let deadline = tokio::time::Instant::now() + LEASE + Duration::from_secs(5);
        while journal.alive().await.unwrap().len() > 1 || keepers_have_work(journal, &session).await {
            assert!(tokio::time::Instant::now() < deadline, "it is still not lost");
            let [one, other] = &mut keepers;
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
        let fate = journal.fate(&session, taken.key).await.unwrap().unwrap();
        assert_eq!((fate.status, fate.detail.as_deref()), (Status::Rejected, Some(r#""lost""#)));
        let fate = journal.fate(&service, once.key).await.unwrap().unwrap();
        assert_eq!(fate.status, Status::Rejected, "it may have been begun");
        assert_eq!(journal.fate(&service, again.key).await.unwrap().unwrap().status, Status::Accepted);
        let offered = commands(journal, &service).await;
        assert_eq!(offered.iter().filter(|command| command.key == Some(again.key)).count(), 2);
        assert_eq!(journal.take(&service, again.key, alive.holder(), true).await, Ok(Take::Yours));

        assert_eq!(journal.take(&session, taken.key, &holder, false).await, Ok(Take::Gone));
        let back = journal.lease(&session, "dead", incarnation, None).await;
        assert!(matches!(back, Err(LeaseError::Fenced)), "it learns that it was lost");
        assert_eq!(journal.alive().await.unwrap().len(), 1, "the other lives on");
    }
}

async fn keepers_have_work(journal: &Journal, session: &Channel) -> bool {
    !journal.agents_on(session).await.unwrap().is_empty()
        || !told(journal, &Channel::global_events())
            .await
            .iter()
            .any(|(name, _)| name == "agent_lost")
}

on_both! {
    /// Redis, or the replica, was away: so may the renewals have been.
    async fn after_an_absence_everybody_gets_a_whole_lease(home) {
        let mut keeper = Keeper::new(home.journal.clone());
        let lease = agent(&home.journal, "a").await;
        drop(lease);
        tokio::time::sleep(LEASE + Duration::from_millis(200)).await;

        keeper.poll().await.unwrap();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        keeper.poll().await.unwrap();

        let told = told(&home.journal, &channel("agent:a")).await;
        assert!(told.is_empty(), "lost though nobody had looked: {told:?}");
    }
}

on_both! {
    async fn leases_are_renewed_as_long_as_they_are_held(home) {
        let mut keeper = Keeper::new(home.journal.clone());
        let leases = [agent(&home.journal, "a").await, agent(&home.journal, "b").await];
        let until = tokio::time::Instant::now() + LEASE + Duration::from_secs(4);
        while tokio::time::Instant::now() < until {
            keeper.poll().await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        assert_eq!(home.journal.alive().await.unwrap().len(), 2);
        assert!(leases.iter().all(|lease| !lease.lost().is_cancelled()));
    }
}

fn prompt(on: &Channel, id: &str) -> NewPrompt {
    NewPrompt {
        channel: on.clone(),
        request_id: id.into(),
        asks: Asks::Permission,
        data: format!(r#"{{"request":{{"requestId":"{id}","toolName":"rm"}}}}"#).into(),
        expires_in: Duration::from_secs(60),
        default: false,
        digest: Some("d1".into()),
    }
}

fn answer(by: &str, allowed: bool) -> Answer {
    Answer {
        allowed,
        always: true,
        reason: None,
        by: Some(by.into()),
        at: 1,
        timed_out: false,
        command_id: Uuid::new_v4().to_string().into(),
    }
}

on_both! {
    async fn a_prompt_is_pending_until_the_first_of_many_answers(home) {
        let journal = &home.journal;
        let lease = agent(journal, "a").await;
        let session = channel("session:1");
        assert_eq!(journal.ask(lease.holder(), &prompt(&session, "p1")).await, Ok(Asked::Pending));
        assert_eq!(journal.ask(lease.holder(), &prompt(&session, "p1")).await, Ok(Asked::Pending));
        let (head, pending) = journal.pending(&session).await.unwrap();
        assert_eq!((head.map(|head| head.n), pending.len()), (Some(1), 1));
        let question: serde_json::Value = serde_json::from_str(&pending[0].question).unwrap();
        assert_eq!(question["data"]["request"]["toolName"], "rm");
        assert_eq!(journal.find_prompt("p1").await, Ok(Some(session.clone())));
        assert_eq!(journal.find_prompt("p2").await, Ok(None));

        let answers: Vec<Answer> = (0..8).map(|i| answer(&format!("user{i}"), i % 2 == 0)).collect();
        let resolved = futures_util::future::join_all(answers.iter().map(|answer| {
            journal.resolve(&session, "p1", Asks::Permission, answer, Some("d1"))
        })).await;

        let winners: Vec<usize> =
            (0..8).filter(|i| resolved[*i] == Ok(Resolved::Yours)).collect();
        assert_eq!(winners.len(), 1);
        let winner = &answers[winners[0]];
        let losers = resolved.iter().filter(|r| **r == Ok(Resolved::Already(winner.clone())));
        assert_eq!(losers.count(), 7, "each is told who decided what");
        assert_eq!(
            journal.resolve(&session, "p1", Asks::Permission, winner, None).await,
            Ok(Resolved::Yours),
            "the same answer again"
        );
        assert!(journal.pending(&session).await.unwrap().1.is_empty());
        let names: Vec<String> = told(journal, &session).await.into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["permission_request", "permission_resolved"]);
        let heard = commands(journal, &session).await;
        assert_eq!((heard.len(), &*heard[0].name, heard[0].key), (1, "permission_response", None));

        let successor = agent(journal, "a").await;
        assert_eq!(
            journal.ask(successor.holder(), &prompt(&session, "p1")).await,
            Ok(Asked::Answered(winner.clone()))
        );
        assert_eq!(journal.ask(lease.holder(), &prompt(lease.channel(), "p9")).await, Err(AskError::Fenced));
        let elsewhere = journal.ask(successor.holder(), &prompt(&channel("session:2"), "p1")).await;
        assert_eq!(elsewhere, Err(AskError::Elsewhere(session)));
    }
}

on_both! {
    async fn answers_that_do_not_fit_change_nothing(home) {
        let lease = agent(&home.journal, "a").await;
        let session = channel("session:1");
        home.journal.ask(lease.holder(), &prompt(&session, "p1")).await.unwrap();
        let resolve = |id, asks, digest| {
            let (journal, session) = (home.journal.clone(), session.clone());
            async move { journal.resolve(&session, id, asks, &answer("x", true), digest).await.unwrap() }
        };

        assert_eq!(resolve("p1", Asks::Permission, Some("d2")).await, Resolved::OtherDigest);
        assert_eq!(resolve("p1", Asks::Budget, None).await, Resolved::OtherKind);
        assert_eq!(resolve("p7", Asks::Permission, None).await, Resolved::Unknown);
        assert_eq!(home.journal.pending(&session).await.unwrap().1.len(), 1);
        assert_eq!(resolve("p1", Asks::Permission, None).await, Resolved::Yours);
    }
}

on_both! {
    async fn a_prompt_that_nobody_answers_gets_its_default(home) {
        let lease = agent(&home.journal, "a").await;
        let own = lease.channel().clone();
        let mut budget = prompt(&own, "b1");
        (budget.asks, budget.expires_in) = (Asks::Budget, Duration::from_millis(50));
        home.journal.ask(lease.holder(), &budget).await.unwrap();
        drop(lease);
        tokio::time::sleep(Duration::from_millis(80)).await;

        let late = home.journal.resolve(&own, "b1", Asks::Budget, &answer("late", true), None).await.unwrap();

        let Resolved::Already(answer) = late else { panic!("{late:?}") };
        assert!(answer.timed_out && !answer.allowed && answer.by.is_none());
        Keeper::new(home.journal.clone()).poll().await.unwrap();
        for channel in [own, Channel::global_events()] {
            let names: Vec<String> = told(&home.journal, &channel).await.into_iter().map(|(n, _)| n).collect();
            assert_eq!(names, ["budget_exhausted", "budget_resolved"], "{channel}");
        }
    }
}

on_both! {
    /// A replica that is killed says nothing any more: its figures count no longer.
    async fn what_a_dead_replica_counted_counts_no_more(home) {
        let (journal, one, two) = (&home.journal, channel("session:1"), channel("session:2"));
        journal.tally("a", 5, &[(one.clone(), 3), (two.clone(), 2)]).await.unwrap();
        journal.tally("b", 7, &[(one.clone(), 4)]).await.unwrap();
        journal.tally("b", 6, &[(one.clone(), 1)]).await.unwrap();
        assert_eq!(journal.subscribers(&one).await, Ok(4));
        assert_eq!(journal.replicas().await.unwrap().iter().map(|r| r.connections).sum::<u64>(), 11);
        journal.tally("b", 6, &[(one.clone(), 0)]).await.unwrap();
        assert_eq!(journal.subscribers(&one).await, Ok(3));

        let deadline = tokio::time::Instant::now() + TALLY_LASTS + Duration::from_millis(300);
        while tokio::time::Instant::now() < deadline {
            journal.tally("b", 6, &[]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }

        assert_eq!(journal.subscribers(&one).await, Ok(0));
        assert_eq!(journal.replicas().await.unwrap().len(), 1);
    }
}

on_both! {
    async fn children_are_found_by_their_parent(home) {
        let session = channel("session:s");
        let parent = |run: Option<&str>| journal::Parent {
            agent_id: "p".into(),
            run_id: run.map(Into::into),
            session: run.map(|_| session.clone()),
        };
        home.journal.adopt(&parent(Some("r1")), "c1").await.unwrap();
        home.journal.adopt(&parent(None), "c2").await.unwrap();
        let own = channel("agent:p");
        assert_eq!(home.journal.children(&own, Some("r1")).await.unwrap().concat(), "c1");
        assert_eq!(home.journal.children(&own, None).await.unwrap().len(), 2);
        assert_eq!(home.journal.children(&session, None).await.unwrap().concat(), "c1");
        assert!(home.journal.children(&session, Some("r2")).await.unwrap().is_empty());
        home.journal.disown(&parent(Some("r1")), "c1").await.unwrap();
        assert!(home.journal.children(&own, Some("r1")).await.unwrap().is_empty());
        assert!(home.journal.children(&session, None).await.unwrap().is_empty());
    }
}
