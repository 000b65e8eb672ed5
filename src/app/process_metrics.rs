//! Records metrics of the process itself: version, resources, and whether its dependencies respond.
//! The `process_*` metrics have the names of Prometheus' client libraries.

use std::time::{SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge};

use crate::config::Role;
use crate::telemetry::logs;
use crate::telemetry::metrics::declare_metrics;

declare_metrics! {
    BUILD_INFO: Gauge in Count = "chatmesh_build_info", ["version", "role"],
        "Version and role of this process; always 1.";
    START_TIME: Gauge in Seconds = "process_start_time_seconds", [],
        "Start of the process, in seconds since the Unix epoch.";
    RESIDENT_MEMORY: Gauge in Bytes = "process_resident_memory_bytes", [],
        "Resident memory of the process.";
    OPEN_FDS: Gauge in Count = "process_open_fds", [],
        "Open file descriptors.";
    MAX_FDS: Gauge in Count = "process_max_fds", [],
        "Maximum number of open file descriptors.";
    TASKS: Gauge in Count = "chatmesh_tasks", [],
        "Asynchronous tasks that are alive in the tokio runtime.";
    DEPENDENCY_UP: Gauge in Count = "chatmesh_dependency_up", ["dependency"],
        "1 while the dependency responds to health checks, otherwise 0.";
    LOG_LINES_DROPPED: Counter in Count = "chatmesh_log_lines_dropped_total", [],
        "Log lines dropped because the log file's bounded queue was full: the disk is too slow.";
}

/// The handles of the metrics whose values are read when metrics are rendered: from `/proc`, where
/// it exists, from the tokio runtime, and from the logs.
#[derive(Debug)]
pub(super) struct ProcessMetrics {
    resident_memory: Gauge,
    open_fds: Gauge,
    max_fds: Gauge,
    tasks: Gauge,
    log_lines_dropped: Counter,
}

impl ProcessMetrics {
    /// Creates the handles, and sets the metrics that never change: version, role and start time.
    /// The metrics recorder must be installed before.
    pub(super) fn new(role: Role) -> Self {
        let build_info = BUILD_INFO.gauge(&[env!("CARGO_PKG_VERSION"), role.as_str()]);
        build_info.set(1.0);
        if let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH) {
            START_TIME.gauge(&[]).set(now.as_secs_f64());
        }
        Self {
            resident_memory: RESIDENT_MEMORY.gauge(&[]),
            open_fds: OPEN_FDS.gauge(&[]),
            max_fds: MAX_FDS.gauge(&[]),
            tasks: TASKS.gauge(&[]),
            log_lines_dropped: LOG_LINES_DROPPED.counter(&[]),
        }
    }

    /// Updates the metrics. The exporter calls this before it renders them.
    pub(super) fn update(&self) {
        if let Some(kib) = first_number_after("/proc/self/status", "VmRSS:") {
            self.resident_memory.set(kib * 1024.0);
        }
        if let Some(limit) = first_number_after("/proc/self/limits", "Max open files") {
            self.max_fds.set(limit);
        }
        if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
            // One descriptor is subtracted, because listing the directory opens it.
            self.open_fds.set(entries.count().saturating_sub(1) as f64);
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.tasks.set(runtime.metrics().num_alive_tasks() as f64);
        }
        self.log_lines_dropped.absolute(logs::dropped_lines());
    }
}

/// Returns the first number after `label` in the line that starts with `label`. `None` if the file
/// can't be read or has no such number.
fn first_number_after(path: &str, label: &str) -> Option<f64> {
    let text = std::fs::read_to_string(path).ok()?;
    let values = text.lines().find_map(|line| line.strip_prefix(label))?;
    values.split_whitespace().next()?.parse().ok()
}
