//! RFC 3339 timestamps in UTC, as frames and records carry them.

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

/// The format of all timestamps: RFC 3339 with three decimals of a second, so that all have the
/// same length.
const RFC3339_MILLISECONDS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// Milliseconds since the Unix epoch by this process's clock.
pub fn now_ms() -> i64 {
    (OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000) as i64
}

/// The current time in RFC 3339 with milliseconds, in UTC.
pub fn now_rfc3339() -> String {
    rfc3339(now_ms())
}

/// `unix_ms` in RFC 3339 with milliseconds, in UTC. A time outside the years 0–9999 is replaced by
/// the Unix epoch.
pub fn rfc3339(unix_ms: i64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .ok()
        .and_then(|moment| moment.format(RFC3339_MILLISECONDS).ok())
        .unwrap_or_else(|| "1970-01-01T00:00:00.000Z".to_owned())
}
