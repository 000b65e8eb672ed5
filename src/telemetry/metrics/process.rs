//! The process itself: what it is, how it does, and whether its dependencies answer.

use std::time::{SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge, Unit};

use super::{Kind, Metric};

/// Always 1; the labels say what runs.
pub const BUILD_INFO: Metric = Metric {
    name: "chatmesh_build_info",
    kind: Kind::Gauge,
    unit: Unit::Count,
    help: "Version and role of this process; always 1",
    labels: &["version", "role"],
};

/// When this process began.
pub const START_TIME: Metric = Metric {
    name: "process_start_time_seconds",
    kind: Kind::Gauge,
    unit: Unit::Seconds,
    help: "Start of the process, since the Unix epoch",
    labels: &[],
};

/// Memory that the process holds.
pub const RESIDENT_MEMORY: Metric = Metric {
    name: "process_resident_memory_bytes",
    kind: Kind::Gauge,
    unit: Unit::Bytes,
    help: "Resident memory",
    labels: &[],
};

/// Descriptors in use.
pub const OPEN_FDS: Metric = Metric {
    name: "process_open_fds",
    kind: Kind::Gauge,
    unit: Unit::Count,
    help: "Open file descriptors",
    labels: &[],
};

/// Descriptors allowed.
pub const MAX_FDS: Metric = Metric {
    name: "process_max_fds",
    kind: Kind::Gauge,
    unit: Unit::Count,
    help: "Limit of open file descriptors",
    labels: &[],
};

/// Units of work that the runtime keeps: connections, lanes, timers' owners.
pub const TASKS: Metric = Metric {
    name: "chatmesh_tasks",
    kind: Kind::Gauge,
    unit: Unit::Count,
    help: "Asynchronous tasks that are alive",
    labels: &[],
};

/// Set by the watcher of dependencies.
pub const DEPENDENCY_UP: Metric = Metric {
    name: "chatmesh_dependency_up",
    kind: Kind::Gauge,
    unit: Unit::Count,
    help: "1 while the dependency answers",
    labels: &["dependency"],
};

/// Lines that the log file's bounded queue could not take.
pub const LOG_LINES_DROPPED: Metric = Metric {
    name: "chatmesh_log_lines_dropped_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Log lines dropped because the disk was slower than the log",
    labels: &[],
};

/// All of this file.
pub const ALL: &[&Metric] = &[
    &BUILD_INFO,
    &START_TIME,
    &RESIDENT_MEMORY,
    &OPEN_FDS,
    &MAX_FDS,
    &TASKS,
    &DEPENDENCY_UP,
    &LOG_LINES_DROPPED,
];

/// Sets the gauges about the process from `/proc`, where there is one, and from the runtime.
#[derive(Debug)]
pub(super) struct Process {
    resident: Gauge,
    open_fds: Gauge,
    max_fds: Gauge,
    tasks: Gauge,
    lines_dropped: Counter,
}

impl Process {
    pub(super) fn new() -> Self {
        if let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH) {
            START_TIME.gauge(&[]).set(now.as_secs_f64());
        }
        Self {
            resident: RESIDENT_MEMORY.gauge(&[]),
            open_fds: OPEN_FDS.gauge(&[]),
            max_fds: MAX_FDS.gauge(&[]),
            tasks: TASKS.gauge(&[]),
            lines_dropped: LOG_LINES_DROPPED.counter(&[]),
        }
    }

    pub(super) fn update(&self) {
        if let Some(kib) = number_in("/proc/self/status", "VmRSS:") {
            self.resident.set(kib * 1024.0);
        }
        if let Some(limit) = number_in("/proc/self/limits", "Max open files") {
            self.max_fds.set(limit);
        }
        if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
            // The listing itself has one open.
            self.open_fds.set(entries.count().saturating_sub(1) as f64);
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.tasks.set(runtime.metrics().num_alive_tasks() as f64);
        }
        self.lines_dropped
            .absolute(crate::telemetry::logs::dropped_lines());
    }
}

/// The first number after `name` at the start of a line.
fn number_in(path: &str, name: &str) -> Option<f64> {
    let text = std::fs::read_to_string(path).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}
