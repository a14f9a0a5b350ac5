//! A request goes to one worker, and is answered whatever the handler does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::cluster::{PATIENCE, Way, events, new_command, nobody_is_on, outcome, request, until};
use journal::{NewCommand, Status, Update};
use publisher_sdk::{Agent, OpenError, RequestError};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use uuid::Uuid;

on_every_way! {
    a_request_is_answered_with_what_the_handler_says,
    a_reply_is_carried_as_it_was_written,
    a_reply_that_some_reader_would_refuse_is_an_error_of_its_own,
    a_waiting_caller_is_told_how_far_a_request_has_come,
    each_request_goes_to_one_worker_with_a_free_hand,
    a_worker_that_closes_answers_what_it_has_begun_and_leaves_the_rest_to_others,
    what_a_lost_worker_has_begun_is_answered_or_done_again_where_that_does_no_harm,
}

const SUMS: &str = "service:sums";

async fn worker(way: &Way, id: &str) -> Agent {
    way.enter(Agent::options().id(id)).await
}

async fn a_request_is_answered_with_what_the_handler_says(way: Way) {
    let (agent, journal) = way.agent().await;
    let service = agent
        .serve("sums", async |request| match request.method.as_str() {
            "sums.add" => {
                let terms: Vec<u64> = request.read()?;
                Ok(json!({"sum": terms.iter().sum::<u64>(), "for": request.by}))
            }
            "sums.panic" => panic!("on purpose"),
            "sums.large" => Ok(json!("x".repeat(2_000_000))),
            "sums.busy" => Err(RequestError::new("busy", "later").retryable()),
            other => Err(RequestError::new("no_method", format!("unknown method `{other}`"))),
        })
        .await
        .unwrap();
    let again = agent.serve("sums", async |_| Ok(Value::Null)).await;
    assert!(matches!(again, Err(OpenError::AlreadyServed(_))), "{again:?}");

    for (method, params, status, field, value) in [
        ("sums.panic", json!([]), Status::Rejected, "code", json!("handler_panicked")),
        ("sums.add", json!([1, 2]), Status::Applied, "sum", json!(3)),
        ("sums.add", json!([1]), Status::Applied, "for", json!("ann")),
        ("sums.add", json!("two"), Status::Rejected, "code", json!("bad_request")),
        ("sums.large", json!([]), Status::Rejected, "code", json!("bad_reply")),
        ("sums.busy", json!(null), Status::Rejected, "retryable", json!(true)),
        ("sums.mul", json!(null), Status::Rejected, "code", json!("no_method")),
    ] {
        let key = request(&journal, SUMS, method, params).await;
        let (found, detail) = outcome(&journal, SUMS, key).await;
        assert_eq!((found, &detail[field]), (status, &value), "{method}: {detail}");
    }
    assert!(events(&journal, "agent:a").await.is_empty());
    drop(service);
    nobody_is_on(&journal, SUMS).await;
    let _again = agent.serve("sums", async |_| Ok(Value::Null)).await.unwrap();
}

/// What a program writes, another reads: no digit is lost, and the keys stay in their order.
async fn a_reply_is_carried_as_it_was_written(way: Way) {
    const REPLY: &str = r#"{"z":100000000000000000000000000000.0,"a":[1.50,1E2,-0],"m":null}"#;
    let (agent, journal) = way.agent().await;
    let reply = || RawValue::from_string(REPLY.to_owned()).map_err(|error| panic!("{error}"));
    let _service = agent.serve("sums", move |_| std::future::ready(reply())).await.unwrap();
    let mut commands = agent.commands();
    let asked = new_command("agent:a", "request", &json!({"method": "sums.add"}));
    let asked = NewCommand { answer_to: Some("nobody".into()), ..asked };

    let served = request(&journal, SUMS, "sums.add", json!(1)).await;
    let replied = journal.send(&asked).await.unwrap().key;
    commands.next().await.unwrap().reply(&reply().unwrap());

    for (channel, key) in [(SUMS, served), ("agent:a", replied)] {
        let (status, _) = outcome(&journal, channel, key).await;
        let found = journal.outcome(&channel.parse().unwrap(), key).await.unwrap().unwrap();
        assert_eq!((status, found.detail.as_deref()), (Status::Applied, Some(REPLY)), "{channel}");
    }
}

/// The reply to a command stands in the event that tells of it: that must stay an event.
async fn a_reply_that_some_reader_would_refuse_is_an_error_of_its_own(way: Way) {
    let (agent, journal) = way.agent().await;
    let mut commands = agent.commands();
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    for (index, (reply, status)) in [
        (nested(99), Status::Applied),
        (nested(100), Status::Rejected),
        (nested(20_000), Status::Rejected),
        (format!("0.{}", "7".repeat(398)), Status::Applied),
        (format!("0.{}", "7".repeat(399)), Status::Rejected),
        (format!("\"{}\"", "x".repeat(65_278)), Status::Applied),
        (format!("\"{}\"", "x".repeat(65_279)), Status::Rejected),
    ]
    .into_iter()
    .enumerate()
    {
        let command_id = Uuid::from_u128(index as u128 + 1);
        let command = NewCommand { command_id, ..new_command("agent:a", "do_it", &json!(null)) };
        let key = journal.send(&command).await.unwrap().key;
        commands.next().await.unwrap().reply(&RawValue::from_string(reply).unwrap());
        assert_eq!(outcome(&journal, "agent:a", key).await.0, status, "{index}");
    }
    let told = events(&journal, "agent:a").await;
    assert!(told.iter().all(|(name, _)| name == "command_status"), "{told:?}");
    assert_eq!(told.len(), 14, "each was delivered, and ended");
}

