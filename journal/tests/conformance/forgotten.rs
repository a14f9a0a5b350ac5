//! Redis forgets leases, or an older state of them comes back: no agent is fenced for it, and each run ends once.

use std::collections::BTreeSet;
use std::time::Duration;

use journal::{Journal, Lease, LeaseError, NewEntry, NoteCall, Reaper, Take};
use protocol::Channel;
use serde_json::Value;
use uuid::Uuid;

use crate::reaper::{losses, poll_for};
use crate::states::{agent, applied, channel, command, told};
use crate::{LEASE, Server, on_both, open};

async fn flush(server: &Server) {
    redis::cmd("FLUSHALL").query_async::<()>(&mut server.connection().await).await.unwrap();
}

fn end(run: &str) -> NewEntry {
    let data = format!(r#"{{"agent_id":"a","runId":"{run}"}}"#);
    NewEntry::new("agent_completed", data).with_key(Uuid::new_v4().to_string())
}

async fn ended(lease: &Lease, run: &str) {
    lease.end_run(run, &end(run)).await.unwrap().await;
}

/// The runs of which an end is told on the channel, each as often as it is.
async fn ends(journal: &Journal, channel: &Channel) -> Vec<String> {
    let mut ends = Vec::new();
    for (name, data) in told(journal, channel).await {
        match (name.as_str(), &data) {
            ("agent_completed", data) => ends.push(data["runId"].as_str().unwrap().to_owned()),
            ("agent_lost", Value::Object(data)) => {
                let runs = data["runs"].as_array().unwrap().iter();
                ends.extend(runs.map(|run| run.as_str().unwrap().to_owned()));
            }
            _ => {}
        }
    }
    ends
}

fn runs(runs: &[&str]) -> Vec<Box<str>> {
    runs.iter().map(|run| Box::from(*run)).collect()
}

/// One thing that an agent does.
#[derive(Clone, Copy, Debug)]
enum Step {
    Begin,
    End,
    Open,
    Close,
    Take,
}

/// All of Redis is gone between each pair of steps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_flushes_between_all_steps_fences_nobody() {
    let server = Server::start().await;
    let journal = open(&server);
    let steps = [Step::Begin, Step::End, Step::Open, Step::Close, Step::Take];
    for (n, (first, second)) in
        steps.into_iter().flat_map(|first| steps.map(|second| (first, second))).enumerate()
    {
        let own = agent(&journal, &format!("a{n}")).await;
        let incarnation = Some(own.holder().incarnation);
        let session = channel(&format!("session:{n}"));
        let open = async || journal.lease(&session, &own.holder().agent, incarnation, None).await;
        let mut opened = Some(open().await.unwrap());
        own.note(&NoteCall::begun(runs(&["r0", "r1"]))).await.unwrap();
        for step in [first, second] {
            flush(&server).await;
            match step {
                Step::Begin => own.note(&NoteCall::begun(runs(&["r2"]))).await.unwrap(),
                Step::End => ended(&own, "r0").await,
                Step::Open => opened = Some(open().await.unwrap()),
                Step::Close => match opened.take() {
                    Some(opened) => opened.release().await.unwrap(),
                    None => opened = Some(open().await.unwrap()),
                },
                Step::Take => {
                    let sent = journal.send(&command(own.channel())).await.unwrap();
                    let take = journal.take(own.channel(), sent.key, own.holder(), false).await;
                    assert_eq!(take, Ok(Take::Yours), "{first:?} {second:?}");
                    journal
                        .finish(own.channel(), sent.key, own.holder(), &applied())
                        .await
                        .unwrap();
                }
            }
        }
        flush(&server).await;
        own.note(&NoteCall::default()).await.unwrap();
        let alive = journal.alive(None, 1_000).await.unwrap().agents;
        let alive = alive.iter().find(|alive| alive.agent_id == own.holder().agent).unwrap();
        assert!(alive.runs.contains(&"r1".into()), "{first:?} {second:?}: {alive:?}");
        assert!(!own.lost().is_cancelled(), "{first:?} {second:?}");
        own.release().await.unwrap();
    }
}

