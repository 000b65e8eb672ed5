//! Checks the text of an answer of the scripted model. Each word names its model call and its index
//! in that call, and the question follows at the end: `c17.0 c17.1 … end QUESTION`.

/// Checks that all words belong to one call and that their indexes start at 0 without a gap.
/// Returns the question after the word `end`, or `None` if the text is incomplete.
pub(super) fn parse_words(text: &str) -> Result<Option<&str>, String> {
    let mut call = None;
    let mut remaining = text;
    let mut expected_index = 0_usize;
    loop {
        if let Some(question) = remaining.strip_prefix("end ") {
            return Ok(Some(question));
        }
        if remaining.is_empty() {
            return Ok(None);
        }
        let (word, tail) = remaining.split_once(' ').unwrap_or((remaining, ""));
        let parts = word.strip_prefix('c').and_then(|word| word.split_once('.'));
        let Some((word_call, index)) = parts else {
            return Err(format!("{word:?} is not a word of the model"));
        };
        if call.is_some_and(|call| call != word_call) {
            return Err("the text mixes two calls".to_owned());
        }
        call = Some(word_call);
        if index.parse() != Ok(expected_index) {
            return Err(format!("word {expected_index} is missing"));
        }
        expected_index += 1;
        remaining = tail;
    }
}

/// The violation if `text` is not the complete answer to `question`.
pub(super) fn check_complete(text: &str, question: &str) -> Option<String> {
    match parse_words(text) {
        Ok(Some(answered_question)) if answered_question == question => None,
        Ok(Some(answered_question)) => Some(format!(
            "the answer to another question, {answered_question:?}"
        )),
        Ok(None) => Some("an incomplete answer".to_owned()),
        Err(violation) => Some(violation),
    }
}

/// The violation if `text` is not the beginning of one answer, as of a cancelled message.
pub(super) fn check_partial(text: &str, question: &str) -> Option<String> {
    match parse_words(text) {
        Ok(None) => None,
        Ok(Some(answered_question)) if question.starts_with(answered_question) => None,
        Ok(Some(answered_question)) => Some(format!(
            "the answer to another question, {answered_question:?}"
        )),
        Err(violation) => Some(violation),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixed_incomplete_and_foreign_answers_are_detected() {
        assert_eq!(check_complete("c1.0 c1.1 end q", "q"), None);
        assert!(check_complete("c1.0 c2.1 end q", "q").is_some());
        assert!(check_complete("c1.0 c1.2 end q", "q").is_some());
        assert!(check_complete("c1.1 end q", "q").is_some());
        assert!(check_complete("c1.0 c1.0 c1.1 end q", "q").is_some());
        assert!(check_complete("c1.0 c1.1 ", "q").is_some());
        assert!(check_complete("c1.0 end other", "q").is_some());
        assert_eq!(check_partial("c1.0 c1.1 ", "q"), None);
        assert_eq!(check_partial("", "q"), None);
        assert!(check_partial("c1.0 c2.0 ", "q").is_some());
    }
}
