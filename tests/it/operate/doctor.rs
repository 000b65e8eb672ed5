//! `chatmesh doctor` on working deployments, and on deployments with one problem each.

use std::process::Command;

use serde_json::Value;

use crate::support::kafka_client::KafkaClient;
use crate::support::model::{Answer, ScriptedModel};
use crate::support::process::{ProcessSpec, free_port};
use crate::support::redis::PrivateRedis;
use crate::support::{
    kafka_address, redis_cluster_url, redis_sentinel_url, redis_url, unique_name,
};

const SECRETS: [&str; 3] = ["sk-secret-key", "redis-secret", "kafka-secret"];

/// Creates topics on the shared services. Returns a doctor for a deployment with these topics, and
/// the name of the messages topic.
async fn create_deployment() -> (ProcessSpec, String) {
    let topic = unique_name("doctor");
    let kafka = KafkaClient::new(&kafka_address());
    for name in [
        topic.clone(),
        format!("{topic}-out"),
        format!("{topic}.dlq"),
        format!("{topic}-out.dlq"),
    ] {
        kafka.create_topic(&name, 2).await;
    }
    let spec = ProcessSpec::new(&["doctor", "--json"])
        .env("KAFKA_BOOTSTRAP_SERVERS", &kafka_address())
        .env("KAFKA_TOPIC_PARTITIONS", "2")
        .env("MESSAGES_TOPIC", &topic)
        .env("RESPONSES_TOPIC", &format!("{topic}-out"))
        .env("REDIS_URL", &redis_url())
        .env("OPENAI_TIMEOUT_MS", "10000")
        .env("OPENAI_API_KEY", SECRETS[0]);
    (spec, topic)
}

/// The result of a doctor: its exit code, its checks, and its standard output.
struct DoctorReport {
    code: Option<i32>,
    checks: Vec<Value>,
    output: String,
}

/// Runs a doctor. Asserts that its output contains no secret.
fn run_doctor(spec: &ProcessSpec) -> DoctorReport {
    let (code, out, err) = spec.run();
    for secret in SECRETS {
        assert!(!out.contains(secret) && !err.contains(secret), "{out}{err}");
    }
    let json: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
    DoctorReport {
        code,
        checks: json["checks"].as_array().unwrap().clone(),
        output: out,
    }
}

