//! What a model, or a server, may do to a terminal: show text, and nothing else.

/// `text` with everything that could drive the terminal made visible. Line feeds and tabs stay.
pub(super) fn harmless(text: &str) -> String {
    text.chars().filter_map(shown).collect()
}

fn shown(c: char) -> Option<char> {
    match c {
        '\n' | '\t' => Some(c),
        // Of CR LF; alone it would write over the line.
        '\r' => None,
        // Unicode has pictures of the control characters.
        '\0'..='\x1f' => char::from_u32(0x2400 + c as u32),
        '\x7f' => Some('\u{2421}'),
        // The other control characters, and those that turn the direction of what follows.
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
    fn nothing_that_drives_a_terminal_is_left() {
        let hostile = "a\x1b]0;title\x07b\x1b[2Jc\u{9b}31md\re\r\nf\tg\x08\x7f\u{202e}h\0";
        let shown = harmless(hostile);
        assert!(
            shown
                .chars()
                .all(|c| !c.is_control() || c == '\n' || c == '\t'),
            "{shown:?}"
        );
        assert_eq!(shown, "a␛]0;title␇b␛[2Jc\u{fffd}31mde\nf\tg␈␡\u{fffd}h␀");
        assert_eq!(harmless("Grüße 👩‍👩‍👧 日本"), "Grüße 👩‍👩‍👧 日本");
    }
}
