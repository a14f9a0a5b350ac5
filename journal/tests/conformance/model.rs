//! The specification of gaps, duplicates and epochs, as a model test.
//!
//! Random appends by two producers, retried idempotency keys, trims, cut connections, rolled-back servers,
//! followers that come and go. At the end the journal itself is the truth, and everything that any
//! follower was told must agree with it: joining at *every* position that was ever seen continues exactly
//! there, or says that it cannot, and it says so only where that is true.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use journal::{Journal, Name, NewEntry, Reason, Receipt, Since, Update, Updates};
use protocol::{Entry, Offset};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redis::Value;

use crate::{Backend, Proxy, Server, events, keeping};

/// Every key with its time to live and its content, taken and put back in one atomic step.
struct Snapshot(Vec<Value>);

impl Snapshot {
    async fn take(server: &Server) -> Self {
        const TAKE: &str = "local all = {} for _, k in ipairs(redis.call('KEYS', '*')) do
            all[#all + 1] = k all[#all + 1] = redis.call('PTTL', k) all[#all + 1] = redis.call('DUMP', k)
        end return all";
        let all = redis::Script::new(TAKE).invoke_async(&mut server.connection().await).await;
        Self(all.unwrap())
    }

    /// What a restart from an older file, or the promotion of a lagging replica, does to a server.
    async fn put_back(&self, server: &Server) {
        const PUT: &str = "for _, k in ipairs(redis.call('KEYS', '*')) do redis.call('DEL', k) end
            for i = 1, #ARGV, 3 do
                redis.call('RESTORE', ARGV[i], math.max(0, tonumber(ARGV[i + 1])), ARGV[i + 2])
            end return 'OK'";
        let script = redis::Script::new(PUT);
        let mut invocation = script.prepare_invoke();
        for value in &self.0 {
            match value {
                Value::Int(number) => invocation.arg(*number),
                Value::BulkString(bytes) => invocation.arg(bytes),
                other => panic!("unexpected in a snapshot: {other:?}"),
            };
        }
        let _: String = invocation.invoke_async(&mut server.connection().await).await.unwrap();
    }
}

/// A follower of a journal that checks what it is told.
struct Watcher {
    name: Name,
    updates: Updates,
    _follower: journal::Follower,
    /// What was handed out since the last reset.
    seen: Vec<Arc<Entry>>,
    resets: Vec<Reason>,
    /// Every position that was ever handed out, with what stood there.
    positions: Vec<(Offset, Box<str>)>,
}

impl Watcher {
    fn new(journal: &Journal, name: &Name, since: Option<Since>) -> Self {
        let (follower, updates) = journal.follow();
        follower.follow(name, since);
        let (seen, resets, positions) = Default::default();
        Self { name: name.clone(), updates, _follower: follower, seen, resets, positions }
    }

    fn on(&mut self, update: Update) {
        match update {
            Update::Link { .. } | Update::Live { .. } | Update::Notified { .. } => {}
            Update::Reset { reason, .. } => {
                self.resets.push(reason);
                self.seen.clear();
            }
            Update::Entries { entries, .. } => {
                for entry in entries {
                    if let Some(last) = self.seen.last() {
                        assert!(
                            last.offset.is_followed_by(&entry.offset),
                            "{}: {} was followed by {} without a reset",
                            self.name,
                            last.offset,
                            entry.offset
                        );
                    }
                    self.positions.push((entry.offset, entry.data.clone()));
                    self.seen.push(entry);
                }
            }
        }
    }

    async fn until(&mut self, head: Offset) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(45);
        while self.seen.last().is_none_or(|entry| entry.offset != head) {
            let update = tokio::time::timeout_at(deadline, self.updates.next()).await;
            let last = self.seen.last().map(|entry| entry.offset);
            let update =
                update.unwrap_or_else(|_| panic!("{}: stuck at {last:?}, head {head}", self.name));
            self.on(update.unwrap());
        }
    }
}

struct Producer {
    journal: Journal,
    id: usize,
    next: HashMap<Name, u64>,
    receipts: Vec<(Name, Vec<String>, Receipt)>,
}

