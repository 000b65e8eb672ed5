//! What the model was asked, as the model saw it: nothing is paid twice but for what was in flight
//! when something struck that may cost a call.

use std::collections::{BTreeMap, HashMap, HashSet};

use chatmesh::protocol::timestamp::now_ms;
use tokio::time::Instant;

use super::checker::Breach;
use crate::support::kafka_client::KafkaRecord as Record;
use crate::support::model::ModelRequest;

/// How a fault may cost calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cost {
    /// The model's own fault, or that of the way to it: the call after it doesn't count.
    Model,
    /// A worker, with what it had in flight; others read again what it had not committed.
    Worker,
    /// Redis's data, with all that was in flight, and the outcomes that it had.
    Redis,
    /// None by itself: partitions may have moved, so that what was not committed is read again.
    Moved,
}

/// What may cost calls, while it lasted.
#[derive(Debug, Clone)]
pub(super) struct Stake {
    /// Whose calls.
    pub(super) workers: Vec<&'static str>,
    pub(super) from: Instant,
    pub(super) until: Instant,
    pub(super) cost: Cost,
}

/// Within so much of each other two faults strike at once: partitions move after a session of 6 s.
const AT_ONCE_MS: i64 = 20_000;
/// After a fault of Kafka members wait for the session of who is gone, and those who come back one
/// after the other move partitions again.
const MOVES_LATE_MS: i64 = 12_000;

/// The log's time of something that the test saw.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    instant: Instant,
    ms: i64,
}

impl Clock {
    pub(super) fn now() -> Self {
        Self {
            instant: Instant::now(),
            ms: now_ms(),
        }
    }

    pub(super) fn ms(&self, at: Instant) -> i64 {
        self.ms + i64::try_from((at - self.instant).as_millis()).expect("a short run")
    }
}

/// Calls, counted.
#[derive(Debug, Default)]
pub(super) struct Calls {
    pub(super) made: usize,
    /// Beyond one for each message.
    pub(super) again: usize,
    /// Of those, the ones after a fault of the model.
    pub(super) excused: usize,
    /// Answers that were in flight when something struck that may cost a call.
    pub(super) in_flight: usize,
    /// Calls for what was answered, when Redis lost its outcome and at once its partition moved
    /// before it was committed, or its client sent it again: not promised (docs/reliability.md).
    pub(super) uncommitted: usize,
    pub(super) breaches: Vec<Breach>,
}

/// By which a worker is known: the model sees its key.
pub(super) fn key_of(worker: &str) -> String {
    format!("sk-{worker}")
}

#[derive(Debug, Clone, Copy)]
struct Call<'a> {
    at: i64,
    key: &'a str,
    faulty: bool,
}

/// When the log got the records of each message, in ms.
fn times(records: &[Record]) -> HashMap<String, Vec<i64>> {
    let mut times: HashMap<String, Vec<i64>> = HashMap::new();
    for record in records {
        let value = record.json();
        let id = value["message_id"].as_str().unwrap_or_default();
        let of = times.entry(id.to_owned()).or_default();
        of.push(record.timestamp_ms);
    }
    times
}

