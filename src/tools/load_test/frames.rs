//! Frames of the server, read no further than a load test needs.

use serde::Deserialize;
use serde_json::value::RawValue;

/// A frame; what has no use here is skipped.
#[derive(Deserialize)]
pub(super) struct Frame<'a> {
    #[serde(rename = "type", borrow)]
    pub(super) kind: &'a str,
    /// The client's own name of its message.
    #[serde(borrow)]
    pub(super) id: Option<&'a str>,
    #[serde(borrow)]
    pub(super) message_id: Option<&'a str>,
    #[serde(borrow)]
    pub(super) code: Option<&'a str>,
    /// Of a terminal frame or a welcome.
    #[serde(borrow)]
    pub(super) position: Option<&'a str>,
    /// Of a welcome: what comes follows what the client has had.
    pub(super) recovered: Option<bool>,
    /// As it stands in JSON.
    #[serde(borrow)]
    pub(super) content: Option<&'a RawValue>,
    /// An error's text, as it stands in JSON.
    #[serde(borrow)]
    message: Option<&'a RawValue>,
}

impl<'a> Frame<'a> {
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// An error's text.
    pub(super) fn text(&self) -> String {
        let text = self
            .message
            .and_then(|m| serde_json::from_str(m.get()).ok());
        text.unwrap_or_default()
    }
}

/// What a client writes into its `number`th message, so that an answer that repeats it tells which
/// one it answers.
pub(super) fn mark(number: u64) -> String {
    format!("[m{number}]")
}

/// The last mark in an answer's JSON.
pub(super) fn marked(content: &RawValue) -> Option<u64> {
    let content = content.get();
    let from = content.rfind("[m")? + 2;
    let digits = &content[from..];
    digits[..digits.find(']')?].parse().ok()
}

/// The times that a delta's tokens were written at, in microseconds since 1970.
pub(super) fn stamps(content: &RawValue) -> impl Iterator<Item = u64> {
    let pieces = content.get().split('@').skip(1);
    pieces.filter_map(|piece| piece[..piece.find(' ')?].parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_far_as_it_matters() {
        let text = r#"{"type":"error","code":"rate_limited","message":"Rate \"limit\"","x":[1]}"#;
        let frame = Frame::parse(text).unwrap();
        assert_eq!((frame.kind, frame.code), ("error", Some("rate_limited")));
        assert_eq!(frame.text(), "Rate \"limit\"");
        assert!(Frame::parse("{").is_none());
    }

    #[test]
    fn marks_and_stamps_are_found_in_answers() {
        let raw = |json: &str| serde_json::from_str::<Box<RawValue>>(json).unwrap();
        let text = format!("\"You said: {} and so on\"", mark(17));
        assert_eq!(marked(&raw(&text)), Some(17));
        assert_eq!(marked(&raw("\"nothing [mx]\"")), None);
        let content = raw("\"@1732345678901234 @1732345678901300 \"");
        let stamps: Vec<u64> = stamps(&content).collect();
        assert_eq!(stamps, [1_732_345_678_901_234, 1_732_345_678_901_300]);
    }
}
