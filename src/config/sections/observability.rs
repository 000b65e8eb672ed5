//! Composes the settings of logs and traces.

use std::io::IsTerminal;
use std::path::PathBuf;

use crate::config::settings::{LogFormat, LoggingSettings, TraceSampler, TraceSettings};
use crate::config::{Config, keys};

impl Config {
    /// Settings of traces.
    pub fn traces(&self) -> TraceSettings {
        let endpoint = self.text(&keys::OTEL_EXPORTER_OTLP_ENDPOINT);
        let headers = self.map(&keys::OTEL_EXPORTER_OTLP_HEADERS).into_iter();
        let resource = self.map(&keys::OTEL_RESOURCE_ATTRIBUTES).into_iter();
        TraceSettings {
            endpoint: endpoint.and_then(|url| url::Url::parse(url).ok()),
            headers: headers
                .map(|(name, value)| (name, percent_decoded(&value).into()))
                .collect(),
            timeout: self.duration(&keys::OTEL_EXPORTER_OTLP_TIMEOUT),
            service_name: self.text(&keys::OTEL_SERVICE_NAME).map(str::to_owned),
            default_service_name: format!("chatmesh-{}", self.role().as_str()),
            instance: self.server_id(),
            resource: resource
                .map(|(name, value)| (name, percent_decoded(&value)))
                .collect(),
            sampler: match self.text(&keys::OTEL_TRACES_SAMPLER) {
                Some("always_on") => TraceSampler::AlwaysOn,
                Some("always_off") => TraceSampler::AlwaysOff,
                Some("traceidratio") => TraceSampler::Ratio,
                Some("parentbased_always_off") => TraceSampler::ParentBasedAlwaysOff,
                Some("parentbased_traceidratio") => TraceSampler::ParentBasedRatio,
                _ => TraceSampler::ParentBasedAlwaysOn,
            },
            sampler_arg: self.float(&keys::OTEL_TRACES_SAMPLER_ARG),
        }
    }

    /// Settings of logs.
    pub fn logging(&self) -> LoggingSettings {
        let app_name = self.text(&keys::APP_NAME).unwrap_or(self.role().as_str());
        LoggingSettings {
            app_name: app_name.to_owned(),
            level: self.text_or_empty(&keys::LOG_LEVEL),
            format: match self.text(&keys::LOG_FORMAT) {
                Some("json") => LogFormat::Json,
                Some("pretty") => LogFormat::Pretty,
                _ if std::io::stdout().is_terminal() => LogFormat::Pretty,
                _ => LogFormat::Json,
            },
            folder: self.text(&keys::LOG_FOLDER).map(PathBuf::from),
            max_files: self.size(&keys::LOG_FILES),
        }
    }
}

/// Decodes percent-encoding, which OpenTelemetry's variables use. Invalid sequences stay unchanged.
/// The whole text stays unchanged if the result would not be UTF-8.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut remaining = text.as_bytes();
    while let Some((first, after)) = remaining.split_first() {
        let digits = after
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let digits = digits.filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        if let (b'%', Some(byte)) = (first, byte) {
            bytes.push(byte);
            remaining = &after[2..];
        } else {
            bytes.push(*first);
            remaining = after;
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}
