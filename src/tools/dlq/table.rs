//! Dead letters as text for a terminal.

use std::fmt::Write as _;

use serde_json::Value;

use crate::pipeline::letters::Letter;

/// Reasons are cut here; `show` has all of them.
const REASON: usize = 60;

/// What others wrote must not steer the terminal.
fn harmless(text: &str) -> String {
    let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

/// One line a letter, under a heading.
pub(super) fn of(letters: &[Letter]) -> String {
    const HEAD: [&str; 8] = [
        "ADDRESS",
        "WHEN",
        "CODE",
        "TRIES",
        "USER",
        "MESSAGE",
        "CORRELATION",
        "REASON",
    ];
    let rows = letters.iter().map(|letter| {
        let reason = harmless(&letter.reason);
        let cut: String = reason.chars().take(REASON).collect();
        let more = if cut.len() < reason.len() { "…" } else { "" };
        let or_dash = |text: &Option<String>| harmless(text.as_deref().unwrap_or("-"));
        [
            harmless(&letter.address.to_string()),
            letter.at.get(..19).unwrap_or(&letter.at).to_owned() + "Z",
            harmless(&letter.code),
            letter.attempts.to_string(),
            or_dash(&letter.userid),
            harmless(&letter.message_id),
            or_dash(&letter.correlation_id),
            cut + more,
        ]
    });
    let head = HEAD.map(str::to_owned);
    let rows: Vec<[String; 8]> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..HEAD.len()).filter_map(width).collect();
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

/// Everything of a letter, from its JSON.
pub(super) fn opened(opened: &Value) -> String {
    let plain = |value: &Value| match value {
        Value::String(text) => harmless(text),
        other => harmless(&other.to_string()),
    };
    let mut text = String::new();
    let mut line = |name: &str, value: &Value| {
        if !value.is_null() {
            let _ = writeln!(text, "{name:15} {}", plain(value));
        }
    };
    let letter = &opened["letter"];
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
        ("bytes left out", "value_left_out"),
        ("came from", "source"),
        ("also at", "copies"),
    ] {
        line(name, &letter[field]);
    }
    line("settled", &opened["settled"]);
    line("key", &opened["key"]);
    for header in opened["headers"].as_array().into_iter().flatten() {
        let name = format!("header {}", plain(&header["name"]));
        line(&name, &header["value"]);
    }
    text.push('\n');
    let content = match &opened["value"] {
        Value::Null => "(no content)".to_owned(),
        // As readable as it can be, and exact: JSON escapes what would steer the terminal.
        Value::String(value) => match serde_json::from_str::<Value>(value) {
            Ok(json) => serde_json::to_string_pretty(&json).unwrap_or_default(),
            Err(_) => value
                .split('\n')
                .map(harmless)
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
    use crate::pipeline::letters::Source;

    #[test]
    fn a_letter_is_one_line_and_cannot_steer_the_terminal() {
        let letter = Letter {
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
        let text = of(&[letter]);
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
