//! `chatmesh dlq`: dead letters listed, shown, replayed and dropped.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use self::desk::Desk;
use super::print;
use crate::config::Config;
use crate::pipeline::letters::{Address, Filter, Letter, Settled};
use crate::protocol::timestamp::now_ms;

mod desk;
mod since;
mod table;

/// Letters that are settled between two looks at the progress bar.
const CHUNK: usize = 20;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// The letters of an all-in-one that is not running, in this folder.
    #[arg(long, global = true, value_name = "FOLDER", conflicts_with = "url")]
    pub(crate) data_dir: Option<PathBuf>,
    /// The letters of a running all-in-one, asked with the admin key (ADMIN_KEY).
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) url: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List dead letters that are not settled, oldest first; not what users wrote.
    List {
        #[command(flatten)]
        filter: Filters,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print all of a letter, with what its user wrote.
    Show {
        /// As `list` prints it: topic/partition/offset.
        address: Address,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Put letters back into their topic, each as a new message that names the old one.
    Replay(Choice),
    /// Take letters off the list without doing anything else.
    Drop(Choice),
}

#[derive(Debug, Args)]
struct Filters {
    /// Only those of the last 30s, 15m, 2h or 7d, or since a time (2025-01-31T12:00:00Z).
    #[arg(long, value_name = "TIME", value_parser = since::parse)]
    since: Option<i64>,
    /// Only those with this code (provider_rejected, unreadable, …).
    #[arg(long)]
    code: Option<String>,
    /// Only those of this dead-letter topic.
    #[arg(long)]
    topic: Option<String>,
    /// At most so many.
    #[arg(long, value_name = "NUMBER")]
    limit: Option<usize>,
}

#[derive(Debug, Args)]
struct Choice {
    /// Which, as `list` prints them: topic/partition/offset.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    addresses: Vec<Address>,
    /// All that `list` shows with the same filters.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: Filters,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
    /// Don't ask.
    #[arg(long, short)]
    yes: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl From<Filters> for Filter {
    fn from(filters: Filters) -> Self {
        Self {
            topic: filters.topic,
            since_ms: filters.since,
            code: filters.code,
            limit: filters.limit,
        }
    }
}

/// Where the letters are.
pub(crate) enum Place {
    /// In Kafka.
    Kafka(Config),
    /// In the data directory of an `all-in-one`.
    Folder(Config),
    /// At this address of a running one.
    Running(Config, String),
}

/// Carries out a command.
///
/// # Errors
/// The log can't be asked, or a letter could not be settled.
pub(crate) async fn run(arguments: Arguments, place: Place) -> anyhow::Result<()> {
    let desk = Desk::open(place).await?;
    let result = match arguments.command {
        Command::List { filter, json } => list(&desk, &filter.into(), json).await,
        Command::Show { address, json } => show(&desk, &address, json).await,
        Command::Replay(choice) => settle(&desk, choice, true).await,
        Command::Drop(choice) => settle(&desk, choice, false).await,
    };
    desk.close().await;
    result
}

async fn list(desk: &Desk, filter: &Filter, json: bool) -> anyhow::Result<()> {
    let letters = desk.list(filter).await?;
    if json {
        return print(&(serde_json::to_string_pretty(&letters)? + "\n"));
    }
    if letters.is_empty() {
        return print(&format!("no dead letters in {}\n", desk.place()));
    }
    print(&table::of(&letters))
}

async fn show(desk: &Desk, address: &Address, json: bool) -> anyhow::Result<()> {
    let opened = desk.open_letter(address).await?;
    let opened = opened.with_context(|| format!("there is no letter {address}"))?;
    if json {
        return print(&(serde_json::to_string_pretty(&opened)? + "\n"));
    }
    print(&table::opened(&opened))
}

async fn settle(desk: &Desk, choice: Choice, replay: bool) -> anyhow::Result<()> {
    let letters = if choice.all {
        desk.list(&choice.filter.into()).await?
    } else {
        ensure!(
            choice.filter.since.is_none()
                && choice.filter.code.is_none()
                && choice.filter.topic.is_none()
                && choice.filter.limit.is_none(),
            "filters go with --all, not with addresses"
        );
        Vec::new()
    };
    let addresses: Vec<Address> = if choice.all {
        letters
            .iter()
            .map(|letter| letter.address.clone())
            .collect()
    } else {
        choice.addresses
    };
    let verb = if replay { "replay" } else { "drop" };
    if choice.dry_run {
        // Listed ones are there.
        let named = addresses.iter().take_while(|_| !choice.all);
        for address in named {
            let opened = desk.open_letter(address).await?;
            opened.with_context(|| format!("there is no letter {address}"))?;
        }
        return would(verb, &letters, &addresses, choice.json);
    }
    if addresses.is_empty() {
        return print(&format!("no dead letters to {verb} in {}\n", desk.place()));
    }
    if choice.all && !choice.yes {
        confirm(verb, addresses.len(), desk)?;
    }
    let bar = progress(addresses.len(), verb);
    let mut settled: Vec<Settled> = Vec::with_capacity(addresses.len());
    for chunk in addresses.chunks(CHUNK) {
        let part = if choice.all {
            let begin = settled.len();
            desk.settle_listed(&letters[begin..begin + chunk.len()], replay)
                .await
        } else {
            desk.settle(chunk, replay).await
        };
        match part {
            Ok(part) => settled.extend(part),
            Err(error) => {
                bar.abandon();
                report(&settled, choice.json)?;
                let left = addresses.len() - settled.len();
                return Err(error.context(format!("{left} letters are left; repeat the command")));
            }
        }
        bar.set_position(settled.len() as u64);
    }
    bar.finish_and_clear();
    report(&settled, choice.json)?;
    let failed = settled.iter().filter(|one| one.error.is_some()).count();
    ensure!(
        failed == 0,
        "{failed} of {} letters could not be settled",
        settled.len()
    );
    if replay && !choice.json {
        desk.after_replay()?;
    }
    Ok(())
}

fn would(verb: &str, letters: &[Letter], addresses: &[Address], json: bool) -> anyhow::Result<()> {
    if json {
        return print(&(serde_json::to_string_pretty(addresses)? + "\n"));
    }
    let mut text = format!("would {verb} {} letters:\n", addresses.len());
    if letters.is_empty() {
        for address in addresses {
            let _ = writeln!(text, "{address}");
        }
    } else {
        text.push_str(&table::of(letters));
    }
    print(&text)
}

fn report(settled: &[Settled], json: bool) -> anyhow::Result<()> {
    if json {
        return print(&(serde_json::to_string_pretty(settled)? + "\n"));
    }
    let mut text = String::new();
    for one in settled {
        let result = match (&one.way, &one.error) {
            (Some(way), _) => way.to_string(),
            (None, Some(error)) => format!("not settled: {error}"),
            (None, None) => continue,
        };
        let _ = writeln!(text, "{}  {result}", one.address);
    }
    print(&text)
}

fn confirm(verb: &str, count: usize, desk: &Desk) -> anyhow::Result<()> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!("{count} letters would be meant: add --yes where nobody can be asked");
    }
    let mut out = std::io::stderr().lock();
    write!(out, "{verb} {count} letters in {}? [y/N] ", desk.place())?;
    out.flush()?;
    let mut answer = String::new();
    stdin.read_line(&mut answer)?;
    let yes = matches!(answer.trim().to_lowercase().as_str(), "y" | "yes");
    ensure!(yes, "nothing was done");
    Ok(())
}

/// Drawn on a terminal only.
fn progress(count: usize, verb: &str) -> ProgressBar {
    if count <= CHUNK {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(count as u64).with_message(format!("{verb}: "));
    match ProgressStyle::with_template("{msg}[{bar:40}] {pos}/{len} letters, {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Milliseconds since the epoch, so long ago.
fn ago(ms: i64) -> i64 {
    now_ms().saturating_sub(ms)
}
