//! Reading dead letters, and settling them: by a replay, or by dropping them.
//!
//! A log removes nothing from its middle, so what was settled is written behind it: a *settlement*
//! is a record of the dead-letter topic itself that names the letters in its headers. It is put
//! into the partition of its letter, so that retention, which takes the oldest first, never
//! removes it before the letter. Nothing else has to be kept, backed up or agreed on.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::dead_letter::header as dlq;
use crate::log::{AppendError, LogBrowser, LogError, LogOffset, PartitionRange, partitioner};
use crate::protocol::log_record::{NewRecord, Record};
use crate::protocol::record::header;

mod again;
mod letter;
#[cfg(test)]
mod tests;

use again::replayed;
pub use letter::{Address, Failure, Filter, Letter, Settled, Source, Way};

/// Read of a topic at once.
const PAGE_BYTES: usize = 4 << 20;
/// Appends that are tried for one letter: each has the time of `PRODUCE_TIMEOUT_MS`.
const TRIES: u32 = 3;

/// Headers of a settlement.
mod settlement {
    /// `partition/offset` of a letter that is settled; as often as there are copies of it.
    pub(super) const OF: &str = "dlq.settled";
    /// `replay` or `drop`.
    pub(super) const BY: &str = "dlq.settled_by";
}

/// Why dead letters could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LettersError {
    /// Another topic than those of dead letters was named. Nothing was done.
    #[error(
        "{topic:?} is no dead-letter topic; those are {}{}", known.join(" and "),
        meant.as_ref().map(|meant| format!("; {meant} may be meant")).unwrap_or_default()
    )]
    NotOurs {
        /// What was named.
        topic: String,
        /// What could have been.
        known: Vec<String>,
        /// The address, or topic, that may be meant.
        meant: Option<String>,
    },
    /// The log could not be asked.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// The dead letters of a log.
#[derive(Clone)]
pub struct Letters {
    log: Arc<dyn LogBrowser>,
    /// The dead-letter topics.
    topics: Vec<String>,
}

/// A letter with everything that is in it.
#[derive(Debug, Clone)]
pub struct Opened {
    /// What is listed of it.
    pub letter: Letter,
    /// How it was settled, where it was.
    pub settled: Option<Way>,
    /// The record as it lies in the dead-letter topic.
    pub record: Record,
}

/// What a look at a topic has found.
#[derive(Default)]
struct Found {
    letters: Vec<Letter>,
    settled: HashMap<(i32, i64), Way>,
}

impl Opened {
    /// Everything, as JSON. What is no text is written as `{"hex":…}`.
    pub fn to_json(&self) -> Value {
        let headers = self.record.headers.iter();
        let headers: Vec<Value> = headers
            .map(|(name, value)| json!({"name": name, "value": text_or_hex(value)}))
            .collect();
        let value = (!self.record.null_value).then(|| text_or_hex(&self.record.value));
        json!({
            "letter": self.letter,
            "settled": self.settled,
            "key": self.record.key.as_deref().map(text_or_hex),
            "headers": headers,
            "value": value,
        })
    }
}

fn text_or_hex(bytes: &[u8]) -> Value {
    use std::fmt::Write as _;
    if let Ok(text) = std::str::from_utf8(bytes) {
        return text.into();
    }
    let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    json!({"hex": hex})
}

impl Letters {
    /// Of these dead-letter topics.
    pub fn new(log: Arc<dyn LogBrowser>, topics: Vec<String>) -> Self {
        Self { log, topics }
    }

    /// Only in its own topics may anything be read and written: a settlement elsewhere would be
    /// a message.
    fn ours(&self, topic: &str, after: &str) -> Result<(), LettersError> {
        if self.topics.iter().any(|ours| ours == topic) {
            return Ok(());
        }
        let meant = self
            .topics
            .iter()
            .find(|ours| source_of(ours) == Some(topic));
        Err(LettersError::NotOurs {
            topic: topic.to_owned(),
            known: self.topics.clone(),
            meant: meant.map(|ours| format!("{ours}{after}")),
        })
    }

    fn all_ours(&self, addresses: &[Address]) -> Result<(), LettersError> {
        addresses
            .iter()
            .try_for_each(|at| self.ours(&at.topic, &format!("/{}/{}", at.partition, at.offset)))
    }

