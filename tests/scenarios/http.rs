//! Publishing and reading over HTTP.

use hyper::Method;
use serde_json::{Value, json};
use tests::{Cluster, Replica};

const PUBLISH: &str = "/api/v1/publish";

fn event(channel: &str, name: &str, data: Value) -> Value {
    json!({"channel": channel, "event": name, "data": data})
}

async fn read(replica: &Replica, query: &str) -> Value {
    let reply = replica.get(&format!("/api/v1/channels/session:42/events{query}")).await;
    assert_eq!(reply.status, 200, "{query}: {}", reply.text());
    reply.json()
}

/// One wrong event does not spoil the others: each has its own result, in order.
#[tokio::test]
async fn each_event_of_an_array_has_its_own_result() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().subscribed_to("session:42").await;
    let events = [
        (event("session:42", "number", json!({"i": 0})), ""),
        (event("session:42", "subscribed", json!({})), "reserved_name"),
        (event("session:42", "two words", json!({})), "bad_request"),
        (event("kitchen:sink", "x", json!({})), "bad_request"),
        (event("service:sessions", "x", json!({})), "bad_request"),
        (event("session:42", "x", json!("x".repeat(64 * 1024))), "too_large"),
        (json!({"channel": "session:42", "data": {}}), "bad_request"),
        (json!({"event": "x", "data": {}}), "bad_request"),
        (json!("x"), "bad_request"),
        (event("session:42", "number", json!({"i": 1})), ""),
    ];

    let body = Value::from_iter(events.iter().map(|(event, _)| event.clone()));
    let reply = cluster.replicas[0].post(PUBLISH, body.to_string()).await;

    assert_eq!(reply.status, 200, "{}", reply.text());
    let results = reply.json()["results"].clone();
    assert_eq!(results.as_array().map(Vec::len), Some(events.len()), "{results}");
    for ((event, code), result) in events.iter().zip(results.as_array().unwrap()) {
        let event: String = event.to_string().chars().take(100).collect();
        match *code {
            "" => assert!(result["offset"].is_string(), "{event}: {result}"),
            code => assert_eq!(result["error"]["code"], code, "{event}: {result}"),
        }
    }
    browser.expect_numbers("session:42", 0..2).await;
}

