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
    let card = "document.querySelector('.tool[data-tool=Permission]').shadowRoot.textContent";
    two.wait("the card says whose it was", &format!("{card}.includes('llowed on another page')"))
        .await;
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
    let waits = "document.querySelector('#note').textContent.startsWith('The agent was lost')";
    one.wait("no next run is promised", waits).await;
    picture(&one, "lost.png").await;
}

/// While the agent waits for a person, that is what the page shows.
#[tokio::test]
async fn a_question_has_the_title_the_bar_and_the_focus_and_gives_them_back() {
    let (_cluster, _agent, one, _two) = with_agent().await;
    one.run("document.querySelector('#wire summary').focus()").await;
    let title = |begin: &str| format!("document.title.startsWith('{begin}')");

    one.wait("the agent asks", ASKS).await;

    one.wait("the title says it", &title("The agent asks")).await;
    let doing = "document.querySelector('#doing').textContent === 'Waiting for your answer'";
    one.wait("the bar says it", doing).await;
    one.wait("the question has the focus", &format!("document.activeElement === {ASKS}")).await;
    let filled = "return [...document.querySelectorAll('button')].filter((node) =>
        node.checkVisibility() && getComputedStyle(node).backgroundColor
            === getComputedStyle(document.querySelector('.question .yes')).backgroundColor)
        .map((node) => node.textContent).join()";
    assert_eq!(one.run(filled).await, "Approve", "one primary button");

    one.click(".question .yes").await;
    one.wait("the question is gone", &format!("!{ASKS}")).await;

    one.wait("the title is as before", &title("Agent Relay")).await;
    let back = "document.activeElement === document.querySelector('#wire summary')";
    one.wait("the focus is where it was", back).await;
}

/// An answer of which nobody can know whether it arrived is sent again.
#[tokio::test]
async fn an_answer_that_the_relay_took_to_its_grave_is_sent_again() {
    let (mut cluster, _agent, one, two) = with_agent().await;
    one.wait("the agent asks", ASKS).await;

    cluster.replicas[0].freeze();
    one.click(".question .yes").await;
    cluster.replicas[0].kill9();
    cluster.replicas[0].restart().await;

    for page in [&one, &two] {
        page.wait("the question is answered", &format!("!{ASKS}")).await;
        let card = "document.querySelector('.tool[data-tool=Permission]')?.dataset.status";
        page.wait("as it was decided", &format!("{card} === 'completed'")).await;
    }
}

/// A no is an answer, not a fault of the tool.
#[tokio::test]
async fn what_was_denied_does_not_look_failed() {
    let (_cluster, _agent, one, _two) = with_agent().await;
    one.wait("the agent asks", ASKS).await;

    one.click(".question .no").await;

    let card = "document.querySelector('.tool[data-tool=Permission]')?.dataset.status === 'denied'";
    one.wait("it is denied", card).await;
}
