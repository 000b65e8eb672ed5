//! The system of the chaos tests: two gateways, workers and relays behind nginx, with their own
//! Kafka, Redis and model API, and a proxy that can break each connection between them.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;

use super::answers::planned_answer;
use super::calls::api_key_of;
use crate::nginx::Nginx;
use crate::support::kafka_broker::KafkaBroker;
use crate::support::kafka_client::KafkaClient;
use crate::support::machine::{MachinePermit, reserve_machine};
use crate::support::model::{Answer, ModelRequest, ScriptedModel};
use crate::support::process::{ChatmeshProcess, ProcessSpec, free_port};
use crate::support::redis::PrivateRedis;
use crate::support::stack::{RELAYS, WORKERS};
use crate::support::tcp_proxy::{ProxyMode, TcpProxy};
use crate::support::{TEST_TIMEOUT, wait_until};

/// A process of the fleet and the proxies of its connections.
pub(super) struct FleetMember {
    pub(super) name: &'static str,
    pub(super) spec: ProcessSpec,
    pub(super) process: Option<ChatmeshProcess>,
    pub(super) kafka_proxy: TcpProxy,
    pub(super) redis_proxy: TcpProxy,
    /// The proxy between a gateway and its clients, or between a worker and the model API.
    pub(super) external_proxy: Option<TcpProxy>,
    /// The logs of the member's earlier processes.
    pub(super) logs: Vec<String>,
}

impl FleetMember {
    pub(super) async fn start(&mut self) {
        self.process = Some(self.spec.start().await);
    }

    /// Stores the log of a process that has ended.
    pub(super) fn archive_log(&mut self) {
        if let Some(process) = self.process.take() {
            self.logs.push(process.log());
        }
    }

    pub(super) fn kill(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill();
        }
        self.archive_log();
    }

    pub(super) fn running(&mut self) -> &mut ChatmeshProcess {
        self.process.as_mut().expect("the process runs")
    }

    pub(super) fn is_gateway(&self) -> bool {
        self.name.starts_with("gateway")
    }

    pub(super) fn is_worker(&self) -> bool {
        self.name.starts_with("worker")
    }

    fn complete_log(&self) -> String {
        let mut all = self.logs.concat();
        if let Some(process) = &self.process {
            all.push_str(&process.log());
        }
        all
    }
}

/// Faults of the model API. While disabled, it answers every request completely.
#[derive(Debug, Default)]
pub(super) struct ModelFaults {
    pub(super) enabled: AtomicBool,
    calls: AtomicUsize,
    /// The calls that failed or were cut off: the prompt, and the number of earlier requests for
    /// it.
    failed_calls: Mutex<HashSet<(String, usize)>>,
}

impl ModelFaults {
    pub(super) fn failed_calls(&self) -> HashSet<(String, usize)> {
        let failed_calls = self.failed_calls.lock();
        failed_calls.clone()
    }
}

pub(super) struct Fleet {
    pub(super) kafka: KafkaBroker,
    pub(super) redis: PrivateRedis,
    pub(super) model: ScriptedModel,
    pub(super) model_faults: Arc<ModelFaults>,
    /// Two gateways, two workers and two relays, in this order.
    pub(super) members: Vec<FleetMember>,
    nginx: Nginx,
    _permit: MachinePermit,
}

/// Partitions of each topic at the start.
pub(super) const PARTITIONS: usize = 6;

const MEMBER_NAMES: [&str; 6] = [
    "gateway_1",
    "gateway_2",
    "worker_1",
    "worker_2",
    "relay_1",
    "relay_2",
];

/// The broker's listeners, one for each pair of a broker port and a proxy port. Each member has a
/// listener of its own that advertises the member's proxy, so that no client bypasses its proxy
/// with an address from the broker's metadata.
fn listener_settings(ports: &[(u16, u16)]) -> String {
    let mut listeners = String::new();
    let mut advertised = String::new();
    let mut protocols = "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT".to_owned();
    for (n, (broker_port, proxy_port)) in ports.iter().enumerate() {
        use std::fmt::Write as _;
        write!(listeners, ",L{n}://127.0.0.1:{broker_port}").unwrap();
        write!(advertised, ",L{n}://127.0.0.1:{proxy_port}").unwrap();
        write!(protocols, ",L{n}:PLAINTEXT").unwrap();
    }
    format!("{listeners}\n{advertised}\n{protocols}")
}

