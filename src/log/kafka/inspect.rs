//! Reads the state of a cluster for operators' tools: its brokers, and chatmesh's topics and
//! consumer groups.

use std::collections::BTreeMap;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer as _;
use rdkafka::metadata::MetadataTopic;
use tokio::task::spawn_blocking;

use super::browser::create_reader;
use super::{KafkaLog, REQUEST_TIMEOUT, admin, unavailable};
use crate::log::{LogError, TopicSpec};

/// The current state of a cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// `host:port` of each broker that is running.
    pub brokers: Vec<String>,
    /// The requested topics that exist.
    pub topics: Vec<Topic>,
    /// One warning for each setting that endangers a guarantee of chatmesh, with the remedy.
    pub warnings: Vec<String>,
}

/// The current state of a topic.
#[derive(Debug, Clone)]
pub struct Topic {
    /// The topic's name.
    pub name: String,
    /// Number of partitions.
    pub partitions: usize,
    /// Replicas of the partition that has the fewest.
    pub replicas: usize,
    /// Number of partitions without a leader, which can be neither read nor written.
    pub leaderless: usize,
    /// Number of partitions with at least one replica that is not in sync.
    pub under_replicated: usize,
}

/// The current state of a consumer group.
#[derive(Debug, Clone)]
pub struct Group {
    /// The state that Kafka reports (`Stable`, `Empty`, …). `None` if the group does not exist.
    pub state: Option<String>,
    /// Number of members.
    pub members: usize,
    /// Number of records at or above the committed offsets, in all partitions of the topic.
    pub lag: i64,
}

fn topic_state(topic: &MetadataTopic) -> Topic {
    let partitions = topic.partitions();
    let count = |has_fault: &dyn Fn(&rdkafka::metadata::MetadataPartition) -> bool| {
        partitions.iter().filter(|p| has_fault(p)).count()
    };
    Topic {
        name: topic.name().to_owned(),
        partitions: partitions.len(),
        replicas: partitions
            .iter()
            .map(|p| p.replicas().len())
            .min()
            .unwrap_or(0),
        leaderless: count(&|p| p.leader() < 0),
        under_replicated: count(&|p| p.isr().len() < p.replicas().len()),
    }
}

impl KafkaLog {
    /// Reads the state of the cluster and of these topics, within seconds. Creates nothing.
    pub async fn inspect(&self, topics: &[TopicSpec]) -> Result<Cluster, LogError> {
        let client = self.metadata_client()?;
        let metadata = spawn_blocking(move || client.fetch_metadata(None, REQUEST_TIMEOUT))
            .await
            .map_err(unavailable)?
            .map_err(unavailable)?;
        let brokers = metadata.brokers().iter();
        let brokers = brokers
            .map(|b| format!("{}:{}", b.host(), b.port()))
            .collect();
        let found: Vec<Topic> = metadata
            .topics()
            .iter()
            .filter(|found| found.error().is_none() && !found.partitions().is_empty())
            .filter(|found| topics.iter().any(|topic| topic.name == found.name()))
            .map(topic_state)
            .collect();
        let existing: Vec<TopicSpec> = topics
            .iter()
            .filter(|topic| found.iter().any(|found| found.name == topic.name))
            .cloned()
            .collect();
        let replicas = found
            .iter()
            .map(|topic| (topic.name.clone(), topic.replicas));
        let replicas: BTreeMap<String, usize> = replicas.collect();
        let warnings = admin::topic_warnings(&self.properties, &existing, &replicas).await?;
        Ok(Cluster {
            brokers,
            topics: found,
            warnings,
        })
    }

    /// Reads the state of a group that consumes `topic`, without joining it.
    pub async fn inspect_group(&self, group: &str, topic: &str) -> Result<Group, LogError> {
        let (properties, group, topic) =
            (self.properties.clone(), group.to_owned(), topic.to_owned());
        let inspection = spawn_blocking(move || {
            let client = create_reader(&properties, &group)?;
            let list = client.fetch_group_list(Some(&group), REQUEST_TIMEOUT);
            let list = list.map_err(unavailable)?;
            let group_info = list.groups().iter().find(|info| info.name() == group);
            // Kafka answers with the state `Dead` for a group that does not exist.
            let group_info =
                group_info.filter(|info| !info.state().is_empty() && info.state() != "Dead");
            let metadata = client
                .fetch_metadata(None, REQUEST_TIMEOUT)
                .map_err(unavailable)?;
            let found = metadata.topics().iter().find(|found| found.name() == topic);
            let partitions = found.map_or(&[][..], |found| found.partitions());
            let mut requested = TopicPartitionList::with_capacity(partitions.len());
            for partition in partitions {
                requested.add_partition(&topic, partition.id());
            }
            let committed = client
                .committed_offsets(requested, REQUEST_TIMEOUT)
                .map_err(unavailable)?;
            let mut lag = 0;
            for partition in committed.elements() {
                let (start, end) = client
                    .fetch_watermarks(&topic, partition.partition(), REQUEST_TIMEOUT)
                    .map_err(unavailable)?;
                // Without a committed offset, the group still has to read every retained record.
                let next = partition.offset().to_raw().filter(|offset| *offset >= 0);
                lag += end - next.unwrap_or(start).clamp(start, end);
            }
            Ok(Group {
                state: group_info.map(|info| info.state().to_owned()),
                members: group_info.map_or(0, |info| info.members().len()),
                lag,
            })
        });
        inspection.await.map_err(unavailable)?
    }
}
