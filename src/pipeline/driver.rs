//! The loop that owns a consumer: records into lanes, finished offsets back.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::dead_letter::DeadLetters;
use super::lanes::{Back, Next, Partition};
use super::{Delivery, GoBack, Handler, Stopped, Verdict, Work, traced};
use crate::backoff::Backoff;
use crate::config::settings::PipelineSettings;
use crate::log::{Assignment, Consumer, ConsumerEvent};
use crate::pipeline::metrics::PipelineMetrics;

/// A partition that reads back counts as through after this long without a record.
const SILENCE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(500);
const SEEK_AGAIN: Duration = Duration::from_millis(200);
/// The delays between deliveries of a record that its handler failed on.
const RETRY_BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(200), Duration::from_millis(6400));

/// Which partitions have to go back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Every assigned one.
    AllGoBack,
    /// This one.
    GoesBack(i32),
}

/// What a pipeline is made of.
pub struct Parts {
    /// Read from here.
    pub consumer: Box<dyn Consumer>,
    /// Works on the records.
    pub handler: Arc<dyn Handler>,
    /// Where partitions begin again; `None` for a role that never reads back.
    pub go_back: Option<Arc<dyn GoBack>>,
    /// Orders from the role.
    pub commands: Option<mpsc::Receiver<Command>>,
    /// Takes what can't be worked on.
    pub dead_letters: DeadLetters,
    /// Bounds.
    pub settings: PipelineSettings,
    /// Gauges and counters.
    pub metrics: PipelineMetrics,
}

/// Runs until `drain` fires, then ends what is at work within `drain_timeout`, commits and leaves
/// the group. What is still at work after that is aborted; it will be read again elsewhere.
pub async fn run(parts: Parts, drain: CancellationToken) {
    Driver::new(parts).run(drain).await;
}

/// How a record's work ended.
enum Ended {
    Finished,
    GoBack,
    Left,
}

struct Finish {
    partition: i32,
    tenure: u64,
    generation: u64,
    lane: String,
    offset: i64,
    replay: bool,
    size: usize,
    ended: Ended,
}

/// Records that wait or are at work.
#[derive(Debug, Default)]
struct Open {
    records: usize,
    bytes: usize,
}

impl Open {
    fn forget(&mut self, (records, bytes): (usize, usize)) {
        self.records = self.records.saturating_sub(records);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// Reading back, of all partitions that are at it at one time.
struct WayBack {
    since: Instant,
    /// Worked on again so far.
    records: u64,
}

struct Prepared {
    partition: i32,
    generation: u64,
    from: i64,
}

struct Attendant {
    handler: Arc<dyn Handler>,
    dead_letters: DeadLetters,
    slots: Arc<Semaphore>,
    max_deliveries: u32,
    group: String,
}

struct Driver {
    consumer: Box<dyn Consumer>,
    attendant: Arc<Attendant>,
    go_back: Option<Arc<dyn GoBack>>,
    commands: Option<mpsc::Receiver<Command>>,
    settings: PipelineSettings,
    metrics: PipelineMetrics,
    partitions: HashMap<i32, Partition>,
    /// Records at work per partition, those of earlier tenures among them.
    at_work: HashMap<i32, usize>,
    tasks: JoinSet<Finish>,
    preparing: JoinSet<Option<Prepared>>,
    /// Calls of [`GoBack::reached`].
    notices: JoinSet<()>,
    counter: u64,
    open: Open,
    paused: bool,
    /// From when the first partition goes back until none is at it any more.
    way_back: Option<WayBack>,
    stop: CancellationToken,
}

impl Driver {
    fn new(parts: Parts) -> Self {
        Self {
            consumer: parts.consumer,
            attendant: Arc::new(Attendant {
                handler: parts.handler,
                dead_letters: parts.dead_letters,
                slots: Arc::new(Semaphore::new(parts.settings.max_workers)),
                max_deliveries: parts.settings.max_deliveries,
                group: parts.settings.group.clone(),
            }),
            go_back: parts.go_back,
            commands: parts.commands,
            settings: parts.settings,
            metrics: parts.metrics,
            partitions: HashMap::new(),
            at_work: HashMap::new(),
            tasks: JoinSet::new(),
            preparing: JoinSet::new(),
            notices: JoinSet::new(),
            counter: 0,
            open: Open::default(),
            paused: false,
            way_back: None,
            stop: CancellationToken::new(),
        }
    }

    async fn run(mut self, drain: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut deadline: Option<Instant> = None;
        loop {
            let over = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = self.consumer.next() => self.on_event(event, deadline.is_some()),
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    self.on_joined(done);
                    while let Some(done) = self.tasks.try_join_next() {
                        self.on_joined(done);
                    }
                }
                Some(prepared) = self.preparing.join_next(), if !self.preparing.is_empty() => {
                    if let Ok(Some(prepared)) = prepared {
                        self.on_prepared(&prepared);
                    }
                }
                Some(_) = self.notices.join_next(), if !self.notices.is_empty() => {}
                Some(command) = next_command(&mut self.commands) => self.on_command(command),
                _ = tick.tick() => self.look_for_ends(),
                () = drain.cancelled(), if deadline.is_none() => {
                    deadline = Some(Instant::now() + self.settings.drain_timeout);
                    self.begin_drain();
                }
                () = over => break,
            }
            self.seek_where_idle().await;
            self.keep_bounds();
            self.look_for_the_way_back();
            if deadline.is_some() && self.tasks.is_empty() {
                break;
            }
        }
        if !self.tasks.is_empty() {
            tracing::warn!(
                group = %self.settings.group,
                records = self.tasks.len(),
                "drain deadline is over: what is at work is left to another process"
            );
        }
        self.tasks.shutdown().await;
        self.consumer.close().await;
    }