impl Fleet {
    /// Starts the fleet, with additional settings for every role.
    pub(super) async fn start_with(settings: &[(&str, &str)]) -> Self {
        let permit = reserve_machine().await;
        let model_faults = Arc::new(ModelFaults::default());
        let model = ScriptedModel::start_with({
            let model_faults = model_faults.clone();
            move |request| scripted_answer(&model_faults, request)
        })
        .await;
        model.discard_bodies();
        let kafka_ports: Vec<(u16, u16)> = MEMBER_NAMES
            .iter()
            .map(|_| (free_port(), free_port()))
            .collect();
        let mut kafka = KafkaBroker::prepare_with_listeners(&listener_settings(&kafka_ports));
        kafka.spawn_and_wait().await;
        let mut redis = PrivateRedis::prepare();
        redis.restart().await;

        let mut members = Vec::new();
        for (name, (broker_port, proxy_port)) in MEMBER_NAMES.into_iter().zip(kafka_ports) {
            let kafka_proxy = TcpProxy::start_on(proxy_port, broker_port).await;
            let redis_proxy = TcpProxy::start(redis.port()).await;
            let (spec, external_proxy) = match name.split('_').next() {
                Some("gateway") => {
                    let spec = ProcessSpec::gateway();
                    let client_proxy = TcpProxy::start(spec.port()).await;
                    (spec, Some(client_proxy))
                }
                Some("worker") => {
                    let provider_proxy = TcpProxy::start(model.port()).await;
                    let url = format!("http://127.0.0.1:{}/v1", provider_proxy.port());
                    let spec = ProcessSpec::ai_worker()
                        .env("OPENAI_BASE_URL", &url)
                        .env("OPENAI_API_KEY", &api_key_of(name))
                        // The checks read the reasoning in the records and in the history.
                        .env("REASONING", "keep");
                    (spec, Some(provider_proxy))
                }
                _ => (ProcessSpec::relay(), None),
            };
            let spec = spec
                .env(
                    "KAFKA_BOOTSTRAP_SERVERS",
                    &format!("127.0.0.1:{proxy_port}"),
                )
                .env("KAFKA_TOPIC_PARTITIONS", &PARTITIONS.to_string())
                .env("REDIS_HOST", "127.0.0.1")
                .env("REDIS_PORT", &redis_proxy.port().to_string())
                .env("LOG_LEVEL", "info")
                .env("SERVER_ID", name)
                .with_name(name);
            let add_setting =
                |spec: ProcessSpec, (name, value): &(&str, &str)| spec.env(name, value);
            let spec = settings.iter().fold(spec, add_setting);
            members.push(FleetMember {
                name,
                spec,
                process: None,
                kafka_proxy,
                redis_proxy,
                external_proxy,
                logs: Vec::new(),
            });
        }
        for member in &mut members {
            member.start().await;
        }
        // Each member that joins a group causes a reassignment. The run starts after the last one.
        let client = kafka.kafka_client();
        for group in [WORKERS, RELAYS] {
            let description = format!("both members of {group} have their assignment");
            wait_until(&description, TEST_TIMEOUT, || {
                client.is_group_stable(group, 2)
            })
            .await;
        }
        let client_port = |n: usize| {
            members[n]
                .external_proxy
                .as_ref()
                .expect("a gateway")
                .port()
        };
        let nginx = Nginx::start([client_port(0), client_port(1)]).await;
        Self {
            kafka,
            redis,
            model,
            model_faults,
            members,
            nginx,
            _permit: permit,
        }
    }

    /// The ports that clients choose from. The load balancer is listed twice, so that clients
    /// mostly connect through it.
    pub(super) fn client_ports(&self) -> Vec<u16> {
        let gateway_port = |n: usize| {
            self.members[n]
                .external_proxy
                .as_ref()
                .expect("a gateway")
                .port()
        };
        vec![
            self.nginx.port,
            self.nginx.port,
            gateway_port(0),
            gateway_port(1),
        ]
    }

