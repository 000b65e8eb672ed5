//! The loop that owns a consumer: it puts records into lanes, starts a task for the first record of
//! each lane, and stores the offset below which every record is finished.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::dead_letter_writer::DeadLetterWriter;
use super::handler::{Delivery, Handler};
use super::metrics::PipelineMetrics;
use super::partition::{EnqueueResult, Partition, RewindState};
use super::record_worker::{RecordResult, RecordWorker};
use super::rewind::{RewindPolicy, RewindRequest, RewindTarget, Rewinder};
use crate::config::settings::PipelineSettings;
use crate::log::{Assignment, Consumer, ConsumerEvent};
use crate::protocol::log_record::Record;

/// Interval at which rewinds are checked for completion, because a rewind may end by silence alone.
const REWIND_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// What a role passes to [`run`].
pub struct Dependencies {
    /// Reads the records, as a member of the role's consumer group.
    pub consumer: Box<dyn Consumer>,
    /// Processes the records.
    pub handler: Arc<dyn Handler>,
    /// Decides where partitions are read again from; `None` for a role that never rewinds.
    pub rewind_policy: Option<Arc<dyn RewindPolicy>>,
    /// Receives the role's requests to rewind partitions; `None` for a role that never rewinds.
    pub rewind_requests: Option<mpsc::Receiver<RewindRequest>>,
    /// Writes the records that cannot be processed to the dead-letter topic.
    pub dead_letters: DeadLetterWriter,
    /// Topic, group and limits.
    pub settings: PipelineSettings,
    /// Gauges and counters of this pipeline.
    pub metrics: PipelineMetrics,
}

/// Runs a pipeline until `drain` fires. Then finishes the records in progress within
/// `drain_timeout`, commits, and leaves the group. The tasks of records that are still in progress
/// at the timeout are aborted; the next owner of their partitions reads these records again.
pub async fn run(dependencies: Dependencies, drain: CancellationToken) {
    Driver::new(dependencies).run(drain).await;
}

/// The task of one record, which has ended: where the record came from, and the task's result.
struct EndedTask {
    partition: i32,
    /// The partition's assignment under which the task was started.
    assignment_id: u64,
    /// The partition's generation under which the task was started.
    generation: u64,
    lane: String,
    offset: i64,
    /// See [`Delivery::already_finished`].
    already_finished: bool,
    record_size_bytes: usize,
    result: RecordResult,
}

/// Number and size of the records in memory: those that wait in a lane, and those that are being
/// processed.
#[derive(Debug, Default)]
struct Backlog {
    records: usize,
    bytes: usize,
}

impl Backlog {
    /// Counts one record of this size.
    fn add(&mut self, bytes: usize) {
        self.records += 1;
        self.bytes += bytes;
    }