    fn begin_drain(&mut self) {
        self.stop.cancel();
        for partition in self.partitions.values_mut() {
            self.open.forget(partition.clear());
        }
        self.consumer.pause();
        self.paused = true;
        tracing::info!(
            group = %self.settings.group,
            at_work = self.tasks.len(),
            "draining: no new records, what is at work is ended"
        );
    }

    fn on_event(&mut self, event: ConsumerEvent, draining: bool) {
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
            ConsumerEvent::Record(_) if draining => {}
            ConsumerEvent::Record(record) => self.on_record(record),
        }
    }

    fn on_assigned(&mut self, assignment: Assignment) {
        let Assignment {
            partition,
            committed,
        } = assignment;
        self.on_revoked(partition);
        self.counter += 1;
        tracing::info!(
            group = %self.settings.group, topic = %self.settings.topic, partition, committed,
            "partition assigned"
        );
        let state = Partition::new(self.counter, committed, self.stop.child_token());
        self.partitions.insert(partition, state);
        self.go_back(partition);
    }

    fn on_revoked(&mut self, partition: i32) {
        if let Some(mut state) = self.partitions.remove(&partition) {
            state.stop.cancel();
            self.open.forget(state.clear());
            tracing::info!(
                group = %self.settings.group, topic = %self.settings.topic, partition,
                "partition given away"
            );
        }
    }

    fn on_record(&mut self, record: crate::protocol::log_record::Record) {
        let Some(partition) = self.partitions.get_mut(&record.partition) else {
            return;
        };
        let (number, size) = (record.partition, record.size());
        let lane = self.attendant.handler.lane(&record);
        match partition.take(record, lane) {
            Next::Dropped => return,
            Next::Queued => {}
            Next::Begin(lane, delivery) => {
                let (tenure, stop) = (partition.tenure, partition.stop.clone());
                self.begin(number, tenure, stop, lane, delivery);
            }
        }
        self.metrics.received.increment(1);
        self.open.bytes += size;
        self.open.records += 1;
    }

    fn begin(
        &mut self,
        partition: i32,
        tenure: u64,
        stop: CancellationToken,
        lane: String,
        delivery: Delivery,
    ) {
        *self.at_work.entry(partition).or_default() += 1;
        let attendant = Arc::clone(&self.attendant);
        self.tasks.spawn(async move {
            let ended = attendant
                .attend(&delivery, stop)
                .await
                .unwrap_or(Ended::Left);
            Finish {
                partition,
                tenure,
                generation: delivery.generation,
                lane,
                offset: delivery.record.offset,
                replay: delivery.replay,
                size: delivery.record.size(),
                ended,
            }
        });
    }

    fn on_joined(&mut self, joined: Result<Finish, tokio::task::JoinError>) {
        match joined {
            Ok(finish) => self.on_finish(&finish),
            // Handlers' panics are caught inside; this is a fault of the pipeline itself. The
            // offset stays open, so the record comes again after a restart: say so loudly.
            Err(error) => tracing::error!(%error, "a record's task died; its offset stays open"),
        }
    }

    fn on_finish(&mut self, finish: &Finish) {
        self.open.forget((1, finish.size));
        if let Some(count) = self.at_work.get_mut(&finish.partition) {
            *count = count.saturating_sub(1);
        }
        let Some(state) = self.partitions.get_mut(&finish.partition) else {
            return;
        };
        if state.tenure != finish.tenure {
            return;
        }
        match finish.ended {
            Ended::Finished => {
                if let Some(next) = state.finish(finish.offset) {
                    self.consumer.store_offset(finish.partition, next);
                }
            }
            Ended::GoBack if state.generation == finish.generation => {
                tracing::info!(
                    topic = %self.settings.topic,
                    partition = finish.partition,
                    offset = finish.offset,
                    "the fan-out may have lost something: the partition goes back"
                );
                self.go_back(finish.partition);
                return;
            }
            Ended::GoBack | Ended::Left => {}
        }
        if state.generation != finish.generation {
            return;
        }
        if finish.replay {
            state.finish_replay(finish.offset);
            if let Some(way) = &mut self.way_back {
                way.records += 1;
            }
        }
        if let Some(delivery) = state.next(&finish.lane) {
            let (tenure, stop) = (state.tenure, state.stop.clone());
            self.begin(
                finish.partition,
                tenure,
                stop,
                finish.lane.clone(),
                delivery,
            );
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::AllGoBack => {
                let all: Vec<i32> = self.partitions.keys().copied().collect();
                for partition in all {
                    self.go_back(partition);
                }
            }
            Command::GoesBack(partition) => self.go_back(partition),
        }
    }

    /// Lets a partition read again what may be gone from the fan-out.
    fn go_back(&mut self, number: i32) {
        let Some(go_back) = self.go_back.clone() else {
            return;
        };
        self.counter += 1;
        let generation = self.counter;
        let Some(state) = self.partitions.get_mut(&number) else {
            return;
        };
        state.generation = generation;
        state.stop.cancel();
        state.stop = self.stop.child_token();
        let oldest = state.oldest_open_ms();
        self.open.forget(state.clear());
        let stop = state.stop.clone();
        let Some(offsets) = &state.offsets else {
            // Nothing was ever read by this group: there is nothing to read again.
            self.say_reached(number, stop, go_back);
            return;
        };
        let committed = offsets.next();
        state.back = Back::Preparing;
        self.way_back.get_or_insert_with(|| WayBack {
            since: Instant::now(),
            records: 0,
        });
        self.preparing.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => None,
                from = go_back.start(number, committed, oldest) => {
                    Some(Prepared { partition: number, generation, from: from.min(committed) })
                }
            }
        });
    }

    fn on_prepared(&mut self, prepared: &Prepared) {
        if let Some(state) = self.partitions.get_mut(&prepared.partition)
            && state.generation == prepared.generation
        {
            state.back = Back::Seeking(prepared.from);
        }
    }

    /// A seek waits until nothing of before is at work: a record that is read again must know
    /// whether it was finished.
    async fn seek_where_idle(&mut self) {
        let ready: Vec<(i32, i64)> = self
            .partitions
            .iter()
            .filter(|(number, _)| self.at_work.get(number).copied().unwrap_or(0) == 0)
            .filter_map(|(number, state)| match state.back {
                Back::Seeking(from) => Some((*number, from)),
                _ => None,
            })
            .collect();
        for (number, from) in ready {
            let result = self.consumer.seek(number, from).await;
            let Some(state) = self.partitions.get_mut(&number) else {
                continue;
            };
            let until = state
                .offsets
                .as_ref()
                .map_or(from, super::offsets::OffsetTracker::next);
            if let Err(error) = result {
                tracing::debug!(partition = number, %error, "seek not possible yet");
                state.back = Back::Preparing;
                let generation = state.generation;
                self.preparing.spawn(async move {
                    tokio::time::sleep(SEEK_AGAIN).await;
                    Some(Prepared {
                        partition: number,
                        generation,
                        from,
                    })
                });
                continue;
            }
            tracing::info!(
                topic = %self.settings.topic, partition = number, from, until,
                "reading back what the fan-out may have lost"
            );
            state.back = Back::Reading {
                until,
                open: 0,
                passed: from >= until,
                last: Instant::now(),
            };
            self.look_for_end(number);
        }
    }

    fn look_for_ends(&mut self) {
        let all: Vec<i32> = self.partitions.keys().copied().collect();
        for number in all {
            self.look_for_end(number);
        }
    }

    fn look_for_end(&mut self, number: i32) {
        // Who doesn't read hears nothing.
        let silence = if self.paused { Duration::MAX } else { SILENCE };
        if let Some(state) = self.partitions.get_mut(&number)
            && state.came_through(silence)
            && let Some(go_back) = self.go_back.clone()
        {
            tracing::info!(topic = %self.settings.topic, partition = number, "read back");
            let stop = state.stop.clone();
            self.say_reached(number, stop, go_back);
        }
    }

    /// Says once how much was read back and how long that took, when all partitions are through.
    fn look_for_the_way_back(&mut self) {
        if self.way_back.is_none()
            || !self.notices.is_empty()
            || self.partitions.values().any(|state| state.back != Back::No)
        {
            return;
        }
        if let Some(way) = self.way_back.take() {
            let seconds = way.since.elapsed().as_secs_f64();
            tracing::info!(
                topic = %self.settings.topic,
                partitions = self.partitions.len(),
                records = way.records,
                seconds = (seconds * 10.0).round() / 10.0,
                per_second = (way.records as f64 / seconds.max(0.001)) as u64,
                "all that the fan-out may have lost was read back and delivered again"
            );
        }
    }

    /// Unless the partition goes back again, or away, before that could be said: then it would be
    /// said of a fan-out that may be another one by now.
    fn say_reached(&mut self, number: i32, stop: CancellationToken, go_back: Arc<dyn GoBack>) {
        self.notices.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = go_back.reached(number) => {}
            }
        });
    }

    /// Pauses the consumer over the bound of what waits, and resumes it at half of it.
    fn keep_bounds(&mut self) {
        let active = self.settings.max_workers - self.attendant.slots.available_permits();
        self.metrics.active.set(active as f64);
        self.metrics
            .waiting
            .set(self.open.records.saturating_sub(active) as f64);
        let bound = self.settings.read_ahead_bytes;
        if !self.paused && self.open.bytes >= bound {
            self.consumer.pause();
            self.paused = true;
        } else if self.paused && self.open.bytes <= bound / 2 && !self.stop.is_cancelled() {
            self.consumer.resume();
            self.paused = false;
            self.partitions
                .values_mut()
                .for_each(Partition::listens_again);
        }
    }
}

