//! Writes the notes of a report, which say what limited the test and how to change it.

use super::format::format_number;
use super::result::TestResult;
use super::stats::Stats;

/// Largest 99th percentile of the send delay, in milliseconds, that causes no note. Above it, the
/// clients did not keep their schedule.
const MAX_SEND_DELAY_P99_MS: f64 = 20.0;
/// Minimum number of messages for a meaningful 99th percentile of the send delay.
const MIN_SEND_DELAY_SAMPLES: u64 = 100;

/// Returns all notes on a result, each a sentence without its full stop.
pub(super) fn notes(result: &TestResult<'_>) -> Vec<String> {
    let (stats, mut notes) = (result.stats, Vec::new());
    note_early_end(result, &mut notes);
    note_lost_connections(stats, &mut notes);
    note_user_limits(stats, &mut notes);
    note_failed_connections(stats, &mut notes);
    let delay_ms = stats.send_delay.percentile_ms(99.0).unwrap_or(0.0);
    if delay_ms > MAX_SEND_DELAY_P99_MS && stats.send_delay.count() >= MIN_SEND_DELAY_SAMPLES {
        notes.push(format!(
            "1 % of the messages were sent more than {delay_ms:.0} ms late, which counts as their \
             latency: the server was unavailable or did not read them, or this machine is too busy \
             for both (use more --threads, or another machine)"
        ));
    }
    if stats.delivered > 0 && !result.answers_are_identified() {
        notes.push(
            "not all answers repeat their messages, and classic answers don't name them: order, \
             doubles and mixed up were not measured, and latency assumes that answers arrive in \
             order. Use the demo model, mock-openai --echo, or leave out --classic"
                .to_owned(),
        );
    }
    if stats.unexpected_frames > 0 {
        notes.push(format!(
            "{} frames were not understood",
            stats.unexpected_frames
        ));
    }
    notes
}

fn note_early_end(result: &TestResult<'_>, notes: &mut Vec<String>) {
    if result.is_interrupted {
        notes.push(format!(
            "the test was interrupted after {} s: {} messages had no answer yet, and none of them \
             counts as lost",
            format_number(result.length_seconds),
            result.stats.pending
        ));
    } else if result.is_without_delivery() {
        notes.push("not a single message was delivered".to_owned());
    }
}

fn note_lost_connections(stats: &Stats, notes: &mut Vec<String>) {
    if let Some((first, last)) = stats.closed_between {
        let reasons: Vec<String> = stats
            .closed_early
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        let total: u64 = stats.closed_early.values().sum();
        let close_times = match [first, last].map(|time| format_number(time.as_secs_f64())) {
            [first, last] if first == last => format!("{first} s after the start"),
            [first, last] => format!("{first} to {last} s after the start"),
        };
        let (reconnections, resent) = (stats.reconnections, stats.resent);
        let resent = match resent {
            0 => String::new(),
            resent => format!(" and sent {resent} messages again"),
        };
        notes.push(format!(
            "{total} connections ended early, {close_times} ({}); clients reconnected \
             {reconnections} times{resent}",
            reasons.join(", ")
        ));
    }
    for (reason, count) in &stats.not_reconnected {
        notes.push(format!(
            "{count} clients had not reconnected when the test ended ({reason})"
        ));
    }
    if stats.not_sent > 0 {
        notes.push(format!(
            "{} scheduled messages could not be sent: they count as not delivered",
            stats.not_sent
        ));
    }
}

fn note_failed_connections(stats: &Stats, notes: &mut Vec<String>) {
    for (reason, count) in &stats.not_connected {
        let advice = match reason.as_str() {
            "HTTP 401" | "close 4401" => {
                ": the server requires tokens; set --token or --admin-key, or start it with \
                 AUTH_MODE=open or TOKEN_ENDPOINT=open for this test"
            }
            "HTTP 503" => {
                ": the server is stopping, or at one of its limits: raise MAX_CONNECTIONS, \
                 MAX_NEW_CONNECTIONS or ADDRESS_MAX_CONNECTIONS (0 removes a limit), or connect \
                 more slowly by --ramp-up"
            }
            _ => "",
        };
        notes.push(format!(
            "{count} clients could not connect ({reason}){advice}"
        ));
    }
}

/// Adds a note for each limit on one user that refused messages, because the test then measured
/// that limit and not the server.
fn note_user_limits(stats: &Stats, notes: &mut Vec<String>) {
    for (text, count) in &stats.rate_limit_texts {
        let setting = match text.as_str() {
            text if text.contains("budget") => "USER_DAILY_TOKENS=0",
            text if text.contains("wait for their answers") => "USER_MAX_PENDING=0",
            text if text.contains("conversation") => "USER_MAX_CONVERSATIONS=0",
            _ => "USER_RATE_LIMIT_MAX_REQUESTS=0",
        };
        // If only the rate limit is removed, the limit of pending messages is reached next.
        let next_setting = match setting {
            "USER_RATE_LIMIT_MAX_REQUESTS=0" => " and USER_MAX_PENDING=0",
            _ => "",
        };
        notes.push(format!(
            "{count} of {} messages were refused by the server's limit for one user (\"{text}\"): \
             that limit was measured, not the server. Start the gateways with \
             {setting}{next_setting}, or use more --clients with fewer messages each",
            stats.sent
        ));
    }
    if let Some(count) = stats.closed_early.get("close 4429") {
        notes.push(format!(
            "{count} clients were disconnected because they exceeded the rate limit repeatedly \
             (4429)"
        ));
    }
}
