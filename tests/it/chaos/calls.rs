//! What the model was asked, as the model saw it: nothing is paid twice but for what was in flight
//! when something struck that may cost a call.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::checker::Breach;
use crate::support::kafka::Seen as Record;
use crate::support::model::Asked;

/// What may cost calls, while it lasted.
#[derive(Debug, Clone)]
pub(super) struct Stake {
    /// Whose calls.
    pub(super) workers: Vec<&'static str>,
    pub(super) from: Instant,
    pub(super) until: Instant,
    /// The model's own fault, or that of the way to it: the call after it doesn't count.
    pub(super) provider: bool,
}

/// The log's time of something that the test saw.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    instant: Instant,
    ms: i64,
}

impl Clock {
    pub(super) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            instant: Instant::now(),
            ms: i64::try_from(since.expect("after 1970").as_millis()).expect("a time"),
        }
    }

    fn ms(&self, at: Instant) -> i64 {
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

/// Clocks are shifted by this much, and a worker writes the time of its own.
const SHIFTS: [i64; 3] = [0, 3_700_000, -3_700_000];

/// Each call beyond the first of a message needs a fault at which that message was in flight, one
/// for each. In flight: a call was begun by a worker that was struck, and the log had no answer.
pub(super) fn count(
    asked: &[Asked],
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
            faulty: faulty.contains(&(asked.prompt.clone(), asked.earlier)),
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
    let mut ends: HashMap<String, Vec<i64>> = HashMap::new();
    for record in responses {
        let id = record.json()["message_id"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        ends.entry(id).or_default().push(record.timestamp_ms);
    }
    let struck = |stake: &Stake, call: &Call<'_>| {
        stake.workers.iter().any(|name| key_of(name) == call.key)
            && call.at <= clock.ms(stake.until)
    };

    let mut count = Calls::default();
    for (prompt, mut calls) in calls {
        calls.sort_by_key(|call| call.at);
        count.made += calls.len();
        let id = ids.get(prompt).cloned().unwrap_or_default();
        let last = calls.last().map_or(0, |call| call.at);
        let ended = ends.get(&id).into_iter().flatten().map(|ms| {
            let right = SHIFTS.map(|shift| ms - shift);
            right
                .into_iter()
                .min_by_key(|ms| (ms - last).abs())
                .unwrap_or(*ms)
        });
        let ended = ended.min().unwrap_or(i64::MAX);
        let in_flight = stakes
            .iter()
            .filter(|stake| !stake.provider && ended >= clock.ms(stake.from))
            .filter(|stake| calls.iter().any(|call| struck(stake, call)))
            .count();
        let excused = calls.windows(2).filter(|pair| {
            pair[0].faulty
                || stakes.iter().any(|stake| {
                    stake.provider && struck(stake, &pair[0]) && pair[1].at >= clock.ms(stake.from)
                })
        });
        let (again, excused) = (calls.len() - 1, excused.count());
        count.again += again;
        count.excused += excused;
        count.in_flight += in_flight;
        if again - excused > in_flight {
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

    fn asked(at: Instant, earlier: usize) -> Asked {
        Asked {
            prompt: "q".into(),
            body: Value::Null,
            authorization: Some("Bearer sk-worker_1".into()),
            path: String::new(),
            at,
            earlier,
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
        let responses = [record(&json!({"message_id": "m"}), clock.ms + 3_700_900)];
        let stake = |worker, ms, provider| Stake {
            workers: vec![worker],
            from: at(ms),
            until: at(ms + 10),
            provider,
        };
        let two = [asked(at(100), 0), asked(at(500), 1)];
        let three = [asked(at(100), 0), asked(at(500), 1), asked(at(700), 2)];
        let bad = |calls: &[Asked], faulty: &[usize], stakes: &[Stake]| {
            let faulty = faulty.iter().map(|n| ("q".to_owned(), *n)).collect();
            let count = count(calls, &faulty, stakes, (&messages, &responses), clock);
            count.breaches.len()
        };
        assert_eq!(bad(&two[..1], &[], &[]), 0);
        assert_eq!(bad(&two, &[], &[]), 1);
        assert_eq!(bad(&two, &[0], &[]), 0);
        assert_eq!(bad(&two, &[], &[stake("worker_1", 200, false)]), 0);
        assert_eq!(bad(&two, &[], &[stake("worker_1", 200, true)]), 0);
        assert_eq!(bad(&three, &[], &[stake("worker_1", 200, false)]), 1);
        // Struck before it was asked, after it was answered, or another worker.
        assert_eq!(bad(&two, &[], &[stake("worker_1", 50, false)]), 1);
        assert_eq!(bad(&two, &[], &[stake("worker_1", 950, false)]), 1);
        assert_eq!(bad(&two, &[], &[stake("worker_2", 200, false)]), 1);
    }
}
