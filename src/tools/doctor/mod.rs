//! `chatmesh doctor`: looks at everything a deployment stands on, and says what is wrong with it
//! and what to do.

use std::time::Duration;

use anyhow::ensure;
use clap::Args;

use self::report::{Findings, Report, Status};
use super::print;
use crate::app;
use crate::config::{Config, ConfigErrors, Role};

mod folder;
mod kafka;
mod keys;
mod model;
mod redis;
mod report;

/// All of one area; the parts of it have shorter bounds of their own.
const AREA: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Look at what this role needs. Left out: at the whole deployment on Kafka and Redis where an
    /// address of them is set, otherwise at all-in-one.
    pub(crate) role: Option<Role>,
    /// Don't call the model: a call costs some tokens.
    #[arg(long)]
    no_model: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// All-in-one's folder.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) data_dir: Option<String>,
}

/// What was read for the roles that are meant.
pub(crate) struct Loaded {
    /// Configurations that are good.
    pub(crate) configs: Vec<Config>,
    /// What is wrong with the others.
    pub(crate) wrong: Vec<(Role, ConfigErrors)>,
}

/// Looks, and prints what was seen.
///
/// # Errors
/// Something is a problem; [`ConfigErrors`] or [`app::UnusableSetting`] where it is the configuration.
pub(crate) async fn run(arguments: &Arguments, loaded: Loaded) -> anyhow::Result<()> {
    let mut checks = Vec::new();
    let mut unusable = None;
    let mut findings = Findings::of("configuration");
    for (role, errors) in &loaded.wrong {
        for problem in &errors.problems {
            let text = format!(
                "{role}: {} ({}): {}",
                problem.key, problem.source, problem.text
            );
            findings.problem(text, "change it where it was set");
        }
    }
    let mut usable = Vec::new();
    for config in &loaded.configs {
        match app::validate_engines(config) {
            Ok(()) => {
                judge(config, &mut findings);
                usable.push(config);
            }
            Err(error) => {
                findings.problem(
                    format!("{}: {error}", config.role()),
                    "change it where it was set",
                );
                unusable = Some(error);
            }
        }
    }
    checks.append(&mut findings.checks);
    let model = async {
        let mut findings = Findings::of("model");
        let worker = usable
            .iter()
            .find(|c| matches!(c.role(), Role::AiWorker | Role::AllInOne));
        match worker {
            Some(_) if arguments.no_model => findings.skipped("not called (--no-model)"),
            Some(config) => model::look(&config.worker(), &mut findings).await,
            None => {}
        }
        findings
    };
    let scaled = usable.iter().find(|config| config.role() != Role::AllInOne);
    let kafka = async {
        let mut findings = Findings::of("kafka");
        if let Some(config) = scaled {
            kafka::look(config, &mut findings).await;
        }
        findings
    };
    let redis = async {
        let mut findings = Findings::of("redis");
        if let Some(config) = scaled {
            redis::look(config, &mut findings).await;
        }
        findings
    };
    let keys = async {
        let mut findings = Findings::of("keys");
        let doors = usable
            .iter()
            .filter(|c| matches!(c.role(), Role::Gateway | Role::AllInOne));
        let mut unusable = None;
        for config in doors {
            unusable = keys::look(config, &mut findings).await.err().or(unusable);
        }
        (findings, unusable)
    };
    let ((keys, unusable_keys), kafka, redis, model) = tokio::join!(
        // Bounded by itself.
        keys,
        bounded("kafka", kafka),
        bounded("redis", redis),
        bounded("model", model)
    );
    let mut data = Findings::of("data");
    if let Some(config) = usable.iter().find(|config| config.role() == Role::AllInOne) {
        folder::look(config, &mut data);
    }
    for findings in [keys, kafka, redis, data, model] {
        checks.extend(findings.checks);
    }
    let report = Report::new(deployment(&loaded), checks);
    print(&if arguments.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        report.text()
    })?;
    if let Some((_, errors)) = loaded.wrong.into_iter().next() {
        return Err(errors.into());
    }
    if let Some(unusable) = unusable.or(unusable_keys) {
        return Err(unusable.into());
    }
    let problems = report.problems();
    // A copied .env names servers even where only an all-in-one is meant.
    let guessed = arguments.role.is_none() && scaled.is_some();
    ensure!(
        problems == 0,
        "{problems} problem{}{}",
        if problems == 1 { "" } else { "s" },
        if guessed {
            "; Kafka and Redis were looked at since KAFKA_BOOTSTRAP_SERVERS, REDIS_URL or \
             REDIS_HOST is set (perhaps in .env): for an all-in-one say `doctor all-in-one`"
        } else {
            ""
        }
    );
    Ok(())
}

fn deployment(loaded: &Loaded) -> String {
    let good = loaded.configs.iter().map(Config::role);
    let mut roles: Vec<Role> = good
        .chain(loaded.wrong.iter().map(|(role, _)| *role))
        .collect();
    roles.sort_unstable();
    let names: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
    names.join(", ")
}

async fn bounded(area: &'static str, looking: impl Future<Output = Findings>) -> Findings {
    tokio::time::timeout(AREA, looking)
        .await
        .unwrap_or_else(|_| {
            let mut findings = Findings::of(area);
            let text = format!("not all could be asked within {} s", AREA.as_secs());
            findings.problem(
                text,
                "it answers far too slowly: look at its load and at the network",
            );
            findings
        })
}

fn judge(config: &Config, findings: &mut Findings) {
    let role = config.role();
    let mut fine = true;
    for notice in config.notices() {
        findings.sentence(Status::Warning, &format!("{role}: {notice}"));
        fine = false;
    }
    if fine {
        findings.ok(format!("{role}: nothing is wrong"));
    }
}
