//! A consumer that does not ask for updates: nothing is read for it meanwhile, and nothing is lost.

use std::time::Duration;

use journal::{NewEntry, Retention, Since, Update};

use crate::{Backend, append, events, next, next_about, on_both};

/// So many entries of 60 KiB are more than all buffers between Redis and the consumer hold, or the queue in memory.
const MANY: u64 = 600;

on_both! {
    async fn a_consumer_that_stood_still_goes_on_without_a_gap(backend) keeping(large()) {
        let name = events("still");
        if let Some(server) = &backend.server {
            let mut limit = redis::cmd("CONFIG");
            limit.arg("SET").arg("client-output-buffer-limit").arg("pubsub 1mb 0 0");
            limit.query_async::<()>(&mut server.connection().await).await.unwrap();
        }
        let (follower, mut updates) = backend.journal.follow();
        follower.follow(&name, None);
        next_about(&mut updates, "live").await;
        let data = format!("\"{}\"", "x".repeat(60 * 1024));
        let mut receipts = Vec::new();
        for _ in 0..MANY {
            let entry = NewEntry::new("e", data.clone());
            receipts.push(backend.journal.enqueue(&name, vec![entry]).await.unwrap());
        }
        for receipt in receipts {
            receipt.await.unwrap();
        }

        let (mut seen, mut breaks) = (0, 0);
        while seen < MANY {
            match next(&mut updates, "what was appended meanwhile").await {
                Update::Entries { entries, .. } => {
                    for entry in entries {
                        assert_eq!(entry.offset.n, seen + 1);
                        seen += 1;
                    }
                }
                Update::Link { up: false } => breaks += 1,
                Update::Link { up: true } => {}
                other => panic!("{other:?}"),
            }
        }
        // Otherwise nothing was put to the test.
        assert_eq!(breaks > 0, backend.server.is_some());
        append(&backend.journal, &name, "live again").await;
        next_about(&mut updates, "the next entry").await;
    }
}

/// A session's journal that keeps all of it.
fn large() -> Retention {
    let mut retention = Retention::default();
    retention.session.bytes = 128 * 1024 * 1024;
    retention
}

/// The link would have probed itself, and heard nothing of it, since nobody has read it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_is_not_cut_because_nobody_read_it() {
    let backend = Backend::redis(Retention::default()).await;
    let (follower, mut updates) = backend.journal.follow();
    let (one, two) = (events("one"), events("two"));
    follower.follow(&one, None);
    next_about(&mut updates, "live").await;
    for _ in 0..3 {
        // The probe is sent, and then nobody looks for longer than it may take.
        follower.follow(&two, Some(Since::Start));
        let polled = tokio::time::timeout(Duration::from_millis(2_100), async {
            loop {
                match updates.next().await {
                    Some(Update::Live { .. }) => {}
                    other => panic!("{other:?}"),
                }
            }
        });
        assert!(polled.await.is_err(), "it has no end");
        tokio::time::sleep(Duration::from_millis(6_000)).await;
    }

    append(&backend.journal, &one, "still there").await;
    loop {
        match next(&mut updates, "the entry").await {
            Update::Entries { entries, .. } => break assert_eq!(entries.len(), 1),
            Update::Live { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}
