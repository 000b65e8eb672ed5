//! What a person has to know of a cluster: its brokers, our topics, our groups.

use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer as _;
use rdkafka::metadata::MetadataTopic;
use tokio::task::spawn_blocking;

use super::browse::reader;
use super::{KafkaLog, admin, unavailable};
use crate::log::{LogError, TopicSpec};

/// One question; there are a few for each group.
const ASK: Duration = Duration::from_secs(5);

/// A cluster, as it is now.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// `host:port` of each broker that is up.
    pub brokers: Vec<String>,
    /// The topics that were asked for and are there.
    pub topics: Vec<Topic>,
    /// Sentences on settings that endanger what chatmesh promises, with what to do.
    pub warnings: Vec<String>,
}

/// A topic, as it is now.
#[derive(Debug, Clone)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// How many partitions it has.
    pub partitions: usize,
    /// Fewest replicas of a partition.
    pub replicas: usize,
    /// Partitions without a leader: nothing can be read or written there.
    pub leaderless: usize,
    /// Partitions with replicas that have fallen behind.
    pub behind: usize,
}

/// A consumer group, as it is now.
#[derive(Debug, Clone)]
pub struct Group {
    /// Kafka's word for it (`Stable`, `Empty`, …); `None` where the cluster knows no such group.
    pub state: Option<String>,
    /// How many processes read.
    pub members: usize,
    /// Records that are not finished.
    pub lag: i64,
}

fn shape(topic: &MetadataTopic) -> Topic {
    let partitions = topic.partitions();
    let count = |wrong: &dyn Fn(&rdkafka::metadata::MetadataPartition) -> bool| {
        partitions.iter().filter(|p| wrong(p)).count()
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
        behind: count(&|p| p.isr().len() < p.replicas().len()),
    }
}

impl KafkaLog {
    /// Looks at the cluster and these topics; makes nothing. Takes seconds at most.
    pub async fn inspect(&self, topics: &[TopicSpec]) -> Result<Cluster, LogError> {
        let client = self.lookup()?;
        let metadata = spawn_blocking(move || client.fetch_metadata(None, ASK))
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
            .map(shape)
            .collect();
        let there: Vec<TopicSpec> = topics
            .iter()
            .filter(|topic| found.iter().any(|found| found.name == topic.name))
            .cloned()
            .collect();
        let warnings = admin::warnings(&self.properties, &there, &found).await?;
        Ok(Cluster {
            brokers,
            topics: found,
            warnings,
        })
    }

    /// Looks at a group that reads `topic`, without joining it.
    pub async fn inspect_group(&self, group: &str, topic: &str) -> Result<Group, LogError> {
        let (properties, group, topic) =
            (self.properties.clone(), group.to_owned(), topic.to_owned());
        let looking = spawn_blocking(move || {
            let client = reader(&properties, &group)?;
            let list = client.fetch_group_list(Some(&group), ASK);
            let list = list.map_err(unavailable)?;
            let known = list.groups().iter().find(|found| found.name() == group);
            // Kafka answers for a group that it has never heard of as for one that is dead.
            let known = known.filter(|found| !found.state().is_empty() && found.state() != "Dead");
            let metadata = client.fetch_metadata(None, ASK).map_err(unavailable)?;
            let found = metadata.topics().iter().find(|found| found.name() == topic);
            let partitions = found.map_or(&[][..], |found| found.partitions());
            let mut asked = TopicPartitionList::with_capacity(partitions.len());
            for partition in partitions {
                asked.add_partition(&topic, partition.id());
            }
            let committed = client.committed_offsets(asked, ASK).map_err(unavailable)?;
            let mut lag = 0;
            for partition in committed.elements() {
                let (start, end) = client
                    .fetch_watermarks(&topic, partition.partition(), ASK)
                    .map_err(unavailable)?;
                // Where nothing was committed everything is still to be read.
                let next = partition.offset().to_raw().filter(|offset| *offset >= 0);
                lag += end - next.unwrap_or(start).clamp(start, end);
            }
            Ok(Group {
                state: known.map(|found| found.state().to_owned()),
                members: known.map_or(0, |found| found.members().len()),
                lag,
            })
        });
        looking.await.map_err(unavailable)?
    }
}
