//! Checks Kafka: brokers, topics and consumer groups.

use super::report::{Findings, Status};
use crate::config::Config;
use crate::config::settings::PipelineSettings;
use crate::log::kafka::KafkaLog;
use crate::log::kafka::inspect::{Group, Topic};
use crate::log::{Log as _, TopicSpec};

/// Maximum number of records that a consumer group may be behind without a warning: the threshold
/// of the alert ChatmeshConsumerLag.
const MAX_LAG_RECORDS: i64 = 500;

pub(super) async fn check(config: &Config, findings: &mut Findings) {
    let settings = config.kafka();
    let servers = &settings.bootstrap_servers;
    let log = match KafkaLog::connect(&settings) {
        Ok(log) => log,
        Err(error) => {
            findings.add_problem(error.to_string(), "correct KAFKA_PROPERTIES");
            return;
        }
    };
    if let Err(error) = log.check().await {
        findings.add_problem(
            format!("{servers}: {error}"),
            "start it, or correct KAFKA_BOOTSTRAP_SERVERS; the addresses that the brokers \
             advertise must be reachable from here too",
        );
        return;
    }
    let worker = config.worker().pipeline;
    let relay = config.relay().pipeline;
    let dead_letter_topics = config.dead_letter_topics();
    let topic_names = [
        &worker.topic,
        &relay.topic,
        &dead_letter_topics[0],
        &dead_letter_topics[1],
    ];
    let specs: Vec<TopicSpec> = topic_names
        .into_iter()
        .map(|name| TopicSpec {
            name: name.clone(),
            partitions: settings.topic_partitions,
            replication: settings.replication_factor,
        })
        .collect();
    let cluster = match log.inspect(&specs).await {
        Ok(cluster) => cluster,
        Err(error) => {
            let advice = "check the brokers' logs and this user's permissions";
            let text = format!("{servers} answers, but a request failed: {error}");
            findings.add_problem(text, advice);
            return;
        }
    };
    let brokers = cluster.brokers.len();
    findings.add_ok(format!(
        "{brokers} broker(s) answer: {}",
        cluster.brokers.join(", ")
    ));
    let replication_factor = usize::try_from(settings.replication_factor).unwrap_or(1);
    if brokers < replication_factor {
        findings.add_problem(
            format!(
                "KAFKA_REPLICATION_FACTOR is {replication_factor}, but {brokers} broker(s) are up"
            ),
            "start the missing brokers, or lower it",
        );
    }
    for spec in &specs {
        match cluster.topics.iter().find(|topic| topic.name == spec.name) {
            Some(topic) => {
                let is_dead_letter = dead_letter_topics.contains(&spec.name);
                check_topic(topic, spec, is_dead_letter, findings);
            }
            None => findings.add_warning(
                format!("topic {} is missing", spec.name),
                format!(
                    "the first role that needs it creates it with {} partitions; if it lacks \
                    the permission, create it yourself",
                    spec.partitions
                ),
            ),
        }
    }
    for warning in &cluster.warnings {
        findings.add_sentence(Status::Problem, warning);
    }
    check_groups(&log, &cluster.topics, [&worker, &relay], findings).await;
}

/// Checks the consumer groups of worker and relay. A group is skipped if its topic does not exist.
async fn check_groups(
    log: &KafkaLog,
    topics: &[Topic],
    [worker, relay]: [&PipelineSettings; 2],
    findings: &mut Findings,
) {
    for (pipeline, role) in [(worker, "ai-worker"), (relay, "relay")] {
        if !topics.iter().any(|topic| topic.name == pipeline.topic) {
            continue;
        }
        match log.inspect_group(&pipeline.group, &pipeline.topic).await {
            Ok(group) => check_group(&group, &pipeline.group, role, findings),
            Err(error) => findings.add_warning(
                format!("group {} can't be inspected: {error}", pipeline.group),
                "allow this user to describe groups",
            ),
        }
    }
}

fn check_topic(topic: &Topic, spec: &TopicSpec, is_dead_letter: bool, findings: &mut Findings) {
    let Topic {
        name,
        partitions,
        replicas,
        leaderless,
        under_replicated,
    } = topic;
    let facts = format!("topic {name}: {partitions} partitions, {replicas} replica(s)");
    let configured_partitions = usize::try_from(spec.partitions).unwrap_or(1);
    if *leaderless > 0 {
        findings.add_problem(
            format!("{facts}; {leaderless} without a leader: nothing can be read or written there"),
            "restart the brokers that have them",
        );
    } else if *under_replicated > 0 {
        findings.add_warning(
            format!("{facts}; {under_replicated} have replicas that fell behind"),
            "check the brokers that are missing or slow",
        );
    } else if !is_dead_letter && *partitions < configured_partitions {
        findings.add_problem(
            format!(
                "{facts}, but KAFKA_TOPIC_PARTITIONS says {configured_partitions}: at most \
                {partitions} processes can share it"
            ),
            "add partitions with the gateways drained first (docs/operations.md, Adding \
             partitions), or set KAFKA_TOPIC_PARTITIONS to its number",
        );
    } else {
        findings.add_ok(facts);
    }
}

fn check_group(group: &Group, name: &str, role: &str, findings: &mut Findings) {
    let Group {
        state,
        members,
        lag,
    } = group;
    let state = state.as_deref().unwrap_or("unknown state");
    let facts = format!("group {name}: {members} member(s), {lag} behind ({state})");
    if *members == 0 && *lag > 0 {
        findings.add_problem(
            format!("{facts}: records wait, and the group has no members"),
            format!("start chatmesh {role}"),
        );
    } else if *members == 0 {
        findings.add_warning(
            format!("{facts}: the group has no members"),
            format!("start chatmesh {role}"),
        );
    } else if *lag > MAX_LAG_RECORDS {
        findings.add_warning(
            facts,
            format!(
                "add {role} processes, at most one per partition, or find out why they are slow"
            ),
        );
    } else {
        findings.add_ok(facts);
    }
}
