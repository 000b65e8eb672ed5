//! The close codes of WebSocket connections, in one table (protocol.md section 1.6).

/// Why a WebSocket connection ended. The reason's name is the label in metrics and the text in the
/// close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client closed the connection.
    Normal,
    /// The gateway is shutting down.
    GoingAway,
    /// The client violated RFC 6455.
    ProtocolError,
    /// The client sent a binary frame.
    UnsupportedData,
    /// The client sent a text frame that is not UTF-8.
    BadUtf8,
    /// The client sent a frame larger than `MAX_FRAME_BYTES`.
    TooBig,
    /// The connection broke without a close frame. The code of this reason is never sent.
    ConnectionLost,
    /// The token is missing, invalid, expired or revoked.
    Unauthorized,
    /// The token is of another user, or the page's origin is not allowed.
    Forbidden,
    /// The client did not answer a ping in time.
    PingTimeout,
    /// The client reads more slowly than frames arrive, and its outbound queue is full.
    SlowConsumer,
    /// The client kept sending after 100 rejections within one rate window.
    RateAbused,
    /// The fan-out was unavailable for too long.
    BackendLost,
}

impl CloseReason {
    /// All reasons.
    pub const ALL: [Self; 13] = [
        Self::Normal,
        Self::GoingAway,
        Self::ProtocolError,
        Self::UnsupportedData,
        Self::BadUtf8,
        Self::TooBig,
        Self::ConnectionLost,
        Self::Unauthorized,
        Self::Forbidden,
        Self::PingTimeout,
        Self::SlowConsumer,
        Self::RateAbused,
        Self::BackendLost,
    ];

    /// The reason's row in the table: code, name, and whether the client should reconnect.
    const fn row(self) -> (u16, &'static str, bool) {
        match self {
            Self::Normal => (1000, "normal", false),
            Self::GoingAway => (1001, "going_away", true),
            Self::ProtocolError => (1002, "protocol_error", false),
            Self::UnsupportedData => (1003, "unsupported_data", false),
            Self::ConnectionLost => (1006, "connection_lost", true),
            Self::BadUtf8 => (1007, "bad_utf8", false),
            Self::TooBig => (1009, "too_big", false),
            Self::Unauthorized => (4401, "unauthorized", false),
            Self::Forbidden => (4403, "forbidden", false),
            Self::PingTimeout => (4408, "ping_timeout", true),
            Self::SlowConsumer => (4409, "slow_consumer", true),
            Self::RateAbused => (4429, "rate_abused", true),
            Self::BackendLost => (4503, "backend_lost", true),
        }
    }

    /// The code in the close frame.
    pub const fn code(self) -> u16 {
        self.row().0
    }

    /// The name in metrics, logs and the close frame.
    pub const fn name(self) -> &'static str {
        self.row().1
    }

    /// Whether the client should reconnect with the same token.
    pub const fn should_reconnect(self) -> bool {
        self.row().2
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_reasons_share_a_code_or_a_name() {
        let codes: HashSet<u16> = CloseReason::ALL
            .iter()
            .map(|reason| reason.code())
            .collect();
        let names: HashSet<&str> = CloseReason::ALL
            .iter()
            .map(|reason| reason.name())
            .collect();
        assert_eq!(codes.len(), CloseReason::ALL.len());
        assert_eq!(names.len(), CloseReason::ALL.len());
    }

    #[test]
    fn clients_reconnect_after_the_documented_codes_only() {
        for reason in CloseReason::ALL {
            let is_documented = matches!(reason.code(), 1001 | 1006 | 4408 | 4409 | 4429 | 4503);
            assert_eq!(reason.should_reconnect(), is_documented, "{reason:?}");
        }
    }
}