async fn a_waiting_caller_is_told_how_far_a_request_has_come(way: Way) {
    let (agent, journal) = way.agent().await;
    let gate = Arc::new(Semaphore::new(0));
    let handler = Arc::clone(&gate);
    let service = agent.serve("sums", move |request| {
        let gate = Arc::clone(&handler);
        async move {
            assert!(request.progress(&"x".repeat(70_000)).is_err());
            while gate.try_acquire().is_err() {
                request.progress(&json!({"done": 1})).unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(json!(1))
        }
    });
    let _service = service.await.unwrap();
    let (waiting, mut updates) = journal.follow();
    let mut command = new_command(SUMS, "request", &json!({"method": "sums.add"}));
    command.answer_to = Some(waiting.address().into());

    let key = journal.send(&command).await.unwrap().key;

    let mut rung = async || loop {
        let update = timeout(PATIENCE, updates.next()).await.expect("a notification").unwrap();
        if let Update::Notified { text } = update {
            return text.to_string();
        }
    };
    assert_eq!(rung().await, format!("{key} {{\"done\":1}}"));
    gate.add_permits(1);
    while rung().await != key.to_string() {}
    assert_eq!(outcome(&journal, SUMS, key).await, (Status::Applied, json!(1)));
}

async fn each_request_goes_to_one_worker_with_a_free_hand(way: Way) {
    let journal = &way.journal;
    let (one, two) = (worker(&way, "one").await, worker(&way, "two").await);
    let (busy, most, done) = (
        Arc::<AtomicUsize>::default(),
        Arc::<AtomicUsize>::default(),
        Arc::<AtomicUsize>::default(),
    );
    let gate = Arc::new(Semaphore::new(0));
    let mut services = Vec::new();
    for agent in [&one, &two] {
        let (busy, most) = (Arc::clone(&busy), Arc::clone(&most));
        let (gate, done) = (Arc::clone(&gate), Arc::clone(&done));
        let service = agent.service("sums").at_once(2).serve(move |_| {
            let (busy, most) = (Arc::clone(&busy), Arc::clone(&most));
            let (gate, done) = (Arc::clone(&gate), Arc::clone(&done));
            async move {
                most.fetch_max(busy.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                gate.acquire().await.unwrap().forget();
                busy.fetch_sub(1, Ordering::SeqCst);
                Ok(json!(done.fetch_add(1, Ordering::SeqCst)))
            }
        });
        services.push(service.await.unwrap());
    }
    let mut keys = Vec::new();
    for n in 0..20 {
        keys.push(request(journal, SUMS, "sums.add", json!(n)).await);
    }
    until("every hand is busy", async || (busy.load(Ordering::SeqCst) == 4).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(10)).await;

    gate.add_permits(20);

    for key in keys {
        assert_eq!(outcome(journal, SUMS, key).await.0, Status::Applied);
    }
    assert_eq!((most.load(Ordering::SeqCst), done.load(Ordering::SeqCst)), (4, 20));
}

async fn a_worker_that_closes_answers_what_it_has_begun_and_leaves_the_rest_to_others(way: Way) {
    let journal = &way.journal;
    let leaving = worker(&way, "leaving").await;
    let (gate, begun) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let handler = (Arc::clone(&gate), Arc::clone(&begun));
    let service = leaving.service("sums").at_once(1).serve(move |_| {
        let (gate, begun) = handler.clone();
        async move {
            begun.add_permits(1);
            gate.acquire().await.unwrap().forget();
            Ok(json!("leaving"))
        }
    });
    let _service = service.await.unwrap();
    let first = request(journal, SUMS, "sums.add", json!(1)).await;
    begun.acquire().await.unwrap().forget();
    let second = request(journal, SUMS, "sums.add", json!(2)).await;

    let staying = worker(&way, "staying").await;
    let closing = tokio::spawn(leaving.close());
    let _other = staying.serve("sums", async |_| Ok(json!("staying"))).await.unwrap();
    assert_eq!(outcome(journal, SUMS, second).await, (Status::Applied, json!("staying")));
    gate.add_permits(1);

    closing.await.unwrap().unwrap();
    assert_eq!(outcome(journal, SUMS, first).await, (Status::Applied, json!("leaving")));
}

/// As after a crash: a successor of the same id settles what was begun.
async fn what_a_lost_worker_has_begun_is_answered_or_done_again_where_that_does_no_harm(way: Way) {
    for is_idempotent in [false, true] {
        let journal = &way.journal;
        let lost = worker(&way, "w").await;
        let begun = Arc::new(Semaphore::new(0));
        let handler = Arc::clone(&begun);
        let mut options = lost.service("sums");
        if is_idempotent {
            options = options.idempotent();
        }
        let _lost = options
            .serve(move |_| {
                handler.add_permits(1);
                std::future::pending::<Result<Value, RequestError>>()
            })
            .await
            .unwrap();
        let key = request(journal, SUMS, "sums.add", json!(1)).await;
        begun.acquire().await.unwrap().forget();
        let other = worker(&way, "other").await;
        let _other = other.serve("sums", async |_| Ok(json!("other"))).await.unwrap();

        let successor = worker(&way, "w").await;
        let _successor = successor.serve("sums", async |_| Ok(json!("w"))).await.unwrap();

        let (status, detail) = outcome(journal, SUMS, key).await;
        if is_idempotent {
            assert_eq!(status, Status::Applied, "{detail}");
        } else {
            assert_eq!((status, detail), (Status::Rejected, json!("lost")));
        }
    }
}
