//! Steady traffic for a long time: no resource may grow.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::clients::{LoadSize, SimulatedUsers};
use super::fleet::Fleet;
use super::journal::Journal;
use super::number_or_default;
use crate::support::{http, redis};

/// Interval between two samples.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
/// Retention in seconds of all data that is stored for a message. It is short, so that data expires
/// during a run.
const RETENTION_SECONDS: &str = "30";

/// The samples of each resource.
type Series = BTreeMap<String, Vec<f64>>;

async fn record_samples(fleet: &Fleet, series: &mut Series) {
    let metrics = [
        (
            "process_resident_memory_bytes",
            "memory in MiB",
            1_048_576.0,
        ),
        ("process_open_fds", "descriptors", 1.0),
        ("chatmesh_tasks", "tasks", 1.0),
    ];
    for member in &fleet.members {
        let process = member.process.as_ref().expect("the process runs");
        let text = http::get(&process.url("/metrics")).await.body;
        for (metric, label, unit) in metrics {
            let value = text.lines().find_map(|line| {
                let rest = line.strip_prefix(metric)?;
                rest.rsplit(' ').next()?.parse::<f64>().ok()
            });
            let value = value.unwrap_or_else(|| panic!("{} has no {metric}", member.name));
            let name = format!("{} {label}", member.name);
            series.entry(name).or_default().push(value / unit);
        }
    }
    let keys = redis::key_count(fleet.redis.port());
    series
        .entry("Redis keys".into())
        .or_default()
        .push(keys as f64);
}

/// The 10th percentile and the median. The number of answers in flight varies with the machine,
/// while a leak also raises the lowest values.
fn quiet_and_median(values: &[f64]) -> (f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[sorted.len() / 10], sorted[sorted.len() / 2])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs for the requested number of minutes: tests/run --soak MINUTES"]
async fn steady_traffic_grows_no_resource() {
    let period = Duration::from_secs(60 * number_or_default("CHATMESH_SOAK_MINUTES", 5));
    let retention_settings = [
        "DEDUP_TTL",
        "MAILBOX_TTL",
        "CHAT_HISTORY_TTL",
        "MESSAGE_MAX_AGE",
    ];
    let retention_settings = retention_settings.map(|name| (name, RETENTION_SECONDS));
    let fleet = Fleet::start_with(&retention_settings).await;
    let journal = Arc::new(Journal::default());
    let size = LoadSize {
        users: 60,
        classic_users: 10,
        pace: Duration::from_millis(1500),
    };
    let mut simulated_users = SimulatedUsers::start(
        size,
        &fleet.client_ports(),
        &journal,
        number_or_default("CHATMESH_CHAOS_SEED", 1),
    );
    let mut series = Series::new();
    let started = Instant::now();
    while started.elapsed() < period {
        sleep(SAMPLE_INTERVAL).await;
        record_samples(&fleet, &mut series).await;
        assert_eq!(simulated_users.failure(), None);
    }
    let (messages, _) = journal.counts();
    let observations = simulated_users.finish().await;
    assert!(observations.is_ok(), "{observations:?}");
    eprintln!(
        "soak: {} s, {messages} messages; the second and the last quarter, 10th percentile and median",
        period.as_secs()
    );
    let mut grown_resources = Vec::new();
    for (name, values) in &series {
        let quarter = values.len() / 4;
        assert!(quarter > 0, "too few samples: run for more minutes");
        // The first quarter is a warm-up: pools and caches fill, and entries reach their retention.
        let (early, median_early) = quiet_and_median(&values[quarter..2 * quarter]);
        let (late, median_late) = quiet_and_median(&values[values.len() - quarter..]);
        eprintln!(
            "soak:   {name:<28} {early:10.1} {late:10.1} {median_early:10.1} {median_late:10.1}"
        );
        // Growth by up to a tenth and a constant counts as noise.
        if late > early * 1.1 + 8.0 {
            grown_resources.push(format!("{name}: {early:.1} to {late:.1}"));
        }
    }
    assert!(
        grown_resources.is_empty(),
        "resources that grew: {grown_resources:?}"
    );
}
