//! What must hold whatever comes from outside: `fuzz/` tries it on random input, the tests here on what fuzzing has found.
//!
//! A property panics where it does not hold.

mod tokens;

pub use tokens::tokens;

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
}
