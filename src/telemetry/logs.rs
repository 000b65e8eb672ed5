//! Initialises logging: lines on standard output, where containers expect them, and in daily files
//! if `LOG_FOLDER` is set.

use std::io::{IsTerminal, Write};
use std::sync::OnceLock;

use serde_json::{Map, Value};
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_appender::rolling::{RollingFileAppender, Rotation};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::{LookupSpan, Scope};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::config::settings::{LogFormat, LoggingSettings};

/// Maximum number of lines that wait for the disk, and of lines that wait for the reader of
/// standard output. Above the maximum, a line is dropped and counted, so that a slow disk or a
/// paused terminal never blocks the service.
const MAX_QUEUED_LINES: usize = 65_536;

/// The counters of dropped lines: one for standard output, and one for the files if there are
/// files.
static DROPPED_LINE_COUNTERS: OnceLock<Vec<ErrorCounter>> = OnceLock::new();

/// Number of lines dropped since the start because a queue was full.
pub fn dropped_lines() -> u64 {
    let counters = DROPPED_LINE_COUNTERS.get().map_or(&[][..], Vec::as_slice);
    counters
        .iter()
        .map(|counter| counter.dropped_lines() as u64)
        .sum()
}

/// Why logging could not be initialised.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// `LOG_FOLDER` can't be created or written.
    #[error("log files can't be written in {folder} (LOG_FOLDER): {reason}")]
    Folder {
        /// The value of `LOG_FOLDER`.
        folder: String,
        /// The operating system's error.
        reason: String,
    },
    /// `LOG_LEVEL` is neither a level nor a filter.
    #[error("LOG_LEVEL is neither a level nor a filter: {0}")]
    Level(String),
    /// The process already has a `tracing` subscriber.
    #[error("logging is already initialised in this process")]
    Installed,
}

/// Keeps the writer threads running. Dropping the guard writes the queued lines, so keep it until
/// the end of the process.
#[derive(Debug)]
pub struct LogsGuard {
    _writers: Vec<WorkerGuard>,
}

/// Initialises the logging of the process.
///
/// # Errors
/// The folder can't be written, the level is invalid, or logging is initialised already.
pub fn init(settings: &LoggingSettings) -> Result<LogsGuard, LogsError> {
    let filter = || {
        EnvFilter::builder()
            .parse(directives(&settings.level))
            .map_err(|error| LogsError::Level(error.to_string()))
    };
    let mut guards = Vec::new();
    let mut counters = Vec::new();
    let mut register = |writer: NonBlocking, guard: WorkerGuard| {
        counters.push(writer.error_counter());
        guards.push(guard);
        writer
    };

    let (writer, guard) = non_blocking(std::io::stdout());
    let writer = register(writer, guard);
    let terminal = match settings.format {
        LogFormat::Json => json_layer(settings, writer).boxed(),
        LogFormat::Pretty => fmt::layer()
            .event_format(PrettyFormat {
                app_name: settings.app_name.clone(),
            })
            .with_ansi(std::io::stdout().is_terminal())
            .with_writer(writer)
            .boxed(),
    };
    let files = match &settings.folder {
        None => None,
        Some(folder) => {
            let folder_error = |reason: String| LogsError::Folder {
                folder: folder.display().to_string(),
                reason,
            };
            std::fs::create_dir_all(folder).map_err(|error| folder_error(error.to_string()))?;
            let appender = RollingFileAppender::builder()
                .rotation(Rotation::DAILY)
                .filename_prefix(file_name(&settings.app_name))
                .filename_suffix("log")
                .max_log_files(settings.max_files)
                .build(folder)
                .map_err(|error| folder_error(error.to_string()))?;
            let (writer, guard) = non_blocking(appender);
            Some(json_layer(settings, register(writer, guard)).with_filter(filter()?))
        }
    };
    tracing_subscriber::registry()
        .with(terminal.with_filter(filter()?))
        .with(files)
        .try_init()
        .map_err(|_| LogsError::Installed)?;
    // `set` can't fail, because a second initialisation has returned above.
    let _ = DROPPED_LINE_COUNTERS.set(counters);
    Ok(LogsGuard { _writers: guards })
}

/// Expands the levels `info`, `debug` and `trace` to a filter; uses any other level or filter
/// unchanged. `debug` and `trace` apply only to chatmesh's own lines, because libraries log too
/// much below `info`, possibly with the data that they send. At `info` and `debug`, the lines of
/// fjall and fred are limited further: fjall logs each of its steps at `info`, and fred logs a lost
/// connection several times.
fn directives(level: &str) -> &str {
    match level {
        "info" => "info,fjall=warn,lsm_tree=warn,fred=error",
        "debug" => "info,fjall=warn,lsm_tree=warn,fred=error,chatmesh=debug",
        "trace" => "info,chatmesh=trace",
        other => other,
    }
}