impl Producer {
    async fn append(&mut self, name: &Name, count: usize, with_keys: bool) {
        let next = self.next.entry(name.clone()).or_default();
        let mut payloads = Vec::new();
        for _ in 0..count {
            *next += 1;
            payloads.push(format!("\"{}:{next}\"", self.id));
        }
        let entries: Vec<NewEntry> = payloads
            .iter()
            .map(|payload| {
                let entry = NewEntry::new("e", payload.clone());
                if with_keys { entry.with_key(payload.trim_matches('"')) } else { entry }
            })
            .collect();
        if with_keys {
            // A caller that retries: the same ids twice in a row are one entry each.
            let receipt = self.journal.enqueue(name, entries.clone()).await.unwrap();
            self.receipts.push((name.clone(), payloads.clone(), receipt));
        }
        let receipt = self.journal.enqueue(name, entries).await.unwrap();
        self.receipts.push((name.clone(), payloads, receipt));
    }
}

/// What one run may do to the journals.
#[derive(Clone, Copy)]
struct Faults {
    /// Out of 100 steps.
    cuts: u32,
    rollbacks: u32,
}

async fn run(seed: u64, backend: Backend, retained: u64, faults: Faults) {
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let names = [events("one"), events("two")];
    let proxy = match &backend.server {
        Some(server) => Some(Proxy::to(server).await),
        None => None,
    };
    let open = || match &proxy {
        Some(proxy) => Journal::open(&proxy.url()).unwrap(),
        None => backend.journal.clone(),
    };
    let producer =
        |id| Producer { journal: open(), id, next: HashMap::new(), receipts: Vec::new() };
    let mut producers = [producer(0), producer(1)];
    let reader = open();
    let mut watchers: Vec<Watcher> =
        names.iter().map(|name| Watcher::new(&reader, name, None)).collect();
    let mut snapshot = None;

    for _ in 0..150 {
        let name = &names[random.random_range(0..2)];
        match random.random_range(0..100_u32) {
            step if step < faults.cuts => proxy.as_ref().unwrap().cut(),
            step if step < faults.cuts + faults.rollbacks => {
                let server = backend.server.as_ref().unwrap();
                match snapshot.take() {
                    None => snapshot = Some(Snapshot::take(server).await),
                    Some(old) => {
                        old.put_back(server).await;
                        // Half of the time no connection shows that anything happened.
                        if random.random_bool(0.5) {
                            proxy.as_ref().unwrap().cut();
                        }
                    }
                }
            }
            step if step < 45 => {
                let (count, once) = (random.random_range(1..6), random.random_bool(0.1));
                producers[random.random_range(0..2)].append(name, count, once).await;
            }
            step if step < 48 => {
                producers[0].append(name, random.random_range(100..200), false).await
            }
            step if step < 58 => {
                // Some wait for their acknowledgements before they go on.
                for producer in &mut producers {
                    for (_, _, receipt) in producer.receipts.iter_mut() {
                        drop(receipt.await);
                    }
                    producer.receipts.clear();
                }
            }
            step if step < 62 => {
                let known = watchers.iter().filter(|watcher| watcher.name == *name);
                let known = known.flat_map(|watcher| &watcher.positions).collect::<Vec<_>>();
                let since = match known.len() {
                    0 => Since::Start,
                    len => Since::Offset(known[random.random_range(0..len)].0),
                };
                watchers.push(Watcher::new(&reader, name, Some(since)));
            }
            _ => {
                for watcher in &mut watchers {
                    while let Ok(Some(update)) =
                        tokio::time::timeout(Duration::from_millis(1), watcher.updates.next()).await
                    {
                        watcher.on(update);
                    }
                }
            }
        }
    }

    // Let everything come to rest: the last appends are acknowledged, and everybody has seen them.
    for name in &names {
        for producer in &mut producers {
            producer.append(name, 1, false).await;
            for (_, _, receipt) in std::mem::take(&mut producer.receipts) {
                receipt.await.expect("what was accepted is appended");
            }
        }
    }
    for name in &names {
        let truth = everything(&reader, name).await;
        let head = truth.last().expect("something was appended").offset;
        check_producers(&truth, &producers, name, retained);
        let mut positions = HashMap::new();
        for watcher in watchers.iter_mut().filter(|watcher| watcher.name == *name) {
            watcher.until(head).await;
            check_watcher(watcher, &truth);
            for (offset, data) in &watcher.positions {
                let known = positions.entry(*offset).or_insert_with(|| data.clone());
                assert_eq!(known, data, "{name}: {offset} meant two records");
            }
        }
        for (offset, data) in &positions {
            check_join(&reader, name, *offset, data, &truth).await;
        }
    }
}

async fn everything(journal: &Journal, name: &Name) -> Vec<Arc<Entry>> {
    let (mut since, mut all) = (Since::Start, Vec::new());
    loop {
        let page = journal.read(name, since, 100).await.unwrap();
        all.extend(page.entries.iter().cloned());
        if !page.has_more() {
            return all;
        }
        since = Since::Offset(page.end().unwrap());
    }
}

