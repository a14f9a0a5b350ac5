//! Whether an agent's token permits a call: every address that the call names is asked of the grant. Pure.
//!
//! [`calls`](super::calls) → **permission**

use protocol::agent::Parent;
use protocol::{AgentCall, CallBody, Channel, Grant, Kind};

/// The first address of `call` that the grant does not permit, as it is named to the agent.
pub(super) fn refused(grant: &Grant, call: &AgentCall) -> Option<String> {
    let channel = &call.channel;
    let has_events = channel.kind() != Kind::Service;
    let may = match &call.body {
        CallBody::Publish(..) => has_events && grant.may_publish(channel),
        CallBody::Ask(_) | CallBody::EndRun(_) => {
            has_events && grant.may_publish(channel) && grant.may_serve(channel)
        }
        CallBody::Resolve(_) => grant.may_serve(channel) || grant.may_command(channel),
        _ => grant.may_serve(channel),
    };
    if !may {
        return Some(channel.to_string());
    }
    match &call.body {
        CallBody::Adopt(parent) | CallBody::Disown(parent) => refused_parent(grant, parent),
        CallBody::Lease(lease) => refused_parent(grant, lease.parent.as_ref()?),
        CallBody::Note(note) => {
            note.channels.added.iter().find(|at| !grant.may_serve(at)).map(ToString::to_string)
        }
        _ => None,
    }
}

/// A child receives the Cancels that are sent to its parent, and to the session of its parent's run.
fn refused_parent(grant: &Grant, parent: &Parent) -> Option<String> {
    let is_permitted = |at: &Channel| grant.may_serve(at) || grant.may_command(at);
    let Ok(agent) = Channel::agent(&parent.agent_id) else {
        return Some(format!("agent:{}", parent.agent_id));
    };
    let mut addresses = [Some(&agent), parent.session.as_ref()].into_iter().flatten();
    addresses.find(|at| !is_permitted(at)).map(ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_that_a_call_names_is_asked_of_the_grant() {
        let grant = r#"{"serve": ["agent:mine", "session:mine"], "command": ["agent:boss"],
            "publish": ["agent:mine"]}"#;
        let grant: Grant = serde_json::from_str(grant).unwrap();
        let refused = |kind: &str, channel: &str, data: &str| {
            let call = format!(r#"{{"type":"{kind}","id":1,"channel":"{channel}","data":{data}}}"#);
            refused(&grant, &AgentCall::parse(&call).unwrap())
        };
        let (mine, boss) = ("agent:mine", r#""agent_id":"boss""#);
        for kind in ["adopt", "disown"] {
            assert_eq!(refused(kind, mine, &format!("{{{boss}}}")), None);
            let in_mine = format!(r#"{{{boss},"session":"session:mine"}}"#);
            assert_eq!(refused(kind, mine, &in_mine), None);
            let in_theirs = format!(r#"{{{boss},"session":"session:theirs"}}"#);
            assert_eq!(refused(kind, mine, &in_theirs).as_deref(), Some("session:theirs"));
            let stranger = r#"{"agent_id":"stranger"}"#;
            assert_eq!(refused(kind, mine, stranger).as_deref(), Some("agent:stranger"));
        }
        assert_eq!(refused("lease", mine, "{}"), None);
        assert_eq!(refused("lease", mine, &format!(r#"{{"parent":{{{boss}}}}}"#)), None);
        let stranger = r#"{"parent":{"agent_id":"stranger"}}"#;
        assert_eq!(refused("lease", mine, stranger).as_deref(), Some("agent:stranger"));
        let theirs = format!(r#"{{"parent":{{{boss},"session":"session:theirs"}}}}"#);
        assert_eq!(refused("lease", mine, &theirs).as_deref(), Some("session:theirs"));

        let served = |channel: &str| format!(r#"{{"channels":{{"added":["{channel}"]}}}}"#);
        assert_eq!(refused("note", mine, &served("session:mine")), None);
        let noted = refused("note", mine, &served("session:theirs"));
        assert_eq!(noted.as_deref(), Some("session:theirs"));
        assert_eq!(refused("release", "session:theirs", "{}").as_deref(), Some("session:theirs"));
    }
}
