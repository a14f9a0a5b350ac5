//! What append, read and follow promise, one by one.

use journal::{AppendError, Keep, NewEntry, Reason, Retention, Since, Update};
use protocol::Offset;
use std::time::Duration;

use crate::{append, entry, events, keeping, next_about, on_both};

on_both! {
    async fn entries_get_consecutive_offsets(backend) {
        let name = events("a");
        let batch = (0..300).map(|i| entry(&i.to_string())).collect();

        let first = append(&backend.journal, &name, "x").await;
        let more = backend.journal.append(&name, batch).await.unwrap();

        let ns: Vec<u64> = more.iter().map(|appended| appended.offset.unwrap().n).collect();
        assert_eq!(first.n, 1);
        assert_eq!(ns, (2..=301).collect::<Vec<_>>());
        assert!(more.iter().all(|appended| appended.offset.unwrap().epoch == first.epoch));
    }
}

on_both! {
    async fn what_was_appended_is_read_back_as_bytes(backend) {
        let name = events("bytes");
        let data = r#"{ "a" : "\ud83d", "b": [1.0e5, "ü\u0000"] }"#;

        backend.journal.append(&name, vec![NewEntry::new("x.y", data)]).await.unwrap();

        let page = backend.journal.read(&name, Since::Start, 10).await.unwrap();
        assert_eq!((&*page.entries[0].name, &*page.entries[0].data), ("x.y", data));
        assert!(page.entries[0].time_us > 1_600_000_000_000_000);
    }
}

on_both! {
    async fn a_journal_never_written_is_absent(backend) {
        let page = backend.journal.read(&events("never"), Since::Start, 10).await.unwrap();

        assert_eq!((page.start, page.head, page.entries.len(), page.reset), (None, None, 0, None));
    }
}

on_both! {
    async fn reading_continues_exactly_after_every_position(backend) {
        let name = events("since");
        let mut offsets = Vec::new();
        for i in 0..20 {
            offsets.push(append(&backend.journal, &name, &i.to_string()).await);
        }

        for (index, offset) in offsets.iter().enumerate() {
            let page = backend.journal.read(&name, Since::Offset(*offset), 1000).await.unwrap();
            let read: Vec<Offset> = page.entries.iter().map(|entry| entry.offset).collect();
            assert_eq!(read, offsets[index + 1..], "after entry {index}");
            assert_eq!((page.start, page.head, page.reset), (Some(*offset), offsets.last().copied(), None));
        }
    }
}

on_both! {
    async fn pages_follow_one_another_without_a_gap(backend) {
        let name = events("pages");
        let batch = (0..257).map(|i| entry(&i.to_string())).collect();
        backend.journal.append(&name, batch).await.unwrap();

        let (mut since, mut ns, mut pages) = (Since::Start, Vec::new(), 0);
        loop {
            let page = backend.journal.read(&name, since, 100).await.unwrap();
            ns.extend(page.entries.iter().map(|entry| entry.offset.n));
            pages += 1;
            if !page.has_more() {
                break;
            }
            since = Since::Offset(page.end().unwrap());
        }

        assert_eq!((ns, pages), ((1..=257).collect::<Vec<_>>(), 3));
    }
}

on_both! {
    async fn a_page_is_bounded_in_bytes(backend) {
        let name = events("big");
        let data = format!("\"{}\"", "x".repeat(60_000));
        for _ in 0..40 {
            backend.journal.append(&name, vec![NewEntry::new("big", data.clone())]).await.unwrap();
        }

        let page = backend.journal.read(&name, Since::Start, 1000).await.unwrap();

        assert!(page.has_more() && (15..=20).contains(&page.entries.len()), "{}", page.entries.len());
    }
}

on_both! {
    async fn a_position_of_another_life_is_an_epoch_reset(backend) {
        let name = events("epoch");
        let offset = append(&backend.journal, &name, "x").await;
        let other = Offset { epoch: offset.epoch - 1, ..offset };

        let page = backend.journal.read(&name, Since::Offset(other), 10).await.unwrap();

        assert_eq!((page.reset, page.entries.len()), (Some(Reason::Epoch), 1));
        assert_eq!(page.start, Some(Offset { epoch: offset.epoch, n: 0, check: 0 }));
    }
}

