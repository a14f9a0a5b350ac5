//! Conversations without a socket: frames, finished work and the time go in; frames, work and close codes come out.

use std::num::NonZeroUsize;

use journal::{Journal, Keep, Name, NewEntry, Retention};
use protocol::Channel;
use serde_json::{Value, json};

use super::*;
use crate::memory::Memory;
use crate::supervisor::Supervisor;

const MIB: usize = 1024 * 1024;

struct Viewer {
    journal: Journal,
    events: Arc<Events>,
    wake: Arc<Wake>,
    conversation: Conversation,
}

impl Viewer {
    fn new() -> Self {
        Self::on(Journal::in_memory())
    }

    fn on(journal: Journal) -> Self {
        Self::with(journal, None, None)
    }

    fn with(journal: Journal, key: Option<Key>, token: Option<&str>) -> Self {
        let events = Events::start(
            &journal,
            NonZeroUsize::MIN,
            &Memory::new(usize::MAX),
            &Supervisor::new(),
        );
        let wake = Arc::<Wake>::default();
        let principal = Arc::new(auth::authenticate(key.as_ref(), token).unwrap());
        let opening = Opening {
            peer: SocketAddr::from(([127, 0, 0, 1], 1)),
            format: Format::Envelope,
            heartbeat: Heartbeat::Never,
            subscribe: None,
        };
        let conversation = Conversation::open(
            Arc::clone(&events),
            Arc::clone(&wake),
            (key, principal),
            "here-1",
            opening,
            Instant::now(),
        );
        Self { journal, events, wake, conversation }
    }

    fn says(&mut self, frame: &Value) {
        self.conversation.on_text(&frame.to_string(), Instant::now(), false);
    }

    fn receives(&mut self) -> Vec<Value> {
        let mut out = Vec::new();
        self.conversation.take(&mut out);
        out.iter().map(|frame| serde_json::from_str(frame.text()).unwrap()).collect()
    }

    fn kinds(&mut self) -> Vec<String> {
        let kind = |frame: Value| frame["type"].as_str().unwrap().to_owned();
        self.receives().into_iter().map(kind).collect()
    }

    /// Lets the feed go on until there is something to be read.
    async fn read(&mut self) -> Read {
        loop {
            std::future::poll_fn(|cx| self.wake.poll_woken(cx)).await;
            assert_eq!(self.kinds(), [""; 0], "nothing before it is read");
            let work = self.conversation.take_work();
            if let Some(Work::Read(read)) = work.into_iter().next() {
                return read;
            }
        }
    }

    async fn append(&self, channel: &str, count: usize) {
        let name = Name::events(channel.parse::<Channel>().unwrap());
        let entries = (0..count).map(|i| NewEntry::new("number", i.to_string())).collect();
        self.journal.append(&name, entries).await.unwrap();
    }
}

fn subscribe(channel: &str) -> Value {
    json!({"type": "subscribe", "channel": channel, "since": "start", "id": channel})
}

#[tokio::test]
async fn a_subscriber_is_answered_with_the_page_that_was_read_for_it() {
    let mut viewer = Viewer::new();
    viewer.append("agent:a", 3).await;
    assert_eq!(viewer.kinds(), ["connected"]);

    viewer.says(&subscribe("agent:a"));
    let Read::Page(ticket, request) = viewer.read().await else { panic!("a page is read") };
    let (page, pending) = viewer.events.read(&request).await.unwrap();
    viewer.conversation.on_done(Done::Page(ticket, page, pending));

    assert_eq!(viewer.kinds(), ["subscribed", "event", "event", "event", "caught_up"]);
}

/// A journal that is read from its oldest entry on does not look whole where it is not.
#[tokio::test]
async fn what_began_earlier_than_what_is_retained_is_said_to_be_truncated() {
    let mut viewer = Viewer::on(Journal::in_memory_keeping(keeping(10)));
    viewer.append("agent:a", 11).await;
    viewer.append("agent:b", 10).await;
    for (channel, truncated) in [("agent:a", json!(true)), ("agent:b", Value::Null)] {
        viewer.says(&subscribe(channel));
        let _ = viewer.receives();
        let Read::Page(ticket, request) = viewer.read().await else { panic!("a page is read") };
        let (page, pending) = viewer.events.read(&request).await.unwrap();
        viewer.conversation.on_done(Done::Page(ticket, page, pending));

        let subscribed = viewer.receives().remove(0);

        assert_eq!(
            (&subscribed["type"], &subscribed["recovered"]),
            (&json!("subscribed"), &json!(true))
        );
        assert_eq!(subscribed["truncated"], truncated, "{subscribed}");
    }
}

