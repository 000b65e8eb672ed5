//! Checks of what only a data loss of Redis allows: replaced answers, repeated frames, and turns
//! that the history lacks.

use tokio::time::Instant;

use super::answers::check_partial;
use super::checker::Checker;
use crate::support::v1::{ReplacedAnswer, Transcript};

/// Time after a data loss within which Redis must be rebuilt, in ms.
const REBUILD_LIMIT_MS: i64 = 60_000;
/// `RELAY_REBUILD_SECONDS` (600) less the time until a relay notices that Redis is empty, in ms.
const REBUILD_WINDOW_MS: i64 = 570_000;

impl Checker {
    /// Checks parts that the outcome of another call replaced: Redis must have lost its data after
    /// the message was accepted, and the parts themselves must belong to one call.
    pub(super) fn check_replaced(&mut self, replaced: &ReplacedAnswer) {
        self.totals.replaced_answers += 1;
        let id = replaced.message_id.as_str();
        let parts = &replaced.parts;
        let replaced_ms = self.clock.to_ms(replaced.replaced_at);
        let accepted_ms = self.log_positions.get(id).map_or(i64::MAX, |(ms, ..)| *ms);
        let mut data_losses = self.data_losses.iter();
        if !data_losses.any(|(from, until)| *until >= accepted_ms && *from <= replaced_ms) {
            let violation = format!("parts replaced although Redis had its data (I4): {parts:?}");
            self.report(&violation, &[id]);
        }
        let mut questions = self.message_by_question.iter();
        let question = questions.find(|(_, message_id)| *message_id == id);
        let question = question.map_or("", |(question, _)| question.as_str());
        if let Some(violation) = check_partial(parts, question) {
            self.report(&format!("{violation} (I4): {parts:?}"), &[id]);
        }
    }

    /// Checks a frame that a user received a second time after a move to another partition: Redis
    /// must have been emptied shortly before.
    pub(super) fn check_repeated_after_move(&mut self, id: &str, received_at: Instant) {
        self.totals.repeated_after_move += 1;
        if !self.is_being_rebuilt(received_at) {
            self.report("sent a second time although Redis had its data (I2)", &[id]);
        }
    }

    fn is_being_rebuilt(&self, instant: Instant) -> bool {
        let ms = self.clock.to_ms(instant);
        let mut data_losses = self.data_losses.iter();
        data_losses.any(|(from, until)| *from <= ms && ms <= *until + REBUILD_LIMIT_MS)
    }

    /// Whether a frame from before a move to another partition may be sent again, because Redis is
    /// being rebuilt. The device may receive such a frame for the first time, if a reload of the
    /// history had replaced it.
    pub(super) fn may_repeat_after_move(&self, device: &Transcript, message_id: &str) -> bool {
        let ended_at = device.get(message_id).and_then(|message| message.ended_at);
        device.may_repeat_frames()
            && device.reloads() > 1
            && ended_at.is_some_and(|ended_at| self.is_being_rebuilt(ended_at))
    }

    /// Whether a message ended so long before a data loss that it is not rebuilt.
    pub(super) fn may_be_lost_from_history(&self, id: &str) -> bool {
        let ended_ms = self.ended_ms.get(id).copied().unwrap_or(i64::MAX);
        let mut data_losses = self.data_losses.iter();
        data_losses.any(|(_, until)| ended_ms < *until - REBUILD_WINDOW_MS)
    }
}
