//! What commands promise, on both backends.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use journal::{
    CommandOutcome, Journal, Keep, Lease, Name, NewCommand, NewEntry, Reaper, Retention, SendError,
    Since, Status, Take, Update, WaitingClass,
};
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

fn of(sender: &str, class: WaitingClass) -> NewCommand {
    NewCommand { sender: sender.into(), class, ..command(&channel("agent:slow")) }
}

/// How many of these are sent until no place is left; not more than `most`.
async fn fill(journal: &Journal, new: &NewCommand, most: usize) -> usize {
    for sent in 0..most {
        match journal.send(&NewCommand { command_id: Uuid::new_v4(), ..new.clone() }).await {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error, SendError::Busy(new.class));
                return sent;
            }
        }
    }
    most
}

on_both! {
    async fn each_sender_has_places_that_no_other_can_take(backend) {
        let journal = &backend.journal;
        let cancel = |sender| of(sender, WaitingClass::Cancel);
        assert_eq!(fill(journal, &of("ada", WaitingClass::Ordinary), 300).await, 256);
        assert_eq!(fill(journal, &cancel("ada"), 20).await, 16, "full as it is");
        assert_eq!(fill(journal, &of("ada", WaitingClass::CancelRun), 20).await, 16);
        for sender in ["ben", "cem", "dan"] {
            assert_eq!(fill(journal, &of(sender, WaitingClass::Ordinary), 256).await, 256, "{sender}");
        }
        assert_eq!(fill(journal, &of("eve", WaitingClass::Ordinary), 1).await, 0, "1,024 in all");
        assert_eq!(fill(journal, &cancel("eve"), 1).await, 1, "a Cancel finds room");

        let lease = agent(journal, "slow").await;
        let to = lease.channel().clone();
        let waiting = journal.waiting(&to).await.unwrap().entries;
        assert_eq!(waiting.len(), 1_024 + 33);
        let first = journal::Command::read(&to, &waiting[0]).unwrap();
        journal.take(&to, first.key.unwrap(), lease.holder(), false).await.unwrap();
        assert_eq!(journal.waiting(&to).await.unwrap().entries[..], waiting[1..]);
        assert_eq!(fill(journal, &of("ada", WaitingClass::Ordinary), 2).await, 1, "one was taken");
    }
}

