//! What only a real server can do to a journal.

use journal::{Journal, Name, Since, Update, Updates};
use protocol::UNREADABLE;
use redis::AsyncCommands;

use crate::{Backend, append, entry, events, next_about};

async fn backend() -> (Backend, redis::aio::MultiplexedConnection) {
    let backend = Backend::redis(journal::Retention::default()).await;
    let connection = backend.server.as_ref().expect("a backend on redis").connection().await;
    (backend, connection)
}

fn key(name: &Name) -> String {
    format!(
        "relay:{{{}}}:events:{}",
        protocol::partition_tag(name.channel.partition()),
        name.channel
    )
}

async fn next_n(updates: &mut Updates) -> Vec<u64> {
    match next_about(updates, "entries").await {
        Update::Entries { entries, .. } => entries.iter().map(|entry| entry.offset.n).collect(),
        other => panic!("expected entries, got {other:?}"),
    }
}

/// F14
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushed_scripts_are_loaded_again_and_the_order_stays() {
    let (backend, mut connection) = backend().await;
    let name = events("flush");
    let mut receipts = Vec::new();

    for i in 0..400 {
        if i % 50 == 0 {
            let _: () =
                redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut connection).await.unwrap();
        }
        receipts.push(backend.journal.enqueue(&name, vec![entry(&i.to_string())]).await.unwrap());
    }
    for receipt in receipts {
        receipt.await.unwrap();
    }

    let page = backend.journal.read(&name, Since::Start, 1000).await.unwrap();
    let texts: Vec<&str> = page.entries.iter().map(|entry| &*entry.data).collect();
    let expected: Vec<String> = (0..400).map(|i| format!(r#"{{"delta":"{i}"}}"#)).collect();
    assert_eq!(texts, expected);
}

/// F38
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_foreign_hand_wrote_is_unreadable_but_leaves_no_gap() {
    let (backend, mut connection) = backend().await;
    let name = events("foreign");
    let (follower, mut updates) = backend.journal.follow();
    follower.follow(&name, None);
    next_about(&mut updates, "live").await;
    let epoch = append(&backend.journal, &name, "ours").await.epoch;
    assert_eq!(next_n(&mut updates).await, [1]);

    let id: String =
        connection.xadd(key(&name), format!("{epoch}-*"), &[("e", b"\xff{")]).await.unwrap();
    assert_eq!(id, format!("{epoch}-2"));
    append(&backend.journal, &name, "ours again").await;

    assert_eq!(next_n(&mut updates).await, [2, 3]);
    let page = backend.journal.read(&name, Since::Start, 10).await.unwrap();
    let names: Vec<&str> = page.entries.iter().map(|entry| &*entry.name).collect();
    assert_eq!(names, ["text_delta", UNREADABLE, "text_delta"]);
}

/// A notification that is lost costs time, never an entry, even if it was the last one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_entry_whose_bell_was_lost_is_found() {
    let (backend, mut connection) = backend().await;
    let name = events("silent");
    let (follower, mut updates) = backend.journal.follow();
    follower.follow(&name, None);
    next_about(&mut updates, "live").await;
    let epoch = append(&backend.journal, &name, "heard").await.epoch;
    assert_eq!(next_n(&mut updates).await, [1]);

    // Appended, but not published: what is left of an append whose notification did not get through.
    let row = "1795225059349123 text_delta - {\"delta\":\"unheard\"}";
    let _: String = connection.xadd(key(&name), format!("{epoch}-*"), &[("e", row)]).await.unwrap();

    assert_eq!(next_n(&mut updates).await, [2]);
}

/// F10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_link_is_remade_and_misses_nothing() {
    let (backend, mut connection) = backend().await;
    let name = events("killed");
    let (follower, mut updates) = backend.journal.follow();
    follower.follow(&name, None);
    next_about(&mut updates, "live").await;

    let mut seen = Vec::new();
    for i in 0..300 {
        if i % 30 == 0 {
            let kill = redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub").to_owned();
            let _: u64 = kill.query_async(&mut connection).await.unwrap();
        }
        append(&backend.journal, &name, &i.to_string()).await;
    }
    while seen.len() < 300 {
        seen.extend(next_n(&mut updates).await);
    }

    assert_eq!(seen, (1..=300).collect::<Vec<_>>());
}

