//! Builds the OpenTelemetry SDK's exporter, resource and tracer from chatmesh's settings. The SDK's
//! own configuration is not used, because it reads only the environment, and neither chatmesh's
//! configuration file nor `.env`.

use std::collections::HashMap;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, SpanExporter as _};
use secrecy::ExposeSecret as _;
use url::Url;

use super::client::ExporterClient;
use super::queue::SpanQueue;
use crate::config::settings::{TraceSampler, TraceSettings};

/// The exporter can't be built from the settings.
#[derive(Debug, thiserror::Error)]
#[error("traces can't be exported, check the OTEL_EXPORTER_OTLP_* settings: {0}")]
pub struct TracesError(String);

/// Returns the endpoint without credentials and query, for logs.
pub(super) fn redacted_endpoint(endpoint: &Url) -> String {
    let mut endpoint = endpoint.clone();
    // The two calls fail for a URL that can't have credentials, which has none to remove.
    let _ = endpoint.set_username("");
    let _ = endpoint.set_password(None);
    endpoint.set_query(None);
    endpoint.into()
}

/// Returns the attributes of this process that every span gets. The configured attributes overwrite
/// the defaults; a configured service name overwrites both.
pub(super) fn resource(settings: &TraceSettings) -> Resource {
    let attributes = settings.resource.iter();
    let attributes = attributes.map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    Resource::builder_empty()
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new(
            "service.instance.id",
            settings.instance.clone(),
        ))
        .with_service_name(settings.default_service_name.clone())
        .with_attributes(attributes)
        .with_attributes(
            settings
                .service_name
                .clone()
                .map(|name| KeyValue::new("service.name", name)),
        )
        .build()
}

/// Builds the exporter that sends spans to the collector at `endpoint`.
pub(super) fn build_exporter(
    settings: &TraceSettings,
    endpoint: &Url,
    resource: &Resource,
) -> Result<SpanExporter, TracesError> {
    let failed = |error: &dyn std::fmt::Display| TracesError(error.to_string());
    let client = ExporterClient::new(endpoint, settings.timeout).map_err(|error| failed(&error))?;
    let mut address = endpoint.clone();
    // By OpenTelemetry's specification, `OTEL_EXPORTER_OTLP_ENDPOINT` is a base URL, to which the
    // path of a signal is added.
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
        .map_err(|error| failed(&error))?;
    exporter.set_resource(resource);
    Ok(exporter)
}

/// Builds the tracer that samples spans by the settings and puts finished spans into `queue`.
pub(super) fn build_tracer(
    settings: &TraceSettings,
    resource: Resource,
    queue: SpanQueue,
) -> SdkTracer {
    let ratio = Sampler::TraceIdRatioBased(settings.sampler_arg);
    let sampler = match settings.sampler {
        TraceSampler::AlwaysOn => Sampler::AlwaysOn,
        TraceSampler::AlwaysOff => Sampler::AlwaysOff,
        TraceSampler::Ratio => ratio,
        TraceSampler::ParentBasedAlwaysOn => Sampler::ParentBased(Box::new(Sampler::AlwaysOn)),
        TraceSampler::ParentBasedAlwaysOff => Sampler::ParentBased(Box::new(Sampler::AlwaysOff)),
        TraceSampler::ParentBasedRatio => Sampler::ParentBased(Box::new(ratio)),
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
