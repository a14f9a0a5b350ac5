//! Pages of other origins: which may use the relay, and what their browsers must be told.

use hyper::Method;
use serde_json::json;
use tests::{Cluster, Token};

const APP: &str = "https://app.example";

/// `--allow-origin` names the pages of other origins that may use the HTTP API: their browsers ask first, and let
/// them read the answer.
#[tokio::test]
async fn a_page_of_an_allowed_origin_may_use_the_http_api() {
    let origins = format!("{APP},http://localhost:3000");
    let options = Cluster::options().replicas(1).with_secret();
    let cluster = options.flag("--allow-origin").flag(&origins).set().await;
    let address = cluster.replicas[0].address();
    let bearer = format!("Bearer {}", Token::of("ada").allowing("publish", &["*"]).sign());
    let call = async |method: Method, headers: &[(&str, &str)], body: &str| {
        let path = "/api/v1/publish";
        tests::http::call(&address, method, path, headers, body.to_owned()).await.unwrap()
    };

    let asked = "authorization, content-type";
    let preflight = |origin| {
        [
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", asked),
        ]
    };
    let reply = call(Method::OPTIONS, &preflight(APP), "").await;
    assert_eq!(reply.status, 204, "{}", reply.text());
    assert_eq!(reply.header("Access-Control-Allow-Origin"), APP);
    assert_eq!(reply.header("Access-Control-Allow-Headers"), asked);
    assert!(reply.header("Access-Control-Allow-Methods").contains("POST"));
    assert_eq!(reply.header("Vary"), "Origin");

    let event = json!({"channel": "session:1", "event": "x", "data": {}}).to_string();
    let from = |origin| {
        [("Origin", origin), ("Authorization", &*bearer), ("Content-Type", "application/json")]
    };
    let reply = call(Method::POST, &from(APP), &event).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.header("Access-Control-Allow-Origin"), APP);
    let exposed = reply.header("Access-Control-Expose-Headers");
    for name in ["X-Poll-Interval", "Retry-After", "ETag"] {
        assert!(exposed.contains(name), "{exposed}");
    }
    // What is refused can be read as well.
    let reply = call(Method::POST, &[("Origin", APP)], &event).await;
    assert_eq!((reply.status, reply.header("Access-Control-Allow-Origin").as_str()), (401, APP));

    for origin in ["https://evil.example", "http://app.example", "null"] {
        let reply = call(Method::OPTIONS, &preflight(origin), "").await;
        assert_eq!(reply.header("Access-Control-Allow-Origin"), "", "{origin}");
        let reply = call(Method::POST, &from(origin), &event).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (403, "forbidden"), "{origin}");
        assert_eq!(reply.header("Access-Control-Allow-Origin"), "", "{origin}");
    }
}

/// Pages on a WebSocket are held to the same list; an origin that is not on it is refused before the upgrade,
/// whatever its token.
#[tokio::test]
async fn a_page_that_is_not_named_cannot_open_a_websocket() {
    let options = Cluster::options().replicas(1).with_secret();
    let cluster = options.flag("--allow-origin").flag(APP).set().await;
    let token = Token::of("ada").sign();
    let page = |origin: &str, token: &str| cluster.browser().header("Origin", origin).token(token);

    page(APP, &token).connect().await.settle().await;
    page(&format!("http://{}", cluster.replicas[0].address()), &token)
        .connect()
        .await
        .settle()
        .await;
    assert_eq!(page(APP, "bad").turned_away().await.0, 4501);
    for token in [&*token, "bad"] {
        assert_eq!(page("https://evil.example", token).refused().await, 403);
    }
}

/// Where nothing is named, no browser is told that it may.
#[tokio::test]
async fn without_the_flag_no_page_of_another_origin_reads_an_answer() {
    let cluster = Cluster::options().replicas(1).with_secret().set().await;
    let address = cluster.replicas[0].address();
    let headers = [("Origin", APP), ("Access-Control-Request-Method", "POST")];
    for method in [Method::OPTIONS, Method::GET] {
        let path = "/api/v1/channels/session:1";
        let reply = tests::http::call(&address, method, path, &headers, "").await.unwrap();
        assert_eq!(reply.header("Access-Control-Allow-Origin"), "");
    }
}
