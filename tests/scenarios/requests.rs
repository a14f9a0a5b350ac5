//! A request always gets its reply, once: from its worker, or the reason why the worker gave no reply.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{SinkExt, StreamExt};
use hyper::Method;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tests::{Cluster, Token, http};
use tokio::sync::Semaphore;
use tokio_tungstenite::tungstenite::Message;

fn request(method: &str) -> Value {
    json!({"type": "request", "method": method, "params": {"title": "New"}})
}

fn error(response: &Value) -> (&Value, &Value) {
    assert_eq!(response["type"], "response", "{response}");
    (&response["error"]["code"], &response["error"]["retryable"])
}

/// What a worker says is the reply, and nothing else of the connection waits for it.
#[tokio::test]
async fn a_request_is_answered_by_a_worker_while_everything_else_goes_on() {
    let cluster = Cluster::options().with_secret().set().await;
    let mut worker = cluster.actor("w1").await.opens("service:sessions").await;
    let token = Token::of("ada").allowing("request", &["sessions.*"]).sign();
    let mut browser = cluster.browser_on(1).token(&token).connect().await;

    let mut frame = request("sessions.create");
    (frame["id"], frame["timeout_ms"]) = (json!("r1"), json!(30_000));
    browser.send(frame).await;
    let asked = worker.next().await;
    browser.settle().await;
    assert!(worker.takes(&asked).await && worker.applies(&asked, json!({"id": 7})).await);
    let response = browser.wait_for_type("response").await;

    let data: Value = serde_json::from_str(&asked.data).unwrap();
    assert_eq!(data, json!({"method": "sessions.create", "params": {"title": "New"}}));
    assert_eq!(
        (&*asked.name, asked.is_request, asked.by.as_deref()),
        ("request", true, Some("ada"))
    );
    let expected = json!({"type": "response", "id": "r1", "command_id": &*asked.command_id, "result": {"id": 7}});
    assert_eq!(response, expected);
}

/// Each reason for a missing result has its code.
#[tokio::test]
async fn every_request_without_a_result_says_why() {
    let cluster = Cluster::options().with_secret().set().await;
    let mut worker = cluster.actor("w1").await.opens("service:sessions").await;
    let token = Token::of("ada").allowing("request", &["sessions.*", "models.*"]);
    let token = token.allowing("command", &["session:42"]).sign();
    let mut browser = cluster.browser().token(&token).connect().await;
    let rejections = [
        (json!({"code": "quota", "message": "none left", "retryable": true}), "quota", true),
        (json!({"code": "quota", "message": "none left"}), "quota", false),
        (json!("not today"), "rejected", false),
        (Value::Null, "rejected", false),
    ];

    for (detail, code, is_retryable) in rejections {
        let (response, ()) = tokio::join!(browser.ask(request("sessions.create")), async {
            let asked = worker.next().await;
            assert!(worker.takes(&asked).await && worker.rejects(&asked, detail).await);
        });
        assert_eq!(error(&response), (&json!(code), &json!(is_retryable)), "{response}");
    }
    let to = |channel: &str, method: &str| {
        let mut frame = request(method);
        frame["channel"] = json!(channel);
        frame
    };
    for (frame, code, is_retryable) in [
        (request("models.list"), "no_worker", true),
        (to("session:42", "models.list"), "agent_unavailable", true),
        (to("session:43", "models.list"), "not_found", false),
        (request("files.read"), "not_found", false),
    ] {
        let response = browser.ask(frame).await;
        assert_eq!(error(&response), (&json!(code), &json!(is_retryable)), "{response}");
        assert!(response["command_id"].is_string(), "{response}");
    }
}