    /// The letters that are not settled, oldest first. Those that are there twice (their writer
    /// died in between) are one.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<Letter>, LettersError> {
        if let Some(only) = &filter.topic {
            self.ours(only, "")?;
        }
        let mut all = Vec::new();
        for topic in &self.topics {
            if filter.topic.as_ref().is_some_and(|only| only != topic) {
                continue;
            }
            let found = self.look(topic, filter.since_ms).await?;
            all.extend(found.letters.into_iter().filter(|letter| {
                let settled = |at: &Address| found.settled.contains_key(&(at.partition, at.offset));
                filter.takes(letter) && !letter.addresses().all(settled)
            }));
        }
        all.sort_by(|one, other| (one.at_ms, &one.address).cmp(&(other.at_ms, &other.address)));
        all.truncate(filter.limit.unwrap_or(usize::MAX));
        Ok(all)
    }

    /// The letters at these addresses, settled or not; `None` where there is none.
    pub async fn find(
        &self,
        addresses: &[Address],
    ) -> Result<Vec<(Address, Option<(Letter, Option<Way>)>)>, LettersError> {
        self.all_ours(addresses)?;
        // One look at each topic, from its oldest letter on.
        let mut since: BTreeMap<&str, i64> = BTreeMap::new();
        for address in addresses {
            if let Some(record) = self.record(address).await? {
                let oldest = since.entry(&address.topic).or_insert(record.timestamp_ms);
                *oldest = record.timestamp_ms.min(*oldest);
            }
        }
        let mut found = HashMap::new();
        for (topic, since_ms) in since {
            found.insert(topic.to_owned(), self.look(topic, Some(since_ms)).await?);
        }
        let find = |address: &Address| {
            let found = found.get(&address.topic)?;
            let is_it = |letter: &&Letter| letter.addresses().any(|at| at == address);
            let letter = found.letters.iter().find(is_it)?;
            let key = |at: &Address| found.settled.get(&(at.partition, at.offset)).cloned();
            Some((letter.clone(), letter.addresses().find_map(key)))
        };
        Ok(addresses.iter().map(|at| (at.clone(), find(at))).collect())
    }

    /// A letter with its content.
    pub async fn open(&self, address: &Address) -> Result<Option<Opened>, LettersError> {
        self.all_ours(std::slice::from_ref(address))?;
        let Some(record) = self.record(address).await? else {
            return Ok(None);
        };
        let found = self.find(std::slice::from_ref(address)).await?.pop();
        Ok(found
            .and_then(|(_, found)| found)
            .map(|(letter, settled)| Opened {
                letter,
                settled,
                record,
            }))
    }

    /// Puts the letter's record back into its topic as a message with an identity of its own, and
    /// settles the letter. Repeating it changes nothing while its end is remembered (`DEDUP_TTL`):
    /// the new identity hangs on nothing but where the record once was.
    pub async fn replay(&self, letter: &Letter) -> Result<Way, Failure> {
        let topic = &letter.source.topic;
        let read_here = |ours: &String| source_of(ours) == Some(topic);
        if !self.topics.iter().any(read_here) {
            return Err(Failure::NoSource(topic.clone()));
        }
        let record = self.whole(letter).await?;
        let message_id = letter.source.replay_id();
        let new = replayed(&record, letter, &message_id);
        let place = self.append(&letter.source.topic, new).await?;
        let way = Way::Replayed {
            message_id: message_id.to_string(),
            topic: letter.source.topic.clone(),
            partition: place.partition,
            offset: place.offset,
        };
        self.settle(letter, &way).await?;
        Ok(way)
    }

    /// Replays or drops the letters at these addresses, one after the other.
    pub async fn settle_at(
        &self,
        addresses: &[Address],
        replay: bool,
    ) -> Result<Vec<Settled>, LettersError> {
        let mut all = Vec::with_capacity(addresses.len());
        for (address, found) in self.find(addresses).await? {
            let result = match found {
                None => Err(Failure::Gone),
                Some((_, Some(way))) => Err(Failure::Settled(way.to_string())),
                Some((letter, None)) if replay => self.replay(&letter).await,
                Some((letter, None)) => self.drop(&letter).await,
            };
            all.push(Settled::new(address, result));
        }
        Ok(all)
    }

    /// Settles the letter without anything else.
    pub async fn drop(&self, letter: &Letter) -> Result<Way, Failure> {
        self.settle(letter, &Way::Dropped).await?;
        Ok(Way::Dropped)
    }

    async fn settle(&self, letter: &Letter, way: &Way) -> Result<(), Failure> {
        let topic = &letter.address.topic;
        let partition_ranges = self.log.partition_ranges(topic).await?;
        let mut headers: Vec<(String, Bytes)> = letter
            .addresses()
            .map(|at| format!("{}/{}", at.partition, at.offset))
            .map(|at| (settlement::OF.to_owned(), Bytes::from(at)))
            .collect();
        let mut add = |name: &str, value: &str| {
            headers.push((name.to_owned(), Bytes::from(value.to_owned())));
        };
        match way {
            Way::Replayed { message_id, .. } => {
                add(settlement::BY, "replay");
                add(header::MESSAGE_ID, message_id);
            }
            Way::Dropped => add(settlement::BY, "drop"),
        }
        let record = NewRecord {
            key: Some(partitioner::key_for_partition(
                letter.address.partition,
                partition_ranges.len().max(1),
            )),
            headers,
            ..NewRecord::default()
        };
        self.append(topic, record).await.map(drop)
    }

    async fn append(&self, topic: &str, record: NewRecord) -> Result<LogOffset, Failure> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.log.append(topic, record.clone()).await {
                Ok(place) => return Ok(place),
                // There twice is harmless, see `replay`.
                Err(AppendError::Unknown(_)) if tries < TRIES => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The letter's record as it was before it became one.
    async fn whole(&self, letter: &Letter) -> Result<Record, Failure> {
        let record = self.record(&letter.address).await?.ok_or(Failure::Gone)?;
        let Some(_) = letter.value_left_out else {
            return Ok(record);
        };
        // Where it came from the value may still be.
        let source = &letter.source;
        let place = Address {
            topic: source.topic.clone(),
            partition: source.partition,
            offset: source.offset,
        };
        let original = self.record(&place).await?;
        original
            .filter(|original| original.timestamp_ms == source.timestamp_ms)
            .ok_or(Failure::ValueGone)
    }

    async fn record(&self, address: &Address) -> Result<Option<Record>, LogError> {
        let partition_ranges = self.log.partition_ranges(&address.topic).await?;
        let is_there = |extent: &PartitionRange| {
            extent.partition == address.partition
                && (extent.start..extent.end).contains(&address.offset)
        };
        if !partition_ranges.iter().any(is_there) {
            return Ok(None);
        }
        let (from, to) = (address.offset, address.offset + 1);
        let mut read = self
            .log
            .read(&address.topic, address.partition, from, to, 1)
            .await?;
        Ok(read.pop().filter(|record| record.offset == address.offset))
    }

    async fn look(&self, topic: &str, since_ms: Option<i64>) -> Result<Found, LogError> {
        let mut found = Found::default();
        for extent in self.log.partition_ranges(topic).await? {
            let mut from = extent.start;
            if let (Some(since_ms), true) = (since_ms, extent.start < extent.end) {
                let first = self
                    .log
                    .offset_at(topic, extent.partition, since_ms)
                    .await?;
                from = first.unwrap_or(extent.end).max(from);
            }
            while from < extent.end {
                let (partition, end) = (extent.partition, extent.end);
                let page = self
                    .log
                    .read(topic, partition, from, end, PAGE_BYTES)
                    .await?;
                let Some(last) = page.last() else { break };
                from = last.offset + 1;
                for record in &page {
                    found.take(record);
                }
            }
        }
        Ok(found.folded())
    }
}

