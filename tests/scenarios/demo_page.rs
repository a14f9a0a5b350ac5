//! The demo, as a person sees it who tries the product for the first time: in a real browser.

use std::path::PathBuf;

use hyper::Method;
use serde_json::{Value, json};
use tests::replica::{Setup, run};
use tests::{Cluster, Page, Replica, Token, http};

async fn demo() -> (Replica, Page) {
    let demo = Replica::start(Setup { subcommand: "demo", ..Setup::serve(None) }).await;
    let page = Page::open(&format!("http://{}/", demo.address())).await;
    (demo, page)
}

/// The newest run streams, and can be cancelled.
const RUNS: &str = "document.querySelector('#run')?.dataset.status === 'running' \
    && document.querySelector('#text')?.textContent.length > 20 \
    && !document.querySelector('#cancel').disabled";

/// One command, and a page shows a live agent that one can stop.
#[tokio::test]
async fn the_demo_page_streams_a_run_and_its_cancel_button_cancels_it() {
    let (_demo, page) = demo().await;
    page.wait("a run streams", RUNS).await;
    if let Some(file) = std::env::var_os("RELAY_SCREENSHOT") {
        page.screenshot(&PathBuf::from(file)).await;
    }
    let run = page.run("return document.querySelector('#run').dataset.run").await;

    page.click("#cancel").await;

    // The run's own element: its `#run` may have moved to the next run already.
    let status =
        format!("document.querySelector('[data-run={run}]')?.dataset.status === 'cancelled'");
    page.wait("the run is cancelled", &status).await;
    page.wait("nothing is missing", "document.querySelector('#integrity').dataset.gaps === '0'")
        .await;
    page.wait(
        "nothing is doubled",
        "document.querySelector('#integrity').dataset.duplicates === '0'",
    )
    .await;
}

/// F17 as a person sees it: the relay is killed and comes back; the page says so and goes on.
#[tokio::test]
async fn the_demo_page_survives_a_killed_relay_and_says_what_was_lost() {
    let (mut demo, page) = demo().await;
    page.wait("a run streams", RUNS).await;
    let state =
        |state: &str| format!("document.querySelector('#connection').dataset.state === '{state}'");
    page.wait("the page is live", &state("live")).await;

    demo.kill9();
    page.wait("the page is offline", &state("offline")).await;
    demo.restart().await;

    page.wait("the page is live again", &state("live")).await;
    page.wait("the person is told", "!document.querySelector('#notice').hidden").await;
    page.wait("a run streams again", RUNS).await;
    page.wait("nothing is missing", "document.querySelector('#integrity').dataset.gaps === '0'")
        .await;
    page.wait(
        "nothing is doubled",
        "document.querySelector('#integrity').dataset.duplicates === '0'",
    )
    .await;
}

/// The page reads the browser's word for a lost network; waiting for silence would take 35 seconds.
#[tokio::test]
async fn the_demo_page_is_offline_as_soon_as_the_browser_is() {
    let (_demo, page) = demo().await;
    page.wait("a run streams", RUNS).await;

    page.set_offline(true).await;

    let is =
        |state: &str| format!("document.querySelector('#connection').dataset.state === '{state}'");
    page.wait("the page is offline", &is("offline")).await;
    page.set_offline(false).await;
    page.wait("the page is live again", &is("live")).await;
}

/// A Cancel of which nobody can know whether it arrived is sent again, and once.
#[tokio::test]
async fn a_cancel_that_the_relay_took_to_its_grave_is_sent_again() {
    let mut cluster = Cluster::options().flag("--demo-page").set().await;
    let words = ["demo-agent", "--redis", &cluster.redis.url()].map(ToOwned::to_owned);
    let _agent = run(&words, &[]);
    let page = Page::open(&format!("http://{}/", cluster.replicas[0].address())).await;
    page.wait("a run streams", RUNS).await;
    let run = page.run("return document.querySelector('#run').dataset.run").await;

    cluster.replicas[0].freeze();
    page.click("#cancel").await;
    cluster.replicas[0].kill9();
    cluster.replicas[0].restart().await;

    let status =
        format!("document.querySelector('[data-run={run}]')?.dataset.status === 'cancelled'");
    page.wait("the run is cancelled", &status).await;
}