/// Everything acknowledged is there, once, in its producer's order.
fn check_producers(truth: &[Arc<Entry>], producers: &[Producer], name: &Name, retained: u64) {
    let distinct: HashSet<&str> = truth.iter().map(|entry| &*entry.data).collect();
    assert_eq!(distinct.len(), truth.len(), "{name}: something is there twice");
    for producer in producers {
        let prefix = format!("\"{}:", producer.id);
        let own = truth.iter().filter_map(|entry| entry.data.strip_prefix(&prefix));
        let own: Vec<u64> =
            own.map(|number| number.trim_end_matches('"').parse().unwrap()).collect();
        let last = producer.next[name];
        let first = last + 1 - own.len() as u64;
        assert_eq!(own, (first..=last).collect::<Vec<_>>(), "{name}: producer {}", producer.id);
        if truth[0].offset.n == 1 {
            assert_eq!(first, 1, "{name}: nothing was trimmed, so everything must be there");
        }
    }
    assert!(truth.len() as u64 <= retained + 64 + 128, "{name}: {} entries kept", truth.len());
    assert!(truth[0].offset.n == 1 || truth.len() as u64 >= retained, "{name}: trimmed too far");
}

/// What a watcher was handed out since its last reset is what the journal holds.
fn check_watcher(watcher: &Watcher, truth: &[Arc<Entry>]) {
    let oldest = truth[0].offset.n;
    let still_there = watcher.seen.iter().filter(|entry| entry.offset.n >= oldest);
    for entry in still_there {
        let stands = &truth[(entry.offset.n - oldest) as usize];
        assert_eq!(stands, entry, "{}: what was handed out is not what stands there", watcher.name);
    }
}

/// Joining at `offset`, where `data` was once seen.
async fn check_join(
    journal: &Journal,
    name: &Name,
    offset: Offset,
    data: &str,
    truth: &[Arc<Entry>],
) {
    // A few entries suffice: that pages follow one another is a promise of its own.
    let page = journal.read(name, Since::Offset(offset), 8).await.unwrap();
    let (oldest, epoch) = (truth[0].offset.n, truth[0].offset.epoch);
    let stands = offset.n.checked_sub(oldest).and_then(|index| truth.get(index as usize));
    let expected = if offset.epoch != epoch {
        Some(Reason::Epoch)
    } else if offset.n + 1 < oldest {
        Some(Reason::Retention)
    } else if offset.n + 1 == oldest || stands.is_some_and(|entry| entry.offset == offset) {
        None
    } else {
        Some(Reason::HistoryChanged)
    };
    assert_eq!(page.reset, expected, "{name}: joining at {offset}");
    if let (None, Some(entry)) = (expected, stands) {
        assert_eq!(&*entry.data, data, "{name}: {offset} means something else now");
    }
    let first = if expected.is_some() { oldest } else { offset.n + 1 };
    let mut read = page.entries.iter().map(|entry| entry.offset.n);
    assert!(
        read.clone().eq(first..first + page.entries.len() as u64),
        "{name}: joining at {offset}"
    );
    if !page.has_more() {
        assert_eq!(read.next_back().unwrap_or(offset.n), truth[truth.len() - 1].offset.n);
    }
}

const CALM: Faults = Faults { cuts: 0, rollbacks: 0 };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_holds_in_memory() {
    for seed in 0..10 {
        run(seed, Backend::memory(keeping(10_000)).await, 10_000, CALM).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_holds_in_memory_under_trims() {
    for seed in 10..20 {
        run(seed, Backend::memory(keeping(100)).await, 100, CALM).await;
    }
}

/// F32: replies are lost, connections break.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_holds_on_redis_under_cut_connections() {
    for seed in 20..24 {
        run(seed, Backend::redis(keeping(10_000)).await, 10_000, Faults { cuts: 8, rollbacks: 0 })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_holds_on_redis_under_trims_and_cut_connections() {
    for seed in 30..34 {
        run(seed, Backend::redis(keeping(100)).await, 100, Faults { cuts: 5, rollbacks: 0 }).await;
    }
}

/// F09: a promoted replica, a truncated file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_holds_on_redis_under_rollbacks() {
    for seed in 40..46 {
        run(seed, Backend::redis(keeping(10_000)).await, 10_000, Faults { cuts: 3, rollbacks: 4 })
            .await;
    }
}
