//! Foreign text in a log or an error: short, on one line, and unable to steer a terminal.

/// `text` with everything escaped that is not seen as what it is, and cut after `chars_max` characters.
pub fn shown(text: &str, chars_max: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(4 * chars_max));
    let mut chars = text.chars();
    for char in chars.by_ref().take(chars_max) {
        if is_visible(char) {
            shown.push(char);
        } else {
            shown.extend(char.escape_default());
        }
    }
    if chars.next().is_some() {
        shown.push('…');
    }
    shown
}

/// Whether a character shows itself and nothing else: it does not begin a line, steer a terminal, hide, or
/// turn the direction of what stands beside it.
pub fn is_visible(char: char) -> bool {
    !char.is_control()
        && !matches!(char,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{feff}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_hides_or_turns_is_escaped_and_what_is_long_is_cut() {
        for (text, is) in [
            ("it's \"a\" \\ é हि 🙂", "it's \"a\" \\ é हि 🙂"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{1b}[31m\u{7f}\u{9b}2J\0", "\\u{1b}[31m\\u{7f}\\u{9b}2J\\u{0}"),
            ("a\u{202e}b\u{200b}\u{2028}\u{feff}", "a\\u{202e}b\\u{200b}\\u{2028}\\u{feff}"),
            ("12345678901234567890", "12345678901234567890"),
            ("123456789012345678901", "12345678901234567890…"),
        ] {
            assert_eq!(shown(text, 20), is);
        }
    }
}
