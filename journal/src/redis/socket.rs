//! Connects a follow link: TCP or TLS, the user, the database, and the first subscription.
//!
//! [`link`](super::link) → **socket**. The same addresses and users as redis-rs takes, which makes our other connections; but
//! it does not hand out what it has connected.

use std::sync::Arc;

use redis::{ConnectionAddr, ConnectionInfo};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::resp::{self, Push, Reader};

/// How much of an error that Redis answers is shown, in characters.
const SHOWN: usize = 200;

/// A connection that listens to its first channel.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) stream: Either<TcpStream, Box<TlsStream<TcpStream>>>,
    /// What came after the confirmation of the first channel.
    pub(super) reader: Reader,
}

/// Connects, and subscribes to `channel`. Waits without a bound.
///
/// # Errors
/// What did not work.
pub(super) async fn connect(info: &ConnectionInfo, channel: &str) -> Result<Socket, String> {
    let mut stream = open(info.addr()).await?;
    let (commands, expected) = handshake(info, channel);
    stream.write_all(&commands).await.map_err(shown)?;
    stream.flush().await.map_err(shown)?;
    let mut reader = Reader::default();
    let mut done = 0;
    loop {
        match reader.next().map_err(shown)? {
            Some(Push::Done) => done += 1,
            Some(Push::Subscribed(_)) if done == expected => return Ok(Socket { stream, reader }),
            Some(Push::Refused(why)) => return Err(refused(why)),
            Some(_) => return Err("redis answers what it was not asked".to_owned()),
            None => match stream.read(reader.room()).await {
                Ok(0) => return Err("redis closed it".to_owned()),
                Ok(bytes) => reader.filled(bytes),
                Err(error) => return Err(shown(error)),
            },
        }
    }
}

/// What Redis refuses, as it may be shown.
pub(super) fn refused(why: &[u8]) -> String {
    format!("redis refuses: {}", protocol::shown(&String::from_utf8_lossy(why), SHOWN))
}

/// All commands, and how many of them are answered before the subscription is.
fn handshake(info: &ConnectionInfo, channel: &str) -> (Vec<u8>, usize) {
    let (settings, mut commands, mut answers) = (info.redis_settings(), Vec::new(), 0);
    let mut say = |parts: &[&str]| {
        resp::command(&mut commands, parts.iter().map(|part| part.as_bytes()));
    };
    if let Some(password) = settings.password() {
        match settings.username() {
            Some(user) => say(&["AUTH", user, password]),
            None => say(&["AUTH", password]),
        }
        answers += 1;
    }
    if settings.db() != 0 {
        say(&["SELECT", &settings.db().to_string()]);
        answers += 1;
    }
    say(&["SUBSCRIBE", channel]);
    (commands, answers)
}

async fn open(
    address: &ConnectionAddr,
) -> Result<Either<TcpStream, Box<TlsStream<TcpStream>>>, String> {
    match address {
        ConnectionAddr::Tcp(host, port) => Ok(Either::Left(tcp(host, *port).await?)),
        ConnectionAddr::TcpTls { host, port, .. } => {
            let connector = TlsConnector::from(Arc::new(tls()?));
            let name = ServerName::try_from(host.clone()).map_err(shown)?;
            let stream = tcp(host, *port).await?;
            let stream = connector.connect(name, stream).await.map_err(shown)?;
            Ok(Either::Right(Box::new(stream)))
        }
        // No URL that we take has another address.
        other => Err(format!("`{other}` cannot be connected to")),
    }
}

async fn tcp(host: &str, port: u16) -> Result<TcpStream, String> {
    let stream = TcpStream::connect((host, port)).await.map_err(shown)?;
    // Small commands shall not wait for acknowledgements.
    stream.set_nodelay(true).map_err(shown)?;
    Ok(stream)
}

/// The system's authorities, or those of `SSL_CERT_FILE`: read anew each time, since they may have been renewed.
fn tls() -> Result<ClientConfig, String> {
    let mut found = rustls_native_certs::load_native_certs();
    if let Some(error) = found.errors.pop() {
        return Err(shown(error));
    }
    let mut roots = RootCertStore::empty();
    for certificate in found.certs {
        roots.add(certificate).map_err(shown)?;
    }
    Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

fn shown(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use redis::IntoConnectionInfo;

    use super::*;

    #[test]
    fn the_handshake_says_what_the_address_says() {
        for (url, expected, answers) in [
            ("redis://h", "*2 $9 SUBSCRIBE $1 p ", 0),
            ("redis://:secret@h", "*2 $4 AUTH $6 secret *2 $9 SUBSCRIBE $1 p ", 1),
            (
                "rediss://u%40:s%2F@h/7",
                "*3 $4 AUTH $2 u@ $2 s/ *2 $6 SELECT $1 7 *2 $9 SUBSCRIBE $1 p ",
                2,
            ),
        ] {
            let (commands, found) = handshake(&url.into_connection_info().unwrap(), "p");
            let commands = String::from_utf8(commands).unwrap().replace("\r\n", " ");
            assert_eq!((&*commands, found), (expected, answers), "{url}");
        }
    }
}
