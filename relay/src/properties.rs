//! What must hold whatever comes from outside: `fuzz/` tries it on random input, the tests here on what fuzzing has found.
//!
//! A property panics where it does not hold.

mod tokens;
mod websocket;

pub use tokens::tokens;
pub use websocket::websocket;

#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::replay::replay;

    #[test]
    fn tokens() {
        replay("tokens", super::tokens);
    }

    #[test]
    fn websocket() {
        replay("websocket", super::websocket);
    }
}
