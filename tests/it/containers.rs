//! The deployment of compose.yaml in containers. `tests/run --containers` runs these tests on a
//! machine with Docker.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use reqwest::Method;

use crate::support::classic::{ClassicClient, ClientEvent};
use crate::support::{TEST_TIMEOUT, http, unique_name, wait_until};

const PORT: u16 = 8080;
const ROLES: [&str; 4] = ["gateway-1", "gateway-2", "ai-worker", "relay"];

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        // A local .env may configure a real model, whose calls cost money.
        .env("ENV_FILE", ".env.example")
        .output()
        .unwrap_or_else(|error| panic!("{program} can't be run: {error}"));
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {out}{err}"
    );
    out
}

fn compose(arguments: &[&str]) -> String {
    let profiles = ["compose", "--profile", "*"];
    run("docker", &[&profiles, arguments].concat())
}

/// The part of a service's container description that `format` selects.
fn inspect(service: &str, format: &str) -> String {
    let id = compose(&["ps", "--all", "--quiet", service]);
    let text = run("docker", &["inspect", "--format", format, id.trim()]);
    text.trim().to_owned()
}

/// The running deployment; removed when a test panics.
struct Deployment;

impl Drop for Deployment {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", compose(&["ps", "--all"]));
            eprintln!("{}", compose(&["logs", "--no-color", "--tail", "30"]));
            run("just", &["clean"]);
        }
    }
}

async fn token(user: &str) -> String {
    let url = format!("http://127.0.0.1:{PORT}/token?userid={user}");
    let reply = http::post(&url, &[]).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()["token"].as_str().unwrap().to_owned()
}

async fn assert_answered(client: &mut ClassicClient, text: &str) {
    let answer = client.send_and_wait(text).await;
    assert_eq!(answer["type"], "response", "{answer}");
    assert!(answer.to_string().contains(text), "{answer}");
}

async fn connect(user: &str, token: &str) -> ClassicClient {
    ClassicClient::connect(PORT, token, user)
        .await
        .unwrap_or_else(|refused| panic!("{user} was refused: {refused:?}"))
}

/// The number of targets that Prometheus scrapes successfully.
async fn healthy_target_count() -> usize {
    let url = "http://127.0.0.1:9090/api/v1/targets?state=active";
    let Ok(reply) = http::try_call(Method::GET, url, &[]).await else {
        return 0;
    };
    let reply = reply.json();
    let targets = reply["data"]["activeTargets"].as_array().unwrap();
    targets
        .iter()
        .filter(|target| target["health"] == "up")
        .count()
}

/// The log file of a service.
fn log_file(service: &str) -> PathBuf {
    let name = format!("docker-logs/{service}.log");
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker, just, and the ports 3000, 6379, 8080, 9090 and 9092: tests/run --containers"]
async fn deployment_answers_and_survives_the_loss_of_gateways() {
    let deployment = Deployment;
    let output = run("just", &["up"]);
    assert!(output.contains("http://localhost:8080/health"), "{output}");
    assert!(output.contains("demo model"), "{output}");
    assert!(output.contains("Warning: TOKEN_ENDPOINT=open"), "{output}");

    let user = unique_name("alice");
    let secret = token(&user).await;
    let refused = ClassicClient::connect(PORT, "wrong", &user)
        .await
        .unwrap_err();
    assert_eq!(refused.status, 401);
    let mut client = connect(&user, &secret).await;
    assert_answered(&mut client, "hello there").await;

    wait_until("Prometheus scrapes all roles", TEST_TIMEOUT, || async {
        healthy_target_count().await == ROLES.len()
    })
    .await;
    let grafana = http::get("http://127.0.0.1:3000/api/health").await;
    assert_eq!(grafana.status, 200);

    for role in ROLES {
        let format = "{{.HostConfig.ReadonlyRootfs}} {{.Config.User}} {{.State.Health.Status}}";
        assert_eq!(inspect(role, format), "true 65532:65532 healthy", "{role}");
    }
    for gateway in ["gateway-1", "gateway-2"] {
        let limits = inspect(gateway, "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}");
        assert_eq!(limits, "536870912 1000000000");
    }
    for service in ROLES
        .iter()
        .chain(&["kafka", "redis", "nginx", "prometheus", "grafana"])
    {
        wait_until(
            &format!("docker-logs has a log of {service}"),
            TEST_TIMEOUT,
            || async { std::fs::metadata(log_file(service)).is_ok_and(|file| file.len() > 0) },
        )
        .await;
    }

    // A stopped gateway drains and exits, and clients reconnect to the other one.
    compose(&["stop", "gateway-1"]);
    assert_eq!(inspect("gateway-1", "{{.State.ExitCode}}"), "0");
    if let ClientEvent::Closed(_) = client.next_event(Duration::from_millis(100)).await {
        client = connect(&user, &secret).await;
    }
    assert_answered(&mut client, "after a stop").await;
    compose(&["start", "gateway-1"]);
    wait_until("gateway-1 is healthy again", TEST_TIMEOUT * 2, || async {
        inspect("gateway-1", "{{.State.Health.Status}}") == "healthy"
    })
    .await;

    // Clients of a killed gateway reconnect to the other one.
    compose(&["kill", "gateway-2"]);
    assert_eq!(client.expect_close().await, None);
    client = connect(&user, &secret).await;
    assert_answered(&mut client, "after a kill").await;
    client.close().await;

    let nginx_log = std::fs::read_to_string(log_file("nginx")).unwrap();
    assert!(nginx_log.contains(r#""path":"/ws""#), "{nginx_log}");
    assert!(!nginx_log.contains(&secret), "the token is in nginx's log");

    run("just", &["clean"]);
    assert_eq!(compose(&["ps", "--all", "--quiet"]), "");
    assert!(!log_file("nginx").exists());
    drop(deployment);
}