/// Replaces by `-` the characters of the application's name that are not safe in a file name.
fn file_name(app_name: &str) -> String {
    let to_safe = |c: char| {
        if c.is_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '-'
        }
    };
    app_name.chars().map(to_safe).collect()
}

/// Returns a writer with a bounded queue that never blocks its callers, and the guard of its
/// thread.
fn non_blocking(writer: impl Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default()
        .buffered_lines_limit(MAX_QUEUED_LINES)
        .lossy(true)
        .thread_name("chatmesh-log")
        .finish(writer)
}

fn json_layer<S>(settings: &LoggingSettings, writer: NonBlocking) -> impl Layer<S> + use<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fmt::layer()
        .fmt_fields(fmt::format::JsonFields::new())
        .event_format(JsonFormat {
            app_name: settings.app_name.clone(),
        })
        .with_writer(writer)
}

/// Formats an event as one flat JSON object per line: time, level, application, target, message,
/// and the fields of the event and of its spans. Of fields with the same name, the event's field
/// wins, then the field of the innermost span.
struct JsonFormat {
    app_name: String,
}

#[derive(Default)]
struct EventFields(Map<String, Value>);

impl Visit for EventFields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0
            .insert(field.name().into(), format!("{value:?}").into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().into(), value.into());
    }
}

fn rfc3339_now() -> String {
    time::OffsetDateTime::now_utc()
        .format(&Rfc3339)
        .unwrap_or_default()
}

impl<S, N> FormatEvent<S, N> for JsonFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let mut line = Map::new();
        for span in context.event_scope().into_iter().flat_map(Scope::from_root) {
            let extensions = span.extensions();
            if let Some(fields) = extensions.get::<FormattedFields<N>>()
                && let Ok(Value::Object(fields)) = serde_json::from_str(&fields.fields)
            {
                line.extend(fields);
            }
        }
        let mut fields = EventFields::default();
        event.record(&mut fields);
        // Events of the `log` crate carry their target, and paths of source files, as fields. Only
        // the target is kept.
        let target = fields.0.remove("log.target");
        fields.0.retain(|name, _| !name.starts_with("log."));
        line.extend(fields.0);
        line.insert("timestamp".into(), rfc3339_now().into());
        line.insert("level".into(), event.metadata().level().as_str().into());
        line.insert("app_name".into(), self.app_name.as_str().into());
        let target = target.unwrap_or_else(|| event.metadata().target().into());
        line.insert("target".into(), target);
        writeln!(writer, "{}", Value::Object(line))
    }
}

/// Formats an event for a person: time, level, application, message and fields.
struct PrettyFormat {
    app_name: String,
}

impl<S, N> FormatEvent<S, N> for PrettyFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let level = event.metadata().level();
        let time = rfc3339_now();
        let time = time.get(11..19).unwrap_or(&time);
        write!(writer, "{time} {level:>5} {}: ", self.app_name)?;
        context
            .field_format()
            .format_fields(writer.by_ref(), event)?;
        for span in context.event_scope().into_iter().flat_map(Scope::from_root) {
            let extensions = span.extensions();
            if let Some(fields) = extensions.get::<FormattedFields<N>>()
                && !fields.is_empty()
            {
                write!(writer, " {fields}")?;
            }
        }
        writeln!(writer)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn settings() -> LoggingSettings {
        LoggingSettings {
            app_name: "relay".into(),
            level: "info".into(),
            format: LogFormat::Json,
            folder: None,
            max_files: 1,
        }
    }

    #[test]
    fn line_is_one_json_object_with_the_fields_of_its_span() {
        let lines = Lines::default();
        let (writer, guard) = non_blocking(lines.clone());
        let subscriber = tracing_subscriber::registry().with(json_layer(&settings(), writer));
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("message", correlation_id = "c-1", message_id = "m");
            let _inside = span.enter();
            tracing::info!(attempt = 2, "two\nlines \"quoted\"");
        });
        drop(guard);
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["correlation_id"], "c-1");
        assert_eq!(line["message_id"], "m");
        assert_eq!(line["attempt"], 2);
        assert_eq!(line["message"], "two\nlines \"quoted\"");
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["app_name"], "relay");
    }

    #[test]
    fn application_name_can_not_escape_from_the_log_folder() {
        assert_eq!(file_name("../AI Consumer"), "..-AI-Consumer");
    }
}
