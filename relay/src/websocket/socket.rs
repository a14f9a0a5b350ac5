//! One client's socket after the handshake: messages in, frames out, and how it ends.
//!
//! Memory: nothing while it rests. What was read and not wanted yet is at most one [`CHUNK`]; what waits to be written
//! are frames that others share, and at most one pong.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use protocol::CloseCode;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use super::decoder::{Decoder, Received};
use super::frame::{self, TextFrame};
use crate::memory::{OpenSocket, Reserved};

/// How long a farewell may take: the peer may be gone or not reading.
pub(crate) const FAREWELL: Duration = Duration::from_secs(1);
/// How much is read at a time.
const CHUNK: usize = 8 * 1024;
/// How many frames are written with one call.
const SLICES: usize = 64;

/// Why a connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The peer closed, or the socket broke.
    Gone,
    /// We close.
    Close(CloseCode),
    /// We close, with words of our own.
    CloseFor(CloseCode, String),
}

impl End {
    /// The close code; none where the peer went.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Gone => None,
            Self::Close(code) | Self::CloseFor(code, _) => Some(code.number()),
        }
    }

    /// Why, for the peer and for the log.
    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::Gone => "the peer closed it, or it broke",
            Self::Close(code) => code.reason(),
            Self::CloseFor(_, reason) => reason,
        }
    }
}

/// A WebSocket, the server's end.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    decoder: Decoder,
    /// Came, and was not wanted yet.
    unread: Bytes,
    /// Waits to be written, in order; of the first a part may be written.
    unwritten: VecDeque<Bytes>,
    /// The answer to the last of the pings that came while nothing could be written.
    pong: Option<Bytes>,
    read: u64,
    written: u64,
    debt: OpenSocket,
    /// What it takes while bytes wait.
    owed: Option<Reserved>,
}

impl Socket {
    /// `unread` came behind the handshake.
    pub(crate) fn new(
        stream: TcpStream,
        debt: OpenSocket,
        unread: Bytes,
        message_bytes_max: usize,
    ) -> Self {
        Self {
            stream,
            decoder: Decoder::new(message_bytes_max),
            read: unread.len() as u64,
            unread,
            unwritten: VecDeque::new(),
            pong: None,
            written: 0,
            debt,
            owed: None,
        }
    }

    /// How many bytes came.
    pub(crate) fn read(&self) -> u64 {
        self.read
    }

    /// How many bytes the system took.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Whether bytes wait to be written, pongs as well.
    pub(crate) fn is_blocked(&self) -> bool {
        !self.unwritten.is_empty() || self.pong.is_some()
    }

    /// Whether too many bytes wait in this process, and this is who must go.
    pub(crate) fn must_go(&self) -> bool {
        self.debt.is_called()
    }

