//! The buffer without a journal: the test plays the writer, so it decides when each answer comes.

use std::sync::Arc;

use serde_json::Value;

use super::*;

const WINDOW: Duration = Duration::from_millis(50);
const LIMIT: usize = 64 * 1024;

fn buffer() -> Buffer {
    Buffer::new(WINDOW, LIMIT, CancellationToken::new())
}

fn session() -> Channel {
    Channel::session("s").unwrap()
}

fn event(name: &str) -> NewEntry {
    NewEntry::new(name, "{}")
}

/// An append that was taken out and has its place, with what it holds: names, or the text of
/// deltas.
fn taken(buffer: &Buffer) -> Option<(Vec<String>, Vec<Ticket>)> {
    let (channel, entries) = buffer.next_append()?;
    buffer.placed(&channel);
    let (entries, tickets): (Vec<NewEntry>, Vec<Ticket>) = entries.into_iter().unzip();
    let shown = entries.iter().map(|entry| {
        let data: Value = serde_json::from_str(&entry.data).unwrap();
        data["delta"].as_str().map_or(entry.name.to_string(), str::to_owned)
    });
    Some((shown.collect(), tickets))
}

fn answer(buffer: &Buffer, tickets: Vec<Ticket>) {
    let offset = Some(Offset { epoch: 1, n: 1, check: 1 });
    let appended = vec![Appended { offset, listeners: 0 }; tickets.len()];
    buffer.settled(&session(), tickets, Ok(appended));
}

#[tokio::test(start_paused = true)]
async fn text_joins_while_its_channel_waits_for_an_answer() {
    let buffer = buffer();
    buffer.text(&session(), "t".into(), "a").unwrap();
    let (first, tickets) = taken(&buffer).unwrap();
    assert_eq!(first, ["a"]);

    for text in ["b", "c", "d"] {
        buffer.text(&session(), "t".into(), text).unwrap();
        tokio::time::advance(WINDOW).await;
        buffer.tick();
        assert!(taken(&buffer).is_none(), "kept back until the answer");
    }
    answer(&buffer, tickets);

    assert_eq!(taken(&buffer).unwrap().0, ["bcd"]);
}

#[tokio::test(start_paused = true)]
async fn an_event_does_not_wait_for_an_answer_and_takes_the_text_along() {
    let buffer = buffer();
    buffer.text(&session(), "t".into(), "a").unwrap();
    let (_, _unanswered) = taken(&buffer).unwrap();

    buffer.text(&session(), "t".into(), "b").unwrap();
    buffer.send(&session(), event("tool_start")).unwrap();

    assert_eq!(taken(&buffer).unwrap().0, ["b", "tool_start"]);
}

#[tokio::test]
async fn nothing_overtakes_an_append_that_waits_for_its_place() {
    let buffer = buffer();
    buffer.send(&session(), event("one")).unwrap();
    let (channel, _entries) = buffer.next_append().unwrap();

    buffer.send(&session(), event("two")).unwrap();
    assert!(buffer.next_append().is_none());
    buffer.placed(&channel);

    assert_eq!(taken(&buffer).unwrap().0, ["two"]);
}

#[tokio::test]
async fn channels_do_not_wait_for_each_other() {
    let buffer = buffer();
    buffer.send(&session(), event("one")).unwrap();
    let _waits_for_its_place = buffer.next_append().unwrap();

    buffer.send(&Channel::session("other").unwrap(), event("two")).unwrap();

    assert_eq!(taken(&buffer).unwrap().0, ["two"]);
}

#[tokio::test]
async fn what_finds_no_room_is_refused_and_room_comes_back_with_the_answer() {
    let buffer = buffer();
    let large = NewEntry::new("large", format!("\"{}\"", "x".repeat(LIMIT / 2)));
    buffer.send(&session(), large.clone()).unwrap();
    let refused = buffer.send(&session(), large.clone()).unwrap_err();
    assert!(matches!(refused, PublishError::Full { limit: LIMIT }), "{refused}");
    assert!(refused.is_retryable());
    assert!(
        buffer.text(&session(), None, &"x".repeat(LIMIT / 2)).is_err(),
        "text is not an exception"
    );

    let (_, tickets) = taken(&buffer).unwrap();
    answer(&buffer, tickets);

    buffer.send(&session(), large).unwrap();
    let (_, tickets) = taken(&buffer).unwrap();
    answer(&buffer, tickets);
    assert_eq!(buffer.room.available_permits(), LIMIT, "every byte came back");
}

