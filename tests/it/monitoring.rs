//! The shipped Prometheus rules and Grafana dashboard with real roles and a real Prometheus.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use chatmesh::telemetry::metrics::{Metric, MetricKind};
use reqwest::Method;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::classic::ClassicClient;
use crate::support::model::Answer;
use crate::support::process::free_port;
use crate::support::stack::Stack;
use crate::support::{TEST_TIMEOUT, http, wait_until};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");

fn read_shipped(path: &str) -> String {
    let path = Path::new(DEPLOY).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub(crate) fn declared_metrics() -> Vec<&'static Metric> {
    chatmesh::app::METRICS.concat()
}

/// The name of a series of this metric in Prometheus, which stores a histogram as several series.
fn series_name(metric: &Metric) -> String {
    let suffix = if metric.kind == MetricKind::Histogram {
        "_count"
    } else {
        ""
    };
    format!("{}{suffix}", metric.name)
}

/// The declared metric that a name in a query refers to.
fn find_metric<'a>(name: &str, metrics: &[&'a Metric]) -> Option<&'a Metric> {
    let base = ["_bucket", "_sum", "_count"]
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix));
    metrics.iter().copied().find(|metric| match metric.kind {
        MetricKind::Histogram => Some(metric.name) == base,
        _ => metric.name == name,
    })
}

/// The names of chatmesh's metrics in a query.
fn metric_names(query: &str) -> impl Iterator<Item = &str> {
    const PREFIXES: [&str; 5] = [
        "websocket_",
        "ai_consumer_",
        "message_relay_",
        "chatmesh_",
        "process_",
    ];
    query
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| PREFIXES.iter().any(|prefix| word.starts_with(prefix)))
}