/// An older incarnation that stood still wakes up in an empty Redis, and writes itself back first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_incarnation_that_writes_itself_back_first_is_fenced_all_the_same() {
    for by_renewal in [false, true] {
        let server = Server::start().await;
        let (paused, living) = (open(&server), open(&server));
        let older = agent(&paused, "a").await;
        let newer = agent(&living, "a").await;
        newer.note(&NoteCall::begun(runs(&["r1"]))).await.unwrap();
        flush(&server).await;
        older.note(&NoteCall::begun(runs(&["old"]))).await.unwrap();

        if by_renewal {
            tokio::time::sleep(LEASE).await;
        } else {
            newer.note(&NoteCall::begun(runs(&["r2"]))).await.unwrap();
        }

        assert_eq!(older.note(&NoteCall::default()).await, Err(LeaseError::Fenced));
        assert!(older.lost().is_cancelled() && !newer.lost().is_cancelled());
        let back = paused.lease(older.channel(), "a", Some(older.holder().incarnation), None).await;
        assert!(matches!(back, Err(LeaseError::Fenced)));
        let alive = living.alive(None, 100).await.unwrap().agents;
        assert!(alive[0].runs.contains(&"r1".into()) && !alive[0].runs.contains(&"old".into()));
        assert_eq!(living.agents_on(newer.channel()).await.unwrap().concat(), "a");
    }
}

/// A restored backup knows a run that has ended since, and not the one that has begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_state_is_overwritten_by_what_the_agent_knows() {
    let server = Server::start().await;
    let journal = open(&server);
    let own = agent(&journal, "a").await;
    own.note(&NoteCall::begun(runs(&["r1"]))).await.unwrap();
    let mut redis = server.connection().await;
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut redis).await.unwrap();
    let mut past = Vec::new();
    for key in keys {
        let dump: Vec<u8> = redis::cmd("DUMP").arg(&key).query_async(&mut redis).await.unwrap();
        past.push((key, dump));
    }
    ended(&own, "r1").await;
    own.note(&NoteCall::begun(runs(&["r2"]))).await.unwrap();
    flush(&server).await;
    for (key, dump) in past {
        let mut restore = redis::cmd("RESTORE");
        restore.arg(key).arg(0).arg(dump).query_async::<()>(&mut redis).await.unwrap();
    }

    own.note(&NoteCall::begun(runs(&["r3"]))).await.unwrap();

    let alive = journal.alive(None, 100).await.unwrap().agents.remove(0);
    assert_eq!(alive.runs.concat(), "r2r3");
}

on_both! {
    /// Its agent dies between the end on its own channel and the copy; and says the end again before that.
    async fn a_runs_end_is_told_once_and_copied_though_its_agent_dies_over_it(backend) {
        let journal = &backend.journal;
        let own = agent(journal, "a").await;
        own.note(&NoteCall::begun(runs(&["r1", "r2"]))).await.unwrap();
        let entry = end("r1");
        drop(own.end_run("r1", &entry).await.unwrap());
        drop(own.end_run("r1", &entry).await.unwrap());
        let other = NewEntry { name: "agent_failed".into(), ..entry };
        let other = own.end_run("r1", &other).await.err();
        assert_eq!(other, Some(LeaseError::Conflict), "its key stands for that end");
        let channel = own.channel().clone();
        // Dead: its lease runs out, and what it left undone is done.
        drop(own);
        let mut reaper = Reaper::new(journal.clone());
        let deadline = tokio::time::Instant::now() + LEASE * 5;
        while losses(journal, &Channel::global_events()).await.is_empty() {
            assert!(tokio::time::Instant::now() < deadline);
            poll_for(&mut reaper, Duration::from_millis(500)).await;
        }
        poll_for(&mut reaper, Duration::from_secs(4)).await;
        for channel in [channel, Channel::global_events()] {
            assert_eq!(ends(journal, &channel).await, ["r1", "r2"], "{channel}");
        }
    }
}

on_both! {
    /// The end of a fenced agent's run is told by the one who declared it lost, and by nobody else.
    async fn a_fenced_agent_ends_no_run_and_its_end_is_told_once(backend) {
        let old = agent(&backend.journal, "a").await;
        old.note(&NoteCall::begun(runs(&["r1"]))).await.unwrap();
        let new = agent(&backend.journal, "a").await;

        let ended = old.end_run("r1", &end("r1")).await;

        assert!(matches!(ended, Err(LeaseError::Fenced)));
        assert_eq!(ends(&backend.journal, new.channel()).await, ["r1"]);
    }
}

