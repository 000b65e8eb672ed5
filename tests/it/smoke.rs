//! The subcommands of the built executable, as continuous integration and operators call them.

use std::time::Duration;

use super::support::classic::ClassicClient;
use super::support::model::{Answer, ScriptedModel};
use super::support::process::ProcessSpec;
use super::support::{TEST_TIMEOUT, http, kafka_address, redis_url, unique_name, wait_until};

/// The specification of a role with the shared services and with topics of its own.
fn with_shared_services(spec: ProcessSpec) -> ProcessSpec {
    let topic = unique_name("smoke");
    spec.env("KAFKA_BOOTSTRAP_SERVERS", &kafka_address())
        .env("REDIS_URL", &redis_url())
        .env("CONSUME_TOPIC", &format!("{topic}-in"))
        .env("PRODUCE_TOPIC", &format!("{topic}-out"))
        .env("KAFKA_TOPIC_PARTITIONS", "2")
}

#[test]
fn version_names_the_program_and_its_version() {
    let (code, out, _) = ProcessSpec::new(&["--version"]).run();
    assert_eq!(code, Some(0));
    assert_eq!(
        out.trim(),
        format!("chatmesh {}", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn help_names_every_role() {
    let (code, out, _) = ProcessSpec::new(&["--help"]).run();
    assert_eq!(code, Some(0));
    for role in [
        "all-in-one",
        "gateway",
        "ai-worker",
        "relay",
        "config",
        "healthcheck",
    ] {
        assert!(out.contains(role), "{role} is missing in:\n{out}");
    }
}

#[test]
fn unknown_subcommand_or_flag_is_exit_code_2() {
    for args in [&["no-such-role"][..], &["gateway", "--no-such-flag"]] {
        let (code, _, err) = ProcessSpec::new(args).run();
        assert_eq!(code, Some(2), "{args:?}: {err}");
        assert!(err.contains("no-such"), "{args:?}: {err}");
    }
}

const ROLES: [&str; 4] = ["all-in-one", "gateway", "ai-worker", "relay"];

#[test]
fn config_check_prints_nothing_for_a_valid_configuration() {
    for role in ROLES {
        let (code, out, err) = ProcessSpec::new(&["config", "check", role]).run();
        assert_eq!(code, Some(0), "{role}: {err}");
        assert_eq!(out, "", "{role}");
    }
}

#[test]
fn config_check_accepts_the_env_files_of_the_original() {
    // The variables of all three .env files of the original software.
    let originals = "SERVER_ID=server_1\n\
                     APP_NAME=websocket-server\n\
                     KAFKA_BOOTSTRAP_SERVERS=kafka:29092\n\
                     REDIS_HOST=redis\n\
                     REDIS_PORT=6379\n\
                     ALLOW_ORIGINS='[\"*\"]'\n\
                     ALLOW_CREDENTIALS=False\n\
                     TOKEN_TTL=3600\n\
                     LOG_LEVEL=INFO\n\
                     METRICS_PORT=8002\n\
                     OPENAI_API_KEY=sk-smoke\n\
                     MAX_WORKERS=50\n";
    for role in ROLES {
        let spec = ProcessSpec::new(&["config", "check", role]);
        std::fs::write(spec.dir().join(".env"), originals).unwrap();
        let (code, _, err) = spec.run();
        assert_eq!(code, Some(0), "{role}: {err}");
    }
}

#[test]
fn printed_default_file_is_valid() {
    let (code, out, _) = ProcessSpec::new(&["config", "default"]).run();
    assert_eq!(code, Some(0));
    for role in ROLES {
        let spec = ProcessSpec::new(&["config", "check", role, "--config", "chatmesh.toml"]);
        std::fs::write(spec.dir().join("chatmesh.toml"), &out).unwrap();
        let (code, _, err) = spec.run();
        assert_eq!(code, Some(0), "{role}: {err}");
    }
}

#[test]
fn unknown_key_in_a_file_is_named_with_the_file_and_is_exit_code_2() {
    let spec = ProcessSpec::new(&["gateway", "--config", "mine.toml"]);
    std::fs::write(
        spec.dir().join("mine.toml"),
        "[kafka]\nbootstrap = \"k:1\"\n",
    )
    .unwrap();
    let (code, _, err) = spec.run();
    assert_eq!(code, Some(2), "{err}");
    assert!(
        err.contains("bootstrap") && err.contains("mine.toml"),
        "{err}"
    );
}

#[test]
fn unknown_key_of_a_flag_is_exit_code_2() {
    let (code, _, err) = ProcessSpec::new(&["relay", "--set", "no.such.key=1"]).run();
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("no.such.key"), "{err}");
}

#[test]
fn flag_overrides_environment_and_environment_overrides_file() {
    let file = "[worker]\nmax_workers = 1\n[history]\nmax_messages = 1\n[model]\nmax_tokens = 1\n";
    let spec = ProcessSpec::new(&["config", "show", "ai-worker", "--config", "mine.toml"])
        .arg("--set")
        .arg("MAX_WORKERS=3")
        .env("MAX_WORKERS", "2")
        .env("CHAT_HISTORY_MAX_MESSAGES", "2");
    std::fs::write(spec.dir().join("mine.toml"), file).unwrap();
    let (code, out, err) = spec.run();
    assert_eq!(code, Some(0), "{err}");
    for (key, value) in [
        ("max_workers", "3"),
        ("max_messages", "2"),
        ("max_tokens", "1"),
    ] {
        let line = out
            .lines()
            .find(|line| line.contains(key))
            .expect("a line of this key");
        let has_value = line
            .split(|c: char| !c.is_ascii_alphanumeric())
            .any(|word| word == value);
        assert!(has_value, "{line}");
    }
}

#[test]
fn config_show_hides_secrets_and_names_sources() {
    let spec = ProcessSpec::new(&["config", "show", "ai-worker"])
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
fn invalid_value_names_its_variable_and_is_exit_code_2() {
    let (code, _, err) = ProcessSpec::new(&["gateway"])
        .env("TOKEN_TTL", "soon")
        .run();
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("TOKEN_TTL"), "{err}");
}

#[test]
fn unknown_chatmesh_variable_is_exit_code_2() {
    let spec = ProcessSpec::new(&["config", "check"]).env("CHATMESH_NO_SUCH_KEY", "1");
    let (code, _, err) = spec.run();
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("CHATMESH_NO_SUCH_KEY"), "{err}");
}

/// Starts a process, waits until it is ready, calls the operator's routes, and drains it.
async fn assert_starts_and_stops(name: &str, spec: ProcessSpec) {
    let mut process = spec.start().await;
    let port = process.port().to_string();
    let check = ProcessSpec::new(&["healthcheck", name])
        .env("PORT", &port)
        .env("METRICS_PORT", &port);
    let (code, _, err) = check.run();
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(http::get(&process.url("/health/live")).await.status, 200);
    assert_eq!(http::get(&process.url("/health")).await.status, 200);
    for path in ["/metrics", "/metrics/"] {
        let metrics = http::get(&process.url(path)).await;
        assert_eq!(metrics.status, 200, "{path}");
        assert!(metrics.body.contains("# TYPE"), "{path}: {}", metrics.body);
    }
    process.drain().await;
    let (code, _, _) = check.run();
    assert_eq!(code, Some(1), "the check of a stopped process must fail");
}

#[tokio::test]
async fn gateway_starts_becomes_ready_and_drains_on_sigterm() {
    assert_starts_and_stops("gateway", with_shared_services(ProcessSpec::gateway())).await;
}

#[tokio::test]
async fn worker_starts_becomes_ready_and_drains_on_sigterm() {
    assert_starts_and_stops("ai-worker", with_shared_services(ProcessSpec::ai_worker())).await;
}

#[tokio::test]
async fn relay_starts_becomes_ready_and_drains_on_sigterm() {
    assert_starts_and_stops("relay", with_shared_services(ProcessSpec::relay())).await;
}

#[tokio::test]
async fn all_in_one_starts_becomes_ready_and_drains_on_sigterm() {
    assert_starts_and_stops("all-in-one", ProcessSpec::ephemeral()).await;
    assert_starts_and_stops("all-in-one", ProcessSpec::durable()).await;
}

#[tokio::test]
async fn second_signal_ends_a_drain_at_once() {
    // A model that never answers keeps the drain waiting.
    let model = ScriptedModel::start_with(|_| Answer::Hang).await;
    let mut process = ProcessSpec::ephemeral()
        .env("DRAIN_TIMEOUT_MS", "120000")
        .env("OPENAI_BASE_URL", &model.base_url())
        .env("OPENAI_TIMEOUT_MS", "120000")
        .start()
        .await;
    let mut client = ClassicClient::open(process.port(), "busy").await;
    client.send_message("never answered").await;
    wait_until("the model is called", TEST_TIMEOUT, || async {
        model.open_requests() == 1
    })
    .await;
    process.terminate();
    wait_until("the drain has begun", TEST_TIMEOUT, || async {
        !process.is_ready().await
    })
    .await;
    process.terminate();
    process.wait_exit(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn second_process_on_a_data_directory_is_refused() {
    let first = ProcessSpec::durable();
    let data = first.dir().join("data");
    let first_process = first.start().await;
    let port = super::support::process::free_port().to_string();
    let data = data.display().to_string();
    let second = ProcessSpec::new(&["all-in-one", "--port", &port, "--data-dir", &data]);
    let mut second = second.spawn();
    let status = second.wait_exit(TEST_TIMEOUT).await;
    assert!(!status.success());
    let log = second.log();
    assert!(
        log.contains(&data),
        "the error must name the folder:\n{log}"
    );
    assert!(
        first_process.is_ready().await,
        "the first process must stay ready"
    );
}
