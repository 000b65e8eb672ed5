//! The floor: a bare chain of produce, consume, model call, produce, consume, publish and receive.
//! It uses the same services as chatmesh and does nothing else: no validation, no ordering, no
//! retries, no history.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fred::clients::{Client, SubscriberClient};
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::Builder;
use fred::types::config::{Config, PerformanceConfig};
use hdrhistogram::Histogram;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Message};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::{Args, StepResult};

/// Size of a record's value in bytes. It is the size of a short message in chatmesh's log.
const PAYLOAD_BYTES: usize = 230;
/// Time after which a missing answer counts as lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The running chain, with the tasks that consume, publish and receive.
pub(crate) struct Floor {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
    admin: AdminClient<DefaultClientContext>,
}

/// What the clients and the tasks share.
struct Shared {
    producer: FutureProducer,
    question_topic: String,
    answer_topic: String,
    /// Prefix of the clients' channels. The client's number follows it.
    channel_prefix: String,
    redis: Client,
    subscriber: SubscriberClient,
    http: reqwest::Client,
    /// URL of the mock model; without it, questions are answered without a call.
    model_url: Option<String>,
    /// Number of the next message.
    next_number: AtomicU64,
    /// Clients that wait for their answers, by the number of the message.
    waiting_clients: Mutex<HashMap<u64, oneshot::Sender<()>>>,
}

impl Floor {
    /// Starts the chain and waits until a message is answered.
    pub(crate) async fn start(args: &Args, model_url: Option<String>) -> Self {
        let name = format!("floor-{}", uuid::Uuid::new_v4().simple());
        let mut common = ClientConfig::new();
        common.set("bootstrap.servers", &args.kafka);
        let admin: AdminClient<_> = common.create().unwrap();
        let question_topic = format!("{name}-questions");
        let answer_topic = format!("{name}-answers");
        let topics = [&question_topic, &answer_topic]
            .map(|topic| NewTopic::new(topic, args.partitions, TopicReplication::Fixed(1)));
        let created = admin.create_topics(&topics, &AdminOptions::new()).await;
        for topic in created.unwrap() {
            topic.expect("a topic");
        }
        let producer = common
            .clone()
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("compression.type", "lz4")
            .set("batch.size", "16384")
            .set("linger.ms", args.linger.to_string())
            .create()
            .unwrap();
        let config = Config::from_url(&args.redis).unwrap();
        let redis = Builder::from_config(config.clone()).build().unwrap();
        redis.init().await.unwrap();
        let subscriber = Builder::from_config(config)
            .set_performance_config(PerformanceConfig {
                broadcast_channel_capacity: 16_384,
                ..PerformanceConfig::default()
            })
            .build_subscriber_client()
            .unwrap();
        subscriber.init().await.unwrap();
        let shared = Arc::new(Shared {
            producer,
            channel_prefix: format!("{name}-"),
            question_topic,
            answer_topic,
            redis,
            subscriber,
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            model_url,
            next_number: AtomicU64::new(1),
            waiting_clients: Mutex::default(),
        });
        let consumer = |topic: &str| -> StreamConsumer {
            let mut config = common.clone();
            let config = config
                .set("group.id", format!("{topic}-group"))
                .set("auto.offset.reset", "earliest");
            let consumer: StreamConsumer = config.create().unwrap();
            consumer.subscribe(&[topic]).unwrap();
            consumer
        };
        let tasks = vec![
            tokio::spawn(Arc::clone(&shared).answer(consumer(&shared.question_topic))),
            tokio::spawn(Arc::clone(&shared).publish(consumer(&shared.answer_topic))),
            tokio::spawn(Arc::clone(&shared).receive()),
        ];
        let floor = Self {
            shared,
            tasks,
            admin,
        };
        // An answered message shows that the consumers have their partitions.
        floor.run(1, Duration::from_secs(1)).await;
        floor
    }

    /// Runs clients for this long. Each client waits for its answer before it sends the next
    /// message.
    pub(crate) async fn run(&self, clients: usize, length: Duration) -> StepResult {
        for client in 0..clients {
            let channel = format!("{}{client}", self.shared.channel_prefix);
            self.shared.subscriber.subscribe(channel).await.unwrap();
        }
        // The reply to a ping on the same connection confirms that the subscriptions are active.
        self.shared.subscriber.ping::<()>(None).await.unwrap();
        let started = Instant::now();
        let mut running = JoinSet::new();
        for client in 0..clients {
            let shared = Arc::clone(&self.shared);
            running.spawn(async move {
                let mut latencies = histogram();
                let mut lost = 0;
                while started.elapsed() < length {
                    match shared.send_and_wait(client).await {
                        Some(latency) => latencies.saturating_record(latency.as_micros() as u64),
                        None => lost += 1,
                    }
                }
                (latencies, lost)
            });
        }
        let mut all_latencies = histogram();
        let mut lost = 0;
        while let Some(finished) = running.join_next().await {
            let (latencies, lost_by_client) = finished.unwrap();
            all_latencies.add(&latencies).unwrap();
            lost += lost_by_client;
        }
        StepResult {
            p50_ms: all_latencies.value_at_quantile(0.5) as f64 / 1e3,
            p99_ms: all_latencies.value_at_quantile(0.99) as f64 / 1e3,
            first_token_p50_ms: None,
            throughput: all_latencies.len() as f64 / started.elapsed().as_secs_f64(),
            lost,
        }
    }

