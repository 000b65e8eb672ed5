//! `chatmesh dlq` with a data directory, with a running all-in-one, and with Kafka.

use serde_json::Value;

use crate::support::classic::ClassicClient;
use crate::support::kafka_client::KafkaClient;
use crate::support::model::{Answer, ScriptedModel};
use crate::support::process::ProcessSpec;
use crate::support::stack::{MESSAGES, Stack};
use crate::support::v1::V1Client;
use crate::support::{TEST_TIMEOUT, http, kafka_address, redis_url, unique_name, wait_until};

const ADMIN_KEY: &str = "an-admin-key";

/// Runs `chatmesh dlq …`. Returns exit code, standard output and standard error.
fn dlq(env: &[(&str, &str)], args: &[&str]) -> (Option<i32>, String, String) {
    let mut spec = ProcessSpec::new(&[&["dlq"], args].concat());
    for (name, value) in env {
        spec = spec.env(name, value);
    }
    spec.run()
}

/// Like [`dlq`], but asserts success and returns the output.
fn dlq_ok(env: &[(&str, &str)], args: &[&str]) -> String {
    let (code, out, err) = dlq(env, args);
    assert_eq!(code, Some(0), "dlq {args:?}: {out}{err}");
    out
}

fn list(env: &[(&str, &str)], args: &[&str]) -> Vec<Value> {
    let out = dlq_ok(env, &[&["list", "--json"], args].concat());
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

fn address(dead_letter: &Value) -> &str {
    dead_letter["address"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_message_is_replayed_through_a_running_all_in_one_and_in_its_folder() {
    let model = ScriptedModel::start().await;
    let refused = || Answer::error(400, "invalid_request_error", "not this");
    for secret in ["secret one", "secret two", "secret three"] {
        model.queue_answer(secret, refused());
    }
    let spec = ProcessSpec::durable()
        .env("OPENAI_BASE_URL", &model.base_url())
        .env("OPENAI_TIMEOUT_MS", "10000")
        .env("ADMIN_KEY", ADMIN_KEY);
    let mut process = spec.start().await;
    let mut alice = V1Client::open(process.port(), "alice").await;
    assert_eq!(
        alice.send_and_wait("1", "secret one").await["type"],
        "error"
    );
    assert_eq!(
        alice.send_and_wait("2", "secret two").await["type"],
        "error"
    );
    assert_eq!(
        alice.send_and_wait("3", "secret three").await["type"],
        "error"
    );

    let url = process.url("/");
    let url_args = ["--url", url.as_str()];
    let key_env = [("ADMIN_KEY", ADMIN_KEY)];
    // The dead letter is written after the user has received the error.
    wait_until("three dead letters", TEST_TIMEOUT, || async {
        list(&key_env, &url_args).len() == 3
    })
    .await;
    let dead_letters = list(&key_env, &url_args);
    assert_eq!(dead_letters[0]["code"], "provider_rejected");
    assert_eq!(dead_letters[0]["userid"], "alice");
    let table = dlq_ok(&key_env, &[&["list"], &url_args[..]].concat());
    assert!(
        table.contains("provider_rejected") && !table.contains("secret"),
        "{table}"
    );
    let details = dlq_ok(
        &key_env,
        &[&["show", address(&dead_letters[0])], &url_args[..]].concat(),
    );
    assert!(details.contains("secret one"), "{details}");

    // Without the right admin key, the dead letters are not listed.
    let without_key = http::get(&process.url("/dead-letters")).await;
    assert_eq!(without_key.status, 401, "{}", without_key.body);
    let (code, _, err) = dlq(
        &[("ADMIN_KEY", "wrong")],
        &[&["list"], &url_args[..]].concat(),
    );
    assert_eq!(code, Some(1));
    assert!(err.contains("ADMIN_KEY") && !err.contains("wrong"), "{err}");

    // A dry run has no effect. A replay is answered as a new message.
    let filter_args = ["--all", "--code", "provider_rejected", "--limit", "1"];
    let preview = dlq_ok(
        &key_env,
        &[&["replay", "--dry-run"], &filter_args[..], &url_args[..]].concat(),
    );
    assert!(preview.contains("would replay 1"), "{preview}");
    assert_eq!(model.request_count_for("secret one"), 1);
    let (code, _, err) = dlq(
        &key_env,
        &[&["replay"], &filter_args[..], &url_args[..]].concat(),
    );
    assert_eq!(
        code,
        Some(1),
        "expected an error, because there is no terminal for a confirmation"
    );
    assert!(err.contains("--yes"), "{err}");
    dlq_ok(
        &key_env,
        &[&["replay", "--yes"], &filter_args[..], &url_args[..]].concat(),
    );
    let answer = alice.wait_for_type("response").await;
    assert_eq!(answer["content"], "echo: secret one");
    assert_ne!(answer["message_id"], dead_letters[0]["message_id"]);
    assert_eq!(answer.get("id"), None, "{answer}");
    let (code, out, _) = dlq(
        &key_env,
        &[&["replay", address(&dead_letters[0])], &url_args[..]].concat(),
    );
    assert_eq!(code, Some(1));
    assert!(out.contains("already settled"), "{out}");

    // The folder is in use, so the running process is queried at the address that it wrote there.
    // The process on the configured port is not queried, and the admin key is not needed.
    let folder = spec.dir().join("data");
    let folder_args = ["--data-dir", folder.to_str().unwrap()];
    let other_process = ProcessSpec::durable()
        .env("ADMIN_KEY", ADMIN_KEY)
        .start()
        .await;
    let port = other_process.port().to_string();
    let other_env = [("ADMIN_KEY", ADMIN_KEY), ("PORT", port.as_str())];
    assert_eq!(list(&other_env, &folder_args).len(), 2);
    assert_eq!(list(&[], &folder_args).len(), 2);
    let address_file = folder.join("chatmesh.running");
    let contents = std::fs::read_to_string(&address_file).unwrap();
    // The file names the port of another server, which refuses the key in the file.
    let stale = contents.replace(&process.port().to_string(), &port);
    std::fs::write(&address_file, stale).unwrap();
    let (code, _, err) = dlq(&other_env, &[&["list"], &folder_args[..]].concat());
    assert_eq!(code, Some(1));
    assert!(err.contains("in use") && err.contains("--url"), "{err}");
    std::fs::remove_file(&address_file).unwrap();
    let (code, _, err) = dlq(&other_env, &[&["list"], &folder_args[..]].concat());
    assert_eq!(code, Some(1));
    assert!(err.contains("in use") && err.contains("--url"), "{err}");
    std::fs::write(&address_file, contents).unwrap();

    // Topics other than dead-letter topics are refused.
    for source in [&url_args[..], &folder_args[..]] {
        for command in ["show", "drop", "replay"] {
            let (code, out, err) = dlq(
                &key_env,
                &[&[command, "incoming_messages/0/0"], source].concat(),
            );
            assert_eq!(code, Some(1), "{out}");
            assert!(
                err.contains("did you mean incoming_messages.dlq/0/0?"),
                "{err}"
            );
        }
    }

    // After the process has stopped, the folder is opened directly. The replay is answered after
    // the next start.
    process.drain().await;
    assert!(!address_file.exists());
    let lock_content = std::fs::read_to_string(folder.join("chatmesh.lock")).unwrap();
    assert_eq!(lock_content, "", "expected the pid to be removed");
    dlq_ok(
        &[],
        &[&["drop", address(&dead_letters[1])], &folder_args[..]].concat(),
    );
    let out = dlq_ok(
        &[],
        &[&["replay", address(&dead_letters[2])], &folder_args[..]].concat(),
    );
    assert!(out.contains("when all-in-one is started again"), "{out}");
    let out = dlq_ok(&[], &[&["list"], &folder_args[..]].concat());
    assert!(out.contains("no dead letters"), "{out}");
    let restarted = spec.start().await;
    alice.connect(restarted.port()).await;
    wait_until("the model call", TEST_TIMEOUT, || async {
        model.request_count_for("secret three") == 2
    })
    .await;
    let answer = alice.wait_for_type("response").await;
    assert_eq!(answer["content"], "echo: secret three");
    assert_eq!(model.request_count_for("secret two"), 1);
    let (code, _, err) = dlq(&[], &["list", "--data-dir", "nowhere"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("there is no data directory"), "{err}");
    let unrelated = spec.dir().join("some");
    std::fs::create_dir(&unrelated).unwrap();
    let (code, _, err) = dlq(&[], &["list", "--data-dir", unrelated.to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert!(err.contains("is not a data directory"), "{err}");
    assert_eq!(std::fs::read_dir(&unrelated).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_in_kafka_are_replayed_once_and_answered() {
    let stack = Stack::start().await;
    let gateway = stack.gateway("server_1").start().await;
    let _worker = stack.worker("worker_1").start().await;
    let _relay = stack.relay("relay_1").start().await;
    let mut bob = ClassicClient::open(gateway.port(), "bob").await;
    for n in 0..3 {
        let text = format!("refused {n}");
        stack
            .model
            .queue_answer(&text, Answer::error(400, "invalid_request_error", "no"));
        assert_eq!(bob.send_and_wait(&text).await["type"], "error");
    }
    let servers = stack.kafka.address();
    let env = [("KAFKA_BOOTSTRAP_SERVERS", servers.as_str())];
    // The dead letter is written after the user has received the error.
    wait_until("three dead letters", TEST_TIMEOUT, || async {
        list(&env, &[]).len() == 3
    })
    .await;
    let dead_letters = list(&env, &[]);
    dlq_ok(&env, &["drop", address(&dead_letters[0])]);
    let out = dlq_ok(&env, &["replay", "--all", "--yes", "--json"]);
    let settled: Vec<Value> = serde_json::from_str(&out).unwrap();
    assert_eq!(settled.len(), 2, "{out}");
    let mut answers = Vec::new();
    for _ in 0..2 {
        let frame = bob.next_frame().await;
        assert_eq!(frame["type"], "response", "{frame}");
        answers.push(frame["message_id"].clone());
    }
    for result in &settled {
        assert_eq!(result["result"], "replayed", "{result}");
        assert!(
            answers.contains(&result["message_id"]),
            "{result} {answers:?}"
        );
    }
    assert!(list(&env, &[]).is_empty());
    assert_eq!(stack.model.request_count(), 5);
    // The replayed record names the original message in a header and in its value.
    let records = stack.kafka_client().read(MESSAGES, 5, TEST_TIMEOUT).await;
    let replays: Vec<_> = records
        .iter()
        .filter(|record| !record.json()["replay_of"].is_null())
        .collect();
    assert_eq!(replays.len(), 2);
    for replay in replays {
        assert_eq!(
            replay.json()["replay_of"].as_str(),
            replay.headers.get("replay_of").map(String::as_str)
        );
        let is_known = dead_letters
            .iter()
            .any(|dead_letter| dead_letter["message_id"] == replay.json()["replay_of"]);
        assert!(is_known, "{}", replay.value);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_dead_letters_between_settlements_are_found_in_kafka() {
    let client = KafkaClient::new(&kafka_address());
    let topic = unique_name("dead-letters");
    let dead_letter_topic = format!("{topic}.dlq");
    client.create_topic(&topic, 3).await;
    client.create_topic(&dead_letter_topic, 3).await;
    for n in 0..60 {
        let (offset, user) = (n.to_string(), format!("user-{n}"));
        let headers = [
            ("message_id", user.as_str()),
            (
                "dlq.reason",
                if n % 2 == 0 {
                    "unreadable record: x"
                } else {
                    "provider_failed: y"
                },
            ),
            ("dlq.topic", &topic),
            ("dlq.partition", "0"),
            ("dlq.offset", &offset),
            ("dlq.timestamp", "1"),
        ];
        client
            .produce(&dead_letter_topic, Some(&user), "{not JSON", &headers)
            .await;
    }
    let (servers, redis) = (kafka_address(), redis_url());
    let env = [
        ("KAFKA_BOOTSTRAP_SERVERS", servers.as_str()),
        ("REDIS_URL", redis.as_str()),
        ("MESSAGES_TOPIC", topic.as_str()),
        ("RESPONSES_TOPIC", "unused-here"),
    ];
    assert_eq!(list(&env, &[]).len(), 60);
    assert_eq!(list(&env, &["--code", "unreadable"]).len(), 30);
    assert_eq!(list(&env, &["--limit", "7"]).len(), 7);
    assert!(list(&env, &["--since", "2100-01-01T00:00:00Z"]).is_empty());
    assert_eq!(list(&env, &["--since", "1h"]).len(), 60);
    dlq_ok(&env, &["drop", "--all", "--yes", "--code", "unreadable"]);
    assert_eq!(list(&env, &[]).len(), 30);
    // Unreadable records are replayed unchanged.
    dlq_ok(&env, &["replay", "--all", "--yes", "--limit", "25"]);
    assert_eq!(list(&env, &[]).len(), 5);
    let replayed = client.read(&topic, 25, TEST_TIMEOUT).await;
    assert_eq!(replayed.len(), 25);
    assert!(
        replayed
            .iter()
            .all(|record| record.value == "{not JSON" && record.headers.contains_key("replay_of"))
    );
    let (code, _, err) = dlq(&[("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9")], &["list"]);
    assert_eq!(code, Some(1));
    assert!(
        err.contains("127.0.0.1:9") && err.contains("--data-dir"),
        "{err}"
    );
    let (code, _, err) = dlq(&[], &["show", "nonsense"]);
    assert_eq!(code, Some(2), "{err}");
}
