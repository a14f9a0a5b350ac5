//! What is kept of a content to tell its repetition from another content under the same id. Pure.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// The digest of a text: nobody can find another text of the same.
pub(crate) fn digest(text: &str) -> Box<str> {
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(text) {
        write!(hex, "{byte:02x}").expect("a text takes what is written");
    }
    hex.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_sha_256_in_lower_case() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(&*digest("abc"), abc);
    }
}
