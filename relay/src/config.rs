//! What a replica needs to know, as values. The command line reads flags and variables.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use journal::Journal;
use thiserror::Error;

use crate::{Key, Origins};

/// How a replica is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where browsers and publishers come in. Port 0 lets the system pick.
    pub listen: SocketAddr,
    /// Where health is asked for; absent: on the main listener.
    pub admin_listen: Option<SocketAddr>,
    /// The record.
    pub journal: Journal,
    /// What tokens are signed with; absent: everybody may do everything.
    pub key: Option<Key>,
    /// Without a key, listen on more than loopback all the same.
    pub allow_anonymous: bool,
    /// Whose pages may use the relay; empty: those of the relay itself and of this machine, with a key all.
    pub origins: Origins,
    /// Over how long the connections of a leaving replica are sent elsewhere.
    pub drain: Duration,
    /// Bytes that may wait for peers, all together.
    pub memory: usize,
    /// How many workers share the channels. Each follows its own over a connection of its own.
    pub workers: NonZeroUsize,
    /// How many files this process may open; absent: as many as it likes. Each connection is one.
    pub open_files: Option<u64>,
    /// An HTML page to show at `/`.
    pub page: Option<&'static str>,
}

/// The configuration contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// The whole network could do everything.
    #[error(
        "{0} is reachable from other machines and no key is configured, so anybody could read and command \
         everything: give --jwt-secret-file (RELAY_JWT_SECRET_FILE), listen on 127.0.0.1, or say \
         --allow-anonymous if that is what you want"
    )]
    Open(SocketAddr),
    /// Any page that somebody opens could do everything.
    #[error(
        "pages of every origin are allowed and no key is configured, so any page could read and command everything: \
         give --jwt-secret-file (RELAY_JWT_SECRET_FILE), or name the origins with --allow-origin"
    )]
    EveryOrigin,
}

impl Config {
    /// The defaults: no key, no page, five seconds of draining, a GiB of waiting bytes, a worker for each core.
    pub fn new(listen: SocketAddr, journal: Journal) -> Self {
        Self {
            listen,
            admin_listen: None,
            journal,
            key: None,
            allow_anonymous: false,
            origins: Origins::default(),
            drain: Duration::from_secs(5),
            memory: 1024 * 1024 * 1024,
            workers: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            open_files: None,
            page: None,
        }
    }

    /// Whether the values fit together.
    ///
    /// # Errors
    /// [`ConfigError`] says what to change.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.key.is_none() && !self.allow_anonymous && !self.listen.ip().is_loopback() {
            return Err(ConfigError::Open(self.listen));
        }
        if self.key.is_none() && self.origins.is_every() {
            return Err(ConfigError::EveryOrigin);
        }
        Ok(())
    }
}
