//! Positions in `responses`, by which a client says what it has seen (protocol.md section 3).

use std::fmt;
use std::str::FromStr;

/// One sequence of terminal records: a partition of `responses` in one log, as long as that
/// topic is not made anew (`LOG_EPOCH`). Offsets of different epochs can't be compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Epoch(String);

impl Epoch {
    /// `cluster` is the log's own id, `log_epoch` the operator's `LOG_EPOCH`. Characters that
    /// can't stand in a URL are replaced.
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

    /// The epoch of a mailbox that has never held a frame, named by the random id with which it
    /// was made.
    pub fn of_empty_mailbox(id: &str) -> Self {
        Self(format!("new~{id}"))
    }

    /// The id of the never used mailbox that this epoch names, if it names one.
    pub fn empty_mailbox(&self) -> Option<&str> {
        self.0.strip_prefix("new~")
    }

    /// As it stands in positions and in the fan-out.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where a terminal record is: opaque to clients, URL-safe, at most 200 characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Position {
    /// The sequence.
    pub epoch: Epoch,
    /// The record's offset in it; 0 in an empty mailbox's epoch.
    pub offset: i64,
}

impl Position {
    /// Whether this is `bound` or before it. False for positions of different epochs, which can't
    /// be compared.
    pub fn is_at_or_before(&self, bound: &Self) -> bool {
        bound.epoch == self.epoch && self.offset <= bound.offset
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch.0, self.offset)
    }
}

/// A string that no server of this kind gave out as a position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("position must be one that the server gave out")]
pub struct InvalidPosition;

impl FromStr for Position {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > 200 {
            return Err(InvalidPosition);
        }
        let (epoch, offset) = text.rsplit_once('.').ok_or(InvalidPosition)?;
        let safe = |c: char| c.is_ascii_alphanumeric() || "_-~".contains(c);
        if epoch.is_empty() || !epoch.chars().all(safe) {
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
    fn a_position_reads_back_as_it_was_written() {
        let position = Position {
            epoch: Epoch::new("5L6g3nShT-eMCtK--X86sw", "0", 11),
            offset: 987,
        };
        assert_eq!(position.to_string().parse(), Ok(position));
    }

    #[test]
    fn what_no_server_gave_out_is_refused() {
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
