//! Runs `agents.json`: the frames between an agent that has no Redis and a relay. Both ends use these parsers.

use protocol::{AgentCall, AgentMessage};
use serde::Deserialize;
use serde_json::Value;

use super::{Cases, Text, load};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "about")]
    _about: Vec<String>,
    calls: Cases<Call>,
    refused: Cases<Refused>,
    messages: Cases<Message>,
    ignored: Cases<Message>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    name: String,
    text: Text,
    is: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refused {
    name: String,
    text: Text,
    id: Option<u64>,
    code: String,
    message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    name: String,
    text: String,
}

pub(crate) fn run() {
    let file: File = load("agents.json");
    for Call { name, text, is } in file.calls {
        let text = text.join();
        let call = AgentCall::parse(&text).expect(&name);
        let again = call.to_text();
        let found: Value = serde_json::from_str(&again).expect(&name);
        if is["data"] == "*" {
            let given: Value = serde_json::from_str(&text).expect(&name);
            assert_eq!(found, given, "{name}");
        } else {
            assert_eq!(found, is, "{name}");
        }
        let twice = AgentCall::parse(&again).expect(&name).to_text();
        assert_eq!(twice, again, "{name}: written and read again it is the same");
    }
    for Refused { name, text, id, code, message } in file.refused {
        let error = AgentCall::parse(&text.join()).expect_err(&name);
        assert_eq!((error.id, error.code.as_str()), (id, &*code), "{name}: {error:?}");
        assert!(error.message.contains(&message), "{name}: {error:?}");
        let heard = AgentMessage::parse(&error.to_message().to_text()).expect(&name);
        assert!(
            matches!(heard, Some(AgentMessage::Error { id: heard, .. }) if heard == id),
            "{name}"
        );
    }
    for Message { name, text } in file.messages {
        let message = AgentMessage::parse(&text).expect(&name).expect(&name);
        assert_eq!(message.to_text(), text, "{name}");
    }
    for Message { name, text } in file.ignored {
        assert!(AgentMessage::parse(&text).expect(&name).is_none(), "{name}");
    }
}
