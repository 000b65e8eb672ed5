//! `chatmesh doctor` where all is well, and where one thing is not.

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

/// A deployment on the shared services, with topics of its own that are as they should be.
async fn deployment() -> (ProcessSpec, String) {
    let topic = unique_name("doctor");
    let plain = KafkaClient::new(&kafka_address());
    for name in [
        topic.clone(),
        format!("{topic}-out"),
        format!("{topic}.dlq"),
        format!("{topic}-out.dlq"),
    ] {
        plain.create_topic(&name, 2).await;
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

struct Seen {
    code: Option<i32>,
    checks: Vec<Value>,
    out: String,
}

fn examine(spec: &ProcessSpec) -> Seen {
    let (code, out, err) = spec.run();
    for secret in SECRETS {
        assert!(!out.contains(secret) && !err.contains(secret), "{out}{err}");
    }
    let report: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
    Seen {
        code,
        checks: report["checks"].as_array().unwrap().clone(),
        out,
    }
}

impl Seen {
    fn has(&self, area: &str, status: &str, text: &str) -> &Self {
        let found = self.checks.iter().any(|check| {
            check["area"] == area
                && check["status"] == status
                && check.to_string().contains(text)
                && (status == "ok" || status == "skipped" || check["advice"].is_string())
        });
        assert!(found, "no {status} of {area} with {text:?}: {}", self.out);
        self
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_deployment_has_no_problems_on_one_redis_a_cluster_and_sentinel() {
    let model = ScriptedModel::start().await;
    let (spec, _) = deployment().await;
    let spec = spec.env("OPENAI_BASE_URL", &model.base_url());
    // Timestamps of the tests' plain topics are the senders': that is told, and the only problem.
    let seen = examine(&spec);
    seen.has("configuration", "ok", "gateway")
        .has("kafka", "ok", "broker(s) answer")
        .has("kafka", "problem", "message.timestamp.type")
        .has("kafka", "warning", "ai-consumer-group")
        .has("redis", "ok", "version")
        .has("redis", "ok", "clock")
        .has("model", "ok", "first token after");
    assert_eq!(model.request_count(), 1);
    for url in [redis_cluster_url(), redis_sentinel_url()] {
        let seen = examine(&spec.clone().env("REDIS_URL", &url).arg("--no-model"));
        seen.has("redis", "ok", "answers")
            .has("redis", "ok", "version")
            .has("model", "skipped", "");
        assert!(
            !seen
                .checks
                .iter()
                .any(|c| c["area"] == "redis" && c["status"] == "problem")
        );
    }
    assert_eq!(model.request_count(), 1, "--no-model costs nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_of_the_roles_own_making_are_fine_and_missing_or_small_ones_are_told() {
    let (spec, topic) = deployment().await;
    let spec = spec.arg("--no-model");
    let small = examine(&spec.clone().env("KAFKA_TOPIC_PARTITIONS", "12"));
    small.has("kafka", "problem", "KAFKA_TOPIC_PARTITIONS says 12");
    assert_eq!(small.code, Some(1));
    let missing = examine(&spec.clone().env("MESSAGES_TOPIC", &unique_name("missing")));
    missing.has("kafka", "warning", "is missing");
    let replicas = examine(&spec.clone().env("KAFKA_REPLICATION_FACTOR", "3"));
    replicas
        .has("kafka", "problem", "KAFKA_REPLICATION_FACTOR is 3")
        .has("kafka", "problem", &topic);

    // A group without members, first without and then with records that wait.
    let plain = KafkaClient::new(&kafka_address());
    let group = examine(&spec);
    group.has("kafka", "warning", "the group has no members");
    plain.produce(&topic, Some("a"), "{}", &[]).await;
    examine(&spec).has(
        "kafka",
        "problem",
        "records wait, and the group has no members",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_answer_is_named_in_bounded_time_without_secrets() {
    let nowhere = format!("127.0.0.1:{}", free_port());
    let spec = ProcessSpec::new(&["doctor", "--json"])
        .env("KAFKA_BOOTSTRAP_SERVERS", &nowhere)
        .env("KAFKA_PROPERTIES", &format!("client.rack={}", SECRETS[2]))
        .env("REDIS_URL", &format!("redis://:{}@{nowhere}", SECRETS[1]))
        .env("OPENAI_API_KEY", SECRETS[0])
        .env("OPENAI_BASE_URL", &format!("http://{nowhere}/v1"));
    let began = std::time::Instant::now();
    let seen = examine(&spec);
    assert!(began.elapsed().as_secs() < 30, "{:?}", began.elapsed());
    assert_eq!(seen.code, Some(1));
    seen.has("kafka", "problem", &nowhere)
        .has("kafka", "problem", "KAFKA_BOOTSTRAP_SERVERS")
        .has("redis", "problem", &nowhere)
        .has("redis", "problem", "REDIS_URL")
        .has("model", "problem", "OPENAI_BASE_URL");
    // One role, and only what it needs.
    let relay = examine(&spec.clone().arg("relay"));
    assert!(
        !relay.checks.iter().any(|check| check["area"] == "model"),
        "{}",
        relay.out
    );

    let bad = examine(&spec.clone().env("MAX_WORKERS", "many"));
    assert_eq!(bad.code, Some(2));
    bad.has("configuration", "problem", "max_workers");
    let bad = examine(&spec.env(
        "REDIS_URL",
        &format!("redis://:{}@host:notaport", SECRETS[1]),
    ));
    assert_eq!(bad.code, Some(2));
    bad.has("configuration", "problem", "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_would_lose_data_is_told_from_one_that_only_might() {
    let redis = PrivateRedis::start().await;
    let (spec, _) = deployment().await;
    let spec = spec.arg("--no-model").env("REDIS_URL", &redis.url());
    examine(&spec).has("redis", "ok", "noeviction");
    let set = |name: &str, value: &str| redis.expect_ok(&format!("CONFIG SET {name} {value}"));
    set("maxmemory-policy", "allkeys-lru");
    set("appendonly", "no");
    examine(&spec)
        .has("redis", "warning", "maxmemory-policy is allkeys-lru")
        .has("redis", "warning", "appendonly");
    set("maxmemory", "200mb");
    let seen = examine(&spec);
    seen.has("redis", "problem", "set maxmemory-policy to noeviction");
    assert_eq!(seen.code, Some(1));
    set("requirepass", SECRETS[1]);
    for url in [
        redis.url(),
        redis.url().replace("redis://", "redis://:not-it@"),
    ] {
        let seen = examine(&spec.clone().env("REDIS_URL", &url));
        seen.has("redis", "problem", "refuses the login").has(
            "redis",
            "problem",
            "correct the password in REDIS_URL",
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_refuses_says_which_setting_to_correct() {
    let model = ScriptedModel::start().await;
    let spec = ProcessSpec::new(&["doctor", "--json", "all-in-one"])
        .env("OPENAI_BASE_URL", &model.base_url())
        .env("OPENAI_API_KEY", SECRETS[0])
        .env("OPENAI_TIMEOUT_MS", "1500");
    let say = "Say the word ready.";
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
        model.queue_answer(say, answer);
        let seen = examine(&spec);
        assert_eq!(seen.code, Some(1));
        seen.has("model", "problem", setting);
    }
    let seen = examine(&spec.clone().env("OPENAI_TIMEOUT_MS", "10000"));
    assert_eq!(seen.code, Some(0), "{}", seen.out);
    seen.has("model", "ok", "first token after")
        .has("data", "ok", "does not exist yet");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_is_looked_at_without_being_touched() {
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
    let seen = examine(&doctor(&folder));
    seen.has("data", "ok", "does not exist yet");
    assert!(!folder.exists());
    let mut process = spec.start().await;
    examine(&doctor(&folder)).has("data", "ok", "in use by a running chatmesh (pid ");
    process.drain().await;
    examine(&doctor(&folder)).has("data", "ok", "no process uses it");
    let full = doctor(&folder).env("MIN_FREE_DISK", &(1_u64 << 60).to_string());
    let seen = examine(&full);
    assert_eq!(seen.code, Some(1));
    seen.has("data", "problem", "MIN_FREE_DISK");
    let open = Command::new("chmod")
        .arg("755")
        .arg(&folder)
        .status()
        .unwrap();
    assert!(open.success());
    examine(&doctor(&folder)).has("data", "warning", "chmod 700");
    std::fs::write(folder.join("chatmesh.format"), "chatmesh 99\n").unwrap();
    examine(&doctor(&folder)).has("data", "problem", "format 99");
    // For people it is text.
    let (code, out, _) = ProcessSpec::new(&["doctor", "--no-model"]).run();
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("checked: all-in-one"), "{out}");
}
