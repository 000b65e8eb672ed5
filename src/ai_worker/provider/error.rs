//! What a provider's refusals and failures mean: tried again or not, and what the user is told.

use std::error::Error;
use std::time::Duration;

use reqwest::header::HeaderMap;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::ModelError;
use crate::protocol::error_code::ErrorCode;

/// Longer waits than this are not worth it: the message's own deadline is near by then. As
/// OpenAI's own client does, such a wish is ignored and our backoff used.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Labels of `ai_consumer_openai_errors_total`.
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

    /// All of them.
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

/// What an error object says about itself. The message may quote the prompt, so it stays here and
/// goes to logs of level debug only.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reported {
    kind: Option<String>,
    code: Option<String>,
    param: Option<String>,
    message: String,
}

impl Reported {
    /// From `{"error":{…}}`, `{"error":"…"}`, `{"detail":…}` or the error object itself.
    pub(super) fn of(value: &Value) -> Self {
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
            kind: word(object.get("type")),
            code: word(object.get("code")),
            param: word(object.get("param")),
            message: message.unwrap_or_default(),
        }
    }

    /// From the body of a refusal, whatever it is.
    pub(super) fn of_body(body: &[u8]) -> Self {
        match serde_json::from_slice::<Value>(body) {
            Ok(value) => Self::of(&value),
            Err(_) => Self {
                message: String::from_utf8_lossy(body).into_owned(),
                ..Self::default()
            },
        }
    }

    /// Whether the refusal is about this field of the request.
    pub(super) fn is_about(&self, field: &str) -> bool {
        match &self.param {
            Some(param) => param.starts_with(field),
            None => self.message.contains(field),
        }
    }

    /// Whether the refusal says that the server knows this field, but not this model.
    pub(super) fn is_unsupported(&self, field: &str) -> bool {
        let unsupported = self.says("unsupported_value") || self.says("unsupported_parameter");
        unsupported && self.param.as_deref() == Some(field)
    }

    /// What the API says, for logs of level debug.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    fn says(&self, word: &str) -> bool {
        [&self.kind, &self.code]
            .into_iter()
            .flatten()
            .any(|text| text == word)
    }

    fn is_quota(&self) -> bool {
        self.says("insufficient_quota") || self.says("billing_hard_limit_reached")
    }

    /// The status that an error object in the middle of a stream stands for.
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
            .find_map(|(name, status)| self.says(name).then_some(status))
    }

    /// Type and code, without the message.
    fn words(&self) -> String {
        let part = |name, word: &Option<String>| {
            let word = word.as_ref()?;
            Some(format!(", {name} {word}"))
        };
        let parts = [part("type", &self.kind), part("code", &self.code)];
        parts.into_iter().flatten().collect()
    }
}

/// A string or number that can't be content: identifiers only.
fn word(value: Option<&Value>) -> Option<String> {
    let text = match value? {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    (!text.is_empty() && text.len() <= 64 && text.chars().all(plain)).then_some(text)
}

/// What the headers of a refusal ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Advice {
    should_retry: Option<bool>,
    retry_after: Option<Duration>,
}

