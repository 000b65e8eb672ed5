//! The bare chain: produce, consume, call the model, produce, consume, publish, receive. What
//! chatmesh stands on, and nothing that it adds: no checks, no order, no retries, no history.

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

use super::{Args, Measured};

/// As many bytes as a short message has in chatmesh's log.
const BYTES: usize = 230;
/// An answer that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// The running chain.
pub(crate) struct Floor {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
    admin: AdminClient<DefaultClientContext>,
}

struct Shared {
    producer: FutureProducer,
    questions: String,
    answers: String,
    /// Channels are this and the client's number.
    channel: String,
    redis: Client,
    subscriber: SubscriberClient,
    http: reqwest::Client,
    model: Option<String>,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<()>>>,
}

impl Floor {
    pub(crate) async fn start(args: &Args, model: Option<String>) -> Self {
        let name = format!("floor-{}", uuid::Uuid::new_v4().simple());
        let mut common = ClientConfig::new();
        common.set("bootstrap.servers", &args.kafka);
        let admin: AdminClient<_> = common.create().unwrap();
        let (questions, answers) = (format!("{name}-questions"), format!("{name}-answers"));
        let topics = [&questions, &answers]
            .map(|topic| NewTopic::new(topic, args.partitions, TopicReplication::Fixed(1)));
        let made = admin.create_topics(&topics, &AdminOptions::new()).await;
        for topic in made.unwrap() {
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
            channel: format!("{name}-"),
            questions,
            answers,
            redis,
            subscriber,
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            model,
            next: AtomicU64::new(1),
            waiting: Mutex::default(),
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
            tokio::spawn(Arc::clone(&shared).answer(consumer(&shared.questions))),
            tokio::spawn(Arc::clone(&shared).publish(consumer(&shared.answers))),
            tokio::spawn(Arc::clone(&shared).receive()),
        ];
        let floor = Self {
            shared,
            tasks,
            admin,
        };
        // The consumers have their partitions when an answer is there.
        floor.run(1, Duration::from_secs(1)).await;
        floor
    }

    /// Clients that each wait for their answers, for a time.
    pub(crate) async fn run(&self, clients: usize, length: Duration) -> Measured {
        for client in 0..clients {
            let channel = format!("{}{client}", self.shared.channel);
            self.shared.subscriber.subscribe(channel).await.unwrap();
        }
        // On the same connection: when it is answered, the subscriptions are taken.
        self.shared.subscriber.ping::<()>(None).await.unwrap();
        let began = Instant::now();
        let mut asking = JoinSet::new();
        for client in 0..clients {
            let shared = Arc::clone(&self.shared);
            asking.spawn(async move {
                let mut times = histogram();
                let mut lost = 0;
                while began.elapsed() < length {
                    match shared.ask(client).await {
                        Some(took) => times.saturating_record(took.as_micros() as u64),
                        None => lost += 1,
                    }
                }
                (times, lost)
            });
        }
        let mut all = histogram();
        let mut lost = 0;
        while let Some(asked) = asking.join_next().await {
            let (times, missed) = asked.unwrap();
            all.add(&times).unwrap();
            lost += missed;
        }
        Measured {
            p50: all.value_at_quantile(0.5) as f64 / 1e3,
            p99: all.value_at_quantile(0.99) as f64 / 1e3,
            first_token_p50: None,
            throughput: all.len() as f64 / began.elapsed().as_secs_f64(),
            lost,
        }
    }

    pub(crate) async fn stop(self) {
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
        let topics = [&*self.shared.questions, &*self.shared.answers];
        let _ = self
            .admin
            .delete_topics(&topics, &AdminOptions::new())
            .await;
        let _ = self.shared.redis.quit().await;
        let _ = self.shared.subscriber.quit().await;
        // Their ends wait for threads.
        let _ = tokio::task::spawn_blocking(move || drop((self.shared, self.admin))).await;
    }
}

fn histogram() -> Histogram<u32> {
    Histogram::new_with_bounds(1, 60_000_000, 3).unwrap()
}

/// `client number` and padding.
fn numbers(payload: &[u8]) -> Option<(u64, u64)> {
    let mut words = std::str::from_utf8(payload).ok()?.split(' ');
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

impl Shared {
    async fn ask(&self, client: usize) -> Option<Duration> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (done, answered) = oneshot::channel();
        self.waiting.lock().unwrap().insert(number, done);
        let began = Instant::now();
        let payload = format!("{:x<BYTES$}", format!("{client} {number} "));
        self.produce(&self.questions, client as u64, payload.as_bytes());
        if timeout(PATIENCE, answered).await.is_err() {
            self.waiting.lock().unwrap().remove(&number);
            return None;
        }
        Some(began.elapsed())
    }

    /// In order, and without waiting: that it is there shows when it is consumed.
    fn produce(&self, topic: &str, client: u64, payload: &[u8]) {
        let key = client.to_string();
        let record = FutureRecord::to(topic).key(&key).payload(payload);
        assert!(
            self.producer.send_result(record).is_ok(),
            "Kafka's queue is full"
        );
    }

    async fn answer(self: Arc<Self>, consumer: StreamConsumer) {
        loop {
            let Ok(record) = consumer.recv().await else {
                continue;
            };
            let payload = record.payload().unwrap_or_default().to_vec();
            let Some((client, _)) = numbers(&payload) else {
                continue;
            };
            if self.model.is_none() {
                self.produce(&self.answers, client, &payload);
                continue;
            }
            let shared = Arc::clone(&self);
            tokio::spawn(async move {
                shared.call().await;
                shared.produce(&shared.answers, client, &payload);
            });
        }
    }

    /// Reads a streamed answer to its end.
    async fn call(&self) {
        let Some(url) = &self.model else { return };
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

    async fn publish(self: Arc<Self>, consumer: StreamConsumer) {
        loop {
            let Ok(record) = consumer.recv().await else {
                continue;
            };
            let payload = record.payload().unwrap_or_default().to_vec();
            let Some((client, _)) = numbers(&payload) else {
                continue;
            };
            let shared = Arc::clone(&self);
            tokio::spawn(async move {
                let channel = format!("{}{client}", shared.channel);
                let published = shared.redis.publish::<(), _, _>(channel, payload).await;
                published.expect("Redis answers");
            });
        }
    }

    async fn receive(self: Arc<Self>) {
        let mut messages = self.subscriber.message_rx();
        while let Ok(message) = messages.recv().await {
            let payload = message.value.as_bytes().unwrap_or_default();
            let waiting = numbers(payload)
                .and_then(|(_, number)| self.waiting.lock().unwrap().remove(&number));
            if let Some(done) = waiting {
                let _ = done.send(());
            }
        }
    }
}
