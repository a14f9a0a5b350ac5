//! What crosses a browser's socket: [`ClientFrame`] up, [`RelayFrame`] down.

mod down;
mod up;
pub(crate) mod words;

pub use down::{ErrorBody, NamedChannel, Outcome, RelayFrame, Resolution};
pub use up::{
    Addressing, Answer, AuthToken, Cancels, ClientFrame, Command, CorrelationId, Incoming, Refusal,
    Request, Since, Subscribe, Target, parse, parse_body, parse_format, parse_since,
};
