//! What went wrong, for people.

use std::time::Duration;

use crate::protocol::error_code::ErrorCode;

/// Why there is no answer, in words; the code stands behind them, for who looks it up.
pub(super) fn failed(
    code: Option<ErrorCode>,
    message: &str,
    retry_after: Option<Duration>,
) -> String {
    let Some(code) = code else {
        return message.to_owned();
    };
    // A text of its own says more than a code does.
    let general = message.is_empty() || message == code.text();
    let words = if general { meaning(code) } else { message };
    let again = retry_after.filter(|after| !after.is_zero());
    let again = again.map(|after| format!("; try it in {} s", after.as_millis().div_ceil(1000)));
    format!("{words}{} ({})", again.unwrap_or_default(), code.as_str())
}

fn meaning(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::InvalidMessage => "the server does not understand this message",
        ErrorCode::TooLarge => "the message is too long for this server",
        ErrorCode::RateLimited => "these were too many messages in a short time",
        ErrorCode::Unauthorized => "the server does not take this user's token",
        ErrorCode::Unavailable => "the server can't take messages now; ask again later",
        ErrorCode::Cancelled => "it was stopped",
        ErrorCode::Expired => "the message waited too long and was not answered; ask again",
        ErrorCode::ProviderTimeout => "the model did not answer in time; ask again",
        ErrorCode::ProviderRateLimited => {
            "the model has too much to do, or its quota is used up; ask again later"
        }
        ErrorCode::ProviderRejected => {
            "the model refused this request; if it happens with every message, the server's access \
             to the model may not be set up (its log says more)"
        }
        ErrorCode::ProviderFailed => {
            "the model can't be reached, or broke off each time; ask again later"
        }
        ErrorCode::Internal => "something went wrong in the server (its log says more); ask again",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_will_not_pass_by_waiting_is_not_called_temporary() {
        let rejected = ErrorCode::ProviderRejected;
        let said = failed(Some(rejected), rejected.text(), None);
        assert!(said.starts_with("the model refused this request"), "{said}");
        assert!(said.ends_with("(provider_rejected)"), "{said}");
        for code in ErrorCode::OF_ENDINGS {
            let advises = meaning(code).contains("ask again");
            assert_eq!(advises, code.retryable(), "{}", code.as_str());
        }
    }

    #[test]
    fn a_more_exact_text_and_the_time_to_wait_are_kept() {
        let after = Some(Duration::from_millis(1200));
        let limited = Some(ErrorCode::RateLimited);
        let said = failed(limited, "Rate limit exceeded: 5 tokens a day", after);
        let expected = "Rate limit exceeded: 5 tokens a day; try it in 2 s (rate_limited)";
        assert_eq!(said, expected);
        assert_eq!(failed(None, "as it is", after), "as it is");
    }
}