on_both! {
    async fn a_rewritten_position_is_a_history_reset(backend) {
        let name = events("check");
        let offset = append(&backend.journal, &name, "x").await;
        append(&backend.journal, &name, "y").await;
        let (rewritten, beyond) = (
            Offset { check: offset.check.wrapping_add(1), ..offset },
            Offset { n: 9, ..offset },
        );

        for position in [rewritten, beyond] {
            let page = backend.journal.read(&name, Since::Offset(position), 10).await.unwrap();
            assert_eq!((page.reset, page.entries.len()), (Some(Reason::HistoryChanged), 2));
        }
    }
}

on_both! {
    async fn what_retention_dropped_is_a_retention_reset(backend) keeping(keeping(100)) {
        let name = events("short");
        let first = append(&backend.journal, &name, "first").await;
        for _ in 0..4 {
            backend.journal.append(&name, (0..100).map(|_| entry("x")).collect()).await.unwrap();
        }

        let page = backend.journal.read(&name, Since::Offset(first), 1000).await.unwrap();

        assert_eq!(page.reset, Some(Reason::Retention));
        assert!((100..=164).contains(&page.entries.len()), "{}", page.entries.len());
        let oldest = page.entries[0].offset;
        assert_eq!(page.start, Some(Offset::before(oldest.epoch, oldest.n)));

        let before = Offset { n: oldest.n - 1, check: 77, ..oldest };
        let page = backend.journal.read(&name, Since::Offset(before), 1000).await.unwrap();
        assert_eq!((page.reset, page.entries[0].offset), (None, oldest), "the one before the oldest is honoured");
    }
}

on_both! {
    async fn a_journal_is_bounded_in_bytes(backend) keeping(Retention {
        session: Keep { bytes: 256 * 1024, ..Retention::default().session },
        ..Retention::default()
    }) {
        let name = events("fat");
        let data = format!("\"{}\"", "x".repeat(2_000));
        for _ in 0..10 {
            let batch = (0..100).map(|_| NewEntry::new("fat", data.clone())).collect();
            backend.journal.append(&name, batch).await.unwrap();
        }

        let page = backend.journal.read(&name, Since::Start, 1000).await.unwrap();
        let bytes: usize = page.entries.iter().map(|entry| entry.data.len()).sum();

        assert!((100_000..600_000).contains(&bytes), "{bytes} bytes kept");
        assert_eq!(page.entries.last().unwrap().offset.n, 1000);
    }
}

on_both! {
    async fn old_entries_go_and_an_idle_journal_goes_as_a_whole(backend) keeping(Retention {
        session: Keep { age: Duration::from_millis(300), ..Retention::default().session },
        ..Retention::default()
    }) {
        let name = events("old");
        let old = append(&backend.journal, &name, "old").await;
        // The only way to grow old is to wait.
        tokio::time::sleep(Duration::from_millis(500)).await;

        backend.journal.append(&name, (0..70).map(|_| entry("x")).collect()).await.unwrap();

        let page = backend.journal.read(&name, Since::Start, 1000).await.unwrap();
        assert!(page.entries.iter().all(|entry| entry.offset.n > 1 || entry.offset.epoch != old.epoch));
    }
}

on_both! {
    async fn the_same_idempotency_key_is_one_entry(backend) {
        let name = events("once");
        let once = |text: &str| entry(text).with_key("id-1");

        let first = backend.journal.append(&name, vec![once("a")]).await.unwrap()[0].offset;
        append(&backend.journal, &name, "between").await;
        let again = backend.journal.append(&name, vec![entry("b"), once("a"), entry("d")]).await.unwrap();

        let ns: Vec<u64> = again.iter().map(|appended| appended.offset.unwrap().n).collect();
        assert_eq!((again[1].offset, ns), (first, vec![3, 1, 4]));
        let other = backend.journal.append(&events("other"), vec![once("a")]).await.unwrap()[0].offset.unwrap();
        assert_eq!(other.n, 1, "an idempotency key belongs to its journal");
    }
}

