//! Parses the value of `dlq --since`, which is an age or a time.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::protocol::timestamp::now_ms;

/// Converts an age (`30s`, `15m`, `2h`, `7d`) or an RFC 3339 time to milliseconds since the Unix
/// epoch.
pub(super) fn parse(text: &str) -> Result<i64, String> {
    const UNITS: [(char, i64); 4] = [
        ('s', 1000),
        ('m', 60_000),
        ('h', 3_600_000),
        ('d', 86_400_000),
    ];
    let text = text.trim();
    let age_ms = UNITS.iter().find_map(|(unit, ms)| {
        let number: i64 = text.strip_suffix(*unit)?.parse().ok().filter(|n| *n >= 0)?;
        number.checked_mul(*ms)
    });
    if let Some(ms) = age_ms {
        return Ok(now_ms().saturating_sub(ms));
    }
    OffsetDateTime::parse(text, &Rfc3339)
        .map(|time| (time.unix_timestamp_nanos() / 1_000_000) as i64)
        .map_err(|_| {
            "must be an age such as 30s, 15m, 2h or 7d, or a time such as 2025-01-31T12:00:00Z"
                .to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_times_are_parsed() {
        assert_eq!(parse("1970-01-01T00:00:01Z"), Ok(1000));
        let hour_ago = parse("1h").unwrap();
        assert!((now_ms().saturating_sub(3_600_000) - hour_ago).abs() < 60_000);
        for bad in ["", "h", "-1h", "soon", "5"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
