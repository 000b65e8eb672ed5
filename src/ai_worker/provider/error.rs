//! Classifies the provider's refusals and failures: error code, retryable or not, metric label.

use std::error::Error;
use std::time::Duration;

use reqwest::header::HeaderMap;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::ModelError;
use crate::protocol::error_code::ErrorCode;

/// Maximum delay that a server may request. Longer delays are ignored in favour of our backoff, as
/// OpenAI's own client does, because the message's deadline would be near by then.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Values of the label `error_type` of `ai_consumer_openai_errors_total`.
pub(super) mod kind {
    pub(in super::super) const CONNECT: &str = "connect";
    pub(in super::super) const CONNECTION: &str = "connection";
    pub(in super::super) const FIRST_TOKEN_TIMEOUT: &str = "first_token_timeout";
    pub(in super::super) const IDLE_TIMEOUT: &str = "idle_timeout";
    pub(in super::super) const CUT_OFF: &str = "cut_off";
    pub(in super::super) const MALFORMED: &str = "malformed";
    pub(in super::super) const RATE_LIMITED: &str = "rate_limited";
    pub(in super::super) const QUOTA: &str = "quota";
    pub(in super::super) const AUTH: &str = "auth";
    pub(in super::super) const REJECTED: &str = "rejected";
    pub(in super::super) const TIMEOUT_STATUS: &str = "timeout_status";
    pub(in super::super) const SERVER: &str = "server_error";
    pub(in super::super) const STREAM_ERROR: &str = "stream_error";

    /// Every value, so that all counters are exported from the start.
    pub(in super::super) const ALL: [&str; 13] = [
        CONNECT,
        CONNECTION,
        FIRST_TOKEN_TIMEOUT,
        IDLE_TIMEOUT,
        CUT_OFF,
        MALFORMED,
        RATE_LIMITED,
        QUOTA,
        AUTH,
        REJECTED,
        TIMEOUT_STATUS,
        SERVER,
        STREAM_ERROR,
    ];
}

/// An error object of the API. Its message may quote the prompt, so it is only logged at level
/// debug.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ApiError {
    kind: Option<String>,
    code: Option<String>,
    param: Option<String>,
    message: String,
}

impl ApiError {
    /// Parses `{"error":{…}}`, `{"error":"…"}`, `{"detail":…}` or the error object itself.
    pub(super) fn from_json(value: &Value) -> Self {
        let object = match value.get("error") {
            None | Some(Value::Null) => value,
            Some(inner) => inner,
        };
        let message = [object.get("message"), object.get("detail"), Some(object)]
            .into_iter()
            .flatten()
            .find(|part| !part.is_null())
            .map(|part| {
                part.as_str()
                    .map_or_else(|| part.to_string(), str::to_owned)
            });
        Self {
            kind: identifier(object.get("type")),
            code: identifier(object.get("code")),
            param: identifier(object.get("param")),
            message: message.unwrap_or_default(),
        }
    }

    /// Parses the body of a refusal. A body that is not JSON becomes the message.
    pub(super) fn from_body(body: &[u8]) -> Self {
        match serde_json::from_slice::<Value>(body) {
            Ok(value) => Self::from_json(&value),
            Err(_) => Self {
                message: String::from_utf8_lossy(body).into_owned(),
                ..Self::default()
            },
        }
    }

    /// Whether the error names this field of the request.
    pub(super) fn mentions_field(&self, field: &str) -> bool {
        match &self.param {
            Some(param) => param.starts_with(field),
            None => self.message.contains(field),
        }
    }

    /// Whether the error says that the server knows this field but the model does not support it.
    pub(super) fn is_unsupported(&self, field: &str) -> bool {
        let unsupported = self.has_type_or_code("unsupported_value")
            || self.has_type_or_code("unsupported_parameter");
        unsupported && self.param.as_deref() == Some(field)
    }

