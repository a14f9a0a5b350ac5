//! What an agent's link to a relay does, seen from the relay's end: a WebSocket on loopback that sends what the
//! test tells it to send.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use journal::{AppendError, Command, Holder, NewEntry, Take};
use protocol::Channel;
use protocol::limits::AGENT_CALLS_MAX;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async};
use uuid::Uuid;

use super::relay_link::RelayLink;
use super::{Link, LinkError, RecordLink, Target};
use crate::{Agent, ConnectError, PermissionRequest};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A relay that does what the test says.
struct FakeRelay(TcpListener);

/// Its end of one connection.
struct FakeConnection(WebSocketStream<TcpStream>);

impl FakeRelay {
    async fn start() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn url(&self) -> String {
        format!("http://{}", self.0.local_addr().unwrap())
    }

    fn link(&self) -> RecordLink {
        // On the test's own executor, whose clock it controls.
        RecordLink::Relay(Arc::new(RelayLink::open(&self.url(), "a", None).unwrap()))
    }

    /// The next connection; nothing is sent on it yet.
    async fn connection(&self) -> FakeConnection {
        let accepting = async { accept_async(self.0.accept().await.unwrap().0).await.unwrap() };
        FakeConnection(timeout(PATIENCE, accepting).await.expect("a connection"))
    }

    /// The next connection, told how long leases are.
    async fn connected(&self, lease_ms: u64) -> FakeConnection {
        let mut connection = self.connection().await;
        connection.says(json!({"type": "connected", "lease_ms": lease_ms})).await;
        connection
    }
}

impl FakeConnection {
    async fn says(&mut self, message: Value) {
        self.0.send(Message::text(message.to_string())).await.unwrap();
    }

    async fn acks(&mut self, call: &Value, data: Value) {
        self.says(json!({"type": "ack", "id": call["id"], "data": data})).await;
    }

    async fn refuses(&mut self, call: &Value, code: &str, retryable: bool) {
        let id = &call["id"];
        self.says(json!({"type": "error", "id": id, "code": code, "message": "no", "retryable": retryable}))
            .await;
    }

    /// The next call.
    async fn receives(&mut self) -> Value {
        let receiving = async {
            loop {
                match self.0.next().await.expect("the connection lasts").unwrap() {
                    Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                    _ => continue,
                }
            }
        };
        timeout(PATIENCE, receiving).await.expect("a call")
    }

    /// The next call of this kind; the calls before it are answered.
    async fn receives_a(&mut self, kind: &str) -> Value {
        loop {
            let call = self.receives().await;
            match call["type"].as_str().unwrap() {
                found if found == kind => return call,
                "lease" => self.acks(&call, json!({"incarnation": 1})).await,
                "follow" => self.says(json!({"type": "live", "channel": call["channel"]})).await,
                _ => self.acks(&call, Value::Null).await,
            }
        }
    }
}

fn channel() -> Channel {
    Channel::session("42").unwrap()
}

fn holder() -> Holder {
    Holder { agent: "a".into(), incarnation: 1 }
}

/// Takes a command over `link`.
async fn take(link: &RecordLink) -> Result<Take, LinkError> {
    let command = Command {
        channel: channel(),
        command_id: Uuid::nil().to_string().into(),
        key: Some(Uuid::nil()),
        name: "go".into(),
        data: "{}".into(),
        by: None,
        is_request: false,
        expires_at: None,
        offset: "1-1-1".parse().unwrap(),
    };
    link.take(&command, Uuid::nil(), &holder(), false).await
}

fn event(name: &str) -> NewEntry {
    NewEntry::new(name, "{}")
}

#[tokio::test]
async fn a_withdrawn_call_gives_its_room_back() {
    let relay = FakeRelay::start().await;
    let link = relay.link();
    let mut connection = relay.connected(15_000).await;
    let takes: Vec<_> = (0..AGENT_CALLS_MAX)
        .map(|_| {
            let link = link.clone();
            tokio::spawn(async move { take(&link).await })
        })
        .collect();
    for _ in 0..AGENT_CALLS_MAX {
        assert_eq!(connection.receives().await["type"], "take");
    }

    takes.iter().for_each(tokio::task::JoinHandle::abort);
    for _ in 0..AGENT_CALLS_MAX {
        let call = connection.receives().await;
        assert_eq!(call["type"], "withdraw");
        connection.acks(&call, json!({"withdrawn": true})).await;
    }

    let taking = tokio::spawn(async move { take(&link).await });
    let call = connection.receives().await;
    assert_eq!(call["type"], "take");
    connection.acks(&call, json!({"take": "yours"})).await;
    assert!(matches!(taking.await.unwrap(), Ok(Take::Yours)));
}

