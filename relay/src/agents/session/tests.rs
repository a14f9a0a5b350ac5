//! What is kept for an agent behind a relay comes at a pace.

use protocol::AgentFrame;
use protocol::limits::{KEPT_BRIEFLY_BYTES_BURST, KEPT_LONG_BYTES_BURST};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::agents::outbox::outbox;
use crate::memory::Memory;

/// An agent that holds its own lease, and whose calls are done one by one.
struct Asking {
    session: AgentSession,
    outbox: Outbox,
    calls: u64,
}

impl Asking {
    async fn new() -> Self {
        let own = Channel::agent("a").expect("an id");
        let session = AgentSession::new(Journal::in_memory(), own, "ada");
        let mut asking = Self { session, outbox: outbox(&Memory::new(1024 * 1024)).0, calls: 0 };
        asking.does("lease", "agent:a", json!({})).await;
        asking
    }

    /// The reply, or the code with which the call is refused.
    async fn does(&mut self, kind: &str, channel: &str, data: Value) -> String {
        self.calls += 1;
        let mut frame = json!({"type": kind, "id": self.calls, "channel": channel, "data": data});
        if kind == "publish" {
            frame["event"] = json!("x");
        }
        let Ok(AgentFrame::Call(call)) = AgentFrame::parse(&frame.to_string()) else {
            panic!("not a call: {frame}");
        };
        let reply = match &call.body {
            CallBody::Publish(..) => self.session.publish(call).await.await,
            _ => self.session.perform(call, &self.outbox).await,
        };
        match reply {
            AgentMessage::Error { error, .. } => error.code.into(),
            reply => reply.to_text(),
        }
    }

    fn growth(&self) -> &journal::Growth {
        self.session.journal.growth()
    }

    /// Whether nothing that is kept long was counted since all had been used up.
    fn has_room(&self, bytes: usize) -> bool {
        self.growth().admit("ada", Kept::Long, bytes).is_ok()
    }
}

fn question(id: usize, bytes: usize) -> Value {
    let question = json!({"toolName": "x".repeat(bytes)});
    json!({"request_id": format!("q{id}"), "asks": "permission", "question": question, "expires_in_ms": 60_000})
}

#[tokio::test(start_paused = true)]
async fn the_questions_of_one_sender_on_ever_more_channels_come_at_a_pace() {
    let mut agent = Asking::new().await;
    for n in 0..32 {
        let asked = agent.does("ask", "agent:a", question(n, 60_000)).await;
        assert!(asked.contains("ack"), "{n}: {asked}");
    }
    agent.growth().charge("ada", Kept::Long, KEPT_LONG_BYTES_BURST - 36 * 61_100);
    agent.does("lease", "session:42", json!({})).await;

    let mut asked = 0;
    let refused = loop {
        let reply = agent.does("ask", "session:42", question(asked, 60_000)).await;
        match reply.contains("ack") {
            true => asked += 1,
            false => break reply,
        }
    };

    assert_eq!(refused, "rate_limited");
    assert!((1..32).contains(&asked), "{asked}");
    let unasked = agent.does("unask", "agent:a", json!({"request_id": "q1"})).await;
    assert!(unasked.contains("ack"), "what makes room is done: {unasked}");
    tokio::time::advance(Duration::from_secs(1)).await;
    let again = agent.does("ask", "session:42", question(asked, 60_000)).await;
    assert!(again.contains("ack"), "{again}");
}

#[tokio::test(start_paused = true)]
async fn channels_that_were_not_there_before_count_and_others_do_not() {
    let mut agent = Asking::new().await;
    agent.does("publish", "session:1", json!({})).await;
    let all = KEPT_LONG_BYTES_BURST;
    assert!(!agent.has_room(all - 1024) && agent.has_room(all - 2 * 1024), "two of 1 KiB");

    let start = Instant::now();
    for _ in 0..100 {
        agent.does("publish", "session:1", json!({})).await;
        agent.does("lease", "agent:a", json!({})).await;
    }
    assert_eq!(start.elapsed(), Duration::ZERO, "they were there");
    for n in 2..102 {
        agent.does("publish", &format!("session:{n}"), json!({})).await;
        agent.does("lease", &format!("session:{n}"), json!({})).await;
    }
    assert_eq!(start.elapsed().as_secs(), 3, "200 KiB of 64 KiB a second");
}

#[tokio::test(start_paused = true)]
async fn what_an_agent_says_of_commands_comes_at_a_pace() {
    let mut agent = Asking::new().await;
    let kept = Kept::Briefly { is_cancel: false };
    agent.growth().charge("ada", kept, KEPT_BRIEFLY_BYTES_BURST);

    let start = Instant::now();
    for _ in 0..32 {
        let detail = "x".repeat(65_000);
        let key = Uuid::nil();
        let data = json!({"key": key, "status": "applied", "detail": detail});
        agent.does("finish", "agent:a", data).await;
    }

    assert!(start.elapsed() >= Duration::from_millis(1_900), "{:?}", start.elapsed());
}
