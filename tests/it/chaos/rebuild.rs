//! Measures how fast a relay rebuilds an emptied Redis from the log: `tests/run --rebuild RECORDS`.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::number_or_default;
use crate::support::model::ScriptedModel;
use crate::support::stack::{RELAYS, RESPONSES, Stack};
use crate::support::{redis, wait_until};

const PARTITIONS: i32 = 12;
const USERS: usize = 2000;
/// Length of an answer's text in bytes.
const TEXT_BYTES: usize = 400;
/// Limit for reading the log once, with room for a slow machine.
const READ_TIMEOUT: Duration = Duration::from_secs(300);
/// The log line of a relay whose rewind is complete.
const REWIND_COMPLETE_MESSAGE: &str =
    "rewind of all partitions complete: the records were delivered again";

/// The user and value of a terminal record as a worker produces it (docs/protocol.md, section 2).
fn terminal_record(n: usize) -> (String, String) {
    let user = format!("u{}", n * 7919 % USERS);
    let message = uuid::Uuid::from_u128(0x4000_0000_0000_8000_0000_0000_0000_0000 + n as u128);
    let value = json!({
        "v": 1, "type": "response", "content": "x".repeat(TEXT_BYTES), "userid": user,
        "timestamp": "2026-01-01T10:00:00.000Z", "processing_time_ms": 812,
        "correlation_id": message, "message_id": message, "id": format!("m{n}"),
        "conversation_id": "default", "finish_reason": "stop", "model": "demo", "attempt": 1,
        "usage": {"prompt_tokens": 10, "completion_tokens": 60, "total_tokens": 70},
    });
    (user, value.to_string())
}

/// Processor time that a process has used so far, in seconds.
fn processor_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    // The process name may contain spaces and ends at the last parenthesis. utime and stime are in
    // 1/100 s.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<f64> = after_name
        .split_whitespace()
        .map(|f| f.parse().unwrap_or_default())
        .collect();
    (fields[11] + fields[12]) / 100.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, on a quiet machine: tests/run --rebuild RECORDS"]
async fn emptied_redis_is_rebuilt_completely() {
    let records =
        usize::try_from(number_or_default("CHATMESH_REBUILD_RECORDS", 50_000)).expect("a count");
    let stack = Stack::start_with(ScriptedModel::start().await).await;
    let kafka = stack.kafka_client();
    kafka.create_topic(RESPONSES, PARTITIONS).await;
    let relay = stack.relay("relay_1").start().await;
    for first in (0..records).step_by(2000) {
        let mut appends = JoinSet::new();
        for n in first..(first + 2000).min(records) {
            let kafka = kafka.clone();
            appends.spawn(async move {
                let (user, value) = terminal_record(n);
                kafka.produce(RESPONSES, Some(&user), &value, &[]).await;
            });
        }
        appends.join_all().await;
    }
    wait_until("every record is delivered", READ_TIMEOUT, || async {
        kafka.lag(RELAYS, RESPONSES).await == 0
    })
    .await;
    let port = stack.redis.port();
    let keys_before = redis::key_count(port);
    let pids = [relay.pid(), stack.redis.pid()];
    let seconds_before = pids.map(processor_seconds);
    stack.redis.flush_all();
    relay
        .wait_for_log(REWIND_COMPLETE_MESSAGE, READ_TIMEOUT)
        .await;
    let log = relay.log();
    let line = log
        .lines()
        .find(|line| line.contains(REWIND_COMPLETE_MESSAGE));
    let log_line: Value = serde_json::from_str(line.expect("the line")).expect("a line of JSON");
    eprintln!("rebuild: {log_line}");
    eprintln!(
        "rebuild: processor time of the relay {:.1} s, of Redis {:.1} s; {keys_before} keys before, {} after",
        processor_seconds(pids[0]) - seconds_before[0],
        processor_seconds(pids[1]) - seconds_before[1],
        redis::key_count(port),
    );
    assert_eq!(
        log_line["records"], records,
        "every record must be delivered again"
    );
    assert_eq!(
        redis::key_count(port),
        keys_before,
        "Redis must have all keys again"
    );
}
