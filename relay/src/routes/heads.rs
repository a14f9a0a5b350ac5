//! How large the head of a request may be, and how long a peer may take to send one.
//!
//! The HTTP library has one timer for all: a head that trickles and a connection that rests between two requests
//! would be cut alike. A balancer that sends its next request at that moment would answer 502.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use hyper::body::{Frame, SizeHint};
use protocol::ErrorCode;
use protocol::frame::ErrorBody;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::websocket::FAREWELL;

/// Until the first byte of a new connection (F58).
const FIRST_BYTE: Duration = Duration::from_secs(10);
/// From the first byte of a head to its last.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Between two requests: longer than the 60 s after which common balancers drop an idle connection, so that they
/// do it first.
const IDLE: Duration = Duration::from_secs(75);
/// The same three, where the sockets are used up: who says nothing keeps others from asking for health.
pub(crate) const WHEN_FULL: Duration = Duration::from_millis(250);
/// A head with a token and the cookies of a whole domain.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Fields of a head: the HTTP library's own bound.
const HEADERS_MAX: usize = 100;
/// What the HTTP library may hold of a head: more, so that it is always refused here.
pub(crate) const HEAD_BUFFER: usize = 2 * HEAD_BYTES_MAX;

/// Which requests of a connection are answered, told to the socket below.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exchange(Arc<ExchangeState>);

#[derive(Debug, Default)]
struct ExchangeState {
    is_answering: AtomicBool,
    /// How many heads were there.
    heads: AtomicU64,
    /// The task of the connection: after an answer it looks at the clock again.
    task: AtomicWaker,
}

impl Exchange {
    /// A request's head is there.
    pub(crate) fn begin(&self) -> Answering {
        self.0.heads.fetch_add(1, Ordering::Relaxed);
        self.0.is_answering.store(true, Ordering::Release);
        Answering { exchange: self.clone(), is_upgraded: false }
    }

    fn is_answering(&self) -> bool {
        self.0.is_answering.load(Ordering::Acquire)
    }

    fn heads(&self) -> u64 {
        self.0.heads.load(Ordering::Relaxed)
    }
}

/// A request that is being answered, until it is dropped.
#[derive(Debug)]
pub(crate) struct Answering {
    exchange: Exchange,
    is_upgraded: bool,
}

impl Answering {
    /// The answer, which ends with its body; that of a WebSocket never.
    pub(crate) fn with(mut self, response: axum::response::Response) -> axum::response::Response {
        self.is_upgraded = response.status() == axum::http::StatusCode::SWITCHING_PROTOCOLS;
        response.map(|body| Body::new(Answer { body, _answering: self }))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if !self.is_upgraded {
            self.exchange.0.is_answering.store(false, Ordering::Release);
            self.exchange.0.task.wake();
        }
    }
}

/// A body that knows when it has been handed out.
struct Answer {
    body: Body,
    _answering: Answering,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket on which heads are bounded.
#[derive(Debug)]
pub(crate) struct Heads<S> {
    socket: S,
    exchange: Exchange,
    /// How many heads there were when the one that is awaited began.
    heads: u64,
    stage: Stage,
    timer: Pin<Box<Sleep>>,
    /// The longest that it waits for anything.
    patience: Duration,
    /// A part of an answer could not be written yet.
    owes: bool,
}

/// Where a connection is between two answers.
#[derive(Debug)]
enum Stage {
    /// Nothing came yet of the next head.
    Waiting,
    /// So many bytes of it came.
    Head(usize),
    /// No request will be read any more: this is still to be written.
    Refusing(Bytes),
    /// What the peer still sends is passed over, so that the system does not take back what was written.
    Draining,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Heads<S> {
    pub(crate) fn new(socket: S, exchange: Exchange, patience: Duration) -> Self {
        let timer = Box::pin(tokio::time::sleep(FIRST_BYTE.min(patience)));
        Self { socket, exchange, heads: 0, stage: Stage::Waiting, timer, patience, owes: false }
    }

    /// The socket, for what is not HTTP any more.
    pub(crate) fn into_inner(self) -> S {
        self.socket
    }

    fn go_on(&mut self, stage: Stage, for_at_most: Duration) {
        self.stage = stage;
        self.timer.as_mut().reset(Instant::now() + for_at_most.min(self.patience));
    }

    fn refuse(&mut self, status: &str, code: ErrorCode, message: &str) {
        tracing::info!(status, "a request's head was refused: {message}");
        let error = serde_json::json!({"error": ErrorBody::new(code, message)}).to_string();
        let length = error.len();
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n{error}"
        );
        self.go_on(Stage::Refusing(answer.into()), FAREWELL);
    }