/// A page whose token the relay does not take says so, and does not knock again, whatever wakes it.
#[tokio::test]
async fn the_demo_page_says_that_its_token_is_refused_and_does_not_come_back() {
    let cluster = Cluster::options().flag("--demo-page").with_secret().replicas(1).set().await;
    let address = cluster.replicas[0].address();
    let ended = Token::of("ada").allowing("subscribe", &["*"]).ending_in(-3_600).sign();
    let ending = Token::of("ada").allowing("subscribe", &["*"]).ending_in(3).sign();
    let bad = ended.replace('.', ".x");
    let said = "document.querySelector('#notice').checkVisibility() \
        && document.querySelector('#notice').textContent.includes('refused this page’s token')";
    for (kind, token) in [("bad", &bad), ("ended", &ended), ("ending", &ending)] {
        let page = Page::open(&format!("http://{address}/?token={token}")).await;
        page.wait(&format!("the page says what is wrong with a token: {kind}"), said).await;

        let wake = "window.knocked = 0;
            window.WebSocket = class extends WebSocket {
                constructor(...all) { super(...all); window.knocked += 1; }
            };
            dispatchEvent(new Event('online'));
            document.dispatchEvent(new Event('visibilitychange'));
            return window.knocked";
        assert_eq!(page.run(wake).await, 0, "{kind}");
        let state = page.run("return document.querySelector('#connection').dataset.state").await;
        assert_eq!(state, "offline", "{kind}");
    }
}

/// WCAG 2.2, 1.4.10 (a window of 1280 by 1024 at 400 % is 320 by 256) and 2.5.5 (targets of 44 px).
#[tokio::test]
async fn everything_on_the_demo_page_can_be_reached_at_400_percent() {
    let (_demo, page) = demo().await;
    page.wait("a run streams", RUNS).await;
    page.resize(320, 256).await;

    let fault = "
        const shown = (node) => node.checkVisibility() && node.getBoundingClientRect().width > 0;
        if (document.scrollingElement.scrollWidth > 320) return 'the page scrolls sideways';
        document.querySelector('#more').click();
        for (const node of [...document.querySelectorAll('button, summary, #log')].filter(shown)) {
            node.scrollIntoView({ block: 'center' });
            const box = node.getBoundingClientRect();
            const at = document.elementFromPoint(box.x + box.width / 2, box.y + Math.min(box.height / 2, 20));
            const name = node.id || node.textContent;
            if (!node.contains(at)) return `${name} is covered by ${at?.outerHTML.slice(0, 80)}`;
            if (box.width < 44 || box.height < 44) return `${name} is ${box.width} by ${box.height}`;
        }
        return '';";
    assert_eq!(page.run(fault).await, "");
    page.click("#cancel").await;
}

/// A card with a long result is one stop for the keyboard, one without anything to open none.
#[tokio::test]
async fn a_tool_card_is_at_most_one_stop_for_the_keyboard() {
    let cluster = Cluster::options().flag("--demo-page").set().await;
    let page = Page::open(&format!("http://{}/", cluster.replicas[0].address())).await;
    let tool = |id: &str, input: Value, result: &str| {
        let event = |name: &str, data: Value| json!({"channel": "session:demo", "event": name, "data": data});
        [
            event("tool_start", json!({"toolUseId": id, "toolName": "Bash", "toolInput": input})),
            event("tool_result", json!({"toolUseId": id, "toolName": "Bash", "result": result})),
        ]
    };
    let long = "a line\n".repeat(40);
    let [one, two] = [tool("t1", json!({"command": "ls"}), &long), tool("t2", json!({}), "done")];
    cluster.replicas[0].publish_all(&[one, two].concat()).await;

    let stops = "[...document.querySelectorAll('.tool')].map(({ shadowRoot }) =>
            [...shadowRoot.querySelectorAll('*')].filter((node) => node.tabIndex >= 0
                || (node.scrollHeight > node.clientHeight + 1
                    && ['auto', 'scroll'].includes(getComputedStyle(node).overflowY))).length).join()";
    page.wait("one stop, and none", &format!("{stops} === '1,0'")).await;
}

/// A question that can be answered in somebody else's frame is answered by whom it deceives.
#[tokio::test]
async fn the_demo_page_cannot_be_framed_and_runs_nothing_but_itself() {
    let demo = Replica::start(Setup { subcommand: "demo", ..Setup::serve(None) }).await;

    let page = http::call(&demo.address(), Method::GET, "/", &[], "").await.unwrap();

    let header = |name: &str| page.headers[name].to_str().unwrap();
    let policy = header("content-security-policy");
    assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(header("x-frame-options"), "DENY");
    assert_eq!(header("x-content-type-options"), "nosniff");
    assert_eq!(header("referrer-policy"), "no-referrer");
}
