//! An agent's link to a relay without a relay: frames and breaks go in, frames come out.

use protocol::{AgentFrame, Offset};
use tokio::sync::Semaphore;

use super::*;

fn state() -> RelayState {
    let mut state = RelayState::new(Channel::agent("a").unwrap());
    connect(&mut state);
    state
}

fn connect(state: &mut RelayState) {
    state.on_connection();
    state.on_heard(Some(AgentMessage::Connected { lease_ms: Some(15_000) })).unwrap();
}

fn sent(state: &mut RelayState) -> Vec<AgentCall> {
    let frames = std::iter::from_fn(|| state.next_frame());
    frames.map(|text| AgentCall::parse(&text).unwrap()).collect()
}

/// What is said, without ids.
fn said(state: &mut RelayState) -> Vec<String> {
    let about = |call: &AgentCall| match &call.body {
        CallBody::Follow(Since::Offset(offset)) => format!("follow {} {offset}", call.channel),
        body => format!("{} {}", body_kind(body), call.channel),
    };
    sent(state).iter().map(about).collect()
}

fn body_kind(body: &CallBody) -> &'static str {
    match body {
        CallBody::Lease(_) => "lease",
        CallBody::Release => "release",
        CallBody::Follow(_) => "follow",
        _ => "another",
    }
}

fn session() -> Channel {
    Channel::session("1").unwrap()
}

fn command(n: u64) -> Option<AgentMessage> {
    let offset = Offset { epoch: 1, n, check: 1 };
    let data = RawValue::from_string("{}".to_owned()).unwrap();
    let (channel, name) = (session(), "go".into());
    Some(AgentMessage::Command { channel, offset, name, time_us: 1, data })
}

/// A relay may have given the lease before the connection broke: not released, it would run out, and fence the
/// agent.
#[test]
fn a_lease_that_was_given_up_is_released_on_the_next_connection_until_the_relay_says_so() {
    let mut state = state();
    let room = Arc::new(Semaphore::new(1 << 20)).try_acquire_many_owned(1 << 20).unwrap();
    let kind = CallKind::Lease(LeaseEnd::default());
    let lease = CallBody::Lease(LeaseCall { incarnation: None, parent: None });
    let (call, _) = state.call(&session(), lease, kind, room).unwrap();
    sent(&mut state);
    state.give_up(call);
    for _ in 0..2 {
        state.on_break("gone".to_owned());
        connect(&mut state);
        assert_eq!(said(&mut state), ["release session:1"]);
    }
    let id = state.replies.keys().copied().next().unwrap();
    state.on_heard(Some(AgentMessage::Ack { id, offset: None, data: None })).unwrap();
    state.on_break("gone".to_owned());
    connect(&mut state);
    assert!(said(&mut state).is_empty());
}

/// What is still on its way for an earlier `follow` says nothing about where the newest one is.
#[test]
fn a_command_moves_the_position_once_its_follow_is_answered() {
    let mut state = state();
    state.follow(&session(), Since::Start);
    state.on_heard(command(7)).unwrap();
    state.on_break("gone".to_owned());
    sent(&mut state);
    connect(&mut state);
    assert_eq!(said(&mut state), ["follow session:1"], "from the start");

    let live = AgentMessage::Live { channel: session(), offset: None };
    state.on_heard(Some(live)).unwrap();
    state.on_heard(command(8)).unwrap();
    state.on_break("gone".to_owned());
    connect(&mut state);
    assert_eq!(said(&mut state), ["follow session:1 1-8-1"]);
}

/// One lease that Redis does not give now does not begin the whole connection anew.
#[test]
fn a_lease_that_is_unavailable_is_asked_for_again() {
    let mut state = state();
    let held = HeldLease { incarnation: 5, end: LeaseEnd::default() };
    state.leases.insert(session(), held);
    state.on_break("gone".to_owned());
    connect(&mut state);
    let id = sent(&mut state).pop().unwrap().id;
    let error = protocol::AgentError::new(protocol::ErrorCode::Unavailable, "not now");
    state.on_heard(Some(AgentMessage::Error { id: Some(id), error })).unwrap();
    assert_eq!(said(&mut state), ["lease session:1"]);
}

/// A lease to which the token does not reach any more is neither lost nor taken back.
#[test]
fn a_revoked_lease_ends_alone() {
    let mut state = state();
    let end = LeaseEnd::default();
    state.leases.insert(session(), HeldLease { incarnation: 5, end: end.clone() });

    state.on_heard(Some(AgentMessage::Released { channel: session() })).unwrap();

    assert!(end.revoked.is_cancelled() && !end.lost.is_cancelled());
    state.on_break("gone".to_owned());
    connect(&mut state);
    assert!(said(&mut state).is_empty());
}

/// A renewed token goes before all that waits; that it is refused ends nothing.
#[test]
fn a_renewed_token_is_sent_and_its_refusal_is_not_the_end() {
    let mut state = state();
    state.say_token("x.y.z");
    let frame = state.next_frame().unwrap();
    let Ok(AgentFrame::Auth { id, token }) = AgentFrame::parse(&frame) else { panic!("{frame}") };
    assert_eq!(token.as_str(), "x.y.z");

    let error = protocol::AgentError::new(protocol::ErrorCode::Unauthorized, "no");
    state.on_heard(Some(AgentMessage::Error { id: Some(id), error })).unwrap();

    assert!(state.replies.is_empty() && state.is_up);
}
