//! The pipeline over a log of a few records in memory, with paused time.

mod sim;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::dead_letter::DeadLetters;
use super::driver::{self, Command, Parts};
use super::{Delivery, GoBack, Handler, Stopped, Verdict, Work};
use crate::config::settings::PipelineSettings;
use crate::log::{
    AppendError, Assignment, Consumer, ConsumerEvent, Log, LogError, LogOffset, TopicSpec,
};
use crate::pipeline::metrics::PipelineMetrics;
use crate::protocol::log_record::{NewRecord, Record};

/// Partition 0 and 1 of a topic, read by one member; what it does is written down.
#[derive(Default)]
struct Shared {
    records: Mutex<Vec<Record>>,
    stored: Mutex<HashMap<i32, i64>>,
    dead: Mutex<Vec<NewRecord>>,
    paused: Mutex<bool>,
    closed: Mutex<bool>,
    /// Larger values are refused in the dead-letter topic.
    most_bytes: Mutex<Option<usize>>,
    changed: Notify,
}

impl Shared {
    fn add(&self, partition: i32, lane: &str, size: usize) {
        let mut records = self.records.lock().unwrap();
        let offset = records
            .iter()
            .filter(|record| record.partition == partition)
            .count() as i64;
        records.push(Record {
            topic: "topic".into(),
            partition,
            offset,
            timestamp_ms: offset,
            key: Some(Bytes::from(lane.to_owned())),
            value: Bytes::from(vec![b'x'; size]),
            null_value: false,
            headers: vec![],
        });
        self.changed.notify_waiters();
    }

    fn stored(&self, partition: i32) -> Option<i64> {
        self.stored.lock().unwrap().get(&partition).copied()
    }
}

struct FakeConsumer {
    shared: Arc<Shared>,
    events: mpsc::UnboundedReceiver<ConsumerEvent>,
    at: HashMap<i32, i64>,
}

impl FakeConsumer {
    fn next_record(&mut self) -> Option<Record> {
        if *self.shared.paused.lock().unwrap() {
            return None;
        }
        let records = self.shared.records.lock().unwrap();
        let record = records.iter().find(|record| {
            self.at
                .get(&record.partition)
                .is_some_and(|at| record.offset == *at)
        })?;
        self.at.insert(record.partition, record.offset + 1);
        Some(record.clone())
    }
}

#[async_trait]
impl Consumer for FakeConsumer {
    async fn next(&mut self) -> ConsumerEvent {
        loop {
            let shared = Arc::clone(&self.shared);
            let changed = shared.changed.notified();
            if let Ok(event) = self.events.try_recv() {
                match &event {
                    ConsumerEvent::Assigned(assigned) => self.at.extend(
                        assigned
                            .iter()
                            .map(|a| (a.partition, a.committed.unwrap_or(0))),
                    ),
                    ConsumerEvent::Revoked(revoked) => self.at.retain(|p, _| !revoked.contains(p)),
                    ConsumerEvent::Record(_) => {}
                }
                return event;
            }
            if let Some(record) = self.next_record() {
                return ConsumerEvent::Record(record);
            }
            changed.await;
        }
    }

    fn store_offset(&mut self, partition: i32, next_offset: i64) {
        let before = self
            .shared
            .stored
            .lock()
            .unwrap()
            .insert(partition, next_offset);
        assert!(
            before.is_none_or(|before| before < next_offset),
            "a commit went back"
        );
    }

    fn pause(&mut self) {
        *self.shared.paused.lock().unwrap() = true;
    }

    fn resume(&mut self) {
        *self.shared.paused.lock().unwrap() = false;
        self.shared.changed.notify_waiters();
    }

    async fn seek(&mut self, partition: i32, offset: i64) -> Result<(), LogError> {
        self.at.insert(partition, offset);
        Ok(())
    }

    async fn close(self: Box<Self>) {
        *self.shared.closed.lock().unwrap() = true;
    }
}

