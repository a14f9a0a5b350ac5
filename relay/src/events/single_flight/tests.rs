//! Reads that are shared, one line for each key.

use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use futures_util::future::{join_all, pending};
use tokio::sync::Notify;

use super::*;

/// Reads a number when it is let go; a read answers those who had asked before it began.
#[derive(Debug, Default)]
struct Gated {
    begun: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    gate: Arc<Notify>,
    panics: bool,
}

struct CountsItsEnd(Arc<AtomicUsize>);

impl Drop for CountsItsEnd {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Source for Gated {
    type Key = ();
    type Question = usize;
    type Read = usize;
    type Answer = usize;

    fn key(_: &usize) {}

    fn known(&self, _: &usize) -> Option<usize> {
        None
    }

    fn begin(&mut self, _: &Turn<'_, usize>) -> Reading<usize> {
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let end = CountsItsEnd(Arc::clone(&self.ended));
        let (gate, panics) = (Arc::clone(&self.gate), self.panics);
        async move {
            let _end = end;
            gate.notified().await;
            assert!(!panics, "as this test wants it");
            Ok(number)
        }
        .boxed()
    }

    fn keep(&mut self, _: &usize) {}

    fn answer(&self, read: &usize, _: &usize, asked: Asked) -> Option<usize> {
        asked.before.then_some(*read)
    }
}

/// What the source counts, and its gate.
struct Seen {
    begun: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    gate: Arc<Notify>,
}

fn gated(panics: bool) -> (SingleFlight<Gated>, Seen) {
    let source = Gated { panics, ..Gated::default() };
    let seen = Seen {
        begun: Arc::clone(&source.begun),
        ended: Arc::clone(&source.ended),
        gate: Arc::clone(&source.gate),
    };
    (SingleFlight::new(source), seen)
}

/// A key that is looked at, and how often one was.
#[derive(Clone, Debug)]
struct LookedAt(usize, Arc<AtomicUsize>);

impl Eq for LookedAt {}

impl PartialEq for LookedAt {
    fn eq(&self, other: &Self) -> bool {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0 == other.0
    }
}

impl Hash for LookedAt {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

/// Never answers.
#[derive(Debug)]
struct Endless;

impl Source for Endless {
    type Key = LookedAt;
    type Question = LookedAt;
    type Read = ();
    type Answer = ();

    fn key(question: &LookedAt) -> LookedAt {
        question.clone()
    }

    fn known(&self, _: &LookedAt) -> Option<()> {
        None
    }

    fn begin(&mut self, _: &Turn<'_, LookedAt>) -> Reading<()> {
        pending().boxed()
    }

    fn keep(&mut self, (): &()) {}

    fn answer(&self, (): &(), _: &LookedAt, _: Asked) -> Option<()> {
        None
    }
}

/// Each channel that is joined forgets, and whoever joins tens of thousands at once must not hold up the others.
#[tokio::test]
async fn to_forget_one_key_does_not_look_at_all() {
    let (reads, looks) = (SingleFlight::new(Endless), Arc::new(AtomicUsize::new(0)));
    let keys: Vec<LookedAt> = (0..1_000).map(|n| LookedAt(n, Arc::clone(&looks))).collect();
    let mut waiting: Vec<_> = keys.iter().map(|key| Box::pin(reads.read(key))).collect();
    assert!(waiting.iter_mut().all(|one| one.as_mut().now_or_never().is_none()));
    let before = looks.load(Ordering::SeqCst);

    reads.forget(Some(&keys[7]), |_| {});

    let looks = looks.load(Ordering::SeqCst) - before;
    assert!(looks < 100, "{looks} keys were compared");
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn who_is_not_polled_holds_nobody_up() {
    let (reads, seen) = gated(false);
    let mut first = Box::pin(reads.read(&1));
    assert!(first.as_mut().now_or_never().is_none());
    until(|| seen.begun.load(Ordering::SeqCst) == 1).await;
    let mut idle = Box::pin(reads.read(&2));
    assert!(idle.as_mut().now_or_never().is_none());
    let mut last = Box::pin(reads.read(&3));
    assert!(last.as_mut().now_or_never().is_none());

    seen.gate.notify_one();
    assert_eq!(first.await, Ok(1));
    seen.gate.notify_one();

    assert_eq!(last.await, Ok(2));
    assert_eq!(idle.await, Ok(2), "and what it asked for is there for it");
    assert_eq!(reads.look(|_, lines| lines), 0);
}

#[tokio::test]
async fn a_read_ends_with_its_last_waiter() {
    let (reads, seen) = gated(false);
    let waiting = (0..3).map(|i| {
        let reads = &reads;
        let mut one = Box::pin(async move { reads.read(&i).await });
        assert!(one.as_mut().now_or_never().is_none());
        one
    });
    let mut waiting: Vec<_> = waiting.collect();
    until(|| seen.begun.load(Ordering::SeqCst) == 1).await;

    let last = waiting.pop();
    drop(waiting);
    tokio::task::yield_now().await;
    assert_eq!(seen.ended.load(Ordering::SeqCst), 0, "one waits still");
    drop(last);

    until(|| seen.ended.load(Ordering::SeqCst) == 1).await;
    assert_eq!(reads.look(|_, lines| lines), 0);
    // And it can be asked anew.
    seen.gate.notify_one();
    assert_eq!(reads.read(&0).await, Ok(2));
}

#[tokio::test]
async fn all_who_came_before_a_read_share_it() {
    let (reads, seen) = gated(false);
    seen.gate.notify_one();

    let answers = join_all((0..1_000).map(|i| {
        let reads = &reads;
        async move { reads.read(&i).await }
    }));

    assert!(answers.await.iter().all(|answer| *answer == Ok(1)));
    assert_eq!(seen.begun.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_read_that_panics_leaves_nobody_waiting() {
    let (reads, seen) = gated(true);
    seen.gate.notify_one();

    assert_eq!(reads.read(&1).await, Err(ReadError::Ended));

    assert_eq!(reads.look(|_, lines| lines), 0);
}

#[tokio::test]
async fn a_read_ends_with_the_source() {
    let (reads, seen) = gated(false);
    tokio::select! {
        biased;
        _ = reads.read(&1) => {}
        () = until(|| seen.begun.load(Ordering::SeqCst) == 1) => {}
        () = pending() => {}
    }

    until(|| seen.ended.load(Ordering::SeqCst) == 1).await;
}
