//! A browser: a WebSocket client that is not ours, and a memory of everything it received.

use std::collections::HashMap;
use std::ops::Range;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::tungstenite::Message;

use crate::PATIENCE;
use crate::endpoint::Socket;
use crate::history::{Event, History, kind_of};
use crate::process::Log;

/// What its reader hands over.
#[derive(Debug)]
enum Arrival {
    Text(String),
    Closed(Option<(u16, String)>),
}

/// A connected browser. It reads by itself, answers pings, and checks each frame against its
/// [`History`]; a test fails at the first frame that breaks a promise of the wire.
#[derive(Debug)]
pub struct Browser {
    up: SplitSink<Socket, Message>,
    down: mpsc::Receiver<Arrival>,
    is_reading: watch::Sender<bool>,
    log: Log,
    frames: Vec<(Value, String)>,
    history: History,
    closed: Option<Option<(u16, String)>>,
    asked: u64,
}

impl Browser {
    pub(crate) fn new(socket: Socket, log: Log, history: History) -> Self {
        let (up, stream) = socket.split();
        let (arrivals, down) = mpsc::channel(100_000);
        let (is_reading, reading) = watch::channel(true);
        tokio::spawn(read(stream, arrivals, reading));
        Self { up, down, is_reading, log, frames: Vec::new(), history, closed: None, asked: 0 }
    }

    /// Sends a frame.
    pub async fn send(&mut self, frame: Value) {
        self.send_message(Message::text(frame.to_string())).await;
    }

    /// Sends anything at all.
    pub async fn send_message(&mut self, message: Message) {
        let sent = tokio::time::timeout(PATIENCE, self.up.send(message)).await;
        let sent = sent.unwrap_or_else(|_| self.fail("the relay takes a frame"));
        sent.unwrap_or_else(|error| self.fail(&format!("the relay takes a frame, but: {error}")));
    }

    /// Sends a frame with an `id` and waits for the frame that answers it.
    pub async fn ask(&mut self, mut frame: Value) -> Value {
        self.asked += 1;
        let id = json!(format!("ask-{}", self.asked));
        frame["id"] = id.clone();
        let what = format!("an answer to {frame}");
        self.send(frame).await;
        self.wait_for(&what, |frame| frame["id"] == id).await
    }

    /// Waits for the next frame.
    pub async fn next(&mut self) -> Value {
        self.wait_for("any frame", |_| true).await
    }

    /// Waits for a frame that `is_it`, taking in all that come before.
    ///
    /// # Panics
    /// When it does not come; prints what did.
    pub async fn wait_for(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let looking = async {
            loop {
                let Some(frame) = self.take().await else { self.fail(what) };
                if is_it(&frame) {
                    return frame;
                }
            }
        };
        match tokio::time::timeout(PATIENCE, looking).await {
            Ok(frame) => frame,
            Err(_) => self.fail(what),
        }
    }

    /// Waits for a frame of a type.
    pub async fn wait_for_type(&mut self, kind: &str) -> Value {
        self.wait_for(&format!("a `{kind}`"), |frame| kind_of(frame) == kind).await
    }

    /// Waits until all that was seen so far satisfies `is_enough`.
    ///
    /// # Panics
    /// When that does not happen; prints what did arrive.
    pub async fn wait_until(&mut self, what: &str, is_enough: impl Fn(&History) -> bool) {
        let looking = async {
            while !is_enough(&self.history) {
                if self.take().await.is_none() {
                    self.fail(what);
                }
            }
        };
        if tokio::time::timeout(PATIENCE, looking).await.is_err() {
            self.fail(what);
        }
    }

    /// Waits for the end of the connection: the close code and its reason, 1006 where there was none.
    pub async fn wait_for_close(&mut self) -> (u16, String) {
        let looking = async { while self.take().await.is_some() {} };
        if tokio::time::timeout(PATIENCE, looking).await.is_err() {
            self.fail("the connection ends");
        }
        self.closed.clone().flatten().unwrap_or((1006, String::new()))
    }

    /// Proves that the connection lives and that everything which the relay had sent before has
    /// arrived.
    pub async fn settle(&mut self) {
        let answer = self.ask(json!({"type": "ping"})).await;
        assert_eq!(answer["type"], "pong", "{answer}");
    }

    /// Subscribes to `channel` from the head and waits until that stands; the `subscribed`.
    pub async fn subscribe(&mut self, channel: &str) -> Value {
        let subscribed = self.ask(json!({"type": "subscribe", "channel": channel})).await;
        self.stands(channel, subscribed).await
    }

    /// Subscribes to `channel` since a position, or from the start, and waits until everything
    /// missed has arrived; the `subscribed`.
    pub async fn subscribe_since(&mut self, channel: &str, since: Option<&str>) -> Value {
        let frame = json!({"type": "subscribe", "channel": channel, "since": since});
        let subscribed = self.ask(frame).await;
        self.stands(channel, subscribed).await
    }

