//! What must hold whatever comes: `fuzz/` tries it on random input, the tests here on what fuzzing has found.
//!
//! A property panics where it does not hold.

use std::time::Duration;

use crate::frame::{self, ClientFrame, Incoming, Refusal};
use crate::limits::{
    APPROVAL_ID_BYTES_MAX, COMMAND_WAIT_MAX, CORRELATION_ID_BYTES_MAX, REASON_CHARS_MAX,
    REQUEST_TIMEOUT_MAX, SUBSCRIPTIONS_MAX,
};
use crate::{
    AgentCall, AgentFrame, AgentMessage, Channel, Kind, Offset, check_command_name, check_data,
};

/// What an error says is short, however long what it is about.
const MESSAGE_BYTES_MAX: usize = 1_024;

/// A frame from a browser is a frame whose every part keeps its limits, or a refusal that is short.
pub fn frames_up(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for incoming in [frame::parse(&text), frame::parse_body(&text, "command")] {
        let Incoming { id, frame, is_readable } = incoming;
        if let Some(id) = id {
            assert!(text.contains(id.get()) && id.get().len() <= CORRELATION_ID_BYTES_MAX, "{id}");
        }
        match frame {
            Ok(frame) => {
                assert!(is_readable);
                check_frame(&frame);
            }
            Err(refusal) => check_refusal(&refusal),
        }
    }
}

fn check_refusal(refusal: &Refusal) {
    assert!(refusal.message.len() <= MESSAGE_BYTES_MAX, "{}", refusal.message);
    let channel = refusal.channel.as_deref().unwrap_or_default();
    assert!(channel.len() <= MESSAGE_BYTES_MAX, "{channel}");
}

fn check_frame(frame: &ClientFrame) {
    let within = |wait: Duration, most| assert!(!wait.is_zero() && wait <= most, "{wait:?}");
    let short = |reason: &Option<String>| {
        let chars = reason.as_deref().unwrap_or_default().chars().count();
        assert!(chars <= REASON_CHARS_MAX, "{chars}");
    };
    match frame {
        ClientFrame::Subscribe(each) => {
            assert!((1..=4 * SUBSCRIPTIONS_MAX).contains(&each.len()));
            for one in each {
                one.as_ref().map_or_else(check_refusal, |one| check_shown(&one.target.channel));
            }
        }
        ClientFrame::Unsubscribe(each) => {
            assert!((1..=4 * SUBSCRIPTIONS_MAX).contains(&each.len()));
            for one in each {
                one.as_ref().map_or_else(check_refusal, |one| check_shown(&one.channel));
            }
        }
        ClientFrame::Ping | ClientFrame::Pong | ClientFrame::Auth(_) => {}
        ClientFrame::Command(command) => {
            check_channel(&command.channel);
            check_command_name(&command.name).expect("a command's name");
            check_data(&command.data).expect("a command's data");
            within(command.expires_in, COMMAND_WAIT_MAX);
            assert_eq!(command.cancels.is_some(), command.name == "cancel_agent");
            if let Some(cancels) = &command.cancels {
                assert!(cancels.run_id.is_some() || !command.may_wait, "it cancels what runs now");
                short(&cancels.reason);
            }
        }
        ClientFrame::Answer(answer) => {
            answer.channel.iter().for_each(check_channel);
            assert!((1..=APPROVAL_ID_BYTES_MAX).contains(&answer.request_id.len()));
            short(&answer.reason);
        }
        ClientFrame::Request(request) => {
            check_channel(&request.channel);
            check_command_name(&request.method).expect("a method");
            check_data(&request.params).expect("a request's parameters");
            within(request.timeout, REQUEST_TIMEOUT_MAX);
            if request.channel.kind() == Kind::Service {
                assert_eq!(Some(request.channel.id()), request.method.split('.').next());
            }
        }
    }
}

/// What events are shown of.
fn check_shown(channel: &Channel) {
    check_channel(channel);
    assert!(channel.kind() != Kind::Service && *channel != Channel::global_everyone());
}

fn check_channel(channel: &Channel) {
    assert_eq!(channel.as_str().parse::<Channel>().as_ref(), Ok(channel));
}

/// What an agent and a relay say to each other is the same when it is written and read again; an error is short.
pub fn agent_frames(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match AgentFrame::parse(&text) {
        Ok(AgentFrame::Call(call)) => {
            check_channel(&call.channel);
            let written = call.to_text();
            let read = AgentCall::parse(&written).expect("what was written can be read");
            assert_eq!(read.to_text(), written);
        }
        Ok(AgentFrame::Auth { id, token }) => {
            let again = AgentFrame::parse(&AgentFrame::auth_text(id, token.as_str()));
            assert!(matches!(again, Ok(AgentFrame::Auth { id: read, token: same })
                if read == id && same == token));
        }
        Err(error) => {
            assert!(error.message.len() <= MESSAGE_BYTES_MAX, "{}", error.message);
            check_message(&error.to_message());
        }
    }
    if let Ok(Some(message)) = AgentMessage::parse(&text) {
        check_message(&message);
    }
}

fn check_message(message: &AgentMessage) {
    let written = message.to_text();
    let read = AgentMessage::parse(&written).expect("what was written can be read");
    assert_eq!(read.expect("a message that is known").to_text(), written);
}

/// An offset that can be read is written in one way, and read again it is the same.
pub fn offsets(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match text.parse::<Offset>() {
        Ok(offset) => {
            let written = offset.to_string();
            assert_eq!(written.parse(), Ok(offset));
            // Only leading zeros are dropped.
            let plain = text.split('-').map(|part| part.trim_start_matches('0'));
            assert!(plain.eq(written.split('-').map(|part| part.trim_start_matches('0'))));
            assert_eq!(frame::parse_since(&text), Ok(frame::Since::Offset(offset)));
            assert!(!offset.is_followed_by(&offset));
        }
        Err(error) => assert!(error.to_string().len() <= MESSAGE_BYTES_MAX, "{error}"),
    }
}

#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::replay::replay;

    #[test]
    fn frames_up() {
        replay("frames_up", super::frames_up);
    }

    #[test]
    fn agent_frames() {
        replay("agent_frames", super::agent_frames);
    }

    #[test]
    fn offsets() {
        replay("offsets", super::offsets);
    }
}