/// Who waited for the first event, and was too slow for it, is told of the loss.
#[tokio::test]
async fn who_waited_for_the_first_event_and_missed_it_gets_a_reset() {
    let mut viewer = Viewer::on(Journal::in_memory_keeping(keeping(10)));
    viewer.says(&json!({"type": "subscribe", "channel": "project:p"}));
    let mut kinds = Vec::new();
    while kinds.len() < 3 {
        std::future::poll_fn(|cx| viewer.wake.poll_woken(cx)).await;
        kinds.extend(viewer.kinds());
    }
    assert_eq!(kinds, ["connected", "subscribed", "caught_up"]);

    // The feed has gone past what the viewer has not looked at yet.
    let membership = viewer.events.join(&"project:p".parse().unwrap(), &Arc::default(), 0);
    viewer.append("project:p", 3_000).await;
    while membership.watched().head().flatten().is_none_or(|head| head.n < 3_000) {
        tokio::task::yield_now().await;
    }
    let Read::Page(ticket, request) = viewer.read().await else { panic!("a page is read") };
    let (page, pending) = viewer.events.read(&request).await.unwrap();
    viewer.conversation.on_done(Done::Page(ticket, page, pending));

    let reset = viewer.receives().remove(0);
    assert_eq!(
        (&reset["type"], &reset["reason"]),
        (&json!("reset"), &json!("retention")),
        "{reset}"
    );
    assert_eq!(reset["truncated"], true, "{reset}");
}

fn keeping(entries: u64) -> Retention {
    let other = Keep { entries, ..Retention::default().other };
    Retention { other, ..Retention::default() }
}

/// One page at a time; when nobody wants it any more the next one has its turn.
#[tokio::test]
async fn a_page_that_nobody_wants_any_more_is_forgotten_and_the_next_is_read() {
    let mut viewer = Viewer::new();
    viewer.append("agent:a", 1).await;
    viewer.append("agent:b", 1).await;
    assert_eq!(viewer.kinds(), ["connected"]);
    viewer.says(&subscribe("agent:a"));
    let Read::Page(first, _) = viewer.read().await else { panic!("a page is read") };
    viewer.says(&subscribe("agent:b"));
    let membership = viewer.events.join(&"agent:b".parse().unwrap(), &Arc::default(), 0);
    while membership.watched().head().is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(viewer.kinds(), [""; 0]);
    assert!(viewer.conversation.take_work().is_empty(), "one page at a time");

    viewer.says(&json!({"type": "unsubscribe", "channel": "agent:a"}));

    let work = viewer.conversation.take_work();
    let [Work::Read(Read::Forget(slot)), Work::Read(Read::Page(second, _))] = &work[..] else {
        panic!("{work:?}")
    };
    assert_eq!(*slot, first.slot);
    assert_ne!(first, *second);
}

/// Which ids were answered, and how.
fn answers(frames: &[Value]) -> Vec<(u64, String)> {
    let answer = |frame: &Value| {
        let how = frame["code"].as_str().or(frame["type"].as_str()).unwrap();
        Some((frame["id"].as_u64()?, how.to_owned()))
    };
    frames.iter().filter_map(answer).collect()
}

/// Each channel that a frame names has one answer, whatever comes before it is given.
#[tokio::test]
async fn a_subscribe_that_a_later_frame_supersedes_is_told_so() {
    let mut viewer = Viewer::new();
    viewer.append("agent:a", 1).await;
    assert_eq!(viewer.kinds(), ["connected"]);
    let ask = |kind: &str, id: u64, since: Value| json!({"type": kind, "channel": "agent:a", "id": id, "since": since});

    viewer.says(&ask("subscribe", 1, json!("start")));
    viewer.says(&ask("subscribe", 2, json!("start")));
    viewer.says(&ask("unsubscribe", 3, Value::Null));

    let (superseded, unsubscribed) = ("superseded".to_owned(), "unsubscribed".to_owned());
    let answered = answers(&viewer.receives());
    assert_eq!(answered, [(1, superseded.clone()), (2, superseded.clone()), (3, unsubscribed)]);

    viewer.conversation.take_work();
    // Beyond sixteen the oldest is.
    (10..30)
        .for_each(|id| viewer.says(&json!({"type": "subscribe", "channel": "agent:a", "id": id})));
    let answered = answers(&viewer.receives());
    assert_eq!(answered, (10..14).map(|id| (id, superseded.clone())).collect::<Vec<_>>());
    let Read::Pending(ticket, question) = viewer.read().await else { panic!("what is pending") };
    let pending = viewer.events.ask(&question).await.unwrap();
    viewer.conversation.on_done(Done::Pending(ticket, pending));
    let answered = answers(&viewer.receives());
    assert_eq!(answered, (14..30).map(|id| (id, "subscribed".to_owned())).collect::<Vec<_>>());
}

