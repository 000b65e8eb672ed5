//! How WebSocket connections end: one table of close codes (protocol.md section 1.3).

/// Why a connection ended. The name is also the metric's label and the text in the close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client said goodbye.
    Normal,
    /// This gateway stops.
    GoingAway,
    /// The client broke RFC 6455.
    ProtocolError,
    /// A binary frame.
    Unsupported,
    /// Text that is no UTF-8.
    BadUtf8,
    /// A frame or message over `MAX_FRAME_BYTES`.
    TooBig,
    /// The connection broke without a goodbye; never sent.
    Lost,
    /// The token is missing, wrong or expired.
    Unauthorized,
    /// This token, or this web page, may not.
    Forbidden,
    /// A ping was not answered in time.
    PingTimeout,
    /// The client does not read what is sent to it.
    SlowConsumer,
    /// Went on and on over the message rate.
    RateAbused,
    /// The fan-out was out of reach and did not come back in time.
    BackendLost,
}

/// Every row of the table.
pub const ALL: [CloseReason; 13] = [
    CloseReason::Normal,
    CloseReason::GoingAway,
    CloseReason::ProtocolError,
    CloseReason::Unsupported,
    CloseReason::BadUtf8,
    CloseReason::TooBig,
    CloseReason::Lost,
    CloseReason::Unauthorized,
    CloseReason::Forbidden,
    CloseReason::PingTimeout,
    CloseReason::SlowConsumer,
    CloseReason::RateAbused,
    CloseReason::BackendLost,
];

impl CloseReason {
    /// Code, name, and whether the client should come back.
    const fn row(self) -> (u16, &'static str, bool) {
        match self {
            Self::Normal => (1000, "normal", false),
            Self::GoingAway => (1001, "going_away", true),
            Self::ProtocolError => (1002, "protocol_error", false),
            Self::Unsupported => (1003, "unsupported_data", false),
            Self::Lost => (1006, "connection_lost", true),
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

    /// Whether the client should connect again.
    pub const fn come_back(self) -> bool {
        self.row().2
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_reasons_share_a_code_or_a_name() {
        let codes: HashSet<u16> = ALL.iter().map(|reason| reason.code()).collect();
        let names: HashSet<&str> = ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(codes.len(), ALL.len());
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn clients_are_told_to_come_back_only_where_it_helps() {
        for reason in ALL {
            let by_contract = matches!(reason.code(), 1001 | 1006 | 4408 | 4409 | 4429 | 4503);
            assert_eq!(reason.come_back(), by_contract, "{reason:?}");
        }
    }
}