    /// Stops the tasks and deletes the topics.
    pub(crate) async fn stop(self) {
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
        let topics = [&*self.shared.question_topic, &*self.shared.answer_topic];
        let _ = self
            .admin
            .delete_topics(&topics, &AdminOptions::new())
            .await;
        let _ = self.shared.redis.quit().await;
        let _ = self.shared.subscriber.quit().await;
        // Dropping the clients blocks until their threads have ended.
        let _ = tokio::task::spawn_blocking(move || drop((self.shared, self.admin))).await;
    }
}

/// Returns an empty histogram of latencies in microseconds, up to one minute.
fn histogram() -> Histogram<u32> {
    Histogram::new_with_bounds(1, 60_000_000, 3).unwrap()
}

/// Parses a payload, which is the client's number, the message's number and padding. Returns both
/// numbers; `None` if they are missing.
fn parse_payload(payload: &[u8]) -> Option<(u64, u64)> {
    let mut words = std::str::from_utf8(payload).ok()?.split(' ');
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

impl Shared {
    /// Sends a message of a client and waits for its answer. Returns the latency; `None` if the
    /// answer is lost.
    async fn send_and_wait(&self, client: usize) -> Option<Duration> {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let (answer_sender, answer) = oneshot::channel();
        self.waiting_clients
            .lock()
            .unwrap()
            .insert(number, answer_sender);
        let started = Instant::now();
        let payload = format!("{:x<PAYLOAD_BYTES$}", format!("{client} {number} "));
        self.produce(&self.question_topic, client as u64, payload.as_bytes());
        if timeout(ANSWER_TIMEOUT, answer).await.is_err() {
            self.waiting_clients.lock().unwrap().remove(&number);
            return None;
        }
        Some(started.elapsed())
    }

    /// Produces a record in order, without waiting for its acknowledgement. If the record is lost,
    /// the answer counts as lost.
    fn produce(&self, topic: &str, client: u64, payload: &[u8]) {
        let key = client.to_string();
        let record = FutureRecord::to(topic).key(&key).payload(payload);
        assert!(
            self.producer.send_result(record).is_ok(),
            "the producer's queue is full"
        );
    }

    /// Consumes questions, calls the model for each if there is a model, and produces the answers.
    async fn answer(self: Arc<Self>, consumer: StreamConsumer) {
        loop {
            let Ok(record) = consumer.recv().await else {
                continue;
            };
            let payload = record.payload().unwrap_or_default().to_vec();
            let Some((client, _)) = parse_payload(&payload) else {
                continue;
            };
            if self.model_url.is_none() {
                self.produce(&self.answer_topic, client, &payload);
                continue;
            }
            let shared = Arc::clone(&self);
            tokio::spawn(async move {
                shared.call_model().await;
                shared.produce(&shared.answer_topic, client, &payload);
            });
        }
    }

    /// Calls the model and reads the streamed answer to its end.
    async fn call_model(&self) {
        let Some(url) = &self.model_url else { return };
        let body = serde_json::json!({
            "model": "mock",
            "stream": true,
            "stream_options": {"include_usage": true},
            "messages": [{"role": "user", "content": "Tell me what a log is good for."}],
        });
        let request = self
            .http
            .post(format!("{url}/chat/completions"))
            .json(&body);
        let mut response = request.send().await.expect("the mock answers");
        while let Ok(Some(_)) = response.chunk().await {}
    }

    /// Consumes answers and publishes each on its client's channel.
    async fn publish(self: Arc<Self>, consumer: StreamConsumer) {
        loop {
            let Ok(record) = consumer.recv().await else {
                continue;
            };
            let payload = record.payload().unwrap_or_default().to_vec();
            let Some((client, _)) = parse_payload(&payload) else {
                continue;
            };
            let shared = Arc::clone(&self);
            tokio::spawn(async move {
                let channel = format!("{}{client}", shared.channel_prefix);
                let published = shared.redis.publish::<(), _, _>(channel, payload).await;
                published.expect("Redis answers");
            });
        }
    }

    /// Receives published answers and wakes the clients that wait for them.
    async fn receive(self: Arc<Self>) {
        let mut messages = self.subscriber.message_rx();
        while let Ok(message) = messages.recv().await {
            let payload = message.value.as_bytes().unwrap_or_default();
            let answer_sender = parse_payload(payload)
                .and_then(|(_, number)| self.waiting_clients.lock().unwrap().remove(&number));
            if let Some(answer_sender) = answer_sender {
                let _ = answer_sender.send(());
            }
        }
    }
}