impl Advice {
    pub(super) fn of(headers: &HeaderMap, now: OffsetDateTime) -> Self {
        let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
        let millis = text("retry-after-ms").and_then(|value| duration(value, 1000.0));
        let seconds = || text("retry-after").and_then(|value| duration(value, 1.0));
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

fn duration(text: &str, per_second: f64) -> Option<Duration> {
    let number: f64 = text.parse().ok()?;
    Duration::try_from_secs_f64(number / per_second).ok()
}

/// A refusal by status.
pub(super) fn refused(status: u16, reported: &Reported, advice: Advice) -> ModelError {
    let (code, retryable, kind) = classify(status, reported);
    ModelError {
        code,
        retryable: advice.should_retry.unwrap_or(retryable),
        retry_after: advice.retry_after,
        detail: format!("status {status}{}", reported.words()),
        kind,
    }
}

fn classify(status: u16, reported: &Reported) -> (ErrorCode, bool, &'static str) {
    if reported.is_quota() {
        return (ErrorCode::ProviderRateLimited, false, kind::QUOTA);
    }
    match status {
        429 => (ErrorCode::ProviderRateLimited, true, kind::RATE_LIMITED),
        408 => (ErrorCode::ProviderTimeout, true, kind::TIMEOUT_STATUS),
        409 | 500.. => (ErrorCode::ProviderFailed, true, kind::SERVER),
        401 | 403 => (ErrorCode::ProviderRejected, false, kind::AUTH),
        400..500 => (ErrorCode::ProviderRejected, false, kind::REJECTED),
        // Neither an answer nor a refusal: redirects aren't followed, they would lose the body or
        // carry the key elsewhere.
        _ => (ErrorCode::ProviderFailed, false, kind::REJECTED),
    }
}

/// An error object in the middle of an answer.
pub(super) fn broken_off(reported: &Reported) -> ModelError {
    let (code, retryable, kind) = match reported.status() {
        None if reported.is_quota() => classify(429, reported),
        None => (ErrorCode::ProviderFailed, true, kind::STREAM_ERROR),
        Some(status) => classify(status, reported),
    };
    ModelError {
        code,
        retryable,
        retry_after: None,
        detail: format!("error in the stream{}", reported.words()),
        kind,
    }
}

/// The request did not get through, or the connection broke.
pub(super) fn connection(error: reqwest::Error) -> ModelError {
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
        // A request that can't even be built won't be built the next time.
        retryable: !error.is_builder(),
        retry_after: None,
        detail: chain(&error),
        kind,
    }
}

/// Nothing, or nothing more, came in time.
pub(super) fn timeout(kind: &'static str, after: Duration) -> ModelError {
    let what = if kind == kind::IDLE_TIMEOUT {
        "no further token"
    } else {
        "no first token"
    };
    ModelError {
        code: ErrorCode::ProviderTimeout,
        retryable: true,
        retry_after: None,
        detail: format!("{what} within {} ms", after.as_millis()),
        kind,
    }
}

/// The stream was no answer.
pub(super) fn failed(kind: &'static str, detail: impl Into<String>) -> ModelError {
    ModelError {
        code: ErrorCode::ProviderFailed,
        retryable: true,
        retry_after: None,
        detail: detail.into(),
        kind,
    }
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Wrappers often repeat their cause's words.
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

    fn advice(headers: &[(&'static str, &str)]) -> Advice {
        let map = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        Advice::of(&map, datetime!(2026-11-23 04:00:00 UTC))
    }

    fn wait(headers: &[(&'static str, &str)]) -> Option<u128> {
        advice(headers).retry_after.map(|wait| wait.as_millis())
    }

    #[test]
    fn statuses_are_tried_again_or_not() {
        let row = |status| {
            let error = refused(status, &Reported::default(), Advice::default());
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
    fn a_used_up_quota_is_not_tried_again() {
        for body in [
            json!({"error":{"message":"You exceeded","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}),
            json!({"message":"You exceeded","code":"insufficient_quota"}),
        ] {
            let error = refused(429, &Reported::of(&body), Advice::default());
            assert_eq!(error.code, ErrorCode::ProviderRateLimited);
            assert!(!error.retryable);
            assert_eq!(error.kind, kind::QUOTA);
            let error = broken_off(&Reported::of(&body));
            assert!(!error.retryable);
        }
    }

    #[test]
    fn should_retry_overrides_both_ways() {
        let no = advice(&[("x-should-retry", "false")]);
        assert!(!refused(503, &Reported::default(), no).retryable);
        let yes = advice(&[("x-should-retry", "true")]);
        assert!(refused(400, &Reported::default(), yes).retryable);
        let other = advice(&[("x-should-retry", "maybe")]);
        assert!(refused(503, &Reported::default(), other).retryable);
    }

    #[test]
    fn retry_after_is_read_in_all_its_forms() {
        assert_eq!(wait(&[("retry-after", "7")]), Some(7000));
        assert_eq!(wait(&[("retry-after", "0.25")]), Some(250));
        assert_eq!(wait(&[("retry-after-ms", "1500")]), Some(1500));
        assert_eq!(
            wait(&[("retry-after-ms", "1500"), ("retry-after", "7")]),
            Some(1500)
        );
        assert_eq!(
            wait(&[("retry-after", "Mon, 23 Nov 2026 04:00:30 GMT")]),
            Some(30_000)
        );
    }

    #[test]
    fn an_unreasonable_retry_after_is_ignored() {
        assert_eq!(wait(&[("retry-after", "60")]), Some(60_000));
        assert_eq!(wait(&[("retry-after", "61")]), None);
        assert_eq!(wait(&[("retry-after", "0")]), None);
        assert_eq!(wait(&[("retry-after", "-1")]), None);
        assert_eq!(wait(&[("retry-after", "NaN")]), None);
        assert_eq!(wait(&[("retry-after", "1e300")]), None);
        assert_eq!(wait(&[("retry-after", "soon")]), None);
        assert_eq!(
            wait(&[("retry-after", "Mon, 23 Nov 2026 03:59:30 GMT")]),
            None
        );
        assert_eq!(
            wait(&[("retry-after", "Mon, 23 Nov 2026 05:00:00 GMT")]),
            None
        );
        // A garbled first form does not hide the second.
        assert_eq!(
            wait(&[("retry-after-ms", "x"), ("retry-after", "7")]),
            Some(7000)
        );
    }

    #[test]
    fn detail_never_quotes_the_message() {
        for body in [
            json!({"error":{"message":"bad input: my secret diary","type":"my secret diary","code":["my secret diary"]}}),
            json!({"object":"error","message":"my secret diary","type":"BadRequestError","code":400}),
            json!({"error":"my secret diary"}),
            json!({"detail":"my secret diary"}),
        ] {
            let reported = Reported::of(&body);
            assert!(reported.message().contains("diary"), "{body}");
            for error in [
                refused(400, &reported, Advice::default()),
                broken_off(&reported),
            ] {
                assert!(!error.to_string().contains("diary"), "{error}");
            }
        }
        let reported = Reported::of_body(b"<html>my secret diary");
        assert!(reported.message().contains("diary"));
        assert_eq!(
            refused(502, &reported, Advice::default()).to_string(),
            "provider_failed: status 502"
        );
    }

    #[test]
    fn errors_in_the_stream_are_classified_by_what_they_say() {
        let row = |value| {
            let error = broken_off(&Reported::of(&value));
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