    /// The message of the API, for logs at level debug.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    fn has_type_or_code(&self, name: &str) -> bool {
        [&self.kind, &self.code]
            .into_iter()
            .flatten()
            .any(|text| text == name)
    }

    fn is_quota(&self) -> bool {
        self.has_type_or_code("insufficient_quota")
            || self.has_type_or_code("billing_hard_limit_reached")
    }

    /// The HTTP status that corresponds to an error object inside a stream. `None` where neither
    /// its code nor its type corresponds to a status.
    fn status(&self) -> Option<u16> {
        let code = self.code.as_deref().and_then(|code| code.parse().ok());
        if let Some(status) = code.filter(|status| (400..600).contains(status)) {
            return Some(status);
        }
        let by_name = [
            ("rate_limit_exceeded", 429),
            ("rate_limit_error", 429),
            ("RateLimitError", 429),
            ("invalid_request_error", 400),
            ("BadRequestError", 400),
            ("context_length_exceeded", 400),
            ("exceed_context_size_error", 400),
            ("authentication_error", 401),
            ("invalid_api_key", 401),
            ("permission_error", 403),
            ("not_found_error", 404),
            ("NotFoundError", 404),
            ("overloaded_error", 529),
        ];
        by_name
            .into_iter()
            .find_map(|(name, status)| self.has_type_or_code(name).then_some(status))
    }

    /// Type and code for logs. The message is omitted, because it may quote the prompt.
    fn summary(&self) -> String {
        let part = |name, value: &Option<String>| {
            let value = value.as_ref()?;
            Some(format!(", {name} {value}"))
        };
        let parts = [part("type", &self.kind), part("code", &self.code)];
        parts.into_iter().flatten().collect()
    }
}

/// Returns a string or number that has the form of an identifier. `None` for any other value,
/// because it could quote the prompt.
fn identifier(value: Option<&Value>) -> Option<String> {
    let text = match value? {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let is_identifier_char = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    (!text.is_empty() && text.len() <= 64 && text.chars().all(is_identifier_char)).then_some(text)
}

/// What the headers of a refusal say about a retry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct RetryHint {
    should_retry: Option<bool>,
    retry_after: Option<Duration>,
}

impl RetryHint {
    /// Parses the headers. A header that is malformed or unreasonable counts as absent.
    pub(super) fn from_headers(headers: &HeaderMap, now: OffsetDateTime) -> Self {
        let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
        let millis = text("retry-after-ms").and_then(|value| parse_duration(value, 1000.0));
        let seconds = || text("retry-after").and_then(|value| parse_duration(value, 1.0));
        let date = || {
            let until = OffsetDateTime::parse(text("retry-after")?, &Rfc2822).ok()?;
            Duration::try_from(until - now).ok()
        };
        let retry_after = millis
            .or_else(seconds)
            .or_else(date)
            .filter(|wait| !wait.is_zero() && *wait <= MAX_RETRY_AFTER);
        let should_retry = match text("x-should-retry") {
            Some("true") => Some(true),
            Some("false") => Some(false),
            _ => None,
        };
        Self {
            should_retry,
            retry_after,
        }
    }
}

/// Parses a number of time units, of which `units_per_second` are a second.
fn parse_duration(text: &str, units_per_second: f64) -> Option<Duration> {
    let number: f64 = text.parse().ok()?;
    Duration::try_from_secs_f64(number / units_per_second).ok()
}

/// The error for a refusal, that is, a response with an error status.
pub(super) fn refusal_error(status: u16, api_error: &ApiError, hint: RetryHint) -> ModelError {
    let (code, retryable, kind) = classify(status, api_error);
    ModelError {
        code,
        retryable: hint.should_retry.unwrap_or(retryable),
        retry_after: hint.retry_after,
        detail: format!("status {status}{}", api_error.summary()),
        kind,
    }
}

/// Returns the error code of a status, whether another call may succeed, and the metric label.
fn classify(status: u16, api_error: &ApiError) -> (ErrorCode, bool, &'static str) {
    if api_error.is_quota() {
        return (ErrorCode::ProviderRateLimited, false, kind::QUOTA);
    }
    match status {
        429 => (ErrorCode::ProviderRateLimited, true, kind::RATE_LIMITED),
        408 => (ErrorCode::ProviderTimeout, true, kind::TIMEOUT_STATUS),
        409 | 500.. => (ErrorCode::ProviderFailed, true, kind::SERVER),
        401 | 403 => (ErrorCode::ProviderRejected, false, kind::AUTH),
        400..500 => (ErrorCode::ProviderRejected, false, kind::REJECTED),
        // Redirects and other statuses. Redirects are not followed, because that would drop the
        // body or send the key to another server.
        _ => (ErrorCode::ProviderFailed, false, kind::REJECTED),
    }
}

