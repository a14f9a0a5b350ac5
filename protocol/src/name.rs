//! Names of events and commands, and the ids that make a retry harmless.

use thiserror::Error;

use crate::ErrorCode;
use crate::channel::shortened;
use crate::limits::{IDEMPOTENCY_KEY_BYTES_MAX, NAME_BYTES_MAX};

/// Why a name or an id is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// The grammar is broken.
    #[error("the name `{0}` must be 1 to {NAME_BYTES_MAX} characters of A-Z a-z 0-9 . _ : -")]
    Grammar(String),
    /// The name belongs to the relay's own frames.
    #[error("the name `{0}` belongs to the relay's own frames: choose another")]
    Reserved(String),
    /// The id breaks its grammar.
    #[error(
        "the id `{0}` must be 1 to {IDEMPOTENCY_KEY_BYTES_MAX} characters of A-Z a-z 0-9 . _ : -"
    )]
    IdempotencyKey(String),
}

impl NameError {
    /// With which code it is refused.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Reserved(_) => ErrorCode::ReservedName,
            Self::Grammar(_) | Self::IdempotencyKey(_) => ErrorCode::BadRequest,
        }
    }
}

/// Types of the relay's own frames. A flat event carries its name as `type`, so a publisher that
/// could use one of these could forge the frame. `error` is missing on purpose: an event of that name
/// has an `offset`, the relay's frame has a `code`.
const RESERVED: [&str; 17] = [
    "ack",
    "authenticated",
    "caught_up",
    "connected",
    "event",
    "pending",
    "ping",
    "pong",
    "reconnect",
    "relay_status",
    "released",
    "request_progress",
    "reset",
    "response",
    "subscribed",
    "token_expiring",
    "unsubscribed",
];

/// Whether `name` may name an event.
///
/// # Errors
/// [`NameError::Grammar`] or [`NameError::Reserved`].
pub fn check_event_name(name: &str) -> Result<(), NameError> {
    check_command_name(name)?;
    if RESERVED.contains(&name) {
        return Err(NameError::Reserved(name.to_owned()));
    }
    Ok(())
}

/// Whether `name` may name a command.
///
/// # Errors
/// [`NameError::Grammar`].
pub fn check_command_name(name: &str) -> Result<(), NameError> {
    let valid = is_word(name, NAME_BYTES_MAX);
    if valid { Ok(()) } else { Err(NameError::Grammar(shortened(name))) }
}

/// Whether `id` may make a retry harmless.
///
/// # Errors
/// [`NameError::IdempotencyKey`].
pub fn check_idempotency_key(id: &str) -> Result<(), NameError> {
    let valid = is_word(id, IDEMPOTENCY_KEY_BYTES_MAX);
    if valid { Ok(()) } else { Err(NameError::IdempotencyKey(shortened(id))) }
}

fn is_word(text: &str, bytes_max: usize) -> bool {
    (1..=bytes_max).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:-".contains(&b))
}