/// The queries of the dashboard, with Grafana's variables replaced by values.
fn dashboard_queries() -> Vec<String> {
    let dashboard: Value =
        serde_json::from_str(&read_shipped("grafana/dashboards/chatmesh.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut queries = Vec::new();
    for panel in panels {
        if panel["type"] == "row" {
            continue;
        }
        assert_ne!(panel["description"], "", "{}", panel["title"]);
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            let query = query.replace("$__rate_interval", "1m");
            queries.push(query.replace("$__range", "30m"));
        }
    }
    queries
}

fn promtool(args: &[&str]) {
    let output = Command::new("promtool")
        .args(args)
        .current_dir(Path::new(DEPLOY).join("prometheus"))
        .output()
        .expect("run promtool (tests/run installs it)");
    assert!(
        output.status.success(),
        "promtool {args:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn promtool_accepts_the_rules_and_their_unit_tests_pass() {
    promtool(&["check", "config", "prometheus.yml"]);
    promtool(&["check", "rules", "rules.yml"]);
    promtool(&["test", "rules", "rules_test.yml"]);
}

#[test]
fn rules_and_dashboard_use_every_declared_metric_and_no_other() {
    let metrics = declared_metrics();
    let mut texts = dashboard_queries();
    texts.push(read_shipped("prometheus/rules.yml"));
    let mut used = BTreeSet::new();
    for text in &texts {
        for name in metric_names(text) {
            let metric =
                find_metric(name, &metrics).unwrap_or_else(|| panic!("{name} is not declared"));
            used.insert(metric.name);
        }
    }
    let unused: Vec<_> = metrics
        .iter()
        .filter(|metric| !used.contains(metric.name))
        .map(|metric| metric.name)
        .collect();
    assert!(unused.is_empty(), "in no rule and no panel: {unused:?}");
}

#[test]
fn no_label_identifies_users_or_conversations() {
    for metric in declared_metrics() {
        for label in metric.labels {
            let forbidden = [
                "user",
                "conversation",
                "message_id",
                "channel",
                "correlation",
            ];
            assert!(
                !forbidden.iter().any(|word| label.contains(word)),
                "{} has the label {label}",
                metric.name
            );
        }
    }
}

/// A real Prometheus with the shipped configuration; killed when dropped.
struct Prometheus {
    port: u16,
    _dir: TempDir,
    child: Child,
}

impl Prometheus {
    async fn start(gateways: [u16; 2], worker: u16, relay: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let mut text = read_shipped("prometheus/prometheus.yml");
        let targets = [
            ("gateway-1:8000", gateways[0]),
            ("gateway-2:8000", gateways[1]),
            ("ai-worker:8002", worker),
            ("relay:8001", relay),
        ];
        for (name, port) in targets {
            assert!(text.contains(name), "{name} is not scraped");
            text = text.replace(name, &format!("127.0.0.1:{port}"));
        }
        // The intervals are shortened, so that the test does not wait five seconds for each scrape.
        let shipped_intervals =
            "scrape_interval: 5s\n  scrape_timeout: 4s\n  evaluation_interval: 15s";
        assert!(text.contains(shipped_intervals), "{text}");
        let short_intervals =
            "scrape_interval: 1s\n  scrape_timeout: 1s\n  evaluation_interval: 1s";
        let config = dir.path().join("prometheus.yml");
        std::fs::write(&config, text.replace(shipped_intervals, short_intervals)).unwrap();
        std::fs::write(
            dir.path().join("rules.yml"),
            read_shipped("prometheus/rules.yml"),
        )
        .unwrap();
        let argument = |name: &str, value: PathBuf| format!("--{name}={}", value.display());
        let child = Command::new("prometheus")
            .arg(argument("config.file", config))
            .arg(argument("storage.tsdb.path", dir.path().join("data")))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start prometheus (tests/run installs it)");
        let prometheus = Self {
            port,
            _dir: dir,
            child,
        };
        wait_until("Prometheus is ready", TEST_TIMEOUT, || async {
            http::try_call(Method::GET, &prometheus.url("/-/ready"), &[])
                .await
                .is_ok_and(|reply| reply.status == 200)
        })
        .await;
        prometheus
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The field `data` of a response; panics on an error.
    async fn get(&self, path: &str) -> Value {
        let reply = http::get(&self.url(path)).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        reply.json()["data"].take()
    }

    async fn query(&self, query: &str) -> Vec<Value> {
        let mut url = url::Url::parse(&self.url("/api/v1/query")).unwrap();
        url.query_pairs_mut().append_pair("query", query);
        let reply = http::get(url.as_str()).await;
        assert_eq!(reply.status, 200, "{query}: {}", reply.body);
        reply.json()["data"]["result"].as_array().unwrap().clone()
    }

    async fn has_series(&self, metric: &Metric) -> bool {
        !self.query(&series_name(metric)).await.is_empty()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_scrapes_every_metric_and_answers_every_panel() {
    let mut stack = Stack::start().await;
    let gateway_1 = stack.gateway("server_1").start().await;
    let gateway_2 = stack.gateway("server_2").start().await;
    let worker = stack.worker("worker_1").start().await;
    let relay = stack.relay("relay_1").start().await;
    let ports = [gateway_1.port(), gateway_2.port()];
    let prometheus = Prometheus::start(ports, worker.port(), relay.port()).await;

    // One call succeeds, one fails and is retried, one fails permanently.
    let mut alice = ClassicClient::open(gateway_1.port(), "alice").await;
    assert_eq!(alice.send_and_wait("hello").await["type"], "response");
    stack
        .model
        .queue_answer("again", Answer::error(500, "server_error", "for a moment"));
    assert_eq!(alice.send_and_wait("again").await["type"], "response");
    stack
        .model
        .queue_answer("never", Answer::error(400, "invalid_request", "not this"));
    assert_eq!(alice.send_and_wait("never").await["type"], "error");
    // The gateways refuse an invalid frame and a connection without a token.
    alice.send_text("not JSON").await;
    assert_eq!(alice.next_frame().await["type"], "error");
    assert!(
        ClassicClient::connect(gateway_2.port(), "", "bob")
            .await
            .is_err()
    );
    // Redis is unavailable for a while, and then Kafka.
    stack.redis.kill();
    alice.send_message("redis is unavailable").await;
    alice.next_event(Duration::from_secs(10)).await;
    stack.redis.restart().await;
    stack.kafka.kill();
    wait_until("the gateway is not ready", TEST_TIMEOUT, || async {
        !gateway_1.is_ready().await
    })
    .await;
    stack.kafka.spawn_and_wait().await;
    wait_until("the gateway is ready again", TEST_TIMEOUT, || {
        gateway_1.is_ready()
    })
    .await;
    alice.close().await;

    let targets = [
        gateway_1.port(),
        gateway_2.port(),
        worker.port(),
        relay.port(),
    ];
    wait_until("all targets are up", TEST_TIMEOUT, || async {
        let data = prometheus.get("/api/v1/targets?state=active").await;
        let active = data["activeTargets"].as_array().unwrap();
        active.len() == targets.len() && active.iter().all(|target| target["health"] == "up")
    })
    .await;

    let missing_metrics = || async {
        let mut missing = Vec::new();
        for metric in declared_metrics() {
            if !prometheus.has_series(metric).await {
                missing.push(metric.name);
            }
        }
        missing
    };
    let deadline = tokio::time::Instant::now() + TEST_TIMEOUT;
    loop {
        let missing = missing_metrics().await;
        if missing.is_empty() {
            break;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "not recorded by any role: {missing:?}"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for query in dashboard_queries() {
        // A rate needs two scrapes of a counter that has just appeared.
        wait_until(&format!("values of {query}"), TEST_TIMEOUT, || async {
            !prometheus.query(&query).await.is_empty()
        })
        .await;
    }
    let rules = prometheus.get("/api/v1/rules").await;
    for rule in rules["groups"][0]["rules"].as_array().unwrap() {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
}
