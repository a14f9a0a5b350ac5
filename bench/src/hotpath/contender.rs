//! What is measured: the floor, relays, and peers. How each is started, spoken with and fed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::publisher::Feed;
use super::wire::Wire;
use crate::machine::Core;
use crate::redis_server::RedisServer;
use crate::server::Server;

/// Another way to bring events to viewers, from `bench/peers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Peer {
    /// `ws` and ioredis, forty lines by hand.
    Ws,
    /// Socket.IO with its Redis adapter.
    Socketio,
    /// NATS with its WebSocket door.
    Nats,
}

/// A server that is measured.
#[derive(Debug)]
pub(crate) struct Contender {
    name: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Floor,
    Relay { binary: Option<PathBuf>, flags: Vec<String> },
    Peer(Peer),
}

impl Contender {
    /// The floor first, then the relays, then the peers.
    pub(crate) fn all(relays: &[String], peers: &[Peer]) -> Result<Vec<Self>> {
        let mut all = vec![Self { name: "floor".to_owned(), kind: Kind::Floor }];
        if relays.is_empty() {
            let kind = Kind::Relay { binary: None, flags: Vec::new() };
            all.push(Self { name: "relay".to_owned(), kind });
        }
        for said in relays {
            let mut words = said.split_whitespace();
            let first = words.next().context("--relay names a binary")?;
            let (name, path) = first.split_once('=').unwrap_or(("relay", first));
            let kind = Kind::Relay {
                binary: Some(PathBuf::from(path)),
                flags: words.map(str::to_owned).collect(),
            };
            all.push(Self { name: name.to_owned(), kind });
        }
        for peer in peers {
            let name = match peer {
                Peer::Ws => "ws + ioredis",
                Peer::Socketio => "Socket.IO",
                Peer::Nats => "NATS",
            };
            all.push(Self { name: name.to_owned(), kind: Kind::Peer(*peer) });
        }
        Ok(all)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn is_relay(&self) -> bool {
        matches!(self.kind, Kind::Relay { .. })
    }

    pub(crate) fn wire(&self) -> Wire {
        match self.kind {
            Kind::Floor | Kind::Relay { .. } | Kind::Peer(Peer::Ws) => Wire::Json,
            Kind::Peer(Peer::Socketio) => Wire::SocketIo,
            Kind::Peer(Peer::Nats) => Wire::Nats,
        }
    }

    pub(crate) fn feed(&self) -> Feed {
        match self.kind {
            Kind::Floor => Feed::Frame,
            Kind::Relay { .. } => Feed::Append,
            Kind::Peer(Peer::Ws) => Feed::Text,
            Kind::Peer(Peer::Socketio) => Feed::SocketIo,
            Kind::Peer(Peer::Nats) => Feed::Nats,
        }
    }

    pub(crate) fn start(&self, redis: &RedisServer, core: Core) -> Result<Server> {
        let url = redis.url();
        match &self.kind {
            Kind::Floor => Server::floor(&url, core),
            Kind::Relay { binary, flags } => {
                Server::replica_with(binary.as_deref(), Some(&url), flags, core)
            }
            Kind::Peer(peer) => {
                let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
                let script = |name: &str| {
                    let mut node = Command::new("node");
                    node.arg(here.join(name)).arg(&url);
                    node
                };
                let command = match peer {
                    Peer::Ws => script("ws.js"),
                    Peer::Socketio => script("socketio.js"),
                    Peer::Nats => Command::new(here.join("nats/nats")),
                };
                Server::start(command, core).context("bench/peers/run installs the peers")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_is_named_with_its_flags() {
        let all =
            Contender::all(&["two=/bin/relay --workers 2".to_owned(), "x".to_owned()], &[Peer::Ws])
                .unwrap();
        let names: Vec<&str> = all.iter().map(Contender::name).collect();
        assert_eq!(names, ["floor", "two", "relay", "ws + ioredis"]);
        assert!(matches!(
            &all[1].kind,
            Kind::Relay { binary: Some(path), flags }
                if path == Path::new("/bin/relay") && flags == &["--workers", "2"]
        ));
        assert_eq!(all.iter().filter(|one| one.is_relay()).count(), 2);
    }
}
