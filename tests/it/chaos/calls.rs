//! Checks the requests that the model API received: no message causes a second model call, except
//! those that were in flight when a fault struck that may cost a call.

use std::collections::{BTreeMap, HashMap, HashSet};

use chatmesh::protocol::timestamp::now_ms;
use tokio::time::Instant;

use super::checker::Violation;
use crate::support::kafka_client::KafkaRecord as Record;
use crate::support::model::ModelRequest;

/// How a fault may cause further model calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FaultCost {
    /// The model API or the connection to it failed. The call after that one does not count.
    Model,
    /// A worker stopped with its calls in flight, and others read the uncommitted records again.
    Worker,
    /// Redis lost its data: everything in flight, and the stored outcomes.
    Redis,
    /// The fault costs no call by itself, but partitions may have been reassigned, so that
    /// uncommitted records are read again.
    Reassignment,
}

/// A fault that may cause further model calls, with its time span.
#[derive(Debug, Clone)]
pub(super) struct CostlyFault {
    /// The workers whose calls it affects.
    pub(super) workers: Vec<&'static str>,
    pub(super) from: Instant,
    pub(super) until: Instant,
    pub(super) cost: FaultCost,
}

/// Two faults within this time of each other count as simultaneous, because partitions are
/// reassigned only after a session of 6 s has expired.
const SIMULTANEOUS_MS: i64 = 20_000;
/// After a fault of Kafka, members wait for the sessions of members that are gone, and each member
/// that returns causes another reassignment.
const MAX_REASSIGNMENT_DELAY_MS: i64 = 12_000;

/// Converts the test's instants to the time of the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogClock {
    instant: Instant,
    ms: i64,
}

impl LogClock {
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

/// Totals over the model calls of a run.
#[derive(Debug, Default)]
pub(super) struct ModelCallTotals {
    pub(super) made: usize,
    /// Calls beyond the first one of each message.
    pub(super) again: usize,
    /// The part of `again` that followed a fault of the model API.
    pub(super) excused: usize,
    /// Answers that were in flight when a fault struck that may cost a call.
    pub(super) in_flight: usize,
    /// Calls for messages that were already answered: Redis lost the outcome, and at the same time
    /// the record was read again because its partition was reassigned before the commit, or because
    /// its client sent it again. This is outside of the promises (docs/reliability.md).
    pub(super) uncommitted: usize,
    pub(super) violations: Vec<Violation>,
}

/// The API key of a worker, by which the model API tells the workers apart.
pub(super) fn api_key_of(worker: &str) -> String {
    format!("sk-{worker}")
}

#[derive(Debug, Clone, Copy)]
struct Call<'a> {
    at: i64,
    key: &'a str,
    faulty: bool,
}

/// For each message, the times in ms at which the log received its records.
fn times(records: &[Record]) -> HashMap<String, Vec<i64>> {
    let mut times: HashMap<String, Vec<i64>> = HashMap::new();
    for record in records {
        let value = record.json();
        let id = value["message_id"].as_str().unwrap_or_default();
        let message_times = times.entry(id.to_owned()).or_default();
        message_times.push(record.timestamp_ms);
    }
    times
}

