//! `chatmesh load-test`: runs many clients against gateways and measures throughput, latency, loss,
//! duplicates and order.
//!
//! The test can run on the same machine as the gateways, so it must use little CPU: each client is
//! one task, threads share no mutable state on the message path, and frames are parsed only as far
//! as the measurement needs.

use std::io::ErrorKind;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;

use self::html::ReportFile;
use self::plan::{Plan, SendMode};
use self::report::Report;
use self::target::Target;
use self::token::TokenSource;
use super::{UsageError, http};
use crate::signals::Signals;

pub(crate) use self::args::LoadArgs;

mod args;
mod client;
mod condition;
mod connection;
mod context;
mod format;
mod frames;
mod html;
mod incoming;
mod notes;
mod plan;
mod plot;
mod report;
mod result;
mod runner;
mod stats;
mod target;
mod token;
mod tracker;

/// Error for a test that did not start, because of the server or of this machine.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct TestNotStarted(String);

impl TestNotStarted {
    /// Exit code of a process whose test did not start.
    pub(crate) const EXIT_CODE: u8 = 3;
}

/// Number of file descriptors that the process needs in addition to those of the connections.
const RESERVED_FILES: u64 = 64;

/// Runs the test and reports its result. `print` writes the result to standard output.
pub(crate) fn run(
    args: LoadArgs,
    print: impl FnOnce(&str) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    for source in &args.source {
        target::check_local_address(*source).map_err(|error| {
            let problem = match error.kind() {
                ErrorKind::AddrNotAvailable => "is not an address of this machine".to_owned(),
                _ => format!("can't be used as a source address: {error}"),
            };
            UsageError(format!("--source {source} {problem}"))
        })?;
    }
    let report_file = args.html.clone().map(|path| {
        let shown = path.display().to_string();
        ReportFile::open(path)
            .map_err(|error| UsageError(format!("--html {shown} can't be written: {error}")))
    });
    let report_file = report_file.transpose()?;
    let needed_files = u64::from(args.clients) + RESERVED_FILES;
    if let Some(max_files) = http::open_files::raise_limit(needed_files)
        && max_files < needed_files
    {
        let text = format!(
            "this process may open {max_files} files, too few for {} connections: raise the hard limit \
             (ulimit -Hn)",
            args.clients
        );
        return Err(TestNotStarted(text).into());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the async runtime can't be started")?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::new().context("can't listen for signals")?;
        let plan = tokio::select! {
            plan = make_plan(&args) => Arc::new(plan?),
            (_, code) = signals.next() => return Ok(Err(code)),
        };
        let measurements = runner::run_test(&args, &plan, &mut signals).await?;
        anyhow::Ok(Ok((plan, measurements)))
    })?;
    let (plan, measurements) = match outcome {
        Ok(completed) => completed,
        // A signal arrived before the test started, so there is nothing to report.
        Err(code) => return Ok(code.into()),
    };
    let report = Report::new(&plan, &args.require, &measurements);
    // The result is printed even if the HTML page can't be written.
    let written =
        report_file.map(|file| file.write(&html::render_page(&report, &measurements.stats.series)));
    print(&if args.json {
        format!("{:#}\n", report.json())
    } else {
        report.to_text()
    })?;
    if let (Some(Err(error)), Some(path)) = (written, &args.html) {
        return Err(error).with_context(|| format!("{} can't be written", path.display()));
    }
    Ok(match measurements.interrupt_exit_code {
        Some(code) => code.into(),
        None if !report.has_connected_client => TestNotStarted::EXIT_CODE.into(),
        None if report.is_success() => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    })
}

/// Resolves the addresses, finds out how the server issues tokens, and fixes the schedule.
async fn make_plan(args: &LoadArgs) -> anyhow::Result<Plan> {
    let not_started = |error: anyhow::Error| TestNotStarted(format!("{error:#}"));
    let mut targets = Vec::new();
    for url in &args.url {
        targets.push(Target::resolve(url).await.map_err(not_started)?);
    }
    let clients = args.clients as usize;
    let sources = target::source_addresses(&args.source, &targets, clients);
    let sources = sources.map_err(|error| UsageError(error.to_string()))?;
    let user_prefix = match &args.user {
        Some(user) => format!("{user}-"),
        None => format!("load-{:08x}-", rand::random::<u32>()),
    };
    let first_user = format!("{user_prefix}0");
    let tokens = TokenSource::detect(
        &targets[0],
        args.token.clone(),
        args.admin_key.clone(),
        &first_user,
    );
    Ok(Plan {
        sources,
        tokens: tokens.await.map_err(not_started)?,
        targets,
        client_count: clients,
        is_v1: !args.classic,
        mode: match (args.idle, args.closed_loop) {
            (true, _) => SendMode::Idle,
            (_, true) => SendMode::ClosedLoop(args.in_flight.into()),
            _ => SendMode::OpenLoop(args.rate),
        },
        messages_per_client: match (args.messages, args.duration) {
            (Some(messages), _) => messages,
            (None, Some(_)) => u64::MAX,
            (None, None) => 10,
        },
        duration: args.duration,
        ramp_up: args.ramp_up,
        user_prefix,
        padding: make_padding(args.size as usize),
    })
}

/// Returns the text of `size` characters that follows the marker in each message.
fn make_padding(size: usize) -> String {
    " what would you say to that"
        .chars()
        .cycle()
        .take(size)
        .collect()
}
