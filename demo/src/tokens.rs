//! Text as the tokens in which a model would write it. Pure.

/// Longer pieces of a word become two tokens.
const TOKEN_CHARS_MAX: usize = 6;

/// The tokens of `text`: words with the space before them, long ones in pieces, line breaks alone.
pub(crate) fn tokens(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let (mut start, mut chars) = (0, 0);
    for (at, char) in text.char_indices() {
        let begins_word = char.is_whitespace() || text[..at].ends_with('\n');
        if at > start && (begins_word || chars >= TOKEN_CHARS_MAX) {
            tokens.push(&text[start..at]);
            (start, chars) = (at, 0);
        }
        chars += 1;
    }
    if start < text.len() {
        tokens.push(&text[start..]);
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::tokens;

    #[test]
    fn tokens_are_words_with_their_space_and_pieces_of_long_ones() {
        assert_eq!(
            tokens("A test\n- ünïcödé, yes"),
            ["A", " test", "\n", "-", " ünïcö", "dé,", " yes"]
        );
        assert!(tokens("").is_empty());
    }

    #[test]
    fn nothing_is_lost() {
        for text in ["a  b", "\n\n x", "🦀🦀🦀🦀🦀🦀🦀🦀", "x ", "`cargo test`"] {
            assert_eq!(tokens(text).concat(), text);
        }
    }
}
