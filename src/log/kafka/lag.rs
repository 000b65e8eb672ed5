//! Consumer lag: reports how many records of the assigned partitions are not finished.

use std::collections::BTreeMap;
use std::sync::Arc;

use metrics::Gauge;
use parking_lot::Mutex;
use rdkafka::Statistics;
use rdkafka::statistics::Partition;

use super::metrics::{CONSUMER_LAG, RELAY_LAG};
use super::report::RELAY_GROUP;

/// The lag gauges of one group member. The gauges of a revoked partition are set to 0, so that the
/// sum over all processes counts no partition twice.
pub(super) struct Lag {
    group: String,
    topic: Arc<str>,
    /// The gauges of each assigned partition: one, and for the relay a second under the original
    /// relay's metric name.
    partition_gauges: Mutex<BTreeMap<i32, Vec<Gauge>>>,
}

impl Lag {
    pub(super) fn new(group: &str, topic: Arc<str>) -> Self {
        Self {
            group: group.to_owned(),
            topic,
            partition_gauges: Mutex::default(),
        }
    }

    /// Starts to report the lag of these partitions.
    pub(super) fn assign(&self, partitions: impl IntoIterator<Item = i32>) {
        let mut partition_gauges = self.partition_gauges.lock();
        for partition in partitions {
            let label = partition.to_string();
            let mut gauges = vec![CONSUMER_LAG.gauge(&[&self.group, &self.topic, &label])];
            if self.group == RELAY_GROUP {
                gauges.push(RELAY_LAG.gauge(&[&self.topic, &label]));
            }
            partition_gauges.insert(partition, gauges);
        }
    }

    /// Stops reporting the lag of these partitions and sets their gauges to 0.
    pub(super) fn revoke<'a>(&self, partitions: impl IntoIterator<Item = &'a i32>) {
        let mut partition_gauges = self.partition_gauges.lock();
        for partition in partitions {
            for gauge in partition_gauges.remove(partition).into_iter().flatten() {
                gauge.set(0.0);
            }
        }
    }

    /// Sets the gauges from the statistics that librdkafka emits every few seconds.
    pub(super) fn update(&self, statistics: &Statistics) {
        let Some(topic) = statistics.topics.get(&*self.topic) else {
            return;
        };
        for (partition, gauges) in &*self.partition_gauges.lock() {
            if let Some(lag) = topic.partitions.get(partition).and_then(partition_lag) {
                for gauge in gauges {
                    gauge.set(lag as f64);
                }
            }
        }
    }
}

impl Drop for Lag {
    fn drop(&mut self) {
        for gauge in self.partition_gauges.lock().values().flatten() {
            gauge.set(0.0);
        }
    }
}

/// The number of records at or above the stored offset. Without a stored offset, the number of
/// records at or above the committed offset; without a committed offset, the number of retained
/// records. `None` while the statistics contain none of these numbers.
fn partition_lag(partition: &Partition) -> Option<i64> {
    [partition.consumer_lag_stored, partition.consumer_lag]
        .into_iter()
        .find(|lag| *lag >= 0)
        .or_else(|| {
            (partition.hi_offset >= 0).then(|| partition.hi_offset - partition.lo_offset.max(0))
        })
}
