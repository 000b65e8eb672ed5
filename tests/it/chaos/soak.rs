//! Steady traffic for a long time: no resource may grow.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::clients::{LoadSize, SimulatedUsers};
use super::fleet::Fleet;
use super::journal::Journal;
use super::number;
use crate::support::{http, redis};

/// Interval between two samples.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
/// Retention in seconds of everything that is stored per message; short, so that it expires in a
/// run.
const RETENTION_SECONDS: &str = "30";

/// The samples of each resource.
type Series = BTreeMap<String, Vec<f64>>;

async fn record_samples(fleet: &Fleet, series: &mut Series) {
    let watched = [
        (
            "process_resident_memory_bytes",
            "memory in MiB",
            1_048_576.0,
        ),
        ("process_open_fds", "descriptors", 1.0),
        ("chatmesh_tasks", "tasks", 1.0),
    ];
    for member in &fleet.members {
        let process = member.process.as_ref().expect("it runs");
        let text = http::get(&process.url("/metrics")).await.body;
        for (metric, what, unit) in watched {
            let value = text.lines().find_map(|line| {
                let rest = line.strip_prefix(metric)?;
                rest.rsplit(' ').next()?.parse::<f64>().ok()
            });
            let value = value.unwrap_or_else(|| panic!("{} has no {metric}", member.name));
            let name = format!("{} {what}", member.name);
            series.entry(name).or_default().push(value / unit);
        }
    }
    let keys = redis::key_count(fleet.redis.port());
    series
        .entry("Redis keys".into())
        .or_default()
        .push(keys as f64);
}

/// The lowest tenth and the median. The number of answers in flight varies with the machine, while
/// a leak also shows in quiet moments.
fn quiet_and_median(values: &[f64]) -> (f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[sorted.len() / 10], sorted[sorted.len() / 2])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs for the requested number of minutes: tests/run --soak MINUTES"]
async fn steady_traffic_grows_no_resource() {
    let period = Duration::from_secs(60 * number("CHATMESH_SOAK_MINUTES", 5));
    let kept = [
        "DEDUP_TTL",
        "MAILBOX_TTL",
        "CHAT_HISTORY_TTL",
        "MESSAGE_MAX_AGE",
    ];
    let kept = kept.map(|name| (name, RETENTION_SECONDS));
    let fleet = Fleet::start_with(&kept).await;
    let journal = Arc::new(Journal::default());
    let size = LoadSize {
        users: 60,
        classic: 10,
        pace: Duration::from_millis(1500),
    };
    let mut simulated_users = SimulatedUsers::start(
        size,
        &fleet.client_ports(),
        &journal,
        number("CHATMESH_CHAOS_SEED", 1),
    );
    let mut series = Series::new();
    let started = Instant::now();
    while started.elapsed() < period {
        sleep(SAMPLE_INTERVAL).await;
        record_samples(&fleet, &mut series).await;
        assert_eq!(simulated_users.failed(), None);
    }
    let (messages, _) = journal.counts();
    let seen = simulated_users.finish().await;
    assert!(seen.is_ok(), "{seen:?}");
    eprintln!(
        "soak: {} s, {messages} messages; the second and the last quarter, lowest tenth and median",
        period.as_secs()
    );
    let mut grown = Vec::new();
    for (name, values) in &series {
        let quarter = values.len() / 4;
        assert!(quarter > 0, "too short to say anything: give it minutes");
        // The first quarter is a warm-up: pools and caches fill, and entries reach their retention.
        let (early, usual_early) = quiet_and_median(&values[quarter..2 * quarter]);
        let (late, usual_late) = quiet_and_median(&values[values.len() - quarter..]);
        eprintln!(
            "soak:   {name:<28} {early:10.1} {late:10.1} {usual_early:10.1} {usual_late:10.1}"
        );
        // A tenth plus a constant is noise.
        if late > early * 1.1 + 8.0 {
            grown.push(format!("{name}: {early:.1} to {late:.1}"));
        }
    }
    assert!(grown.is_empty(), "grown: {grown:?}");
}
