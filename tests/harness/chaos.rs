//! A TCP proxy in front of Redis that can be cut, restored, and told to swallow replies.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The way to Redis, in our hands.
#[derive(Debug)]
pub struct Chaos {
    port: u16,
    way: Arc<Way>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Way {
    to: String,
    is_cut: AtomicBool,
    swallows: AtomicBool,
    open: Mutex<Vec<JoinHandle<()>>>,
}

impl Chaos {
    /// Stands in front of `to`.
    pub async fn in_front_of(to: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let way = Arc::new(Way {
            to,
            is_cut: AtomicBool::new(false),
            swallows: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&way)));
        Self { port, way, accepting }
    }

    /// Where Redis is reached through the proxy.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Breaks every connection and lets no new one through.
    pub fn cut(&self) {
        self.way.is_cut.store(true, Ordering::SeqCst);
        self.break_connections();
    }

    /// Lets connections through again.
    pub fn restore(&self) {
        self.way.is_cut.store(false, Ordering::SeqCst);
        self.way.swallows.store(false, Ordering::SeqCst);
    }

    /// From here on requests reach Redis, but no reply comes back.
    pub fn swallow_replies(&self) {
        self.way.swallows.store(true, Ordering::SeqCst);
    }

    /// Breaks every connection; new ones are let through.
    pub fn break_connections(&self) {
        for connection in self.way.open.lock().unwrap().drain(..) {
            connection.abort();
        }
    }
}

impl Drop for Chaos {
    fn drop(&mut self) {
        self.accepting.abort();
        self.break_connections();
    }
}

async fn accept(listener: TcpListener, way: Arc<Way>) {
    while let Ok((near, _)) = listener.accept().await {
        if way.is_cut.load(Ordering::SeqCst) {
            continue;
        }
        let connection = tokio::spawn(carry(near, Arc::clone(&way)));
        way.open.lock().unwrap().push(connection);
    }
}

async fn carry(mut near: TcpStream, way: Arc<Way>) {
    let Ok(mut far) = TcpStream::connect(&way.to).await else { return };
    // Nagle's algorithm would add delays that are not Redis'.
    near.set_nodelay(true).ok();
    far.set_nodelay(true).ok();
    let (mut near_in, mut near_out) = near.split();
    let (mut far_in, mut far_out) = far.split();
    let requests = tokio::io::copy(&mut near_in, &mut far_out);
    let replies = async {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let read = far_in.read(&mut buffer).await?;
            if read == 0 {
                return Ok::<(), std::io::Error>(());
            }
            if !way.swallows.load(Ordering::SeqCst) {
                near_out.write_all(&buffer[..read]).await?;
            }
        }
    };
    // The end of either direction ends the connection.
    tokio::select! {
        _ = requests => {}
        _ = replies => {}
    }
}

#[cfg(test)]
mod tests {
    use super::Chaos;
    use crate::{Persistence, Redis};

    async fn incr(url: &str) -> Option<u64> {
        let mut connection =
            redis::Client::open(url).ok()?.get_multiplexed_async_connection().await.ok()?;
        redis::cmd("INCR").arg("a").query_async(&mut connection).await.ok()
    }

    #[tokio::test]
    async fn the_way_can_be_cut_and_restored_and_can_swallow_replies() {
        let redis = Redis::start(Persistence::None).await;
        let chaos = Chaos::in_front_of(redis.address()).await;
        assert_eq!(incr(&chaos.url()).await, Some(1));

        chaos.cut();
        assert_eq!(incr(&chaos.url()).await, None);
        chaos.restore();
        assert_eq!(incr(&chaos.url()).await, Some(2));

        let client = redis::Client::open(chaos.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        chaos.swallow_replies();
        let swallowed: redis::RedisResult<u64> =
            redis::cmd("INCR").arg("a").query_async(&mut connection).await;
        assert!(swallowed.is_err(), "the reply came through");
        chaos.restore();
        assert_eq!(incr(&chaos.url()).await, Some(4), "the request did not arrive");
    }
}
