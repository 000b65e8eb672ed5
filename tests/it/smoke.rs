//! The built executable's subcommands, as continuous integration and operators call them.

use std::time::Duration;

use super::support::client::Classic;
use super::support::model::{Answer, ScriptedModel};
use super::support::process::Spec;
use super::support::{SOON, eventually, http, kafka, redis_url, unique};

/// A role with the shared real services, and topics that no other test has.
fn role(spec: Spec) -> Spec {
    let topic = unique("smoke");
    spec.env("KAFKA_BOOTSTRAP_SERVERS", &kafka())
        .env("REDIS_URL", &redis_url())
        .env("CONSUME_TOPIC", &format!("{topic}-in"))
        .env("PRODUCE_TOPIC", &format!("{topic}-out"))
        .env("KAFKA_TOPIC_PARTITIONS", "2")
}

#[test]
fn version_names_the_program_and_its_version() {
    let (code, out, _) = Spec::new(&["--version"]).run();
    assert_eq!(code, Some(0));
    assert_eq!(
        out.trim(),
        format!("chatmesh {}", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn help_names_every_role() {
    let (code, out, _) = Spec::new(&["--help"]).run();
    assert_eq!(code, Some(0));
    for role in ["all-in-one", "gateway", "ai-worker", "relay", "config"] {
        assert!(out.contains(role), "{role} is missing in:\n{out}");
    }
}

#[test]
fn an_unknown_subcommand_or_flag_is_exit_code_2() {
    for args in [&["no-such-role"][..], &["gateway", "--no-such-flag"]] {
        let (code, _, err) = Spec::new(args).run();
        assert_eq!(code, Some(2), "{args:?}: {err}");
        assert!(err.contains("no-such"), "{args:?}: {err}");
    }
}

#[test]
fn config_check_is_silent_about_a_good_configuration() {
    let (code, _, err) = Spec::new(&["config", "check"]).run();
    assert_eq!(code, Some(0), "{err}");
}

#[test]
fn config_check_takes_the_originals_env_files_as_they_are() {
    // What the .env.example of the original's three services hold, together.
    let spec = Spec::new(&["config", "check"])
        .env("SERVER_ID", "server_1")
        .env("APP_NAME", "websocket-server")
        .env("KAFKA_BOOTSTRAP_SERVERS", "kafka:29092")
        .env("REDIS_HOST", "redis")
        .env("REDIS_PORT", "6379")
        .env("ALLOW_ORIGINS", "[\"*\"]")
        .env("ALLOW_CREDENTIALS", "False")
        .env("TOKEN_TTL", "3600")
        .env("LOG_LEVEL", "INFO")
        .env("OPENAI_API_KEY", "sk-smoke")
        .env("MAX_WORKERS", "50");
    let (code, _, err) = spec.run();
    assert_eq!(code, Some(0), "{err}");
}

#[test]
fn config_show_hides_secrets_and_names_sources() {
    let spec = Spec::new(&["config", "show"])
        .env("OPENAI_API_KEY", "sk-very-secret")
        .env("MAX_WORKERS", "7");
    let (code, out, err) = spec.run();
    assert_eq!(code, Some(0), "{err}");
    assert!(
        out.contains("MAX_WORKERS") || out.contains("max_workers"),
        "{out}"
    );
    assert!(!out.contains("sk-very-secret") && !err.contains("sk-very-secret"));
}

#[test]
fn a_bad_value_names_its_variable_and_is_exit_code_2() {
    let (code, _, err) = Spec::new(&["gateway"]).env("TOKEN_TTL", "soon").run();
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("TOKEN_TTL"), "{err}");
}

#[test]
fn an_unknown_chatmesh_variable_is_exit_code_2() {
    let spec = Spec::new(&["config", "check"]).env("CHATMESH_NO_SUCH_KEY", "1");
    let (code, _, err) = spec.run();
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("CHATMESH_NO_SUCH_KEY"), "{err}");
}

/// Starts, gets ready, answers the operator's routes, and ends in order on SIGTERM.
async fn starts_and_stops(spec: Spec) {
    let mut process = spec.start().await;
    assert_eq!(http::get(&process.url("/health/live")).await.status, 200);
    assert_eq!(http::get(&process.url("/health")).await.status, 200);
    for path in ["/metrics", "/metrics/"] {
        let metrics = http::get(&process.url(path)).await;
        assert_eq!(metrics.status, 200, "{path}");
        assert!(metrics.body.contains("# TYPE"), "{path}: {}", metrics.body);
    }
    process.drain().await;
}

#[tokio::test]
async fn a_gateway_starts_gets_ready_and_ends_on_sigterm() {
    starts_and_stops(role(Spec::gateway())).await;
}

#[tokio::test]
async fn a_worker_starts_gets_ready_and_ends_on_sigterm() {
    starts_and_stops(role(Spec::ai_worker())).await;
}

#[tokio::test]
async fn a_relay_starts_gets_ready_and_ends_on_sigterm() {
    starts_and_stops(role(Spec::relay())).await;
}

#[tokio::test]
async fn all_in_one_starts_gets_ready_and_ends_on_sigterm() {
    starts_and_stops(Spec::ephemeral()).await;
    starts_and_stops(Spec::durable()).await;
}

#[tokio::test]
async fn a_second_signal_ends_a_drain_at_once() {
    // A model that never answers keeps the drain busy.
    let model = ScriptedModel::start_with(|_| Answer::Hang).await;
    let mut process = Spec::ephemeral()
        .env("DRAIN_TIMEOUT_MS", "120000")
        .env("OPENAI_BASE_URL", &model.base_url())
        .env("OPENAI_TIMEOUT_MS", "120000")
        .start()
        .await;
    let mut client = Classic::open(process.port(), "busy").await;
    client.send_message("takes for ever").await;
    eventually("the model is asked", SOON, || async { model.open() == 1 }).await;
    process.term();
    eventually("the drain has begun", SOON, || async {
        !process.is_ready().await
    })
    .await;
    process.term();
    process.wait_exit(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn a_second_process_on_a_data_folder_is_told_so() {
    let first = Spec::durable();
    let data = first.dir().join("data");
    let running = first.start().await;
    let port = super::support::process::free_port().to_string();
    let data = data.display().to_string();
    let second = Spec::new(&["all-in-one", "--port", &port, "--data-dir", &data]);
    let mut second = second.spawn();
    let status = second.wait_exit(SOON).await;
    assert!(!status.success());
    let log = second.log();
    assert!(log.contains(&data), "the folder is not named in:\n{log}");
    assert!(running.is_ready().await, "the first one suffered");
}
