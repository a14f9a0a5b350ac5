//! Who was spawned by whom, and how a Cancel reaches them, on both backends.

use std::time::Duration;

use journal::{
    AdoptError, Cancel, Cancelled, Holder, Journal, Lease, NewCommand, Parent, Reaper, SendError,
    WaitingClass,
};
use tokio::time::Instant;

use crate::on_both;
use crate::reaper::poll_for;
use crate::states::{agent, channel, command, commands, told};

fn parent(agent_id: &str, session: Option<&str>) -> Parent {
    Parent { agent_id: agent_id.into(), run_id: Some("r1".into()), session: session.map(channel) }
}

async fn child(journal: &Journal, id: &str, of: &Parent) -> Lease {
    let lease = agent(journal, id).await;
    journal.adopt(of, lease.holder()).await.unwrap();
    lease
}

async fn cancel(journal: &Journal, to: &str, patience: Duration) -> (NewCommand, Cancelled) {
    let to = channel(to);
    let new = NewCommand {
        name: "cancel_agent".into(),
        class: WaitingClass::Cancel,
        may_wait: false,
        ..command(&to)
    };
    let what = Cancel { run_id: None, reason: Some("enough".into()) };
    let cancelled = journal.cancel(&new, &what, Instant::now() + patience).await;
    (new, cancelled)
}

const PATIENCE: Duration = Duration::from_secs(20);

on_both! {
    /// What is full refuses the next one, and keeps nothing of it; who has gone without a word holds no place.
    async fn children_are_bounded_and_the_dead_hold_no_place(backend) {
        let journal = &backend.journal;
        let full = parent("boss", Some("session:s"));
        let mut living = Vec::new();
        for n in 0..1_024 {
            living.push(child(journal, &format!("c{n}"), &full).await);
        }
        let late = agent(journal, "late").await;

        let at_the_agent = journal.adopt(&parent("boss", None), late.holder()).await;
        let at_the_session = journal.adopt(&parent("other", Some("session:s")), late.holder()).await;
        assert_eq!(at_the_agent, Err(AdoptError::Full(channel("agent:boss"))));
        assert_eq!(at_the_session, Err(AdoptError::Full(channel("session:s"))));
        assert!(journal.children(&channel("agent:other"), None).await.unwrap().is_empty(), "taken back");
        journal.adopt(&full, living[7].holder()).await.unwrap();

        living.swap_remove(7).release().await.unwrap();
        journal.adopt(&full, late.holder()).await.unwrap();
        assert_eq!(journal.children(&channel("session:s"), None).await.unwrap().len(), 1_024);
    }
}

on_both! {
    /// The sender has no patience, or dies: whoever was adopted before the Cancel is reached, and nobody else.
    async fn a_reaper_goes_on_with_a_cancel_and_leaves_alone_what_came_later(backend) {
        let journal = &backend.journal;
        let boss = agent(journal, "boss").await;
        let one = child(journal, "one", &parent("boss", None)).await;
        let two = child(journal, "two", &parent("one", None)).await;
        let (_, Cancelled { sent, walked }) = cancel(journal, "agent:boss", Duration::ZERO).await;
        assert_eq!((sent.unwrap().listeners, walked.reached, walked.is_over), (1, 0, false));
        // Who was adopted in the millisecond of the Cancel is taken for one from before it.
        tokio::time::sleep(Duration::from_millis(2)).await;
        let later = child(journal, "later", &parent("one", None)).await;

        let mut reaper = Reaper::new(journal.clone());
        let ends = Instant::now() + PATIENCE;
        while commands(journal, two.channel()).await.is_empty() {
            assert!(Instant::now() < ends, "nobody goes on with the cancel");
            poll_for(&mut reaper, Duration::from_millis(500)).await;
        }

        for lease in [&one, &two] {
            let received = commands(journal, lease.channel()).await;
            let data = format!(r#"{{"agent_id":"{}","reason":"enough"}}"#, lease.holder().agent);
            assert_eq!((received.len(), &*received[0].data), (1, &*data));
        }
        assert!(commands(journal, later.channel()).await.is_empty(), "it came after the cancel");
        let events = told(journal, boss.channel()).await;
        assert!(events.iter().all(|(_, data)| data.get("reached").is_none()), "all are reached: {events:?}");
    }
}

on_both! {
    async fn a_cancel_says_how_many_it_has_reached_and_so_does_its_repetition(backend) {
        let journal = &backend.journal;
        let boss = agent(journal, "boss").await;
        let mut living = vec![child(journal, "c", &parent("boss", None)).await];
        for n in 0..200 {
            living.push(child(journal, &format!("g{n}"), &parent("c", None)).await);
        }
        let gone = Holder { agent: "gone".into(), incarnation: 1 };
        journal.adopt(&parent("boss", None), &gone).await.unwrap();

        let (new, first) = cancel(journal, "agent:boss", PATIENCE).await;
        let again = journal.cancel(&new, &Cancel::default(), Instant::now() + PATIENCE).await;
        assert_eq!(first, again);
        assert_eq!((first.walked.listeners, first.walked.reached, first.walked.of), (201, 202, 202));
        assert!(first.walked.is_over);

        boss.release().await.unwrap();
        let (_, orphans) = cancel(journal, "agent:boss", PATIENCE).await;
        assert_eq!((orphans.sent, orphans.walked.listeners), (Err(SendError::NoAgent), 201));
        let (_, nobody) = cancel(journal, "agent:nobody", PATIENCE).await;
        assert_eq!((nobody.sent, nobody.walked.of), (Err(SendError::NoAgent), 0));
    }
}

on_both! {
    /// A tree that is cut says so, wherever it is cut.
    async fn a_tree_that_is_cut_says_that_there_is_more(backend) {
        let journal = &backend.journal;
        let mut leases = Vec::new();
        for n in 0..3 {
            leases.push(child(journal, &format!("c{n}"), &parent("boss", Some("session:s"))).await);
        }
        leases.push(child(journal, "below", &parent("c1", None)).await);
        let session = channel("session:s");

        for (most, ids, more) in [
            (4, vec!["below", "c0", "c1", "c2"], false),
            (3, vec!["c0", "c1", "c2"], true),
        ] {
            let tree = journal.tree(&session, most).await.unwrap();
            let found: Vec<&str> = tree.agents.iter().map(|agent| &*agent.agent_id).collect();
            assert_eq!((found, tree.more), (ids, more), "{most}");
        }
        let tree = journal.tree(&session, 2).await.unwrap();
        assert_eq!((tree.agents.len(), tree.more), (2, true), "{tree:?}");
    }
}
