//! A member of a group, reading.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::group::{Change, Group};
use super::topic::Topic;
use crate::log::{Consumer, ConsumerEvent, LogError};
use crate::protocol::log_record::Record;
use crate::store::{Store, StoreError};

/// What is read ahead of a partition, in bytes; a larger record comes alone.
const READ_AHEAD: usize = 256 << 10;
/// How often a waiting member looks whether another one has stopped looking.
const TICK: Duration = Duration::from_secs(1);
/// A member that has not looked at its events for so long loses what others wait for.
const SESSION: Duration = Duration::from_secs(6);
const CLOSE: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Reading {
    /// The next to be read from the log.
    next: i64,
    ahead: VecDeque<Record>,
    /// Grows with every seek: what was being read for an older one is thrown away.
    seeks: u64,
}

type Read = JoinHandle<Result<Vec<Record>, StoreError>>;

/// A read of the store under way: kept here so that a call of `next` can be given up.
#[derive(Debug)]
struct Fetch {
    partition: i32,
    seeks: u64,
    end: i64,
    read: Read,
}

#[derive(Debug)]
pub(super) struct Member {
    store: Store,
    topic: Arc<Topic>,
    group: Arc<Group>,
    id: u64,
    left: bool,
    epoch: u64,
    changed: watch::Receiver<()>,
    readings: BTreeMap<i32, Reading>,
    /// The partition after which the next record is looked for.
    turn: i32,
    paused: bool,
    fetch: Option<Fetch>,
    seeks: u64,
}

impl Member {
    pub(super) fn join(store: Store, topic: Arc<Topic>, group: &str) -> Self {
        let group = topic.group(group);
        let changed = topic.changed.subscribe();
        let id = group.join();
        topic.changed.send_replace(());
        Self {
            store,
            topic,
            group,
            id,
            left: false,
            epoch: 0,
            changed,
            readings: BTreeMap::new(),
            turn: 0,
            paused: false,
            fetch: None,
            seeks: 0,
        }
    }

    fn start(&self, partition: i32) -> i64 {
        self.topic.partitions[partition as usize]
            .start
            .load(Ordering::Acquire)
    }

    fn change(&mut self) -> Option<ConsumerEvent> {
        let epoch = self.group.epoch();
        if epoch == self.epoch {
            return None;
        }
        match self.group.change(self.id) {
            Some(Change::Revoked(partitions)) => {
                for partition in &partitions {
                    self.readings.remove(partition);
                }
                // Somebody waits for them.
                self.topic.changed.send_replace(());
                Some(ConsumerEvent::Revoked(partitions))
            }
            Some(Change::Assigned(assignments)) => {
                for assignment in &assignments {
                    self.seeks += 1;
                    let reading = Reading {
                        next: assignment
                            .committed
                            .unwrap_or_else(|| self.start(assignment.partition)),
                        ahead: VecDeque::new(),
                        seeks: self.seeks,
                    };
                    self.readings.insert(assignment.partition, reading);
                }
                Some(ConsumerEvent::Assigned(assignments))
            }
            None => {
                // The look itself may have let go of something untold.
                if self.group.epoch() == epoch {
                    self.epoch = epoch;
                } else {
                    self.topic.changed.send_replace(());
                }
                None
            }
        }
    }

    /// The partitions in turn, so that none waits for another.
    fn turns(&self) -> Vec<i32> {
        let after = self.readings.range(self.turn + 1..);
        let before = self.readings.range(..=self.turn);
        after
            .chain(before)
            .map(|(partition, _)| *partition)
            .collect()
    }

    fn ready(&mut self) -> Option<Record> {
        for partition in self.turns() {
            if let Some(reading) = self.readings.get_mut(&partition)
                && let Some(record) = reading.ahead.pop_front()
            {
                self.turn = partition;
                return Some(record);
            }
        }
        None
    }

