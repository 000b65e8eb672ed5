//! The SDK's parts, made of our settings: what is set in a file or `.env` counts as much as the
//! environment.

use std::collections::HashMap;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, SpanExporter as _};
use secrecy::ExposeSecret as _;
use url::Url;

use super::client::Client;
use super::queue::Queue;
use crate::config::settings::{TraceSampler, TraceSettings};

/// The settings make no exporter.
#[derive(Debug, thiserror::Error)]
#[error("traces can't be exported, check the OTEL_EXPORTER_OTLP_* settings: {0}")]
pub struct TracesError(String);

/// The endpoint as logs may show it.
pub(super) fn shown(endpoint: &Url) -> String {
    let mut endpoint = endpoint.clone();
    // An address that can have none has none.
    let _ = endpoint.set_username("");
    let _ = endpoint.set_password(None);
    endpoint.set_query(None);
    endpoint.into()
}

pub(super) fn resource(settings: &TraceSettings) -> Resource {
    let given = settings.resource.iter();
    let given = given.map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    Resource::builder_empty()
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new(
            "service.instance.id",
            settings.instance.clone(),
        ))
        .with_service_name(settings.role_name.clone())
        .with_attributes(given)
        .with_attributes(
            settings
                .service_name
                .clone()
                .map(|name| KeyValue::new("service.name", name)),
        )
        .build()
}

pub(super) fn build(
    settings: &TraceSettings,
    endpoint: &Url,
    resource: &Resource,
) -> Result<SpanExporter, TracesError> {
    let trouble = |error: &dyn std::fmt::Display| TracesError(error.to_string());
    let client = Client::new(endpoint, settings.timeout).map_err(|error| trouble(&error))?;
    let mut address = endpoint.clone();
    // The variable names the collector, not the path of traces there.
    if let Ok(mut path) = address.path_segments_mut() {
        path.pop_if_empty().extend(["v1", "traces"]);
    }
    let headers = settings.headers.iter();
    let headers = headers.map(|(name, value)| (name.clone(), value.expose_secret().to_owned()));
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
        .with_endpoint(address)
        .with_timeout(settings.timeout)
        .with_headers(headers.collect::<HashMap<_, _>>())
        .build()
        .map_err(|error| trouble(&error))?;
    exporter.set_resource(resource);
    Ok(exporter)
}

pub(super) fn tracer(settings: &TraceSettings, resource: Resource, queue: Queue) -> SdkTracer {
    let part = Sampler::TraceIdRatioBased(settings.sampler_arg);
    let sampler = match settings.sampler {
        TraceSampler::AlwaysOn => Sampler::AlwaysOn,
        TraceSampler::AlwaysOff => Sampler::AlwaysOff,
        TraceSampler::Ratio => part,
        TraceSampler::ParentOrOn => Sampler::ParentBased(Box::new(Sampler::AlwaysOn)),
        TraceSampler::ParentOrOff => Sampler::ParentBased(Box::new(Sampler::AlwaysOff)),
        TraceSampler::ParentOrRatio => Sampler::ParentBased(Box::new(part)),
    };
    let provider = SdkTracerProvider::builder()
        .with_sampler(sampler)
        .with_resource(resource)
        .with_span_processor(queue)
        .build();
    let scope = InstrumentationScope::builder("chatmesh")
        .with_version(env!("CARGO_PKG_VERSION"))
        .build();
    provider.tracer_with_scope(scope)
}
