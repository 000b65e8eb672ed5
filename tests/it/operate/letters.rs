//! `chatmesh dlq` on a data directory, on a running all-in-one, and on Kafka.

use serde_json::Value;

use crate::support::classic::ClassicClient;
use crate::support::kafka_client::KafkaClient;
use crate::support::model::{Answer, ScriptedModel};
use crate::support::process::ProcessSpec;
use crate::support::stack::{MESSAGES, Stack};
use crate::support::v1::V1Client;
use crate::support::{TEST_TIMEOUT, http, kafka_address, redis_url, unique_name, wait_until};

const KEY: &str = "an-admin-key";

/// Runs `chatmesh dlq …` as an operator would: exit code, output, errors.
fn dlq(env: &[(&str, &str)], args: &[&str]) -> (Option<i32>, String, String) {
    let mut spec = ProcessSpec::new(&[&["dlq"], args].concat());
    for (name, value) in env {
        spec = spec.env(name, value);
    }
    spec.run()
}

/// As [`dlq`], which must go well.
fn done(env: &[(&str, &str)], args: &[&str]) -> String {
    let (code, out, err) = dlq(env, args);
    assert_eq!(code, Some(0), "dlq {args:?}: {out}{err}");
    out
}

fn listed(env: &[(&str, &str)], args: &[&str]) -> Vec<Value> {
    let out = done(env, &[&["list", "--json"], args].concat());
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

fn address(letter: &Value) -> &str {
    letter["address"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_message_is_replayed_while_all_in_one_runs_and_after_it_was_stopped() {
    let model = ScriptedModel::start().await;
    let refused = || Answer::error(400, "invalid_request_error", "not this");
    for secret in ["secret one", "secret two", "secret three"] {
        model.queue_answer(secret, refused());
    }
    let spec = ProcessSpec::durable()
        .env("OPENAI_BASE_URL", &model.base_url())
        .env("OPENAI_TIMEOUT_MS", "10000")
        .env("ADMIN_KEY", KEY);
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
    let running = ["--url", url.as_str()];
    let key = [("ADMIN_KEY", KEY)];
    // The user is told first, and then the letter is written.
    wait_until("three letters", TEST_TIMEOUT, || async {
        listed(&key, &running).len() == 3
    })
    .await;
    let letters = listed(&key, &running);
    assert_eq!(letters[0]["code"], "provider_rejected");
    assert_eq!(letters[0]["userid"], "alice");
    let table = done(&key, &[&["list"], &running[..]].concat());
    assert!(
        table.contains("provider_rejected") && !table.contains("secret"),
        "{table}"
    );
    let shown = done(
        &key,
        &[&["show", address(&letters[0])], &running[..]].concat(),
    );
    assert!(shown.contains("secret one"), "{shown}");

    // Nobody without the key, and nothing to be had without an all-in-one.
    let bare = http::get(&process.url("/dead-letters")).await;
    assert_eq!(bare.status, 401, "{}", bare.body);
    let (code, _, err) = dlq(
        &[("ADMIN_KEY", "wrong")],
        &[&["list"], &running[..]].concat(),
    );
    assert_eq!(code, Some(1));
    assert!(err.contains("ADMIN_KEY") && !err.contains("wrong"), "{err}");

    // A dry run does nothing; a replay is answered, as a message of its own.
    let all = ["--all", "--code", "provider_rejected", "--limit", "1"];
    let would = done(
        &key,
        &[&["replay", "--dry-run"], &all[..], &running[..]].concat(),
    );
    assert!(would.contains("would replay 1"), "{would}");
    assert_eq!(model.request_count_for("secret one"), 1);
    let (code, _, err) = dlq(&key, &[&["replay"], &all[..], &running[..]].concat());
    assert_eq!(code, Some(1), "nobody can be asked here");
    assert!(err.contains("--yes"), "{err}");
    done(
        &key,
        &[&["replay", "--yes"], &all[..], &running[..]].concat(),
    );
    let answer = alice.wait_for_type("response").await;
    assert_eq!(answer["content"], "echo: secret one");
    assert_ne!(answer["message_id"], letters[0]["message_id"]);
    assert_eq!(answer.get("id"), None, "{answer}");
    let (code, out, _) = dlq(
        &key,
        &[&["replay", address(&letters[0])], &running[..]].concat(),
    );
    assert_eq!(code, Some(1));
    assert!(out.contains("settled already"), "{out}");

    // Its folder is held: it is asked itself, by what it says in the folder. Whoever listens on
    // the configured port is asked nothing, and the admin key is not even needed.
    let folder = spec.dir().join("data");
    let here = ["--data-dir", folder.to_str().unwrap()];
    let other = ProcessSpec::durable().env("ADMIN_KEY", KEY).start().await;
    let port = other.port().to_string();
    let beside = [("ADMIN_KEY", KEY), ("PORT", port.as_str())];
    assert_eq!(listed(&beside, &here).len(), 2);
    assert_eq!(listed(&[], &here).len(), 2);
    let said = folder.join("chatmesh.running");
    let kept = std::fs::read_to_string(&said).unwrap();
    // Another server does not take the key that stands there.
    let stale = kept.replace(&process.port().to_string(), &port);
    std::fs::write(&said, stale).unwrap();
    let (code, _, err) = dlq(&beside, &[&["list"], &here[..]].concat());
    assert_eq!(code, Some(1));
    assert!(err.contains("in use") && err.contains("--url"), "{err}");
    std::fs::remove_file(&said).unwrap();
    let (code, _, err) = dlq(&beside, &[&["list"], &here[..]].concat());
    assert_eq!(code, Some(1));
    assert!(err.contains("in use") && err.contains("--url"), "{err}");
    std::fs::write(&said, kept).unwrap();

    // Other topics than those of dead letters are no business of these commands.
    for how in [&running[..], &here[..]] {
        for command in ["show", "drop", "replay"] {
            let (code, out, err) = dlq(&key, &[&[command, "incoming_messages/0/0"], how].concat());
            assert_eq!(code, Some(1), "{out}");
            assert!(err.contains("incoming_messages.dlq/0/0 may be"), "{err}");
        }
    }

    // Stopped, the folder itself is worked on; the answer comes after the start.
    process.drain().await;
    assert!(!said.exists());
    let lock = std::fs::read_to_string(folder.join("chatmesh.lock")).unwrap();
    assert_eq!(lock, "", "no pid of a process that has ended");
    done(&[], &[&["drop", address(&letters[1])], &here[..]].concat());
    let out = done(
        &[],
        &[&["replay", address(&letters[2])], &here[..]].concat(),
    );
    assert!(out.contains("when all-in-one is started again"), "{out}");
    let out = done(&[], &[&["list"], &here[..]].concat());
    assert!(out.contains("no dead letters"), "{out}");
    let again = spec.start().await;
    alice.connect(again.port()).await;
    wait_until("the model is asked", TEST_TIMEOUT, || async {
        model.request_count_for("secret three") == 2
    })
    .await;
    let answer = alice.wait_for_type("response").await;
    assert_eq!(answer["content"], "echo: secret three");
    assert_eq!(model.request_count_for("secret two"), 1);
    let (code, _, err) = dlq(&[], &["list", "--data-dir", "nowhere"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("there is no data directory"), "{err}");
    let some = spec.dir().join("some");
    std::fs::create_dir(&some).unwrap();
    let (code, _, err) = dlq(&[], &["list", "--data-dir", some.to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert!(err.contains("is no data directory"), "{err}");
    assert_eq!(std::fs::read_dir(&some).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_in_kafka_are_replayed_once_and_answered() {
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
    // The letter is written after the error was told.
    wait_until("three letters", TEST_TIMEOUT, || async {
        listed(&env, &[]).len() == 3
    })
    .await;
    let letters = listed(&env, &[]);
    done(&env, &["drop", address(&letters[0])]);
    let out = done(&env, &["replay", "--all", "--yes", "--json"]);
    let settled: Vec<Value> = serde_json::from_str(&out).unwrap();
    assert_eq!(settled.len(), 2, "{out}");
    let mut answers = Vec::new();
    for _ in 0..2 {
        let frame = bob.next_frame().await;
        assert_eq!(frame["type"], "response", "{frame}");
        answers.push(frame["message_id"].clone());
    }
    for one in &settled {
        assert_eq!(one["result"], "replayed", "{one}");
        assert!(answers.contains(&one["message_id"]), "{one} {answers:?}");
    }
    assert!(listed(&env, &[]).is_empty());
    assert_eq!(stack.model.request_count(), 5);
    // The record names the old message in its header and its value.
    let records = stack.kafka_client().read(MESSAGES, 5, TEST_TIMEOUT).await;
    let replays: Vec<_> = records
        .iter()
        .filter(|r| !r.json()["replay_of"].is_null())
        .collect();
    assert_eq!(replays.len(), 2);
    for replay in replays {
        assert_eq!(
            replay.json()["replay_of"].as_str(),
            replay.headers.get("replay_of").map(String::as_str)
        );
        let old = &letters
            .iter()
            .any(|l| l["message_id"] == replay.json()["replay_of"]);
        assert!(old, "{}", replay.value);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_letters_with_other_records_between_them_are_all_found_in_kafka() {
    let plain = KafkaClient::new(&kafka_address());
    let topic = unique_name("letters");
    let dead = format!("{topic}.dlq");
    plain.create_topic(&topic, 3).await;
    plain.create_topic(&dead, 3).await;
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
        plain
            .produce(&dead, Some(&user), "{not JSON", &headers)
            .await;
    }
    let (servers, redis) = (kafka_address(), redis_url());
    let env = [
        ("KAFKA_BOOTSTRAP_SERVERS", servers.as_str()),
        ("REDIS_URL", redis.as_str()),
        ("MESSAGES_TOPIC", topic.as_str()),
        ("RESPONSES_TOPIC", "unused-here"),
    ];
    assert_eq!(listed(&env, &[]).len(), 60);
    assert_eq!(listed(&env, &["--code", "unreadable"]).len(), 30);
    assert_eq!(listed(&env, &["--limit", "7"]).len(), 7);
    assert!(listed(&env, &["--since", "2100-01-01T00:00:00Z"]).is_empty());
    assert_eq!(listed(&env, &["--since", "1h"]).len(), 60);
    done(&env, &["drop", "--all", "--yes", "--code", "unreadable"]);
    assert_eq!(listed(&env, &[]).len(), 30);
    // What nobody here can read goes back as it is.
    done(&env, &["replay", "--all", "--yes", "--limit", "25"]);
    assert_eq!(listed(&env, &[]).len(), 5);
    let back = plain.read(&topic, 25, TEST_TIMEOUT).await;
    assert_eq!(back.len(), 25);
    assert!(
        back.iter()
            .all(|r| r.value == "{not JSON" && r.headers.contains_key("replay_of"))
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
