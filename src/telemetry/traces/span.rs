//! One step of a message's way.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _, TraceFlags,
    TraceState, Tracer as _,
};
use opentelemetry::{Context, KeyValue, SpanId, TraceId, Value};
use tracing::field::DisplayValue;

use super::TRACING;
use crate::protocol::trace_context::{self, TraceContext};

/// A span's place between processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Answers somebody's request.
    Server,
    /// Asks somebody.
    Client,
    /// Leaves a message for somebody.
    Producer,
    /// Takes one.
    Consumer,
    /// Inside this process.
    Internal,
}

/// A step that has begun. It ends when it is dropped. Where nothing is recorded it only carries
/// the context that it was begun in.
#[derive(Debug, Default)]
pub struct Span {
    context: Option<TraceContext>,
    recorded: Option<Box<opentelemetry_sdk::trace::Span>>,
}

impl Span {
    /// Records nothing, and passes a context on.
    pub fn passing(context: Option<TraceContext>) -> Self {
        Self {
            context,
            recorded: None,
        }
    }

    /// A step of the trace that came with a message, or of a new one. Where traces are off, the
    /// context is passed on as it came.
    pub fn begin(parent: Option<TraceContext>, kind: Kind, name: fmt::Arguments<'_>) -> Self {
        start(parent, true, kind, name, None)
    }

    /// As [`Span::begin`], begun earlier.
    pub fn begin_at(
        parent: Option<TraceContext>,
        kind: Kind,
        name: fmt::Arguments<'_>,
        since: SystemTime,
    ) -> Self {
        start(parent, true, kind, name, Some(since))
    }

    /// A step inside this one. Records nothing where this one does not.
    pub fn child(&self, kind: Kind, name: fmt::Arguments<'_>) -> Self {
        self.child_of(kind, name, None)
    }

    /// As [`Span::child`], begun earlier.
    pub fn child_at(&self, kind: Kind, name: fmt::Arguments<'_>, since: SystemTime) -> Self {
        self.child_of(kind, name, Some(since))
    }

    fn child_of(&self, kind: Kind, name: fmt::Arguments<'_>, since: Option<SystemTime>) -> Self {
        if self.recorded.is_none() {
            return Self::passing(self.context.clone());
        }
        start(self.context.clone(), false, kind, name, since)
    }

    /// What the next step, here or elsewhere, is to have as its parent.
    pub fn context(&self) -> Option<&TraceContext> {
        self.context.as_ref()
    }

    /// Whether it will be exported.
    pub fn is_recorded(&self) -> bool {
        self.recorded.is_some()
    }

    /// For log lines.
    pub fn trace_id(&self) -> Option<DisplayValue<trace_context::TraceId>> {
        let context = self.context.as_ref()?;
        Some(tracing::field::display(context.trace_id()))
    }

    fn attribute(&mut self, key: &'static str, value: impl FnOnce() -> Value) {
        if let Some(span) = &mut self.recorded {
            span.set_attribute(KeyValue::new(key, value()));
        }
    }

    /// Adds a text. Never contents, and no ids of users or conversations.
    pub fn text(&mut self, key: &'static str, value: &str) {
        self.attribute(key, || value.to_owned().into());
    }

    /// Adds a list of texts.
    pub fn texts(&mut self, key: &'static str, values: &[&str]) {
        self.attribute(key, || {
            let values = values.iter().map(|value| (*value).to_owned().into());
            Value::Array(values.collect::<Vec<opentelemetry::StringValue>>().into())
        });
    }

    /// Adds a whole number.
    pub fn number(&mut self, key: &'static str, value: impl TryInto<i64>) {
        if let Ok(value) = value.try_into() {
            self.attribute(key, || value.into());
        }
    }

    /// Adds a number.
    pub fn float(&mut self, key: &'static str, value: f64) {
        self.attribute(key, || value.into());
    }

    /// Notes a moment in it.
    pub fn event(&mut self, name: &'static str) {
        if let Some(span) = &mut self.recorded {
            span.add_event(name, Vec::new());
        }
    }

    /// It failed, by a reason of a fixed set.
    pub fn fail(&mut self, reason: &'static str) {
        if let Some(span) = &mut self.recorded {
            span.set_attribute(KeyValue::new("error.type", reason));
            span.set_status(Status::error(reason));
        }
    }

    /// Ends it as of an earlier moment; otherwise it ends when it is dropped.
    pub fn end_at(mut self, moment: SystemTime) {
        if let Some(span) = &mut self.recorded {
            span.end_with_timestamp(moment);
        }
    }
}

fn start(
    parent: Option<TraceContext>,
    remote: bool,
    kind: Kind,
    name: fmt::Arguments<'_>,
    since: Option<SystemTime>,
) -> Span {
    let Some(tracing) = TRACING.get() else {
        return Span::passing(parent);
    };
    let name = match name.as_str() {
        Some(name) => name.into(),
        None => std::borrow::Cow::Owned(name.to_string()),
    };
    let mut builder = SpanBuilder::from_name(name).with_kind(match kind {
        Kind::Server => SpanKind::Server,
        Kind::Client => SpanKind::Client,
        Kind::Producer => SpanKind::Producer,
        Kind::Consumer => SpanKind::Consumer,
        Kind::Internal => SpanKind::Internal,
    });
    builder.start_time = since;
    let around = match &parent {
        Some(parent) => Context::new().with_remote_span_context(to_sdk(parent, remote)),
        None => Context::new(),
    };
    let span = tracing.tracer.build_with_context(builder, &around);
    let context = of_sdk(span.span_context()).or(parent);
    Span {
        context,
        recorded: span.is_recording().then(|| Box::new(span)),
    }
}

fn to_sdk(context: &TraceContext, remote: bool) -> SpanContext {
    let state = context.tracestate().map(TraceState::from_str);
    SpanContext::new(
        TraceId::from(context.trace_number()),
        SpanId::from(context.span_number()),
        TraceFlags::new(context.flags()),
        remote,
        state.and_then(Result::ok).unwrap_or_default(),
    )
}

fn of_sdk(context: &SpanContext) -> Option<TraceContext> {
    TraceContext::new(
        u128::from_be_bytes(context.trace_id().to_bytes()),
        u64::from_be_bytes(context.span_id().to_bytes()),
        context.trace_flags().to_u8(),
        &context.trace_state().header(),
    )
}