/// Checks that each call beyond the first one of a message has a fault of its own at which the
/// message was in flight: an affected worker had begun a call and the log had no outcome.
/// Alternatively two simultaneous faults may explain it: one by which an answered message is read
/// again, and one that lost its outcome.
pub(super) fn check_model_calls(
    requests: &[ModelRequest],
    faulty: &HashSet<(String, usize)>,
    costly_faults: &[CostlyFault],
    (messages, responses): (&[Record], &[Record]),
    clock: LogClock,
) -> ModelCallTotals {
    let mut calls: BTreeMap<&str, Vec<Call<'_>>> = BTreeMap::new();
    for request in requests {
        let key = request.authorization.as_deref().unwrap_or_default();
        calls.entry(&request.prompt).or_default().push(Call {
            at: clock.ms(request.received_at),
            key: key.trim_start_matches("Bearer "),
            faulty: faulty.contains(&(request.prompt.clone(), request.previous_requests)),
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
    let (question_times, ends) = (times(messages), times(responses));
    let has_struck = |fault: &CostlyFault, call: &Call<'_>| {
        fault
            .workers
            .iter()
            .any(|name| api_key_of(name) == call.key)
            && call.at <= clock.ms(fault.until)
    };

    let mut count = ModelCallTotals::default();
    for (prompt, mut calls) in calls {
        calls.sort_by_key(|call| call.at);
        count.made += calls.len();
        let id = ids.get(prompt).cloned().unwrap_or_default();
        let ended = ends.get(&id).and_then(|ends| ends.iter().min().copied());
        let ended = ended.unwrap_or(i64::MAX);
        let in_flight = costly_faults
            .iter()
            .filter(|fault| matches!(fault.cost, FaultCost::Worker | FaultCost::Redis))
            .filter(|fault| ended >= clock.ms(fault.from))
            .filter(|fault| calls.iter().any(|call| has_struck(fault, call)))
            .count();
        let excused = calls.windows(2).filter(|pair| {
            pair[0].faulty
                || costly_faults.iter().any(|fault| {
                    fault.cost == FaultCost::Model
                        && has_struck(fault, &pair[0])
                        && pair[1].at >= clock.ms(fault.from)
                })
        });
        let uncommitted = calls.iter().filter(|call| {
            let between = |fault: &&CostlyFault, late: i64| {
                clock.ms(fault.until) + late >= ended && clock.ms(fault.from) <= call.at
            };
            let mut lost = costly_faults
                .iter()
                .filter(|fault| fault.cost == FaultCost::Redis);
            let was_reassigned = |lost: &CostlyFault| {
                let moves = |fault: &&CostlyFault| {
                    matches!(fault.cost, FaultCost::Worker | FaultCost::Reassignment)
                        && fault.workers.iter().any(|name| name.starts_with("worker"))
                };
                let close = |fault: &&CostlyFault| {
                    (clock.ms(fault.from) - clock.ms(lost.from)).abs() <= SIMULTANEOUS_MS
                };
                let mut reassignments = costly_faults.iter().filter(moves).filter(close);
                reassignments.any(|fault| between(&fault, MAX_REASSIGNMENT_DELAY_MS))
            };
            // The client did not know the outcome yet and sent the message again. That second
            // record may wait in its lane behind the first one and be read after the outcome is
            // lost.
            let question_times = question_times.get(&id).into_iter().flatten();
            let sent_again = question_times.filter(|at| **at <= call.at).count() > 1;
            let lost_and = |lost: &CostlyFault| sent_again || was_reassigned(lost);
            call.at > ended && lost.any(|lost| between(&lost, 0) && lost_and(lost))
        });
        let (again, excused) = (calls.len() - 1, excused.count());
        let uncommitted = uncommitted.count();
        count.again += again;
        count.excused += excused;
        count.in_flight += in_flight;
        count.uncommitted += uncommitted;
        if again - excused > in_flight + uncommitted {
            count.violations.push(Violation {
                text: format!(
                    "{prompt:?}: {} model calls, {excused} after a fault of the model API, and in flight \
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

    fn request(at: Instant, earlier: usize) -> ModelRequest {
        ModelRequest {
            prompt: "q".into(),
            body: Value::Null,
            authorization: Some("Bearer sk-worker_1".into()),
            path: String::new(),
            received_at: at,
            previous_requests: earlier,
        }
    }

    #[test]
    fn second_model_call_needs_a_fault_of_its_own() {
        let clock = LogClock::now();
        let at = |ms| clock.instant + Duration::from_millis(ms);
        let messages = [record(
            &json!({"content": "q", "message_id": "m"}),
            clock.ms,
        )];
        let responses = [record(&json!({"message_id": "m"}), clock.ms + 900)];
        let fault = |worker, ms, cost| CostlyFault {
            workers: vec![worker],
            from: at(ms),
            until: at(ms + 10),
            cost,
        };
        let two = [request(at(100), 0), request(at(500), 1)];
        let three = [
            request(at(100), 0),
            request(at(500), 1),
            request(at(700), 2),
        ];
        let bad = |calls: &[ModelRequest], faulty: &[usize], costly_faults: &[CostlyFault]| {
            let faulty = faulty.iter().map(|n| ("q".to_owned(), *n)).collect();
            let count = check_model_calls(
                calls,
                &faulty,
                costly_faults,
                (&messages, &responses),
                clock,
            );
            count.violations.len()
        };
        assert_eq!(bad(&two[..1], &[], &[]), 0);
        assert_eq!(bad(&two, &[], &[]), 1);
        assert_eq!(bad(&two, &[0], &[]), 0);
        assert_eq!(
            bad(&two, &[], &[fault("worker_1", 200, FaultCost::Worker)]),
            0
        );
        assert_eq!(
            bad(&two, &[], &[fault("worker_1", 200, FaultCost::Model)]),
            0
        );
        assert_eq!(
            bad(&three, &[], &[fault("worker_1", 200, FaultCost::Worker)]),
            1
        );
        // The fault came before the call, after the answer, or affected another worker.
        assert_eq!(
            bad(&two, &[], &[fault("worker_1", 50, FaultCost::Worker)]),
            1
        );
        assert_eq!(
            bad(&two, &[], &[fault("worker_1", 950, FaultCost::Worker)]),
            1
        );
        assert_eq!(
            bad(&two, &[], &[fault("worker_2", 200, FaultCost::Worker)]),
            1
        );
        // An answered message is called for again only if it is read again and its outcome is lost.
        let late = [request(at(100), 0), request(at(2000), 1)];
        let lost = fault("worker_1", 1000, FaultCost::Redis);
        let moved = fault("worker_2", 1100, FaultCost::Reassignment);
        assert_eq!(bad(&late, &[], std::slice::from_ref(&lost)), 1);
        assert_eq!(bad(&late, &[], std::slice::from_ref(&moved)), 1);
        assert_eq!(bad(&late, &[], &[lost, moved.clone()]), 0);
        // Alternatively its client sent it again, and that record was read after the loss.
        let bad_again = |ms| {
            let again = record(&json!({"content": "q", "message_id": "m"}), clock.ms + ms);
            let messages = [&messages[..], std::slice::from_ref(&again)].concat();
            let lost = fault("worker_1", 1000, FaultCost::Redis);
            let (none, both) = (HashSet::new(), (&messages[..], &responses[..]));
            check_model_calls(&late, &none, &[lost], both, clock)
                .violations
                .len()
        };
        assert_eq!(bad_again(1900), 0);
        assert_eq!(bad_again(500), 0);
        // A record that came after the call is not its cause.
        assert_eq!(bad_again(2100), 1);
        let before = fault("worker_2", 850, FaultCost::Redis);
        assert_eq!(bad(&late, &[], &[before, moved]), 1);
    }
}
