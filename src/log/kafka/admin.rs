//! Making topics, and looking whether those that are there keep what chatmesh promises.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, OwnedResourceSpecifier, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::Producer as _;
use tokio::task::spawn_blocking;

use super::inspect::Topic;
use super::producer::Client;
use super::properties::Properties;
use super::report::Reporter;
use crate::log::{LogError, TopicSpec};

/// How long one question to the cluster may take.
const TIMEOUT: Duration = Duration::from_secs(10);

struct Context {
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

/// What the cluster has: how many brokers, and the fewest replicas of any partition of a topic.
struct Cluster {
    brokers: usize,
    replicas: BTreeMap<String, usize>,
}

/// See [`crate::log::Log::ensure_topics`].
pub(super) async fn ensure_topics(
    properties: &Properties,
    client: Client,
    topics: &[TopicSpec],
) -> Result<Vec<String>, LogError> {
    let cluster = look(client.clone()).await?;
    let (there, missing): (Vec<&TopicSpec>, Vec<&TopicSpec>) = topics
        .iter()
        .partition(|topic| cluster.replicas.contains_key(&topic.name));
    let admin = admin(properties)?;
    let result = async {
        let raced = create(&admin, &missing, cluster.brokers).await?;
        let replicas = if raced.is_empty() {
            cluster.replicas
        } else {
            look(client).await?.replicas
        };
        let judged: Vec<&TopicSpec> = there.into_iter().chain(raced).collect();
        judge(&admin, &judged, &replicas).await
    }
    .await;
    // Its drop waits for its thread.
    let _ = spawn_blocking(move || drop(admin)).await;
    result
}

/// An admin client's events are served by nobody, so it lives only as long as it is used.
fn admin(properties: &Properties) -> Result<AdminClient<Context>, LogError> {
    properties
        .client()
        .create_with_context(Context {
            reporter: Reporter::new("admin", None),
        })
        .map_err(|error| {
            LogError::Configuration(format!(
                "the kafka client cannot be made: {}; check KAFKA_PROPERTIES",
                properties.redact(&error.to_string())
            ))
        })
}

/// A sentence for each setting of these topics that endangers something; nothing is made.
pub(super) async fn warnings(
    properties: &Properties,
    topics: &[TopicSpec],
    found: &[Topic],
) -> Result<Vec<String>, LogError> {
    let admin = admin(properties)?;
    let judged: Vec<&TopicSpec> = topics.iter().collect();
    let replicas = found
        .iter()
        .map(|topic| (topic.name.clone(), topic.replicas));
    let result = judge(&admin, &judged, &replicas.collect()).await;
    let _ = spawn_blocking(move || drop(admin)).await;
    result
}

async fn look(client: Client) -> Result<Cluster, LogError> {
    let metadata = spawn_blocking(move || client.client().fetch_metadata(None, TIMEOUT))
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
    Ok(Cluster {
        brokers: metadata.brokers().len(),
        replicas,
    })
}

/// Makes what is missing; returns what somebody else made at the same time.
async fn create<'a>(
    admin: &AdminClient<Context>,
    missing: &[&'a TopicSpec],
    brokers: usize,
) -> Result<Vec<&'a TopicSpec>, LogError> {
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let new: Vec<NewTopic<'_>> = missing
        .iter()
        .map(|topic| {
            let replication = TopicReplication::Fixed(i32::from(topic.replication));
            let new = NewTopic::new(&topic.name, topic.partitions, replication)
                // Ages are counted by the brokers' clock.
                .set("message.timestamp.type", "LogAppendTime");
            if topic.replication >= 3 {
                new.set("min.insync.replicas", "2")
            } else {
                new
            }
        })
        .collect();
    let options = AdminOptions::new()
        .request_timeout(Some(TIMEOUT))
        .operation_timeout(Some(TIMEOUT));
    let results = admin.create_topics(&new, &options).await.map_err(|error| {
        LogError::Unavailable(format!("kafka did not make the missing topics: {error}"))
    })?;
    let mut raced = Vec::new();
    for result in results {
        match result {
            Ok(name) => tracing::info!(topic = name, "kafka: topic made"),
            Err((name, RDKafkaErrorCode::TopicAlreadyExists)) => {
                raced.extend(missing.iter().filter(|topic| topic.name == name));
            }
            Err((name, code)) => {
                let wanted = missing.iter().find(|topic| topic.name == name);
                return Err(not_made(
                    &name,
                    wanted.map_or(1, |t| t.replication),
                    code,
                    brokers,
                ));
            }
        }
    }
    Ok(raced)
}