/// While a command is carried out no other frame is wanted, so that their order is that of their frames.
#[tokio::test]
async fn commands_are_carried_out_one_after_the_other() {
    let mut viewer = Viewer::new();
    assert_eq!(viewer.kinds(), ["connected"]);
    viewer.says(&json!({"type": "command", "agent_id": "a", "name": "go", "id": 1}));
    assert!(!viewer.conversation.wants_input());
    let mut work = viewer.conversation.take_work();
    let Some(Work::Command(id, command)) = work.pop() else { panic!("{work:?}") };
    assert_eq!(command.name, "go");

    let refusal = Refusal::new(ErrorCode::AgentUnavailable, "no agent");
    viewer.conversation.on_done(Done::Accepted(id, Err(refusal)));

    assert!(viewer.conversation.wants_input());
    let answer = viewer.receives().pop().unwrap();
    assert_eq!((&answer["id"], &answer["code"]), (&json!(1), &json!("agent_unavailable")));
}

/// All that is said to it while nothing can be written.
#[tokio::test]
async fn what_waits_for_a_viewer_is_less_than_a_mib() {
    let mut viewer = Viewer::new();
    let names: Vec<String> = (0..5_000).map(|i| format!("nonsense-{i}")).collect();
    let floods = [
        json!({"type": "ping", "id": "x".repeat(100)}),
        json!({"type": "dance", "id": "x".repeat(100)}),
        json!({"type": "unsubscribe", "channels": names}),
        json!({"type": "subscribe", "channels": names}),
    ];
    for flood in floods {
        let flood = flood.to_string();
        for _ in 0..20_000 {
            if viewer.conversation.wants_input() {
                viewer.conversation.on_text(&flood, Instant::now(), true);
            }
            viewer.conversation.on_message(flood.clone());
        }
        let held = viewer.conversation.outbox.bytes();
        assert!(held < MIB, "{held} bytes wait");
        viewer.receives();
    }
}

/// However many pings a viewer sends, its frames are still received.
#[tokio::test]
async fn a_viewer_that_only_pings_and_does_not_read_can_still_cancel() {
    let mut viewer = Viewer::new();
    let ping = json!({"type": "ping", "id": "x".repeat(100)}).to_string();
    for _ in 0..10_000 {
        assert!(viewer.conversation.wants_input());
        viewer.conversation.on_text(&ping, Instant::now(), true);
    }

    let cancel = json!({"type": "cancel_agent", "agent_id": "a"}).to_string();
    viewer.conversation.on_text(&cancel, Instant::now(), true);

    assert!(matches!(viewer.conversation.take_work()[..], [Work::Command(..)]));
}

#[tokio::test]
async fn a_change_of_redis_and_a_leaving_are_said_once() {
    let mut viewer = Viewer::new();
    assert_eq!(viewer.kinds(), ["connected"]);
    for status in [Status::Ok, Status::Degraded, Status::Degraded, Status::Ok] {
        viewer.conversation.on_status(status);
    }
    for _ in 0..2 {
        viewer.conversation.on_leaving(Instant::now(), Duration::from_secs(1));
    }
    assert_eq!(viewer.kinds(), ["relay_status", "relay_status", "reconnect"]);

    let end = viewer.conversation.deadline();
    viewer.conversation.on_time(end, &Activity::default());

    assert_eq!(viewer.conversation.end(), Some(CloseCode::Restart));
}

/// Beyond the burst each channel is refused by itself, with the time to wait; leaving is never refused.
#[tokio::test]
async fn subscribing_has_a_pace_and_leaving_has_none() {
    let mut viewer = Viewer::new();
    assert_eq!(viewer.kinds(), ["connected"]);
    let now = Instant::now();
    let say = |viewer: &mut Viewer, frame: Value| {
        viewer.conversation.on_text(&frame.to_string(), now, false);
    };
    let ask = |kind: &str, id: usize| json!({"type": kind, "channel": "agent:a", "id": id});
    for id in 0..SUBSCRIBES_BURST {
        say(&mut viewer, ask("subscribe", id));
        say(&mut viewer, ask("unsubscribe", id));
    }
    assert!(viewer.receives().iter().all(|frame| frame["code"] != "rate_limited"));

    say(&mut viewer, json!({"type": "subscribe", "channels": ["agent:a", "agent:b"]}));
    let refused = viewer.receives();
    let about: Vec<&str> = refused.iter().filter_map(|frame| frame["channel"].as_str()).collect();
    assert_eq!(about, ["agent:a", "agent:b"]);
    for frame in &refused {
        assert_eq!((&frame["code"], &frame["retryable"]), (&json!("rate_limited"), &json!(true)));
        assert!(frame["retry_after_ms"].as_u64().unwrap() <= 20, "{frame}");
    }
    // A Stop behind them is received.
    viewer.says(&json!({"type": "cancel_agent", "agent_id": "a"}));
    assert!(viewer.conversation.take_work().iter().any(|work| matches!(work, Work::Command(..))));
}

