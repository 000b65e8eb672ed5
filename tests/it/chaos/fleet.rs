//! Two of each role behind nginx, on a Kafka, a Redis and a model of their own, with a link that can
//! be broken wherever one talks to another.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;

use super::calls::key_of;
use crate::nginx::Nginx;
use crate::support::kafka_broker::KafkaBroker;
use crate::support::kafka_client::KafkaClient;
use crate::support::machine::{MachinePermit, reserve_machine};
use crate::support::model::{Answer, ModelRequest, Script, ScriptedModel};
use crate::support::process::{ChatmeshProcess, ProcessSpec, free_port};
use crate::support::redis::PrivateRedis;
use crate::support::stack::{RELAYS, WORKERS};
use crate::support::tcp_proxy::{ProxyMode, TcpProxy};
use crate::support::{TEST_TIMEOUT, wait_until};

/// A process of the fleet and what it is connected by.
pub(super) struct Member {
    pub(super) name: &'static str,
    pub(super) spec: ProcessSpec,
    pub(super) process: Option<ChatmeshProcess>,
    pub(super) to_kafka: TcpProxy,
    pub(super) to_redis: TcpProxy,
    /// A gateway's clients, a worker's model.
    pub(super) outside: Option<TcpProxy>,
    /// What earlier processes of it wrote.
    pub(super) logs: Vec<String>,
}

impl Member {
    pub(super) async fn start(&mut self) {
        self.process = Some(self.spec.start().await);
    }

    /// The process ended: its log is kept.
    pub(super) fn bury(&mut self) {
        if let Some(process) = self.process.take() {
            self.logs.push(process.log());
        }
    }

    pub(super) fn kill(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill();
        }
        self.bury();
    }

    pub(super) fn running(&mut self) -> &mut ChatmeshProcess {
        self.process.as_mut().expect("it runs")
    }

    pub(super) fn is_gateway(&self) -> bool {
        self.name.starts_with("gateway")
    }

    pub(super) fn is_worker(&self) -> bool {
        self.name.starts_with("worker")
    }

    fn whole_log(&self) -> String {
        let mut all = self.logs.concat();
        if let Some(process) = &self.process {
            all.push_str(&process.log());
        }
        all
    }
}

/// The model's whims: off, it answers everything whole.
#[derive(Debug, Default)]
pub(super) struct Whims {
    pub(super) on: AtomicBool,
    calls: AtomicUsize,
    /// The questions that got no whole answer, and their how manieth call that was.
    faulty: Mutex<HashSet<(String, usize)>>,
}

impl Whims {
    pub(super) fn faulty(&self) -> HashSet<(String, usize)> {
        let faulty = self.faulty.lock();
        faulty.clone()
    }
}

pub(super) struct Fleet {
    pub(super) kafka: KafkaBroker,
    pub(super) redis: PrivateRedis,
    pub(super) model: ScriptedModel,
    pub(super) whims: Arc<Whims>,
    /// Gateways, workers, relays: two each.
    pub(super) members: Vec<Member>,
    nginx: Nginx,
    _permit: MachinePermit,
}

/// Of each topic, at first.
pub(super) const PARTITIONS: usize = 6;

const NAMES: [&str; 6] = [
    "gateway_1",
    "gateway_2",
    "worker_1",
    "worker_2",
    "relay_1",
    "relay_2",
];

/// Every member has a listener of its own at the broker, which advertises the member's link: so
/// that no client gets around its link by what it learns from the broker.
fn listeners(direct: &[(u16, u16)]) -> String {
    let mut listeners = String::new();
    let mut advertised = String::new();
    let mut protocols = "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT".to_owned();
    for (n, (behind, link)) in direct.iter().enumerate() {
        use std::fmt::Write as _;
        write!(listeners, ",L{n}://127.0.0.1:{behind}").unwrap();
        write!(advertised, ",L{n}://127.0.0.1:{link}").unwrap();
        write!(protocols, ",L{n}:PLAINTEXT").unwrap();
    }
    format!("{listeners}\n{advertised}\n{protocols}")
}