    /// The next message. Pings are answered; after an error nothing more is read.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<String, End>> {
        loop {
            let mut unread = std::mem::take(&mut self.unread);
            let next = self.decode(&mut unread);
            self.unread = unread;
            if let Some(next) = next.transpose() {
                return Poll::Ready(next);
            }
            // What was asked is answered before more is read.
            if let Poll::Ready(Err(_)) = self.poll_flush(cx) {
                return Poll::Ready(Err(End::Gone));
            }
            let mut space = [0; CHUNK];
            let mut chunk = ReadBuf::new(&mut space);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut chunk)) {
                Ok(()) if !chunk.filled().is_empty() => {}
                _ => return Poll::Ready(Err(End::Gone)),
            }
            let mut chunk = chunk.filled();
            self.read += chunk.len() as u64;
            let next = self.decode(&mut chunk);
            if let Some(next) = next.transpose() {
                self.unread = Bytes::copy_from_slice(chunk);
                return Poll::Ready(next);
            }
        }
    }

    /// The next message of what has come.
    fn decode(&mut self, bytes: &mut impl Buf) -> Result<Option<String>, End> {
        loop {
            let mut rest = bytes.chunk();
            let before = rest.len();
            let received = self.decoder.next(&mut rest).map_err(End::Close)?;
            let used = before - rest.len();
            bytes.advance(used);
            match received {
                None => return Ok(None),
                Some(Received::Text(text)) => return Ok(Some(text)),
                Some(Received::Ping(payload)) => self.answer(frame::pong(&payload)),
                Some(Received::Pong) => {}
                Some(Received::Close(code)) => {
                    let echo = code.map(|code| frame::close(code, ""));
                    self.unwritten.push_back(echo.unwrap_or_else(frame::close_without_code));
                    return Err(End::Gone);
                }
            }
        }
    }

    /// Each ping has its pong as long as the socket takes bytes; then only the last.
    fn answer(&mut self, pong: Bytes) {
        if self.owed.is_none() {
            self.unwritten.push_back(pong);
        } else {
            self.pong = Some(pong);
        }
    }

    /// Puts a frame behind what waits.
    pub(crate) fn queue(&mut self, frame: TextFrame) {
        self.unwritten.push_back(frame.into_bytes());
    }

    /// Puts a ping behind what waits.
    pub(crate) fn queue_ping(&mut self) {
        self.unwritten.push_back(frame::PING);
    }

    /// Writes what waits. Ready when nothing does.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unwritten.extend(self.pong.take_if(|_| self.unwritten.is_empty()));
        while !self.unwritten.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = fill(&mut slices, &self.unwritten);
            let stream = Pin::new(&mut self.stream);
            match stream.poll_write_vectored(cx, &slices[..count]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(bytes)) => self.has_written(bytes),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    if let Some(owed) = self.debt.owes(cx) {
                        self.owed = Some(owed);
                    }
                    return Poll::Pending;
                }
            }
            self.unwritten.extend(self.pong.take_if(|_| self.unwritten.is_empty()));
        }
        // A socket at rest holds no buffer.
        self.unwritten = VecDeque::new();
        if self.owed.take().is_some() {
            self.debt.is_paid();
        }
        Poll::Ready(Ok(()))
    }

    /// Writes as much as the system takes at once; what is left waits. Whether all was taken. Nothing may wait before.
    pub(crate) fn try_write(&mut self, frames: &mut Vec<TextFrame>) -> bool {
        if let [frame] = &frames[..]
            && let Ok(bytes) = self.stream.try_write(frame.bytes())
            && bytes == frame.len()
        {
            self.written += bytes as u64;
            frames.clear();
            return true;
        }
        self.unwritten.extend(frames.drain(..).map(TextFrame::into_bytes));
        while !self.unwritten.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = fill(&mut slices, &self.unwritten);
            match self.stream.try_write_vectored(&slices[..count]) {
                Ok(bytes @ 1..) => self.has_written(bytes),
                // An error is found again by who waits for the socket.
                _ => return false,
            }
        }
        true
    }

    fn has_written(&mut self, mut bytes: usize) {
        self.written += bytes as u64;
        while let Some(first) = self.unwritten.front_mut() {
            if bytes < first.len() {
                return first.advance(bytes);
            }
            bytes -= first.len();
            self.unwritten.pop_front();
        }
    }

    /// Says why it ends, and hangs up.
    pub(crate) async fn farewell(mut self, end: &End) {
        let farewell = async {
            if let Some(code) = end.code() {
                self.unwritten.push_back(frame::close(code, end.reason()));
            }
            let flushed = std::future::poll_fn(|cx| self.poll_flush(cx)).await;
            if flushed.is_err() || *end == End::Gone {
                return;
            }
            // The peer does the same: what it had sent must not make the system take back our frame.
            drop(self.stream.shutdown().await);
            let mut passed_over = [0; 1024];
            while let Ok(1..) =
                tokio::io::AsyncReadExt::read(&mut self.stream, &mut passed_over).await
            {
            }
        };
        drop(tokio::time::timeout(FAREWELL, farewell).await);
    }
}

