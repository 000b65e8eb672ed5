//! Checks the text of an answer. Each of its words names the model call that it belongs to and its
//! index in that call.

/// Checks that all words belong to one call and start at index 0 without a gap. Returns the
/// question after the word `end`, or `None` if the text is incomplete.
pub(super) fn parse_words(text: &str) -> Result<Option<&str>, String> {
    let mut call = None;
    let mut rest = text;
    let mut next = 0_usize;
    loop {
        if let Some(question) = rest.strip_prefix("end ") {
            return Ok(Some(question));
        }
        if rest.is_empty() {
            return Ok(None);
        }
        let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
        let parts = word.strip_prefix('c').and_then(|word| word.split_once('.'));
        let Some((of, index)) = parts else {
            return Err(format!("{word:?} is no word of the model"));
        };
        if call.is_some_and(|call| call != of) {
            return Err("text of two calls is spliced".to_owned());
        }
        call = Some(of);
        if index.parse() != Ok(next) {
            return Err(format!("word {next} is missing"));
        }
        next += 1;
        rest = after;
    }
}

pub(super) fn check_complete(text: &str, question: &str) -> Option<String> {
    match parse_words(text) {
        Ok(Some(end)) if end == question => None,
        Ok(Some(end)) => Some(format!("the answer of another question, {end:?}")),
        Ok(None) => Some("an answer without its end".to_owned()),
        Err(fault) => Some(fault),
    }
}

pub(super) fn check_partial(text: &str, question: &str) -> Option<String> {
    match parse_words(text) {
        Ok(None) => None,
        Ok(Some(end)) if question.starts_with(end) => None,
        Ok(Some(end)) => Some(format!("the answer of another question, {end:?}")),
        Err(fault) => Some(fault),
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
