//! What crosses a browser's socket: [`ClientFrame`] up, [`RelayFrame`] down.

mod down;
mod up;

pub use down::{ErrorBody, NamedChannel, RelayFrame};
pub use up::{
    Addressing, ClientFrame, Command, CorrelationId, Incoming, Refusal, Request, Since, Subscribe,
    Target, parse, parse_format, parse_since,
};
