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
    /// The model API or the connection to it failed. The worker's retry of a failed call does not
    /// count.
    Model,
    /// A worker stopped with calls in flight, and other workers read its uncommitted records again.
    Worker,
    /// Redis lost its data: the answers in flight and the stored outcomes.
    Redis,
    /// The fault costs no call by itself, but partitions may have been reassigned, so that
    /// uncommitted records are read again.
    Reassignment,
}

/// A fault that may cause further model calls, with its time span.
#[derive(Debug, Clone)]
pub(super) struct CostlyFault {
    /// The workers whose calls the fault affects.
    pub(super) workers: Vec<&'static str>,
    pub(super) from: Instant,
    pub(super) until: Instant,
    pub(super) cost: FaultCost,
}

/// Two faults within this time of each other count as simultaneous, because partitions are
/// reassigned only after a session of 6 s has expired.
const SIMULTANEOUS_MS: i64 = 20_000;
/// Time after a fault of Kafka within which partitions may still be reassigned: a group waits until
/// the sessions of lost members expire, and each member that rejoins causes another reassignment.
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

    pub(super) fn to_ms(self, instant: Instant) -> i64 {
        self.ms + i64::try_from((instant - self.instant).as_millis()).expect("a short run")
    }
}

/// Totals over the model calls of a run.
#[derive(Debug, Default)]
pub(super) struct ModelCallTotals {
    pub(super) total: usize,
    /// Calls beyond the first one of each message.
    pub(super) additional: usize,
    /// The additional calls that followed a fault of the model API.
    pub(super) after_model_fault: usize,
    /// Answers that were in flight when a fault struck that may cost a call.
    pub(super) in_flight: usize,
    /// Calls for messages that were already answered: Redis lost the outcome, and at the same time
    /// the record was read again because its partition was reassigned before the commit, or because
    /// its client sent it again. No promise excludes these calls (docs/reliability.md).
    pub(super) after_lost_outcome: usize,
    pub(super) violations: Vec<Violation>,
}

/// The API key of a worker, by which the model API tells the workers apart.
pub(super) fn api_key_of(worker: &str) -> String {
    format!("sk-{worker}")
}

#[derive(Debug, Clone, Copy)]
struct Call<'a> {
    received_ms: i64,
    api_key: &'a str,
    has_failed: bool,
}

/// For each message, the times in ms at which the log received its records.
fn record_times(records: &[Record]) -> HashMap<String, Vec<i64>> {
    let mut times: HashMap<String, Vec<i64>> = HashMap::new();
    for record in records {
        let value = record.json();
        let id = value["message_id"].as_str().unwrap_or_default();
        let message_times = times.entry(id.to_owned()).or_default();
        message_times.push(record.timestamp_ms);
    }
    times
}

