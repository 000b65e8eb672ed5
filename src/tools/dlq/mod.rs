//! `chatmesh dlq`: lists, shows, replays and drops dead letters.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use self::admin::{DeadLetterAdmin, RejectedRequest};
use super::print;
use crate::config::Config;
use crate::dead_letters::{Address, DeadLetter, Filter, SettleAction, SettleResult};

mod admin;
mod since;
mod table;

/// Maximum number of dead letters that are settled between two updates of the progress bar.
const CHUNK_SIZE: usize = 20;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Data directory of an all-in-one, running or not.
    #[arg(long, global = true, value_name = "FOLDER", conflicts_with = "url")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Address of a running all-in-one, which is queried with the admin key (ADMIN_KEY).
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) url: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List unsettled dead letters, oldest first, without what users wrote.
    List {
        #[command(flatten)]
        filter: FilterArguments,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print everything of a dead letter, including what its user wrote.
    Show {
        /// Address as `list` prints it: topic/partition/offset.
        address: Address,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Append dead letters to their source topic again, each as a new message that names the old
    /// message.
    Replay(Selection),
    /// Remove dead letters from the list without replaying them.
    Drop(Selection),
}

#[derive(Debug, Clone, Args)]
struct FilterArguments {
    /// Only dead letters of the last 30s, 15m, 2h or 7d, or since a time (2025-01-31T12:00:00Z).
    #[arg(long, value_name = "TIME", value_parser = since::parse)]
    since: Option<i64>,
    /// Only dead letters with this code (provider_rejected, unreadable, …).
    #[arg(long)]
    code: Option<String>,
    /// Only dead letters of this dead-letter topic.
    #[arg(long)]
    topic: Option<String>,
    /// At most this many dead letters, the oldest first.
    #[arg(long, value_name = "NUMBER")]
    limit: Option<usize>,
}

#[derive(Debug, Args)]
struct Selection {
    /// Addresses as `list` prints them: topic/partition/offset.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    addresses: Vec<Address>,
    /// All dead letters that `list` shows with the same filters.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: FilterArguments,
    /// Only print what would be done.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for confirmation.
    #[arg(long, short)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl From<FilterArguments> for Filter {
    fn from(filters: FilterArguments) -> Self {
        Self {
            topic: filters.topic,
            since_ms: filters.since,
            code: filters.code,
            limit: filters.limit,
        }
    }
}

impl FilterArguments {
    fn is_empty(&self) -> bool {
        self.since.is_none() && self.code.is_none() && self.topic.is_none() && self.limit.is_none()
    }
}

/// Where the dead letters are stored.
pub(crate) enum Location {
    /// The dead letters are in Kafka.
    Kafka(Config),
    /// The dead letters are in the data directory of an `all-in-one`. If the `all-in-one` is
    /// running, its HTTP address is read from the directory.
    Folder(Config),
    /// The dead letters are read through a running `all-in-one` at this HTTP address.
    Running(Config, String),
}

/// Runs a `chatmesh dlq` command.
///
/// # Errors
/// The dead letters cannot be read, or one of them could not be settled.
pub(crate) async fn run(arguments: Arguments, location: Location) -> anyhow::Result<()> {
    let admin = DeadLetterAdmin::connect(location).await?;
    let result = match arguments.command {
        Command::List { filter, json } => list(&admin, &filter.into(), json).await,
        Command::Show { address, json } => show(&admin, &address, json).await,
        Command::Replay(selection) => settle(&admin, selection, SettleAction::Replay).await,
        Command::Drop(selection) => settle(&admin, selection, SettleAction::Drop).await,
    };
    admin.close().await;
    result
}

async fn list(admin: &DeadLetterAdmin, filter: &Filter, json: bool) -> anyhow::Result<()> {
    let dead_letters = admin.list(filter).await?;
    if json {
        return print(&(serde_json::to_string_pretty(&dead_letters)? + "\n"));
    }
    if dead_letters.is_empty() {
        return print(&format!("no dead letters in {}\n", admin.location()));
    }
    print(&table::list(&dead_letters))
}

async fn show(admin: &DeadLetterAdmin, address: &Address, json: bool) -> anyhow::Result<()> {
    let detail = required_detail(admin, address).await?;
    if json {
        return print(&(serde_json::to_string_pretty(&detail)? + "\n"));
    }
    print(&table::detail(&detail))
}

async fn required_detail(admin: &DeadLetterAdmin, address: &Address) -> anyhow::Result<Value> {
    let detail = admin.detail(address).await?;
    detail.with_context(|| format!("there is no dead letter {address}"))
}

async fn settle(
    admin: &DeadLetterAdmin,
    selection: Selection,
    action: SettleAction,
) -> anyhow::Result<()> {
    let targets = selection.resolve(admin).await?;
    if selection.dry_run {
        return dry_run(admin, &targets, action, selection.json).await;
    }
    let verb = action.as_str();
    if targets.len() == 0 {
        let location = admin.location();
        return print(&format!("no dead letters to {verb} in {location}\n"));
    }
    if selection.all && !selection.yes {
        confirm(verb, targets.len(), admin)?;
    }
    let bar = progress_bar(targets.len(), verb);
    let mut results: Vec<SettleResult> = Vec::with_capacity(targets.len());
    while results.len() < targets.len() {
        let end = targets.len().min(results.len() + CHUNK_SIZE);
        match targets
            .settle_range(admin, results.len()..end, action)
            .await
        {
            Ok(settled) => results.extend(settled),
            Err(error) => {
                bar.abandon();
                print_results(&results, selection.json)?;
                let advice = if error.is::<RejectedRequest>() {
                    ""
                } else {
                    "; repeat the command"
                };
                let remaining = targets.len() - results.len();
                return Err(error.context(format!(
                    "{remaining} dead letters are not settled yet{advice}"
                )));
            }
        }
        bar.set_position(results.len() as u64);
    }
    bar.finish_and_clear();
    print_results(&results, selection.json)?;
    let failed = results.iter().filter(|r| r.error.is_some()).count();
    ensure!(
        failed == 0,
        "{failed} of {} dead letters could not be settled",
        results.len()
    );
    if action == SettleAction::Replay && !selection.json {
        admin.print_replay_hint()?;
    }
    Ok(())
}

/// The dead letters that a command applies to.
enum Targets {
    /// Dead letters that were just listed.
    Listed(Vec<DeadLetter>),
    /// Addresses from the command line.
    Named(Vec<Address>),
}

impl Targets {
    fn len(&self) -> usize {
        match self {
            Self::Listed(dead_letters) => dead_letters.len(),
            Self::Named(addresses) => addresses.len(),
        }
    }

    fn addresses(&self) -> Vec<&Address> {
        match self {
            Self::Listed(dead_letters) => dead_letters.iter().map(|d| &d.address).collect(),
            Self::Named(addresses) => addresses.iter().collect(),
        }
    }

    async fn settle_range(
        &self,
        admin: &DeadLetterAdmin,
        range: Range<usize>,
        action: SettleAction,
    ) -> anyhow::Result<Vec<SettleResult>> {
        match self {
            Self::Listed(dead_letters) => admin.settle_listed(&dead_letters[range], action).await,
            Self::Named(addresses) => admin.settle_at(&addresses[range], action).await,
        }
    }
}

impl Selection {
    /// Returns the addresses from the command line, or with `--all` the dead letters that match the
    /// filters.
    async fn resolve(&self, admin: &DeadLetterAdmin) -> anyhow::Result<Targets> {
        if self.all {
            return Ok(Targets::Listed(
                admin.list(&self.filter.clone().into()).await?,
            ));
        }
        ensure!(
            self.filter.is_empty(),
            "filters can only be combined with --all, not with addresses"
        );
        Ok(Targets::Named(self.addresses.clone()))
    }
}

/// Prints what would be settled. Fails if there is no dead letter at an address from the command
/// line.
async fn dry_run(
    admin: &DeadLetterAdmin,
    targets: &Targets,
    action: SettleAction,
    json: bool,
) -> anyhow::Result<()> {
    if let Targets::Named(addresses) = targets {
        for address in addresses {
            required_detail(admin, address).await?;
        }
    }
    if json {
        return print(&(serde_json::to_string_pretty(&targets.addresses())? + "\n"));
    }
    let verb = action.as_str();
    let mut text = format!("would {verb} {} dead letters:\n", targets.len());
    match targets {
        Targets::Listed(dead_letters) if !dead_letters.is_empty() => {
            text.push_str(&table::list(dead_letters));
        }
        _ => {
            for address in targets.addresses() {
                let _ = writeln!(text, "{address}");
            }
        }
    }
    print(&text)
}

/// Prints how each dead letter was settled, or why it was not.
fn print_results(results: &[SettleResult], json: bool) -> anyhow::Result<()> {
    if json {
        return print(&(serde_json::to_string_pretty(results)? + "\n"));
    }
    let mut text = String::new();
    for result in results {
        let outcome = match (&result.resolution, &result.error) {
            (Some(resolution), _) => resolution.to_string(),
            (None, Some(error)) => format!("not settled: {error}"),
            (None, None) => continue,
        };
        let _ = writeln!(text, "{}  {outcome}", result.address);
    }
    print(&text)
}

/// Asks for a confirmation on the terminal. Fails if there is no terminal or the answer is not yes.
fn confirm(verb: &str, count: usize, admin: &DeadLetterAdmin) -> anyhow::Result<()> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!(
            "{count} dead letters are selected and there is no terminal for a confirmation: add \
             --yes to {verb} them"
        );
    }
    let mut out = std::io::stderr().lock();
    write!(
        out,
        "{verb} {count} dead letters in {}? [y/N] ",
        admin.location()
    )?;
    out.flush()?;
    let mut answer = String::new();
    stdin.read_line(&mut answer)?;
    let is_confirmed = matches!(answer.trim().to_lowercase().as_str(), "y" | "yes");
    ensure!(is_confirmed, "cancelled, nothing was done");
    Ok(())
}

/// Creates the progress bar. It is drawn on a terminal only, and only if the dead letters are
/// settled in more than one chunk.
fn progress_bar(count: usize, verb: &str) -> ProgressBar {
    if count <= CHUNK_SIZE {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(count as u64).with_message(format!("{verb}: "));
    match ProgressStyle::with_template("{msg}[{bar:40}] {pos}/{len} dead letters, {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