#[tokio::test]
async fn a_relay_that_falls_silent_is_left_within_its_lease() {
    let relay = FakeRelay::start().await;
    let link = relay.link();
    let mut first = relay.connected(2_000).await;
    let taking = tokio::spawn(async move { take(&link).await });
    first.receives().await;

    tokio::time::pause();
    tokio::time::advance(Duration::from_millis(1_700)).await;
    tokio::time::resume();

    let mut second = relay.connected(2_000).await;
    let call = second.receives().await;
    assert_eq!(call["type"], "take", "what had no reply is said again");
    second.acks(&call, json!({"take": "gone"})).await;
    assert!(matches!(taking.await.unwrap(), Ok(Take::Gone)));
}

#[tokio::test]
async fn a_relay_with_long_leases_may_be_silent_for_long() {
    let relay = FakeRelay::start().await;
    let link = relay.link();
    let mut connection = relay.connected(60_000).await;
    let taking = tokio::spawn({
        let link = link.clone();
        async move { take(&link).await }
    });
    let call = connection.receives().await;
    connection.acks(&call, json!({"take": "gone"})).await;
    assert!(matches!(taking.await.unwrap(), Ok(Take::Gone)));

    // It pings every 20 s.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(19)).await;
    tokio::time::resume();

    tokio::spawn(async move { take(&link).await });
    assert_eq!(connection.receives().await["type"], "take", "over the same connection");
}

#[tokio::test]
async fn a_lease_that_is_lost_as_it_is_given_is_known_to_be_lost() {
    let relay = FakeRelay::start().await;
    let link = relay.link();
    let mut connection = relay.connected(15_000).await;
    let leasing = tokio::spawn(async move { link.lease(&channel(), "a", None, None).await });
    let call = connection.receives().await;

    let ack = json!({"type": "ack", "id": call["id"], "data": {"incarnation": 1}});
    let fenced = json!({"type": "fenced", "channel": call["channel"]});
    connection.0.feed(Message::text(ack.to_string())).await.unwrap();
    connection.says(fenced).await;

    let lease = leasing.await.unwrap().unwrap();
    timeout(PATIENCE, lease.lost.cancelled()).await.expect("the loss is known");
}

#[tokio::test]
async fn a_lease_that_is_asked_for_again_is_not_released() {
    let relay = FakeRelay::start().await;
    let link = relay.link();
    let mut connection = relay.connected(15_000).await;
    let lease = {
        let link = link.clone();
        move || {
            let link = link.clone();
            tokio::spawn(async move { link.lease(&channel(), "a", None, None).await })
        }
    };
    let given_up = lease();
    let first = connection.receives().await;
    given_up.abort();
    drop(given_up.await);
    let kept = lease();
    let second = connection.receives_a("lease").await;

    connection.acks(&first, json!({"incarnation": 1})).await;
    connection.acks(&second, json!({"incarnation": 1})).await;

    let _kept = kept.await.unwrap().unwrap();
    tokio::spawn(async move { take(&link).await });
    let mut said = Vec::new();
    while said.last().is_none_or(|last| last != "take") {
        said.push(connection.receives().await["type"].as_str().unwrap().to_owned());
    }
    assert!(!said.contains(&"release".to_owned()), "{said:?}");
}

#[tokio::test]
async fn a_lease_that_comes_for_no_caller_is_released() {
    let relay = FakeRelay::start().await;
    let link = relay.link();
    let mut connection = relay.connected(15_000).await;
    let leasing = tokio::spawn({
        let link = link.clone();
        async move { link.lease(&channel(), "a", None, None).await }
    });
    let call = connection.receives().await;
    leasing.abort();
    drop(leasing.await);
    connection.acks(&call, json!({"incarnation": 1})).await;

    assert_eq!(connection.receives_a("release").await["channel"], "session:42");
}

