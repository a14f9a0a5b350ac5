//! Proxies before a Redis, one that holds a word back, and one that swallows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use crate::Server;

/// Passes bytes on, unless a word is among them that is held.
pub(crate) struct Gate {
    pub(crate) word: &'static [u8],
    pub(crate) armed: AtomicBool,
    pub(crate) hit: Semaphore,
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

pub(crate) async fn proxy(target: Arc<AtomicU16>, gates: Arc<Vec<Gate>>) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let (target, gates) = (target.load(Ordering::SeqCst), Arc::clone(&gates));
            tokio::spawn(async move {
                let far = tokio::net::TcpStream::connect(("127.0.0.1", target)).await.unwrap();
                let (mut near_read, mut near_write) = near.into_split();
                let (mut far_read, mut far_write) = far.into_split();
                tokio::spawn(
                    async move { drop(tokio::io::copy(&mut far_read, &mut near_write).await) },
                );
                let mut bytes = vec![0; 65536];
                while let Ok(n @ 1..) = near_read.read(&mut bytes).await {
                    for gate in gates.iter() {
                        gate.pass(&bytes[..n]).await;
                    }
                    if far_write.write_all(&bytes[..n]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// Connections that were made before the last `fetch_add` stand, and carry nothing.
pub(crate) async fn black_hole(server: &Server, generation: Arc<AtomicU16>) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, target) = (listener.local_addr().unwrap().port(), server.port);
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let (mine, generation) = (generation.load(Ordering::SeqCst), Arc::clone(&generation));
            tokio::spawn(async move {
                let far = tokio::net::TcpStream::connect(("127.0.0.1", target)).await.unwrap();
                let (mut near_read, mut near_write) = near.into_split();
                let (mut far_read, mut far_write) = far.into_split();
                tokio::spawn(
                    async move { drop(tokio::io::copy(&mut far_read, &mut near_write).await) },
                );
                let mut bytes = vec![0; 65536];
                while let Ok(n @ 1..) = near_read.read(&mut bytes).await {
                    if generation.load(Ordering::SeqCst) != mine {
                        std::future::pending::<()>().await;
                    }
                    far_write.write_all(&bytes[..n]).await.unwrap();
                }
            });
        }
    });
    port
}
