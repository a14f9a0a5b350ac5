//! Wrong input is answered with an error that helps; the connection stays open.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tests::Cluster;
use tests::endpoint::Socket;
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

/// What is sent, the code of the answer, and a word that the message must hold.
fn table() -> Vec<(String, &'static str, &'static str)> {
    let long = "x".repeat(129);
    let deep = format!("{}{}", "[".repeat(101), "]".repeat(101));
    let very_deep = "[".repeat(30_000);
    let mut table: Vec<(String, &str, &str)> = [
        ("", "bad_request", "JSON"),
        ("hello", "bad_request", "JSON"),
        ("null", "bad_request", "JSON"),
        ("42", "bad_request", "JSON"),
        (r#""ping""#, "bad_request", "JSON"),
        (r#"[{"type":"ping"}]"#, "bad_request", "JSON"),
        ("{", "bad_request", "JSON"),
        (r#"{"type":"ping"}}"#, "bad_request", "JSON"),
        (r#"{"type":"ping",}"#, "bad_request", "JSON"),
        ("\u{feff}{\"type\":\"ping\"}", "bad_request", ""),
        ("{\"type\":\"pi\0ng\"}", "bad_request", ""),
        ("{}", "bad_request", "type"),
        (r#"{"type":null}"#, "bad_request", "type"),
        (r#"{"type":7}"#, "bad_request", "type"),
        (r#"{"type":"dance"}"#, "bad_request", "dance"),
        (r#"{"type":"event","channel":"session:42"}"#, "bad_request", "event"),
        (r#"{"type":"ping","id":{}}"#, "bad_request", "id"),
        (r#"{"type":"ping","id":true}"#, "bad_request", "id"),
        (r#"{"type":"subscribe"}"#, "bad_request", "channel"),
        (r#"{"type":"subscribe","channels":"session:42"}"#, "bad_request", "channels"),
        (r#"{"type":"subscribe","channels":[42]}"#, "bad_request", "channels"),
        (r#"{"type":"subscribe","channel":["session:42"]}"#, "bad_request", "channel"),
        (r#"{"type":"subscribe","sessionId":42}"#, "bad_request", "sessionId"),
        (r#"{"type":"subscribe","channel":"session:42","since":42}"#, "bad_request", "since"),
        (
            r#"{"type":"subscribe","channel":"session:42","since":"yesterday"}"#,
            "bad_request",
            "yesterday",
        ),
        (
            r#"{"type":"subscribe","channels":["session:1","session:2"],"since":"1-1-1"}"#,
            "bad_request",
            "since",
        ),
        (
            r#"{"type":"subscribe","channel":"session:42","since":{"session:42":5}}"#,
            "bad_request",
            "since",
        ),
        (r#"{"type":"subscribe","channel":"session:42","format":"xml"}"#, "bad_request", "xml"),
        (r#"{"type":"subscribe","channel":"service:sessions"}"#, "bad_request", "request"),
        (r#"{"type":"subscribe","channel":"global:everyone"}"#, "bad_request", "everyone"),
        (r#"{"type":"unsubscribe"}"#, "bad_request", "channel"),
        (r#"{"type":"cancel_agent"}"#, "bad_request", "agent_id"),
        (r#"{"type":"cancel_agent","agent_id":7}"#, "bad_request", "agent_id"),
        (r#"{"type":"cancel_agent","agent_id":"a b"}"#, "bad_request", "agent_id"),
        (r#"{"type":"command","agent_id":"a"}"#, "bad_request", "name"),
        (r#"{"type":"command","name":"go"}"#, "bad_request", "agent_id"),
        (
            r#"{"type":"command","name":"go","agent_id":"a","channel":"agent:a"}"#,
            "bad_request",
            "both",
        ),
        (r#"{"type":"command","name":"go away","agent_id":"a"}"#, "bad_request", "go away"),
        (
            r#"{"type":"command","name":"go","agent_id":"a","command_id":"1"}"#,
            "bad_request",
            "UUID",
        ),
        (r#"{"type":"request","method":"sessions.create"}"#, "bad_request", "id"),
        (r#"{"type":"command","name":"budget_stop","agent_id":"a"}"#, "bad_request", "budget_stop"),
        (
            r#"{"type":"command","name":"go","agent_id":"a","expires_in_ms":86400001}"#,
            "bad_request",
            "86400000",
        ),
        (r#"{"type":"budget_continue"}"#, "bad_request", "request_id"),
        (r#"{"type":"budget_stop","request_id":""}"#, "bad_request", "request_id"),
        (r#"{"type":"permission_response","requestId":"r"}"#, "bad_request", "allowed"),
        (
            r#"{"type":"permission_response","requestId":"r","allowed":"yes"}"#,
            "bad_request",
            "allowed",
        ),
        (r#"{"type":"permission_response","allowed":true}"#, "bad_request", "requestId"),
        (r#"{"type":"auth","token":"t"}"#, "unsupported", "auth"),
    ]
    .map(|(frame, code, word)| (frame.to_owned(), code, word))
    .to_vec();
    // F60: one strict grammar of channel names.
    for channel in [
        "session",
        "session:",
        ":42",
        "kitchen:sink",
        "Session:42",
        "session:4 2",
        "session:a:b",
        "session:*",
        "session:{x}",
        "session:x\\r\\n",
        "session:\\u0000",
        "session:../x",
        "session:é",
        "session:４２",
        " session:42",
        "*",
    ] {
        table.push((format!(r#"{{"type":"subscribe","channel":"{channel}"}}"#), "bad_request", ""));
    }
    table.push((
        format!(r#"{{"type":"subscribe","channel":"session:{long}"}}"#),
        "bad_request",
        "128",
    ));
    table.push((format!(r#"{{"type":"ping","id":"{long}"}}"#), "bad_request", "id"));
    // F52: nesting.
    let command =
        |data: &str| format!(r#"{{"type":"command","agent_id":"a","name":"go","data":{data}}}"#);
    table.push((command(&deep), "bad_request", "data"));
    table.push((command(&very_deep), "bad_request", ""));
    table.push((very_deep, "bad_request", ""));
    table
}

/// F50, F52, F60: each mistake is answered by an `error` that names it, and nothing more happens.
#[tokio::test]
async fn each_malformed_frame_earns_its_error_and_the_connection_lives() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().subscribed_to("session:42").await;

    for (frame, code, word) in table() {
        browser.send_message(Message::text(frame.clone())).await;

        let error = browser.next().await;
        let frame: String = frame.chars().take(120).collect();
        assert_eq!(
            (&error["type"], &error["code"]),
            (&json!("error"), &json!(code)),
            "{frame}: {error}"
        );
        let message = error["message"].as_str().unwrap_or_default();
        assert!(message.contains(word), "`{message}` does not say `{word}` about {frame}");
        assert!(message.len() < 400, "a long message for {frame}: {message}");
        assert_eq!(error["retryable"], false, "{frame}: {error}");
    }

    browser.settle().await;
    cluster.replicas[0].publish_numbers("session:42", 0..1).await;
    browser.expect_numbers("session:42", 0..1).await;
}

/// A request is always answered by a `response`, also where it is wrong.
#[tokio::test]
async fn a_malformed_request_gets_its_response() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().connect().await;
    for request in [
        json!({"type": "request"}),
        json!({"type": "request", "method": "sessions.create", "timeout_ms": 0}),
        json!({"type": "request", "method": "sessions.create", "timeout_ms": 60_001}),
        json!({"type": "request", "method": "sessions.create", "timeout_ms": "soon"}),
        json!({"type": "request", "method": "ses sions"}),
        json!({"type": "request", "method": "x", "channel": "kitchen:sink"}),
    ] {
        let answer = browser.ask(request.clone()).await;

        // An `error` frame with the request's id is an answer, too, where no request was understood.
        let error = if answer["type"] == "response" { &answer["error"] } else { &answer };
        assert_eq!(error["code"], "bad_request", "{request}: {answer}");
    }
}

/// Unknown fields are ignored, whatever they hold: clients of tomorrow talk to relays of today.
#[tokio::test]
async fn unknown_fields_are_ignored() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().connect().await;

    for odd in [r#"{"a":[1,{"b":null}]}"#, "1e400", r#""\ud83d""#, "-0.0", "true"] {
        browser.send_message(Message::text(format!(r#"{{"type":"ping","x":{odd}}}"#))).await;
        assert_eq!(browser.next().await, json!({"type": "pong"}), "{odd}");
    }

    let subscribe =
        json!({"type": "subscribe", "channel": "session:42", "colour": "blue", "since": null});
    assert_eq!(browser.ask(subscribe).await["type"], "subscribed");
}

/// The `id` that a client sends comes back unchanged, on answers and on errors.
#[tokio::test]
async fn the_id_comes_back_on_every_answer() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().connect().await;
    for id in [json!("a"), json!(7), json!(-1.5), json!("\u{1f600}")] {
        for (frame, answer) in [
            (json!({"type": "ping"}), "pong"),
            (json!({"type": "dance"}), "error"),
            (json!({"type": "subscribe", "channel": "session:42"}), "subscribed"),
            (json!({"type": "subscribe", "channel": "nonsense"}), "error"),
            (json!({"type": "unsubscribe", "channel": "session:42"}), "unsubscribed"),
            (json!({"type": "command", "agent_id": "nobody", "name": "go"}), "ack"),
            (json!({"type": "cancel_agent", "agent_id": "nobody"}), "error"),
        ] {
            let mut frame: Value = frame;
            frame["id"] = id.clone();
            browser.send(frame.clone()).await;
            let got =
                browser.wait_for(&format!("{answer} to {frame}"), |f| f["type"] == answer).await;
            assert_eq!(got["id"], id, "{frame}: {got}");
        }
    }
}

/// F50, F51: what is not a text frame of at most 64 KiB ends the connection with the code that says so.
#[tokio::test]
async fn what_is_not_a_frame_of_ours_is_closed_with_its_code() {
    let cluster = Cluster::with_replicas(1).await;
    let text = |bytes: Vec<u8>, opcode: Data, is_final: bool| {
        Message::Frame(Frame::message(bytes, OpCode::Data(opcode), is_final))
    };
    let mut fragments = vec![text(vec![b' '; 16 * 1024], Data::Text, false)];
    fragments.extend((0..4).map(|_| text(vec![b' '; 16 * 1024], Data::Continue, false)));
    for (what, messages, code) in [
        ("a binary frame", vec![Message::binary(b"{}".to_vec())], 1003),
        ("text that is not UTF-8", vec![text(vec![0xff, 0xfe], Data::Text, true)], 1007),
        ("64 KiB and a byte", vec![Message::text(" ".repeat(64 * 1024 + 1))], 1009),
        ("a megabyte", vec![Message::text(" ".repeat(1024 * 1024))], 1009),
        ("80 KiB in fragments", fragments, 1009),
    ] {
        let mut socket = cluster.browser().connect_raw().await;

        for message in messages {
            // The relay may have hung up before the last of them.
            socket.send(message).await.ok();
        }

        assert_eq!(close_code(&mut socket).await, Some(code), "{what}");
    }
}

/// F51: a frame that announces 2^63 bytes is refused for what it announces; nobody waits for it.
#[tokio::test]
async fn a_frame_that_announces_more_than_the_limit_is_refused_before_it_comes() {
    let cluster = Cluster::with_replicas(1).await;
    for announced in [u64::MAX >> 1, 1 << 40, 65 * 1024] {
        let mut socket = cluster.browser().connect_raw().await;

        let mut header = vec![0x81, 0xff];
        header.extend(announced.to_be_bytes());
        header.extend([0, 0, 0, 0]);
        socket.get_mut().write_all(&header).await.unwrap();

        assert_eq!(close_code(&mut socket).await, Some(1009), "{announced} bytes announced");
    }
}

/// A frame of exactly 64 KiB is within the limit.
#[tokio::test]
async fn a_frame_of_exactly_the_limit_is_taken() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().connect().await;
    let ping = r#"{"type":"ping"}"#;

    browser
        .send_message(Message::text(format!("{ping}{}", " ".repeat(64 * 1024 - ping.len()))))
        .await;

    assert_eq!(browser.next().await["type"], "pong");
}

/// The code of the close frame with which the relay ends the connection, if it sent one.
async fn close_code(socket: &mut Socket) -> Option<u16> {
    let reading = async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code.into()),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    };
    tokio::time::timeout(tests::PATIENCE, reading).await.expect("the relay ends the connection")
}

/// A list with the right values in the right order is not an object, whichever door it comes to.
#[tokio::test]
async fn a_list_is_no_object_at_any_door() {
    let cluster = Cluster::with_replicas(1).await;
    let replica = &cluster.replicas[0];
    let event = json!(["session:42", "x", {}, null]);
    let list = replica.post("/api/v1/publish", json!([event, [event]]).to_string()).await.json();
    for result in list["results"].as_array().unwrap() {
        assert_eq!(result["error"]["code"], "bad_request", "{list}");
    }
    for (path, body) in [
        ("/api/v1/commands", json!(["a1", "go"])),
        ("/api/v1/requests", json!(["sums.add", {}])),
        ("/api/v1/connections/x/messages", json!(["x", {}])),
    ] {
        let reply = replica.post(path, body.to_string()).await;
        assert_eq!((reply.status, &*reply.error_code()), (400, "bad_request"), "{path}");
    }

    let mut browser = cluster.browser().connect().await;
    let mut agent = cluster.browser().path("/ws/agents/a1").connect().await;
    for (is_agent, frame) in [
        (false, json!(["subscribe", "session:42"])),
        (true, json!(["lease", 1, "agent:a1", {}])),
        (true, json!([1, "lease", "agent:a1", {}, null])),
    ] {
        let peer = if is_agent { &mut agent } else { &mut browser };
        peer.send(frame.clone()).await;
        let answer = peer.wait_for_type("error").await;
        assert_eq!(answer["code"], "bad_request", "{frame}: {answer}");
    }
    // The fields of what a call asks for, too.
    for (id, kind, data, code) in [
        (1, "lease", json!({}), Value::Null),
        (2, "publish", json!(["x", {}]), json!("bad_request")),
        (3, "ask", json!(["r1", "permission", {}, 60_000]), json!("bad_request")),
        (4, "lease", json!([null, null]), json!("bad_request")),
    ] {
        agent.send(json!({"type": kind, "id": id, "channel": "agent:a1", "data": data})).await;
        let answer = agent.wait_for("the answer", |frame| frame["id"] == id).await;
        assert_eq!(answer["code"], code, "{kind} {data}: {answer}");
    }
    let events = replica.get("/api/v1/channels/session:42/events").await.json();
    assert_eq!(events["events"], json!([]), "nothing was published");
}
