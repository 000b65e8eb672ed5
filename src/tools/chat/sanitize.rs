//! Keeps text that a model or a server wrote from controlling the terminal.

/// Replaces all characters that could control the terminal with visible characters, and removes
/// carriage returns. Line feeds and tabs stay.
pub(super) fn sanitize(text: &str) -> String {
    text.chars().filter_map(sanitize_char).collect()
}

/// Sanitizes text that is shown within a line: white space, also line feeds, becomes a space.
pub(super) fn sanitize_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    sanitize(&words.join(" "))
}

fn sanitize_char(c: char) -> Option<char> {
    match c {
        '\n' | '\t' => Some(c),
        // A carriage return is not needed before a line feed, and alone it would let text overwrite
        // the line.
        '\r' => None,
        // Unicode has a visible symbol for each of these control characters.
        '\0'..='\x1f' => char::from_u32(0x2400 + c as u32),
        '\x7f' => Some('\u{2421}'),
        // The C1 control characters, and characters that change the direction of text.
        '\u{80}'..='\u{9f}'
        | '\u{200e}'
        | '\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}' => Some(char::REPLACEMENT_CHARACTER),
        _ => Some(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_replaced() {
        let hostile = "a\x1b]0;title\x07b\x1b[2Jc\u{9b}31md\re\r\nf\tg\x08\x7f\u{202e}h\0";
        let shown = sanitize(hostile);
        assert!(
            shown
                .chars()
                .all(|c| !c.is_control() || c == '\n' || c == '\t'),
            "{shown:?}"
        );
        assert_eq!(shown, "a␛]0;title␇b␛[2Jc\u{fffd}31mde\nf\tg␈␡\u{fffd}h␀");
        assert_eq!(sanitize("Grüße 👩‍👩‍👧 日本"), "Grüße 👩‍👩‍👧 日本");
    }

    #[test]
    fn line_has_no_line_feeds_and_no_control_characters() {
        let shown = sanitize_line(" a\r\n\tb\u{2028}c \x1b[1m\u{85}d ");
        assert_eq!(shown, "a b c ␛[1m d");
    }
}
