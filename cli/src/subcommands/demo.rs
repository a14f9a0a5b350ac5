//! `demo`: a relay, an agent and a page in one process, so that one command shows what this is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context as _;
use publisher_sdk::Agent;
use relay::Config;
use tokio_util::sync::CancellationToken;

use super::serve;
use crate::logs::Format;
use crate::signals::Signals;

/// The session and the agent that the page looks at.
const ID: &str = "demo";

/// Shows until it is asked to end.
pub(crate) async fn run(config: Config, log_format: Format) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("cannot listen for signals")?;
    let journal = config.journal.clone();
    let running = serve::start(config).await?;
    let agent = Agent::options().id(ID).attach(journal).await.context("no demo agent")?;
    let shutdown = CancellationToken::new();
    let mut performance = Box::pin(demo::run_agent(agent, ID, shutdown.clone()));
    invite(running.addr(), log_format);
    let (mut ended, mut failure) = (None, None);
    tokio::select! {
        of_itself = &mut performance => ended = Some(of_itself),
        () = signals.next() => {}
        task = running.failed() => failure = Some(task),
    }
    let leaving = async {
        if ended.is_none() {
            shutdown.cancel();
            ended = Some(performance.await);
        }
        running.drain().await;
    };
    signals.unless_again(leaving).await?;
    ended.transpose().context("the demo agent ended")?;
    failure.map_or(Ok(()), |failure| Err(failure.into()))
}

/// Where to look.
fn invite(addr: SocketAddr, log_format: Format) {
    let url = url(addr);
    match log_format {
        Format::Text => eprintln!("\n  A demo agent is at work: {url}\n  Ctrl-C ends it.\n"),
        Format::Json => tracing::info!(url, "a demo agent is at work"),
    }
}

/// Where a browser on this machine finds `addr`.
fn url(addr: SocketAddr) -> String {
    let ip = match addr.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, addr.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_can_be_clicked() {
        for (addr, shown) in [
            ("127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("0.0.0.0:80", "http://127.0.0.1:80"),
            ("[::]:80", "http://[::1]:80"),
            ("192.0.2.7:80", "http://192.0.2.7:80"),
        ] {
            assert_eq!(url(addr.parse().unwrap()), shown);
        }
    }
}
