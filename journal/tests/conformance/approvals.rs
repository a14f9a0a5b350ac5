//! What approvals promise, on both backends.

use std::time::Duration;

use journal::{
    ApprovalAnswer, AskError, Asked, Asks, Holder, Lease, NewApproval, Reaper, Resolved,
};
use protocol::Channel;
use protocol::limits::{
    APPROVAL_PLACES_MAX, APPROVALS_MAX, APPROVALS_PER_AGENT_MAX, FIREHOSE_APPROVAL_BYTES_MAX,
    FIREHOSE_APPROVALS_MAX,
};
use uuid::Uuid;

use crate::states::{agent, channel, commands, told};
use crate::{Server, on_both, open};

/// One that outlives its agent, and has a digest.
fn approval(on: &Channel, id: &str) -> NewApproval {
    NewApproval {
        question: r#"{"toolName":"rm"}"#.into(),
        digest: Some("d1".into()),
        durable: true,
        ..crate::states::approval(on, id)
    }
}

/// Changes one part of what is asked.
type Differ = fn(&mut NewApproval);

fn answer(by: &str, allowed: bool) -> ApprovalAnswer {
    ApprovalAnswer {
        allowed,
        always: true,
        reason: None,
        by: Some(by.into()),
        at: 1,
        timed_out: false,
        command_id: Uuid::new_v4().to_string().into(),
    }
}

/// The answer, but for its time: the journal's clock says when, not the one that answered.
fn as_given(answer: &ApprovalAnswer) -> ApprovalAnswer {
    assert!(answer.at > 1, "{answer:?}");
    ApprovalAnswer { at: 1, ..answer.clone() }
}

on_both! {
    async fn an_approval_is_pending_until_the_first_of_many_answers(backend) {
        let journal = &backend.journal;
        let lease = agent(journal, "a").await;
        let session = channel("session:1");
        assert_eq!(journal.ask(lease.holder(), &approval(&session, "p1")).await, Ok(Asked::Pending));
        assert_eq!(journal.ask(lease.holder(), &approval(&session, "p1")).await, Ok(Asked::Pending));
        let (head, pending) = journal.pending(&session).await.unwrap();
        assert_eq!((head.map(|head| head.n), pending.len()), (Some(1), 1));
        let question: serde_json::Value = serde_json::from_str(&pending[0].question).unwrap();
        assert_eq!(question["data"]["request"]["toolName"], "rm");
        assert_eq!(question["data"]["request"]["requestId"], "p1");
        assert_eq!(question["data"]["expires_at"], question["expires_at"]);
        assert_eq!(journal.find_approval("p1").await, Ok(vec![session.clone()]));
        assert_eq!(journal.find_approval("p2").await, Ok(vec![]));

        let answers: Vec<ApprovalAnswer> = (0..8).map(|i| answer(&format!("user{i}"), i % 2 == 0)).collect();
        let resolved = futures_util::future::join_all(answers.iter().map(|answer| {
            journal.resolve(&session, "p1", Asks::Permission, answer, Some("d1"))
        })).await;

        let winners: Vec<usize> =
            (0..8).filter(|i| resolved[*i] == Ok(Resolved::Yours)).collect();
        assert_eq!(winners.len(), 1);
        let winner = &answers[winners[0]];
        let losers = resolved.iter().filter(|r| {
            matches!(r, Ok(Resolved::Already(first)) if as_given(first) == *winner)
        });
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
        let again = journal.ask(successor.holder(), &approval(&session, "p1")).await;
        assert!(matches!(&again, Ok(Asked::Answered(found)) if as_given(found) == *winner), "{again:?}");
        assert_eq!(journal.ask(lease.holder(), &approval(lease.channel(), "p9")).await, Err(AskError::Fenced));
    }
}

on_both! {
    async fn an_id_stands_for_all_that_was_asked(backend) {
        let journal = &backend.journal;
        let (lease, other) = (agent(journal, "a").await, agent(journal, "b").await);
        let session = channel("session:1");
        let asked = approval(&session, "p1");
        let differs: [(&str, Differ); 5] = [
            ("question", |new| new.question = r#"{"toolName":"ls"}"#.into()),
            ("asks", |new| new.asks = Asks::Budget),
            ("default", |new| new.default = true),
            ("digest", |new| new.digest = None),
            ("durable", |new| new.durable = false),
        ];
        let try_all = async || {
            for (part, differ) in differs {
                let mut changed = asked.clone();
                differ(&mut changed);
                assert_eq!(journal.ask(lease.holder(), &changed).await, Err(AskError::Conflict(part)));
            }
            assert_eq!(journal.ask(other.holder(), &asked).await, Err(AskError::Conflict("agent")));
        };
        journal.ask(lease.holder(), &asked).await.unwrap();
        try_all().await;
        let later = NewApproval { expires_in: Duration::from_secs(90), ..asked.clone() };
        assert_eq!(journal.ask(lease.holder(), &later).await, Ok(Asked::Pending), "a clock changes that");

        let yes = answer("ada", true);
        journal.resolve(&session, "p1", Asks::Permission, &yes, None).await.unwrap();
        try_all().await;
        let no = ApprovalAnswer { allowed: false, ..yes.clone() };
        assert_eq!(journal.resolve(&session, "p1", Asks::Permission, &no, None).await, Ok(Resolved::Conflict));

        let names: Vec<String> = told(journal, &session).await.into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["permission_request", "permission_resolved"], "nothing else was shown");
        let again = journal.ask(lease.holder(), &asked).await;
        assert!(matches!(&again, Ok(Asked::Answered(found)) if as_given(found) == yes), "{again:?}");
    }
}