async fn next_command(commands: &mut Option<mpsc::Receiver<Command>>) -> Option<Command> {
    match commands {
        Some(commands) => commands.recv().await,
        None => None,
    }
}

impl Attendant {
    async fn attend(&self, delivery: &Delivery, stop: CancellationToken) -> Result<Ended, Stopped> {
        let mut work = Work::begin(Arc::clone(&self.slots), stop).await?;
        *work.span_mut() = traced::begin(delivery, &self.group);
        let mut taking = 0;
        loop {
            taking += 1;
            let handling = AssertUnwindSafe(self.handler.handle(delivery, &mut work));
            let verdict = handling
                .catch_unwind()
                .await
                .unwrap_or_else(|_| Verdict::Failed("the handler panicked".to_owned()));
            let reason = match verdict {
                Verdict::Done => return Ok(Ended::Finished),
                Verdict::GoBack => {
                    work.span_mut().event("goes back");
                    return Ok(Ended::GoBack);
                }
                Verdict::Left => {
                    work.span_mut().event("left to another");
                    return Ok(Ended::Left);
                }
                Verdict::Dead(reason) => {
                    work.span_mut().fail("dead_letter");
                    self.dead_letters
                        .put(&delivery.record, &reason, taking, &mut work)
                        .await?;
                    return Ok(Ended::Finished);
                }
                Verdict::Failed(reason) => reason,
            };
            tracing::warn!(
                topic = %delivery.record.topic,
                partition = delivery.record.partition,
                offset = delivery.record.offset,
                message_id = delivery.record.header_text("message_id"),
                correlation_id = delivery.record.header_text("correlation_id"),
                trace_id = work.span().trace_id(),
                taking,
                reason,
                "working on a record failed"
            );
            work.span_mut().event("failed");
            if taking >= self.max_deliveries {
                let telling = AssertUnwindSafe(self.handler.give_up(delivery, &reason, &mut work));
                if let Ok(told) = telling.catch_unwind().await {
                    told?;
                } else {
                    // What made the handler panic can do so here too.
                    tracing::error!(
                        partition = delivery.record.partition,
                        offset = delivery.record.offset,
                        "telling the user panicked; the record becomes a dead letter without it"
                    );
                }
                self.dead_letters
                    .put(&delivery.record, &reason, taking, &mut work)
                    .await?;
                work.span_mut().fail("dead_letter");
                return Ok(Ended::Finished);
            }
            work.wait(RETRY_BACKOFF.delay(taking, 1.0)).await?;
        }
    }
}