impl DoctorReport {
    /// Asserts that a check of the area has this status and text, and advice unless it succeeded.
    fn assert_check(&self, area: &str, status: &str, text: &str) -> &Self {
        let is_found = self.checks.iter().any(|check| {
            check["area"] == area
                && check["status"] == status
                && check.to_string().contains(text)
                && (status == "ok" || status == "skipped" || check["advice"].is_string())
        });
        assert!(
            is_found,
            "expected the status {status} of {area} with {text:?}: {}",
            self.output
        );
        self
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_deployment_has_no_problems_on_one_redis_a_cluster_and_sentinel() {
    let model = ScriptedModel::start().await;
    let (spec, _) = create_deployment().await;
    let spec = spec.env("OPENAI_BASE_URL", &model.base_url());
    // The topics of this test keep the timestamps of their senders, which is reported.
    let report = run_doctor(&spec);
    report
        .assert_check("configuration", "ok", "gateway")
        .assert_check("kafka", "ok", "broker(s) answer")
        .assert_check("kafka", "problem", "message.timestamp.type")
        .assert_check("kafka", "warning", "ai-consumer-group")
        .assert_check("redis", "ok", "version")
        .assert_check("redis", "ok", "clock")
        .assert_check("model", "ok", "first token after");
    assert_eq!(model.request_count(), 1);
    for url in [redis_cluster_url(), redis_sentinel_url()] {
        let report = run_doctor(&spec.clone().env("REDIS_URL", &url).arg("--no-model"));
        report
            .assert_check("redis", "ok", "answers")
            .assert_check("redis", "ok", "version")
            .assert_check("model", "skipped", "");
        assert!(
            !report
                .checks
                .iter()
                .any(|check| check["area"] == "redis" && check["status"] == "problem")
        );
    }
    assert_eq!(
        model.request_count(),
        1,
        "expected no model call with --no-model"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_or_wrong_topics_and_groups_without_members_are_reported() {
    let (spec, topic) = create_deployment().await;
    let spec = spec.arg("--no-model");
    let small = run_doctor(&spec.clone().env("KAFKA_TOPIC_PARTITIONS", "12"));
    small.assert_check("kafka", "problem", "KAFKA_TOPIC_PARTITIONS says 12");
    assert_eq!(small.code, Some(1));
    let missing = run_doctor(&spec.clone().env("MESSAGES_TOPIC", &unique_name("missing")));
    missing.assert_check("kafka", "warning", "is missing");
    let replicas = run_doctor(&spec.clone().env("KAFKA_REPLICATION_FACTOR", "3"));
    replicas
        .assert_check("kafka", "problem", "KAFKA_REPLICATION_FACTOR is 3")
        .assert_check("kafka", "problem", &topic);

    // The group has no members. At first no record waits for the group, then one does.
    let kafka = KafkaClient::new(&kafka_address());
    let idle_group = run_doctor(&spec);
    idle_group.assert_check("kafka", "warning", "the group has no members");
    kafka.produce(&topic, Some("a"), "{}", &[]).await;
    run_doctor(&spec).assert_check(
        "kafka",
        "problem",
        "records wait, and the group has no members",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreachable_dependencies_are_named_in_bounded_time_without_secrets() {
    let unused_address = format!("127.0.0.1:{}", free_port());
    let spec = ProcessSpec::new(&["doctor", "--json"])
        .env("KAFKA_BOOTSTRAP_SERVERS", &unused_address)
        .env("KAFKA_PROPERTIES", &format!("client.rack={}", SECRETS[2]))
        .env(
            "REDIS_URL",
            &format!("redis://:{}@{unused_address}", SECRETS[1]),
        )
        .env("OPENAI_API_KEY", SECRETS[0])
        .env("OPENAI_BASE_URL", &format!("http://{unused_address}/v1"));
    let started = std::time::Instant::now();
    let report = run_doctor(&spec);
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
    assert_eq!(report.code, Some(1));
    report
        .assert_check("kafka", "problem", &unused_address)
        .assert_check("kafka", "problem", "KAFKA_BOOTSTRAP_SERVERS")
        .assert_check("redis", "problem", &unused_address)
        .assert_check("redis", "problem", "REDIS_URL")
        .assert_check("model", "problem", "OPENAI_BASE_URL");
    // The doctor of one role checks only the dependencies of this role.
    let relay = run_doctor(&spec.clone().arg("relay"));
    assert!(
        !relay.checks.iter().any(|check| check["area"] == "model"),
        "{}",
        relay.output
    );

    let invalid = run_doctor(&spec.clone().env("MAX_WORKERS", "many"));
    assert_eq!(invalid.code, Some(2));
    invalid.assert_check("configuration", "problem", "max_workers");
    let invalid = run_doctor(&spec.env(
        "REDIS_URL",
        &format!("redis://:{}@host:notaport", SECRETS[1]),
    ));
    assert_eq!(invalid.code, Some(2));
    invalid.assert_check("configuration", "problem", "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_that_loses_data_is_a_problem_and_one_that_may_lose_data_a_warning() {
    let redis = PrivateRedis::start().await;
    let (spec, _) = create_deployment().await;
    let spec = spec.arg("--no-model").env("REDIS_URL", &redis.url());
    run_doctor(&spec).assert_check("redis", "ok", "noeviction");
    let set_config =
        |name: &str, value: &str| redis.expect_ok(&format!("CONFIG SET {name} {value}"));
    set_config("maxmemory-policy", "allkeys-lru");
    set_config("appendonly", "no");
    run_doctor(&spec)
        .assert_check("redis", "warning", "maxmemory-policy is allkeys-lru")
        .assert_check("redis", "warning", "appendonly");
    set_config("maxmemory", "200mb");
    let report = run_doctor(&spec);
    report.assert_check("redis", "problem", "set maxmemory-policy to noeviction");
    assert_eq!(report.code, Some(1));
    set_config("requirepass", SECRETS[1]);
    for url in [
        redis.url(),
        redis.url().replace("redis://", "redis://:not-it@"),
    ] {
        let report = run_doctor(&spec.clone().env("REDIS_URL", &url));
        report
            .assert_check("redis", "problem", "refuses the login")
            .assert_check("redis", "problem", "correct the password in REDIS_URL");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_model_is_reported_with_the_setting_to_correct() {
    let model = ScriptedModel::start().await;
    let spec = ProcessSpec::new(&["doctor", "--json", "all-in-one"])
        .env("OPENAI_BASE_URL", &model.base_url())
        .env("OPENAI_API_KEY", SECRETS[0])
        .env("OPENAI_TIMEOUT_MS", "1500");
    let prompt = "Say the word ready.";
    for (answer, setting) in [
        (
            Answer::error(
                401,
                "invalid_api_key",
                "Incorrect API key provided: sk-secret-key",
            ),
            "OPENAI_API_KEY",
        ),
        (
            Answer::error(404, "model_not_found", "no such model"),
            "OPENAI_MODEL",
        ),
        (Answer::out_of_quota(), "quota"),
        (Answer::Hang, "OPENAI_TIMEOUT_MS"),
    ] {
        model.queue_answer(prompt, answer);
        let report = run_doctor(&spec);
        assert_eq!(report.code, Some(1));
        report.assert_check("model", "problem", setting);
    }
    let report = run_doctor(&spec.clone().env("OPENAI_TIMEOUT_MS", "10000"));
    assert_eq!(report.code, Some(0), "{}", report.output);
    report
        .assert_check("model", "ok", "first token after")
        .assert_check("data", "ok", "does not exist yet");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_directory_is_examined_without_being_changed() {
    let spec = ProcessSpec::durable();
    let folder = spec.dir().join("data");
    let doctor = |folder: &std::path::Path| {
        let folder = folder.to_str().unwrap();
        ProcessSpec::new(&[
            "doctor",
            "--json",
            "--no-model",
            "all-in-one",
            "--data-dir",
            folder,
        ])
    };
    let report = run_doctor(&doctor(&folder));
    report.assert_check("data", "ok", "does not exist yet");
    assert!(!folder.exists());
    let mut process = spec.start().await;
    run_doctor(&doctor(&folder)).assert_check("data", "ok", "in use by a running chatmesh (pid ");
    process.drain().await;
    run_doctor(&doctor(&folder)).assert_check("data", "ok", "no process uses it");
    let full = doctor(&folder).env("MIN_FREE_DISK", &(1_u64 << 60).to_string());
    let report = run_doctor(&full);
    assert_eq!(report.code, Some(1));
    report.assert_check("data", "problem", "MIN_FREE_DISK");
    let status = Command::new("chmod")
        .arg("755")
        .arg(&folder)
        .status()
        .unwrap();
    assert!(status.success());
    run_doctor(&doctor(&folder)).assert_check("data", "warning", "chmod 700");
    std::fs::write(folder.join("chatmesh.format"), "chatmesh 99\n").unwrap();
    run_doctor(&doctor(&folder)).assert_check("data", "problem", "format 99");
    // Without `--json`, the report is text.
    let (code, out, _) = ProcessSpec::new(&["doctor", "--no-model"]).run();
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("checked: all-in-one"), "{out}");
}
