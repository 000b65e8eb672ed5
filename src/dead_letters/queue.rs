//! The dead-letter queue, on which operators list, show, replay and drop dead letters.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Value, json};

use super::address::{Address, Source};
use super::dead_letter::{DeadLetter, Filter};
use super::format::Settlement;
use super::replay::replay_record;
use super::resolution::{Resolution, SettleAction, SettleError, SettleResult};
use crate::log::{AppendError, LogBrowser, LogError, LogOffset, PartitionRange, partitioner};
use crate::protocol::log_record::{NewRecord, Record};

/// Size in bytes at which one read of a topic stops.
const PAGE_BYTES: usize = 4 << 20;
/// Maximum number of attempts to append a record. Each attempt takes at most `PRODUCE_TIMEOUT_MS`.
const MAX_APPEND_ATTEMPTS: u32 = 3;

/// Why dead letters could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// The request named a topic that is not a dead-letter topic. Nothing was done.
    #[error(
        "{topic:?} is not a dead-letter topic; use {}{}", dead_letter_topics.join(" or "),
        suggestion.as_ref().map(|text| format!("; did you mean {text}?")).unwrap_or_default()
    )]
    UnknownTopic {
        /// The topic of the request.
        topic: String,
        /// The dead-letter topics of this configuration.
        dead_letter_topics: Vec<String>,
        /// The address or topic that was probably meant. `None` if the topic of the request is not
        /// the source topic of a dead-letter topic either.
        suggestion: Option<String>,
    },
    /// The log could not be read.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// The dead letters of a log, in the dead-letter topics of one configuration. Cheap to clone.
#[derive(Clone)]
pub struct DeadLetterQueue {
    log: Arc<dyn LogBrowser>,
    /// The dead-letter topics.
    topics: Vec<String>,
}

/// A dead letter with its content.
#[derive(Debug, Clone)]
pub struct DeadLetterDetail {
    /// The dead letter as it is listed.
    pub dead_letter: DeadLetter,
    /// How the dead letter was settled. `None` while it is not settled.
    pub resolution: Option<Resolution>,
    /// The record in the dead-letter topic, with key, headers and value.
    pub record: Record,
}

