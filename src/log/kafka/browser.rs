//! Reads topics without joining a consumer group, for operators' tools.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::consumer::to_record;
use super::properties::Properties;
use super::report::ReportingContext;
use super::{REQUEST_TIMEOUT, unavailable};
use crate::log::{LogError, PartitionRange};
use crate::protocol::log_record::Record;

/// Time limit of one call of [`read`].
const READ_TIMEOUT: Duration = Duration::from_secs(15);

/// Creates a client that sends requests, or reads partitions that are assigned to it explicitly. It
/// joins no group and commits nothing. Requests for committed offsets are answered for `group`.
pub(super) fn create_reader(
    properties: &Properties,
    group: &str,
) -> Result<BaseConsumer<ReportingContext>, LogError> {
    let mut config = properties.client();
    // librdkafka accepts assignments only in a client with a group name. The client does not join
    // the group, because it subscribes to no topic.
    config.set("group.id", group);
    config.set("enable.auto.commit", "false");
    config.set("enable.partition.eof", "true");
    config.set("auto.offset.reset", "earliest");
    config
        .create_with_context(ReportingContext::new("reader"))
        .map_err(|error| properties.creation_error("client", &error))
}

/// Implements [`crate::log::LogBrowser::partition_ranges`]. Blocks.
pub(super) fn partition_ranges(
    client: &BaseConsumer,
    topic: &str,
) -> Result<Vec<PartitionRange>, LogError> {
    // Requests all topics: some clusters create a missing topic when it is requested by name.
    let metadata = client
        .fetch_metadata(None, REQUEST_TIMEOUT)
        .map_err(unavailable)?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let partitions = found.map_or(&[][..], |found| found.partitions());
    let mut ranges = Vec::with_capacity(partitions.len());
    for partition in partitions {
        let partition = partition.id();
        let (start, end) = client
            .fetch_watermarks(topic, partition, REQUEST_TIMEOUT)
            .map_err(unavailable)?;
        ranges.push(PartitionRange {
            partition,
            start,
            end,
        });
    }
    ranges.sort_unstable_by_key(|range| range.partition);
    Ok(ranges)
}

/// Implements [`crate::log::LogBrowser::read`]. Blocks.
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
    let consumer = create_reader(properties, "chatmesh-reader")?;
    let mut assignment = TopicPartitionList::with_capacity(1);
    assignment
        .add_partition_offset(topic, partition, Offset::Offset(from))
        .map_err(unavailable)?;
    consumer.assign(&assignment).map_err(unavailable)?;
    let topic_name: Arc<str> = topic.into();
    let deadline = Instant::now() + READ_TIMEOUT;
    let mut bytes = 0;
    let mut last_error = None;
    loop {
        let remaining = deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            let cause = last_error.map_or_else(String::new, |error| format!(" ({error})"));
            return Err(unavailable(format!(
                "partition {partition} of {topic} could not be read in time{cause}"
            )));
        }
        match consumer.poll(remaining) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(records),
            // librdkafka retries by itself. The error is reported if the read times out.
            Some(Err(error)) => last_error = Some(error),
            Some(Ok(message)) => {
                let record = to_record(&message, &topic_name);
                if record.offset >= to {
                    return Ok(records);
                }
                let is_last = record.offset + 1 >= to;
                bytes += record.size();
                records.push(record);
                if is_last || bytes >= max_bytes {
                    return Ok(records);
                }
            }
        }
    }
}