struct FakeLog(Arc<Shared>);

#[async_trait]
impl Log for FakeLog {
    fn append(
        &self,
        _topic: &str,
        record: NewRecord,
    ) -> BoxFuture<'static, Result<LogOffset, AppendError>> {
        let most = *self.0.most_bytes.lock().unwrap();
        if most.is_some_and(|most| record.value.len() > most) {
            return Box::pin(async { Err(AppendError::Refused("too large".into())) });
        }
        self.0.dead.lock().unwrap().push(record);
        Box::pin(async {
            Ok(LogOffset {
                partition: 0,
                offset: 0,
            })
        })
    }

    fn consumer(&self, _group: &str, _topic: &str) -> Result<Box<dyn Consumer>, LogError> {
        Err(LogError::Configuration("not in this test".into()))
    }

    async fn ensure_topics(&self, _topics: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        Ok(vec![])
    }

    async fn offset_at(&self, _: &str, _: i32, _: i64) -> Result<Option<i64>, LogError> {
        Ok(None)
    }

    async fn cluster_id(&self) -> Result<String, LogError> {
        Ok("fake".into())
    }

    async fn check(&self) -> Result<(), LogError> {
        Ok(())
    }

    async fn flush(&self) {}
}

/// Writes down what it is given, and asks the test what to answer.
struct Scripted<F> {
    seen: Mutex<Vec<(i32, i64, bool)>>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    answer: F,
}

impl<F> Scripted<F> {
    fn new(answer: F) -> Arc<Self> {
        Arc::new(Self {
            seen: Mutex::default(),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            answer,
        })
    }

    fn seen(&self) -> Vec<(i32, i64, bool)> {
        self.seen.lock().unwrap().clone()
    }
}

#[async_trait]
impl<F, Fut> Handler for Scripted<F>
where
    F: Fn(Delivery) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Verdict> + Send + 'static,
{
    fn lane(&self, record: &Record) -> String {
        String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned()
    }

    async fn handle(&self, delivery: &Delivery, work: &mut Work) -> Verdict {
        let record = &delivery.record;
        self.seen
            .lock()
            .unwrap()
            .push((record.partition, record.offset, delivery.replay));
        let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(now, Ordering::SeqCst);
        let verdict = tokio::select! {
            verdict = (self.answer)(delivery.clone()) => verdict,
            () = work.stop().cancelled() => Verdict::Left,
        };
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        verdict
    }

    async fn give_up(&self, _: &Delivery, _: &str, _: &mut Work) -> Result<(), Stopped> {
        Ok(())
    }
}

struct Rig {
    shared: Arc<Shared>,
    events: mpsc::UnboundedSender<ConsumerEvent>,
    commands: mpsc::Sender<Command>,
    drain: CancellationToken,
    running: JoinHandle<()>,
}

fn start(handler: Arc<dyn Handler>, max_workers: usize, go_back: Option<Arc<dyn GoBack>>) -> Rig {
    let shared = Arc::new(Shared::default());
    let (events, receiver) = mpsc::unbounded_channel();
    let (commands, orders) = mpsc::channel(4);
    let consumer = FakeConsumer {
        shared: Arc::clone(&shared),
        events: receiver,
        at: HashMap::new(),
    };
    let drain = CancellationToken::new();
    let parts = Parts {
        consumer: Box::new(consumer),
        handler,
        go_back,
        commands: Some(orders),
        dead_letters: DeadLetters::new(Arc::new(FakeLog(Arc::clone(&shared))), "dead".into()),
        settings: PipelineSettings {
            topic: "topic".into(),
            dead_letter_topic: "dead".into(),
            group: "group".into(),
            max_workers,
            max_deliveries: 3,
            read_ahead_bytes: 64 << 10,
            drain_timeout: Duration::from_secs(5),
        },
        metrics: PipelineMetrics::for_relay("group", "topic"),
    };
    let running = tokio::spawn(driver::run(parts, drain.clone()));
    Rig {
        shared,
        events,
        commands,
        drain,
        running,
    }
}