/// What cannot be read, again and again, is no client's mistake any more; what is refused is one.
#[tokio::test]
async fn frames_that_cannot_be_read_end_a_connection_and_refusals_do_not() {
    let mut viewer = Viewer::new();
    let refused = json!({"type": "cancel_agent"}).to_string();
    let unreadable = ["no JSON", "[]", "{}", r#"{"type": 5}"#, r#"{"type": "dance"}"#];
    let say = |viewer: &mut Viewer, text: &str| {
        viewer.conversation.on_text(text, Instant::now(), false);
        viewer.receives();
    };
    (0..10 * UNREADABLE_MAX).for_each(|_| say(&mut viewer, &refused));
    for text in unreadable.iter().cycle().take(UNREADABLE_MAX - 1) {
        say(&mut viewer, text);
    }
    say(&mut viewer, &refused);
    for text in unreadable.iter().cycle().take(UNREADABLE_MAX - 1) {
        say(&mut viewer, text);
    }
    assert_eq!(viewer.conversation.end(), None);

    say(&mut viewer, "no JSON");

    assert_eq!(viewer.conversation.end(), Some(CloseCode::Unreadable));
}

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// A token of `user` that may subscribe to these channels and ends in so many seconds.
fn token(user: &str, channels: &[&str], ends_in: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({"sub": user, "exp": now + ends_in, "relay": {"subscribe": channels}});
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET).unwrap();
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
}

fn with_token(token: &str) -> Viewer {
    Viewer::with(Journal::in_memory(), Some(Key::hs256(SECRET).unwrap()), Some(token))
}

#[tokio::test]
async fn a_new_token_takes_the_place_of_the_old_one_and_ends_what_it_does_not_permit() {
    let mut viewer = with_token(&token("ada", &["session:1", "session:2"], 30));
    viewer.receives();
    for channel in ["session:1", "session:2"] {
        viewer.says(&json!({"type": "subscribe", "channel": channel}));
    }
    let before = viewer.conversation.deadline();

    viewer.says(&json!({"type": "auth", "id": 7, "token": token("ada", &["session:2"], 3_600)}));

    let told = viewer.receives();
    assert_eq!(
        (&told[0]["type"], &told[0]["id"]),
        (&json!("authenticated"), &json!(7)),
        "{told:?}"
    );
    assert!(told[0]["expires_at"].as_u64().unwrap() > 1_700_000_000_000, "{told:?}");
    // It had not been answered yet.
    assert_eq!(
        (&told[1]["code"], &told[1]["channel"]),
        (&json!("superseded"), &json!("session:1"))
    );
    let ended = json!({"type": "unsubscribed", "channel": "session:1", "reason": "revoked"});
    assert_eq!(told[2..], [ended]);
    assert!(viewer.conversation.deadline() > before, "its end is the new one's");
    viewer.says(&subscribe("session:1"));
    assert_eq!(viewer.receives()[0]["code"], "not_found");
}

#[tokio::test]
async fn a_token_that_is_refused_changes_nothing() {
    let mut viewer = with_token(&token("ada", &["session:1"], 3_600));
    viewer.receives();
    for (bad, says) in [
        (token("ben", &["session:1"], 3_600), "another user"),
        (token("ada", &["session:1"], 0), "has ended"),
        ("abc".to_owned(), "not a JWT"),
    ] {
        viewer.says(&json!({"type": "auth", "id": 1, "token": bad}));
        let error = &viewer.receives()[0];
        assert_eq!(error["code"], "unauthorized", "{error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    }
    let good = json!({"type": "auth", "token": token("ada", &["session:2"], 3_600)}).to_string();
    let now = Instant::now();
    (0..6).for_each(|_| viewer.conversation.on_text(&good, now, false));
    let last = viewer.receives().pop().unwrap();
    assert_eq!(last["code"], "rate_limited", "five at once, then one a second: {last}");
    assert!(last["retry_after_ms"].as_u64().is_some_and(|ms| ms <= 1_000), "{last}");
}

#[tokio::test]
async fn a_relay_that_asks_for_no_tokens_takes_none() {
    let mut viewer = Viewer::new();
    viewer.receives();
    viewer.says(&json!({"type": "auth", "token": "x"}));
    assert_eq!(viewer.receives()[0]["code"], "unsupported");
}

/// The clock of the transport may be late: a frame after the end is not looked at.
#[tokio::test]
async fn after_the_end_of_its_token_no_frame_of_a_viewer_is_looked_at() {
    let mut viewer = with_token(&token("ada", &["session:1"], 30));
    viewer.receives();
    let later = Instant::now() + Duration::from_secs(31);

    viewer.conversation.on_text(&subscribe("session:1").to_string(), later, false);

    assert_eq!(viewer.conversation.end(), Some(CloseCode::TokenExpired));
    assert_eq!(viewer.kinds(), [""; 0]);
}
