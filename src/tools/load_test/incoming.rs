//! What a client makes of the frames that come.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use super::client::{Client, Step};
use super::connect::{Gone, gone};
use super::frames::{Frame, marked, stamps};
use super::ledger::End;
use super::stats::{Stats, count};
use crate::protocol::error_code::ErrorCode;

impl Client<'_> {
    pub(super) fn take(&mut self, step: Step) -> Result<(), Gone> {
        match step {
            Step::Room | Step::Read(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => Ok(()),
            Step::Read(Some(Ok(Message::Text(text)))) => {
                self.frame(&text);
                Ok(())
            }
            Step::Read(other) => Err(gone(other)),
        }
    }

    fn frame(&mut self, text: &str) {
        let now = Instant::now();
        let around = self.around;
        let stats = &mut *around.stats.borrow_mut();
        let Some(frame) = Frame::parse(text) else {
            stats.strange += 1;
            return;
        };
        let number = match frame.id {
            Some(id) => id.parse().ok(),
            None => self.classic(&frame),
        };
        match frame.kind {
            "accepted" => {
                if let Some(number) = number {
                    self.ledger.accepted(number, now, stats);
                }
            }
            "delta" | "snapshot" => {
                stats.deltas += 1;
                if let Some(number) = number {
                    self.ledger.begun(number, now, stats);
                }
                if let Some(content) = frame.content {
                    for stamp in stamps(content) {
                        let clock = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
                        let took = clock.saturating_sub(Duration::from_micros(stamp));
                        stats.token.record(took);
                    }
                }
            }
            "response" => {
                let said = frame.content.and_then(marked);
                stats.recognised += u64::from(said.is_some());
                if said.is_some() && said != number {
                    stats.mixed_up += 1;
                }
                if frame.id.is_none() && said.is_none() {
                    stats.guessed += 1;
                }
                self.reached(&frame);
                self.end(number, End::Delivered, now, stats);
            }
            "cancelled" => {
                self.reached(&frame);
                self.end(number, End::Failed, now, stats);
            }
            "error" => {
                let code = frame.code.unwrap_or("no code");
                count(&mut stats.errors, code);
                if code == ErrorCode::RateLimited.as_str() {
                    count(&mut stats.limits, &frame.text());
                }
                if frame.id.is_none() && self.ledger.open() > 1 {
                    stats.guessed += 1;
                }
                self.reached(&frame);
                let end = match frame.message_id {
                    Some(_) => End::Failed,
                    None => End::Refused,
                };
                self.end(number, end, now, stats);
            }
            "restarted" => stats.restarted += 1,
            "welcome" => {
                let recovered = frame.recovered.unwrap_or(true);
                self.reached(&frame);
                if !recovered {
                    self.again = self.ledger.to_send_again(true);
                }
            }
            "closing" | "pong" | "cancel_result" => {}
            _ => stats.strange += 1,
        }
    }

    /// What it has had, for when it comes back.
    fn reached(&mut self, frame: &Frame<'_>) {
        if let Some(position) = frame.position
            && !is_before(position, &self.position)
        {
            position.clone_into(&mut self.position);
        }
    }

    fn end(&mut self, number: Option<u64>, end: End, now: Instant, stats: &mut Stats) {
        let Some(number) = number else {
            stats.strange += 1;
            return;
        };
        let took = self.ledger.ended(number, end, now, stats);
        self.around.stage.ended.fetch_add(1, Ordering::Relaxed);
        if let Some(took) = took {
            let at = now.saturating_duration_since(self.begin);
            stats.last_answer = stats.last_answer.max(at);
            if end == End::Delivered {
                stats.series.answered(at, took);
            }
        }
    }

    /// The message that a classic frame is about, which doesn't say it: by the mark in the answer,
    /// otherwise the oldest. A refusal comes at once, so it is the newest.
    fn classic(&self, frame: &Frame<'_>) -> Option<u64> {
        match frame.kind {
            "response" => {
                let marked = frame.content.and_then(marked);
                marked.or_else(|| self.ledger.oldest())
            }
            "error" if frame.message_id.is_none() => self.ledger.newest(),
            "error" => self.ledger.oldest(),
            _ => None,
        }
    }
}

/// Whether a position is known to be before another: the end of a message that was sent again
/// comes with the one that it has always had.
fn is_before(position: &str, other: &str) -> bool {
    let parts = (position.rsplit_once('.'), other.rsplit_once('.'));
    let (Some((log, offset)), Some((other_log, other))) = parts else {
        return false;
    };
    let numbers = (offset.parse::<u64>(), other.parse());
    log == other_log && matches!(numbers, (Ok(offset), Ok(other)) if offset < other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_does_not_go_back_within_its_log() {
        assert!(is_before("a~b~0.9", "a~b~0.10"));
        for other in ["a~b~0.9", "a~b~0.8", "a~c~0.10", "", "new~x.0"] {
            assert!(!is_before("a~b~0.9", other), "{other}");
        }
    }
}