/// Checks that a fault explains each call beyond the first one of a message. Each such call needs a
/// fault of its own that struck while the message was in flight: an affected worker had begun a
/// call and the log had no outcome. A call for an answered message is explained by a data loss of
/// Redis if the message was also read again, after a simultaneous reassignment or because its
/// client had sent it again.
pub(super) fn check_model_calls(
    requests: &[ModelRequest],
    failed_calls: &HashSet<(String, usize)>,
    costly_faults: &[CostlyFault],
    (messages, responses): (&[Record], &[Record]),
    clock: LogClock,
) -> ModelCallTotals {
    let mut calls: BTreeMap<&str, Vec<Call<'_>>> = BTreeMap::new();
    for request in requests {
        let authorization = request.authorization.as_deref().unwrap_or_default();
        let request_id = (request.prompt.clone(), request.previous_requests);
        calls.entry(&request.prompt).or_default().push(Call {
            received_ms: clock.to_ms(request.received_at),
            api_key: authorization.trim_start_matches("Bearer "),
            has_failed: failed_calls.contains(&request_id),
        });
    }
    let ids: HashMap<String, String> = messages
        .iter()
        .map(|record| {
            let value = record.json();
            let field = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
            (field("content"), field("message_id"))
        })
        .collect();
    let (question_times, outcome_times) = (record_times(messages), record_times(responses));
    let has_affected = |fault: &CostlyFault, call: &Call<'_>| {
        fault
            .workers
            .iter()
            .any(|name| api_key_of(name) == call.api_key)
            && call.received_ms <= clock.to_ms(fault.until)
    };

    let mut totals = ModelCallTotals::default();
    for (prompt, mut calls) in calls {
        calls.sort_by_key(|call| call.received_ms);
        totals.total += calls.len();
        let id = ids.get(prompt).cloned().unwrap_or_default();
        let times = outcome_times.get(&id);
        let ended_ms = times.and_then(|times| times.iter().min().copied());
        let ended_ms = ended_ms.unwrap_or(i64::MAX);
        let in_flight = costly_faults
            .iter()
            .filter(|fault| matches!(fault.cost, FaultCost::Worker | FaultCost::Redis))
            .filter(|fault| ended_ms >= clock.to_ms(fault.from))
            .filter(|fault| calls.iter().any(|call| has_affected(fault, call)))
            .count();
        let after_model_fault = calls.windows(2).filter(|pair| {
            pair[0].has_failed
                || costly_faults.iter().any(|fault| {
                    fault.cost == FaultCost::Model
                        && has_affected(fault, &pair[0])
                        && pair[1].received_ms >= clock.to_ms(fault.from)
                })
        });
        let after_lost_outcome = calls.iter().filter(|call| {
            let is_between_outcome_and_call = |fault: &CostlyFault, delay_ms: i64| {
                clock.to_ms(fault.until) + delay_ms >= ended_ms
                    && clock.to_ms(fault.from) <= call.received_ms
            };
            let mut data_losses = costly_faults
                .iter()
                .filter(|fault| fault.cost == FaultCost::Redis);
            let was_reassigned = |data_loss: &CostlyFault| {
                let reassigns = |fault: &CostlyFault| {
                    matches!(fault.cost, FaultCost::Worker | FaultCost::Reassignment)
                        && fault.workers.iter().any(|name| name.starts_with("worker"))
                };
                let is_simultaneous = |fault: &CostlyFault| {
                    let distance_ms = clock.to_ms(fault.from) - clock.to_ms(data_loss.from);
                    distance_ms.abs() <= SIMULTANEOUS_MS
                };
                costly_faults.iter().any(|fault| {
                    reassigns(fault)
                        && is_simultaneous(fault)
                        && is_between_outcome_and_call(fault, MAX_REASSIGNMENT_DELAY_MS)
                })
            };
            // A client that does not know the outcome yet may send its message again. The second
            // record may wait in its lane behind the first one and be read after the outcome is
            // lost.
            let question_times = question_times.get(&id).into_iter().flatten();
            let earlier_records = question_times.filter(|ms| **ms <= call.received_ms);
            let was_resent = earlier_records.count() > 1;
            call.received_ms > ended_ms
                && data_losses.any(|data_loss| {
                    is_between_outcome_and_call(data_loss, 0)
                        && (was_resent || was_reassigned(data_loss))
                })
        });
        let (additional, after_model_fault) = (calls.len() - 1, after_model_fault.count());
        let after_lost_outcome = after_lost_outcome.count();
        totals.additional += additional;
        totals.after_model_fault += after_model_fault;
        totals.in_flight += in_flight;
        totals.after_lost_outcome += after_lost_outcome;
        if additional - after_model_fault > in_flight + after_lost_outcome {
            totals.violations.push(Violation {
                text: format!(
                    "{prompt:?}: {} model calls, {after_model_fault} after a fault of the model API, and \
                     in flight at {in_flight} faults that may cost one: {calls:?}, ended at \
                     {ended_ms}",
                    calls.len()
                ),
                ids: vec![id],
            });
        }
    }
    totals
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

    fn request(received_at: Instant, previous_requests: usize) -> ModelRequest {
        ModelRequest {
            prompt: "q".into(),
            body: Value::Null,
            authorization: Some("Bearer sk-worker_1".into()),
            path: String::new(),
            received_at,
            previous_requests,
        }
    }

    #[test]
    fn second_model_call_needs_a_fault_of_its_own() {
        let clock = LogClock::now();
        let instant_at = |ms| clock.instant + Duration::from_millis(ms);
        let messages = [record(
            &json!({"content": "q", "message_id": "m"}),
            clock.ms,
        )];
        let responses = [record(&json!({"message_id": "m"}), clock.ms + 900)];
        let fault = |worker, ms, cost| CostlyFault {
            workers: vec![worker],
            from: instant_at(ms),
            until: instant_at(ms + 10),
            cost,
        };
        let two_calls = [request(instant_at(100), 0), request(instant_at(500), 1)];
        let three_calls = [
            request(instant_at(100), 0),
            request(instant_at(500), 1),
            request(instant_at(700), 2),
        ];
        let violation_count =
            |calls: &[ModelRequest], failed_calls: &[usize], costly_faults: &[CostlyFault]| {
                let failed_calls = failed_calls.iter().map(|n| ("q".to_owned(), *n)).collect();
                let totals = check_model_calls(
                    calls,
                    &failed_calls,
                    costly_faults,
                    (&messages, &responses),
                    clock,
                );
                totals.violations.len()
            };
        assert_eq!(violation_count(&two_calls[..1], &[], &[]), 0);
        assert_eq!(violation_count(&two_calls, &[], &[]), 1);
        assert_eq!(violation_count(&two_calls, &[0], &[]), 0);
        assert_eq!(
            violation_count(
                &two_calls,
                &[],
                &[fault("worker_1", 200, FaultCost::Worker)]
            ),
            0
        );
        assert_eq!(
            violation_count(&two_calls, &[], &[fault("worker_1", 200, FaultCost::Model)]),
            0
        );
        assert_eq!(
            violation_count(
                &three_calls,
                &[],
                &[fault("worker_1", 200, FaultCost::Worker)]
            ),
            1
        );
        // These faults struck before the first call or after the outcome, or affected another
        // worker.
        assert_eq!(
            violation_count(&two_calls, &[], &[fault("worker_1", 50, FaultCost::Worker)]),
            1
        );
        assert_eq!(
            violation_count(
                &two_calls,
                &[],
                &[fault("worker_1", 950, FaultCost::Worker)]
            ),
            1
        );
        assert_eq!(
            violation_count(
                &two_calls,
                &[],
                &[fault("worker_2", 200, FaultCost::Worker)]
            ),
            1
        );
        // A call after the outcome needs two faults: the record is read again, and Redis loses the
        // outcome.
        let call_after_outcome = [request(instant_at(100), 0), request(instant_at(2000), 1)];
        let data_loss = fault("worker_1", 1000, FaultCost::Redis);
        let reassignment = fault("worker_2", 1100, FaultCost::Reassignment);
        assert_eq!(
            violation_count(&call_after_outcome, &[], std::slice::from_ref(&data_loss)),
            1
        );
        assert_eq!(
            violation_count(
                &call_after_outcome,
                &[],
                std::slice::from_ref(&reassignment)
            ),
            1
        );
        assert_eq!(
            violation_count(&call_after_outcome, &[], &[data_loss, reassignment.clone()]),
            0
        );
        // A resent message is read again without a reassignment, if the log received the second
        // record before the call.
        let violations_after_resend = |ms| {
            let second_record = record(&json!({"content": "q", "message_id": "m"}), clock.ms + ms);
            let messages = [&messages[..], std::slice::from_ref(&second_record)].concat();
            let data_loss = fault("worker_1", 1000, FaultCost::Redis);
            let records = (&messages[..], &responses[..]);
            let no_failures = HashSet::new();
            let totals = check_model_calls(
                &call_after_outcome,
                &no_failures,
                &[data_loss],
                records,
                clock,
            );
            totals.violations.len()
        };
        assert_eq!(violations_after_resend(1900), 0);
        assert_eq!(violations_after_resend(500), 0);
        assert_eq!(violations_after_resend(2100), 1);
        // A data loss before the outcome does not lose the outcome.
        let earlier_loss = fault("worker_2", 850, FaultCost::Redis);
        assert_eq!(
            violation_count(&call_after_outcome, &[], &[earlier_loss, reassignment]),
            1
        );
    }
}
