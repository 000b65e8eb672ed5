//! How much chatmesh adds to what it stands on: `just bench-e2e`.
//!
//! In one go, on the same Kafka, Redis and mock model: the *floor*, a bare chain of produce,
//! consume, model call, produce, consume, publish and receive in one process with nothing else;
//! and chatmesh, with a gateway, a worker and a relay as processes, under `chatmesh load-test`.
//! Both are asked by clients that each wait for their answer. Floor and chatmesh take turns, so
//! that a machine that gets slower meanwhile slows both.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    reason = "a benchmark that can't go on panics, and prints what it measured"
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

/// Compares chatmesh with the bare chain below it.
#[derive(Debug, Clone, Parser)]
struct Args {
    /// host:port of a Kafka.
    #[arg(long, env = "TEST_KAFKA")]
    kafka: String,
    /// URL of a single Redis.
    #[arg(long, env = "TEST_REDIS_URL")]
    redis: String,
    /// How long each step is measured, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How long each step runs before that.
    #[arg(long, default_value_t = 3)]
    warm_up: u64,
    /// Clients that each wait for their answer.
    #[arg(long, value_delimiter = ',', default_value = "1,10,100")]
    clients: Vec<usize>,
    /// Clients that find the highest throughput.
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
    /// Parts to run: with the mock model, without any (chatmesh: built in), with a slow one.
    #[arg(long, value_delimiter = ',', default_value = "mock,none,paced")]
    models: Vec<String>,
    /// Measure this executable.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_chatmesh"))]
    chatmesh: PathBuf,
    /// Setting for the roles, as NAME=VALUE; may be repeated.
    #[arg(long)]
    env: Vec<String>,
    /// Write the results here.
    #[arg(long, default_value = "target/bench-e2e.json")]
    json: PathBuf,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a step showed; times in milliseconds.
#[derive(Debug, Clone, Copy, Default)]
struct Measured {
    p50: f64,
    p99: f64,
    first_token_p50: Option<f64>,
    throughput: f64,
    lost: u64,
}

impl Measured {
    fn json(&self) -> Value {
        json!({
            "p50_ms": self.p50,
            "p99_ms": self.p99,
            "first_token_p50_ms": self.first_token_p50,
            "throughput": self.throughput,
            "lost": self.lost,
        })
    }
}

/// The same step of both.
#[derive(Debug)]
struct Pair {
    model: String,
    clients: usize,
    floor: Measured,
    chatmesh: Measured,
}

fn main() {
    // `cargo test --all-targets` starts this too, and would wait for it.
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

async fn run(args: &Args) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for name in &args.models {
        // A paced answer takes 200 ms, token by token; the others come at once.
        let paced = ["--tokens", "20", "--tokens-per-second", "100"];
        let (clients, mock) = match name.as_str() {
            "mock" => (flooded(args), Some(Mock::start(args, &[]))),
            "none" => (flooded(args), None),
            "paced" => (vec![10], Some(Mock::start(args, &paced))),
            other => panic!("{other} is no model: mock, none, paced"),
        };
        let url = mock.as_ref().map(|mock| mock.url.clone());
        let floor = Floor::start(args, url.clone()).await;
        let chatmesh = Chatmesh::start(args, url).await;
        for clients in clients {
            eprintln!("model {name}, {clients} clients");
            let warm_up = Duration::from_secs(args.warm_up);
            let length = Duration::from_secs(args.seconds);
            floor.run(clients, warm_up).await;
            let bare = floor.run(clients, length).await;
            chatmesh.run(clients, warm_up).await;
            let ours = chatmesh.run(clients, length).await;
            eprintln!("  floor    {bare:?}\n  chatmesh {ours:?}");
            pairs.push(Pair {
                model: name.clone(),
                clients,
                floor: bare,
                chatmesh: ours,
            });
        }
        floor.stop().await;
        chatmesh.stop().await;
    }
    pairs
}

fn flooded(args: &Args) -> Vec<usize> {
    let mut clients = args.clients.clone();
    if args.flood > 0 {
        clients.push(args.flood);
    }
    clients
}