impl Fleet {
    /// With more settings for every role.
    pub(super) async fn start_with(settings: &[(&str, &str)]) -> Self {
        let permit = reserve_machine().await;
        let whims = Arc::new(Whims::default());
        let model = ScriptedModel::start_with({
            let whims = whims.clone();
            move |asked| answer(&whims, asked)
        })
        .await;
        model.discard_bodies();
        let behind: Vec<(u16, u16)> = NAMES.iter().map(|_| (free_port(), free_port())).collect();
        let mut kafka = KafkaBroker::prepare_with_listeners(&listeners(&behind));
        kafka.spawn_and_wait().await;
        let mut redis = PrivateRedis::not_started();
        redis.restart().await;

        let mut members = Vec::new();
        for (name, (behind, link)) in NAMES.into_iter().zip(behind) {
            let to_kafka = TcpProxy::start_on(link, behind).await;
            let to_redis = TcpProxy::start(redis.port()).await;
            let (spec, outside) = match name.split('_').next() {
                Some("gateway") => {
                    let spec = ProcessSpec::gateway();
                    let clients = TcpProxy::start(spec.port()).await;
                    (spec, Some(clients))
                }
                Some("worker") => {
                    let provider = TcpProxy::start(model.port()).await;
                    let url = format!("http://127.0.0.1:{}/v1", provider.port());
                    let spec = ProcessSpec::ai_worker()
                        .env("OPENAI_BASE_URL", &url)
                        .env("OPENAI_API_KEY", &key_of(name));
                    (spec, Some(provider))
                }
                _ => (ProcessSpec::relay(), None),
            };
            let spec = spec
                .env("KAFKA_BOOTSTRAP_SERVERS", &format!("127.0.0.1:{link}"))
                .env("KAFKA_TOPIC_PARTITIONS", &PARTITIONS.to_string())
                .env("REDIS_HOST", "127.0.0.1")
                .env("REDIS_PORT", &to_redis.port().to_string())
                .env("LOG_LEVEL", "info")
                .env("SERVER_ID", name)
                .with_name(name);
            let set = |spec: ProcessSpec, (name, value): &(&str, &str)| spec.env(name, value);
            let spec = settings.iter().fold(spec, set);
            members.push(Member {
                name,
                spec,
                process: None,
                to_kafka,
                to_redis,
                outside,
                logs: Vec::new(),
            });
        }
        for member in &mut members {
            member.start().await;
        }
        // Members that join one after the other move partitions: that is to be over.
        let client = kafka.kafka_client();
        for group in [WORKERS, RELAYS] {
            let joined = format!("both members of {group} know what is theirs");
            wait_until(&joined, TEST_TIMEOUT, || client.is_group_stable(group, 2)).await;
        }
        let clients = |n: usize| members[n].outside.as_ref().expect("a gateway").port();
        let nginx = Nginx::start([clients(0), clients(1)]).await;
        Self {
            kafka,
            redis,
            model,
            whims,
            members,
            nginx,
            _permit: permit,
        }
    }

    /// Where clients connect: mostly at the balancer.
    pub(super) fn doors(&self) -> Vec<u16> {
        let direct = |n: usize| self.members[n].outside.as_ref().expect("a gateway").port();
        vec![self.nginx.port, self.nginx.port, direct(0), direct(1)]
    }

    pub(super) fn kafka_client(&self) -> KafkaClient {
        self.kafka.kafka_client()
    }

    /// Every link as it should be.
    pub(super) fn mend(&self) {
        for member in &self.members {
            let links = [Some(&member.to_kafka), Some(&member.to_redis)];
            for link in links.into_iter().flatten().chain(&member.outside) {
                link.set_mode(ProxyMode::Forward);
            }
        }
    }

    /// What all processes warned of, and how often.
    pub(super) fn warnings(&self) -> Vec<(usize, String)> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for member in &self.members {
            for line in member.whole_log().lines() {
                let Ok(line) = serde_json::from_str::<Value>(line) else {
                    continue;
                };
                let (level, said) = (line["level"].as_str(), line["message"].as_str());
                if let (Some(level @ ("WARN" | "ERROR")), Some(said)) = (level, said) {
                    let role = member.name.split('_').next().unwrap_or_default();
                    *counts.entry(format!("{role} {level} {said}")).or_default() += 1;
                }
            }
        }
        let mut warnings: Vec<_> = counts.into_iter().map(|(said, n)| (n, said)).collect();
        warnings.sort_by(|a, b| b.cmp(a));
        warnings
    }

    /// Keeps what all processes wrote, and these texts, for who wants to understand a failure.
    /// Returns the folder.
    pub(super) fn keep(&self, seed: u64, texts: &[(&str, &str)]) -> PathBuf {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{seed}"));
        std::fs::create_dir_all(&folder).expect("a folder");
        let keep = |name: &str, text: &str| {
            std::fs::write(folder.join(name), text).expect("write a file");
        };
        for member in &self.members {
            keep(&format!("{}.log", member.name), &member.whole_log());
        }
        for (name, text) in texts {
            keep(name, text);
        }
        folder
    }

    /// What all processes wrote of one of these ids, by time, which stands before each line.
    pub(super) fn path_of(&self, ids: &[String]) -> Vec<(String, String)> {
        let mut lines = Vec::new();
        for member in &self.members {
            for line in member.whole_log().lines() {
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

/// An answer whose words name the call that they are of, so that text of two calls is never taken
/// for one: `c17.0 c17.1 … end` and the question.
fn answer(whims: &Whims, asked: &ModelRequest) -> Answer {
    let prompt = &asked.prompt;
    let call = whims.calls.fetch_add(1, Ordering::Relaxed);
    let words = 4 + call % 9;
    let whim = if whims.on.load(Ordering::Relaxed) {
        call % 10
    } else {
        9
    };
    if whim < 4 {
        let mut faulty = whims.faulty.lock();
        faulty.insert((prompt.clone(), asked.previous_requests));
    }
    match whim {
        0 => return Answer::error(500, "server_error", "a whim"),
        1 => return Answer::rate_limited().header("retry-after-ms", "200"),
        _ => {}
    }
    let pace = if prompt.ends_with(LONG) {
        SLOW_PACE
    } else {
        PACE
    };
    let mut script = Script::new().role();
    for n in 0..words {
        if whim < 4 && n == words / 2 {
            return script.cut().chunk_interval(pace).into();
        }
        script = script.token(&format!("c{call}.{n} "));
    }
    script
        .token(&format!("end {prompt}"))
        .finish("stop")
        .usage()
        .done()
        .chunk_interval(pace)
        .into()
}

/// Between two words: an answer takes a tenth to a third of a second.
const PACE: Duration = Duration::from_millis(20);
/// How a question ends that asks for a long answer.
pub(super) const LONG: &str = " at length";
/// That takes one to three seconds: longer than what lies between two commits of offsets.
const SLOW_PACE: Duration = Duration::from_millis(250);
