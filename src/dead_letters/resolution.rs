//! The actions that settle dead letters, and their results and errors.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::address::Address;
use crate::log::{AppendError, LogError};

/// The action by which an operator settles a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettleAction {
    /// Append the record to its source topic as a new message.
    Replay,
    /// Mark the dead letter as settled without replaying it.
    Drop,
}

impl SettleAction {
    /// The action's name in commands and HTTP paths: `replay` or `drop`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::Drop => "drop",
        }
    }
}

/// How a dead letter was settled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Resolution {
    /// The record was appended to its source topic as a new message.
    Replayed {
        /// Id of the new message.
        message_id: String,
        /// The source topic.
        topic: String,
        /// Partition of the new record. -1 if this was read from the settlement, which does not
        /// contain it.
        partition: i32,
        /// Offset of the new record. -1 if this was read from the settlement, which does not
        /// contain it.
        offset: i64,
    },
    /// The dead letter was marked as settled without a replay.
    Dropped,
}

impl fmt::Display for Resolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replayed {
                message_id,
                topic,
                partition,
                offset,
            } if *partition >= 0 => {
                write!(f, "replayed as {message_id} ({topic}/{partition}/{offset})")
            }
            Self::Replayed { message_id, .. } => write!(f, "replayed as {message_id}"),
            Self::Dropped => f.write_str("dropped"),
        }
    }
}

/// Why a dead letter could not be settled.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SettleError {
    /// There is no dead letter at this address.
    #[error("no such dead letter; `chatmesh dlq list` shows the existing ones")]
    NotFound,
    /// The dead letter was settled before, with the resolution in the text.
    #[error("already settled: {0}")]
    AlreadySettled(String),
    /// The value was omitted from the dead letter and the original record no longer exists.
    #[error(
        "its content was too large for the dead-letter topic and its source topic no longer has \
         it; drop this dead letter"
    )]
    ValueLost,
    /// The dead letter names no source topic of this configuration, so no consumer would read a
    /// replay.
    #[error(
        "its source topic {0:?} is not consumed under this configuration; drop it, or use the \
         configuration under which it was written"
    )]
    UnknownSource(String),
    /// The log did not accept a record.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The log could not be read.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// The result of settling one dead letter, as it is reported over HTTP and by the command line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SettleResult {
    /// The requested address of the dead letter.
    pub address: Address,
    /// How the dead letter was settled. `None` if it could not be settled.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<Resolution>,
    /// Why the dead letter could not be settled. `None` if it was settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl SettleResult {
    pub(crate) fn new(address: Address, result: Result<Resolution, SettleError>) -> Self {
        let (resolution, error) = match result {
            Ok(resolution) => (Some(resolution), None),
            Err(error) => (None, Some(error.to_string())),
        };
        Self {
            address,
            resolution,
            error,
        }
    }
}