    /// Reads from memory, or begins to read from the store. True where there is something new.
    fn read_on(&mut self) -> bool {
        let mut any = false;
        for partition in self.turns() {
            let part = &self.topic.partitions[partition as usize];
            let start = part.start.load(Ordering::Acquire);
            let Some(reading) = self.readings.get_mut(&partition) else {
                continue;
            };
            reading.next = reading.next.max(start);
            let end = part.end();
            if !reading.ahead.is_empty() || reading.next >= end {
                continue;
            }
            if let Some(records) = part.recent(reading.next, READ_AHEAD) {
                // Offsets may have gaps; without records all up to the end is one.
                reading.next = records.last().map_or(end, |record| record.offset + 1);
                any |= !records.is_empty();
                reading.ahead = records.into();
            } else if self.fetch.is_none() {
                let (store, topic) = (self.store.clone(), Arc::clone(&self.topic));
                let from = reading.next;
                self.fetch = Some(Fetch {
                    partition,
                    seeks: reading.seeks,
                    end,
                    read: tokio::task::spawn_blocking(move || {
                        topic.read(&store, partition, from, end, READ_AHEAD)
                    }),
                });
            }
        }
        any
    }

    /// Takes over what was read from the store. False where reading failed.
    fn fetched(&mut self, result: Result<Vec<Record>, StoreError>) -> bool {
        let Some(fetch) = self.fetch.take() else {
            return true;
        };
        match result {
            Ok(records) => {
                if let Some(reading) = self.readings.get_mut(&fetch.partition)
                    && reading.seeks == fetch.seeks
                {
                    reading.next = records.last().map_or(fetch.end, |record| record.offset + 1);
                    reading.ahead.extend(records);
                }
                true
            }
            Err(error) => {
                tracing::warn!(%error, topic = %self.topic.name, "records could not be read, trying again");
                false
            }
        }
    }
}

#[async_trait]
impl Consumer for Member {
    async fn next(&mut self) -> ConsumerEvent {
        loop {
            // With records always at hand nothing below would ever let other tasks run.
            tokio::task::coop::consume_budget().await;
            // Before the looks: what changes after them wakes the wait below.
            self.changed.mark_unchanged();
            if let Some(event) = self.change() {
                return event;
            }
            if !self.paused {
                if let Some(record) = self.ready() {
                    return ConsumerEvent::Record(record);
                }
                if self.read_on() {
                    continue;
                }
            }
            tokio::select! {
                result = async {
                    match &mut self.fetch {
                        Some(fetch) => (&mut fetch.read).await,
                        None => std::future::pending().await,
                    }
                } => {
                    let result = result.unwrap_or_else(|e| Err(StoreError(e.to_string())));
                    if !self.fetched(result) {
                        // The store opens itself again: it is asked again after a while.
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                }
                // The topic lives as long as this member: the sender can't be gone.
                _ = self.changed.changed() => {}
                () = tokio::time::sleep(TICK) => {
                    if self.group.expire(SESSION) {
                        self.topic.changed.send_replace(());
                    }
                }
            }
        }
    }

    fn store_offset(&mut self, partition: i32, next_offset: i64) {
        self.group.store(self.id, partition, next_offset);
    }

    fn pause(&mut self) {
        self.paused = true;
    }

    fn resume(&mut self) {
        self.paused = false;
    }

    async fn seek(&mut self, partition: i32, offset: i64) -> Result<(), LogError> {
        self.seeks += 1;
        let Some(reading) = self.readings.get_mut(&partition) else {
            return Err(LogError::Unavailable(format!(
                "partition {partition} of {} is not this member's",
                self.topic.name
            )));
        };
        reading.next = offset.max(0);
        reading.ahead.clear();
        reading.seeks = self.seeks;
        Ok(())
    }

    async fn close(mut self: Box<Self>) {
        self.left = true;
        self.group.leave(self.id, true);
        self.topic.changed.send_replace(());
        let (store, topic) = (self.store.clone(), Arc::clone(&self.topic));
        let committed = async {
            let writer = store.clone();
            let written = tokio::task::spawn_blocking(move || topic.commit_offsets(&writer))
                .await
                .unwrap_or_else(|e| Err(StoreError(e.to_string())))?;
            match written {
                Some(ticket) => store.synced(ticket).await,
                None => Ok(()),
            }
        };
        match tokio::time::timeout(CLOSE, committed).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, topic = %self.topic.name, "offsets could not be committed");
            }
            Err(_) => {
                tracing::warn!(topic = %self.topic.name, "offsets were not committed in time");
            }
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if !self.left {
            self.group.leave(self.id, false);
            self.topic.changed.send_replace(());
        }
    }
}
