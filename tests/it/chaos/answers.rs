//! The words of an answer: each says of which call it is, and which in it.

/// What is wrong with the words: they must be of one call, from the first on, without a gap.
/// Returns how they end, too.
pub(super) fn words(text: &str) -> Result<Option<&str>, String> {
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

pub(super) fn whole(text: &str, question: &str) -> Option<String> {
    match words(text) {
        Ok(Some(end)) if end == question => None,
        Ok(Some(end)) => Some(format!("the answer of another question, {end:?}")),
        Ok(None) => Some("an answer without its end".to_owned()),
        Err(fault) => Some(fault),
    }
}

pub(super) fn part(text: &str, question: &str) -> Option<String> {
    match words(text) {
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
    fn a_splice_a_gap_and_another_answer_are_seen() {
        assert_eq!(whole("c1.0 c1.1 end q", "q"), None);
        assert!(whole("c1.0 c2.1 end q", "q").is_some());
        assert!(whole("c1.0 c1.2 end q", "q").is_some());
        assert!(whole("c1.1 end q", "q").is_some());
        assert!(whole("c1.0 c1.0 c1.1 end q", "q").is_some());
        assert!(whole("c1.0 c1.1 ", "q").is_some());
        assert!(whole("c1.0 end other", "q").is_some());
        assert_eq!(part("c1.0 c1.1 ", "q"), None);
        assert_eq!(part("", "q"), None);
        assert!(part("c1.0 c2.0 ", "q").is_some());
    }
}
