//! Runs the measured system: starts chatmesh's roles as processes with their own topics, and
//! measures them by the load test.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use serde_json::Value;

use super::{Args, StepResult};

/// Time within which every role must be ready; otherwise the benchmark fails.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// A child process that is killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns a command that runs chatmesh with these arguments and without inherited settings.
fn chatmesh_command(args: &Args, arguments: &[&str]) -> Command {
    let mut command = Command::new(&args.chatmesh);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        // The directory for temporary files has no .env file.
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null());
    command
}

/// The mock model: a process of `chatmesh mock-openai`.
pub(crate) struct Mock {
    pub(crate) url: String,
    _process: Process,
}

impl Mock {
    /// Starts the mock with these flags, or with the number of tokens from `args` if there are
    /// none.
    pub(crate) fn start(args: &Args, flags: &[&str]) -> Self {
        let tokens = args.tokens.to_string();
        let mut command = chatmesh_command(args, &["mock-openai", "--port", "0"]);
        if flags.is_empty() {
            command.args(["--tokens", &tokens]);
        }
        let mut child = command.args(flags).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        let (_, url) = line
            .trim()
            .split_once('=')
            .expect("the mock prints its address");
        Self {
            url: url.to_owned(),
            _process: Process(child),
        }
    }
}

/// A running gateway, worker and relay.
pub(crate) struct Chatmesh<'a> {
    args: &'a Args,
    url: String,
    topics: [String; 2],
    roles: Vec<Process>,
}

impl<'a> Chatmesh<'a> {
    /// Starts the roles and waits until a message is answered. Without the URL of a model, the
    /// built-in model answers.
    pub(crate) async fn start(args: &'a Args, model_url: Option<String>) -> Self {
        let name = uuid::Uuid::new_v4().simple().to_string();
        let topics = ["messages", "responses"].map(|topic| format!("bench-{name}-{topic}"));
        let mut roles = Vec::new();
        let mut ports = Vec::new();
        for (role, port_setting) in [
            ("gateway", "PORT"),
            ("ai-worker", "METRICS_PORT"),
            ("relay", "METRICS_PORT"),
        ] {
            let port = free_port();
            let mut command = chatmesh_command(args, &[role]);
            command
                .env(port_setting, port.to_string())
                .env("HOST", "127.0.0.1")
                .env("METRICS_HOST", "127.0.0.1")
                .env("LOG_LEVEL", "warn")
                .env("SERVER_ID", format!("bench-{role}"))
                .env("KAFKA_BOOTSTRAP_SERVERS", &args.kafka)
                .env("KAFKA_LINGER_MS", args.linger.to_string())
                .env("KAFKA_TOPIC_PARTITIONS", args.partitions.to_string())
                .env("MESSAGES_TOPIC", &topics[0])
                .env("RESPONSES_TOPIC", &topics[1])
                .env("REDIS_URL", &args.redis)
                .env("AUTH_MODE", "open")
                // The limits are removed or raised, so that they don't affect the measurement.
                .env("USER_RATE_LIMIT_MAX_REQUESTS", "0")
                .env("USER_MAX_PENDING", "0")
                .env("MAX_WORKERS", "1000")
                .env("RELAY_MAX_IN_FLIGHT", "1000");
            if let Some(url) = &model_url {
                command
                    .env("OPENAI_BASE_URL", url)
                    .env("OPENAI_TIMEOUT_MS", "30000");
            }
            for pair in &args.env {
                let (name, value) = pair.split_once('=').expect("--env NAME=VALUE");
                command.env(name, value);
            }
            roles.push(Process(command.stdout(Stdio::null()).spawn().unwrap()));
            ports.push(port);
        }
        let chatmesh = Self {
            args,
            url: format!("ws://127.0.0.1:{}/ws", ports[0]),
            topics,
            roles,
        };
        let started = Instant::now();
        for port in ports {
            let url = format!("http://127.0.0.1:{port}/health/ready");
            loop {
                let answer = reqwest::get(&url).await;
                if answer.is_ok_and(|answer| answer.status().is_success()) {
                    break;
                }
                assert!(started.elapsed() < READY_TIMEOUT, "{url} is not ready");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        // A ready role may not have its partitions yet. An answered message shows that the roles
        // have their partitions.
        chatmesh.run(1, Duration::from_secs(1)).await;
        chatmesh
    }

    /// Stops the roles and deletes their topics.
    pub(crate) async fn stop(self) {
        drop(self.roles);
        let dead_letter_topics = self.topics.each_ref().map(|topic| format!("{topic}.dlq"));
        let topics = self.topics.iter().chain(&dead_letter_topics);
        let topics: Vec<&str> = topics.map(String::as_str).collect();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.args.kafka);
        let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
        let _ = admin.delete_topics(&topics, &AdminOptions::new()).await;
        // Dropping the client blocks until its thread has ended.
        let _ = tokio::task::spawn_blocking(move || drop(admin)).await;
    }

    /// Runs the load test for this long. Each client waits for its answer before it sends the next
    /// message.
    pub(crate) async fn run(&self, clients: usize, length: Duration) -> StepResult {
        let clients = clients.to_string();
        let length = format!("{}ms", length.as_millis());
        let mut command = chatmesh_command(
            self.args,
            &[
                "load-test",
                "--closed-loop",
                "--json",
                "--quiet",
                "--url",
                &self.url,
                "--clients",
                &clients,
                "--duration",
                &length,
            ],
        );
        let output = tokio::task::spawn_blocking(move || command.output());
        let output = output.await.unwrap().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        let result: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("the load test failed: {error}"));
        for note in result["notes"].as_array().into_iter().flatten() {
            eprintln!("  load-test: {note}");
        }
        let latency_ms =
            |name: &str, statistic: &str| result["latency_ms"][name][statistic].as_f64();
        StepResult {
            p50_ms: latency_ms("whole", "p50").unwrap_or(0.0),
            p99_ms: latency_ms("whole", "p99").unwrap_or(0.0),
            first_token_p50_ms: latency_ms("first_token", "p50"),
            throughput: result["throughput"].as_f64().unwrap_or(0.0),
            lost: result["sent"].as_u64().unwrap_or(0) - result["delivered"].as_u64().unwrap_or(0),
        }
    }
}

/// Returns a port on which no process listens at the moment.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
