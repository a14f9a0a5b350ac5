//! The demo, as a person sees it who tries the product for the first time: in a real browser.

use std::path::PathBuf;

use tests::replica::Setup;
use tests::{Page, Replica};

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