impl Rig {
    fn assign(&self, partition: i32, committed: Option<i64>) {
        self.events
            .send(ConsumerEvent::Assigned(vec![Assignment {
                partition,
                committed,
            }]))
            .unwrap();
        self.shared.changed.notify_waiters();
    }

    fn revoke(&self, partition: i32) {
        self.events
            .send(ConsumerEvent::Revoked(vec![partition]))
            .unwrap();
        self.shared.changed.notify_waiters();
    }

    async fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let waiting = async {
            while !done() {
                // Paused time: this only lets the others run.
                tokio::time::sleep(Duration::from_millis(10)).await;
                self.shared.changed.notify_waiters();
            }
        };
        let result = tokio::time::timeout(Duration::from_secs(600), waiting).await;
        assert!(result.is_ok(), "never came: {what}");
    }

    async fn stop(self) -> Arc<Shared> {
        self.drain.cancel();
        self.shared.changed.notify_waiters();
        tokio::time::timeout(Duration::from_secs(60), self.running)
            .await
            .unwrap()
            .unwrap();
        self.shared
    }
}

async fn never() -> Verdict {
    std::future::pending().await
}

#[tokio::test(start_paused = true)]
async fn one_slow_conversation_holds_up_no_other_and_no_commit_jumps_over_it() {
    let gate = Arc::new(Semaphore::new(0));
    let open = Arc::clone(&gate);
    let handler = Scripted::new(move |delivery: Delivery| {
        let open = Arc::clone(&open);
        async move {
            if delivery.record.offset == 1 {
                open.acquire().await.unwrap().forget();
            }
            Verdict::Done
        }
    });
    let rig = start(Arc::clone(&handler) as _, 4, None);
    for n in 0..50 {
        rig.shared
            .add(0, if n % 2 == 1 { "slow" } else { "fast" }, 10);
    }
    rig.assign(0, Some(0));
    rig.until("25 fast ones and the slow one", || {
        handler.seen().len() == 26
    })
    .await;
    assert_eq!(rig.shared.stored(0), Some(1));
    gate.add_permits(1);
    rig.until("all", || rig.shared.stored(0) == Some(50)).await;
    let slow: Vec<i64> = handler
        .seen()
        .iter()
        .map(|(_, offset, _)| *offset)
        .filter(|o| o % 2 == 1)
        .collect();
    assert!(slow.is_sorted(), "{slow:?}");
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn never_more_than_max_workers_at_once() {
    let handler = Scripted::new(|_| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Verdict::Done
    });
    let rig = start(Arc::clone(&handler) as _, 3, None);
    for n in 0..60 {
        rig.shared.add(n % 2, &format!("lane {n}"), 10);
    }
    rig.assign(0, None);
    rig.assign(1, None);
    rig.until("all", || {
        rig.shared.stored(0) == Some(30) && rig.shared.stored(1) == Some(30)
    })
    .await;
    assert_eq!(handler.most_at_once.load(Ordering::SeqCst), 3);
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_bounded_and_reading_goes_on_afterwards() {
    let gate = Arc::new(Semaphore::new(0));
    let open = Arc::clone(&gate);
    let handler = Scripted::new(move |_| {
        let open = Arc::clone(&open);
        async move {
            open.acquire().await.unwrap().forget();
            Verdict::Done
        }
    });
    let rig = start(Arc::clone(&handler) as _, 2, None);
    for n in 0..200 {
        rig.shared.add(0, &format!("lane {n}"), 1024);
    }
    rig.assign(0, Some(0));
    rig.until("paused", || *rig.shared.paused.lock().unwrap())
        .await;
    gate.add_permits(1000);
    rig.until("all", || rig.shared.stored(0) == Some(200)).await;
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_keeps_failing_becomes_a_dead_letter_and_the_next_goes_on() {
    let handler = Scripted::new(|delivery: Delivery| async move {
        assert!(delivery.record.offset != 1, "this record panics");
        if delivery.record.offset == 0 {
            Verdict::Failed("bad".into())
        } else {
            Verdict::Done
        }
    });
    let rig = start(Arc::clone(&handler) as _, 2, None);
    for _ in 0..3 {
        rig.shared.add(0, "same", 10);
    }
    rig.assign(0, Some(0));
    rig.until("all", || rig.shared.stored(0) == Some(3)).await;
    let taken = |offset| {
        handler
            .seen()
            .iter()
            .filter(|(_, o, _)| *o == offset)
            .count()
    };
    assert_eq!((taken(0), taken(1), taken(2)), (3, 3, 1));
    let dead = rig.stop().await;
    let dead = dead.dead.lock().unwrap();
    assert_eq!(dead.len(), 2);
    let header = |letter: &NewRecord, name: &str| {
        let found = letter.headers.iter().find(|(key, _)| key == name).unwrap();
        String::from_utf8(found.1.to_vec()).unwrap()
    };
    assert_eq!(header(&dead[0], "dlq.reason"), "bad");
    assert_eq!(header(&dead[0], "dlq.attempts"), "3");
    assert_eq!(header(&dead[1], "dlq.offset"), "1");
    assert_eq!(dead[0].key.as_deref(), Some(&b"same"[..]));
}

#[tokio::test(start_paused = true)]
async fn what_was_begun_before_a_revocation_stores_nothing() {
    let gate = Arc::new(Semaphore::new(0));
    let open = Arc::clone(&gate);
    let handler = Scripted::new(move |_| {
        let open = Arc::clone(&open);
        async move {
            open.acquire().await.unwrap().forget();
            Verdict::Done
        }
    });
    let rig = start(Arc::clone(&handler) as _, 2, None);
    rig.shared.add(0, "a", 10);
    rig.assign(0, Some(0));
    rig.until("begun", || handler.seen().len() == 1).await;
    rig.revoke(0);
    rig.assign(0, Some(0));
    rig.until("begun again", || handler.seen().len() == 2).await;
    assert_eq!(rig.shared.stored(0), None);
    gate.add_permits(1);
    rig.until("finished by the second", || rig.shared.stored(0) == Some(1))
        .await;
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_what_is_at_work_and_begins_nothing() {
    let handler = Scripted::new(|delivery: Delivery| async move {
        if delivery.record.offset == 0 {
            Verdict::Done
        } else {
            never().await
        }
    });
    let rig = start(Arc::clone(&handler) as _, 1, None);
    for _ in 0..5 {
        rig.shared.add(0, "a", 10);
    }
    rig.assign(0, Some(0));
    rig.until("the second is at work", || handler.seen().len() == 2)
        .await;
    let shared = rig.stop().await;
    assert!(*shared.closed.lock().unwrap());
    assert_eq!(shared.stored(0), Some(1));
    assert_eq!(handler.seen().len(), 2);
}

struct BackTo {
    from: i64,
    reached: AtomicUsize,
}

#[async_trait]
impl GoBack for BackTo {
    async fn start(&self, _partition: i32, committed: i64, _oldest: Option<i64>) -> i64 {
        self.from.min(committed)
    }

    async fn reached(&self, _partition: i32) {
        self.reached.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn an_assignment_reads_back_and_says_which_records_were_finished() {
    let handler = Scripted::new(|_| async { Verdict::Done });
    let back = Arc::new(BackTo {
        from: 4,
        reached: AtomicUsize::new(0),
    });
    let rig = start(Arc::clone(&handler) as _, 1, Some(Arc::clone(&back) as _));
    for _ in 0..10 {
        rig.shared.add(0, "a", 10);
    }
    rig.assign(0, Some(7));
    rig.until("all", || rig.shared.stored(0) == Some(10)).await;
    let expected: Vec<_> = (4..10).map(|offset| (0, offset, offset < 7)).collect();
    assert_eq!(handler.seen(), expected);
    rig.until("reached", || back.reached.load(Ordering::SeqCst) == 1)
        .await;
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_partition_with_nothing_to_read_back_is_through_at_once() {
    let handler = Scripted::new(|_| async { Verdict::Done });
    let back = Arc::new(BackTo {
        from: 7,
        reached: AtomicUsize::new(0),
    });
    let rig = start(handler, 1, Some(Arc::clone(&back) as _));
    rig.assign(0, Some(7));
    rig.assign(1, None);
    rig.until("both reached", || back.reached.load(Ordering::SeqCst) == 2)
        .await;
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_loss_in_the_middle_reads_back_and_publishes_nothing_as_new_twice() {
    let lost = Arc::new(Mutex::new(true));
    let once = Arc::clone(&lost);
    let handler = Scripted::new(move |delivery: Delivery| {
        let lose = delivery.record.offset == 8 && std::mem::take(&mut *once.lock().unwrap());
        async move { if lose { Verdict::GoBack } else { Verdict::Done } }
    });
    let back = Arc::new(BackTo {
        from: 5,
        reached: AtomicUsize::new(0),
    });
    let rig = start(Arc::clone(&handler) as _, 1, Some(Arc::clone(&back) as _));
    for _ in 0..10 {
        rig.shared.add(0, "a", 10);
    }
    rig.assign(0, Some(5));
    rig.until("all", || rig.shared.stored(0) == Some(10)).await;
    let seen = handler.seen();
    let new: Vec<i64> = seen
        .iter()
        .filter(|(_, _, replay)| !replay)
        .map(|(_, o, _)| *o)
        .collect();
    assert_eq!(new, [5, 6, 7, 8, 8, 9]);
    let again: Vec<i64> = seen
        .iter()
        .filter(|(_, _, replay)| *replay)
        .map(|(_, o, _)| *o)
        .collect();
    assert_eq!(again, [5, 6, 7]);
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_order_to_go_back_waits_for_what_is_at_work() {
    let gate = Arc::new(Semaphore::new(0));
    let open = Arc::clone(&gate);
    let handler = Scripted::new(move |delivery: Delivery| {
        let open = Arc::clone(&open);
        async move {
            if delivery.record.offset == 3 {
                open.acquire().await.unwrap().forget();
            }
            Verdict::Done
        }
    });
    let back = Arc::new(BackTo {
        from: 0,
        reached: AtomicUsize::new(0),
    });
    let rig = start(Arc::clone(&handler) as _, 1, Some(Arc::clone(&back) as _));
    for _ in 0..4 {
        rig.shared.add(0, "a", 10);
    }
    rig.assign(0, Some(0));
    rig.until("the last is at work", || handler.seen().len() == 4)
        .await;
    rig.commands.send(Command::AllGoBack).await.unwrap();
    rig.until("all are taken again", || handler.seen().len() == 8)
        .await;
    gate.add_permits(10);
    rig.until("all", || rig.shared.stored(0) == Some(4)).await;
    let again: Vec<_> = handler.seen().split_off(4);
    assert_eq!(
        again,
        [(0, 0, true), (0, 1, true), (0, 2, true), (0, 3, false)]
    );
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_record_too_large_for_the_dead_letter_topic_holds_up_nobody() {
    let handler = Scripted::new(|delivery: Delivery| async move {
        if delivery.record.offset == 0 {
            Verdict::Dead("unreadable".into())
        } else {
            Verdict::Done
        }
    });
    let rig = start(Arc::clone(&handler) as _, 1, None);
    *rig.shared.most_bytes.lock().unwrap() = Some(100);
    rig.shared.add(0, "a", 101);
    rig.shared.add(0, "a", 10);
    rig.assign(0, Some(0));
    rig.until("all", || rig.shared.stored(0) == Some(2)).await;
    let shared = rig.stop().await;
    let dead = shared.dead.lock().unwrap();
    assert_eq!((dead.len(), dead[0].value.len()), (1, 0));
    let left_out = dead[0]
        .headers
        .iter()
        .find(|(key, _)| key == "dlq.value_left_out");
    assert_eq!(left_out.unwrap().1, "101");
}

/// Panics on offset 0, also when it is to tell the user.
struct Panics;

#[async_trait]
impl Handler for Panics {
    fn lane(&self, _: &Record) -> String {
        String::new()
    }

    async fn handle(&self, delivery: &Delivery, _: &mut Work) -> Verdict {
        assert!(delivery.record.offset != 0, "this record panics");
        Verdict::Done
    }

    async fn give_up(&self, _: &Delivery, _: &str, _: &mut Work) -> Result<(), Stopped> {
        panic!("telling panics too")
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_panics_to_the_last_is_a_dead_letter_and_the_next_goes_on() {
    let rig = start(Arc::new(Panics), 1, None);
    rig.shared.add(0, "a", 10);
    rig.shared.add(0, "a", 10);
    rig.assign(0, Some(0));
    rig.until("all", || rig.shared.stored(0) == Some(2)).await;
    assert_eq!(rig.stop().await.dead.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn silence_while_paused_does_not_count_as_read_back() {
    let gate = Arc::new(Semaphore::new(0));
    let open = Arc::clone(&gate);
    let handler = Scripted::new(move |delivery: Delivery| {
        let open = Arc::clone(&open);
        async move {
            if delivery.record.partition == 0 {
                open.acquire().await.unwrap().forget();
            }
            Verdict::Done
        }
    });
    let back = Arc::new(BackTo {
        from: 0,
        reached: AtomicUsize::new(0),
    });
    let rig = start(Arc::clone(&handler) as _, 4, Some(Arc::clone(&back) as _));
    rig.shared.add(0, "a", 70 << 10);
    for _ in 0..5 {
        rig.shared.add(1, "b", 10);
    }
    rig.assign(0, Some(0));
    rig.until("paused", || *rig.shared.paused.lock().unwrap())
        .await;
    // One below the gap at its commit, so that only silence could say that it is through.
    rig.assign(1, Some(6));
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(back.reached.load(Ordering::SeqCst), 1, "only partition 0");
    gate.add_permits(1);
    rig.until("replayed", || handler.seen().len() == 6).await;
    assert_eq!(back.reached.load(Ordering::SeqCst), 1);
    rig.until("reached", || back.reached.load(Ordering::SeqCst) == 2)
        .await;
    rig.stop().await;
}

/// Says that it is through only when the gate opens.
struct Late {
    gate: Semaphore,
    begun: AtomicUsize,
    said: AtomicUsize,
}

#[async_trait]
impl GoBack for Late {
    async fn start(&self, _: i32, committed: i64, _: Option<i64>) -> i64 {
        committed
    }

    async fn reached(&self, _: i32) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.gate.acquire().await.unwrap().forget();
        self.said.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_goes_back_again_is_not_said_to_be_through_before() {
    let back = Arc::new(Late {
        gate: Semaphore::new(0),
        begun: AtomicUsize::new(0),
        said: AtomicUsize::new(0),
    });
    let handler = Scripted::new(|_| async { Verdict::Done });
    let rig = start(handler, 1, Some(Arc::clone(&back) as _));
    rig.assign(0, Some(0));
    rig.until("through", || back.begun.load(Ordering::SeqCst) == 1)
        .await;
    rig.commands.send(Command::AllGoBack).await.unwrap();
    rig.until("through again", || back.begun.load(Ordering::SeqCst) == 2)
        .await;
    back.gate.add_permits(10);
    rig.until("said", || back.said.load(Ordering::SeqCst) == 1)
        .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(back.said.load(Ordering::SeqCst), 1);
    rig.stop().await;
}
