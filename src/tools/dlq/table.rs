//! Formats dead letters as text for a terminal.

use std::fmt::Write as _;

use serde_json::Value;

use crate::dead_letters::DeadLetter;

/// Maximum number of characters of a reason in the table. Longer reasons are cut; `show` prints
/// them in full.
const MAX_REASON_CHARS: usize = 60;

/// Replaces control characters, so that text that users wrote cannot control the terminal.
fn sanitize(text: &str) -> String {
    let replace = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(replace).collect()
}

/// Formats dead letters as a table with a header line and one line per dead letter.
pub(super) fn list(dead_letters: &[DeadLetter]) -> String {
    const HEADER: [&str; 8] = [
        "ADDRESS",
        "WHEN",
        "CODE",
        "TRIES",
        "USER",
        "MESSAGE",
        "CORRELATION",
        "REASON",
    ];
    let rows = dead_letters.iter().map(|dead_letter| {
        let reason = sanitize(&dead_letter.reason);
        let cut: String = reason.chars().take(MAX_REASON_CHARS).collect();
        let ellipsis = if cut.len() < reason.len() { "…" } else { "" };
        let or_dash = |text: &Option<String>| sanitize(text.as_deref().unwrap_or("-"));
        [
            sanitize(&dead_letter.address.to_string()),
            dead_letter
                .at
                .get(..19)
                .unwrap_or(&dead_letter.at)
                .to_owned()
                + "Z",
            sanitize(&dead_letter.code),
            dead_letter.attempts.to_string(),
            or_dash(&dead_letter.userid),
            sanitize(&dead_letter.message_id),
            or_dash(&dead_letter.correlation_id),
            cut + ellipsis,
        ]
    });
    let header = HEADER.map(str::to_owned);
    let rows: Vec<[String; 8]> = std::iter::once(header).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..HEADER.len()).filter_map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Formats all fields and the content of a dead letter, from the JSON that
/// [`DeadLetterAdmin::detail`](super::admin::DeadLetterAdmin::detail) returns.
pub(super) fn detail(detail: &Value) -> String {
    let sanitized = |value: &Value| match value {
        Value::String(text) => sanitize(text),
        other => sanitize(&other.to_string()),
    };
    let mut text = String::new();
    let mut line = |name: &str, value: &Value| {
        if !value.is_null() {
            let _ = writeln!(text, "{name:15} {}", sanitized(value));
        }
    };
    let dead_letter = &detail["letter"];
    for (name, field) in [
        ("address", "address"),
        ("when", "at"),
        ("code", "code"),
        ("reason", "reason"),
        ("tries", "attempts"),
        ("user", "userid"),
        ("message_id", "message_id"),
        ("correlation_id", "correlation_id"),
        ("replay of", "replay_of"),
        ("bytes cut off", "value_left_out"),
        ("source", "source"),
        ("copies", "copies"),
    ] {
        line(name, &dead_letter[field]);
    }
    line("settled", &detail["settled"]);
    line("key", &detail["key"]);
    for header in detail["headers"].as_array().into_iter().flatten() {
        let name = format!("header {}", sanitized(&header["name"]));
        line(&name, &header["value"]);
    }
    text.push('\n');
    let content = match &detail["value"] {
        Value::Null => "(no content)".to_owned(),
        // JSON is printed indented. Its encoder escapes control characters below U+0020, so they
        // are not replaced.
        Value::String(value) => match serde_json::from_str::<Value>(value) {
            Ok(json) => serde_json::to_string_pretty(&json).unwrap_or_default(),
            Err(_) => value
                .split('\n')
                .map(sanitize)
                .collect::<Vec<_>>()
                .join("\n"),
        },
        other => other.to_string(),
    };
    text + &content + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letters::Source;

    #[test]
    fn a_dead_letter_is_one_line_without_control_characters() {
        let dead_letter = DeadLetter {
            address: "t.dlq/1/2".parse().unwrap(),
            at: "2025-01-31T12:00:00.123Z".into(),
            at_ms: 0,
            code: "internal".into(),
            reason: format!("bad\u{1b}[2J\n{}", "x".repeat(100)),
            attempts: 5,
            userid: None,
            message_id: "m".into(),
            correlation_id: Some("c\u{7}".into()),
            source: Source {
                topic: "t".into(),
                partition: 0,
                offset: 0,
                timestamp_ms: 0,
            },
            replay_of: None,
            value_left_out: None,
            copies: vec![],
        };
        let text = list(&[dead_letter]);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(
            !text.contains('\u{1b}') && !text.contains('\u{7}'),
            "{text:?}"
        );
        assert!(
            text.contains("2025-01-31T12:00:00Z") && text.contains('…'),
            "{text}"
        );
    }
}