    /// Reads while no request is being answered.
    fn poll_head(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let heads = self.exchange.heads();
        if heads != self.heads {
            self.heads = heads;
            self.go_on(Stage::Waiting, IDLE);
        }
        if matches!(self.stage, Stage::Head(bytes) if bytes >= HEAD_BYTES_MAX) {
            let message = format!("the head of the request exceeds {HEAD_BYTES_MAX} bytes");
            self.refuse("431 Request Header Fields Too Large", ErrorCode::TooLarge, &message);
        }
        if matches!(self.stage, Stage::Refusing(_) | Stage::Draining) {
            return self.poll_refusal(cx);
        }
        if let Poll::Ready(read) = self.poll_part(cx, buf) {
            let bytes = read?;
            match &mut self.stage {
                Stage::Head(all) => *all += bytes,
                _ => self.go_on(Stage::Head(bytes), HEAD_TIME),
            }
            return Poll::Ready(Ok(()));
        }
        ready!(self.timer.as_mut().poll(cx));
        while matches!(self.stage, Stage::Waiting) {
            if !self.owes {
                // As if the peer had hung up.
                return Poll::Ready(Ok(()));
            }
            // It does not rest, it reads.
            self.go_on(Stage::Waiting, IDLE);
            ready!(self.timer.as_mut().poll(cx));
        }
        let seconds = HEAD_TIME.min(self.patience).as_secs_f32();
        let message = format!("the head of the request took longer than {seconds} s");
        self.refuse("408 Request Timeout", ErrorCode::BadRequest, &message);
        self.poll_refusal(cx)
    }

    /// Reads no more than a head may still have.
    fn poll_part(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<usize>> {
        let read = if let Stage::Head(bytes) = self.stage { bytes } else { 0 };
        let mut space = [0; 8 * 1024];
        let most = space.len().min(buf.remaining()).min(HEAD_BYTES_MAX - read);
        let mut part = ReadBuf::new(&mut space[..most]);
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut part))?;
        buf.put_slice(part.filled());
        Poll::Ready(Ok(part.filled().len()))
    }

    /// Whether `answer` is the HTTP library's own to a head that it cannot read, which has no body: it is refused here
    /// instead. No answer of ours is written while a head is read of which none was begun.
    fn replaces(&mut self, answer: &[u8]) -> bool {
        let is_reading = matches!(self.stage, Stage::Head(_));
        if !is_reading || self.exchange.is_answering() || self.exchange.heads() != self.heads {
            return false;
        }
        if answer.starts_with(b"HTTP/1.1 431 ") {
            let message = format!("the head of the request has more than {HEADERS_MAX} fields");
            self.refuse("431 Request Header Fields Too Large", ErrorCode::TooLarge, &message);
        } else if answer.starts_with(b"HTTP/1.1 4") {
            let message = "the head of the request is not HTTP/1.1";
            self.refuse("400 Bad Request", ErrorCode::BadRequest, message);
        } else {
            return false;
        }
        true
    }

    fn wrote<T>(&mut self, written: Poll<T>) -> Poll<T> {
        self.owes = written.is_pending();
        written
    }

    /// Ends with an error, on which the HTTP library hangs up without a word.
    fn poll_refusal(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let refused = match self.poll_last_words(cx) {
            Poll::Ready(Ok(())) => io::Error::other("the head was refused"),
            Poll::Ready(Err(error)) => error,
            Poll::Pending => {
                ready!(self.timer.as_mut().poll(cx));
                io::ErrorKind::TimedOut.into()
            }
        };
        Poll::Ready(Err(refused))
    }

