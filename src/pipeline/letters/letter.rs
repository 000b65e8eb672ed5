//! What is listed of a dead letter: everything but what its user wrote.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::again::{identity, user_of};
use super::dlq;
use crate::log::{AppendError, LogError};
use crate::protocol::error_code::ErrorCode;
use crate::protocol::ids::MessageId;
use crate::protocol::log_record::Record;
use crate::protocol::record::header;
use crate::protocol::timestamp::rfc3339;

/// Where a letter lies: `topic/partition/offset`. Stays the same for as long as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The dead-letter topic.
    pub topic: String,
    /// Partition, from 0.
    pub partition: i32,
    /// Offset in it.
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
            format!("{text:?} is no topic/partition/offset, as `dlq list` prints it")
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

/// Where the record was before it became a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Source {
    /// Its topic.
    pub topic: String,
    /// Partition there.
    pub partition: i32,
    /// Offset there.
    pub offset: i64,
    /// When it was appended there, milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
}

impl Source {
    /// The identity of this record's replay, however often it is replayed.
    pub(super) fn replay_id(&self) -> MessageId {
        MessageId::of_replay(&self.topic, self.partition, self.offset, self.timestamp_ms)
    }
}

/// A dead letter, without its content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Letter {
    /// Where it is.
    pub address: Address,
    /// When it became one, RFC 3339.
    pub at: String,
    /// The same in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// A word for the reason: a `code` of `error` frames, or `unreadable`.
    pub code: String,
    /// Why, as its worker or relay said it.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u32,
    /// Whose it is, where it says so.
    pub userid: Option<String>,
    /// The message.
    pub message_id: String,
    /// By which its logs are found.
    pub correlation_id: Option<String>,
    /// Where it was.
    pub source: Source,
    /// The message of which this was a replay.
    pub replay_of: Option<String>,
    /// How many bytes of value were left out, since they were too many for the dead-letter topic.
    pub value_left_out: Option<u64>,
    /// The same letter once more: its writer died after it was written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<Address>,
}

impl Letter {
    pub(super) fn of(record: &Record) -> Self {
        let number = |name: &str| {
            record
                .header_text(name)
                .and_then(|text| text.parse::<i64>().ok())
        };
        let topic = record.header_text(dlq::TOPIC);
        let topic = topic
            .or_else(|| record.topic.strip_suffix(".dlq"))
            .unwrap_or_default();
        // What somebody else put there is a letter too; its own place stands for where it was.
        let source = Source {
            topic: topic.to_owned(),
            partition: number(dlq::PARTITION).map_or(record.partition, |n| n as i32),
            offset: number(dlq::OFFSET).unwrap_or(record.offset),
            timestamp_ms: number(dlq::TIMESTAMP).unwrap_or(record.timestamp_ms),
        };
        let reason = record
            .header_text(dlq::REASON)
            .unwrap_or("not said")
            .to_owned();
        Self {
            address: Address {
                topic: record.topic.to_string(),
                partition: record.partition,
                offset: record.offset,
            },
            at: rfc3339(record.timestamp_ms),
            at_ms: record.timestamp_ms,
            code: code_of(&reason).to_owned(),
            attempts: number(dlq::ATTEMPTS).map_or(0, |n| n as u32),
            userid: user_of(record).map(|user| user.to_string()),
            message_id: identity(record, &source).to_string(),
            correlation_id: correlation_id(record),
            replay_of: record.header_text(header::REPLAY_OF).map(str::to_owned),
            value_left_out: number(dlq::VALUE_LEFT_OUT).map(|n| n as u64),
            copies: Vec::new(),
            reason,
            source,
        }
    }

    /// Its own and those of its copies.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        std::iter::once(&self.address).chain(&self.copies)
    }
}

fn correlation_id(record: &Record) -> Option<String> {
    if let Some(id) = record.header_text(header::CORRELATION_ID) {
        return Some(id.to_owned());
    }
    let value: serde_json::Value = serde_json::from_slice(&record.value).ok()?;
    Some(value.get("correlation_id")?.as_str()?.to_owned())
}

/// The word that a reason begins with, where it is one of ours.
pub(super) fn code_of(reason: &str) -> &'static str {
    let word = reason.strip_prefix("ended before: ").unwrap_or(reason);
    let word = word.split(':').next().unwrap_or_default();
    let codes = ErrorCode::OF_ENDINGS.iter().map(|code| code.as_str());
    if let Some(code) = codes.into_iter().find(|code| *code == word) {
        return code;
    }
    if word.starts_with("unreadable record") {
        "unreadable"
    } else {
        ErrorCode::Internal.as_str()
    }
}

/// Which letters are meant.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of this dead-letter topic only.
    pub topic: Option<String>,
    /// That became one at or after this time, milliseconds since the Unix epoch.
    pub since_ms: Option<i64>,
    /// With this code.
    pub code: Option<String>,
    /// So many at most, the oldest.
    pub limit: Option<usize>,
}

impl Filter {
    pub(super) fn takes(&self, letter: &Letter) -> bool {
        self.code.as_ref().is_none_or(|code| *code == letter.code)
            && self.since_ms.is_none_or(|since| letter.at_ms >= since)
    }
}

/// How a letter was settled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Way {
    /// It is in its topic again.
    Replayed {
        /// As this message.
        message_id: String,
        /// In this topic.
        topic: String,
        /// Partition there; -1 where that is not known any more.
        partition: i32,
        /// Offset there; -1 where that is not known any more.
        offset: i64,
    },
    /// It is only not listed any more.
    Dropped,
}

/// Why a letter could not be settled.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// There is none.
    #[error("there is no such dead letter; `chatmesh dlq list` shows those that there are")]
    Gone,
    /// Somebody was here before.
    #[error("it is settled already: {0}")]
    Settled(String),
    /// Too large for the dead-letter topic, and not where it was any more.
    #[error(
        "its content was too large for the dead-letter topic, and its own topic no longer has it; drop it"
    )]
    ValueGone,
    /// What was put back where it says would be read by nobody.
    #[error(
        "it does not say from which topic it came ({0:?} is none that is read here); drop it, or \
         use the configuration under which it was written"
    )]
    NoSource(String),
    /// The log does not take it.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The log could not be asked.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// What became of a letter that was to be settled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settled {
    /// Which.
    pub address: Address,
    /// How.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub way: Option<Way>,
    /// Or why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Settled {
    pub(crate) fn new(address: Address, result: Result<Way, Failure>) -> Self {
        let (way, error) = match result {
            Ok(way) => (Some(way), None),
            Err(failure) => (None, Some(failure.to_string())),
        };
        Self {
            address,
            way,
            error,
        }
    }
}

impl fmt::Display for Way {
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
