//! `chatmesh doctor`: checks everything that a deployment depends on, and reports what is wrong and
//! what to do about it.

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

/// Time limit for all checks of one area (Kafka, Redis or the model), in addition to the limits of
/// their single requests.
const AREA_TIMEOUT: Duration = Duration::from_secs(60);

/// Arguments of `chatmesh doctor`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Check what this role needs. Without a role: the deployment on Kafka and Redis if an address
    /// of one of them is set, otherwise all-in-one.
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
    /// Configurations of the roles whose configuration is valid.
    pub(crate) valid: Vec<Config>,
    /// Roles whose configuration is invalid, each with the errors in its configuration.
    pub(crate) invalid: Vec<(Role, ConfigErrors)>,
}

/// Runs all checks and prints the report.
///
/// # Errors
/// A check found a problem. The error is [`ConfigErrors`] or [`app::UnusableSetting`] if the
/// problem is in the configuration.
pub(crate) async fn run(arguments: &Arguments, loaded: LoadedConfigs) -> anyhow::Result<()> {
    let (configuration, usable, unusable) = check_configurations(&loaded);
    let (services, unusable_keys) = Box::pin(check_services(&usable, arguments.no_model)).await;
    let mut checks = configuration.checks;
    for findings in services {
        checks.extend(findings.checks);
    }
    let report = Report::new(role_names(&loaded), checks);
    print(&if arguments.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        report.text()
    })?;
    // Without a named role, the configured addresses decide what is checked. A copied .env may have
    // set them although only an all-in-one is intended.
    let is_deployment_guessed = arguments.role.is_none() && distributed_config(&usable).is_some();
    if let Some((_, errors)) = loaded.invalid.into_iter().next() {
        return Err(errors.into());
    }
    if let Some(unusable) = unusable.or(unusable_keys) {
        return Err(unusable.into());
    }
    let problem_count = report.problem_count();
    ensure!(
        problem_count == 0,
        "{problem_count} problem{}{}",
        if problem_count == 1 { "" } else { "s" },
        if is_deployment_guessed {
            "; Kafka and Redis were checked because KAFKA_BOOTSTRAP_SERVERS, REDIS_URL or \
             REDIS_HOST is set (perhaps in .env): for an all-in-one run `doctor all-in-one`"
        } else {
            ""
        }
    );
    Ok(())
}

/// Checks the configurations. Returns the findings, the usable configurations, and an error if a
/// setting keeps a role from starting.
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

/// Returns the first usable configuration of a role that runs on Kafka and Redis; `None` if only an
/// all-in-one is checked.
fn distributed_config<'a>(usable: &[&'a Config]) -> Option<&'a Config> {
    let mut configs = usable.iter().copied();
    configs.find(|config| config.role() != Role::AllInOne)
}

/// Checks everything that the roles use: token keys, Kafka, Redis, data directory and model.
/// Returns the findings of each area, and an error if no gateway would start with the token keys.
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
    let distributed_config = distributed_config(usable);
    let kafka = async {
        let mut findings = Findings::new("kafka");
        if let Some(config) = distributed_config {
            kafka::check(config, &mut findings).await;
        }
        findings
    };
    let redis = async {
        let mut findings = Findings::new("redis");
        if let Some(config) = distributed_config {
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
        // The requests for the token keys have their own time limit.
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

/// Returns the names of the checked roles, separated by commas.
fn role_names(loaded: &LoadedConfigs) -> String {
    let valid = loaded.valid.iter().map(Config::role);
    let mut roles: Vec<Role> = valid
        .chain(loaded.invalid.iter().map(|(role, _)| *role))
        .collect();
    roles.sort_unstable();
    let names: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
    names.join(", ")
}

/// Runs the checks of one area. If they exceed the time limit, the findings are one problem that
/// says so.
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