    async fn stands(&mut self, channel: &str, subscribed: Value) -> Value {
        assert_eq!(subscribed["type"], "subscribed", "{channel} was refused: {subscribed}");
        let is_caught_up = |f: &Value| kind_of(f) == "caught_up" && f["channel"] == channel;
        self.wait_for(&format!("caught_up of {channel}"), is_caught_up).await;
        subscribed
    }

    /// Waits until the `number` events of `channel` have come up to the end of `numbers`, and
    /// asserts that they are exactly these, once each, in order.
    pub async fn expect_numbers(&mut self, channel: &str, numbers: Range<u64>) {
        let last = numbers.end - 1;
        let what = format!("number {last} on {channel}");
        self.wait_until(&what, |seen| seen.numbers(channel).last() == Some(&last)).await;
        assert_eq!(self.history.numbers(channel), numbers.collect::<Vec<_>>(), "{channel}");
    }

    /// Stops reading: from here on the relay's bytes pile up.
    pub fn stop_reading(&mut self) {
        self.is_reading.send_replace(false);
    }

    /// Reads again.
    pub fn read_again(&mut self) {
        self.is_reading.send_replace(true);
    }

    /// Everything seen, on this connection and those that it continues.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The events of a channel so far.
    pub fn events(&self, channel: &str) -> &[Event] {
        self.history.events(channel)
    }

    /// Every frame of this connection so far.
    pub fn frames(&self) -> impl Iterator<Item = &Value> {
        self.frames.iter().map(|(frame, _)| frame)
    }

    /// How many frames of a type came on this connection so far.
    pub fn count(&self, kind: &str) -> usize {
        self.frames().filter(|frame| kind_of(frame) == kind).count()
    }

    /// Goes away without closing, as when a laptop sleeps; what it has seen.
    pub fn vanish(self) -> History {
        self.history
    }

    /// Closes properly; what it has seen.
    pub async fn leave(mut self) -> History {
        // The relay may have closed first.
        self.up.close().await.ok();
        self.wait_for_close().await;
        self.history
    }

    /// Takes in the next frame; `None` when there will be none.
    async fn take(&mut self) -> Option<Value> {
        let raw = match self.down.recv().await? {
            Arrival::Text(raw) => raw,
            Arrival::Closed(why) => {
                self.closed.get_or_insert(why);
                return None;
            }
        };
        let frame = read_json(&raw);
        self.frames.push((frame.clone(), raw.clone()));
        if let Err(broken) = self.history.take(&frame, &raw) {
            self.fail(&format!("the wire's promises are kept, but {broken}"));
        }
        Some(frame)
    }

    fn fail(&self, wanted: &str) -> ! {
        let shorten = |raw: &String| raw.chars().take(300).collect::<String>();
        let last: Vec<String> =
            self.frames.iter().rev().take(25).map(|(_, raw)| shorten(raw)).collect();
        let last: Vec<String> = last.into_iter().rev().collect();
        panic!(
            "wanted: {wanted}\nclosed: {:?}\n{} frames arrived, the last of them:\n  {}\nthe replica logged:\n{}",
            self.closed,
            self.frames.len(),
            last.join("\n  "),
            self.log.tail(20)
        )
    }
}

/// Reads the socket as long as it shall; pings are answered on the way.
async fn read(
    mut stream: SplitStream<Socket>,
    arrivals: mpsc::Sender<Arrival>,
    mut is_reading: watch::Receiver<bool>,
) {
    loop {
        if is_reading.wait_for(|is_reading| *is_reading).await.is_err() {
            return;
        }
        let message = tokio::select! {
            changed = is_reading.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            message = stream.next() => message,
        };
        let arrival = match message {
            Some(Ok(Message::Text(text))) => Arrival::Text(text.to_string()),
            Some(Ok(Message::Close(frame))) => {
                Arrival::Closed(frame.map(|frame| (frame.code.into(), frame.reason.to_string())))
            }
            Some(Ok(_)) => continue,
            Some(Err(_)) | None => Arrival::Closed(None),
        };
        let is_last = matches!(arrival, Arrival::Closed(_));
        if arrivals.send(arrival).await.is_err() || is_last {
            // What tungstenite still has to say, such as the answer to a close, goes out here.
            while is_last && stream.next().await.is_some_and(|message| message.is_ok()) {}
            return;
        }
    }
}

/// Reads a frame. JSON may hold what `serde_json` refuses and JavaScript does not, such as half a
/// surrogate pair or `1e400`: then each field is read alone, and such a one is null.
fn read_json(raw: &str) -> Value {
    if let Ok(frame) = serde_json::from_str(raw) {
        return frame;
    }
    let fields: HashMap<String, &RawValue> = serde_json::from_str(raw)
        .unwrap_or_else(|error| panic!("the relay sent no JSON object ({error}): {raw}"));
    let read = |value: &RawValue| serde_json::from_str(value.get()).unwrap_or(Value::Null);
    fields.into_iter().map(|(name, value)| (name, read(value))).collect()
}
