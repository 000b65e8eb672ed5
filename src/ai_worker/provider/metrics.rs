//! Metrics of the calls to the model's API, under the names of the original system's worker
//! (`ai-consumer`), and of the throttle that spaces the calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram};
use parking_lot::RwLock;

use crate::protocol::record::Usage;
use crate::telemetry::metrics::declare_metrics;

declare_metrics! {
    REQUESTS: Counter in Count = "ai_consumer_openai_requests_total", ["model", "status"],
        "Calls to the model's API, retries included, by result: success, error or cancelled.";
    ERRORS: Counter in Count = "ai_consumer_openai_errors_total", ["error_type"],
        "Failed calls to the model's API, by kind of error.";
    RETRIES: Counter in Count = "ai_consumer_openai_retries_total", ["attempt"],
        "Model calls after the first for the same message, by number of the call.";
    DURATION: Histogram in Seconds = "ai_consumer_openai_duration_seconds", ["model"],
        "Duration of a call to the model's API, until the end of the answer or the failure.";
    FIRST_TOKEN: Histogram in Seconds = "ai_consumer_openai_first_token_seconds", ["model"],
        "Time from a call to the model's API to the first piece of its answer, reasoning included.";
    TOKENS: Counter in Count = "ai_consumer_openai_tokens_total", ["model", "type"],
        "Tokens used, as counted by the API, by type: prompt, completion or total.";
    THROTTLED: Gauge in Count = "ai_consumer_openai_throttled_calls", [],
        "Calls that wait because the model's API has limited the rate.";
    SPACING: Gauge in Seconds = "ai_consumer_openai_throttle_spacing_seconds", [],
        "Minimum time between two calls, set after the model's API has limited the rate. Zero \
         means no limit.";
}

/// Metric handles of the calls to one model.
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
    /// Adds the tokens that a call used.
    pub(crate) fn record_usage(&self, usage: Usage) {
        self.prompt_tokens.increment(usage.prompt_tokens);
        self.completion_tokens.increment(usage.completion_tokens);
        self.total_tokens.increment(usage.total_tokens);
    }
}

/// Cached metric handles of one provider. They must be created after the metrics recorder is
/// installed, because handles created earlier record nothing.
#[derive(Debug)]
pub(crate) struct ProviderMetrics {
    /// The handles of each model that was called.
    models: RwLock<BTreeMap<String, Arc<ModelHandles>>>,
    /// The counters of failed calls by kind of error.
    errors: Vec<(&'static str, Counter)>,
    pub(crate) throttled: Gauge,
    pub(crate) spacing: Gauge,
}

impl ProviderMetrics {
    /// Creates the handles. `error_kinds` lists all values of the label `error_type`.
    pub(crate) fn new(error_kinds: &[&'static str]) -> Self {
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

    /// Returns the handles of a model. The first call for a model creates its handles.
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

    /// Counts a failed call by its kind of error.
    pub(crate) fn record_failure(&self, kind: &'static str) {
        match self.errors.iter().find(|(label, _)| *label == kind) {
            Some((_, counter)) => counter.increment(1),
            None => ERRORS.counter(&[kind]).increment(1),
        }
    }

    /// Returns the counter of retries for calls with this number within their message. The first
    /// retry is call 2.
    pub(crate) fn retries(call_number: u32) -> Counter {
        RETRIES.counter(&[&call_number.to_string()])
    }
}