on_both! {
    /// A worker with thousands of runs dies: each is told once, in pieces that everybody can read.
    async fn a_loss_with_thousands_of_runs_is_told_in_pieces(backend) {
        let journal = &backend.journal;
        let (own, count) = (agent(journal, "a").await, 5_000);
        let all: BTreeSet<String> = (0..count).map(|n| format!("run-{n}-{}", "x".repeat(40))).collect();
        for some in all.iter().collect::<Vec<_>>().chunks(500) {
            own.note(&NoteCall::begun(some.iter().map(|run| run.as_str().into()))).await.unwrap();
        }
        let alive = journal.alive(None, 100).await.unwrap().agents.remove(0);
        assert_eq!((alive.runs_total, alive.runs.len() <= 100), (count, true));
        let own_channel = own.channel().clone();
        drop(own);
        let mut reapers = [Reaper::new(journal.clone()), Reaper::new(journal.clone())];
        let deadline = tokio::time::Instant::now() + LEASE * 15;
        let is_last = |lost: &Vec<Value>| lost.last().is_some_and(|last| last.get("more").is_none());
        while !is_last(&losses(journal, &Channel::global_events()).await) {
            assert!(tokio::time::Instant::now() < deadline, "not settled");
            let [one, other] = &mut reapers;
            let (x, y) = tokio::join!(one.poll(), other.poll());
            x.and(y).unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for channel in [own_channel, Channel::global_events()] {
            let pieces = losses(journal, &channel).await;
            assert!(pieces.iter().all(|piece| piece.to_string().len() <= 61 * 1024));
            let (last, first) = pieces.split_last().unwrap();
            assert!(first.iter().all(|piece| piece["more"] == true) && last.get("more").is_none());
            let told = ends(journal, &channel).await;
            assert_eq!(told.len(), all.len(), "{channel}: each once");
            assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), all, "{channel}");
        }
    }
}

/// An agent gives up a note that Redis has taken, so the lease stands as the next note would leave it. That one is
/// another step all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_note_is_not_taken_for_the_repetition_of_one_that_was_given_up() {
    let server = Server::start().await;
    let (journal, other) = (open(&server), open(&server));
    let own = agent(&journal, "a").await;
    own.note(&NoteCall::begun(runs(&["r0"]))).await.unwrap();
    let noted = async || {
        let mut agents = other.alive(None, 100).await.unwrap().agents;
        agents.remove(0).runs
    };

    let first = NoteCall::begun(runs(&["r1"]));
    let mut given_up = Box::pin(own.note(&first));
    // It goes out with the first poll; seldom its answer is there at once, too.
    drop(futures_util::poll!(&mut given_up));
    let deadline = tokio::time::Instant::now() + LEASE * 15;
    while noted().await != runs(&["r0", "r1"]) {
        assert!(tokio::time::Instant::now() < deadline, "Redis has not taken it");
    }
    drop(given_up);
    own.note(&NoteCall::begun(runs(&["r2"]))).await.unwrap();

    // Whether what was given up stands is open.
    let noted = noted().await;
    assert!(runs(&["r0", "r2"]).iter().all(|run| noted.contains(run)), "{noted:?}");
}

/// The promise: 10,000 channels for each agent. What each costs does not grow with the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_channels_cost_each_what_the_first_did() {
    let server = Server::start().await;
    let journal = open(&server);
    let own = agent(&journal, "a").await;
    let mut redis = server.connection().await;
    let mut sent = Vec::new();
    for n in 0..10_000 {
        let mut note = NoteCall::default();
        note.channels.added.push(channel(&format!("session:{n}")));
        own.note(&note).await.unwrap();
        if n == 999 || n == 8_999 || n == 9_999 {
            let mut info = redis::cmd("INFO");
            let info: String = info.arg("stats").query_async(&mut redis).await.unwrap();
            let bytes = |name: &str| -> u64 {
                info.lines()
                    .find_map(|line| line.strip_prefix(name))
                    .unwrap()
                    .trim()
                    .parse()
                    .unwrap()
            };
            sent.push(bytes("total_net_input_bytes:") + bytes("total_net_output_bytes:"));
        }
    }
    let (first, last) = (sent[0], sent[2] - sent[1]);
    assert!(last < first * 2, "the first thousand took {first} bytes, the last {last}");
    let page = journal.alive(None, 100).await.unwrap();
    assert_eq!(page.agents[0].channels_total, 10_000);
    assert!(page.agents[0].channels.len() <= 100);
}

