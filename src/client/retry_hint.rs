//! Decides whether and when a client connects again, by the code with which the server closed the
//! connection.

use std::time::Duration;

use crate::backoff::Backoff;
use crate::protocol::close::CloseReason;

/// Minimum delay before reconnecting after a close for too many messages or connections.
const RATE_ABUSED_DELAY: Duration = Duration::from_secs(10);

/// Creates the backoff between attempts to connect, or to send a question that the server could not
/// accept.
pub(super) fn retry_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(200), Duration::from_secs(20)).with_jitter()
}

/// What a close code asks the client to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetryHint {
    /// Connect again, after at least this delay if there is a delay.
    Reconnect(Option<Duration>),
    /// Connect again with another token.
    NewToken,
    /// Do not connect again: the server would close the connection for the same reason.
    Never(CloseReason),
}

/// Returns what a client does after the server closed the connection with `code`, or after the
/// connection broke without a close frame (`None`).
pub(crate) fn retry_hint(code: Option<u16>) -> RetryHint {
    let Some(code) = code else {
        return RetryHint::Reconnect(None);
    };
    match CloseReason::ALL
        .into_iter()
        .find(|reason| reason.code() == code)
    {
        Some(CloseReason::Unauthorized) => RetryHint::NewToken,
        Some(CloseReason::RateAbused) => RetryHint::Reconnect(Some(RATE_ABUSED_DELAY)),
        // A proxy closes with 1000 when it is restarted, so the client reconnects.
        Some(CloseReason::Normal) | None => RetryHint::Reconnect(None),
        Some(reason) if reason.should_reconnect() => RetryHint::Reconnect(None),
        Some(reason) => RetryHint::Never(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_codes_decide_whether_to_reconnect() {
        assert_eq!(retry_hint(Some(4401)), RetryHint::NewToken);
        assert_eq!(
            retry_hint(Some(4429)),
            RetryHint::Reconnect(Some(RATE_ABUSED_DELAY))
        );
        for code in [
            None,
            Some(1001),
            Some(1006),
            Some(4408),
            Some(4409),
            Some(4503),
        ] {
            assert_eq!(retry_hint(code), RetryHint::Reconnect(None));
        }
        for code in [1002, 1003, 1007, 1009, 4403] {
            assert!(
                matches!(retry_hint(Some(code)), RetryHint::Never(_)),
                "{code}"
            );
        }
    }

    #[test]
    fn delays_between_connections_start_at_200_ms_and_end_at_20_s() {
        let backoff = retry_backoff();
        assert_eq!(backoff.delay(0, 1.0), Duration::from_millis(200));
        assert_eq!(backoff.delay(50, 1.0), Duration::from_secs(20));
        assert_eq!(backoff.delay(50, 0.0), Duration::from_secs(10));
    }
}
