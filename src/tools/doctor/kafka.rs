//! Kafka: brokers, topics, groups.

use super::report::{Findings, Status};
use crate::config::Config;
use crate::log::kafka::KafkaLog;
use crate::log::kafka::inspect::{Group, Topic};
use crate::log::{Log as _, TopicSpec};

/// As the alert ChatmeshConsumerLag has it.
const MUCH_LAG: i64 = 500;

pub(super) async fn look(config: &Config, findings: &mut Findings) {
    let settings = config.kafka();
    let servers = &settings.bootstrap_servers;
    let log = match KafkaLog::connect(&settings) {
        Ok(log) => log,
        Err(error) => {
            findings.problem(error.to_string(), "correct KAFKA_PROPERTIES");
            return;
        }
    };
    if let Err(error) = log.check().await {
        findings.problem(
            format!("{servers}: {error}"),
            "start it, or correct KAFKA_BOOTSTRAP_SERVERS; the addresses that the brokers \
             advertise must be reachable from here too",
        );
        return;
    }
    let worker = config.worker().pipeline;
    let relay = config.relay().pipeline;
    let dead = config.dead_letter_topics();
    let names = [&worker.topic, &relay.topic, &dead[0], &dead[1]];
    let specs: Vec<TopicSpec> = names
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
            let advice = "look at the brokers' logs, and at what this user is allowed to see";
            findings.problem(format!("{servers} answers, but not all: {error}"), advice);
            return;
        }
    };
    let brokers = cluster.brokers.len();
    findings.ok(format!(
        "{brokers} broker(s) answer: {}",
        cluster.brokers.join(", ")
    ));
    let wanted = usize::try_from(settings.replication_factor).unwrap_or(1);
    if brokers < wanted {
        findings.problem(
            format!("KAFKA_REPLICATION_FACTOR is {wanted}, and {brokers} broker(s) are up"),
            "start the missing brokers, or lower it",
        );
    }
    for spec in &specs {
        match cluster.topics.iter().find(|topic| topic.name == spec.name) {
            Some(topic) => judge_topic(topic, spec, dead.contains(&spec.name), findings),
            None => findings.warning(
                format!("topic {} is missing", spec.name),
                format!(
                    "the first role that needs it makes it, with {} partitions; where it may \
                    not, make it by hand",
                    spec.partitions
                ),
            ),
        }
    }
    for warning in &cluster.warnings {
        findings.sentence(Status::Problem, warning);
    }
    for (pipeline, role) in [(&worker, "ai-worker"), (&relay, "relay")] {
        if !cluster
            .topics
            .iter()
            .any(|topic| topic.name == pipeline.topic)
        {
            continue;
        }
        match log.inspect_group(&pipeline.group, &pipeline.topic).await {
            Ok(group) => judge_group(&group, &pipeline.group, role, findings),
            Err(error) => findings.warning(
                format!("group {} can't be looked at: {error}", pipeline.group),
                "allow this user to describe groups",
            ),
        }
    }
}

fn judge_topic(topic: &Topic, spec: &TopicSpec, dead: bool, findings: &mut Findings) {
    let Topic {
        name,
        partitions,
        replicas,
        leaderless,
        under_replicated: behind,
    } = topic;
    let facts = format!("topic {name}: {partitions} partitions, {replicas} replica(s)");
    let wanted = usize::try_from(spec.partitions).unwrap_or(1);
    if *leaderless > 0 {
        findings.problem(
            format!("{facts}; {leaderless} without a leader: nothing can be read or written there"),
            "bring back the brokers that hold them",
        );
    } else if *behind > 0 {
        findings.warning(
            format!("{facts}; {behind} have replicas that fell behind"),
            "look at the brokers that are missing or slow",
        );
    } else if !dead && *partitions < wanted {
        findings.problem(
            format!(
                "{facts}, and KAFKA_TOPIC_PARTITIONS says {wanted}: no more than {partitions} \
                processes can share it"
            ),
            "add partitions with the gateways drained first (docs/operations.md, Adding \
             partitions), or set KAFKA_TOPIC_PARTITIONS to what it has",
        );
    } else {
        findings.ok(facts);
    }
}

fn judge_group(group: &Group, name: &str, role: &str, findings: &mut Findings) {
    let Group {
        state,
        members,
        lag,
    } = group;
    let state = state.as_deref().unwrap_or("not known");
    let facts = format!("group {name}: {members} member(s), {lag} behind ({state})");
    if *members == 0 && *lag > 0 {
        findings.problem(
            format!("{facts}: records wait and nobody reads them"),
            format!("start chatmesh {role}"),
        );
    } else if *members == 0 {
        findings.warning(
            format!("{facts}: nobody reads"),
            format!("start chatmesh {role}"),
        );
    } else if *lag > MUCH_LAG {
        findings.warning(
            facts,
            format!("add {role} processes, at most one a partition, or see why they are slow"),
        );
    } else {
        findings.ok(facts);
    }
}