/// A single event's mistake is the call's.
#[tokio::test]
async fn a_wrong_publish_is_refused_with_a_code_that_says_why() {
    let cluster = Cluster::with_replicas(1).await;
    let many: Vec<Value> =
        (0..1_001).map(|i| event("session:42", "number", json!({"i": i}))).collect();
    for (body, status, code) in [
        ("{".to_owned(), 400, "bad_request"),
        (String::new(), 400, "bad_request"),
        ("null".to_owned(), 400, "bad_request"),
        ("7".to_owned(), 400, "bad_request"),
        (json!({"event": "x", "data": {}}).to_string(), 400, "bad_request"),
        (event("session:4 2", "x", json!({})).to_string(), 400, "bad_request"),
        (event("session:42", "connected", json!({})).to_string(), 400, "reserved_name"),
        (event("session:42", &"x".repeat(65), json!({})).to_string(), 400, "bad_request"),
        (
            r#"{"channel":"session:42","event":"x","data":{},"id":"a b"}"#.to_owned(),
            400,
            "bad_request",
        ),
        (r#"{"channel":"session:42","event":"x","data":{},"id":7}"#.to_owned(), 400, "bad_request"),
        (r#"{"channel":"session:42","event":"x","data":{]}"#.to_owned(), 400, "bad_request"),
        (
            format!(
                r#"{{"channel":"session:42","event":"x","data":{}1{}}}"#,
                "[".repeat(101),
                "]".repeat(101)
            ),
            400,
            "bad_request",
        ),
        (event("session:42", "x", json!("x".repeat(64 * 1024))).to_string(), 413, "too_large"),
    ] {
        let reply = cluster.replicas[0].post(PUBLISH, body.clone()).await;

        let body: String = body.chars().take(100).collect();
        assert_eq!(
            (reply.status, reply.error_code().as_str()),
            (status, code),
            "{body}: {}",
            reply.text()
        );
        assert!(
            !reply.json()["error"]["message"].as_str().unwrap_or_default().is_empty(),
            "{body}"
        );
    }
    let reply = cluster.replicas[0].post(PUBLISH, Value::from(many).to_string()).await;
    assert!([400, 413, 429].contains(&reply.status), "1,001 events: {}", reply.text());
    assert_eq!(
        read(&cluster.replicas[0], "?since=start").await["events"],
        json!([]),
        "nothing was written"
    );
}

/// A body beyond 8 MiB is refused, whether it says its length or not.
#[tokio::test]
async fn a_body_beyond_the_limit_is_413() {
    let cluster = Cluster::with_replicas(1).await;

    let reply = cluster.replicas[0].post(PUBLISH, " ".repeat(8 * 1024 * 1024 + 1)).await;

    assert_eq!((reply.status, reply.error_code().as_str()), (413, "too_large"));
}

/// An event of exactly the limit passes.
#[tokio::test]
async fn an_event_of_exactly_64_kib_passes() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().subscribed_to("session:42").await;

    let data = "x".repeat(64 * 1024 - 2);
    cluster.replicas[0].publish("session:42", "large", json!(data)).await;

    browser.wait_until("it", |seen| seen.events("session:42").len() == 1).await;
    assert_eq!(browser.events("session:42")[0].data, data);
}

/// History is read page by page, from any replica, by clients without a socket.
#[tokio::test]
async fn events_are_read_page_by_page() {
    let cluster = Cluster::with_replicas(2).await;
    let offsets = cluster.replicas[0].publish_numbers("session:42", 0..250).await;

    let (mut since, mut numbers, mut pages) = ("start".to_owned(), Vec::new(), 0);
    loop {
        let page = read(&cluster.replicas[1], &format!("?since={since}")).await;
        let events = page["events"].as_array().unwrap().clone();
        assert!(events.len() <= 100, "{}", events.len());
        assert_eq!(page["reset"], Value::Null, "{page}");
        numbers.extend(events.iter().map(|event| event["data"]["i"].as_u64().unwrap()));
        assert_eq!(events.last().map(|event| &event["offset"]), Some(&page["offset"]));
        since = page["offset"].as_str().unwrap().to_owned();
        pages += 1;
        if page["more"] == false {
            break;
        }
    }

    assert_eq!(numbers, (0..250).collect::<Vec<_>>());
    assert_eq!((pages, since.as_str()), (3, offsets[249].as_str()));
    let rest = read(&cluster.replicas[1], &format!("?since={since}")).await;
    assert_eq!(
        (&rest["events"], &rest["offset"], &rest["more"]),
        (&json!([]), &json!(since), &json!(false))
    );
    let limited = read(&cluster.replicas[1], &format!("?since={}&limit=7", offsets[9])).await;
    assert_eq!(limited["events"].as_array().map(Vec::len), Some(7));
    assert_eq!(limited["offset"], offsets[16].as_str());
}

/// An envelope that is read is an envelope that is pushed.
#[tokio::test]
async fn an_event_that_is_read_is_the_event_that_was_pushed() {
    let cluster = Cluster::with_replicas(1).await;
    let mut browser = cluster.browser().subscribed_to("session:42").await;
    cluster.replicas[0].publish("session:42", "note", json!({"text": "hi"})).await;
    let pushed = browser.wait_for_type("event").await;

    let page = read(&cluster.replicas[0], "?since=start").await;

    assert_eq!(page["events"], json!([pushed]));
}

/// A position that cannot be honoured is answered with the reason, over HTTP too.
#[tokio::test]
async fn reading_since_a_position_that_is_gone_says_reset() {
    let cluster = Cluster::with_replicas(1).await;
    cluster.replicas[0].publish_numbers("session:42", 0..5).await;

    let page = read(&cluster.replicas[0], "?since=1000-2-7").await;

    assert_eq!(
        page["reset"].as_str().or(page["reset"]["reason"].as_str()),
        Some("epoch"),
        "{page}"
    );
    assert_eq!(page["events"].as_array().map(Vec::len), Some(5), "{page}");
    for query in ["?since=yesterday", "?limit=0", "?limit=1001", "?limit=x"] {
        let reply =
            cluster.replicas[0].get(&format!("/api/v1/channels/session:42/events{query}")).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (400, "bad_request"), "{query}");
    }
    let reply = cluster.replicas[0].get("/api/v1/channels/kitchen:sink/events").await;
    assert_eq!(reply.error_code(), "bad_request", "{}", reply.text());
}

