//! The location of a dead letter, and the location of the original record that became it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::protocol::ids::MessageId;

/// The location of a dead letter, written as `topic/partition/offset`. It is stable for as long as
/// the dead letter is retained.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The dead-letter topic.
    pub topic: String,
    /// Partition number, from 0.
    pub partition: i32,
    /// Offset within the partition, from 0.
    pub offset: i64,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let mut parts = text.rsplitn(3, '/');
            let offset = parts.next()?.parse().ok().filter(|offset| *offset >= 0)?;
            let partition = parts.next()?.parse().ok().filter(|number| *number >= 0)?;
            let topic = parts.next().filter(|topic| !topic.is_empty())?.to_owned();
            Some(Self {
                topic,
                partition,
                offset,
            })
        };
        parse().ok_or_else(|| {
            format!(
                "{text:?} is not the address of a dead letter; use topic/partition/offset, as \
                 `chatmesh dlq list` prints it"
            )
        })
    }
}

impl Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// The location of the original record that became a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Source {
    /// The topic that the record was consumed from.
    pub topic: String,
    /// Partition number, from 0.
    pub partition: i32,
    /// Offset within the partition.
    pub offset: i64,
    /// Log timestamp of the original record, in milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
}

impl Source {
    /// The message id of the original record's replay. It depends on this location only, so that
    /// repeated replays are the same message.
    pub(super) fn replay_id(&self) -> MessageId {
        MessageId::for_replay(&self.topic, self.partition, self.offset, self.timestamp_ms)
    }
}
