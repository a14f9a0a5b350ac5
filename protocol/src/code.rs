//! What can go wrong, as codes with a sentence that says what to do.
//!
//! `PROTOCOL.md` prints the same two tables; a test compares them.

/// Declares an enum of codes together with everything that hangs on a code.
macro_rules! error_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $status:literal, $retryable:literal, $help:literal;)+) => {
        /// The code of an `error` frame, of a failed request and of a failed HTTP call.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode { $($(#[doc = $doc])+ $name,)+ }

        impl ErrorCode {
            /// Every code, in the order of `PROTOCOL.md`.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The code as it stands on the wire.
            pub const fn as_str(self) -> &'static str { match self { $(Self::$name => $code,)+ } }

            /// The HTTP status that goes with it.
            pub const fn http_status(self) -> u16 { match self { $(Self::$name => $status,)+ } }

            /// Whether the same thing, tried again later, can succeed.
            pub const fn is_retryable(self) -> bool { match self { $(Self::$name => $retryable,)+ } }

            /// What the receiver should do.
            pub const fn help(self) -> &'static str { match self { $(Self::$name => $help,)+ } }
        }
    };
}

error_codes! {
    /// The frame or the call is malformed.
    BadRequest = "bad_request", 400, false, "Correct the field that the message names.";
    /// The event's name belongs to the relay.
    ReservedName = "reserved_name", 400, false, "Choose another event name.";
    /// The relay does not support this yet.
    Unsupported = "unsupported", 400, false, "Do without it, or use a relay that supports it.";
    /// No valid token where one is needed.
    Unauthorized = "unauthorized", 401, false, "Connect with a valid, unexpired token.";
    /// A page of a foreign origin connected to a relay without keys.
    Forbidden = "forbidden", 403, false, "Open the page from the relay itself, name its origin with `--allow-origin`, or configure a key and pass a token.";
    /// Missing, or not granted: both look the same.
    NotFound = "not_found", 404, false, "Check the name, and that the token grants it.";
    /// Somebody else answered first.
    AlreadyResolved = "already_resolved", 409, false, "Show who decided what: `by`, `at` and `decision` tell.";
    /// The time to answer is over.
    Expired = "expired", 409, false, "Nobody answered in time: `decision` is what held by default, `at` since when.";
    /// What was shown is not what is asked.
    DigestMismatch = "digest_mismatch", 409, false, "Show what is asked now, and let it be answered again.";
    /// The id is in use for something else.
    Conflict = "conflict", 409, false, "Use a new id: this one was used with other content.";
    /// A newer incarnation of the agent has taken over, or it was declared lost.
    Fenced = "fenced", 409, false, "Begin again, as a new incarnation.";
    /// Several questions have this id, on channels that the sender may command.
    Ambiguous = "ambiguous", 409, false, "Name the question's `channel` or `sessionId`.";
    /// A later frame about the same channel came first.
    Superseded = "superseded", 409, false, "Nothing: a later `subscribe` or `unsubscribe` of the channel took its place.";
    /// More bytes than the limit.
    TooLarge = "too_large", 413, false, "Send less; store large content elsewhere and send a link.";
    /// More of something than the limit.
    LimitExceeded = "limit_exceeded", 429, false, "Give something up first, for example unsubscribe a channel.";
    /// Faster than the limit.
    RateLimited = "rate_limited", 429, true, "Wait for `retry_after_ms`, then send it again, under the same `command_id`.";
    /// The agent or worker refuses to do it.
    Rejected = "rejected", 422, false, "The message says why; ask for something else.";
    /// No agent is there.
    AgentUnavailable = "agent_unavailable", 503, true, "Try again when the agent is running; this one is not done later.";
    /// Nobody serves this request.
    NoWorker = "no_worker", 503, true, "Try again when a worker of the service is running.";
    /// The worker that had begun the request died.
    WorkerLost = "worker_lost", 503, true, "It may be done in part. If it can be done twice, ask again under a new `command_id`.";
    /// Too much waits already.
    Busy = "busy", 503, true, "Try again when the agent has caught up; give the same `command_id`.";
    /// Redis does not answer, or the relay is full.
    Unavailable = "unavailable", 503, true, "Try again in a moment; give the same id, so that it happens once.";
    /// No reply came in time.
    Timeout = "timeout", 504, true, "It may have been done. If it can be done twice, ask again under a new `command_id`, or with more time.";
}

/// Declares the close codes together with what a client should do.
macro_rules! close_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $reason:literal, $help:literal;)+) => {
        /// Why the relay closes a WebSocket. 4000 to 4499 may come back, with backoff; 4500 to 4999
        /// may not.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum CloseCode { $($(#[doc = $doc])+ $name,)+ }

        impl CloseCode {
            /// Every code, in the order of `PROTOCOL.md`.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The number in the close frame.
            pub const fn number(self) -> u16 { match self { $(Self::$name => $number,)+ } }

            /// The text in the close frame.
            pub const fn reason(self) -> &'static str { match self { $(Self::$name => $reason,)+ } }

            /// What the receiver should do.
            pub const fn help(self) -> &'static str { match self { $(Self::$name => $help,)+ } }
        }
    };
}

close_codes! {
    /// The browser closed, or the relay answers its close.
    Normal = 1000, "closed", "Nothing: you closed it.";
    /// What came is no WebSocket frame of a client.
    ProtocolError = 1002, "not a WebSocket frame", "Do not come back: correct the client.";
    /// A binary frame: the wire is text.
    Unsupported = 1003, "text frames only", "Send JSON text frames.";
    /// Text that is not UTF-8.
    InvalidText = 1007, "invalid UTF-8", "Send UTF-8.";
    /// Frame after frame that cannot be read.
    Unreadable = 1008, "too many frames that cannot be read", "Do not come back: correct the client.";
    /// A frame beyond the limit.
    TooLarge = 1009, "frame too large", "Keep each frame within 64 KiB.";
    /// A bug on our side has ended this connection alone.
    InternalError = 1011, "internal error", "Come back with `since`, with backoff.";
    /// The replica goes down; another one takes over.
    Restart = 1012, "restarting", "Come back at once, with `since`, to another replica.";
    /// The token's end has come.
    TokenExpired = 4401, "token expired", "Come back with a fresh token and `since`.";
    /// No byte moved for the stall timeout.
    Stalled = 4408, "no progress", "Come back with `since`; read faster, or answer pings.";
    /// The token was never good, or is not for what it is used for.
    TokenRefused = 4501, "token refused", "Do not come back with this token: the close frame's reason says what is wrong with it.";
}
