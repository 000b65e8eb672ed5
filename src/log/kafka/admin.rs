//! Creates missing topics, and checks the settings of existing ones against chatmesh's guarantees.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, OwnedResourceSpecifier, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::Producer as _;
use tokio::task::spawn_blocking;

use super::producer::Client;
use super::properties::Properties;
use super::report::ReportingContext;
use crate::log::{LogError, TopicSpec};

/// Time limit of one request of this module to the cluster.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);

type Admin = AdminClient<ReportingContext>;

/// The part of a cluster's metadata that is needed to create and check topics.
struct ClusterState {
    /// Number of running brokers.
    brokers: usize,
    /// The smallest number of replicas of any partition, by topic.
    replicas: BTreeMap<String, usize>,
}

/// Implements [`crate::log::Log::ensure_topics`].
pub(super) async fn ensure_topics(
    properties: &Properties,
    client: Client,
    topics: &[TopicSpec],
) -> Result<Vec<String>, LogError> {
    let cluster = fetch_cluster(client.clone()).await?;
    let (existing, missing): (Vec<&TopicSpec>, Vec<&TopicSpec>) = topics
        .iter()
        .partition(|topic| cluster.replicas.contains_key(&topic.name));
    let admin = create_admin(properties)?;
    let result = async {
        let created_by_others = create(&admin, &missing, cluster.brokers).await?;
        let replicas = if created_by_others.is_empty() {
            cluster.replicas
        } else {
            fetch_cluster(client).await?.replicas
        };
        let topics: Vec<&TopicSpec> = existing.into_iter().chain(created_by_others).collect();
        check_topics(&admin, &topics, &replicas).await
    }
    .await;
    // Dropping the admin client blocks until its thread has ended.
    let _ = spawn_blocking(move || drop(admin)).await;
    result
}

/// Creates an admin client. The caller must drop it after use, because nothing polls its events and
/// they would accumulate.
fn create_admin(properties: &Properties) -> Result<Admin, LogError> {
    properties
        .client()
        .create_with_context(ReportingContext::new("admin"))
        .map_err(|error| properties.creation_error("client", &error))
}

/// One warning for each setting of these topics that endangers a guarantee. `replicas` has the
/// smallest number of replicas of any partition, by topic. Creates nothing.
pub(super) async fn topic_warnings(
    properties: &Properties,
    topics: &[TopicSpec],
    replicas: &BTreeMap<String, usize>,
) -> Result<Vec<String>, LogError> {
    let admin = create_admin(properties)?;
    let topics: Vec<&TopicSpec> = topics.iter().collect();
    let result = check_topics(&admin, &topics, replicas).await;
    let _ = spawn_blocking(move || drop(admin)).await;
    result
}

async fn fetch_cluster(client: Client) -> Result<ClusterState, LogError> {
    let metadata = spawn_blocking(move || client.client().fetch_metadata(None, ADMIN_TIMEOUT))
        .await
        .map_err(|error| LogError::Unavailable(error.to_string()))?
        .map_err(|error| LogError::Unavailable(format!("kafka does not answer: {error}")))?;
    let replicas = metadata
        .topics()
        .iter()
        .filter(|topic| topic.error().is_none() && !topic.partitions().is_empty())
        .map(|topic| {
            let fewest = topic.partitions().iter().map(|p| p.replicas().len()).min();
            (topic.name().to_owned(), fewest.unwrap_or(0))
        })
        .collect();
    Ok(ClusterState {
        brokers: metadata.brokers().len(),
        replicas,
    })
}

/// Creates the missing topics. Returns the topics that another process created at the same time.
async fn create<'a>(
    admin: &Admin,
    missing: &[&'a TopicSpec],
    brokers: usize,
) -> Result<Vec<&'a TopicSpec>, LogError> {
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let new_topics: Vec<NewTopic<'_>> = missing
        .iter()
        .map(|topic| {
            let replication = TopicReplication::Fixed(i32::from(topic.replication));
            let new = NewTopic::new(&topic.name, topic.partitions, replication)
                // The age of a message is measured by the brokers' clock.
                .set("message.timestamp.type", "LogAppendTime");
            if topic.replication >= 3 {
                new.set("min.insync.replicas", "2")
            } else {
                new
            }
        })
        .collect();
    let options = AdminOptions::new()
        .request_timeout(Some(ADMIN_TIMEOUT))
        .operation_timeout(Some(ADMIN_TIMEOUT));
    let results = admin
        .create_topics(&new_topics, &options)
        .await
        .map_err(|error| {
            LogError::Unavailable(format!("kafka did not create the missing topics: {error}"))
        })?;
    let mut created_by_others = Vec::new();
    for result in results {
        match result {
            Ok(name) => tracing::info!(topic = name, "kafka: topic created"),
            Err((name, RDKafkaErrorCode::TopicAlreadyExists)) => {
                created_by_others.extend(missing.iter().filter(|topic| topic.name == name));
            }
            Err((name, code)) => {
                let spec = missing.iter().find(|topic| topic.name == name);
                return Err(creation_failure(
                    &name,
                    spec.map_or(1, |t| t.replication),
                    code,
                    brokers,
                ));
            }
        }
    }
    Ok(created_by_others)
}