/// Progress goes to the clients that wait, also after a reconnect to another replica, and to no other.
#[tokio::test]
async fn a_client_that_waits_for_a_reply_is_told_how_far_it_has_come() {
    let cluster = Cluster::with_replicas(2).await;
    let agent = cluster.agent("w1").await;
    let (done, seen) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
    let worker = (Arc::clone(&done), Arc::clone(&seen));
    let service = agent.serve("files", move |request| {
        let (done, seen) = worker.clone();
        async move {
            while seen.try_acquire().is_err() {
                request.progress(&json!({"done": done.load(Ordering::SeqCst)})).unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(json!("copied"))
        }
    });
    let _service = service.await.unwrap();
    let mut asking = cluster.browser_on(0).connect().await;
    let mut other = cluster.browser_on(1).connect().await;
    let mut frame = request("files.copy");
    frame["command_id"] = json!("6f1f3cf3-94c7-4c8b-9f8e-2f3a4b5c6d7e");
    frame["id"] = json!("r1");

    asking.send(frame.clone()).await;
    let first = asking.wait_for_type("request_progress").await;
    asking.vanish();
    done.store(3, Ordering::SeqCst);
    let mut back = cluster.browser_on(1).connect().await;
    back.send(frame).await;
    let is_later =
        |frame: &Value| frame["type"] == "request_progress" && frame["data"]["done"] == 3;
    let later = back.wait_for("what is said later", is_later).await;
    seen.add_permits(1);
    let response = back.wait_for_type("response").await;
    other.settle().await;

    let command_id = "6f1f3cf3-94c7-4c8b-9f8e-2f3a4b5c6d7e";
    let expected = json!({"type": "request_progress", "id": "r1", "command_id": command_id, "data": {"done": 0}});
    assert_eq!(first, expected);
    assert_eq!(later["id"], "r1");
    assert_eq!((&response["id"], &response["result"]), (&json!("r1"), &json!("copied")));
    back.settle().await;
    assert_eq!((back.count("response"), other.count("request_progress")), (1, 0));
    assert_eq!(back.frames().last().unwrap()["type"], "pong", "no progress after the reply");
}

/// A worker that dies over a request is reported; the request is not done twice.
#[tokio::test]
async fn a_worker_that_dies_over_a_request_is_reported_as_lost() {
    let cluster = Cluster::with_replicas(1).await;
    let mut worker = cluster.actor("w1").await.opens("service:sessions").await;
    let mut browser = cluster.browser().connect().await;

    let (response, successor) = tokio::join!(browser.ask(request("sessions.create")), async {
        let asked = worker.next().await;
        assert!(worker.takes(&asked).await);
        drop(worker);
        // The sooner of the two ways to know that it is dead: its successor is there.
        let successor = cluster.actor("w1").await.opens("service:sessions").await;
        assert!(!successor.takes(&asked).await, "it may have been begun");
        successor
    });

    assert_eq!(error(&response), (&json!("worker_lost"), &json!(true)), "{response}");
    drop(successor);
}

/// kill -9 of a worker: what it had begun is reported, what it had not is done by another.
#[tokio::test]
async fn each_request_in_flight_while_its_worker_is_killed_gets_one_reply() {
    let cluster = Cluster::with_replicas(2).await;
    let mut doomed = cluster.actor("w1").await.opens("service:sessions").await;
    let mut other = cluster.actor("w2").await.opens("service:sessions").await;
    let mut browser = cluster.browser_on(1).connect().await;
    let mut frame = request("sessions.create");
    (frame["id"], frame["timeout_ms"]) = (json!("begun"), json!(60_000));
    browser.send(frame.clone()).await;
    let begun = doomed.next().await;
    assert!(doomed.takes(&begun).await);
    frame["id"] = json!("waiting");
    browser.send(frame).await;
    doomed.next().await;

    drop(doomed);
    for _ in 0..2 {
        let asked = other.next().await;
        if other.takes(&asked).await {
            assert!(other.applies(&asked, json!("by another")).await);
        }
    }
    let waiting = browser.wait_for("a reply", |frame| frame["id"] == "waiting").await;
    let begun = browser.wait_for("a reply", |frame| frame["id"] == "begun").await;
    browser.settle().await;

    assert_eq!(waiting["result"], "by another", "{waiting}");
    assert_eq!(error(&begun), (&json!("worker_lost"), &json!(true)), "{begun}");
    assert_eq!(browser.count("response"), 2);
}

/// The deadline is kept; what comes after it changes nothing.
#[tokio::test]
async fn a_request_whose_deadline_passes_is_answered_and_stays_answered() {
    let cluster = Cluster::with_replicas(2).await;
    let mut worker = cluster.actor("w1").await.opens("service:sessions").await;
    let mut browser = cluster.browser_on(0).connect().await;

    for is_begun in [true, false] {
        let mut frame = request("sessions.create");
        frame["timeout_ms"] = json!(300);
        let (response, asked) = tokio::join!(browser.ask(frame.clone()), async {
            let asked = worker.next().await;
            assert!(!is_begun || worker.takes(&asked).await);
            asked
        });
        let is_too_late = !worker.takes(&asked).await;
        let is_said = worker.applies(&asked, json!("late")).await;
        frame["command_id"] = response["command_id"].clone();
        let again = cluster.browser_on(1).connect().await.ask(frame).await;

        assert_eq!(error(&response), (&json!("timeout"), &json!(true)), "{response}");
        assert!(is_too_late && !is_said, "it is over");
        assert_eq!(again["error"], response["error"], "the same reply");
    }
}

/// The replica dies with the request under way: asked again elsewhere, there is one reply, and one doing.
#[tokio::test]
async fn a_request_in_flight_while_its_replica_is_killed_gets_one_reply_when_it_is_repeated() {
    let mut cluster = Cluster::with_replicas(2).await;
    let mut worker = cluster.actor("w1").await.opens("service:sessions").await;
    for round in 0..3 {
        let mut browser = cluster.browser_on(0).connect().await;
        let mut frame = request("sessions.create");
        frame["command_id"] = json!(format!("6f1f3cf3-94c7-4c8b-9f8e-2f3a4b5c6d7{round}"));
        frame["timeout_ms"] = json!(30_000);
        let mut first = frame.clone();
        first["id"] = json!("r1");
        browser.send(first).await;
        let asked = worker.next().await;
        assert!(worker.takes(&asked).await);

        cluster.replicas[0].kill9();
        browser.wait_for_close().await;
        let mut back = cluster.browser_on(1).connect().await;
        let is_early = round == 0;
        if !is_early {
            assert!(worker.applies(&asked, json!({"round": round})).await);
        }
        let (response, ()) = tokio::join!(back.ask(frame.clone()), async {
            if is_early {
                tests::wait::pause(Duration::from_millis(200)).await;
                assert!(worker.applies(&asked, json!({"round": round})).await);
            }
        });
        let again = back.ask(frame).await;
        back.settle().await;

        assert_eq!(response["result"], json!({"round": round}), "{response}");
        assert_eq!(again["result"], response["result"], "{again}");
        assert_eq!(back.count("response"), 2, "one for each asking");
        assert_eq!(browser.count("response"), 0);
        cluster.replicas[0].restart().await;
        cluster.replicas[0].ready().await;
    }
    let (last, done) = tokio::join!(
        cluster.replicas[1].post("/api/v1/requests", request("sessions.last").to_string()),
        worker.serves(json!(1))
    );
    assert_eq!(last.json()["result"], 1);
    assert!(done.data.contains("sessions.last"), "nothing was offered twice: {done:?}");
}

/// A connection that closes ends its own waiting, and nothing else.
#[tokio::test]
async fn a_browser_that_leaves_does_not_stop_what_it_asked_for() {
    let cluster = Cluster::with_replicas(2).await;
    let mut worker = cluster.actor("w1").await.opens("service:sessions").await;
    let mut browser = cluster.browser_on(0).connect().await;
    let mut frame = request("sessions.create");
    (frame["id"], frame["command_id"]) = (json!(1), json!("6f1f3cf3-94c7-4c8b-9f8e-2f3a4b5c6d7e"));
    browser.send(frame.clone()).await;
    let asked = worker.next().await;
    assert!(worker.takes(&asked).await);

    browser.vanish();
    let said = worker.applies(&asked, json!("done")).await;
    let response = cluster.browser_on(1).connect().await.ask(frame).await;

    assert!(said);
    assert_eq!(response["result"], "done", "{response}");
}

/// The same `id` from two browsers never mixes; the same `command_id` of two users neither.
#[tokio::test]
async fn equal_ids_of_two_people_are_two_requests() {
    let cluster = Cluster::options().with_secret().set().await;
    let mut worker = cluster.actor("w1").await.opens("service:sessions").await;
    let mut frame = request("sessions.create");
    frame["command_id"] = json!("6f1f3cf3-94c7-4c8b-9f8e-2f3a4b5c6d7e");
    let ask = async |user: &str, replica: usize| {
        let token = Token::of(user).allowing("request", &["*"]).sign();
        cluster.browser_on(replica).token(&token).connect().await.ask(frame.clone()).await
    };

    let (ada, ben, ()) = tokio::join!(ask("ada", 0), ask("ben", 1), async {
        for _ in 0..2 {
            let asked = worker.next().await;
            assert!(worker.takes(&asked).await);
            assert!(worker.applies(&asked, json!(asked.by.as_deref())).await);
        }
    });

    assert_eq!((&ada["id"], &ada["result"]), (&json!("ask-1"), &json!("ada")), "{ada}");
    assert_eq!((&ben["id"], &ben["result"]), (&json!("ask-1"), &json!("ben")), "{ben}");
}

/// What one connection makes a replica wait for is bounded, and the bound is said.
#[tokio::test]
async fn a_connection_has_so_many_requests_under_way_and_no_more() {
    let cluster = Cluster::with_replicas(1).await;
    let worker = cluster.actor("w1").await.opens("service:sessions").await;
    let mut browser = cluster.browser().connect().await;

    for id in 0..65 {
        let mut frame = request("sessions.create");
        (frame["id"], frame["timeout_ms"]) = (json!(id), json!(60_000));
        browser.send(frame).await;
    }
    let refused = browser.wait_for_type("response").await;
    browser.settle().await;

    assert_eq!(error(&refused), (&json!("limit_exceeded"), &json!(false)), "{refused}");
    assert_eq!((&refused["id"], browser.count("response")), (&json!(64), 1));
    drop(worker);
}

/// The same by HTTP: it waits for the reply, and says no with a status.
#[tokio::test]
async fn requests_are_taken_by_http_as_well() {
    let cluster = Cluster::with_replicas(2).await;
    let mut worker = cluster.actor("w1").await.opens("service:sessions").await;
    let body = json!({"method": "sessions.create", "id": "x", "timeout_ms": 300});
    let post = async |replica: usize, body: &Value| {
        let address = cluster.replicas[replica].address();
        let path = "/api/v1/requests";
        http::call(&address, Method::POST, path, &[], body.to_string()).await.unwrap()
    };

    let (reply, asked) = tokio::join!(post(0, &body), worker.serves(json!([1])));
    let late = post(0, &body).await;
    let mut repeated = body.clone();
    repeated["command_id"] = json!(&*asked.command_id);
    let again = join_all((0..2).map(|replica| post(replica, &repeated))).await;
    let nobody = post(1, &json!({"method": "models.list"})).await;

    for reply in [&reply, &again[0], &again[1]] {
        let expected =
            json!({"type": "response", "id": "x", "command_id": &*asked.command_id, "result": [1]});
        assert_eq!((reply.status, reply.json()), (200, expected));
    }
    assert_eq!((late.status, late.error_code().as_str()), (504, "timeout"));
    assert_eq!((nobody.status, nobody.error_code().as_str()), (503, "no_worker"));
    assert_eq!(nobody.header("retry-after"), "1");
}

/// Replies are kept for ten minutes: one who asks for large ones without end has to wait, and nobody else has.
#[tokio::test]
async fn one_asker_does_not_fill_redis_with_replies() {
    let cluster = Cluster::options().with_secret().set().await;
    let mut worker = cluster.actor("w1").await.opens("service:files").await;
    let reply = json!("x".repeat(65_000));
    let working = tokio::spawn(async move {
        loop {
            worker.serves(reply.clone()).await;
        }
    });
    let ask = async |user: &str| {
        let token = Token::of(user).allowing("request", &["files.*"]).sign();
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", &*bearer), ("content-type", "application/json")];
        let body = r#"{"method":"files.read","timeout_ms":60000}"#;
        let address = cluster.replicas[0].address();
        http::call(&address, Method::POST, "/api/v1/requests", &headers, body).await.unwrap()
    };

    let mut asked = 0;
    let refused = loop {
        // Together they are quicker than a MiB a second, on any machine.
        let replies = join_all((0..64).map(|_| ask("ada"))).await;
        asked += replies.iter().filter(|reply| reply.status == 200).count();
        if let Some(refused) = replies.into_iter().find(|reply| reply.status != 200) {
            break refused;
        }
        assert!(asked < 10_000, "16 MiB are 258 of them, and each second brings 16 more");
    };

    assert_eq!((refused.status, refused.error_code().as_str()), (429, "rate_limited"));
    assert!(refused.json()["error"]["retry_after_ms"].is_u64(), "{}", refused.text());
    assert_eq!(ask("ben").await.status, 200, "another asker");
    working.abort();
}

/// No digit of a reply is lost on its way to the page, and its keys stay in their order.
#[tokio::test]
async fn a_reply_reaches_the_page_as_it_was_written() {
    const REPLY: &str = r#"{"z":100000000000000000000000000000,"a":[1.50,1E2,-0],"m":null}"#;
    let cluster = Cluster::with_replicas(2).await;
    let agent = cluster.agent("w1").await;
    let reply = |_| async { Ok(RawValue::from_string(REPLY.to_owned()).unwrap()) };
    let _service = agent.serve("sums", reply).await.unwrap();
    let mut socket = cluster.browser_on(1).connect_raw().await;
    let frame = json!({"type": "request", "id": "r1", "method": "sums.add", "params": {}});
    socket.send(Message::text(frame.to_string())).await.unwrap();
    let heard = async {
        loop {
            let message = socket.next().await.unwrap().unwrap().into_text().unwrap();
            if message.contains(r#""type":"response""#) {
                return message;
            }
        }
    };

    let response = tokio::time::timeout(tests::PATIENCE, heard).await.unwrap();
    assert!(response.contains(&format!(r#""result":{REPLY}"#)), "{response}");
    let body = json!({"method": "sums.add", "params": {}}).to_string();
    let response = cluster.replicas[0].post("/api/v1/requests", body).await;
    assert!(response.text().contains(&format!(r#""result":{REPLY}"#)), "{}", response.text());
}
