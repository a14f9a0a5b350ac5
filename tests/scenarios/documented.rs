//! What the documents show works as it is printed: the README's commands and page, PROTOCOL's frames and calls.
//!
//! Only addresses are replaced: a test's ports are picked by the system. The examples in Rust run with the SDK's tests.

use std::collections::HashMap;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::process::{Process, free_port};
use tests::replica::{listening, run};
use tests::{Browser, Cluster, Page, Replica, Token};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const README: &str = include_str!("../../README.md");
const PROTOCOL: &str = include_str!("../../protocol/PROTOCOL.md");

/// The block of `text` in `language` that contains `what`.
fn block(text: &str, language: &str, what: &str) -> String {
    let start = format!("```{language}\n");
    let mut blocks = text.split(&start).skip(1).filter_map(|rest| rest.split("\n```").next());
    blocks.find(|block| block.contains(what)).unwrap_or_else(|| panic!("no `{what}`")).to_owned()
}

/// The JSON values of a block of PROTOCOL.md, one a line.
fn frames(what: &str) -> Vec<Value> {
    block(PROTOCOL, "json", what).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Runs a block as a shell would; what it printed.
fn shell(dir: &TempDir, block: &str) -> String {
    let output = Command::new("sh").args(["-ec", block]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{block}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// F01 for who has neither SDK nor socket: an event that is sent to one replica is read from another.
#[tokio::test(flavor = "multi_thread")]
async fn the_readmes_curl_publishes_and_reads() {
    let cluster = Cluster::with_replicas(2).await;
    let commands = block(README, "sh", "/api/v1/publish")
        .replace("127.0.0.1:8081", &cluster.replicas[0].address())
        .replace("127.0.0.1:8082", &cluster.replicas[1].address());

    let printed = shell(&TempDir::new().unwrap(), &commands);

    let mut answers = serde_json::Deserializer::from_str(&printed).into_iter::<Value>();
    let (published, read) = (answers.next().unwrap().unwrap(), answers.next().unwrap().unwrap());
    assert_eq!(read["events"][0]["event"], "build.finished", "{read}");
    assert_eq!(read["events"][0]["offset"], published["offset"], "{published}");
}

/// The Redis and the two replicas of the README, started by its own words.
#[tokio::test(flavor = "multi_thread")]
async fn the_readmes_redis_and_replicas_serve() {
    let dir = TempDir::new().unwrap();
    let redis = block(README, "sh", "redis-server --");
    let mut words = redis.split(' ');
    let mut command = Command::new(words.next().unwrap());
    let port = free_port().to_string();
    command.args(words).args(["--port", &port, "--bind", "127.0.0.1"]).current_dir(&dir);
    let _redis = Process::spawn("redis-server", command, "Run ./test.sh");
    let serve = block(README, "sh", "--listen 127.0.0.1:8081");
    let lines = serve.lines().filter_map(|line| line.strip_prefix("target/release/agent-relay "));
    let mut replicas = Vec::new();
    for line in lines {
        let line = line.replace(":6379", &format!(":{port}")).replace(":8081", ":0");
        let words = line.replace(":8082", ":0") + " --log-format json";
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let process = run(&words, &[]);
        let address = process.log().wait("where it listens", listening).await.to_string();
        replicas.push((process, address));
    }

    assert_eq!(replicas.len(), 2);
    for (_, address) in &replicas {
        tests::until("it is ready", async || {
            let get = tests::http::call(address, hyper::Method::GET, "/readyz", &[], "").await;
            (get.ok()?.status == 200).then_some(())
        })
        .await;
    }
}

/// The README's agent is made with its commands, from what has been downloaded already.
#[test]
fn the_readmes_commands_make_an_agent() {
    let dir = TempDir::new().unwrap();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::os::unix::fs::symlink(root, dir.path().join("agent-relay")).unwrap();
    let commands = block(README, "sh", "cargo new my-agent");

    shell(&dir, &format!("export CARGO_NET_OFFLINE=true\n{commands}"));

    let made = std::fs::read_to_string(dir.path().join("my-agent/Cargo.toml")).unwrap();
    for dependency in ["publisher-sdk = ", "serde_json = ", "tokio = "] {
        assert!(made.lines().any(|line| line.starts_with(dependency)), "{dependency}: {made}");
    }
    for feature in ["macros", "rt-multi-thread", "time"] {
        assert!(made.contains(&format!("\"{feature}\"")), "{feature}: {made}");
    }
}

/// A relay with the secret that the README makes lets in the token that the README signs, and nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn the_readmes_secret_and_token_open_a_relay() {
    let dir = TempDir::new().unwrap();
    let secret = block(README, "sh", "openssl rand");
    let (secret, serve) = secret.split_once('\n').unwrap();
    assert_eq!(serve, "target/release/agent-relay serve --jwt-secret-file secret");
    shell(&dir, secret);
    let mut setup = tests::replica::Setup::serve(None);
    let file = dir.path().join("secret").display().to_string();
    setup.flags.extend(["--jwt-secret-file".to_owned(), file]);
    let replica = Replica::start(setup).await;

    let token = block(README, "sh", "openssl dgst").replace("127.0.0.1:8080", &replica.address());
    let with_token: Value = serde_json::from_str(&shell(&dir, &token)).unwrap();
    let without = replica.get("/api/v1/channels/session:42/events").await;

    assert_eq!(with_token, json!({"events": [], "offset": null, "more": false}));
    assert_eq!(without.status, 401);
}

/// The README's page, in a browser: it shows what the agent says, goes on at the other replica, and cancels.
#[tokio::test(flavor = "multi_thread")]
async fn the_readmes_page_survives_its_replica_and_cancels() {
    let mut cluster = Cluster::with_replicas(2).await;
    let agent = cluster.agent("helper").await;
    let session = agent.session("42").await.unwrap();
    let run = session.begin_run("run-1");
    let counting = tokio::spawn(async move {
        for i in 0.. {
            if run.is_cancelled() {
                return run.stop().await.unwrap();
            }
            session.text_delta("turn-1", &format!("{i} ")).unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    let page = block(README, "html", "<!doctype html>")
        .replace("127.0.0.1:8081", &cluster.replicas[0].address())
        .replace("127.0.0.1:8082", &cluster.replicas[1].address());
    let page = Page::open(&serve(page).await).await;
    // Every number once and in order, and how many there are.
    let seen = "text.textContent.trim().split(' ')";
    let whole = format!("{seen}.every((number, i) => number === String(i)) && {seen}.length");
    page.wait("the agent's text", &format!("({whole}) > 20")).await;

    cluster.replicas[0].kill9();
    let before = page.run(&format!("return {seen}.length")).await;

    page.wait("more text, and none is missing", &format!("({whole}) > {before} + 20")).await;
    page.click("button").await;
    counting.await.unwrap();
    agent.close().await.unwrap();
}

/// Serves one page on a port of its own; its address.
async fn serve(page: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/page.html", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut head = [0; 8 * 1024];
            let length = page.len();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\n\
                 Connection: close\r\n\r\n{page}"
            );
            if socket.read(&mut head).await.is_ok() {
                drop(socket.write_all(answer.as_bytes()).await);
            }
        }
    });
    address
}

/// Each frame that PROTOCOL shows to browsers is answered as its table says.
#[tokio::test]
async fn every_frame_up_that_is_shown_is_answered_as_documented() {
    let cluster = Cluster::options().replicas(1).with_secret().set().await;
    let token = Token::of_the_operator().sign();
    let mut browser = cluster.browser().token(&token).connect().await;
    let section = PROTOCOL.split("\n## Frames up").nth(1).unwrap().split("\n## ").next().unwrap();
    let answers: HashMap<&str, &str> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .map(|(name, rest)| (name, rest.trim_end_matches(" |").rsplit(" | ").next().unwrap()))
        .collect();
    let shown = section.lines().filter(|line| line.starts_with("{\"type\""));

    let mut count = 0;
    for line in shown {
        let frame: Value = serde_json::from_str(line).unwrap();
        let answer = browser.ask(frame.clone()).await;
        let documented = answers[frame["type"].as_str().unwrap()];
        let kind = answer["type"].as_str().unwrap();
        assert!(documented.contains(&format!("`{kind}`")), "{frame}\n{answer}");
        assert_ne!(answer["code"], "bad_request", "{frame}\n{answer}");
        count += 1;
    }
    assert!(count > 14, "{count}");
}

/// What HTTP answers has the fields that PROTOCOL shows, and no others.
#[tokio::test]
async fn every_answer_of_http_has_the_fields_that_are_documented() {
    let cluster = Cluster::options().replicas(1).with_secret().set().await;
    let parent = cluster.agent("a1").await;
    let session = parent.session("42").await.unwrap();
    let run = session.begin_run("r1");
    run.announce(&json!({})).await.unwrap();
    let child = cluster.agent_options("a2").child_of(&run);
    let child = child.connect(&cluster.redis.url_of("agent")).await.unwrap();
    let of_session = child.session("42").await.unwrap();
    of_session.text_delta(None, "Hel").unwrap();
    child.flush().await.unwrap();
    let replica = &cluster.replicas[0];
    let operator = Token::of_the_operator().administering().sign();
    let bearer = format!("Bearer {operator}");
    let headers = [("Authorization", &*bearer), ("Content-Type", "application/json")];
    let call = async |method: hyper::Method, path: &str, body: String| {
        tests::http::call(&replica.address(), method, path, &headers, body).await.unwrap()
    };

    for (path, what) in [
        ("/api/v1/channels/session:42/events?limit=1", "{\"events\":["),
        ("/api/v1/channels/session:42", "{\"channel\":\"session:42\",\"head\""),
        (
            "/api/v1/channels/session:42/agents",
            "{\"agents\":[{\"agent_id\":\"a1\",\"since\":1763661000000,\"runs\":[\"r1\"],\"runs_total\":1},",
        ),
        ("/api/v1/agents?limit=1", "\"next\":\"a1\""),
        ("/api/v1/stats", "{\"connections\":5"),
    ] {
        let reply = call(hyper::Method::GET, path, String::new()).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        shows(path, &frames(what)[0], &reply.json());
    }
    let publish = frames("\"event\":\"build.finished\"")[0].to_string();
    let reply = call(hyper::Method::POST, "/api/v1/publish", publish).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(reply.json()["offset"].is_string() && reply.json()["subscribers"].is_u64());
    let bodies = frames("{\"agent_id\":\"a1\",\"name\":\"pause\"");
    let reply = call(hyper::Method::POST, "/api/v1/commands", bodies[0].to_string()).await;
    assert_eq!((reply.status, &reply.json()["type"]), (200, &json!("ack")), "{}", reply.text());
    let reply = call(hyper::Method::POST, "/api/v1/requests", bodies[1].to_string()).await;
    assert_eq!(reply.error_code(), "no_worker", "{}", reply.text());
    let mut page = cluster.browser().token(&operator).path("/ws").connect().await;
    let connection = page.frames().next().unwrap()["connection_id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/connections/{connection}/messages");
    let message = frames("\"event\":\"session.evicted\"")[0].to_string();
    let reply = call(hyper::Method::POST, &path, message).await;
    assert_eq!(reply.json(), json!({"status": "handed_over"}));
    page.wait_for("the message", |frame| frame["event"] == "session.evicted").await;
}

/// Fails where `real` has a field, or a type of one, that `documented` does not show.
fn shows(path: &str, documented: &Value, real: &Value) {
    match (documented, real) {
        (Value::Object(documented), Value::Object(real)) => {
            for (key, value) in real {
                let shown = documented.get(key);
                let path = format!("{path}.{key}");
                shows(&path, shown.unwrap_or_else(|| panic!("{path} is not documented")), value);
            }
        }
        (Value::Array(documented), Value::Array(real)) => {
            for (at, value) in real.iter().enumerate() {
                let shown = documented.get(at).or(documented.last());
                shows(path, shown.unwrap_or_else(|| panic!("{path} is shown empty")), value);
            }
        }
        (documented, real) => assert_eq!(
            std::mem::discriminant(documented),
            std::mem::discriminant(real),
            "{path}: {real}"
        ),
    }
}

/// An agent in any language that says what PROTOCOL's conversation shows hears what it shows.
#[tokio::test]
async fn the_conversation_of_an_agent_goes_as_it_is_documented() {
    let cluster = Cluster::options().replicas(1).with_secret().set().await;
    let alice = Token::of("alice").allowing("command", &["*"]).sign();
    let mut person = cluster.browser().token(&alice).connect().await;
    let serving = Token::of("a1").allowing("serve", &["*"]).allowing("publish", &["*"]).sign();
    let mut agent = cluster.browser().path("/ws/agents/a1").token(&serving).connect().await;
    let mut learned = Learned::default();

    // The first is `connected`, which has come.
    for documented in &frames("{\"type\":\"connected\",\"lease_ms\"")[1..] {
        let kind = documented["type"].as_str().unwrap();
        if !["ack", "error", "live", "command"].contains(&kind) {
            agent.send(learned.real(documented)).await;
            continue;
        }
        if kind == "command" {
            click(&mut person, documented).await;
        }
        let is_it = |frame: &Value| {
            ["type", "id", "channel"].iter().all(|field| frame[field] == documented[field])
        };
        let heard = agent.wait_for(&documented.to_string(), is_it).await;
        learned.compare("", documented, &heard);
    }
}

/// What a person does so that the agent receives the documented command.
async fn click(person: &mut Browser, command: &Value) {
    let sent = &command["data"];
    let frame = match command["name"].as_str().unwrap() {
        "permission_response" => json!({
            "type": "permission_response",
            "requestId": sent["data"]["request_id"],
            "allowed": sent["data"]["answer"]["allowed"],
            "command_id": sent["command_id"],
        }),
        name => json!({
            "type": "command",
            "channel": command["channel"],
            "name": name,
            "data": sent["data"],
            "command_id": sent["command_id"],
        }),
    };
    let answer = person.ask(frame).await;
    assert_eq!(answer["type"], "ack", "{answer}");
}

/// What stands in this conversation for a value of the documented one.
#[derive(Default)]
struct Learned(HashMap<Value, Value>);

impl Learned {
    /// Values that are others in each conversation.
    const OTHERS: [&str; 6] = ["incarnation", "offset", "time_us", "expires_at", "at", "key"];

    /// The documented frame, with the values of this conversation.
    fn real(&self, documented: &Value) -> Value {
        match (self.0.get(documented), documented) {
            (Some(real), _) => real.clone(),
            (None, Value::Object(fields)) => {
                fields.iter().map(|(key, value)| (key.clone(), self.real(value))).collect()
            }
            (None, other) => other.clone(),
        }
    }

    fn compare(&mut self, path: &str, documented: &Value, real: &Value) {
        let field = path.rsplit('.').next().unwrap();
        match (documented, real) {
            (Value::Object(documented), Value::Object(real)) => {
                let keys = |of: &serde_json::Map<String, Value>| {
                    let mut keys: Vec<String> = of.keys().cloned().collect();
                    keys.sort();
                    keys
                };
                assert_eq!(keys(documented), keys(real), "{path}: {real:?}");
                for (key, value) in documented {
                    self.compare(&format!("{path}.{key}"), value, &real[key]);
                }
            }
            _ if Self::OTHERS.contains(&field) => {
                let known = self.0.insert(documented.clone(), real.clone());
                let is_same = known.is_none_or(|known| known == *real) || field != "incarnation";
                assert!(is_same, "{path}: {real}");
            }
            _ => assert_eq!(self.real(documented), *real, "{path}"),
        }
    }
}