on_both! {
    async fn the_list_of_the_living_comes_in_pages(backend) {
        let mut leases = Vec::new();
        for n in 0..25 {
            leases.push(agent(&backend.journal, &format!("a{n}")).await);
        }
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = backend.journal.alive(after.as_deref(), 10).await.unwrap();
            assert!(page.agents.len() <= 10);
            seen.extend(page.agents.into_iter().map(|alive| alive.agent_id));
            let Some(next) = page.next else { break };
            after = Some(next);
        }
        assert_eq!(seen.len(), 25);
        assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 25, "each once");
    }
}

/// The agent goes on renewing and has nothing to note: its lease is written again all the same, with what it has
/// noted since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_end_once_where_redis_came_back_with_an_older_state() {
    let server = Server::start().await;
    let journal = open(&server);
    let lease = agent(&journal, "a").await;
    let own = lease.channel().clone();
    lease.note(&NoteCall::begun(runs(&["old", "ended"]))).await.unwrap();
    let mut redis = server.connection().await;
    let saved = dumped(&mut redis).await;
    lease.note(&NoteCall::begun(runs(&["new"]))).await.unwrap();
    ended(&lease, "ended").await;

    restore(&mut redis, &saved).await;
    let mut reaper = Reaper::new(journal.clone());
    poll_for(&mut reaper, LEASE).await;
    drop(lease);
    poll_for(&mut reaper, 3 * LEASE).await;

    let mut told = ends(&journal, &own).await;
    told.sort();
    assert_eq!(told, ["new", "old"], "the end of `ended` was lost with the journal, and was told");
}

/// The agent's old connection still stands on one replica when it comes back on another, and Redis has lost all in
/// between: the later taking is the one that lasts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_taken_anew_after_a_flush_is_not_taken_back_by_the_old_connection() {
    let server = Server::start().await;
    let (old, new) = (open(&server), open(&server));
    let before = agent(&old, "a").await;
    let own = before.channel().clone();
    for _ in 0..5 {
        before.note(&NoteCall::begun(runs(&["r1"]))).await.unwrap();
    }
    flush(&server).await;
    let incarnation = Some(before.holder().incarnation);
    let lease = new.lease(&own, "a", incarnation, None).await.unwrap();
    lease.note(&NoteCall::begun(runs(&["r2"]))).await.unwrap();
    let mut reaper = Reaper::new(new.clone());
    poll_for(&mut reaper, LEASE).await;
    drop(before);

    poll_for(&mut reaper, 2 * LEASE).await;

    assert!(!lease.lost().is_cancelled());
    assert!(losses(&new, &own).await.is_empty());
    drop(lease);
    poll_for(&mut reaper, 2 * LEASE).await;
    assert_eq!(ends(&new, &own).await, ["r2"]);
}

type Dump = Vec<(String, Vec<u8>)>;

async fn dumped(redis: &mut redis::aio::MultiplexedConnection) -> Dump {
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(redis).await.unwrap();
    let mut dump = Dump::new();
    for key in keys {
        let value: Vec<u8> = redis::cmd("DUMP").arg(&key).query_async(redis).await.unwrap();
        dump.push((key, value));
    }
    dump
}

async fn restore(redis: &mut redis::aio::MultiplexedConnection, dump: &Dump) {
    let mut pipe = redis::pipe();
    pipe.atomic().cmd("FLUSHALL").ignore();
    for (key, value) in dump {
        pipe.cmd("RESTORE").arg(key).arg(0).arg(value).ignore();
    }
    pipe.query_async::<()>(redis).await.unwrap();
}

on_both! {
    async fn ends_of_two_runs_with_one_key_are_two_ends(backend) {
        let lease = agent(&backend.journal, "a").await;
        let own = lease.channel().clone();
        lease.note(&NoteCall::begun(runs(&["r1", "r2"]))).await.unwrap();
        for run in ["r1", "r2", "r2"] {
            let end = end(run).with_key("the-same");
            lease.end_run(run, &end).await.unwrap().await;
        }

        assert_eq!(ends(&backend.journal, &own).await, ["r1", "r2"]);
        assert_eq!(ends(&backend.journal, &Channel::global_events()).await, ["r1", "r2"]);
    }
}