/// The error for an error object inside a stream.
pub(super) fn stream_error(api_error: &ApiError) -> ModelError {
    let (code, retryable, kind) = match api_error.status() {
        None if api_error.is_quota() => classify(429, api_error),
        None => (ErrorCode::ProviderFailed, true, kind::STREAM_ERROR),
        Some(status) => classify(status, api_error),
    };
    ModelError {
        code,
        retryable,
        retry_after: None,
        detail: format!("error in the stream{}", api_error.summary()),
        kind,
    }
}

/// The error for a request that was not delivered, or for a broken connection.
pub(super) fn connection_error(error: reqwest::Error) -> ModelError {
    let error = error.without_url();
    let code = if error.is_timeout() {
        ErrorCode::ProviderTimeout
    } else {
        ErrorCode::ProviderFailed
    };
    let kind = if error.is_connect() {
        kind::CONNECT
    } else {
        kind::CONNECTION
    };
    ModelError {
        code,
        // A request that cannot be built would fail again in the same way, so it is not retried.
        retryable: !error.is_builder(),
        retry_after: None,
        detail: error_chain(&error),
        kind,
    }
}

/// The error for a token that did not arrive within `after`.
pub(super) fn timeout_error(kind: &'static str, after: Duration) -> ModelError {
    let missing = if kind == kind::IDLE_TIMEOUT {
        "no further token"
    } else {
        "no first token"
    };
    ModelError {
        code: ErrorCode::ProviderTimeout,
        retryable: true,
        retry_after: None,
        detail: format!("{missing} within {} ms", after.as_millis()),
        kind,
    }
}

/// The error for a stream that is not a valid answer.
pub(super) fn invalid_answer_error(kind: &'static str, detail: impl Into<String>) -> ModelError {
    ModelError {
        code: ErrorCode::ProviderFailed,
        retryable: true,
        retry_after: None,
        detail: detail.into(),
        kind,
    }
}