fn not_made(name: &str, replication: i16, code: RDKafkaErrorCode, brokers: usize) -> LogError {
    match code {
        // Brokers that are still starting look the same: worth waiting for.
        RDKafkaErrorCode::InvalidReplicationFactor => LogError::Unavailable(format!(
            "topic {name} cannot be made with {replication} replicas on {brokers} broker(s): start \
             more brokers, or lower KAFKA_REPLICATION_FACTOR"
        )),
        RDKafkaErrorCode::TopicAuthorizationFailed
        | RDKafkaErrorCode::ClusterAuthorizationFailed => LogError::Configuration(format!(
            "topic {name} is missing and may not be made: make it, or allow this user to"
        )),
        RDKafkaErrorCode::PolicyViolation
        | RDKafkaErrorCode::InvalidPartitions
        | RDKafkaErrorCode::InvalidTopic
        | RDKafkaErrorCode::InvalidConfig => LogError::Configuration(format!(
            "topic {name} is missing and kafka refuses to make it ({code}): make it by hand, or \
             check its name and KAFKA_TOPIC_PARTITIONS"
        )),
        other => LogError::Unavailable(format!("topic {name} was not made: {other}")),
    }
}

/// A sentence for each setting that endangers something.
async fn judge(
    admin: &AdminClient<Context>,
    topics: &[&TopicSpec],
    replicas: &BTreeMap<String, usize>,
) -> Result<Vec<String>, LogError> {
    let mut warnings = Vec::new();
    for topic in topics {
        let has = replicas.get(&topic.name).copied().unwrap_or(0);
        let wanted = usize::try_from(topic.replication).unwrap_or(1);
        if has > 0 && has < wanted {
            warnings.push(format!(
                "topic {} has {has} replica(s), KAFKA_REPLICATION_FACTOR says {wanted}: what is \
                 acknowledged may be lost with a broker; reassign it with more replicas",
                topic.name
            ));
        }
    }
    if topics.is_empty() {
        return Ok(warnings);
    }
    let asked: Vec<ResourceSpecifier<'_>> = topics
        .iter()
        .map(|topic| ResourceSpecifier::Topic(&topic.name))
        .collect();
    let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
    let answers = admin
        .describe_configs(&asked, &options)
        .await
        .map_err(|error| {
            LogError::Unavailable(format!("kafka did not describe the topics: {error}"))
        })?;
    for answer in answers {
        match answer {
            Ok(resource) => warnings.extend(judge_settings(&resource, topics, replicas)),
            // Not being allowed to look is no reason not to work.
            Err(code) => warnings.push(format!("the settings of a topic cannot be read: {code}")),
        }
    }
    Ok(warnings)
}

fn judge_settings(
    resource: &ConfigResource,
    topics: &[&TopicSpec],
    replicas: &BTreeMap<String, usize>,
) -> Vec<String> {
    let OwnedResourceSpecifier::Topic(name) = &resource.specifier else {
        return Vec::new();
    };
    let setting = |key: &str| resource.get(key).and_then(|entry| entry.value.as_deref());
    let mut warnings = Vec::new();
    let wanted = topics
        .iter()
        .find(|topic| topic.name == *name)
        .map_or(1, |t| t.replication);
    let has = replicas.get(name).copied().unwrap_or(0);
    let in_sync = setting("min.insync.replicas").and_then(|value| value.parse::<u32>().ok());
    if (wanted >= 3 || has >= 3)
        && let Some(in_sync @ ..2) = in_sync
    {
        warnings.push(format!(
            "topic {name} has min.insync.replicas={in_sync}: a record may be acknowledged by one \
             broker alone and lost with it; set it to 2"
        ));
    }
    if let Some(kind) = setting("message.timestamp.type")
        && kind != "LogAppendTime"
    {
        warnings.push(format!(
            "topic {name} has message.timestamp.type={kind}: ages of messages then hang on the \
             senders' clocks; set it to LogAppendTime"
        ));
    }
    warnings
}