    pub(super) fn kafka_client(&self) -> KafkaClient {
        self.kafka.kafka_client()
    }

    /// Lets all traffic pass again.
    pub(super) fn restore_links(&self) {
        for member in &self.members {
            let links = [Some(&member.kafka_proxy), Some(&member.redis_proxy)];
            for link in links.into_iter().flatten().chain(&member.external_proxy) {
                link.set_mode(ProxyMode::Forward);
            }
        }
    }

    /// The warnings and errors of all processes with their counts, most frequent first.
    pub(super) fn warnings(&self) -> Vec<(usize, String)> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for member in &self.members {
            for line in member.complete_log().lines() {
                let Ok(line) = serde_json::from_str::<Value>(line) else {
                    continue;
                };
                let (level, text) = (line["level"].as_str(), line["message"].as_str());
                if let (Some(level @ ("WARN" | "ERROR")), Some(text)) = (level, text) {
                    let role = member.name.split('_').next().unwrap_or_default();
                    *counts.entry(format!("{role} {level} {text}")).or_default() += 1;
                }
            }
        }
        let mut warnings: Vec<_> = counts
            .into_iter()
            .map(|(text, count)| (count, text))
            .collect();
        warnings.sort_by(|a, b| b.cmp(a));
        warnings
    }

    /// Writes the logs of all processes and these texts below the target folder. Returns their
    /// folder.
    pub(super) fn save_logs(&self, seed: u64, texts: &[(&str, &str)]) -> PathBuf {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{seed}"));
        std::fs::create_dir_all(&folder).expect("a folder");
        let write_file = |name: &str, text: &str| {
            std::fs::write(folder.join(name), text).expect("write a file");
        };
        for member in &self.members {
            write_file(&format!("{}.log", member.name), &member.complete_log());
        }
        for (name, text) in texts {
            write_file(name, text);
        }
        folder
    }

    /// The log lines of all processes that contain one of the ids, each with its timestamp, in the
    /// order of time.
    pub(super) fn log_lines_of(&self, ids: &[String]) -> Vec<(String, String)> {
        let mut lines = Vec::new();
        for member in &self.members {
            for line in member.complete_log().lines() {
                if ids.iter().any(|id| line.contains(id.as_str())) {
                    let time = line.split_once("\"timestamp\":\"");
                    let time = time.and_then(|(_, rest)| rest.split('"').next());
                    let time = time.unwrap_or_default().to_owned();
                    lines.push((time, format!("{line}   [{}]", member.name)));
                }
            }
        }
        lines.sort();
        lines
    }
}

/// Generates the answer of a model call. While faults are enabled, one of ten calls fails, one is
/// rate-limited and two are cut off in the middle.
fn scripted_answer(model_faults: &ModelFaults, request: &ModelRequest) -> Answer {
    let prompt = &request.prompt;
    let call = model_faults.calls.fetch_add(1, Ordering::Relaxed);
    let model_fault = if model_faults.enabled.load(Ordering::Relaxed) {
        call % 10
    } else {
        9
    };
    if model_fault < 4 {
        let mut failed_calls = model_faults.failed_calls.lock();
        failed_calls.insert((prompt.clone(), request.previous_requests));
    }
    let answer = planned_answer(call, prompt);
    let script = match model_fault {
        0 => return Answer::error(500, "server_error", "an injected fault"),
        1 => return Answer::rate_limited().header("retry-after-ms", "200"),
        2 | 3 => answer.beginning(answer.chunk_count() / 2).disconnect(),
        _ => answer.complete(),
    };
    let interval = if prompt.ends_with(LONG_SUFFIX) {
        LONG_ANSWER_INTERVAL
    } else {
        CHUNK_INTERVAL
    };
    script.chunk_interval(interval).into()
}

/// Interval between two chunks of an answer, which takes 0.2 to 0.7 s.
const CHUNK_INTERVAL: Duration = Duration::from_millis(20);
/// The suffix of a prompt that requests a long answer.
pub(super) const LONG_SUFFIX: &str = " at length";
/// Interval between two chunks of a long answer, which takes 1 to 5 s: longer than the interval
/// between two commits.
const LONG_ANSWER_INTERVAL: Duration = Duration::from_millis(150);
