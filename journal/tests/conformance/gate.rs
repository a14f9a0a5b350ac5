//! Two proxies in front of a Redis: one holds a command back, one swallows replies.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Duration, Instant};

use crate::Server;

/// Passes bytes on, unless a word is among them that is held back: once, when it is armed.
pub(crate) struct Gate {
    word: &'static [u8],
    pub(crate) armed: AtomicBool,
    /// It has held something back.
    pub(crate) hit: Semaphore,
    /// Lets that go on.
    pub(crate) open: Semaphore,
}

impl Gate {
    pub(crate) fn new(word: &'static [u8]) -> Self {
        Self {
            word,
            armed: AtomicBool::new(false),
            hit: Semaphore::new(0),
            open: Semaphore::new(0),
        }
    }

    async fn pass(&self, bytes: &[u8]) {
        if bytes.windows(self.word.len()).any(|w| w == self.word)
            && self.armed.swap(false, Ordering::SeqCst)
        {
            self.hit.add_permits(1);
            self.open.acquire().await.unwrap().forget();
        }
    }
}

/// What a connection's bytes wait for before they go on.
type Pass = Box<dyn Fn(Vec<u8>) -> BoxFuture<'static, ()> + Send + Sync>;

/// Every new connection goes to `target`; what is said on it passes the gates.
pub(crate) async fn proxy(target: Arc<AtomicU16>, gates: Arc<Vec<Gate>>) -> u16 {
    listen(move || {
        let gates = Arc::clone(&gates);
        let pass = move |bytes: Vec<u8>| {
            let gates = Arc::clone(&gates);
            async move {
                for gate in gates.iter() {
                    gate.pass(&bytes).await;
                }
            }
            .boxed()
        };
        (target.load(Ordering::SeqCst), Box::new(pass))
    })
    .await
}

/// Connections that were made before the last `fetch_add` stand, and carry nothing.
pub(crate) async fn black_hole(server: &Server, generation: Arc<AtomicU16>) -> u16 {
    let target = server.port;
    listen(move || {
        let (mine, generation) = (generation.load(Ordering::SeqCst), Arc::clone(&generation));
        let pass = move |_| {
            let is_mine = generation.load(Ordering::SeqCst) == mine;
            async move {
                if !is_mine {
                    std::future::pending::<()>().await;
                }
            }
            .boxed()
        };
        (target, Box::new(pass))
    })
    .await
}

/// Every answer comes so much later than it would.
pub(crate) async fn slow(server: &Server, delay: Duration) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, target) = (listener.local_addr().unwrap().port(), server.port);
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
            let ((mut near_read, mut near_write), (mut far_read, mut far_write)) =
                (near.into_split(), far.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut near_read, &mut far_write).await });
            let (late, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
            tokio::spawn(async move {
                let mut bytes = vec![0; 65536];
                while let Ok(n @ 1..) = far_read.read(&mut bytes).await {
                    let chunk = (Instant::now() + delay, bytes[..n].to_vec());
                    if late.send(chunk).await.is_err() {
                        return;
                    }
                }
            });
            tokio::spawn(async move {
                while let Some((at, bytes)) = due.recv().await {
                    tokio::time::sleep_until(at).await;
                    if near_write.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

async fn listen(connect: impl Fn() -> (u16, Pass) + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let (target, pass) = connect();
            tokio::spawn(async move {
                let far = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
                let (mut near_read, mut near_write) = near.into_split();
                let (mut far_read, mut far_write) = far.into_split();
                let back = async move { tokio::io::copy(&mut far_read, &mut near_write).await };
                tokio::spawn(back);
                let mut bytes = vec![0; 65536];
                while let Ok(n @ 1..) = near_read.read(&mut bytes).await {
                    pass(bytes[..n].to_vec()).await;
                    if far_write.write_all(&bytes[..n]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}