/// How many of the frames are in the slices.
fn fill<'a>(slices: &mut [IoSlice<'a>; SLICES], frames: &'a VecDeque<Bytes>) -> usize {
    slices.iter_mut().zip(frames).for_each(|(slice, frame)| *slice = IoSlice::new(frame));
    frames.len().min(SLICES)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;

    use tokio::io::AsyncReadExt;

    use super::super::testing::narrow_pair;
    use super::*;
    use crate::memory::Memory;

    async fn pair(memory: &Arc<Memory>) -> (Socket, TcpStream) {
        let (stream, peer) = narrow_pair().await;
        (Socket::new(stream, memory.enter(), Bytes::new(), 1024), peer)
    }

    fn ping(payload: &[u8]) -> Vec<u8> {
        // Masked with zeros.
        [&[0x89, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload].concat()
    }

    /// What the peer reads until nothing more comes.
    async fn all_read(peer: &mut TcpStream) -> Vec<u8> {
        let mut all = Vec::new();
        let mut space = vec![0; 64 * 1024];
        let pause = Duration::from_millis(200);
        while let Ok(Ok(read @ 1..)) = tokio::time::timeout(pause, peer.read(&mut space)).await {
            all.extend(&space[..read]);
        }
        all
    }

    #[tokio::test]
    async fn while_bytes_are_taken_each_ping_has_its_pong() {
        let memory = Memory::new(usize::MAX);
        let (mut socket, mut peer) = pair(&memory).await;
        let pings: Vec<u8> = (0..100_u8).flat_map(|n| ping(&[n])).collect();
        peer.write_all(&pings).await.unwrap();
        let reading = tokio::spawn(async move { poll_fn(|cx| socket.poll_next(cx)).await });

        let mut pongs = vec![0; 300];
        peer.read_exact(&mut pongs).await.unwrap();

        let expected: Vec<u8> = (0..100_u8).flat_map(|n| [0x8a, 1, n]).collect();
        assert_eq!(pongs, expected);
        drop(peer);
        assert_eq!(reading.await.unwrap(), Err(End::Gone));
    }

    #[tokio::test]
    async fn of_pings_that_come_while_nothing_can_be_written_the_last_is_answered() {
        let memory = Memory::new(usize::MAX);
        let (mut socket, mut peer) = pair(&memory).await;
        let text = "x".repeat(2 * 1024 * 1024);
        socket.queue(TextFrame::new(text.clone(), &memory));
        let is_blocked = poll_fn(|cx| Poll::Ready(socket.poll_flush(cx).is_pending())).await;
        assert!(is_blocked && socket.is_blocked());
        assert_eq!(memory.owing(), 1);
        let pings: Vec<u8> = (0..100_u8).flat_map(|n| ping(&[n])).collect();
        peer.write_all(&pings).await.unwrap();
        while socket.read() < pings.len() as u64 {
            let next = poll_fn(|cx| Poll::Ready(socket.poll_next(cx).is_pending())).await;
            assert!(next);
            tokio::task::yield_now().await;
        }

        let flushing = tokio::spawn(async move {
            poll_fn(|cx| socket.poll_flush(cx)).await.unwrap();
            socket
        });
        let all = all_read(&mut peer).await;

        let socket = flushing.await.unwrap();
        assert_eq!(all.len(), 10 + text.len() + 3);
        assert_eq!(all[10 + text.len()..], [0x8a, 1, 99]);
        assert!(!socket.is_blocked());
        assert_eq!(memory.owing(), 0);
        drop(socket);
        assert_eq!(memory.sockets(), 0);
    }

    #[tokio::test]
    async fn what_the_system_does_not_take_at_once_waits_in_order() {
        let memory = Memory::new(usize::MAX);
        let (mut socket, mut peer) = pair(&memory).await;
        // Until the system has said that it can be written to.
        socket.stream.writable().await.unwrap();
        let text = |n: usize| format!("{n:08}").repeat(4 * 1024);
        let (mut sent, mut expected) = (0, Vec::<u8>::new());
        loop {
            let mut frames: Vec<TextFrame> =
                (sent..sent + 70).map(|n| TextFrame::new(text(n), &memory)).collect();
            frames.iter().for_each(|frame| expected.extend(frame.bytes()));
            sent += 70;
            if !socket.try_write(&mut frames) {
                break;
            }
        }
        let flushing = tokio::spawn(async move {
            poll_fn(|cx| socket.poll_flush(cx)).await.unwrap();
            socket
        });

        let mut all = vec![0; expected.len()];
        peer.read_exact(&mut all).await.unwrap();

        assert!(all == expected);
        let mut socket = flushing.await.unwrap();
        assert_eq!(socket.written(), expected.len() as u64);
        let mut one = vec![TextFrame::new("one more".to_owned(), &memory)];
        assert!(socket.try_write(&mut one) && one.is_empty());
    }

    #[tokio::test]
    async fn a_close_is_answered_with_its_code() {
        let memory = Memory::new(usize::MAX);
        for (sent, answer) in [
            (&[0x88, 0x82, 0, 0, 0, 0, 0x0f, 0xa0][..], &[0x88, 2, 0x0f, 0xa0][..]),
            (&[0x88, 0x80, 0, 0, 0, 0], &[0x88, 0]),
        ] {
            let (mut socket, mut peer) = pair(&memory).await;
            peer.write_all(sent).await.unwrap();
            let end = poll_fn(|cx| socket.poll_next(cx)).await;
            assert_eq!(end, Err(End::Gone));

            socket.farewell(&End::Gone).await;

            let mut all = Vec::new();
            peer.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, answer);
        }
    }

    #[tokio::test]
    async fn a_farewell_says_why_behind_what_was_said() {
        let memory = Memory::new(usize::MAX);
        let (mut socket, mut peer) = pair(&memory).await;
        socket.queue(TextFrame::new("first".to_owned(), &memory));
        // Bytes that nobody reads any more do not take the frame back.
        peer.write_all(&[0; 100]).await.unwrap();
        let farewell = tokio::spawn(async move {
            socket.farewell(&End::Close(CloseCode::TooLarge)).await;
        });

        let mut all = Vec::new();
        peer.read_to_end(&mut all).await.unwrap();

        assert_eq!(all[..7], *b"\x81\x05first");
        assert_eq!(all[7..], *b"\x88\x11\x03\xf1frame too large");
        drop(peer);
        farewell.await.unwrap();
    }
}