on_both! {
    async fn an_id_is_looked_for_on_so_many_channels(backend) {
        let lease = agent(&backend.journal, "a").await;
        let sessions: Vec<Channel> = (0..=APPROVAL_PLACES_MAX).map(|n| channel(&format!("session:{n}"))).collect();
        for session in &sessions {
            let asked = backend.journal.ask(lease.holder(), &approval(session, "p1")).await;
            assert_eq!(asked, Ok(Asked::Pending), "each channel has ids of its own");
        }

        let mut found = backend.journal.find_approval("p1").await.unwrap();
        found.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
        assert_eq!(found, sessions[..APPROVAL_PLACES_MAX]);
        let last = &sessions[APPROVAL_PLACES_MAX];
        let yes = answer("ada", true);
        assert_eq!(
            backend.journal.resolve(last, "p1", Asks::Permission, &yes, None).await,
            Ok(Resolved::Yours),
            "who names the channel needs no place"
        );
    }
}

on_both! {
    async fn answers_that_do_not_fit_change_nothing(backend) {
        let lease = agent(&backend.journal, "a").await;
        let session = channel("session:1");
        backend.journal.ask(lease.holder(), &approval(&session, "p1")).await.unwrap();
        let resolve = |id, asks, digest| {
            let (journal, session) = (backend.journal.clone(), session.clone());
            async move { journal.resolve(&session, id, asks, &answer("x", true), digest).await.unwrap() }
        };

        assert_eq!(resolve("p1", Asks::Permission, Some("d2")).await, Resolved::OtherDigest);
        assert_eq!(resolve("p1", Asks::Budget, None).await, Resolved::OtherKind);
        assert_eq!(resolve("p7", Asks::Permission, None).await, Resolved::Unknown);
        assert_eq!(backend.journal.pending(&session).await.unwrap().1.len(), 1);
        assert_eq!(resolve("p1", Asks::Permission, None).await, Resolved::Yours);
    }
}

on_both! {
    async fn a_channel_holds_so_many_approvals_and_has_room_again_when_one_is_answered(backend) {
        let agents = [agent(&backend.journal, "a").await, agent(&backend.journal, "b").await];
        let session = channel("session:1");
        let ask = async |by: usize, n: usize| {
            let new = approval(&session, &format!("p{by}.{n}"));
            backend.journal.ask(agents[by].holder(), &new).await
        };
        for n in 0..APPROVALS_MAX {
            assert_eq!(ask(n % 2, n / 2).await, Ok(Asked::Pending));
        }

        assert_eq!(ask(0, APPROVALS_MAX).await, Err(AskError::Busy));
        assert_eq!(ask(0, 0).await, Ok(Asked::Pending), "it stands already");
        assert_eq!(backend.journal.pending(&session).await.unwrap().1.len(), APPROVALS_MAX);
        let yes = answer("ada", true);
        backend.journal.resolve(&session, "p0.0", Asks::Permission, &yes, None).await.unwrap();
        assert_eq!(ask(0, APPROVALS_MAX).await, Ok(Asked::Pending));
    }
}

on_both! {
    async fn one_agent_leaves_room_for_the_questions_of_others(backend) {
        let journal = &backend.journal;
        let session = channel("session:1");
        // Its id begins as the other's does.
        let (lease, other) = (agent(journal, "a").await, agent(journal, "a.b").await);
        let ask = async |lease: &Lease, id: String| {
            let new = NewApproval { durable: false, ..approval(&session, &id) };
            journal.ask(lease.holder(), &new).await
        };
        for n in 0..APPROVALS_PER_AGENT_MAX {
            assert_eq!(ask(&lease, format!("p{n}")).await, Ok(Asked::Pending));
        }

        assert_eq!(ask(&lease, "one-more".into()).await, Err(AskError::Busy));
        assert_eq!(ask(&lease, "p0".into()).await, Ok(Asked::Pending), "it stands already");
        let successor = agent(journal, "a").await;
        assert_eq!(ask(&successor, "one-more".into()).await, Err(AskError::Busy), "an agent's part is one");
        for n in 0..APPROVALS_MAX - APPROVALS_PER_AGENT_MAX {
            assert_eq!(ask(&other, format!("other{n}")).await, Ok(Asked::Pending));
        }

        journal.unask(&session, "p0", successor.holder()).await.unwrap();
        assert_eq!(ask(&successor, "one-more".into()).await, Ok(Asked::Pending));
        assert_eq!(ask(&successor, "p0".into()).await, Err(AskError::Busy), "it was withdrawn");
    }
}