fn creation_failure(
    name: &str,
    replication: i16,
    code: RDKafkaErrorCode,
    brokers: usize,
) -> LogError {
    match code {
        // Reported as unavailable, so that the caller retries: a cluster whose brokers are still
        // starting gives the same answer.
        RDKafkaErrorCode::InvalidReplicationFactor => LogError::Unavailable(format!(
            "topic {name} cannot be created with {replication} replicas on {brokers} broker(s): \
             start more brokers, or lower KAFKA_REPLICATION_FACTOR"
        )),
        RDKafkaErrorCode::TopicAuthorizationFailed
        | RDKafkaErrorCode::ClusterAuthorizationFailed => LogError::Configuration(format!(
            "topic {name} is missing and this user may not create it: create it, or grant the user \
             CREATE on the topic"
        )),
        RDKafkaErrorCode::PolicyViolation
        | RDKafkaErrorCode::InvalidPartitions
        | RDKafkaErrorCode::InvalidTopic
        | RDKafkaErrorCode::InvalidConfig => LogError::Configuration(format!(
            "topic {name} is missing and kafka refuses to create it ({code}): create it by hand, or \
             check its name and KAFKA_TOPIC_PARTITIONS"
        )),
        other => LogError::Unavailable(format!("topic {name} was not created: {other}")),
    }
}

/// One warning for each setting of these topics that endangers a guarantee. `replicas` has the
/// smallest number of replicas of any partition, by topic.
async fn check_topics(
    admin: &Admin,
    topics: &[&TopicSpec],
    replicas: &BTreeMap<String, usize>,
) -> Result<Vec<String>, LogError> {
    let mut warnings = Vec::new();
    for topic in topics {
        let actual = replicas.get(&topic.name).copied().unwrap_or(0);
        let required = usize::try_from(topic.replication).unwrap_or(1);
        if actual > 0 && actual < required {
            warnings.push(format!(
                "topic {} has {actual} replica(s), KAFKA_REPLICATION_FACTOR says {required}: an \
                 acknowledged record may be lost with a broker; reassign it with more replicas",
                topic.name
            ));
        }
    }
    if topics.is_empty() {
        return Ok(warnings);
    }
    let resources: Vec<ResourceSpecifier<'_>> = topics
        .iter()
        .map(|topic| ResourceSpecifier::Topic(&topic.name))
        .collect();
    let options = AdminOptions::new().request_timeout(Some(ADMIN_TIMEOUT));
    let descriptions = admin
        .describe_configs(&resources, &options)
        .await
        .map_err(|error| {
            LogError::Unavailable(format!("kafka did not describe the topics: {error}"))
        })?;
    for description in descriptions {
        match description {
            Ok(resource) => warnings.extend(check_topic_settings(&resource, topics, replicas)),
            // No error, because without the permission to read settings everything else works.
            Err(code) => warnings.push(format!(
                "the settings of a topic cannot be read: {code}; grant this user DESCRIBE_CONFIGS"
            )),
        }
    }
    Ok(warnings)
}

/// One warning for each of the topic's settings in `resource` that endangers a guarantee.
fn check_topic_settings(
    resource: &ConfigResource,
    topics: &[&TopicSpec],
    replicas: &BTreeMap<String, usize>,
) -> Vec<String> {
    let OwnedResourceSpecifier::Topic(name) = &resource.specifier else {
        return Vec::new();
    };
    let setting = |key: &str| resource.get(key).and_then(|entry| entry.value.as_deref());
    let mut warnings = Vec::new();
    let required = topics
        .iter()
        .find(|topic| topic.name == *name)
        .map_or(1, |t| t.replication);
    let actual = replicas.get(name).copied().unwrap_or(0);
    let in_sync = setting("min.insync.replicas").and_then(|value| value.parse::<u32>().ok());
    if (required >= 3 || actual >= 3)
        && let Some(in_sync @ ..2) = in_sync
    {
        warnings.push(format!(
            "topic {name} has min.insync.replicas={in_sync}: a single broker may acknowledge a \
             record, which is then lost with that broker; set it to 2"
        ));
    }
    if let Some(kind) = setting("message.timestamp.type")
        && kind != "LogAppendTime"
    {
        warnings.push(format!(
            "topic {name} has message.timestamp.type={kind}: the age of a message then depends \
             on its sender's clock; set it to LogAppendTime"
        ));
    }
    warnings
}
