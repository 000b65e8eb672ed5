//! Logs: lines on the terminal (standard output, where containers expect them) and, with a
//! folder, in daily files.

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

/// Lines that may wait for the disk, or for the terminal's reader; more are dropped and counted,
/// so that a full disk or a paused terminal never stops the service.
const QUEUE_LINES: usize = 65_536;

static DROPPED: OnceLock<Vec<ErrorCounter>> = OnceLock::new();

/// Lines dropped since the start because a queue was full.
pub fn dropped_lines() -> u64 {
    let counters = DROPPED.get().map_or(&[][..], Vec::as_slice);
    counters
        .iter()
        .map(|counter| counter.dropped_lines() as u64)
        .sum()
}

/// Logs can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// LOG_FOLDER can't be written to.
    #[error("log files can't be written in {folder} (LOG_FOLDER): {reason}")]
    Folder {
        /// The folder.
        folder: String,
        /// What the system says.
        reason: String,
    },
    /// LOG_LEVEL is no filter.
    #[error("LOG_LEVEL is neither a level nor a filter: {0}")]
    Level(String),
    /// Something else in the process logs already.
    #[error("logs are set up already")]
    Installed,
}

/// Keeps the writers; what is queued is written when it is dropped, so keep it until the end.
#[derive(Debug)]
pub struct LogsGuard {
    _writers: Vec<WorkerGuard>,
}

/// Sets up the process's logs.
///
/// # Errors
/// The folder can't be written, the level is none, or logs are there already.
pub fn init(settings: &LoggingSettings) -> Result<LogsGuard, LogsError> {
    let filter = || {
        EnvFilter::builder()
            .parse(directives(&settings.level))
            .map_err(|error| LogsError::Level(error.to_string()))
    };
    let mut guards = Vec::new();
    let mut counters = Vec::new();
    let mut queue = |writer: NonBlocking, guard: WorkerGuard| {
        counters.push(writer.error_counter());
        guards.push(guard);
        writer
    };

    let (writer, guard) = bounded(std::io::stdout());
    let writer = queue(writer, guard);
    let terminal = match settings.format {
        LogFormat::Json => json_layer(settings, writer).boxed(),
        LogFormat::Pretty => fmt::layer()
            .event_format(Pretty {
                app_name: settings.app_name.clone(),
            })
            .with_ansi(std::io::stdout().is_terminal())
            .with_writer(writer)
            .boxed(),
    };
    let files = match &settings.folder {
        None => None,
        Some(folder) => {
            let trouble = |reason: String| LogsError::Folder {
                folder: folder.display().to_string(),
                reason,
            };
            std::fs::create_dir_all(folder).map_err(|error| trouble(error.to_string()))?;
            let appender = RollingFileAppender::builder()
                .rotation(Rotation::DAILY)
                .filename_prefix(file_name(&settings.app_name))
                .filename_suffix("log")
                .max_log_files(settings.max_files)
                .build(folder)
                .map_err(|error| trouble(error.to_string()))?;
            let (writer, guard) = bounded(appender);
            Some(json_layer(settings, queue(writer, guard)).with_filter(filter()?))
        }
    };
    tracing_subscriber::registry()
        .with(terminal.with_filter(filter()?))
        .with(files)
        .try_init()
        .map_err(|_| LogsError::Installed)?;
    // Set once, as the subscriber itself, which is the one that can be refused.
    let _ = DROPPED.set(counters);
    Ok(LogsGuard { _writers: guards })
}

/// A plain level means chatmesh's own lines: what libraries say below `info` is a flood, and may
/// show what they send; the store's says each of its steps at `info`,
/// and Redis's each lost connection several times. A filter that names them is
/// taken as it is.
fn directives(level: &str) -> &str {
    match level {
        "info" => "info,fjall=warn,lsm_tree=warn,fred=error",
        "debug" => "info,fjall=warn,lsm_tree=warn,fred=error,chatmesh=debug",
        "trace" => "info,chatmesh=trace",
        other => other,
    }
}

/// The application's name as a file's: it may hold anything.
fn file_name(app_name: &str) -> String {
    let safe = |c: char| {
        if c.is_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '-'
        }
    };
    app_name.chars().map(safe).collect()
}

fn bounded(writer: impl Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default()
        .buffered_lines_limit(QUEUE_LINES)
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
        .event_format(Json {
            app_name: settings.app_name.clone(),
        })
        .with_writer(writer)
}

/// One flat JSON object a line: the time, level, application, target, message, and the fields of
/// the event and of the spans around it (the inner one wins).
struct Json {
    app_name: String,
}

#[derive(Default)]
struct Fields(Map<String, Value>);

impl Visit for Fields {
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

fn now() -> String {
    time::OffsetDateTime::now_utc()
        .format(&Rfc3339)
        .unwrap_or_default()
}

impl<S, N> FormatEvent<S, N> for Json
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
        let mut fields = Fields::default();
        event.record(&mut fields);
        // Lines of libraries that use the `log` crate bring where they were built.
        let target = fields.0.remove("log.target");
        fields.0.retain(|name, _| !name.starts_with("log."));
        line.extend(fields.0);
        line.insert("timestamp".into(), now().into());
        line.insert("level".into(), event.metadata().level().as_str().into());
        line.insert("app_name".into(), self.app_name.as_str().into());
        let target = target.unwrap_or_else(|| event.metadata().target().into());
        line.insert("target".into(), target);
        writeln!(writer, "{}", Value::Object(line))
    }
}

/// For people: time, level, application, then as tracing's own.
struct Pretty {
    app_name: String,
}

impl<S, N> FormatEvent<S, N> for Pretty
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
        let time = now();
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
    fn a_line_is_one_json_object_with_the_correlation_id_of_the_span_around_it() {
        let lines = Lines::default();
        let (writer, guard) = bounded(lines.clone());
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
    fn an_application_name_can_not_lead_out_of_the_log_folder() {
        assert_eq!(file_name("../AI Consumer"), "..-AI-Consumer");
    }
}
