//! The state that the handler and the generation of an answer share: the message, the attempt, and
//! the budget of model calls.

use std::sync::Arc;

use tokio::time::Instant;

use super::context_cache::CachedContext;
use super::outcome::OutcomeBuilder;
use crate::config::settings::Reasoning;
use crate::fanout::{MessageRef, Owner};
use crate::protocol::record::Question;

/// A message that this worker is processing.
pub(super) struct Message {
    pub(super) question: Arc<Question>,
    /// Identifies the message in the calls to the fan-out.
    pub(super) message_ref: MessageRef,
    /// The fencing token under which this worker holds the message. Each redelivery of the message
    /// has a new token.
    pub(super) owner: Owner,
    /// Builds the message's outcomes.
    pub(super) outcomes: OutcomeBuilder,
}

impl Message {
    pub(super) fn new(question: Question, reasoning: Reasoning) -> Self {
        let question = Arc::new(question);
        Self {
            message_ref: MessageRef {
                user: question.user.clone(),
                message_id: question.message_id.clone(),
                id: question.id.clone(),
                conversation: question.conversation.clone(),
            },
            owner: Owner::random(),
            outcomes: OutcomeBuilder::new(Arc::clone(&question), reasoning),
            question,
        }
    }
}

/// One attempt at answering a message.
pub(super) struct Attempt<'a> {
    pub(super) message: &'a Message,
    /// Earlier turns of the conversation; `None` where they must be read from the fan-out.
    pub(super) context: Option<CachedContext>,
    /// When the `begin` that started the attempt was called. The lease lasts at least from then on.
    pub(super) begun_at: Instant,
    /// Number of the attempt, from 1. The number grows when the fan-out loses its data during the
    /// attempt, because the live writer then begins another attempt.
    pub(super) number: u32,
}

/// Limits the model calls for one delivery of a message, over all its attempts.
pub(super) struct CallBudget {
    /// Time at which the model calls are given up: `MESSAGE_DEADLINE_MS` after the first call, plus
    /// the time that checks of the lease between two calls have taken. `None` before the first
    /// call.
    pub(super) deadline: Option<Instant>,
    /// Number of model calls that were started so far.
    pub(super) calls_made: u32,
    /// Maximum number of model calls: `OPENAI_MAX_ATTEMPTS`, or 1 for the demo model.
    pub(super) max_calls: u32,
}

impl CallBudget {
    pub(super) fn new(max_calls: u32) -> Self {
        Self {
            deadline: None,
            calls_made: 0,
            max_calls,
        }
    }

    pub(super) fn is_exhausted(&self) -> bool {
        self.calls_made >= self.max_calls
    }
}
