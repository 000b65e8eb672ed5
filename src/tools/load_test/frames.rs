//! Parses the fields of server frames that a load test needs, and the markers and timestamps in the
//! texts of messages and answers.

use serde::Deserialize;
use serde_json::value::RawValue;

/// A server frame; other fields are skipped.
#[derive(Deserialize)]
pub(super) struct Frame<'a> {
    #[serde(rename = "type", borrow)]
    pub(super) kind: &'a str,
    /// The id that the client gave the message; classic frames have none.
    #[serde(borrow)]
    pub(super) id: Option<&'a str>,
    /// The server's id of the message. An error without it is a rejection.
    #[serde(borrow)]
    pub(super) message_id: Option<&'a str>,
    #[serde(borrow)]
    pub(super) code: Option<&'a str>,
    /// Position of the terminal frame, or the client's position in `welcome`; other frames have
    /// none.
    #[serde(borrow)]
    pub(super) position: Option<&'a str>,
    /// Whether the server sends everything after the client's position; only in `welcome`.
    pub(super) recovered: Option<bool>,
    /// The text of an answer, or a piece of the text of one of its parts, as undecoded JSON.
    #[serde(borrow)]
    pub(super) content: Option<&'a RawValue>,
    /// The parts of an answer, as undecoded JSON; only in `snapshot` and in terminal frames.
    #[serde(borrow)]
    parts: Option<&'a RawValue>,
    /// The text of an error, as undecoded JSON.
    #[serde(borrow)]
    message: Option<&'a RawValue>,
}

/// A part in a `snapshot`; other fields are skipped.
#[derive(Deserialize)]
struct PartText<'a> {
    #[serde(borrow)]
    content: &'a RawValue,
}

impl<'a> Frame<'a> {
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Returns the texts in a `delta` or a `snapshot`, as undecoded JSON. Texts of all kinds of
    /// parts count, because reasoning and tool calls are tokens too.
    pub(super) fn part_texts(&self) -> Vec<&'a RawValue> {
        let mut texts = match self.parts {
            Some(parts) => serde_json::from_str::<Vec<PartText>>(parts.get())
                .unwrap_or_default()
                .into_iter()
                .map(|part| part.content)
                .collect(),
            None => Vec::from_iter(self.content),
        };
        texts.retain(|text| text.get() != "\"\"");
        texts
    }

    /// Returns the decoded text of an error; empty for other frames.
    pub(super) fn error_text(&self) -> String {
        let text = self
            .message
            .and_then(|m| serde_json::from_str(m.get()).ok());
        text.unwrap_or_default()
    }
}

/// Returns the marker that is part of the text of a message. If a model repeats the text, the
/// marker shows which message the answer belongs to.
pub(super) fn marker(number: u64) -> String {
    format!("[m{number}]")
}

/// Returns the message number in the last marker of an answer; `None` if there is no marker.
pub(super) fn find_marker(content: &RawValue) -> Option<u64> {
    let content = content.get();
    let number_start = content.rfind("[m")? + 2;
    let number = &content[number_start..];
    number[..number.find(']')?].parse().ok()
}

/// Returns the times that `mock-openai --stamp` wrote as tokens, in microseconds since 1970. Other
/// tokens are skipped.
pub(super) fn timestamps(content: &RawValue) -> impl Iterator<Item = u64> {
    let pieces = content.get().split('@').skip(1);
    pieces.filter_map(|piece| piece[..piece.find(' ')?].parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_skipped() {
        let text = r#"{"type":"error","code":"rate_limited","message":"Rate \"limit\"","x":[1]}"#;
        let frame = Frame::parse(text).unwrap();
        assert_eq!((frame.kind, frame.code), ("error", Some("rate_limited")));
        assert_eq!(frame.error_text(), "Rate \"limit\"");
        assert!(Frame::parse("{").is_none());
    }

    #[test]
    fn texts_of_all_kinds_are_found_in_deltas_and_snapshots() {
        let texts = |json: &str| {
            let frame = Frame::parse(json).unwrap();
            let texts = frame.part_texts();
            texts
                .iter()
                .map(|text| text.get().to_owned())
                .collect::<Vec<_>>()
        };
        let no_texts: Vec<String> = Vec::new();
        let opening = r#"{"type":"delta","stream":"s","part":1,"offset":0,"end":1,
            "kind":"reasoning","previous_end":0,"content":"a"}"#;
        assert_eq!(texts(opening), ["\"a\""]);
        let empty = r#"{"type":"delta","stream":"s","part":0,"offset":0,"end":0,"content":""}"#;
        assert_eq!(texts(empty), no_texts);
        let snapshot = r#"{"type":"snapshot","stream":"s","parts":[
            {"kind":"source","meta":{"url":"u"},"content":""},
            {"kind":"text","content":"b"},{"kind":"refusal","content":"c"}]}"#;
        assert_eq!(texts(snapshot), ["\"b\"", "\"c\""]);
        assert_eq!(
            texts(r#"{"type":"snapshot","stream":"s","parts":[]}"#),
            no_texts
        );
    }

    #[test]
    fn markers_and_timestamps_are_found_in_answers() {
        let raw = |json: &str| serde_json::from_str::<Box<RawValue>>(json).unwrap();
        let text = format!("\"You said: {} and so on\"", marker(17));
        assert_eq!(find_marker(&raw(&text)), Some(17));
        assert_eq!(find_marker(&raw("\"nothing [mx]\"")), None);
        let content = raw("\"@1732345678901234 @1732345678901300 \"");
        let written_at: Vec<u64> = timestamps(&content).collect();
        assert_eq!(written_at, [1_732_345_678_901_234, 1_732_345_678_901_300]);
    }
}
