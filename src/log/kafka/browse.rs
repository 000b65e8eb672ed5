//! Looking into topics without being a member of a group.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::consumer::owned;
use super::properties::Properties;
use super::report::Reporter;
use super::{ASK_TIMEOUT, unavailable};
use crate::log::{LogError, PartitionRange};
use crate::protocol::log_record::Record;

/// One page of records has to come within it.
const READ_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) struct Context {
    reporter: Reporter,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.reporter.line(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.reporter.error(&error, reason);
    }
}

impl ConsumerContext for Context {}

/// A client that asks, or reads what it is assigned by hand; it joins nothing and commits nothing.
pub(super) fn reader(
    properties: &Properties,
    group: &str,
) -> Result<BaseConsumer<Context>, LogError> {
    let mut config = properties.client();
    // librdkafka assigns nothing to a client without a group's name. Nobody joins that group.
    config.set("group.id", group);
    config.set("enable.auto.commit", "false");
    config.set("enable.partition.eof", "true");
    config.set("auto.offset.reset", "earliest");
    let context = Context {
        reporter: Reporter::new("reader", None),
    };
    config.create_with_context(context).map_err(|error| {
        LogError::Configuration(format!(
            "the kafka client cannot be made: {}; check KAFKA_PROPERTIES",
            properties.redact(&error.to_string())
        ))
    })
}

/// See [`crate::log::LogBrowser::partition_ranges`]; blocks.
pub(super) fn partition_ranges(
    client: &BaseConsumer,
    topic: &str,
) -> Result<Vec<PartitionRange>, LogError> {
    // All topics: asking for a missing one by name would make it on some clusters.
    let metadata = client
        .fetch_metadata(None, ASK_TIMEOUT)
        .map_err(unavailable)?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let partitions = found.map_or(&[][..], |found| found.partitions());
    let mut partition_ranges = Vec::with_capacity(partitions.len());
    for partition in partitions {
        let partition = partition.id();
        let (start, end) = client
            .fetch_watermarks(topic, partition, ASK_TIMEOUT)
            .map_err(unavailable)?;
        partition_ranges.push(PartitionRange {
            partition,
            start,
            end,
        });
    }
    partition_ranges.sort_unstable_by_key(|extent| extent.partition);
    Ok(partition_ranges)
}

/// See [`crate::log::LogBrowser::read`]; blocks.
pub(super) fn read(
    properties: &Properties,
    topic: &str,
    partition: i32,
    from: i64,
    to: i64,
    max_bytes: usize,
) -> Result<Vec<Record>, LogError> {
    let mut records = Vec::new();
    if from >= to {
        return Ok(records);
    }
    let consumer = reader(properties, "chatmesh-reader")?;
    let mut assignment = TopicPartitionList::with_capacity(1);
    assignment
        .add_partition_offset(topic, partition, Offset::Offset(from))
        .map_err(unavailable)?;
    consumer.assign(&assignment).map_err(unavailable)?;
    let name: Arc<str> = topic.into();
    let deadline = Instant::now() + READ_TIMEOUT;
    let mut bytes = 0;
    let mut failure = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let failure = failure.map_or_else(String::new, |error| format!(" ({error})"));
            return Err(unavailable(format!(
                "partition {partition} of {topic} could not be read in time{failure}"
            )));
        }
        match consumer.poll(left) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(records),
            // librdkafka tries again by itself.
            Some(Err(error)) => failure = Some(error),
            Some(Ok(message)) => {
                let record = owned(&message, &name);
                if record.offset >= to {
                    return Ok(records);
                }
                let last = record.offset + 1 >= to;
                bytes += record.size();
                records.push(record);
                if last || bytes >= max_bytes {
                    return Ok(records);
                }
            }
        }
    }
}