/// The topic whose dead letters are in this one.
fn source_of(topic: &str) -> Option<&str> {
    let source = topic.strip_suffix(".dlq");
    source.filter(|source| !source.is_empty())
}

/// Whether a record settles letters. One that only carries such headers along, since somebody
/// wrote them into a message that then became a dead letter, has a reason or a content.
fn is_settlement(record: &Record) -> bool {
    let settles = |name: &str| matches!(name, settlement::OF | settlement::BY);
    let mut ours = record.headers.iter().map(|(name, _)| name.as_str());
    record.value.is_empty()
        && record.header_text(settlement::OF).is_some()
        && record.header_text(settlement::BY).is_some()
        && ours.all(|name| settles(name) || !name.starts_with(dlq::OURS))
}

impl Found {
    fn take(&mut self, record: &Record) {
        if !is_settlement(record) {
            self.letters.push(Letter::of(record));
            return;
        }
        let headers = record.headers.iter();
        let of = headers.filter(|(name, _)| name == settlement::OF);
        let way = match (
            record.header_text(settlement::BY),
            record.header_text(header::MESSAGE_ID),
        ) {
            (Some("replay"), Some(message_id)) => Way::Replayed {
                message_id: message_id.to_owned(),
                topic: record
                    .topic
                    .strip_suffix(".dlq")
                    .unwrap_or(&record.topic)
                    .to_owned(),
                partition: -1,
                offset: -1,
            },
            _ => Way::Dropped,
        };
        for (_, at) in of {
            let at = std::str::from_utf8(at)
                .ok()
                .and_then(|at| at.split_once('/'));
            let at = at.and_then(|(p, o)| Some((p.parse().ok()?, o.parse().ok()?)));
            if let Some(at) = at {
                self.settled.insert(at, way.clone());
            }
        }
    }

    /// Copies of a letter are part of the first one.
    fn folded(mut self) -> Self {
        let mut first: HashMap<Source, usize> = HashMap::new();
        let mut letters: Vec<Letter> = Vec::with_capacity(self.letters.len());
        for letter in std::mem::take(&mut self.letters) {
            if let Some(index) = first.get(&letter.source) {
                letters[*index].copies.push(letter.address);
            } else {
                first.insert(letter.source.clone(), letters.len());
                letters.push(letter);
            }
        }
        self.letters = letters;
        self
    }
}
