//! Begins and ends spans, which record the steps of a message's path through a process.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanKind as SdkSpanKind, Status, TraceContextExt as _,
    TraceFlags, TraceState, Tracer as _,
};
use opentelemetry::{Context, KeyValue, SpanId, TraceId, Value};
use tracing::field::DisplayValue;

use super::TRACER;
use crate::protocol::trace_context::{self, TraceContext};

/// The kind of a span, as OpenTelemetry defines it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// The span handles a request.
    Server,
    /// The span sends a request and waits for the response.
    Client,
    /// The span sends a message that is processed later.
    Producer,
    /// The span processes a message that a producer has sent.
    Consumer,
    /// The span is a step inside this process.
    Internal,
}

/// A span that has begun and ends when it is dropped. A span that is not recorded only propagates
/// the trace context.
#[derive(Debug, Default)]
pub struct Span {
    /// The trace context that children have as their parent; `None` if there is no trace.
    context: Option<TraceContext>,
    /// The span to export; `None` if the span is not recorded.
    sdk_span: Option<Box<opentelemetry_sdk::trace::Span>>,
}

impl Span {
    /// Creates a span that is not recorded and propagates `context`.
    pub fn unrecorded(context: Option<TraceContext>) -> Self {
        Self {
            context,
            sdk_span: None,
        }
    }

    /// Begins a span whose parent is in another process; without a parent, the span begins a new
    /// trace. If traces are off, the span is not recorded and propagates the parent's context.
    pub fn begin(parent: Option<TraceContext>, kind: SpanKind, name: fmt::Arguments<'_>) -> Self {
        begin_span(parent, true, kind, name, None)
    }

    /// Like [`Span::begin`], with a start in the past.
    pub fn begin_at(
        parent: Option<TraceContext>,
        kind: SpanKind,
        name: fmt::Arguments<'_>,
        start: SystemTime,
    ) -> Self {
        begin_span(parent, true, kind, name, Some(start))
    }

    /// Begins a child of this span. The child is recorded if this span is recorded.
    pub fn child(&self, kind: SpanKind, name: fmt::Arguments<'_>) -> Self {
        self.begin_child(kind, name, None)
    }

    /// Like [`Span::child`], with a start in the past.
    pub fn child_at(&self, kind: SpanKind, name: fmt::Arguments<'_>, start: SystemTime) -> Self {
        self.begin_child(kind, name, Some(start))
    }

    fn begin_child(
        &self,
        kind: SpanKind,
        name: fmt::Arguments<'_>,
        start: Option<SystemTime>,
    ) -> Self {
        if self.sdk_span.is_none() {
            return Self::unrecorded(self.context.clone());
        }
        begin_span(self.context.clone(), false, kind, name, start)
    }

    /// Returns the trace context that a child of this span, here or in another process, has as its
    /// parent. `None` if there is no trace.
    pub fn context(&self) -> Option<&TraceContext> {
        self.context.as_ref()
    }

    /// Whether the span is recorded, and so exported when it ends.
    pub fn is_recorded(&self) -> bool {
        self.sdk_span.is_some()
    }

    /// Returns the trace id for log lines, or `None` if there is no trace.
    pub fn trace_id(&self) -> Option<DisplayValue<trace_context::TraceId>> {
        let context = self.context.as_ref()?;
        Some(tracing::field::display(context.trace_id()))
    }

    fn set_attribute(&mut self, key: &'static str, value: impl FnOnce() -> Value) {
        if let Some(span) = &mut self.sdk_span {
            span.set_attribute(KeyValue::new(key, value()));
        }
    }

    /// Sets a text attribute. No attribute may hold contents of messages, or ids of users or
    /// conversations.
    pub fn set_text(&mut self, key: &'static str, value: &str) {
        self.set_attribute(key, || value.to_owned().into());
    }

    /// Sets an attribute that is a list of texts.
    pub fn set_texts(&mut self, key: &'static str, values: &[&str]) {
        self.set_attribute(key, || {
            let values = values.iter().map(|value| (*value).to_owned().into());
            Value::Array(values.collect::<Vec<opentelemetry::StringValue>>().into())
        });
    }

    /// Sets an integer attribute; values beyond `i64` are ignored.
    pub fn set_number(&mut self, key: &'static str, value: impl TryInto<i64>) {
        if let Ok(value) = value.try_into() {
            self.set_attribute(key, || value.into());
        }
    }

    /// Sets a floating-point attribute.
    pub fn set_float(&mut self, key: &'static str, value: f64) {
        self.set_attribute(key, || value.into());
    }

    /// Adds an event at the current time.
    pub fn add_event(&mut self, name: &'static str) {
        if let Some(span) = &mut self.sdk_span {
            span.add_event(name, Vec::new());
        }
    }

    /// Marks the span as failed. `reason` must come from a fixed set.
    pub fn fail(&mut self, reason: &'static str) {
        if let Some(span) = &mut self.sdk_span {
            span.set_attribute(KeyValue::new("error.type", reason));
            span.set_status(Status::error(reason));
        }
    }

    /// Ends the span at a time in the past.
    pub fn end_at(mut self, moment: SystemTime) {
        if let Some(span) = &mut self.sdk_span {
            span.end_with_timestamp(moment);
        }
    }
}

fn begin_span(
    parent: Option<TraceContext>,
    is_parent_remote: bool,
    kind: SpanKind,
    name: fmt::Arguments<'_>,
    start: Option<SystemTime>,
) -> Span {
    let Some(tracer) = TRACER.get() else {
        return Span::unrecorded(parent);
    };
    let name = match name.as_str() {
        Some(name) => name.into(),
        None => std::borrow::Cow::Owned(name.to_string()),
    };
    let mut builder = SpanBuilder::from_name(name).with_kind(match kind {
        SpanKind::Server => SdkSpanKind::Server,
        SpanKind::Client => SdkSpanKind::Client,
        SpanKind::Producer => SdkSpanKind::Producer,
        SpanKind::Consumer => SdkSpanKind::Consumer,
        SpanKind::Internal => SdkSpanKind::Internal,
    });
    builder.start_time = start;
    let parent_context = match &parent {
        Some(parent) => Context::new().with_remote_span_context(to_sdk(parent, is_parent_remote)),
        None => Context::new(),
    };
    let span = tracer.tracer.build_with_context(builder, &parent_context);
    let context = from_sdk(span.span_context()).or(parent);
    Span {
        context,
        sdk_span: span.is_recording().then(|| Box::new(span)),
    }
}

fn to_sdk(context: &TraceContext, is_remote: bool) -> SpanContext {
    let state = context.tracestate().map(TraceState::from_str);
    SpanContext::new(
        TraceId::from(context.trace_id().as_u128()),
        SpanId::from(context.span_id()),
        TraceFlags::new(context.flags()),
        is_remote,
        state.and_then(Result::ok).unwrap_or_default(),
    )
}

fn from_sdk(context: &SpanContext) -> Option<TraceContext> {
    TraceContext::new(
        u128::from_be_bytes(context.trace_id().to_bytes()),
        u64::from_be_bytes(context.span_id().to_bytes()),
        context.trace_flags().to_u8(),
        &context.trace_state().header(),
    )
}