on_both! {
    async fn what_waits_is_bounded_in_bytes_and_one_sender_does_not_fill_it(backend) {
        let _lease = agent(&backend.journal, "slow").await;
        let large = format!(r#"{{"x":"{}"}}"#, "x".repeat(60 * 1024));
        let new = |sender| NewCommand { data: large.as_str().into(), ..of(sender, WaitingClass::Ordinary) };
        let mut waits = 0;
        for sender in ["ada", "ben", "cem", "dan", "eve"] {
            let sent = fill(&backend.journal, &new(sender), 100).await;
            // A quarter of the 8 MiB, and what four quarters leave.
            assert!(if sender == "eve" { sent <= 5 } else { (33..=34).contains(&sent) }, "{sender}: {sent}");
            waits += sent;
        }
        let waiting = backend.journal.waiting(&channel("agent:slow")).await.unwrap();
        assert_eq!(waiting.entries.len(), waits, "read in several pages");
        assert!(waiting.entries.is_sorted_by_key(|entry| entry.offset.n));
    }
}

on_both! {
    /// An agent restarts after many Cancels were applied: the oldest command waits for it all the same.
    async fn what_waits_is_there_whatever_is_trimmed(backend) keeping(few_commands()) {
        let (journal, lease) = (&backend.journal, agent(&backend.journal, "slow").await);
        let to = lease.channel().clone();
        assert_eq!(fill(journal, &of("ada", WaitingClass::Ordinary), 200).await, 200);
        for _ in 0..313 {
            let sent = journal.send(&NewCommand { command_id: Uuid::new_v4(), ..of("ada", WaitingClass::Cancel) }).await.unwrap();
            journal.take(&to, sent.key, lease.holder(), false).await.unwrap();
            journal.finish(&to, sent.key, lease.holder(), &applied()).await.unwrap();
        }
        let waiting = journal.waiting(&to).await.unwrap();
        assert_eq!(waiting.entries.len(), 200);
        assert_eq!((waiting.entries[0].offset.n, waiting.head.unwrap().n), (1, 513));
        assert!(commands(journal, &to).await.len() < 100, "the journal was trimmed");
    }
}

on_both! {
    /// One sender leaves large commands on ever more channels that nobody serves.
    async fn commands_that_nobody_takes_come_at_a_pace(backend) {
        let journal = &backend.journal;
        let lease = agent(journal, "served").await;
        let large = format!(r#"{{"x":"{}"}}"#, "x".repeat(60 * 1024));
        let new = |to: &str, sender: &str, class| NewCommand {
            data: large.as_str().into(), class, sender: sender.into(), ..command(&channel(to))
        };
        let mut sent = 0;
        let refused = loop {
            let new = new(&format!("session:invented-{sent}"), "ada", WaitingClass::Ordinary);
            match journal.send(&new).await {
                Ok(_) => sent += 1,
                Err(error) => break error,
            }
            assert!(sent < 200, "4 MiB are 59 of them, and each second brings about one more");
        };
        assert!(matches!(refused, SendError::TooFast(too) if !too.wait.is_zero()), "{refused}");
        assert!(sent >= 59, "{sent}");

        journal.send(&new("session:invented", "ada", WaitingClass::CancelRun)).await.unwrap();
        journal.send(&new("session:invented", "ben", WaitingClass::Ordinary)).await.unwrap();
        journal.send(&new("agent:served", "ada", WaitingClass::Ordinary)).await.unwrap();
        lease.release().await.unwrap();
    }
}

on_both! {
    /// A misspelled name: nothing waits there for a day.
    async fn where_no_agent_has_been_a_command_waits_for_ten_minutes_at_most(backend) {
        let journal = &backend.journal;
        let day = Duration::from_secs(24 * 3_600);
        let send = async |to: &str| {
            let to = channel(to);
            let sent = journal.send(&NewCommand { expires_in: day, ..command(&to) }).await.unwrap();
            let waits = commands(journal, &to).await.pop().unwrap();
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            let left = Duration::from_millis(waits.expires_at.unwrap()).saturating_sub(now);
            (sent.is_known, left)
        };
        let lease = agent(journal, "worker").await;
        let (is_known, left) = send("agent:worker").await;
        assert!(is_known && left > day / 2, "{left:?}");
        lease.release().await.unwrap();
        let (is_known, left) = send("agent:worker").await;
        assert!(is_known && left > day / 2, "it comes back: {left:?}");
        let (is_known, left) = send("agent:wroker").await;
        assert!(!is_known && left <= Duration::from_secs(601), "{left:?}");
    }
}

fn few_commands() -> Retention {
    let commands = Keep { entries: 50, ..Retention::default().commands };
    Retention { commands, ..Retention::default() }
}

on_both! {
    /// An agent that begins to serve a channel is given what waits, in its order, and then what is sent; not the
    /// answers to questions of long ago.
    async fn a_follower_begins_with_what_waits_and_goes_on_from_the_head(backend) {
        let (journal, lease) = (&backend.journal, agent(&backend.journal, "slow").await);
        let to = lease.channel().clone();
        let send = async |name: &str| {
            let new = NewCommand { name: name.into(), ..of("ada", WaitingClass::Ordinary) };
            journal.send(&new).await.unwrap().key
        };
        let done = send("done").await;
        journal.take(&to, done, lease.holder(), false).await.unwrap();
        send("first").await;
        journal.append(&Name::commands(to.clone()), vec![NewEntry::new("permission_response", "{}")]).await.unwrap();
        send("second").await;

        let (follower, mut updates) = journal.follow();
        follower.follow(&Name::commands(to.clone()), Some(Since::Start));
        let mut heard = Vec::new();
        while heard.len() < 3 {
            match next(&mut updates, "what waits").await {
                Update::Entries { entries, .. } => heard.extend(entries.iter().map(|e| e.name.to_string())),
                Update::Reset { reason, .. } => panic!("{reason:?}"),
                _ => {}
            }
            if heard.len() == 2 {
                send("third").await;
            }
        }
        assert_eq!(heard, ["first", "second", "third"]);
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
    async fn a_command_that_was_read_is_taken_once_and_in_time(backend) {
        let journal = &backend.journal;
        let (a, b) = (agent(journal, "a").await, agent(journal, "b").await);
        let session = channel("session:1");
        let (mut short, mut request) = (command(&session), command(&session));
        short.expires_in = Duration::from_millis(50);
        request.answer_to = Some("here".into());
        for new in [&command(&session), &short, &request] {
            journal.send(new).await.unwrap();
        }
        let read = commands(journal, &session).await;
        tokio::time::sleep(Duration::from_millis(80)).await;

        for (command, lease, take) in [
            (&read[0], &a, Take::Yours),
            (&read[0], &b, Take::Gone),
            (&read[0], &a, Take::Yours),
            (&read[1], &a, Take::Gone),
            (&read[2], &b, Take::Yours),
            (&read[2], &a, Take::Gone),
        ] {
            let key = command.key.unwrap();
            let taken = journal.take_read(command, key, lease.holder(), false).await;
            assert_eq!(taken, Ok(take), "{} by {}", command.offset, lease.holder().agent);
        }
        assert_eq!(statuses(journal, &session).await, ["delivered", "expired"]);
    }
}

on_both! {
    async fn the_asker_is_notified_when_the_answer_is_there(backend) {
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
            if let Update::Notified { text } = next(&mut updates, "the notification").await {
                assert_eq!(*text, *sent.key.to_string());
                break;
            }
        }
        assert_eq!(backend.journal.outcome(&service, sent.key).await, Ok(Some(applied())));
        assert!(told(&backend.journal, &service).await.is_empty(), "nobody else's business");
    }
}

/// How often Redis has run `command`.
async fn calls(redis: &mut redis::aio::MultiplexedConnection, command: &str) -> u64 {
    let stats: String = redis::cmd("INFO").arg("commandstats").query_async(redis).await.unwrap();
    let line = format!("cmdstat_{command}:calls=");
    let count = stats.lines().find_map(|stat| stat.strip_prefix(&line)?.split(',').next());
    count.map_or(0, |count| count.parse().unwrap())
}

/// Sending costs the same however many workers serve.
#[tokio::test]
async fn a_command_does_not_look_at_each_of_many_workers() {
    let server = crate::Server::start().await;
    let journal = Journal::open(&server.url()).unwrap();
    let service = channel("service:files");
    let lease = |n: u64| {
        let (journal, service) = (journal.clone(), service.clone());
        async move { journal.lease(&service, &format!("w{n}"), Some(7), None).await.unwrap() }
    };
    let mut workers = futures_util::future::join_all((0..64).map(lease)).await;
    assert_eq!(journal.send(&command(&service)).await.unwrap().listeners, 64, "exact");
    workers.push(lease(64).await);
    let mut redis = server.connection().await;
    let before = calls(&mut redis, "zscore").await;

    let sent = journal.send(&command(&service)).await.unwrap();

    assert_eq!(sent.listeners, 65);
    assert_eq!(calls(&mut redis, "zscore").await, before, "no deadline was looked up");
    assert_eq!(journal.agents_on(&service).await.unwrap().len(), 65);
    workers.extend(futures_util::future::join_all((65..130).map(lease)).await);
    assert_eq!(journal.agents_on(&service).await.unwrap().len(), 100, "no more are named");
    assert_eq!(journal.listeners(&service).await.unwrap(), 130);
    drop(workers);
}

/// A setting that nobody can read, and a key of another type, as a foreign writer may leave them.
#[tokio::test]
async fn a_step_that_cannot_be_made_whole_is_not_begun() {
    let server = crate::Server::start().await;
    let journal = Journal::open(&server.url()).unwrap();
    let to = channel("session:1");
    let mut redis = server.connection().await;
    let tag = protocol::partition_tag(to.partition());
    let key = |what: &str| format!("relay:{{{tag}}}:{what}:{to}");
    let settings = format!("relay:{{{tag}}}:cfg");
    let set = async |redis: &mut redis::aio::MultiplexedConnection, words: &[&str]| {
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        command.query_async::<()>(redis).await.unwrap();
    };
    set(&mut redis, &["HSET", &settings, "commands", "a lot"]).await;
    journal.send(&command(&to)).await.unwrap();
    set(&mut redis, &["HSET", &settings, "commands", "10 99999999999999999999 10"]).await;
    journal.send(&command(&to)).await.unwrap();
    assert_eq!(commands(&journal, &to).await.len(), 2, "the default holds");

    set(&mut redis, &["DEL", &key("waiting-counts")]).await;
    set(&mut redis, &["SET", &key("waiting-counts"), "x"]).await;
    let new = command(&to);
    let refused = journal.send(&new).await;

    assert!(matches!(refused, Err(SendError::Unavailable(_))), "{refused:?}");
    assert_eq!(commands(&journal, &to).await.len(), 2, "nothing was appended");
    assert_eq!(journal.outcome(&to, new.key()).await, Ok(None), "nor does the command stand");
}
