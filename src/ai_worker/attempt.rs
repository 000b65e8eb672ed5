//! The state that the handler and the generation of an answer share: the message, the attempt, and
//! the budget of model calls.

use std::sync::Arc;

use tokio::time::Instant;

use super::context_cache::CachedContext;
use super::outcome::OutcomeBuilder;
use crate::fanout::{LazyOutcome, MessageRef, Owner};
use crate::protocol::record::Question;

/// A message that this worker is processing.
pub(super) struct Message {
    pub(super) question: Arc<Question>,
    /// How the fan-out refers to it.
    pub(super) reference: MessageRef,
    /// The fencing token under which this worker holds the message. A redelivery has another one.
    pub(super) owner: Owner,
    pub(super) outcomes: OutcomeBuilder,
}

impl Message {
    pub(super) fn new(question: Question) -> Self {
        let question = Arc::new(question);
        Self {
            reference: MessageRef {
                user: question.user.clone(),
                message_id: question.message_id.clone(),
                id: question.id.clone(),
                conversation: question.conversation.clone(),
            },
            owner: Owner::random(),
            outcomes: OutcomeBuilder::new(Arc::clone(&question)),
            question,
        }
    }
}

/// One attempt at answering a message.
pub(super) struct Attempt<'a> {
    pub(super) message: &'a Message,
    /// Earlier turns of the conversation; `None` where they are unknown and must be read.
    pub(super) context: Option<CachedContext>,
    /// The outcome of the message if it turns out to be cancelled before it has any text.
    pub(super) cancelled_outcome: LazyOutcome,
    /// The attempt's number, from 1. It grows when the fan-out loses its data during the attempt.
    pub(super) number: u32,
}

/// Limits the model calls for one delivery of a message, over all its attempts.
pub(super) struct CallBudget {
    /// Set at the first call. Time spent waiting for another worker's lease or for the fan-out
    /// does not count.
    pub(super) deadline: Option<Instant>,
    /// Calls made so far.
    pub(super) calls_made: u32,
    /// `OPENAI_MAX_ATTEMPTS`.
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