on_both! {
    async fn a_question_that_nobody_waits_for_is_withdrawn(backend) {
        let journal = &backend.journal;
        let lease = agent(journal, "a").await;
        let session = channel("session:1");
        let lease_there = journal.lease(&session, "a", Some(lease.holder().incarnation), None).await.unwrap();
        let ask = async |id: &str, durable: bool| {
            let new = NewApproval { durable, ..approval(&session, id) };
            assert_eq!(journal.ask(lease.holder(), &new).await, Ok(Asked::Pending));
        };
        for (id, durable) in [("given-up", false), ("left", false), ("kept", true)] {
            ask(id, durable).await;
        }
        let pending = async || -> Vec<String> {
            let pending = journal.pending(&session).await.unwrap().1;
            let mut ids: Vec<String> = pending.iter().map(|one| one.request_id.to_string()).collect();
            ids.sort();
            ids
        };

        let older = Holder { incarnation: lease.holder().incarnation - 1, ..lease.holder().clone() };
        journal.unask(&session, "given-up", &older).await.unwrap();
        assert_eq!(pending().await, ["given-up", "kept", "left"], "a newer incarnation asks it");
        for _ in 0..2 {
            journal.unask(&session, "given-up", lease.holder()).await.unwrap();
            journal.unask(&session, "kept", lease.holder()).await.unwrap();
        }
        assert_eq!(pending().await, ["kept", "left"]);
        lease_there.release().await.unwrap();
        assert_eq!(pending().await, ["kept"]);

        let late = journal.resolve(&session, "left", Asks::Permission, &answer("ada", true), None).await.unwrap();
        assert!(matches!(late, Resolved::Withdrawn(_)), "{late:?}");
        ask("left", false).await;
        assert_eq!(pending().await, ["kept", "left"], "asked again, it is shown anew");
        let told = told(journal, &session).await;
        let ended: Vec<&serde_json::Value> =
            told.iter().filter(|(name, _)| name == "permission_resolved").map(|(_, data)| data).collect();
        assert_eq!(ended.len(), 2, "each once: {told:?}");
        assert!(ended.iter().all(|data| data["reason"] == "withdrawn" && data["allowed"] == false), "{ended:?}");
        assert!(commands(journal, &session).await.is_empty(), "there is nobody to be told");
    }
}

on_both! {
    async fn an_approval_that_nobody_answers_gets_its_default(backend) {
        let lease = agent(&backend.journal, "a").await;
        let own = lease.channel().clone();
        let mut budget = approval(&own, "b1");
        (budget.asks, budget.expires_in) = (Asks::Budget, Duration::from_millis(50));
        backend.journal.ask(lease.holder(), &budget).await.unwrap();
        drop(lease);
        tokio::time::sleep(Duration::from_millis(80)).await;

        let late = backend.journal.resolve(&own, "b1", Asks::Budget, &answer("late", true), None).await.unwrap();

        let Resolved::Already(answer) = late else { panic!("{late:?}") };
        assert!(answer.timed_out && !answer.allowed && answer.by.is_none());
        Reaper::new(backend.journal.clone()).poll().await.unwrap();
        for channel in [own, Channel::global_events()] {
            let names: Vec<String> = told(&backend.journal, &channel).await.into_iter().map(|(n, _)| n).collect();
            assert_eq!(names, ["budget_exhausted", "budget_resolved"], "{channel}");
        }
    }
}

/// What Redis has lost of a question holds no place for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_whose_record_is_lost_leaves_its_place_in_time() {
    let server = Server::start().await;
    let journal = open(&server);
    let lease = agent(&journal, "a").await;
    let session = channel("session:1");
    let lost = NewApproval { expires_in: Duration::from_millis(50), ..approval(&session, "p1") };
    journal.ask(lease.holder(), &lost).await.unwrap();
    journal.ask(lease.holder(), &approval(&session, "p2")).await.unwrap();
    let mut redis = server.connection().await;
    let keys: Vec<String> =
        redis::cmd("KEYS").arg("*:approval:session:1:p1").query_async(&mut redis).await.unwrap();
    assert_eq!(keys.len(), 1, "{keys:?}");
    let _: () = redis::cmd("DEL").arg(keys).query_async(&mut redis).await.unwrap();
    tokio::time::sleep(Duration::from_millis(80)).await;

    Reaper::new(journal.clone()).poll().await.unwrap();

    let pending = journal.pending(&session).await.unwrap().1;
    assert!(matches!(&*pending, [one] if &*one.request_id == "p2"), "{pending:?}");
}

