//! WebSocket after the handshake (RFC 6455, the server's side): a [`decoder`] of what comes, finished [`frame`]s of
//! what goes, and the [`socket`] between them.
//!
//! It is our own because a frame to many viewers is encoded once, header included, and written to each socket from
//! where it lies; and because a viewer at rest holds no buffer. It knows texts, pings, pongs and closes, and no
//! extensions.

pub(crate) mod decoder;
mod frame;
mod socket;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use frame::TextFrame;
pub(crate) use socket::{End, FAREWELL, Socket};
