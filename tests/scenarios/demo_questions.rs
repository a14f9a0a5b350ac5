//! The demo's questions, as the people see them who look at the same agent on two pages.

use std::path::Path;

use tests::process::Process;
use tests::replica::run;
use tests::{Cluster, Page};

const ASKS: &str = "document.querySelector('.question[data-kind=permission]')";
const NOTE: &str = "document.querySelector('#note')?.textContent";

async fn with_agent() -> (Cluster, Process, Page, Page) {
    let cluster = Cluster::options().flag("--demo-page").replicas(2).set().await;
    let page = async |replica: usize| {
        Page::open(&format!("http://{}/", cluster.replicas[replica].address())).await
    };
    let (one, two) = (page(0).await, page(1).await);
    let words = ["demo-agent", "--redis", &cluster.redis.url()].map(ToOwned::to_owned);
    let agent = run(&words, &[]);
    (cluster, agent, one, two)
}

/// Pictures for the documentation, where somebody wants them.
async fn picture(page: &Page, name: &str) {
    if let Some(dir) = std::env::var_os("RELAY_SCREENSHOTS") {
        page.screenshot(&Path::new(&dir).join(name)).await;
    }
}

/// F36 as people see it: both see the question, the first answer counts, the other is told.
#[tokio::test]
async fn two_pages_see_the_same_question_and_the_slower_one_is_told() {
    let (cluster, _agent, one, two) = with_agent().await;
    one.wait("the agent asks", ASKS).await;
    two.wait("the agent asks there too", ASKS).await;
    picture(&one, "question.png").await;

    // What the one decides does not get through to the other before he has decided as well.
    cluster.replicas[1].freeze();
    one.click(".question .yes").await;
    one.wait("the question is answered", &format!("!{ASKS}")).await;
    two.click(".question .no").await;
    cluster.replicas[1].thaw();

    two.wait("he is told", &format!("{NOTE}.startsWith('Somebody was faster: allowed')")).await;
    picture(&two, "answered.png").await;
    for page in [&one, &two] {
        let asks = "document.querySelector('.question[data-kind=budget]')";
        page.wait("the run went on and asks for more", asks).await;
    }
    two.click(".question .no").await;
    for page in [&one, &two] {
        let stopped = "document.querySelector('#run')?.dataset.status === 'cancelled'";
        page.wait("the run is stopped for both", stopped).await;
    }
}

/// What one decides the other sees, and whose it was; a Cancel takes the question along.
#[tokio::test]
async fn a_page_shows_what_was_decided_elsewhere_and_no_question_of_a_cancelled_run() {
    let (_cluster, _agent, one, two) = with_agent().await;
    let said = |what: &str| format!("document.body.innerText.includes('{what}')");
    one.wait("the agent asks", ASKS).await;
    two.wait("the agent asks there too", ASKS).await;

    one.click(".question .yes").await;

    two.wait("whose it was", &said("Allowed on another page")).await;
    one.wait("that it is allowed", &said("Allowed")).await;
    let asks = "document.querySelector('.question[data-kind=budget]')";
    two.wait("the agent asks for more", asks).await;
    one.click("#cancel").await;
    for page in [&one, &two] {
        page.wait("nothing is asked any more", "!document.querySelector('.question')").await;
    }
    picture(&two, "cancelled.png").await;
}

/// F29 as people see it.
#[tokio::test]
async fn a_killed_agent_shows_as_lost() {
    let (_cluster, mut agent, one, _two) = with_agent().await;
    one.wait("the agent asks", ASKS).await;

    agent.kill9();

    let lost = "document.querySelector('#run')?.dataset.status === 'failed' \
                && document.querySelector('#run .end').textContent.includes('died without a word')";
    one.wait("the agent is lost", lost).await;
    picture(&one, "lost.png").await;
}