/// Asked again when it is long forgotten that the copy was made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_that_is_asked_for_again_is_copied_to_the_firehose_once() {
    let server = Server::start().await;
    let journal = open(&server);
    let lease = agent(&journal, "a").await;
    let mut budget = approval(lease.channel(), "b1");
    budget.asks = Asks::Budget;
    journal.ask(lease.holder(), &budget).await.unwrap();
    let mut redis = server.connection().await;
    let keys: Vec<String> =
        redis::cmd("KEYS").arg("*:copy:global:events:*").query_async(&mut redis).await.unwrap();
    let _: () = redis::cmd("DEL").arg(keys).query_async(&mut redis).await.unwrap();

    journal.ask(lease.holder(), &budget).await.unwrap();

    assert_eq!(told(&journal, &Channel::global_events()).await.len(), 1);
}

on_both! {
    async fn what_an_agent_asks_about_its_budget_is_pending_on_the_firehose(backend) {
        let journal = &backend.journal;
        let lease = agent(journal, "a").await;
        let (own, session, firehose) =
            (lease.channel().clone(), channel("session:1"), Channel::global_events());
        let ask = async |on: &Channel, id: &str, asks: Asks, question: &str| {
            let new = NewApproval { asks, question: question.into(), ..approval(on, id) };
            journal.ask(lease.holder(), &new).await.unwrap();
        };
        ask(&own, "b1", Asks::Budget, r#"{"tokens_used":7}"#).await;
        ask(&own, "p1", Asks::Permission, "{}").await;
        ask(&session, "b1", Asks::Budget, "{}").await;
        let large = format!(r#"{{"why":"{}"}}"#, "x".repeat(FIREHOSE_APPROVAL_BYTES_MAX));
        ask(&own, "b2", Asks::Budget, &large).await;

        let (head, pending) = journal.pending(&firehose).await.unwrap();

        assert_eq!((head.map(|head| head.n), pending.len()), (Some(2), 1), "{pending:?}");
        let one: serde_json::Value = serde_json::from_str(&pending[0].question).unwrap();
        let there = journal.pending(&own).await.unwrap().1;
        let there = there.iter().find(|one| &*one.request_id == "b1").unwrap();
        let mut there: serde_json::Value = serde_json::from_str(&there.question).unwrap();
        there["channel"] = "agent:a".into();
        assert_eq!(one, there, "as on its own channel, and where to answer");
        journal.resolve(&own, "b1", Asks::Budget, &answer("ada", true), None).await.unwrap();
        assert!(journal.pending(&firehose).await.unwrap().1.is_empty());
    }
}

on_both! {
    /// Beyond what is pending there, a question still comes as an event, and stands on its own channel.
    async fn so_many_questions_are_pending_on_the_firehose(backend) {
        let journal = &backend.journal;
        let mut asked = 0;
        for owner in 0..=FIREHOSE_APPROVALS_MAX / APPROVALS_PER_AGENT_MAX {
            let lease = agent(journal, &format!("a{owner}")).await;
            for n in 0..APPROVALS_PER_AGENT_MAX {
                let new = approval(lease.channel(), &format!("b{n}"));
                let new = NewApproval { asks: Asks::Budget, ..new };
                assert_eq!(journal.ask(lease.holder(), &new).await, Ok(Asked::Pending));
                asked += 1;
            }
        }
        let firehose = Channel::global_events();
        let last = channel(&format!("agent:a{}", FIREHOSE_APPROVALS_MAX / APPROVALS_PER_AGENT_MAX));

        let (head, pending) = journal.pending(&firehose).await.unwrap();
        assert_eq!((head.unwrap().n, pending.len()), (asked, FIREHOSE_APPROVALS_MAX));
        assert_eq!(journal.pending(&last).await.unwrap().1.len(), APPROVALS_PER_AGENT_MAX);
        let yes = answer("ada", true);
        journal.resolve(&last, "b0", Asks::Budget, &yes, None).await.unwrap();
        assert_eq!(journal.pending(&firehose).await.unwrap().1.len(), FIREHOSE_APPROVALS_MAX);
        journal.resolve(&channel("agent:a0"), "b0", Asks::Budget, &yes, None).await.unwrap();
        assert_eq!(journal.pending(&firehose).await.unwrap().1.len(), FIREHOSE_APPROVALS_MAX - 1);
    }
}
