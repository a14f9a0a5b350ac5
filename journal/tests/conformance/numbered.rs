//! Entries that their author numbers: each is in the journal once, whichever processes append them, and however many.

use std::time::{Duration, Instant};

use journal::{Holder, Journal, Name, NewEntry, Receipt, Since};
use protocol::Offset;

use crate::gate::slow;
use crate::{Backend, Proxy, events, on_both};

const LAST: u64 = 60;

/// What two replicas of one deployment have.
fn replicas(backend: &Backend, holder: &Holder) -> (Journal, Journal) {
    let another = match &backend.server {
        Some(server) => Journal::open(&server.url()).unwrap(),
        None => backend.journal.clone(),
    };
    (backend.journal.as_producer(holder), another.as_producer(holder))
}

async fn holder(backend: &Backend) -> Holder {
    let lease = backend.journal.lease(&"agent:a".parse().unwrap(), "a", None, None).await.unwrap();
    lease.holder().clone()
}

/// The call ids of one channel ascend, with holes: other channels have calls, too.
async fn enqueue(journal: &Journal, name: &Name, number: u64) -> Receipt {
    let entry = NewEntry::new("number", number.to_string());
    journal.enqueue_numbered(name, number * 3, entry).await.unwrap()
}

async fn append_all(
    journal: &Journal,
    name: &Name,
    numbers: impl IntoIterator<Item = u64>,
) -> Vec<Option<Offset>> {
    let mut receipts = Vec::new();
    for number in numbers {
        receipts.push(enqueue(journal, name, number).await);
    }
    let mut offsets = Vec::new();
    for receipt in receipts {
        offsets.push(receipt.await.unwrap()[0].offset);
    }
    offsets
}

async fn stored(journal: &Journal, name: &Name) -> Vec<(Offset, u64)> {
    let page = journal.read(name, Since::Start, 1_000).await.unwrap();
    page.entries.iter().map(|entry| (entry.offset, entry.data.parse().unwrap())).collect()
}

async fn assert_once(journal: &Journal, name: &Name, last: u64) {
    let numbers: Vec<u64> = stored(journal, name).await.into_iter().map(|(_, n)| n).collect();
    assert_eq!(numbers, (1..=last).collect::<Vec<_>>(), "{name}");
}

on_both! {
    async fn another_replica_takes_over_after_any_number(backend) {
        let holder = holder(&backend).await;
        let (first, second) = replicas(&backend, &holder);
        for cut in 0..=12 {
            let name = events(&format!("cut-{cut}"));
            append_all(&first, &name, 1..=cut).await;

            let offsets = append_all(&second, &name, 1..=12).await;

            assert_once(&backend.journal, &name, 12).await;
            for (offset, (stands, number)) in offsets.iter().zip(stored(&backend.journal, &name).await) {
                assert!(offset.is_none_or(|offset| offset == stands), "{number} of {name}");
                assert!(offset.is_some() || number <= cut, "{number} was appended here");
            }
        }
    }
}

on_both! {
    async fn two_replicas_at_once_append_each_once(backend) {
        let holder = holder(&backend).await;
        let (first, second) = replicas(&backend, &holder);
        for round in 0..20 {
            let name = events(&format!("both-{round}"));
            let (mine, theirs) =
                tokio::join!(append_all(&first, &name, 1..=LAST), append_all(&second, &name, 1..=LAST));

            assert_once(&backend.journal, &name, LAST).await;
            let stands = stored(&backend.journal, &name).await;
            for (offset, (stands, number)) in mine.iter().chain(&theirs).zip(stands.iter().chain(&stands)) {
                assert!(offset.is_none_or(|offset| offset == *stands), "{number} of {name}");
            }
        }
    }
}

on_both! {
    async fn what_one_replica_is_given_twice_at_once_is_there_once(backend) {
        let holder = holder(&backend).await;
        let (first, _) = replicas(&backend, &holder);
        let name = events("twice");

        tokio::join!(append_all(&first, &name, 1..=LAST), append_all(&first, &name, 1..=LAST));

        assert_once(&backend.journal, &name, LAST).await;
    }
}

on_both! {
    async fn a_repetition_of_anything_older_is_acknowledged(backend) {
        let holder = holder(&backend).await;
        let (first, _) = replicas(&backend, &holder);
        let name = events("again");
        append_all(&first, &name, 1..=5).await;

        let again = append_all(&first, &name, [3]).await;

        assert_eq!(again, [None]);
        assert_once(&backend.journal, &name, 5).await;
        append_all(&first, &name, 6..=9).await;
        assert_once(&backend.journal, &name, 9).await;
    }
}

/// The connections of both break again and again, and answers are lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_double_and_lose_no_number() {
    let backend = Backend::redis(journal::Retention::default()).await;
    let holder = holder(&backend).await;
    let proxy = Proxy::to(backend.server.as_ref().unwrap()).await;
    let open = || Journal::open(&proxy.url()).unwrap().as_producer(&holder);
    let (first, second) = (open(), open());
    let name = events("cuts");

    let writing = async {
        tokio::join!(append_all(&first, &name, 1..=400), append_all(&second, &name, 1..=400))
    };
    let mut cutting = tokio::time::interval(Duration::from_millis(30));
    tokio::pin!(writing);
    loop {
        tokio::select! {
            _ = &mut writing => break,
            _ = cutting.tick() => proxy.cut(),
        }
    }

    assert_once(&backend.journal, &name, 400).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_redis_lost_is_there_again_and_the_numbers_go_on() {
    let backend = Backend::redis(journal::Retention::default()).await;
    let holder = holder(&backend).await;
    let (first, second) = replicas(&backend, &holder);
    let name = events("lost");
    append_all(&first, &name, 1..=5).await;
    let mut connection = backend.server.as_ref().unwrap().connection().await;
    let _: () = redis::cmd("FLUSHALL").query_async(&mut connection).await.unwrap();

    append_all(&first, &name, 6..=7).await;

    assert_once(&backend.journal, &name, 7).await;
    append_all(&second, &name, 7..=9).await;
    append_all(&first, &name, 7..=10).await;
    assert_once(&backend.journal, &name, 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_events_take_few_round_trips() {
    const TRIP: Duration = Duration::from_millis(300);
    let backend = Backend::redis(journal::Retention::default()).await;
    let holder = holder(&backend).await;
    let port = slow(backend.server.as_ref().unwrap(), TRIP).await;
    let far = Journal::open(&format!("redis://127.0.0.1:{port}")).unwrap().as_producer(&holder);
    let name = events("far");
    append_all(&far, &name, [1]).await;

    let began = Instant::now();
    append_all(&far, &name, 2..=200).await;

    let took = began.elapsed();
    assert!(took < 5 * TRIP, "{took:?}");
    assert_once(&backend.journal, &name, 200).await;
}