on_both! {
    async fn an_idempotency_key_stands_for_its_entry(backend) {
        let name = events("once");
        let once = |text: &str| entry(text).with_key("id-1");
        let first = backend.journal.append(&name, vec![once("a")]).await.unwrap()[0].offset;

        let other_data = backend.journal.append(&name, vec![once("b")]).await;
        let other_event = NewEntry { name: "another".into(), ..once("a") };
        let other_event = backend.journal.append(&name, vec![other_event]).await;
        // Many behind a refused one: none is lost, none comes twice.
        let mut behind = Vec::new();
        for n in 0..20 {
            let entry = if n % 4 == 0 { once("c") } else { entry(&n.to_string()) };
            behind.push(backend.journal.enqueue(&name, vec![entry]).await.unwrap());
        }
        let behind = futures_util::future::join_all(behind).await;

        assert_eq!(other_data, Err(AppendError::Conflict("data")));
        assert_eq!(other_event, Err(AppendError::Conflict("event")));
        let ns: Vec<Option<u64>> = behind.iter().map(|one| one.as_ref().ok()?[0].offset.map(|offset| offset.n)).collect();
        let expected: Vec<Option<u64>> = (0..20).scan(1, |n, i| Some(if i % 4 == 0 { None } else { *n += 1; Some(*n) })).collect();
        assert_eq!(ns, expected);
        let again = backend.journal.append(&name, vec![once("a")]).await.unwrap()[0].offset;
        assert_eq!(again, first, "the first one still holds");
    }
}

on_both! {
    async fn what_one_caller_enqueues_later_stands_later(backend) {
        let name = events("order");
        let mut receipts = Vec::new();
        for i in 0..2_000 {
            receipts.push(backend.journal.enqueue(&name, vec![entry(&i.to_string())]).await.unwrap());
        }

        for (index, receipt) in receipts.into_iter().enumerate() {
            assert_eq!(receipt.await.unwrap()[0].offset.unwrap().n, index as u64 + 1);
        }
    }
}

on_both! {
    async fn following_begins_at_the_head_and_misses_nothing(backend) {
        let name = events("follow");
        let head = append(&backend.journal, &name, "before").await;
        let (follower, mut updates) = backend.journal.follow();

        follower.follow(&name, None);
        let live = next_about(&mut updates, "live").await;
        let after = append(&backend.journal, &name, "after").await;

        assert_eq!(live, Update::Live { name: name.clone(), head: Some(head) });
        let Update::Entries { entries, .. } = next_about(&mut updates, "the entry").await else {
            panic!("entries must follow")
        };
        assert_eq!(entries.iter().map(|entry| entry.offset).collect::<Vec<_>>(), [after]);
    }
}

on_both! {
    async fn following_since_a_position_hands_out_what_followed_it(backend) {
        let name = events("follow-since");
        let first = append(&backend.journal, &name, "1").await;
        append(&backend.journal, &name, "2").await;
        let head = append(&backend.journal, &name, "3").await;
        let (follower, mut updates) = backend.journal.follow();

        follower.follow(&name, Some(Since::Offset(first)));

        let live = next_about(&mut updates, "live").await;
        assert_eq!(live, Update::Live { name: name.clone(), head: Some(head) });
        let Update::Entries { entries, .. } = next_about(&mut updates, "entries").await else {
            panic!("entries must follow")
        };
        assert_eq!(entries.iter().map(|entry| entry.offset.n).collect::<Vec<_>>(), [2, 3]);
    }
}

on_both! {
    async fn following_a_journal_that_is_not_there_yet_gets_its_first_entry(backend) {
        let name = events("future");
        let (follower, mut updates) = backend.journal.follow();
        follower.follow(&name, None);
        let live = next_about(&mut updates, "live").await;

        append(&backend.journal, &name, "first").await;

        assert_eq!(live, Update::Live { name: name.clone(), head: None });
        let Update::Entries { entries, .. } = next_about(&mut updates, "the first entry").await else {
            panic!("entries must follow")
        };
        assert_eq!(entries[0].offset.n, 1);
    }
}

on_both! {
    async fn an_append_says_how_many_links_follow(backend) {
        let name = journal::Name::commands("agent:a".parse().unwrap());
        let (follower, mut updates) = backend.journal.follow();
        follower.follow(&name, None);
        next_about(&mut updates, "live").await;

        let appended = backend.journal.append(&name, vec![entry("x").with_key("c1")]).await.unwrap()[0];
        let again = backend.journal.append(&name, vec![entry("x").with_key("c1")]).await.unwrap()[0];

        assert_eq!((appended.listeners, again.listeners), (1, 1));
        assert_eq!(appended.offset, again.offset);
    }
}

on_both! {
    async fn events_and_commands_of_a_channel_are_two_journals(backend) {
        let channel: protocol::Channel = "session:two".parse().unwrap();
        let (down, up) = (journal::Name::events(channel.clone()), journal::Name::commands(channel));

        append(&backend.journal, &down, "event").await;
        append(&backend.journal, &down, "event").await;

        assert_eq!(append(&backend.journal, &up, "command").await.n, 1);
        assert_eq!(backend.journal.read(&down, Since::Start, 10).await.unwrap().entries.len(), 2);
    }
}
