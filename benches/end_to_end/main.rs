//! End-to-end benchmark: how much latency chatmesh adds to the services underneath it. Run it with
//! `just bench-e2e`.
//!
//! It measures two systems on the same Kafka, Redis and mock model. The *floor* is a bare chain of
//! produce, consume, model call, produce, consume, publish and receive in one process. chatmesh
//! runs as three processes (gateway, worker, relay) under `chatmesh load-test`. In both systems
//! each client waits for its answer before it sends the next message. Their steps alternate, so
//! that a machine that becomes slower during the run affects both systems.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    reason = "a benchmark that fails panics, and a successful one prints its results"
)]

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};

mod chatmesh;
mod floor;
mod table;

use chatmesh::{Chatmesh, Mock};
use floor::Floor;

/// Compares chatmesh with the bare chain of the services underneath it.
#[derive(Debug, Clone, Parser)]
struct Args {
    /// host:port of a Kafka broker.
    #[arg(long, env = "TEST_KAFKA")]
    kafka: String,
    /// URL of a Redis that is not a cluster.
    #[arg(long, env = "TEST_REDIS_URL")]
    redis: String,
    /// Measured time of each step, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Time of each step before the measured time, in seconds.
    #[arg(long, default_value_t = 3)]
    warm_up: u64,
    /// Numbers of clients; each number is one step.
    #[arg(long, value_delimiter = ',', default_value = "1,10,100")]
    clients: Vec<usize>,
    /// Number of clients of the step that finds the highest throughput; 0 omits it.
    #[arg(long, default_value_t = 1000)]
    flood: usize,
    /// Tokens of the mock model's answers.
    #[arg(long, default_value_t = 10)]
    tokens: u32,
    /// `linger.ms` of all producers.
    #[arg(long, default_value_t = 1)]
    linger: u32,
    /// Partitions of the topics.
    #[arg(long, default_value_t = 12)]
    partitions: i32,
    /// Models to measure with: `mock` answers at once, `none` is no model (chatmesh answers with
    /// its built-in one), `paced` takes 200 ms.
    #[arg(long, value_delimiter = ',', default_value = "mock,none,paced")]
    models: Vec<String>,
    /// The chatmesh executable to measure.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_chatmesh"))]
    chatmesh: PathBuf,
    /// A setting for the roles, as NAME=VALUE. May be repeated.
    #[arg(long)]
    env: Vec<String>,
    /// File for the results as JSON.
    #[arg(long, default_value = "target/bench-e2e.json")]
    json: PathBuf,
    /// Passed by cargo; has no effect.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The result of one step: latencies of the whole answer and of its first token, and counts.
#[derive(Debug, Clone, Copy, Default)]
struct StepResult {
    p50_ms: f64,
    p99_ms: f64,
    /// `None` for the floor, which does not stream the answer to the client.
    first_token_p50_ms: Option<f64>,
    /// Number of answers a second.
    throughput: f64,
    /// Number of messages without an answer.
    lost: u64,
}

impl StepResult {
    fn json(&self) -> Value {
        json!({
            "p50_ms": self.p50_ms,
            "p99_ms": self.p99_ms,
            "first_token_p50_ms": self.first_token_p50_ms,
            "throughput": self.throughput,
            "lost": self.lost,
        })
    }
}

/// The results of the same step of both systems.
#[derive(Debug)]
struct StepPair {
    model: String,
    clients: usize,
    floor: StepResult,
    chatmesh: StepResult,
}

fn main() {
    // `cargo test --all-targets` also runs this executable, and would wait for the benchmark.
    if !std::env::args().any(|argument| argument == "--bench") {
        eprintln!("benchmarks run by: just bench-e2e");
        return;
    }
    let args = Args::parse();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let pairs = runtime.block_on(run(&args));
    println!("{}", table::text(&pairs));
    let rows: Vec<Value> = pairs.iter().map(table::json).collect();
    let result = json!({
        "seconds": args.seconds,
        "linger_ms": args.linger,
        "partitions": args.partitions,
        "tokens": args.tokens,
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "steps": rows,
    });
    std::fs::write(&args.json, format!("{result:#}\n")).expect("write the results");
    println!("{}", args.json.display());
}

/// Runs all steps of both systems with each model, and returns their results.
async fn run(args: &Args) -> Vec<StepPair> {
    let mut pairs = Vec::new();
    for name in &args.models {
        // A paced answer takes 200 ms, token by token; the other models answer at once.
        let paced = ["--tokens", "20", "--tokens-per-second", "100"];
        let (clients, mock) = match name.as_str() {
            "mock" => (client_counts(args), Some(Mock::start(args, &[]))),
            "none" => (client_counts(args), None),
            "paced" => (vec![10], Some(Mock::start(args, &paced))),
            other => panic!("unknown model {other}: use mock, none or paced"),
        };
        let url = mock.as_ref().map(|mock| mock.url.clone());
        let floor = Floor::start(args, url.clone()).await;
        let chatmesh = Chatmesh::start(args, url).await;
        for clients in clients {
            eprintln!("model {name}, {clients} clients");
            let warm_up = Duration::from_secs(args.warm_up);
            let length = Duration::from_secs(args.seconds);
            floor.run(clients, warm_up).await;
            let floor_result = floor.run(clients, length).await;
            chatmesh.run(clients, warm_up).await;
            let chatmesh_result = chatmesh.run(clients, length).await;
            eprintln!("  floor    {floor_result:?}\n  chatmesh {chatmesh_result:?}");
            pairs.push(StepPair {
                model: name.clone(),
                clients,
                floor: floor_result,
                chatmesh: chatmesh_result,
            });
        }
        floor.stop().await;
        chatmesh.stop().await;
    }
    pairs
}

/// Returns the number of clients of each step.
fn client_counts(args: &Args) -> Vec<usize> {
    let mut clients = args.clients.clone();
    if args.flood > 0 {
        clients.push(args.flood);
    }
    clients
}