    /// Subtracts a number of records and their size in bytes.
    fn remove(&mut self, (records, bytes): (usize, usize)) {
        self.records = self.records.saturating_sub(records);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

struct Driver {
    consumer: Box<dyn Consumer>,
    worker: Arc<RecordWorker>,
    rewinder: Option<Rewinder>,
    rewind_requests: Option<mpsc::Receiver<RewindRequest>>,
    settings: PipelineSettings,
    metrics: PipelineMetrics,
    partitions: HashMap<i32, Partition>,
    /// Number of running tasks per partition, tasks of earlier assignments included.
    running_tasks: HashMap<i32, usize>,
    /// The running tasks, one for each record that waits for a slot or is being processed.
    tasks: JoinSet<EndedTask>,
    /// The highest assignment id or generation that any partition has received. Both are numbered
    /// together from 1.
    last_generation: u64,
    backlog: Backlog,
    /// Whether the consumer is paused, by backpressure or by the drain.
    is_paused: bool,
    /// Parent of every partition's stop token. The drain cancels it.
    stop: CancellationToken,
}

impl Driver {
    fn new(dependencies: Dependencies) -> Self {
        let topic = dependencies.settings.topic.clone();
        Self {
            consumer: dependencies.consumer,
            worker: Arc::new(RecordWorker {
                handler: dependencies.handler,
                dead_letters: dependencies.dead_letters,
                slots: Arc::new(Semaphore::new(dependencies.settings.max_workers)),
                max_deliveries: dependencies.settings.max_deliveries,
                group: dependencies.settings.group.clone(),
            }),
            rewinder: dependencies
                .rewind_policy
                .map(|policy| Rewinder::new(policy, topic)),
            rewind_requests: dependencies.rewind_requests,
            settings: dependencies.settings,
            metrics: dependencies.metrics,
            partitions: HashMap::new(),
            running_tasks: HashMap::new(),
            tasks: JoinSet::new(),
            last_generation: 0,
            backlog: Backlog::default(),
            is_paused: false,
            stop: CancellationToken::new(),
        }
    }

    async fn run(mut self, drain: CancellationToken) {
        let mut tick = tokio::time::interval(REWIND_CHECK_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut drain_deadline: Option<Instant> = None;
        loop {
            tokio::select! {
                event = self.consumer.next() => self.on_event(event, drain_deadline.is_some()),
                Some(joined) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    self.on_task_joined(joined);
                    while let Some(joined) = self.tasks.try_join_next() {
                        self.on_task_joined(joined);
                    }
                }
                target = next_rewind_step(&mut self.rewinder) => {
                    if let Some(target) = target {
                        self.on_rewind_target(&target);
                    }
                }
                Some(request) = next_rewind_request(&mut self.rewind_requests) => {
                    self.on_rewind_request(request);
                }
                _ = tick.tick() => self.end_complete_rewinds(),
                () = drain.cancelled(), if drain_deadline.is_none() => {
                    drain_deadline = Some(Instant::now() + self.settings.drain_timeout);
                    self.start_drain();
                }
                () = sleep_until(drain_deadline) => break,
            }
            self.seek_idle_partitions().await;
            self.apply_backpressure();
            if let Some(rewinder) = &mut self.rewinder {
                rewinder.log_if_all_complete(self.partitions.values());
            }
            if drain_deadline.is_some() && self.tasks.is_empty() {
                break;
            }
        }
        if !self.tasks.is_empty() {
            tracing::warn!(
                group = %self.settings.group,
                records = self.tasks.len(),
                "drain deadline exceeded: records in progress are aborted and will be read again \
                 by the next owner of their partitions; raise DRAIN_TIMEOUT_MS if this is frequent"
            );
        }
        self.tasks.shutdown().await;
        self.consumer.close().await;
    }

    fn start_drain(&mut self) {
        self.stop.cancel();
        for partition in self.partitions.values_mut() {
            self.backlog.remove(partition.clear_waiting());
        }
        self.consumer.pause();
        self.is_paused = true;
        tracing::info!(
            group = %self.settings.group,
            in_progress = self.tasks.len(),
            "drain started: records in progress are finished, no further records are started"
        );
    }

    fn on_event(&mut self, event: ConsumerEvent, is_draining: bool) {
        match event {
            ConsumerEvent::Assigned(assigned) => {
                for assignment in assigned {
                    self.on_assigned(assignment);
                }
            }
            ConsumerEvent::Revoked(revoked) => {
                for partition in revoked {
                    self.on_revoked(partition);
                }
            }
            ConsumerEvent::Record(_) if is_draining => {}
            ConsumerEvent::Record(record) => self.on_record(record),
        }
    }

    fn on_assigned(&mut self, assignment: Assignment) {
        let Assignment {
            partition: number,
            committed_offset: committed,
        } = assignment;
        self.on_revoked(number);
        let assignment_id = self.next_generation();
        tracing::info!(
            group = %self.settings.group, topic = %self.settings.topic, partition = number,
            committed, "partition assigned"
        );
        let partition = Partition::new(assignment_id, committed, self.stop.child_token());
        self.partitions.insert(number, partition);
        self.rewind(number);
    }

    fn on_revoked(&mut self, number: i32) {
        if let Some(mut partition) = self.partitions.remove(&number) {
            partition.stop.cancel();
            self.backlog.remove(partition.clear_waiting());
            tracing::info!(
                group = %self.settings.group, topic = %self.settings.topic, partition = number,
                "partition revoked"
            );
        }
    }

    fn on_record(&mut self, record: Record) {
        let Some(partition) = self.partitions.get_mut(&record.partition) else {
            return;
        };
        let (number, size) = (record.partition, record.size());
        let lane = self.worker.handler.lane(&record);
        match partition.enqueue(record, lane) {
            EnqueueResult::Dropped => return,
            EnqueueResult::Queued => {}
            EnqueueResult::Started(lane, delivery) => self.start_task(number, lane, delivery),
        }
        self.metrics.received.increment(1);
        self.backlog.add(size);
    }

    /// Starts the task that processes a record. Does nothing if the partition is not assigned.
    fn start_task(&mut self, number: i32, lane: String, delivery: Delivery) {
        let Some(partition) = self.partitions.get(&number) else {
            return;
        };
        let (assignment_id, stop) = (partition.assignment_id, partition.stop.clone());
        *self.running_tasks.entry(number).or_default() += 1;
        let worker = Arc::clone(&self.worker);
        self.tasks.spawn(async move {
            let result = worker.process(&delivery, stop).await;
            EndedTask {
                partition: number,
                assignment_id,
                generation: delivery.generation,
                lane,
                offset: delivery.record.offset,
                already_finished: delivery.already_finished,
                record_size_bytes: delivery.record.size(),
                result,
            }
        });
    }

    fn on_task_joined(&mut self, joined: Result<EndedTask, JoinError>) {
        match joined {
            Ok(ended) => self.on_task_ended(&ended),
            // `RecordWorker` catches panics of handlers, so the panic is a defect of the pipeline.
            Err(error) => tracing::error!(
                %error,
                "the task of a record panicked; its offset stays uncommitted and the record is \
                 read again after a restart: restart this process and report the error"
            ),
        }
    }

    fn on_task_ended(&mut self, ended: &EndedTask) {
        self.backlog.remove((1, ended.record_size_bytes));
        if let Some(count) = self.running_tasks.get_mut(&ended.partition) {
            *count = count.saturating_sub(1);
        }
        let Some(partition) = self.partitions.get_mut(&ended.partition) else {
            return;
        };
        if partition.assignment_id != ended.assignment_id {
            return;
        }
        match ended.result {
            RecordResult::Finished => {
                if let Some(next) = partition.finish(ended.offset) {
                    self.consumer.store_offset(ended.partition, next);
                }
            }
            RecordResult::Rewind if partition.generation == ended.generation => {
                tracing::info!(
                    topic = %self.settings.topic,
                    partition = ended.partition,
                    offset = ended.offset,
                    "the fan-out may have lost data: rewinding the partition"
                );
                self.rewind(ended.partition);
                return;
            }
            RecordResult::Rewind | RecordResult::Unfinished => {}
        }
        if partition.generation != ended.generation {
            return;
        }
        if ended.already_finished {
            partition.finish_reread(ended.offset);
            if let Some(rewinder) = &mut self.rewinder {
                rewinder.count_record();
            }
        }
        if let Some(delivery) = partition.next_in_lane(&ended.lane) {
            self.start_task(ended.partition, ended.lane.clone(), delivery);
        }
    }

    fn on_rewind_request(&mut self, request: RewindRequest) {
        match request {
            RewindRequest::AllPartitions => {
                let numbers: Vec<i32> = self.partitions.keys().copied().collect();
                for number in numbers {
                    self.rewind(number);
                }
            }
            RewindRequest::Partition(number) => self.rewind(number),
        }
    }

    fn next_generation(&mut self) -> u64 {
        self.last_generation += 1;
        self.last_generation
    }

    /// Starts a new generation of a partition that reads again what the fan-out may have lost. Does
    /// nothing for a role that never rewinds.
    fn rewind(&mut self, number: i32) {
        if self.rewinder.is_none() {
            return;
        }
        let generation = self.next_generation();
        let Some(partition) = self.partitions.get_mut(&number) else {
            return;
        };
        partition.generation = generation;
        partition.stop.cancel();
        partition.stop = self.stop.child_token();
        self.backlog.remove(partition.clear_waiting());
        if let Some(rewinder) = &mut self.rewinder {
            rewinder.start(number, partition);
        }
    }

    fn on_rewind_target(&mut self, target: &RewindTarget) {
        if let Some(partition) = self.partitions.get_mut(&target.partition()) {
            target.apply(partition);
        }
    }

    /// Seeks every partition that has a rewind target and no running task. A running task may still
    /// finish its record, and the seek waits for that: when the record is read again, it must be
    /// certain whether the record counts as already finished.
    async fn seek_idle_partitions(&mut self) {
        let seeks: Vec<(i32, i64)> = self
            .partitions
            .iter()
            .filter(|(number, _)| self.running_tasks.get(number).copied().unwrap_or(0) == 0)
            .filter_map(|(number, partition)| match partition.rewind {
                RewindState::Seeking(offset) => Some((*number, offset)),
                _ => None,
            })
            .collect();
        for (number, offset) in seeks {
            let result = self.consumer.seek(number, offset).await;
            if let Some(partition) = self.partitions.get_mut(&number)
                && let Some(rewinder) = &mut self.rewinder
            {
                rewinder.on_seek(number, partition, offset, result);
                rewinder.end_if_complete(number, partition, self.is_paused);
            }
        }
    }

    fn end_complete_rewinds(&mut self) {
        if let Some(rewinder) = &mut self.rewinder {
            for (number, partition) in &mut self.partitions {
                rewinder.end_if_complete(*number, partition, self.is_paused);
            }
        }
    }

    /// Updates the gauges, pauses the consumer when the backlog reaches `READ_AHEAD_BYTES`, and
    /// resumes it when the backlog has fallen to half of that.
    fn apply_backpressure(&mut self) {
        let active = self.settings.max_workers - self.worker.slots.available_permits();
        self.metrics.active.set(active as f64);
        self.metrics
            .waiting
            .set(self.backlog.records.saturating_sub(active) as f64);
        let limit = self.settings.read_ahead_bytes;
        if !self.is_paused && self.backlog.bytes >= limit {
            self.consumer.pause();
            self.is_paused = true;
        } else if self.is_paused && self.backlog.bytes <= limit / 2 && !self.stop.is_cancelled() {
            self.consumer.resume();
            self.is_paused = false;
            self.partitions
                .values_mut()
                .for_each(Partition::restart_silence);
        }
    }
}

/// Waits for the next step of [`Rewinder::next`]. Never returns for a role that does not rewind.
async fn next_rewind_step(rewinder: &mut Option<Rewinder>) -> Option<RewindTarget> {
    match rewinder {
        Some(rewinder) => rewinder.next().await,
        None => std::future::pending().await,
    }
}

/// Waits for the next request of the role. `None` for a role that makes no requests, and when the
/// role has closed the channel.
async fn next_rewind_request(
    requests: &mut Option<mpsc::Receiver<RewindRequest>>,
) -> Option<RewindRequest> {
    match requests {
        Some(requests) => requests.recv().await,
        None => None,
    }
}

/// Waits for the deadline. Never returns if there is none.
async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
