//! Handles the frames that a client receives: records outcomes, latencies and the client's
//! position.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use serde_json::value::RawValue;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use super::client::{Client, SocketEvent};
use super::connection::DisconnectReason;
use super::frames::{Frame, find_marker, timestamps};
use super::stats::{Stats, increment};
use super::tracker::MessageOutcome;
use crate::protocol::error_code::ErrorCode;

impl Client<'_> {
    /// Handles an event of the socket; `Err` when the connection is lost.
    pub(super) fn handle_event(&mut self, event: SocketEvent) -> Result<(), DisconnectReason> {
        match event {
            SocketEvent::Writable
            | SocketEvent::Received(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => Ok(()),
            SocketEvent::Received(Some(Ok(Message::Text(text)))) => {
                self.handle_frame(&text);
                Ok(())
            }
            SocketEvent::Received(other) => Err(DisconnectReason::from_end(other)),
        }
    }

    fn handle_frame(&mut self, text: &str) {
        let now = Instant::now();
        let context = self.context;
        let stats = &mut *context.stats.borrow_mut();
        let Some(frame) = Frame::parse(text) else {
            stats.unexpected_frames += 1;
            return;
        };
        let number = match frame.id {
            Some(id) => id.parse().ok(),
            None => self.match_classic_frame(&frame),
        };
        match frame.kind {
            "accepted" => {
                if let Some(number) = number {
                    self.tracker.record_accepted(number, now, stats);
                }
            }
            "delta" | "snapshot" => {
                stats.deltas += 1;
                let texts = frame.part_texts();
                if let Some(number) = number
                    && !texts.is_empty()
                {
                    self.tracker.record_first_token(number, now, stats);
                    self.record_token_latency(number, &texts, stats);
                }
            }
            "response" => {
                let marked_number = frame.content.and_then(find_marker);
                stats.marked_answers += u64::from(marked_number.is_some());
                if marked_number.is_some() && marked_number != number {
                    stats.mixed_up += 1;
                }
                if frame.id.is_none() && marked_number.is_none() {
                    stats.guessed_outcomes += 1;
                }
                self.advance_position(&frame);
                self.record_outcome(number, MessageOutcome::Delivered, now, stats);
            }
            "cancelled" => {
                self.advance_position(&frame);
                self.record_outcome(number, MessageOutcome::Failed, now, stats);
            }
            "error" => {
                let code = frame.code.unwrap_or("no code");
                increment(&mut stats.errors, code);
                if code == ErrorCode::RateLimited.as_str() {
                    increment(&mut stats.rate_limit_texts, &frame.error_text());
                }
                if frame.id.is_none() && self.tracker.pending_count() > 1 {
                    stats.guessed_outcomes += 1;
                }
                self.advance_position(&frame);
                let outcome = match frame.message_id {
                    Some(_) => MessageOutcome::Failed,
                    None => MessageOutcome::Rejected,
                };
                self.record_outcome(number, outcome, now, stats);
            }
            "restarted" => stats.restarted += 1,
            "welcome" => {
                let is_recovered = frame.recovered.unwrap_or(true);
                self.advance_position(&frame);
                if !is_recovered {
                    self.to_resend = self.tracker.messages_to_resend(true);
                }
            }
            "closing" | "pong" | "cancel_result" => {}
            _ => stats.unexpected_frames += 1,
        }
    }

    /// Stores the frame's position, from which the client resumes after a reconnection. A position
    /// that precedes the stored position is ignored.
    fn advance_position(&mut self, frame: &Frame<'_>) {
        if let Some(position) = frame.position
            && !is_before(position, &self.position)
        {
            position.clone_into(&mut self.position);
        }
    }

    fn record_outcome(
        &mut self,
        number: Option<u64>,
        outcome: MessageOutcome,
        now: Instant,
        stats: &mut Stats,
    ) {
        let Some(number) = number else {
            stats.unexpected_frames += 1;
            return;
        };
        let latency = self.tracker.record_outcome(number, outcome, now, stats);
        self.context
            .state
            .received_outcomes
            .fetch_add(1, Ordering::Relaxed);
        if let Some(latency) = latency {
            let since_start = now.saturating_duration_since(self.schedule_start);
            stats.last_answer = stats.last_answer.max(since_start);
            if outcome == MessageOutcome::Delivered {
                stats.series.record_answered(since_start, latency);
            }
        }
    }

    /// Records the time since the model wrote each token of an answer, if the tokens are
    /// timestamps. Tokens that arrived before, which a snapshot repeats, are skipped.
    fn record_token_latency(&mut self, number: u64, texts: &[&RawValue], stats: &mut Stats) {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let Some(newest) = self.tracker.newest_token_time_mut(number) else {
            return;
        };
        let newest_before = *newest;
        let written = texts.iter().flat_map(|text| timestamps(text));
        for written_at in written.filter(|written_at| *written_at > newest_before) {
            *newest = written_at.max(*newest);
            let latency = now.saturating_sub(Duration::from_micros(written_at));
            stats.token_latency.record(latency);
        }
    }

    /// Returns the number of the message that a classic frame belongs to. Classic frames have no
    /// id. An answer belongs to the message that its marker names; without a marker, and for the
    /// error of an accepted message, the oldest pending message is assumed. A rejection is sent at
    /// once, so it belongs to the newest pending message.
    fn match_classic_frame(&self, frame: &Frame<'_>) -> Option<u64> {
        match frame.kind {
            "response" => {
                let marked_number = frame.content.and_then(find_marker);
                marked_number.or_else(|| self.tracker.oldest_pending())
            }
            "error" if frame.message_id.is_none() => self.tracker.newest_pending(),
            "error" => self.tracker.oldest_pending(),
            _ => None,
        }
    }
}

/// Whether a position precedes another position of the same epoch; false for positions of different
/// epochs. The repeated outcome of a message that was sent again has its original position, which
/// must not move the client back.
fn is_before(position: &str, other: &str) -> bool {
    let parts = (position.rsplit_once('.'), other.rsplit_once('.'));
    let (Some((epoch, offset)), Some((other_epoch, other_offset))) = parts else {
        return false;
    };
    let offsets = (offset.parse::<u64>(), other_offset.parse());
    epoch == other_epoch && matches!(offsets, (Ok(offset), Ok(other)) if offset < other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_does_not_move_back_within_its_epoch() {
        assert!(is_before("a~b~0.9", "a~b~0.10"));
        for other in ["a~b~0.9", "a~b~0.8", "a~c~0.10", "", "new~x.0"] {
            assert!(!is_before("a~b~0.9", other), "{other}");
        }
    }
}
