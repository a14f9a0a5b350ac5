//! The rules of approvals, without a journal.

use super::*;

fn approval() -> Record {
    record(&Channel::agent("a").expect("an id"), "q1")
}

/// As it is written: it expires at 100.
fn state(answer: Option<&ApprovalAnswer>) -> Option<ApprovalState> {
    let state = serde_json::json!({
        "asks": "permission", "agent_id": "a", "incarnation": 1, "question": digest("{}"), "default": true, "expires_at": 100, "digest": "d1", "answer": answer,
    });
    serde_json::from_value(state).ok()
}

fn no(command_id: &str) -> ApprovalAnswer {
    ApprovalAnswer {
        allowed: false,
        always: false,
        reason: None,
        by: Some("ann".into()),
        at: 1,
        timed_out: false,
        command_id: command_id.into(),
    }
}

fn resolve(found: Option<ApprovalState>, now_ms: u64, digest: Option<&str>) -> (bool, Resolved) {
    match resolved(found, now_ms, &approval(), Asks::Permission, &no("c1"), digest) {
        Decision::Keep(resolved) => (false, resolved),
        Decision::Set(_, resolved) => (true, resolved),
    }
}

#[test]
fn the_first_answer_in_time_holds() {
    assert_eq!(resolve(state(None), 99, Some("d1")), (true, Resolved::Yours));
    assert_eq!(resolve(state(Some(&no("c1"))), 99, None), (false, Resolved::Yours), "a retry");
    let other = no("c2");
    assert_eq!(resolve(state(Some(&other)), 99, None), (false, Resolved::Already(other.clone())));
    assert_eq!(resolve(state(None), 99, Some("d2")), (false, Resolved::OtherDigest));
    assert_eq!(resolve(None, 99, None), (false, Resolved::Unknown));
}

fn holder(incarnation: u64) -> Holder {
    Holder { agent: "a".into(), incarnation }
}

#[test]
fn a_question_is_withdrawn_with_its_asker_and_no_other() {
    let withdrawn = |state, holder: &Holder| {
        let decision = withdraw::withdrawn(state, 50, &approval(), holder);
        matches!(decision, Decision::Set(..))
    };
    assert!(withdrawn(state(None), &holder(1)) && withdrawn(state(None), &holder(2)));
    assert!(!withdrawn(state(None), &holder(0)), "a newer incarnation asks it");
    assert!(!withdrawn(state(None), &Holder { agent: "b".into(), incarnation: 1 }));
    assert!(!withdrawn(state(Some(&no("c1"))), &holder(1)), "it was answered");
    let durable = state(None).map(|state| ApprovalState { durable: true, ..state });
    assert!(!withdrawn(durable, &holder(1)));

    let gone = || state(None).map(|state| ApprovalState { withdrawn_at: Some(50), ..state });
    assert!(!withdrawn(gone(), &holder(1)), "once");
    assert_eq!(resolve(gone(), 60, None), (false, Resolved::Withdrawn(50)));
    let late = timed_out(gone(), 100, &approval());
    assert!(matches!(late, Decision::Keep(Timeout::No)), "it gets no default");
}

#[test]
fn after_its_time_the_default_holds() {
    let (changes, late) = resolve(state(None), 100, None);
    let Resolved::Already(answer) = late else { panic!("{late:?}") };
    assert!(changes && answer.allowed && answer.timed_out);
    let early = timed_out(state(None), 99, &approval());
    assert!(matches!(early, Decision::Keep(Timeout::No)));
    let due = timed_out(state(None), 100, &approval());
    assert!(matches!(due, Decision::Set(_, Timeout::Now(..))));
    let answered = timed_out(state(Some(&no("c1"))), 100, &approval());
    assert!(matches!(answered, Decision::Keep(Timeout::No)));
}

/// Whoever tells something may die before it is copied.
#[tokio::test]
async fn no_end_overtakes_its_question_on_the_firehose() {
    let journal = Journal::in_memory();
    let (channel, firehose) = (Channel::agent("a").expect("an id"), Channel::global_events());
    let new = NewApproval {
        channel: channel.clone(),
        request_id: "q1".into(),
        asks: Asks::Budget,
        question: "{}".into(),
        expires_in: Duration::from_secs(60),
        default: false,
        digest: None,
        durable: false,
    };
    let asking = |found, now_ms| asked(found, now_ms, &holder(1), &new, "d");
    let leaving = |found, now_ms| withdraw::withdrawn(found, now_ms, &approval(), &holder(1));
    for _ in 0..2 {
        journal.transact(&approval(), asking).await.expect("memory answers");
        journal.transact(&approval(), leaving).await.expect("memory answers");
    }
    journal.transact(&approval(), asking).await.expect("memory answers");

    journal.copy_approval(&approval()).await.expect("memory answers");
    journal.copy_approval(&approval()).await.expect("memory answers");

    let name = crate::Name::events(firehose.clone());
    let page = journal.read(&name, crate::Since::Start, 10).await.expect("memory answers");
    let told: Vec<&str> = page.entries.iter().map(|entry| &*entry.name).collect();
    let (asked, ended) = ("budget_exhausted", "budget_resolved");
    assert_eq!(told, [asked, ended, asked, ended, asked], "each once, in order");
    let pending = journal.pending(&firehose).await.expect("memory answers").1;
    assert!(
        matches!(&*pending, [one] if one.question.contains("\"channel\":\"agent:a\"")),
        "{pending:?}"
    );
}
