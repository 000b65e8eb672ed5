//! Measures texts as parts of a JSON string, in which `MAX_ANSWER_BYTES` limits an answer.

/// The number of bytes that `text` occupies inside a JSON string, without the quotation marks.
pub(super) fn json_len(text: &str) -> usize {
    text.chars().map(json_len_of_char).sum()
}

fn json_len_of_char(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        c if c < ' ' => 6,
        c => c.len_utf8(),
    }
}

/// The longest prefix of `text` that occupies at most `max_bytes` inside a JSON string.
pub(super) fn prefix_of_json_len(text: &str, max_bytes: usize) -> &str {
    let mut used_bytes = 0;
    for (index, c) in text.char_indices() {
        used_bytes += json_len_of_char(c);
        if used_bytes > max_bytes {
            return &text[..index];
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn json_len_equals_the_serialised_length(text in any::<String>()) {
            prop_assert_eq!(json_len(&text) + 2, serde_json::to_string(&text).unwrap().len());
        }

        #[test]
        fn the_prefix_is_as_long_as_possible(text in any::<String>(), max in 0_usize..100) {
            let prefix = prefix_of_json_len(&text, max);
            prop_assert!(json_len(prefix) <= max);
            if let Some(next) = text[prefix.len()..].chars().next() {
                prop_assert!(json_len(prefix) + json_len_of_char(next) > max);
            }
        }
    }
}