/// Each call beyond the first of a message needs a fault at which that message was in flight, one
/// for each. In flight: a call was begun by a worker that was struck, and the log had no answer.
/// Or else two at once, by which an answered message is read again and its outcome lost.
pub(super) fn count(
    asked: &[ModelRequest],
    faulty: &HashSet<(String, usize)>,
    stakes: &[Stake],
    (messages, responses): (&[Record], &[Record]),
    clock: Clock,
) -> Calls {
    let mut calls: BTreeMap<&str, Vec<Call<'_>>> = BTreeMap::new();
    for asked in asked {
        let key = asked.authorization.as_deref().unwrap_or_default();
        calls.entry(&asked.prompt).or_default().push(Call {
            at: clock.ms(asked.at),
            key: key.trim_start_matches("Bearer "),
            faulty: faulty.contains(&(asked.prompt.clone(), asked.previous_requests)),
        });
    }
    let ids: HashMap<String, String> = messages
        .iter()
        .map(|record| {
            let value = record.json();
            let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
            (text("content"), text("message_id"))
        })
        .collect();
    let (taken, ends) = (times(messages), times(responses));
    let struck = |stake: &Stake, call: &Call<'_>| {
        stake.workers.iter().any(|name| key_of(name) == call.key)
            && call.at <= clock.ms(stake.until)
    };

    let mut count = Calls::default();
    for (prompt, mut calls) in calls {
        calls.sort_by_key(|call| call.at);
        count.made += calls.len();
        let id = ids.get(prompt).cloned().unwrap_or_default();
        let ended = ends.get(&id).and_then(|ends| ends.iter().min().copied());
        let ended = ended.unwrap_or(i64::MAX);
        let in_flight = stakes
            .iter()
            .filter(|stake| matches!(stake.cost, Cost::Worker | Cost::Redis))
            .filter(|stake| ended >= clock.ms(stake.from))
            .filter(|stake| calls.iter().any(|call| struck(stake, call)))
            .count();
        let excused = calls.windows(2).filter(|pair| {
            pair[0].faulty
                || stakes.iter().any(|stake| {
                    stake.cost == Cost::Model
                        && struck(stake, &pair[0])
                        && pair[1].at >= clock.ms(stake.from)
                })
        });
        let uncommitted = calls.iter().filter(|call| {
            let between = |stake: &&Stake, late: i64| {
                clock.ms(stake.until) + late >= ended && clock.ms(stake.from) <= call.at
            };
            let mut lost = stakes.iter().filter(|stake| stake.cost == Cost::Redis);
            let moved = |lost: &Stake| {
                let moves = |stake: &&Stake| {
                    matches!(stake.cost, Cost::Worker | Cost::Moved)
                        && stake.workers.iter().any(|name| name.starts_with("worker"))
                };
                let close = |stake: &&Stake| {
                    (clock.ms(stake.from) - clock.ms(lost.from)).abs() <= AT_ONCE_MS
                };
                let mut moved = stakes.iter().filter(moves).filter(close);
                moved.any(|stake| between(&stake, MOVES_LATE_MS))
            };
            // Its client did not know of the end yet, and sent it again: a record of its own, which
            // may also wait in its lane behind the first, and be read once the outcome is gone.
            let taken = taken.get(&id).into_iter().flatten();
            let sent_again = taken.filter(|at| **at <= call.at).count() > 1;
            let lost_and = |lost: &Stake| sent_again || moved(lost);
            call.at > ended && lost.any(|lost| between(&lost, 0) && lost_and(lost))
        });
        let (again, excused) = (calls.len() - 1, excused.count());
        let uncommitted = uncommitted.count();
        count.again += again;
        count.excused += excused;
        count.in_flight += in_flight;
        count.uncommitted += uncommitted;
        if again - excused > in_flight + uncommitted {
            count.breaches.push(Breach {
                text: format!(
                    "{prompt:?}: {} calls of the model, {excused} after a fault of it, and in flight \
                     at {in_flight} faults that may cost one: {calls:?}, ended at {ended}",
                    calls.len()
                ),
                ids: vec![id],
            });
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    fn record(value: &Value, timestamp_ms: i64) -> Record {
        Record {
            partition: 0,
            offset: 0,
            timestamp_ms,
            key: None,
            value: value.to_string(),
            headers: BTreeMap::new(),
        }
    }

    fn asked(at: Instant, earlier: usize) -> ModelRequest {
        ModelRequest {
            prompt: "q".into(),
            body: Value::Null,
            authorization: Some("Bearer sk-worker_1".into()),
            path: String::new(),
            at,
            previous_requests: earlier,
        }
    }

    #[test]
    fn a_second_call_needs_a_fault_of_its_own() {
        let clock = Clock::now();
        let at = |ms| clock.instant + Duration::from_millis(ms);
        let messages = [record(
            &json!({"content": "q", "message_id": "m"}),
            clock.ms,
        )];
        let responses = [record(&json!({"message_id": "m"}), clock.ms + 900)];
        let stake = |worker, ms, cost| Stake {
            workers: vec![worker],
            from: at(ms),
            until: at(ms + 10),
            cost,
        };
        let two = [asked(at(100), 0), asked(at(500), 1)];
        let three = [asked(at(100), 0), asked(at(500), 1), asked(at(700), 2)];
        let bad = |calls: &[ModelRequest], faulty: &[usize], stakes: &[Stake]| {
            let faulty = faulty.iter().map(|n| ("q".to_owned(), *n)).collect();
            let count = count(calls, &faulty, stakes, (&messages, &responses), clock);
            count.breaches.len()
        };
        assert_eq!(bad(&two[..1], &[], &[]), 0);
        assert_eq!(bad(&two, &[], &[]), 1);
        assert_eq!(bad(&two, &[0], &[]), 0);
        assert_eq!(bad(&two, &[], &[stake("worker_1", 200, Cost::Worker)]), 0);
        assert_eq!(bad(&two, &[], &[stake("worker_1", 200, Cost::Model)]), 0);
        assert_eq!(bad(&three, &[], &[stake("worker_1", 200, Cost::Worker)]), 1);
        // Struck before it was asked, after it was answered, or another worker.
        assert_eq!(bad(&two, &[], &[stake("worker_1", 50, Cost::Worker)]), 1);
        assert_eq!(bad(&two, &[], &[stake("worker_1", 950, Cost::Worker)]), 1);
        assert_eq!(bad(&two, &[], &[stake("worker_2", 200, Cost::Worker)]), 1);
        // Answered, and read again without its outcome: that takes both.
        let late = [asked(at(100), 0), asked(at(2000), 1)];
        let lost = stake("worker_1", 1000, Cost::Redis);
        let moved = stake("worker_2", 1100, Cost::Moved);
        assert_eq!(bad(&late, &[], std::slice::from_ref(&lost)), 1);
        assert_eq!(bad(&late, &[], std::slice::from_ref(&moved)), 1);
        assert_eq!(bad(&late, &[], &[lost, moved.clone()]), 0);
        // Or its client sent it again, and that was read after the loss.
        let bad_again = |ms| {
            let again = record(&json!({"content": "q", "message_id": "m"}), clock.ms + ms);
            let messages = [&messages[..], std::slice::from_ref(&again)].concat();
            let lost = stake("worker_1", 1000, Cost::Redis);
            let (none, both) = (HashSet::new(), (&messages[..], &responses[..]));
            count(&late, &none, &[lost], both, clock).breaches.len()
        };
        assert_eq!(bad_again(1900), 0);
        assert_eq!(bad_again(500), 0);
        // A record that came after the call is not why it was made.
        assert_eq!(bad_again(2100), 1);
        let before = stake("worker_2", 850, Cost::Redis);
        assert_eq!(bad(&late, &[], &[before, moved]), 1);
    }
}
