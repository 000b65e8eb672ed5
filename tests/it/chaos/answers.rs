//! The answers of the scripted model and their checks. Each word, tool call and source names its
//! model call, and the question follows at the end of the text, so the checks detect a mixture of
//! two calls: `c17.0 c17.1 … end QUESTION`.

use serde_json::Value;

use crate::support::model::AnswerScript;
use crate::support::parts::{Part, are_beginning_of, are_same};

/// The answer that the model writes in the call with this number. Two of three answers have
/// reasoning, tool calls and a source besides their text.
pub(super) fn planned_answer(call: usize, question: &str) -> AnswerScript {
    let words = 4 + call % 9;
    let words_in = |range: std::ops::Range<usize>| -> String {
        let words = range.map(|n| format!("c{call}.{n} "));
        words.collect()
    };
    let end = format!("end {question}");
    if call.is_multiple_of(3) {
        return AnswerScript::new().text(&(words_in(0..words) + &end));
    }
    let arguments = |name: &str| format!(r#"{{"call": "c{call}", "𝄞": "{name}", "n": [0, 1]}}"#);
    AnswerScript::new()
        .reasoning(&format!("c{call}.thought 𝄞 c{call}.thought "))
        .text(&words_in(0..words / 2))
        .tool_calls(&[
            (&format!("c{call}_a"), &arguments("a")),
            (&format!("c{call}_b"), &arguments("b")),
        ])
        .text(&(words_in(words / 2..words) + &end))
        .source(&format!("https://source.test/c{call}"), "A source")
}

/// The number of the model call in a word or name such as `c17.0` or `c17_a`.
fn call_in(text: &str) -> Option<usize> {
    let digits = text.strip_prefix('c')?;
    let end = digits.find(|character: char| !character.is_ascii_digit());
    digits[..end.unwrap_or(digits.len())].parse().ok()
}

/// The number of the model call that wrote the parts. `None` if nothing in them names it, as where
/// only the length of the reasoning is known.
fn call_of(parts: &[Part]) -> Option<usize> {
    parts.iter().find_map(|part| {
        let url = part.meta["url"].as_str().unwrap_or_default();
        let name = part.meta["name"].as_str().unwrap_or_default();
        let source = url.strip_prefix("https://source.test/");
        call_in(&part.text)
            .or_else(|| call_in(name))
            .or_else(|| call_in(source?))
    })
}

/// The violation if the parts are not the complete answer of one model call to `question`.
pub(super) fn check_complete(parts: &[Part], question: &str) -> Option<String> {
    let Some(call) = call_of(parts) else {
        return Some("an answer of no model call".to_owned());
    };
    let planned = planned_answer(call, question).parts;
    let is_same = are_same(parts, &planned);
    (!is_same).then(|| format!("expected the answer of call {call}, {planned:?}"))
}

/// The violation if the parts are not the beginning of the answer of one model call to `question`,
/// as those of a cancelled message.
pub(super) fn check_partial(parts: &[Part], question: &str) -> Option<String> {
    let Some(call) = call_of(parts) else {
        let is_reasoning = |part: &Part| part.kind == "reasoning" && part.text.is_empty();
        let is_valid = parts.len() <= 1 && parts.iter().all(is_reasoning);
        return (!is_valid).then(|| "parts of no model call".to_owned());
    };
    let planned = planned_answer(call, question).parts;
    let is_beginning = are_beginning_of(parts, &planned);
    (!is_beginning).then(|| format!("expected the beginning of call {call}, {planned:?}"))
}

/// The violation if `text` is not the complete text of the answer of one model call to `question`.
pub(super) fn check_text(text: &str, question: &str) -> Option<String> {
    let part = Part::new("text", Value::Null, text);
    let Some(call) = call_of(&[part]) else {
        return Some("a text of no model call".to_owned());
    };
    let planned = planned_answer(call, question).content();
    (text != planned).then(|| format!("expected the text of call {call}, {planned:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Changes the text of one part.
    fn with_text(parts: &[Part], index: usize, text: &str) -> Vec<Part> {
        let mut parts = parts.to_vec();
        let part = &parts[index];
        parts[index] = Part::new(&part.kind, part.meta.clone(), text);
        parts
    }

    #[test]
    fn mixed_incomplete_and_foreign_answers_are_detected() {
        for call in [1, 3] {
            let parts = planned_answer(call, "q").parts;
            assert_eq!(check_complete(&parts, "q"), None);
            assert!(check_complete(&parts, "other").is_some());
            for part in 0..parts.len() {
                assert_eq!(check_partial(&parts[..part], "q"), None);
                assert!(check_complete(&parts[..part], "q").is_some());
                if parts.len() > 1 {
                    let mut missing = parts.clone();
                    missing.remove(part);
                    assert!(check_complete(&missing, "q").is_some());
                }
                let mut other_call = parts.clone();
                other_call[part] = planned_answer(call + 6, "q").parts[part].clone();
                if parts.len() > 1 {
                    assert!(check_partial(&other_call, "q").is_some());
                }
            }
        }
        let parts = planned_answer(3, "q").parts;
        for text in [
            "c3.0 c3.2 ",
            "c3.1 ",
            "c3.0 c3.0 ",
            "c3.0 c2.1 ",
            "no words",
        ] {
            let changed = with_text(&parts, 0, text);
            assert!(check_partial(&changed, "q").is_some(), "{text}");
        }
        assert_eq!(
            check_partial(&with_text(&parts, 0, "c3.0 c3.1 "), "q"),
            None
        );
    }

    #[test]
    fn reasoning_of_which_only_the_length_is_known_is_accepted() {
        let mut parts = planned_answer(1, "q").parts;
        parts[0].text.clear();
        assert_eq!(check_complete(&parts, "q"), None);
        assert_eq!(check_partial(&parts[..1], "q"), None);
        parts[0].length += 1;
        assert!(check_complete(&parts, "q").is_some());
    }

    #[test]
    fn text_of_a_classic_frame_is_that_of_one_call() {
        let text = planned_answer(4, "q").content();
        assert_eq!(check_text(&text, "q"), None);
        assert!(check_text(&text, "other").is_some());
        assert!(check_text(&text.replacen("c4.1", "c5.1", 1), "q").is_some());
        assert!(check_text("", "q").is_some());
    }
}
