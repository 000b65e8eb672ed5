//! The validation of client frames that both client protocols share.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::error_code::ErrorCode;

/// Why the server rejects a client's frame: code and text of the `error` frame that the client
/// receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Machine-readable reason.
    pub code: ErrorCode,
    /// Human-readable reason. Begins with `Invalid message` and never quotes the frame, because
    /// the text may end up in logs.
    pub text: String,
}

impl Rejection {
    /// Creates a rejection with the code `invalid_message`.
    pub(super) fn invalid(reason: &str) -> Self {
        Self {
            code: ErrorCode::InvalidMessage,
            text: format!("{}: {reason}", ErrorCode::InvalidMessage.text()),
        }
    }
}

/// Deserializes a client's frame. If the frame is valid JSON with another shape than `T`,
/// `expected` is the reason in the rejection.
pub(super) fn parse_object<'a, T: Deserialize<'a>>(
    text: &'a str,
    expected: &str,
) -> Result<T, Rejection> {
    // serde accepts an array for a struct when the elements fit the fields in order, so arrays are
    // rejected here.
    if !text.trim_start().starts_with('{') && serde_json::from_str::<IgnoredAny>(text).is_ok() {
        return Err(Rejection::invalid(expected));
    }
    // serde_json's own error text can quote the frame, so it is not passed on.
    serde_json::from_str(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Rejection::invalid(expected),
        _ => Rejection::invalid("not JSON"),
    })
}

/// Checks the content of a message, and returns it without NUL characters, because data stores
/// behind the gateway may cut a text at a NUL. Every other character stays.
pub(super) fn validate_content(
    content: Option<Cow<'_, str>>,
    max_content_chars: usize,
) -> Result<String, Rejection> {
    let Some(content) = content else {
        return Err(Rejection::invalid("`content` is missing"));
    };
    let content: String = if content.contains('\0') {
        content.chars().filter(|c| *c != '\0').collect()
    } else {
        content.into_owned()
    };
    if content.trim().is_empty() {
        return Err(Rejection::invalid("`content` is empty"));
    }
    // A text has at most as many characters as bytes, so most messages need no count.
    if content.len() > max_content_chars && content.chars().count() > max_content_chars {
        return Err(Rejection {
            code: ErrorCode::TooLarge,
            text: format!(
                "{}: `content` has more than {max_content_chars} characters",
                ErrorCode::InvalidMessage.text()
            ),
        });
    }
    Ok(content)
}
