//! Positions of terminal frames, by which a client resumes (protocol.md section 3).

use std::fmt;
use std::str::FromStr;

/// Identifies one sequence of offsets: a partition of `responses` in one Kafka cluster or embedded
/// log, until the topic is recreated (`LOG_EPOCH`). Offsets of different epochs are not comparable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Epoch(String);

impl Epoch {
    /// The epoch of a partition. `cluster` is the log's id and `log_epoch` the setting `LOG_EPOCH`,
    /// both truncated to 64 characters; characters that are not URL-safe become `-`.
    pub fn new(cluster: &str, log_epoch: &str, partition: i32) -> Self {
        let clean = |text: &str| -> String {
            text.chars()
                .take(64)
                .map(|c| {
                    if c.is_ascii_alphanumeric() || c == '_' || c == '-' {
                        c
                    } else {
                        '-'
                    }
                })
                .collect()
        };
        Self(format!(
            "{}~{}~{partition}",
            clean(cluster),
            clean(log_epoch)
        ))
    }

    /// The epoch of positions in a mailbox that has never contained a frame. `id` is the random id
    /// with which the mailbox was created.
    pub fn for_empty_mailbox(id: &str) -> Self {
        Self(format!("new~{id}"))
    }

    /// The id of the mailbox, if this is the epoch of a mailbox that has never contained a frame.
    pub fn empty_mailbox_id(&self) -> Option<&str> {
        self.0.strip_prefix("new~")
    }

    /// The epoch's text in positions and in the fan-out.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The position of a terminal record. Its text form is opaque to clients, URL-safe, and at most 200
/// characters long.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Position {
    /// The sequence of offsets that `offset` belongs to.
    pub epoch: Epoch,
    /// The record's offset; 0 in the epoch of an empty mailbox.
    pub offset: i64,
}

impl Position {
    /// Whether this position equals `bound` or precedes it. False for positions of different
    /// epochs, which can't be compared.
    pub fn is_at_or_before(&self, bound: &Self) -> bool {
        bound.epoch == self.epoch && self.offset <= bound.offset
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch.0, self.offset)
    }
}

/// The error of a string that does not have the form of a position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("position must be one that the server sent")]
pub struct InvalidPosition;

impl FromStr for Position {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > 200 {
            return Err(InvalidPosition);
        }
        let (epoch, offset) = text.rsplit_once('.').ok_or(InvalidPosition)?;
        let is_safe = |c: char| c.is_ascii_alphanumeric() || "_-~".contains(c);
        if epoch.is_empty() || !epoch.chars().all(is_safe) {
            return Err(InvalidPosition);
        }
        let offset: i64 = offset.parse().map_err(|_| InvalidPosition)?;
        if offset < 0 {
            return Err(InvalidPosition);
        }
        Ok(Self {
            epoch: Epoch(epoch.to_owned()),
            offset,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_survives_encoding_and_parsing() {
        let position = Position {
            epoch: Epoch::new("5L6g3nShT-eMCtK--X86sw", "0", 11),
            offset: 987,
        };
        assert_eq!(position.to_string().parse(), Ok(position));
    }

    #[test]
    fn text_without_the_form_of_a_position_is_rejected() {
        for bad in [
            "",
            "x",
            "a.-1",
            ".1",
            "a b.1",
            "a\n.1",
            &format!("{}.1", "a".repeat(300)),
        ] {
            assert!(bad.parse::<Position>().is_err(), "{bad:?}");
        }
    }
}
