//! Texts that explain to a person why a message failed.

use std::time::Duration;

use crate::protocol::error_code::ErrorCode;

/// Returns the text that explains why a message failed. It ends with the code in parentheses, so
/// that the person can look the code up.
pub(super) fn failure_text(
    code: Option<ErrorCode>,
    message: &str,
    retry_after: Option<Duration>,
) -> String {
    let Some(code) = code else {
        return message.to_owned();
    };
    // A message other than the standard text of its code says more than the explanation.
    let is_generic = message.is_empty() || message == code.text();
    let explanation = if is_generic {
        explanation(code)
    } else {
        message
    };
    let delay = retry_after.filter(|delay| !delay.is_zero());
    let retry_hint =
        delay.map(|delay| format!("; try again in {} s", delay.as_millis().div_ceil(1000)));
    format!(
        "{explanation}{} ({})",
        retry_hint.unwrap_or_default(),
        code.as_str()
    )
}

fn explanation(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::InvalidMessage => "the server does not understand this message",
        ErrorCode::TooLarge => "the message is too long for this server",
        ErrorCode::RateLimited => "there were too many messages in a short time",
        ErrorCode::Unauthorized => "the server does not accept this user's token",
        ErrorCode::Unavailable => "the server can't accept messages now; ask again later",
        ErrorCode::Cancelled => "the answer was cancelled",
        ErrorCode::Expired => "the message waited too long and was not answered; ask again",
        ErrorCode::ProviderTimeout => "the model did not answer in time; ask again",
        ErrorCode::ProviderRateLimited => {
            "the model is overloaded, or its quota is used up; ask again later"
        }
        ErrorCode::ProviderRejected => {
            "the model refused this request; if it happens with every message, the server's access \
             to the model may not be set up (its log says more)"
        }
        ErrorCode::ProviderFailed => {
            "the model can't be reached, or failed each time; ask again later"
        }
        ErrorCode::Internal => "internal error in the server (see its log); ask again",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permanent_failure_is_not_called_temporary() {
        let rejected = ErrorCode::ProviderRejected;
        let text = failure_text(Some(rejected), rejected.text(), None);
        assert!(text.starts_with("the model refused this request"), "{text}");
        assert!(text.ends_with("(provider_rejected)"), "{text}");
        for code in ErrorCode::TERMINAL {
            let suggests_retry = explanation(code).contains("ask again");
            assert_eq!(suggests_retry, code.is_retryable(), "{}", code.as_str());
        }
    }

    #[test]
    fn specific_message_and_retry_delay_are_shown() {
        let after = Some(Duration::from_millis(1200));
        let limited = Some(ErrorCode::RateLimited);
        let text = failure_text(limited, "Rate limit exceeded: 5 tokens a day", after);
        let expected = "Rate limit exceeded: 5 tokens a day; try again in 2 s (rate_limited)";
        assert_eq!(text, expected);
        assert_eq!(failure_text(None, "as it is", after), "as it is");
    }
}
