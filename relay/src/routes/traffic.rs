//! The bytes of a socket that speaks HTTP: how many were written, since when some wait, and when that is too long.
//!
//! The HTTP library reports whole answers, never the byte that a slow reader has just taken; so bytes are counted
//! below it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use protocol::limits::STALL_TIMEOUT;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::memory::{Debt, Memory, OpenSocket, Reserved};

/// Bytes that the system took since the connection stands, and what is owed.
#[derive(Debug)]
pub(crate) struct Traffic {
    written: AtomicU64,
    debt: Arc<Debt>,
}

impl Traffic {
    /// Returns when bytes wait and none of them has moved for so long.
    pub(crate) async fn stands_still(&self, limit: Duration) {
        loop {
            let before = self.written();
            tokio::time::sleep(limit).await;
            if self.debt.is_owed() && self.written() == before {
                return;
            }
        }
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

/// A socket whose bytes are counted.
#[derive(Debug)]
pub(crate) struct Counted {
    socket: TcpStream,
    open: OpenSocket,
    traffic: Arc<Traffic>,
    /// What it takes while bytes wait.
    owed: Option<Reserved>,
    /// Ends when none of the bytes that wait has moved for too long.
    stall: Option<Pin<Box<Sleep>>>,
}

impl Counted {
    pub(crate) fn new(socket: TcpStream, memory: &Arc<Memory>) -> Self {
        let open = memory.enter();
        let traffic = Traffic { written: AtomicU64::new(0), debt: open.debt() };
        Self { socket, open, traffic: Arc::new(traffic), owed: None, stall: None }
    }

    /// The socket alone, for another protocol.
    pub(crate) fn into_parts(self) -> (TcpStream, OpenSocket) {
        (self.socket, self.open)
    }

    pub(crate) fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.traffic)
    }

    fn wrote(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(result) = result {
            let bytes = *result.as_ref().unwrap_or(&0);
            self.traffic.written.fetch_add(bytes as u64, Ordering::Relaxed);
            self.stall = None;
            return Poll::Ready(result);
        }
        if let Some(owed) = self.open.owes(cx) {
            self.owed = Some(owed);
        }
        if self.open.is_called() {
            return Poll::Ready(Err(io::Error::other("too many bytes waited for this peer")));
        }
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL_TIMEOUT)));
        ready!(stall.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer reads nothing")))
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.wrote(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.wrote(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.socket).poll_flush(cx);
        // Those above flush when all that they held was written.
        if result.is_ready() && self.owed.take().is_some() {
            self.open.is_paid();
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// An answer's body, which counts until it was written.
#[derive(Debug)]
pub(crate) struct HeldBody {
    body: Body,
    memory: Arc<Memory>,
}

impl HeldBody {
    pub(crate) fn new(body: Body, memory: Arc<Memory>) -> Self {
        Self { body, memory }
    }
}

impl HttpBody for HeldBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let hold = |frame: Frame<Bytes>| frame.map_data(|data| self.memory.hold(data));
        Poll::Ready(frame.map(|frame| frame.map(hold)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::websocket::testing::narrow_pair;

    async fn pair(memory: &Arc<Memory>) -> (Counted, TcpStream) {
        let (stream, peer) = narrow_pair().await;
        (Counted::new(stream, memory), peer)
    }

    async fn fill(socket: &mut Counted) -> io::Error {
        loop {
            if let Err(error) = socket.write_all(&[b'x'; 64 * 1024]).await {
                return error;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_takes_no_byte_is_given_up() {
        let memory = Memory::new(usize::MAX);
        let (mut socket, _peer) = pair(&memory).await;
        assert_eq!(fill(&mut socket).await.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_socket_owes_until_everything_is_written() {
        let memory = Memory::new(usize::MAX);
        let (mut socket, mut peer) = pair(&memory).await;
        let writing = socket.write_all(&[b'x'; 8 * 1024 * 1024]);
        let mut writing = Box::pin(writing);
        let mut taken = vec![0; 8 * 1024 * 1024];
        let half = taken.len() / 2;
        tokio::select! {
            written = &mut writing => panic!("the peer has not read: {written:?}"),
            read = peer.read_exact(&mut taken[..half]) => drop(read.unwrap()),
        }
        assert_eq!(memory.owing(), 1, "some was taken, and not all");
        let (written, read) = tokio::join!(writing, peer.read_exact(&mut taken[half..]));
        written.unwrap();
        read.unwrap();
        socket.flush().await.unwrap();

        assert_eq!(memory.owing(), 0);
        drop(socket);
        assert_eq!(memory.sockets(), 0);
    }
}