    fn poll_last_words(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Stage::Refusing(rest) = &mut self.stage {
            let written = ready!(Pin::new(&mut self.socket).poll_write(cx, rest))?;
            rest.advance(written);
            if rest.is_empty() {
                ready!(Pin::new(&mut self.socket).poll_shutdown(cx))?;
                self.stage = Stage::Draining;
            }
        }
        let mut space = [0; 4 * 1024];
        loop {
            let mut passed_over = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.socket).poll_read(cx, &mut passed_over))?;
            if passed_over.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Heads<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.exchange.is_answering() {
            self.exchange.0.task.register(cx.waker());
            return Pin::new(&mut self.socket).poll_read(cx, buf);
        }
        self.poll_head(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Heads<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.replaces(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        let written = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if bufs.first().is_some_and(|first| self.replaces(first)) {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if matches!(self.stage, Stage::Refusing(_) | Stage::Draining) {
            return self.poll_refusal(cx);
        }
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::response::IntoResponse;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// A peer of a server that answers `hello`.
    fn peer() -> DuplexStream {
        let (peer, socket) = duplex(1024 * 1024);
        let exchange = Exchange::default();
        let socket = Heads::new(socket, exchange.clone(), Duration::MAX);
        let service = service_fn(move |_| {
            let answering = exchange.begin();
            async move { Ok::<_, Infallible>(answering.with("hello".into_response())) }
        });
        let mut connection = http1::Builder::new();
        connection.max_buf_size(HEAD_BUFFER);
        tokio::spawn(connection.serve_connection(TokioIo::new(socket), service));
        peer
    }

    trait Asks {
        async fn asks(&mut self, with: &str) -> String;
        async fn rest(&mut self) -> String;
    }

    impl Asks for DuplexStream {
        async fn asks(&mut self, with: &str) -> String {
            self.write_all(format!("GET / HTTP/1.1\r\nHost: x\r\n{with}\r\n").as_bytes())
                .await
                .unwrap();
            let mut answer = vec![0; 4096];
            let length = self.read(&mut answer).await.unwrap();
            String::from_utf8_lossy(&answer[..length]).into_owned()
        }

        async fn rest(&mut self) -> String {
            let mut rest = String::new();
            self.read_to_string(&mut rest).await.unwrap();
            rest
        }
    }

    /// When the server hangs up, in whole seconds after `start`.
    async fn ends(peer: &mut DuplexStream, start: Instant) -> (u64, String) {
        let rest = peer.rest().await;
        (start.elapsed().as_secs(), rest)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_rests_between_two_requests_for_75_s() {
        let mut peer = peer();
        assert!(peer.asks("").await.ends_with("hello"));
        tokio::time::sleep(Duration::from_secs(74)).await;
        assert!(peer.asks("").await.ends_with("hello"));

        assert_eq!(ends(&mut peer, Instant::now()).await, (75, String::new()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_must_say_something_within_10_s() {
        assert_eq!(ends(&mut peer(), Instant::now()).await, (10, String::new()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_must_be_there_10_s_after_its_first_byte_however_it_trickles() {
        for is_first in [true, false] {
            let mut peer = peer();
            if !is_first {
                assert!(peer.asks("").await.ends_with("hello"));
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            let start = Instant::now();
            for _ in 0..9 {
                peer.write_all(b"G").await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }

            let (at, said) = ends(&mut peer, start).await;

            assert!((10..=11).contains(&at), "{at}");
            assert!(said.starts_with("HTTP/1.1 408 ") && said.contains("10 s"), "{said}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_of_60_kib_is_read_and_a_larger_one_is_refused_in_json() {
        let cookies = |kib: usize| format!("Cookie: {}\r\n", "x".repeat(kib * 1024));
        let mut peer = peer();
        assert!(peer.asks(&cookies(60)).await.ends_with("hello"));

        let said = peer.asks(&cookies(70)).await + &peer.rest().await;

        assert!(said.starts_with("HTTP/1.1 431 "), "{said}");
        let (_, body) = said.split_once("\r\n\r\n").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"]["code"], "too_large");
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_cannot_be_read_is_refused_in_json() {
        let many: String = (0..101).map(|n| format!("X-{n}: y\r\n")).collect();
        let cases = [
            ("GET / HTTP/1.1\r\nnot a header\r\n\r\n".to_owned(), "400", "bad_request"),
            ("\x16\x03\x01\x02\x00\x01\r\n\r\n".to_owned(), "400", "bad_request"),
            (format!("GET / HTTP/1.1\r\n{many}\r\n"), "431", "too_large"),
        ];
        for (head, status, code) in cases {
            for is_first in [true, false] {
                let mut peer = peer();
                if !is_first {
                    assert!(peer.asks("").await.ends_with("hello"));
                }
                peer.write_all(head.as_bytes()).await.unwrap();

                let said = peer.rest().await;

                assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{said}");
                let (_, body) = said.split_once("\r\n\r\n").unwrap();
                let body: serde_json::Value = serde_json::from_str(body).unwrap();
                assert_eq!(body["error"]["code"], code);
            }
        }
        let few: String = (0..90).map(|n| format!("X-{n}: y\r\n")).collect();
        assert!(peer().asks(&few).await.ends_with("hello"));
    }
}
