//! `chatmesh doctor`: checks everything that a deployment depends on, and reports what is wrong and what
//! to do.

use std::time::Duration;

use anyhow::ensure;
use clap::Args;

use self::report::{Findings, Report, Status};
use super::print;
use crate::app;
use crate::config::{Config, ConfigErrors, Role};

mod data_dir;
mod kafka;
mod model;
mod redis;
mod report;
mod token_keys;

/// Limit for the checks of one area, whose parts have shorter limits of their own.
const AREA_TIMEOUT: Duration = Duration::from_secs(60);

/// Arguments of `chatmesh doctor`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Check what this role needs. Without a role: the deployment on Kafka and Redis if an address of
    /// them is set, otherwise all-in-one.
    pub(crate) role: Option<Role>,
    /// Do not call the model, which costs some tokens.
    #[arg(long)]
    no_model: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// The data directory of all-in-one.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) data_dir: Option<String>,
}

/// The configurations of the roles to check.
pub(crate) struct LoadedConfigs {
    /// Valid configurations.
    pub(crate) valid: Vec<Config>,
    /// Errors in the others.
    pub(crate) invalid: Vec<(Role, ConfigErrors)>,
}

/// Runs all checks and prints the report.
///
/// # Errors
/// A check found a problem. It is [`ConfigErrors`] or [`app::UnusableSetting`] if the configuration is one.
pub(crate) async fn run(arguments: &Arguments, loaded: LoadedConfigs) -> anyhow::Result<()> {
    let (configuration, usable, unusable) = check_configurations(&loaded);
    let (services, unusable_keys) = Box::pin(check_services(&usable, arguments.no_model)).await;
    let mut checks = configuration.checks;
    for findings in services {
        checks.extend(findings.checks);
    }
    let report = Report::new(deployment(&loaded), checks);
    print(&if arguments.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        report.text()
    })?;
    // A copied .env sets these addresses even if only an all-in-one is intended.
    let is_deployment_guessed = arguments.role.is_none() && distributed(&usable).is_some();
    if let Some((_, errors)) = loaded.invalid.into_iter().next() {
        return Err(errors.into());
    }
    if let Some(unusable) = unusable.or(unusable_keys) {
        return Err(unusable.into());
    }
    let problems = report.problems();
    ensure!(
        problems == 0,
        "{problems} problem{}{}",
        if problems == 1 { "" } else { "s" },
        if is_deployment_guessed {
            "; Kafka and Redis were checked because KAFKA_BOOTSTRAP_SERVERS, REDIS_URL or \
             REDIS_HOST is set (perhaps in .env): for an all-in-one run `doctor all-in-one`"
        } else {
            ""
        }
    );
    Ok(())
}

/// Checks the configurations. Returns the usable ones, and the setting that no role would start with.
fn check_configurations(
    loaded: &LoadedConfigs,
) -> (Findings, Vec<&Config>, Option<app::UnusableSetting>) {
    let mut unusable = None;
    let mut findings = Findings::new("configuration");
    for (role, errors) in &loaded.invalid {
        for problem in &errors.problems {
            let text = format!(
                "{role}: {} ({}): {}",
                problem.key, problem.source, problem.text
            );
            findings.add_problem(text, "correct it in its source");
        }
    }
    let mut usable = Vec::new();
    for config in &loaded.valid {
        match app::validate_engines(config) {
            Ok(()) => {
                add_notices(config, &mut findings);
                usable.push(config);
            }
            Err(error) => {
                findings.add_problem(
                    format!("{}: {error}", config.role()),
                    "correct it in its source",
                );
                unusable = Some(error);
            }
        }
    }
    (findings, usable, unusable)
}

/// The configuration of a role on Kafka and Redis, if there is one.
fn distributed<'a>(usable: &[&'a Config]) -> Option<&'a Config> {
    let mut configs = usable.iter().copied();
    configs.find(|config| config.role() != Role::AllInOne)
}

/// Checks everything that the roles use: token keys, Kafka, Redis, data directory and model.
async fn check_services(
    usable: &[&Config],
    no_model: bool,
) -> ([Findings; 5], Option<app::UnusableSetting>) {
    let model = async {
        let mut findings = Findings::new("model");
        let worker = usable
            .iter()
            .find(|c| matches!(c.role(), Role::AiWorker | Role::AllInOne));
        match worker {
            Some(_) if no_model => findings.add_skipped("not called (--no-model)"),
            Some(config) => model::check(&config.worker(), &mut findings).await,
            None => {}
        }
        findings
    };
    let distributed = distributed(usable);
    let kafka = async {
        let mut findings = Findings::new("kafka");
        if let Some(config) = distributed {
            kafka::check(config, &mut findings).await;
        }
        findings
    };
    let redis = async {
        let mut findings = Findings::new("redis");
        if let Some(config) = distributed {
            redis::check(config, &mut findings).await;
        }
        findings
    };
    let keys = async {
        let mut findings = Findings::new("keys");
        let gateways = usable
            .iter()
            .filter(|c| matches!(c.role(), Role::Gateway | Role::AllInOne));
        let mut unusable = None;
        for config in gateways {
            unusable = token_keys::check(config, &mut findings)
                .await
                .err()
                .or(unusable);
        }
        (findings, unusable)
    };
    let ((keys, unusable), kafka, redis, model) = tokio::join!(
        // Its requests have a limit of their own.
        keys,
        with_timeout("kafka", kafka),
        with_timeout("redis", redis),
        with_timeout("model", model)
    );
    let mut data = Findings::new("data");
    if let Some(config) = usable.iter().find(|config| config.role() == Role::AllInOne) {
        data_dir::check(config, &mut data);
    }
    ([keys, kafka, redis, data, model], unusable)
}

fn deployment(loaded: &LoadedConfigs) -> String {
    let valid = loaded.valid.iter().map(Config::role);
    let mut roles: Vec<Role> = valid
        .chain(loaded.invalid.iter().map(|(role, _)| *role))
        .collect();
    roles.sort_unstable();
    let names: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
    names.join(", ")
}

async fn with_timeout(area: &'static str, checks: impl Future<Output = Findings>) -> Findings {
    tokio::time::timeout(AREA_TIMEOUT, checks)
        .await
        .unwrap_or_else(|_| {
            let mut findings = Findings::new(area);
            let text = format!(
                "the checks did not finish within {} s",
                AREA_TIMEOUT.as_secs()
            );
            findings.add_problem(
                text,
                "it responds far too slowly: check its load and the network",
            );
            findings
        })
}

/// Adds the configuration's notices as warnings.
fn add_notices(config: &Config, findings: &mut Findings) {
    let role = config.role();
    let notices = config.notices();
    for notice in notices {
        findings.add_sentence(Status::Warning, &format!("{role}: {notice}"));
    }
    if notices.is_empty() {
        findings.add_ok(format!("{role}: nothing is wrong"));
    }
}