impl DeadLetterDetail {
    /// The dead letter, its resolution and its content as JSON. A key, header value or value that
    /// is not UTF-8 is written as `{"hex":…}`.
    pub fn to_json(&self) -> Value {
        let headers = self.record.headers.iter();
        let headers: Vec<Value> = headers
            .map(|(name, value)| json!({"name": name, "value": text_or_hex(value)}))
            .collect();
        let value = (!self.record.null_value).then(|| text_or_hex(&self.record.value));
        json!({
            "letter": self.dead_letter,
            "settled": self.resolution,
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

impl DeadLetterQueue {
    /// The queue in these dead-letter topics of `log`.
    pub fn new(log: Arc<dyn LogBrowser>, topics: Vec<String>) -> Self {
        Self { log, topics }
    }

    /// Returns an error for every topic except the dead-letter topics, because a settlement in
    /// another topic would be consumed as a message. `suffix` is appended to the suggested topic.
    fn check_topic(&self, topic: &str, suffix: &str) -> Result<(), DeadLetterError> {
        if self
            .topics
            .iter()
            .any(|dead_letter_topic| dead_letter_topic == topic)
        {
            return Ok(());
        }
        let suggestion = self
            .topics
            .iter()
            .find(|dead_letter_topic| source_topic(dead_letter_topic) == Some(topic));
        Err(DeadLetterError::UnknownTopic {
            topic: topic.to_owned(),
            dead_letter_topics: self.topics.clone(),
            suggestion: suggestion.map(|suggested| format!("{suggested}{suffix}")),
        })
    }

    fn check_addresses(&self, addresses: &[Address]) -> Result<(), DeadLetterError> {
        addresses.iter().try_for_each(|address| {
            let suffix = format!("/{}/{}", address.partition, address.offset);
            self.check_topic(&address.topic, &suffix)
        })
    }

    /// The unsettled dead letters that match `filter`, oldest first. Duplicates are merged into one
    /// dead letter, which is unsettled until it and all its duplicates are settled.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<DeadLetter>, DeadLetterError> {
        if let Some(topic) = &filter.topic {
            self.check_topic(topic, "")?;
        }
        let mut listed = Vec::new();
        for topic in &self.topics {
            if filter.topic.as_ref().is_some_and(|only| only != topic) {
                continue;
            }
            let contents = self.read_topic(topic, filter.since_ms).await?;
            let resolutions = contents.resolutions;
            let is_settled =
                |address: &Address| resolutions.contains_key(&(address.partition, address.offset));
            listed.extend(contents.dead_letters.into_iter().filter(|dead_letter| {
                filter.matches(dead_letter) && !dead_letter.addresses().all(is_settled)
            }));
        }
        listed.sort_by(|a, b| (a.at_ms, &a.address).cmp(&(b.at_ms, &b.address)));
        listed.truncate(filter.limit.unwrap_or(usize::MAX));
        Ok(listed)
    }

    /// The dead letter at each of these addresses, with its resolution if it is settled. `None` for
    /// an address without a dead letter.
    pub async fn find(
        &self,
        addresses: &[Address],
    ) -> Result<Vec<(Address, Option<(DeadLetter, Option<Resolution>)>)>, DeadLetterError> {
        self.check_addresses(addresses)?;
        // Each topic is read once, from the timestamp of its oldest requested dead letter on.
        let mut oldest_ms: BTreeMap<&str, i64> = BTreeMap::new();
        for address in addresses {
            if let Some(record) = self.record(address).await? {
                let oldest = oldest_ms
                    .entry(&address.topic)
                    .or_insert(record.timestamp_ms);
                *oldest = record.timestamp_ms.min(*oldest);
            }
        }
        let mut contents_by_topic = HashMap::new();
        for (topic, since_ms) in oldest_ms {
            contents_by_topic.insert(
                topic.to_owned(),
                self.read_topic(topic, Some(since_ms)).await?,
            );
        }
        let find = |address: &Address| {
            let contents: &TopicContents = contents_by_topic.get(&address.topic)?;
            let has_address =
                |dead_letter: &&DeadLetter| dead_letter.addresses().any(|other| other == address);
            let dead_letter = contents.dead_letters.iter().find(has_address)?;
            let resolution = |address: &Address| {
                let offset = (address.partition, address.offset);
                contents.resolutions.get(&offset).cloned()
            };
            Some((
                dead_letter.clone(),
                dead_letter.addresses().find_map(resolution),
            ))
        };
        let found = addresses
            .iter()
            .map(|address| (address.clone(), find(address)));
        Ok(found.collect())
    }

    /// The dead letter at this address with its content. `None` if there is no dead letter.
    pub async fn detail(
        &self,
        address: &Address,
    ) -> Result<Option<DeadLetterDetail>, DeadLetterError> {
        let requested = std::slice::from_ref(address);
        self.check_addresses(requested)?;
        let Some(record) = self.record(address).await? else {
            return Ok(None);
        };
        let found = self.find(requested).await?.pop();
        Ok(found
            .and_then(|(_, found)| found)
            .map(|(dead_letter, resolution)| DeadLetterDetail {
                dead_letter,
                resolution,
                record,
            }))
    }

    /// Replays or drops the dead letters at these addresses, one after the other. Returns the
    /// result for each address.
    pub async fn settle_at(
        &self,
        addresses: &[Address],
        action: SettleAction,
    ) -> Result<Vec<SettleResult>, DeadLetterError> {
        let mut results = Vec::with_capacity(addresses.len());
        for (address, found) in self.find(addresses).await? {
            let result = match found {
                None => Err(SettleError::NotFound),
                Some((_, Some(resolution))) => {
                    Err(SettleError::AlreadySettled(resolution.to_string()))
                }
                Some((dead_letter, None)) => self.settle(&dead_letter, action).await,
            };
            results.push(SettleResult::new(address, result));
        }
        Ok(results)
    }

    /// Replays or drops one dead letter that was listed.
    ///
    /// A replay appends the record to its source topic under a new message id, then settles the
    /// dead letter. Repeating a replay has no effect while the new message's outcome is stored
    /// (`DEDUP_TTL`), because the new id depends on the original location only.
    pub async fn settle(
        &self,
        dead_letter: &DeadLetter,
        action: SettleAction,
    ) -> Result<Resolution, SettleError> {
        match action {
            SettleAction::Replay => self.replay(dead_letter).await,
            SettleAction::Drop => {
                self.append_settlement(dead_letter, None).await?;
                Ok(Resolution::Dropped)
            }
        }
    }

    async fn replay(&self, dead_letter: &DeadLetter) -> Result<Resolution, SettleError> {
        let topic = &dead_letter.source.topic;
        let is_of_source = |dead_letters: &String| source_topic(dead_letters) == Some(topic);
        if !self.topics.iter().any(is_of_source) {
            return Err(SettleError::UnknownSource(topic.clone()));
        }
        let record = self.original_record(dead_letter).await?;
        let message_id = dead_letter.source.replay_id();
        let replay = replay_record(&record, dead_letter, &message_id);
        let log_offset = self.append(topic, replay).await?;
        let message_id = message_id.to_string();
        self.append_settlement(dead_letter, Some(message_id.clone()))
            .await?;
        Ok(Resolution::Replayed {
            message_id,
            topic: topic.clone(),
            partition: log_offset.partition,
            offset: log_offset.offset,
        })
    }

    async fn append_settlement(
        &self,
        dead_letter: &DeadLetter,
        replayed_as: Option<String>,
    ) -> Result<(), SettleError> {
        let Address {
            topic, partition, ..
        } = &dead_letter.address;
        let partitions = self.log.partition_ranges(topic).await?.len().max(1);
        let settlement = Settlement {
            offsets: dead_letter
                .addresses()
                .map(|address| (address.partition, address.offset))
                .collect(),
            replayed_as,
        };
        let record = NewRecord {
            key: Some(partitioner::key_for_partition(*partition, partitions)),
            headers: settlement.to_headers(),
            ..NewRecord::default()
        };
        self.append(topic, record).await.map(drop)
    }

    async fn append(&self, topic: &str, record: NewRecord) -> Result<LogOffset, SettleError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.log.append(topic, record.clone()).await {
                Ok(log_offset) => return Ok(log_offset),
                // The record may be in the log already. A duplicate of a replay or of a settlement
                // is harmless, see `DeadLetterQueue::settle`.
                Err(AppendError::Unknown(_)) if attempts < MAX_APPEND_ATTEMPTS => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The record to replay: the dead letter's record, or the original record from the source topic
    /// if the dead letter omits the value.
    async fn original_record(&self, dead_letter: &DeadLetter) -> Result<Record, SettleError> {
        let record = self.record(&dead_letter.address).await?;
        let record = record.ok_or(SettleError::NotFound)?;
        if dead_letter.value_left_out.is_none() {
            return Ok(record);
        }
        let source = &dead_letter.source;
        let location = Address {
            topic: source.topic.clone(),
            partition: source.partition,
            offset: source.offset,
        };
        let original = self.record(&location).await?;
        // If the source topic was deleted and created again, another record may be at this offset.
        original
            .filter(|original| original.timestamp_ms == source.timestamp_ms)
            .ok_or(SettleError::ValueLost)
    }

    /// The record at this address. `None` if the topic has no record there.
    async fn record(&self, address: &Address) -> Result<Option<Record>, LogError> {
        let ranges = self.log.partition_ranges(&address.topic).await?;
        let contains = |range: &PartitionRange| {
            range.partition == address.partition
                && (range.start..range.end).contains(&address.offset)
        };
        if !ranges.iter().any(contains) {
            return Ok(None);
        }
        let (from, to) = (address.offset, address.offset + 1);
        let mut page = self
            .log
            .read(&address.topic, address.partition, from, to, 1)
            .await?;
        Ok(page.pop().filter(|record| record.offset == address.offset))
    }

    /// Reads the dead letters and settlements of a dead-letter topic that were appended at or after
    /// `since_ms` (milliseconds since the Unix epoch), or all of them if that is `None`.
    async fn read_topic(
        &self,
        topic: &str,
        since_ms: Option<i64>,
    ) -> Result<TopicContents, LogError> {
        let mut contents = TopicContents::default();
        for range in self.log.partition_ranges(topic).await? {
            let mut from = range.start;
            if let (Some(since_ms), true) = (since_ms, range.start < range.end) {
                let first = self.log.offset_at(topic, range.partition, since_ms).await?;
                from = first.unwrap_or(range.end).max(from);
            }
            while from < range.end {
                let (partition, end) = (range.partition, range.end);
                let page = self
                    .log
                    .read(topic, partition, from, end, PAGE_BYTES)
                    .await?;
                let Some(last) = page.last() else { break };
                from = last.offset + 1;
                for record in &page {
                    contents.add(record);
                }
            }
        }
        contents.merge_duplicates();
        Ok(contents)
    }
}

/// The source topic of a dead-letter topic: its name without the suffix `.dlq`. `None` if the name
/// has no such suffix.
fn source_topic(dead_letter_topic: &str) -> Option<&str> {
    let source = dead_letter_topic.strip_suffix(".dlq");
    source.filter(|source| !source.is_empty())
}

/// The dead letters and settlements that were read from one dead-letter topic.
#[derive(Default)]
struct TopicContents {
    dead_letters: Vec<DeadLetter>,
    /// The resolution of each settled dead letter and duplicate, by its partition and offset.
    resolutions: HashMap<(i32, i64), Resolution>,
}

impl TopicContents {
    /// Adds a record, which is either a dead letter or a settlement.
    fn add(&mut self, record: &Record) {
        let Some(settlement) = Settlement::from_record(record) else {
            self.dead_letters.push(DeadLetter::from_record(record));
            return;
        };
        let resolution = match settlement.replayed_as {
            Some(message_id) => Resolution::Replayed {
                message_id,
                topic: record
                    .topic
                    .strip_suffix(".dlq")
                    .unwrap_or(&record.topic)
                    .to_owned(),
                partition: -1,
                offset: -1,
            },
            None => Resolution::Dropped,
        };
        for offset in settlement.offsets {
            self.resolutions.insert(offset, resolution.clone());
        }
    }

    /// Keeps the first dead letter of each original record, and adds to it the addresses of its
    /// duplicates, which are the later dead letters of the same original record.
    fn merge_duplicates(&mut self) {
        let mut index_by_source: HashMap<Source, usize> = HashMap::new();
        let mut merged: Vec<DeadLetter> = Vec::with_capacity(self.dead_letters.len());
        for dead_letter in std::mem::take(&mut self.dead_letters) {
            if let Some(index) = index_by_source.get(&dead_letter.source) {
                merged[*index].copies.push(dead_letter.address);
            } else {
                index_by_source.insert(dead_letter.source.clone(), merged.len());
                merged.push(dead_letter);
            }
        }
        self.dead_letters = merged;
    }
}