#[tokio::test]
async fn a_command_whose_taking_is_refused_is_not_asked_for_again() {
    let relay = FakeRelay::start().await;
    let url = relay.url();
    let connecting = tokio::spawn(async move { Agent::options().id("a").connect(&url).await });
    let mut connection = relay.connected(15_000).await;
    let agent = tokio::spawn(async move {
        let agent = connecting.await.unwrap().unwrap();
        let mut commands = agent.commands();
        while commands.next().await.is_some() {}
    });
    let follow = connection.receives_a("follow").await;
    connection.says(json!({"type": "live", "channel": follow["channel"]})).await;
    for n in 1..=2 {
        let data = json!({"command_id": Uuid::from_u128(n), "key": Uuid::from_u128(n), "data": {}});
        let offset = format!("1-{n}-1");
        connection
            .says(json!({"type": "command", "channel": "agent:a", "offset": offset, "name": "go", "data": data}))
            .await;
    }

    let call = connection.receives_a("take").await;
    assert_eq!(call["data"]["key"], json!(Uuid::from_u128(1)));
    connection.refuses(&call, "not_found", false).await;

    let call = connection.receives_a("take").await;
    assert_eq!(call["data"]["key"], json!(Uuid::from_u128(2)), "the next one");
    agent.abort();
}

/// An answer stands in no list of what waits: where some may have been lost, the question is asked again at once.
#[tokio::test]
async fn a_question_is_asked_again_when_answers_may_have_been_lost() {
    let relay = FakeRelay::start().await;
    let url = relay.url();
    let asking = tokio::spawn(async move {
        let agent = Agent::options().id("a").connect(&url).await.unwrap();
        let session = agent.session("42").await.unwrap();
        session.ask_permission(PermissionRequest::new("Bash", "ls", "Lists")).await
    });
    let mut connection = relay.connected(15_000).await;
    let call = connection.receives_a("ask").await;
    connection.acks(&call, json!({"answer": null})).await;
    connection.says(json!({"type": "reset", "channel": "session:42"})).await;

    let call = connection.receives_a("ask").await;
    let answer = json!({"allowed": true, "at": 1, "command_id": "c1"});
    connection.acks(&call, json!({"answer": answer})).await;
    assert!(asking.await.unwrap().unwrap().allowed);
}

#[tokio::test]
async fn entries_are_published_together_or_not_at_all() {
    let relay = FakeRelay::start().await;
    let link = relay.link();
    let mut connection = relay.connected(15_000).await;

    let malformed = NewEntry::new("second", "{");
    let refused = link.enqueue(&channel(), vec![event("first"), malformed]).await;
    assert!(matches!(refused, Err(AppendError::Refused(_))));

    let _receipt = link.enqueue(&channel(), vec![event("third")]).await.unwrap();
    assert_eq!(connection.receives().await["event"], "third");
}

#[tokio::test]
async fn an_event_that_got_a_reply_is_not_said_again_under_its_number() {
    let relay = FakeRelay::start().await;
    let link = relay.link();
    let mut connection = relay.connected(15_000).await;
    let receipt = link.enqueue(&channel(), vec![event("first"), event("second")]).await.unwrap();
    let first = connection.receives().await;
    let second = connection.receives().await;
    connection.refuses(&first, "unavailable", true).await;
    connection.acks(&second, Value::Null).await;
    assert!(matches!(receipt.await, Err(AppendError::Unavailable)));
    drop(connection);

    let mut connection = relay.connected(15_000).await;
    let _receipt = link.enqueue(&channel(), vec![event("third")]).await.unwrap();
    let third = connection.receives().await;
    assert_eq!(third["event"], "third");
    assert!(third["id"].as_u64() > second["id"].as_u64());
}

#[tokio::test]
async fn a_relay_that_says_too_much_at_once_is_left() {
    let relay = FakeRelay::start().await;
    let _link = relay.link();
    let mut connection = relay.connected(15_000).await;
    let much = "x".repeat(2 * 1024 * 1024);
    drop(connection.0.send(Message::text(json!({"type": "ack", "data": much}).to_string())).await);

    relay.connection().await;
}

/// Where nobody listens; on the test's own executor.
async fn nowhere() -> Link {
    Link { target: Target::Relay(FakeRelay::start().await.url()), thread: None }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_cannot_connect_is_told_why() {
    let options = Agent::options().id("a").connect_timeout(Duration::from_secs(10));
    let error = options.attach(nowhere().await).await.unwrap_err();
    let shown = format!("{error:?}");
    assert!(shown.starts_with(&format!("{error}: ")) && shown.contains("refused"), "{shown}");
    let ConnectError::Unreachable { within, source: Some(_), .. } = error else {
        panic!("{error}")
    };
    assert_eq!(within, Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn an_agent_waits_for_a_relay_that_is_not_up_yet_however_long_it_takes() {
    let connecting = Agent::options().id("a").attach(nowhere().await);
    let ended = timeout(Duration::from_secs(3_600), connecting).await;
    assert!(ended.is_err(), "{ended:?}");
}
