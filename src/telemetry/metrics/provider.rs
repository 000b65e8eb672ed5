//! Metrics of the worker's calls to the model's API; the names are the original's, those of the
//! throttle ours.

use std::collections::BTreeMap;
use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram, Unit};
use parking_lot::RwLock;

use super::{Kind, Metric};
use crate::protocol::record::Usage;

/// Calls by how they ended: `success`, `error` or `cancelled` (nobody wanted the rest).
pub const REQUESTS: Metric = Metric {
    name: "ai_consumer_openai_requests_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Calls to the model's API, each attempt counted",
    labels: &["model", "status"],
};

/// Failed calls by their kind.
pub const ERRORS: Metric = Metric {
    name: "ai_consumer_openai_errors_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Calls to the model's API that failed, by kind",
    labels: &["error_type"],
};

/// Further attempts at the same message.
pub const RETRIES: Metric = Metric {
    name: "ai_consumer_openai_retries_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Attempts after the first one, by their number",
    labels: &["attempt"],
};

/// From sending the request to the end of the answer, or to its failure.
pub const DURATION: Metric = Metric {
    name: "ai_consumer_openai_duration_seconds",
    kind: Kind::Histogram,
    unit: Unit::Seconds,
    help: "Duration of calls to the model's API, to the end of the answer",
    labels: &["model"],
};

/// What a person waits before something is to be read.
pub const FIRST_TOKEN: Metric = Metric {
    name: "ai_consumer_openai_first_token_seconds",
    kind: Kind::Histogram,
    unit: Unit::Seconds,
    help: "Time from a call to the model's API to the first text of its answer",
    labels: &["model"],
};

/// As the API counted them.
pub const TOKENS: Metric = Metric {
    name: "ai_consumer_openai_tokens_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    help: "Tokens used, as the API counts them (type: prompt, completion, total)",
    labels: &["model", "type"],
};

/// Calls held back by the throttle.
pub const THROTTLED: Metric = Metric {
    name: "ai_consumer_openai_throttled_calls",
    kind: Kind::Gauge,
    unit: Unit::Count,
    help: "Calls that wait because the model's API has refused for its rate",
    labels: &[],
};

/// The throttle's present spacing.
pub const SPACING: Metric = Metric {
    name: "ai_consumer_openai_throttle_spacing_seconds",
    kind: Kind::Gauge,
    unit: Unit::Seconds,
    help: "Least time between two calls after the model's API has refused for its rate; 0: none",
    labels: &[],
};

/// All of them.
pub const ALL: &[&Metric] = &[
    &REQUESTS,
    &ERRORS,
    &RETRIES,
    &DURATION,
    &FIRST_TOKEN,
    &TOKENS,
    &THROTTLED,
    &SPACING,
];

/// Handles of one model's calls.
#[derive(Debug)]
pub(crate) struct ModelHandles {
    pub(crate) success: Counter,
    pub(crate) error: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) duration: Histogram,
    pub(crate) first_token: Histogram,
    prompt_tokens: Counter,
    completion_tokens: Counter,
    total_tokens: Counter,
}

impl ModelHandles {
    /// Adds what a call used.
    pub(crate) fn used(&self, usage: Usage) {
        self.prompt_tokens.increment(usage.prompt_tokens);
        self.completion_tokens.increment(usage.completion_tokens);
        self.total_tokens.increment(usage.total_tokens);
    }
}

/// Cached handles. Made after the recorder is installed: earlier ones count nothing.
#[derive(Debug)]
pub struct ProviderMetrics {
    models: RwLock<BTreeMap<String, Arc<ModelHandles>>>,
    errors: Vec<(&'static str, Counter)>,
    pub(crate) throttled: Gauge,
    pub(crate) spacing: Gauge,
}

impl ProviderMetrics {
    /// `error_kinds` are all labels of [`ERRORS`].
    pub fn new(error_kinds: &[&'static str]) -> Self {
        let errors = error_kinds
            .iter()
            .map(|kind| (*kind, ERRORS.counter(&[kind])));
        Self {
            models: RwLock::default(),
            errors: errors.collect(),
            throttled: THROTTLED.gauge(&[]),
            spacing: SPACING.gauge(&[]),
        }
    }

    /// Handles for a model of the configuration, made at its first call.
    pub(crate) fn model(&self, model: &str) -> Arc<ModelHandles> {
        let models = self.models.read();
        if let Some(handles) = models.get(model) {
            return Arc::clone(handles);
        }
        drop(models);
        let tokens = |kind| TOKENS.counter(&[model, kind]);
        let requests = |status| REQUESTS.counter(&[model, status]);
        let handles = Arc::new(ModelHandles {
            success: requests("success"),
            error: requests("error"),
            cancelled: requests("cancelled"),
            duration: DURATION.histogram(&[model]),
            first_token: FIRST_TOKEN.histogram(&[model]),
            prompt_tokens: tokens("prompt"),
            completion_tokens: tokens("completion"),
            total_tokens: tokens("total"),
        });
        let mut models = self.models.write();
        Arc::clone(models.entry(model.to_owned()).or_insert(handles))
    }

    /// Counts a failed call.
    pub(crate) fn failed(&self, kind: &'static str) {
        match self.errors.iter().find(|(known, _)| *known == kind) {
            Some((_, counter)) => counter.increment(1),
            None => ERRORS.counter(&[kind]).increment(1),
        }
    }

    /// Counts attempts of this number, which is 2 for the first one after the first; counted by
    /// who tries again.
    pub fn retries(attempt: u32) -> Counter {
        RETRIES.counter(&[&attempt.to_string()])
    }
}