#[tokio::test(start_paused = true)]
async fn joined_text_takes_the_room_of_its_bytes() {
    let buffer = buffer();
    buffer.text(&session(), "t".into(), "a").unwrap();
    let (_, tickets) = taken(&buffer).unwrap();
    // Were each token an entry, half as many would not fit.
    for _ in 0..LIMIT / 5 {
        buffer.text(&session(), "t".into(), "four").unwrap();
    }
    answer(&buffer, tickets);

    let mut text = 0;
    while let Some((joined, tickets)) = taken(&buffer) {
        text += joined.iter().map(String::len).sum::<usize>();
        answer(&buffer, tickets);
    }
    assert_eq!(text, LIMIT / 5 * 4);
    assert_eq!(buffer.room.available_permits(), LIMIT);
}

#[tokio::test]
async fn a_caller_that_awaits_waits_for_room() {
    let buffer = Arc::new(buffer());
    let large = NewEntry::new("large", format!("\"{}\"", "x".repeat(LIMIT / 2)));
    buffer.send(&session(), large.clone()).unwrap();
    let publishing = tokio::spawn({
        let buffer = Arc::clone(&buffer);
        async move { buffer.publish(&session(), large).await }
    });
    tokio::task::yield_now().await;

    for _ in 0..2 {
        let (_, tickets) = taken(&buffer).expect("the first, then the one that waited");
        answer(&buffer, tickets);
        tokio::task::yield_now().await;
    }

    assert_eq!(publishing.await.unwrap().unwrap().unwrap().n, 1);
}

#[tokio::test]
async fn a_flush_waits_for_everything_before_it_and_for_nothing_after_it() {
    let buffer = Arc::new(buffer());
    buffer.send(&session(), event("before")).unwrap();
    let (_, before) = taken(&buffer).unwrap();
    let flushing = tokio::spawn({
        let buffer = Arc::clone(&buffer);
        async move { buffer.flush().await }
    });
    tokio::task::yield_now().await;
    buffer.send(&session(), event("after")).unwrap();
    let (_, after) = taken(&buffer).unwrap();
    assert!(!flushing.is_finished());

    answer(&buffer, before);
    flushing.await.unwrap().unwrap();

    answer(&buffer, after);
    buffer.flush().await.unwrap();
}

#[tokio::test]
async fn what_is_lost_is_counted_and_the_next_flush_says_so_once() {
    let buffer = buffer();
    buffer.send(&session(), event("one")).unwrap();
    buffer.text(&session(), None, "two").unwrap();
    let (_, tickets) = taken(&buffer).unwrap();

    buffer.settled(&session(), tickets, Err(AppendError::Unavailable));

    let told = buffer.flush().await.unwrap_err();
    assert!(
        matches!(told, FlushError::Failed { count: 2, last: AppendError::Unavailable }),
        "{told}"
    );
    buffer.flush().await.unwrap();
    assert_eq!(buffer.failed(), 2);
}

#[tokio::test]
async fn only_a_caller_that_awaits_is_told_of_the_loss() {
    let buffer = Arc::new(buffer());
    let publishing = tokio::spawn({
        let buffer = Arc::clone(&buffer);
        async move { buffer.publish(&session(), event("one")).await }
    });
    tokio::task::yield_now().await;
    let (_, tickets) = taken(&buffer).unwrap();

    buffer.settled(&session(), tickets, Err(AppendError::Unavailable));

    let error = publishing.await.unwrap().unwrap_err();
    assert!(error.is_retryable() && !error.had_no_effect(), "{error}");
    buffer.flush().await.unwrap();
    assert_eq!(buffer.failed(), 0);
}

#[tokio::test]
async fn when_the_writer_is_gone_nobody_waits_for_ever() {
    let buffer = Arc::new(buffer());
    let publishing = tokio::spawn({
        let buffer = Arc::clone(&buffer);
        async move { buffer.publish(&session(), event("one")).await }
    });
    tokio::task::yield_now().await;

    buffer.stop();

    assert!(matches!(publishing.await.unwrap(), Err(PublishError::Closed)));
    assert!(matches!(buffer.flush().await, Err(FlushError::Stopped)));
    assert!(matches!(buffer.send(&session(), event("two")), Err(PublishError::Closed)));
}

#[tokio::test(start_paused = true)]
async fn channels_that_fell_silent_are_forgotten() {
    let buffer = buffer();
    for n in 0..100 {
        let channel = Channel::session(&n.to_string()).unwrap();
        buffer.text(&channel, "t".into(), "x").unwrap();
        let (channel, entries) = buffer.next_append().unwrap();
        buffer.placed(&channel);
        let tickets: Vec<Ticket> = entries.into_iter().map(|(_, ticket)| ticket).collect();
        buffer.settled(&channel, tickets, Err(AppendError::Unavailable));
    }
    assert_eq!(buffer.state().channels.len(), 100);

    tokio::time::advance(WINDOW * (SWEEP_TICKS as u32 + 1)).await;
    buffer.send(&session(), event("one")).unwrap();
    let (_, tickets) = taken(&buffer).unwrap();
    answer(&buffer, tickets);

    assert!(buffer.state().channels.is_empty());
}
