//! What Redis refuses: nothing of it is done, the error says why, and an answer is final.

use std::time::Duration;

use journal::{AppendError, Journal, Name, Retention, Since};
use protocol::Channel;
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

use crate::states::command;
use crate::{Backend, Server, append, entry, events};

async fn run(connection: &mut MultiplexedConnection, line: &str) {
    let mut words = line.split(' ');
    let mut command = redis::cmd(words.next().unwrap());
    for word in words {
        command.arg(word);
    }
    command.query_async::<redis::Value>(connection).await.unwrap();
}

async fn said(journal: &Journal, name: &Name) -> Vec<String> {
    let page = journal.read(name, Since::Start, 100).await.unwrap();
    page.entries.iter().map(|entry| entry.data.to_string()).collect()
}

/// The commands that an append ends with: refused there, the entry would be in the journal all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_that_may_not_run_everything_appends_nothing() {
    let server = Server::start().await;
    let mut admin = server.connection().await;
    for denied in ["publish", "append", "xtrim", "memory", "pexpire"] {
        run(&mut admin, "ACL DELUSER weak").await;
        run(&mut admin, &format!("ACL SETUSER weak on >pw ~* &* +@all -{denied}")).await;
        let journal = Journal::open(&format!("redis://weak:pw@127.0.0.1:{}", server.port)).unwrap();
        let name = events(denied);

        let refused = journal.append(&name, vec![entry("x")]).await;

        let Err(AppendError::Refused(why)) = &refused else { panic!("{denied}: {refused:?}") };
        assert!(why.contains(&denied.to_uppercase()), "{why}");
        run(&mut admin, &format!("ACL SETUSER weak +{denied}")).await;
        assert_eq!(
            append(&journal, &name, "y").await.n,
            1,
            "{denied}: nothing was appended before"
        );
    }
}

/// So is one whose pub/sub names are not ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_that_may_not_publish_here_appends_nothing() {
    let server = Server::start().await;
    run(&mut server.connection().await, "ACL SETUSER weak on >pw ~relay:* &other:* +@all").await;
    let journal = Journal::open(&format!("redis://weak:pw@127.0.0.1:{}", server.port)).unwrap();

    let refused = journal.append(&events("x"), vec![entry("x")]).await;

    assert!(
        matches!(&refused, Err(AppendError::Refused(why)) if why.contains("PUBLISH")),
        "{refused:?}"
    );
    let plain = Journal::open(&server.url()).unwrap();
    assert_eq!(append(&plain, &events("x"), "y").await.n, 1);
}

/// The commands that a step writes with: refused in its middle, half of it would stand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_that_may_not_run_everything_changes_no_record() {
    let server = Server::start().await;
    let mut admin = server.connection().await;
    for denied in ["zadd", "hset", "zrem", "hdel", "publish", "pexpire", "xadd"] {
        run(&mut admin, "ACL DELUSER weak").await;
        run(&mut admin, &format!("ACL SETUSER weak on >pw ~* &* +@all -{denied}")).await;
        let journal = Journal::open(&format!("redis://weak:pw@127.0.0.1:{}", server.port)).unwrap();
        let own = Channel::agent(denied).unwrap();

        let refused = journal.lease(&own, denied, None, None).await;

        let why = refused.unwrap_err().to_string();
        assert!(why.contains(&denied.to_uppercase()), "{why}");
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut admin).await.unwrap();
        assert!(keys.is_empty(), "{denied}: {keys:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retention_setting_that_cannot_be_read_counts_as_absent() {
    let backend = Backend::redis(Retention::default()).await;
    let mut admin = backend.server.as_ref().unwrap().connection().await;
    for (index, setting) in
        ["many few old", "0 0 0", "1 2", "99999999999999999999 1 1"].iter().enumerate()
    {
        let name = events(&format!("setting-{index}"));
        let settings =
            format!("relay:{{{}}}:cfg", protocol::partition_tag(name.channel.partition()));
        let mut set = redis::cmd("HSET");
        set.arg(&settings).arg("session").arg(*setting);
        set.query_async::<redis::Value>(&mut admin).await.unwrap();

        assert_eq!(append(&backend.journal, &name, "x").await.n, 1, "{setting}");
        assert_eq!(append(&backend.journal, &name, "y").await.n, 2, "{setting}");
    }
    assert_eq!(backend.journal.malformed_retention().await.unwrap(), ["session"]);
    let name = events("no-hash");
    let settings = format!("relay:{{{}}}:cfg", protocol::partition_tag(name.channel.partition()));
    run(&mut admin, &format!("SET {settings} x")).await;
    assert_eq!(append(&backend.journal, &name, "x").await.n, 1);
    let sent = backend.journal.send(&command(&name.channel)).await;
    assert!(sent.is_ok(), "{sent:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_another_type_is_refused_before_anything_is_written() {
    let backend = Backend::redis(Retention::default()).await;
    let mut admin = backend.server.as_ref().unwrap().connection().await;
    let name = events("typed");
    let stream = format!(
        "relay:{{{}}}:events:{}",
        protocol::partition_tag(name.channel.partition()),
        name.channel
    );
    run(&mut admin, &format!("SET {stream} x")).await;

    let refused = backend.journal.append(&name, vec![entry("x")]).await;

    assert!(
        matches!(&refused, Err(AppendError::Refused(why)) if why.contains("WRONGTYPE")),
        "{refused:?}"
    );
    run(&mut admin, &format!("DEL {stream}")).await;
    assert_eq!(append(&backend.journal, &name, "y").await.n, 1);
}

async fn connections(admin: &mut MultiplexedConnection) -> u64 {
    let mut info = redis::cmd("INFO");
    let info: String = info.arg("stats").query_async(admin).await.unwrap();
    let count = info.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
    count.unwrap().trim().parse().unwrap()
}

/// The caller is told that nothing was appended, and that stays true; the connection stands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_refuses_writes_an_append_is_taken_back_by_who_waits_no_longer() {
    for (refuse, take) in [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
    ] {
        let backend = Backend::redis(Retention::default()).await;
        let mut admin = backend.server.as_ref().unwrap().connection().await;
        let name = events("refused");
        append(&backend.journal, &name, "before").await;
        let before = connections(&mut admin).await;
        run(&mut admin, refuse).await;

        let mut receipts = Vec::new();
        for i in 0..20 {
            receipts
                .push(backend.journal.enqueue(&name, vec![entry(&i.to_string())]).await.unwrap());
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        let outcomes =
            futures_util::future::join_all(receipts.into_iter().map(|r| r.until(deadline))).await;

        for outcome in outcomes {
            assert_eq!(outcome, Err(AppendError::NotAppended), "{refuse}");
        }
        let made = connections(&mut admin).await - before;
        assert!(made <= 12, "{refuse}: {made} connections in two seconds");
        run(&mut admin, take).await;
        append(&backend.journal, &name, "after").await;
        let said = said(&backend.journal, &name).await;
        assert_eq!(said, [r#"{"delta":"before"}"#, r#"{"delta":"after"}"#], "{refuse}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_never_sent_is_not_appended() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let journal = Journal::open(&format!("redis://127.0.0.1:{port}")).unwrap();
    let receipt = journal.enqueue(&events("x"), vec![entry("x")]).await.unwrap();

    let outcome = receipt.until(Instant::now() + Duration::from_millis(300)).await;

    assert_eq!(outcome, Err(AppendError::NotAppended));
}