/// F09: what was acknowledged is lost, and nothing that is kept can close the hole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_lost_everything_is_told_apart_by_its_epoch() {
    let (backend, mut connection) = backend().await;
    let name = events("lost");
    let (follower, mut updates) = backend.journal.follow();
    follower.follow(&name, None);
    next_about(&mut updates, "live").await;
    let before = append(&backend.journal, &name, "1").await;
    assert_eq!(next_n(&mut updates).await, [1]);

    let _: () = redis::cmd("FLUSHALL").query_async(&mut connection).await.unwrap();
    let after = append(&backend.journal, &name, "2").await;

    assert_ne!(before.epoch, after.epoch);
    let reset = next_about(&mut updates, "a reset").await;
    assert!(matches!(reset, Update::Reset { reason: journal::Reason::Epoch, .. }), "{reset:?}");
    assert_eq!(next_n(&mut updates).await, [1, 2], "what the producer still kept is there again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_wait_for_a_server_that_is_not_there_yet() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let journal = Journal::open(&format!("redis://127.0.0.1:{port}")).unwrap();

    assert!(journal.ready().await.is_err());
    let receipt = journal.enqueue(&events("early"), vec![entry("x")]).await.unwrap();

    let waited = tokio::time::timeout(std::time::Duration::from_millis(300), receipt).await;
    assert!(waited.is_err(), "nothing can have been appended");
}

#[test]
fn an_invalid_url_says_what_to_write() {
    for url in ["http://x", "redis:/x", "localhost:6379", "redis://"] {
        let error = Journal::open(url).unwrap_err().to_string();
        assert!(error.contains("write redis://"), "{error}");
    }
    for prefix in ["", "a:b", "{1}", "A"] {
        let error = Journal::open(&format!("redis://h/?prefix={prefix}")).unwrap_err().to_string();
        assert!(error.contains("the prefix must be"), "{error}");
    }
    for url in ["redis://user:secret@:x/", "user:secret@host"] {
        let error = Journal::open(url).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}

/// Two deployments on one Redis, with the same names: each must see only its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployments_with_different_prefixes_do_not_affect_each_other() {
    let (backend, mut connection) = backend().await;
    let url = backend.server.as_ref().unwrap().url();
    let [one, two] =
        ["one", "two"].map(|prefix| Journal::open(&format!("{url}/?prefix={prefix}")).unwrap());
    let name = events("shared");
    let (follower, mut updates) = two.follow();
    follower.follow(&name, None);
    let live = next_about(&mut updates, "live").await;
    one.append(&name, vec![entry("of one").with_key("k")]).await.unwrap();
    let lease = one.lease(&"agent:a".parse().unwrap(), "a", None, None).await.unwrap();

    let own = two.append(&name, vec![entry("of two").with_key("k")]).await.unwrap();

    assert_eq!(
        (live, own[0].offset.unwrap().n),
        (Update::Live { name: name.clone(), head: None }, 1)
    );
    let Update::Entries { entries, .. } = next_about(&mut updates, "its own entry").await else {
        panic!("entries must follow")
    };
    assert_eq!(&*entries[0].data, r#"{"delta":"of two"}"#);
    let alive = async |of: &Journal| of.alive(None, 10).await.unwrap().agents.len();
    assert!(alive(&two).await == 0 && alive(&one).await == 1);
    drop(lease);
    let keys: Vec<String> = connection.keys("*").await.unwrap();
    let others = keys.iter().filter(|key| !key.starts_with("one:") && !key.starts_with("two:"));
    // The backend's own journal has written its settings.
    assert_eq!(
        others.filter(|key| !key.ends_with(":cfg")).collect::<Vec<_>>(),
        Vec::<&String>::new()
    );
}
