//! The vocabulary that our first users' programs use already, tested with Node's `ws`.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tests::Cluster;
use tests::process::Process;

/// A Node program that is connected to a replica.
struct Node {
    process: Process,
}

impl Node {
    fn connect(cluster: &Cluster, path: &str, frames: &[Value]) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("node");
        assert!(
            dir.join("node_modules/ws").is_dir(),
            "Node's `ws` is missing. Run: npm ci --prefix tests/node   (./test.sh does it)"
        );
        let mut command = Command::new("node");
        let url = format!("ws://{}{path}", cluster.replicas[0].address());
        command.arg(dir.join("listen.js")).arg(url).arg(Value::from(frames.to_vec()).to_string());
        let help =
            "This scenario needs Node (18 or newer). Debian, Ubuntu: apt-get install nodejs npm";
        Self { process: Process::spawn("node", command, help) }
    }

    /// Waits for a frame of a type.
    async fn frame(&self, kind: &str) -> Value {
        let read =
            |line: &str| serde_json::from_str(line).ok().filter(|f: &Value| f["type"] == kind);
        self.process.log().wait(&format!("Node receives a `{kind}`"), read).await
    }
}

/// A session page: `sessionId` in, flat session events out.
#[tokio::test]
async fn a_session_page_subscribes_by_session_id_and_receives_flat_events() {
    let cluster = Cluster::with_replicas(1).await;
    let node = Node::connect(&cluster, "/ws", &[json!({"type": "subscribe", "sessionId": "s1"})]);
    let subscribed = node.frame("subscribed").await;
    assert_eq!(subscribed["sessionId"], "s1", "{subscribed}");
    node.frame("caught_up").await;

    let run = [
        ("text_delta", json!({"delta": "Hel", "turnId": "t1"})),
        (
            "tool_start",
            json!({"toolName": "Bash", "toolUseId": "u1", "toolInput": {"command": "ls"}}),
        ),
        (
            "tool_result",
            json!({"toolUseId": "u1", "toolName": "Bash", "result": "x", "isError": false}),
        ),
        (
            "permission_request",
            json!({"request": {"requestId": "r1", "toolName": "Bash", "command": "rm", "description": "d"}}),
        ),
        ("text_complete", json!({"text": "Hello", "isIntermediate": false, "turnId": "t1"})),
        ("error", json!({"error": "the model is away"})),
        ("complete", json!({})),
    ];
    for (name, data) in run {
        let offset = cluster.replicas[0].publish("session:s1", name, data.clone()).await;

        let mut event = node.frame(name).await;
        let timestamp = event["timestamp"].take();
        assert!(timestamp.as_str().is_some_and(|text| text.ends_with('Z')), "{timestamp}");
        let mut expected = data;
        for (field, value) in [
            ("type", json!(name)),
            ("sessionId", json!("s1")),
            ("offset", json!(offset)),
            ("timestamp", Value::Null),
        ] {
            expected[field] = value;
        }
        assert_eq!(event, expected);
    }
}

/// A plan page: `plan_id` in, flat step events out.
#[tokio::test]
async fn a_plan_page_subscribes_by_plan_id_and_receives_flat_steps() {
    let cluster = Cluster::with_replicas(1).await;
    let node = Node::connect(&cluster, "/ws", &[json!({"type": "subscribe", "plan_id": "p1"})]);
    let subscribed = node.frame("subscribed").await;
    assert_eq!(subscribed["plan_id"], "p1", "{subscribed}");
    node.frame("caught_up").await;

    let step = json!({"step_index": 0, "step_name": "read", "status": "running"});
    cluster.replicas[0].publish("plan:p1", "step_status", step).await;
    cluster.replicas[0].publish("plan:p1", "plan_completed", json!({"summary": "done"})).await;

    let step = node.frame("step_status").await;
    assert_eq!((&step["plan_id"], &step["status"]), (&json!("p1"), &json!("running")), "{step}");
    let completed = node.frame("plan_completed").await;
    assert_eq!((&completed["plan_id"], &completed["summary"]), (&json!("p1"), &json!("done")));
}

/// An answer to a permission request is understood as they write it; this one comes to a question that
/// nobody asked.
#[tokio::test]
async fn a_permission_response_is_answered() {
    let cluster = Cluster::with_replicas(1).await;
    let answer = json!({"type": "permission_response", "requestId": "r1", "allowed": true,
        "alwaysAllow": false, "id": "k1"});
    let node = Node::connect(&cluster, "/ws", &[answer, json!({"type": "ping"})]);

    let error = node.frame("error").await;

    assert_eq!((&error["code"], &error["id"]), (&json!("not_found"), &json!("k1")), "{error}");
    node.frame("pong").await;
}

/// The event bus: `/ws/events` carries the agents' lifecycle, flat.
#[tokio::test]
async fn the_event_bus_carries_the_lifecycle_flat() {
    let cluster = Cluster::with_replicas(1).await;
    let node = Node::connect(&cluster, "/ws/events", &[]);
    node.frame("caught_up").await;

    let data = json!({"agent_id": "a1", "reason": "by hand"});
    cluster.replicas[0].publish("global:events", "agent_cancelled", data).await;

    let event = node.frame("agent_cancelled").await;
    assert_eq!(
        (&event["agent_id"], &event["reason"]),
        (&json!("a1"), &json!("by hand")),
        "{event}"
    );
    assert_eq!(event["channel"], "global:events", "{event}");
}

/// A named connection is its session's.
#[tokio::test]
async fn a_named_connection_receives_its_session() {
    let cluster = Cluster::with_replicas(1).await;
    cluster.replicas[0].publish("session:s1", "text_complete", json!({"text": "before"})).await;
    let node = Node::connect(&cluster, "/ws/s1?since=start", &[]);

    let event = node.frame("text_complete").await;

    assert_eq!((&event["sessionId"], &event["text"]), (&json!("s1"), &json!("before")), "{event}");
}