/// A missing route is answered with JSON, like everything else.
#[tokio::test]
async fn an_unknown_path_is_a_json_404() {
    let cluster = Cluster::with_replicas(1).await;
    for path in ["/api/v1/nothing", "/nothing", "/api/v2/publish"] {
        let reply = cluster.replicas[0].get(path).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (404, "not_found"), "{path}");
    }
}

/// What does not fit the call is said with the status that fits, and in JSON.
#[tokio::test]
async fn a_wrong_method_media_type_or_websocket_version_has_its_status() {
    let cluster = Cluster::with_replicas(1).await;
    let address = cluster.replicas[0].address();
    let call = async |method: Method, path: &str, headers: &[(&str, &str)], body: &str| {
        tests::http::call(&address, method, path, headers, body.to_owned()).await.unwrap()
    };
    for (method, path, allowed) in [
        (Method::GET, "/api/v1/publish", "POST"),
        (Method::DELETE, "/api/v1/agents", "GET"),
        (Method::POST, "/healthz", "GET"),
        (Method::PUT, "/ws", "GET"),
    ] {
        let reply = call(method.clone(), path, &[], "").await;
        assert_eq!((reply.status, reply.error_code().as_str()), (405, "bad_request"), "{path}");
        assert!(reply.header("Allow").contains(allowed), "{method} {path}: {:?}", reply.headers);
    }

    let event = json!({"channel": "session:1", "event": "x", "data": {}}).to_string();
    for path in ["/api/v1/publish", "/api/v1/commands", "/api/v1/requests"] {
        for media_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx"] {
            let reply = call(Method::POST, path, &[("Content-Type", media_type)], &event).await;
            let found = (reply.status, reply.error_code());
            assert_eq!(found, (415, "bad_request".to_owned()), "{path} {media_type}");
        }
    }
    for media_type in ["application/json", "Application/JSON; charset=utf-8"] {
        let headers = [("Content-Type", media_type)];
        let reply = call(Method::POST, "/api/v1/publish", &headers, &event).await;
        assert_eq!(reply.status, 200, "{media_type}: {}", reply.text());
    }

    for (version, status) in [("12", 426), ("14", 426)] {
        let headers = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", version),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let reply = call(Method::GET, "/ws", &headers, "").await;
        assert_eq!((reply.status, reply.error_code().as_str()), (status, "bad_request"));
        assert_eq!(reply.header("Sec-WebSocket-Version"), "13");
    }
}

/// A page that comes with the cookies of a whole domain is let in; what is larger still is told so, and logged.
#[tokio::test]
async fn a_head_may_have_64_kib_and_beyond_it_is_refused_in_json() {
    let cluster = Cluster::with_replicas(1).await;
    let cookies = |kib: usize| "x".repeat(kib * 1024);
    cluster.browser().header("Cookie", &cookies(60)).connect().await.settle().await;

    let address = cluster.replicas[0].address();
    let head = format!("GET /ws HTTP/1.1\r\nHost: {address}\r\nCookie: {}\r\n\r\n", cookies(100));
    let answer = tests::http::Raw::send(&address, &head).await.rest().await;

    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert!(answer.contains(r#""code":"too_large""#), "{answer}");
    let refused = |text: &str| text.contains("a request's head was refused").then_some(());
    cluster.replicas[0].log().wait("a line that says so", refused).await;
}