/// The text of an error followed by the texts of its causes, in one line.
pub(super) fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // A wrapper often ends with the text of its cause, which is then not repeated.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderName;
    use serde_json::json;
    use time::macros::datetime;

    use super::*;

    fn hint(headers: &[(&'static str, &str)]) -> RetryHint {
        let map = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        RetryHint::from_headers(&map, datetime!(2026-11-23 04:00:00 UTC))
    }

    fn retry_after_ms(headers: &[(&'static str, &str)]) -> Option<u128> {
        hint(headers).retry_after.map(|wait| wait.as_millis())
    }

    #[test]
    fn statuses_are_classified_as_retryable_or_not() {
        let row = |status| {
            let error = refusal_error(status, &ApiError::default(), RetryHint::default());
            (error.code, error.retryable)
        };
        for status in [500, 502, 503, 504, 529] {
            assert_eq!(row(status), (ErrorCode::ProviderFailed, true), "{status}");
        }
        for status in [400, 401, 403, 404, 413, 422] {
            assert_eq!(
                row(status),
                (ErrorCode::ProviderRejected, false),
                "{status}"
            );
        }
        assert_eq!(row(408), (ErrorCode::ProviderTimeout, true));
        assert_eq!(row(409), (ErrorCode::ProviderFailed, true));
        assert_eq!(row(429), (ErrorCode::ProviderRateLimited, true));
        assert_eq!(row(302), (ErrorCode::ProviderFailed, false));
    }

    #[test]
    fn an_exhausted_quota_is_not_retried() {
        for body in [
            json!({"error":{"message":"You exceeded","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}),
            json!({"message":"You exceeded","code":"insufficient_quota"}),
        ] {
            let error = refusal_error(429, &ApiError::from_json(&body), RetryHint::default());
            assert_eq!(error.code, ErrorCode::ProviderRateLimited);
            assert!(!error.retryable);
            assert_eq!(error.kind, kind::QUOTA);
            let error = stream_error(&ApiError::from_json(&body));
            assert!(!error.retryable);
        }
    }

    #[test]
    fn x_should_retry_overrides_the_classification() {
        let no = hint(&[("x-should-retry", "false")]);
        assert!(!refusal_error(503, &ApiError::default(), no).retryable);
        let yes = hint(&[("x-should-retry", "true")]);
        assert!(refusal_error(400, &ApiError::default(), yes).retryable);
        let other = hint(&[("x-should-retry", "maybe")]);
        assert!(refusal_error(503, &ApiError::default(), other).retryable);
    }

    #[test]
    fn retry_after_is_parsed_in_every_form() {
        assert_eq!(retry_after_ms(&[("retry-after", "7")]), Some(7000));
        assert_eq!(retry_after_ms(&[("retry-after", "0.25")]), Some(250));
        assert_eq!(retry_after_ms(&[("retry-after-ms", "1500")]), Some(1500));
        assert_eq!(
            retry_after_ms(&[("retry-after-ms", "1500"), ("retry-after", "7")]),
            Some(1500)
        );
        assert_eq!(
            retry_after_ms(&[("retry-after", "Mon, 23 Nov 2026 04:00:30 GMT")]),
            Some(30_000)
        );
    }

    #[test]
    fn an_unreasonable_retry_after_is_ignored() {
        assert_eq!(retry_after_ms(&[("retry-after", "60")]), Some(60_000));
        assert_eq!(retry_after_ms(&[("retry-after", "61")]), None);
        assert_eq!(retry_after_ms(&[("retry-after", "0")]), None);
        assert_eq!(retry_after_ms(&[("retry-after", "-1")]), None);
        assert_eq!(retry_after_ms(&[("retry-after", "NaN")]), None);
        assert_eq!(retry_after_ms(&[("retry-after", "1e300")]), None);
        assert_eq!(retry_after_ms(&[("retry-after", "soon")]), None);
        assert_eq!(
            retry_after_ms(&[("retry-after", "Mon, 23 Nov 2026 03:59:30 GMT")]),
            None
        );
        assert_eq!(
            retry_after_ms(&[("retry-after", "Mon, 23 Nov 2026 05:00:00 GMT")]),
            None
        );
        // A malformed `retry-after-ms` does not hide a valid `retry-after`.
        assert_eq!(
            retry_after_ms(&[("retry-after-ms", "x"), ("retry-after", "7")]),
            Some(7000)
        );
    }

    #[test]
    fn detail_never_contains_the_api_message() {
        for body in [
            json!({"error":{"message":"bad input: my secret diary","type":"my secret diary","code":["my secret diary"]}}),
            json!({"object":"error","message":"my secret diary","type":"BadRequestError","code":400}),
            json!({"error":"my secret diary"}),
            json!({"detail":"my secret diary"}),
        ] {
            let api_error = ApiError::from_json(&body);
            assert!(api_error.message().contains("diary"), "{body}");
            for error in [
                refusal_error(400, &api_error, RetryHint::default()),
                stream_error(&api_error),
            ] {
                assert!(!error.to_string().contains("diary"), "{error}");
            }
        }
        let api_error = ApiError::from_body(b"<html>my secret diary");
        assert!(api_error.message().contains("diary"));
        assert_eq!(
            refusal_error(502, &api_error, RetryHint::default()).to_string(),
            "provider_failed: status 502"
        );
    }

    #[test]
    fn errors_in_the_stream_are_classified_by_code_and_type() {
        let row = |value| {
            let error = stream_error(&ApiError::from_json(&value));
            (error.kind, error.retryable)
        };
        assert_eq!(
            row(json!({"error":{"code":502,"message":"upstream"}})),
            (kind::SERVER, true)
        );
        assert_eq!(
            row(json!({"error":{"code":"429","message":"slow down"}})),
            (kind::RATE_LIMITED, true)
        );
        assert_eq!(
            row(json!({"object":"error","message":"too long","type":"BadRequestError","code":400})),
            (kind::REJECTED, false)
        );
        assert_eq!(
            row(json!({"error":{"type":"server_error","message":"oops"}})),
            (kind::STREAM_ERROR, true)
        );
        assert_eq!(row(json!({"error":"oops"})), (kind::STREAM_ERROR, true));
    }
}
