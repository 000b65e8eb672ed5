//! The command line: parses the arguments, runs the subcommand, and maps its result to an exit
//! code. 0 means success, 1 failure, 2 wrong usage or configuration; the load test has further
//! codes, which its help lists.
#![expect(
    clippy::print_stderr,
    reason = "errors of the command line are for its user; everything else is logged"
)]

use std::ffi::OsString;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::app;
use crate::config::{self, Config, ConfigErrors, Flag, Role, Sources};
use crate::protocol::ids::UserId;
use crate::tools::{UsageError, chat, dlq, doctor, load_test, mock_openai, print, token};

mod healthcheck;

const EXAMPLES: &str = "\
Examples:
  chatmesh all-in-one                        everything in one process, nothing to install
  chatmesh chat                              chat with it, in another terminal
  echo hi | chatmesh chat                    only the answer on standard output
  chatmesh gateway --port 8000               one role of a deployment on Kafka and Redis
  chatmesh ai-worker --set model.name=gpt-4o-mini
  chatmesh config show relay                 what a relay would run with, and why
  chatmesh config default > chatmesh.toml    the commented configuration file

Every key can be set in a file (--config, CHATMESH_CONFIG), in .env or the environment, and by
--set; the later one wins.";

const CHAT_HELP: &str = "\
At the prompt, Enter sends the message, Alt-Enter starts a new line, and pasted lines are one message.
Ctrl-C stops an answer; at the prompt it exits.

If standard input is not a terminal, all of it is one message. If standard output is not a terminal,
the answer is printed unchanged when it is complete; on a terminal it is printed as it arrives,
without control characters. Events of the connection are printed on standard error.

Exit codes: 0 answered, 1 failed or stopped, 2 invalid arguments.";

/// Carries AI conversations between clients and models, and loses nothing.
#[derive(Debug, Parser)]
#[command(name = "chatmesh", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Args)]
struct CommonArgs {
    /// Configuration file (TOML).
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Minimum level that is logged, or a filter.
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Set any key, by its name in the file or its environment variable. May be repeated.
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve clients' connections.
    Gateway(ListenArgs),
    /// Answer messages with the model.
    AiWorker(ListenArgs),
    /// Deliver answers to the gateways.
    Relay(ListenArgs),
    /// Run all three roles in one process, with embedded storage instead of Kafka and Redis.
    AllInOne {
        #[command(flatten)]
        listen: ListenArgs,
        /// Directory in which messages and conversations are stored.
        #[arg(long, value_name = "FOLDER", conflicts_with = "ephemeral")]
        data_dir: Option<String>,
        /// Keep everything in memory only.
        #[arg(long)]
        ephemeral: bool,
    },
    /// Chat with a server in this terminal, or send one message through a pipe.
    #[command(after_help = CHAT_HELP)]
    Chat(chat::ChatArgs),
    /// Issue, verify and revoke users' tokens, with a gateway's configuration.
    #[command(subcommand)]
    Token(TokenCommand),
    /// List, show, replay or drop dead letters: in Kafka if its address or that of Redis is set,
    /// otherwise in the data directory of an all-in-one.
    Dlq(dlq::Arguments),
    /// Check everything that a deployment depends on, and say what to do. Exit code 0: no problem,
    /// 1: problems, 2: the configuration can't be used.
    Doctor(doctor::Arguments),
    /// Show or check the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Connect many clients, and report what they observe.
    LoadTest(load_test::LoadArgs),
    /// Serve OpenAI's API without a model, for load tests and demos.
    MockOpenai(mock_openai::MockArgs),
    /// Check whether the local role is ready, for containers. Exit code 0: ready, 1: not ready.
    ///
    /// Calls the configured address (PORT of a gateway and all-in-one, METRICS_PORT of a worker
    /// and a relay), or --url.
    Healthcheck {
        /// The role whose configured address is called.
        #[arg(default_value = "gateway")]
        role: Role,
        /// Call this URL instead (http:// only), for example http://127.0.0.1:8000/health/ready.
        #[arg(long)]
        url: Option<String>,
    },
}

#[derive(Debug, Args)]
struct ListenArgs {
    /// Address to listen on; a worker and a relay serve only health and metrics there.
    #[arg(long)]
    host: Option<String>,
    /// Port to listen on; 0 chooses a free port.
    #[arg(long)]
    port: Option<String>,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Print a token for a user: a signed token, or the token that is stored in Redis, which is
    /// created if it is missing.
    Issue {
        /// The user's id.
        userid: String,
    },
    /// Verify a token: exit code 0 if it is valid, else 1.
    Verify {
        /// The user's id.
        userid: String,
        /// The token; - reads it from standard input, so that it stays out of the shell's history.
        #[arg(default_value = "-")]
        token: String,
    },
    /// Revoke a user's tokens, and close the connections that they opened.
    Revoke {
        /// The user's id.
        userid: String,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the effective values with their sources; secrets are hidden.
    Show {
        /// The role whose configuration is printed.
        #[arg(default_value = "all-in-one")]
        role: Role,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check the configuration, and print only problems.
    Check {
        /// The role whose configuration is checked.
        #[arg(default_value = "all-in-one")]
        role: Role,
    },
    /// Print the configuration file with every key, its default and what it does.
    Default,
}

/// Splits the argument of `--set` at its first `=`.
fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("needs KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

/// Parses the arguments, runs the subcommand, and returns the exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // clap returns the texts of --help and --version as errors with exit code 0.
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            return error.print().map_or(ExitCode::FAILURE, |()| code.into());
        }
    };
    match execute(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            let is_usage_error = error.downcast_ref::<ConfigErrors>().is_some()
                || error.downcast_ref::<app::UnusableSetting>().is_some()
                || error.downcast_ref::<UsageError>().is_some();
            let is_test_not_started = error.downcast_ref::<load_test::TestNotStarted>().is_some();
            ExitCode::from(if is_usage_error {
                2
            } else if is_test_not_started {
                load_test::TestNotStarted::EXIT_CODE
            } else {
                1
            })
        }
    }
}

fn execute(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { common, command } = cli;
    let result = match command {
        Command::Gateway(listen) => run_role(Role::Gateway, common, listen.flags("server")),
        Command::AiWorker(listen) => run_role(Role::AiWorker, common, listen.flags("metrics")),
        Command::Relay(listen) => run_role(Role::Relay, common, listen.flags("metrics")),
        Command::AllInOne {
            listen,
            data_dir,
            ephemeral,
        } => {
            let mut flags = listen.flags("server");
            flags.extend(data_dir.into_iter().flat_map(data_dir_flags));
            if ephemeral {
                flags.push(new_flag("--ephemeral", "embedded.ephemeral", "true"));
            }
            run_role(Role::AllInOne, common, flags)
        }
        Command::Chat(args) => chat::run(args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "chatmesh", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Command::Token(command) => run_token(common, command),
        Command::Doctor(arguments) => run_doctor(&common, &arguments),
        Command::Dlq(arguments) => run_dlq(common, arguments),
        Command::Config(ConfigCommand::Show { role, json }) => {
            let config = load_config(role, common, Vec::new())?;
            print(&if json {
                config.show_json()
            } else {
                config.show_text()
            })
        }
        Command::Config(ConfigCommand::Check { role }) => {
            let config = load_config(role, common, Vec::new())?;
            app::validate(&config)?;
            for notice in config.notices() {
                eprintln!("warning: {notice}");
            }
            Ok(())
        }
        Command::Config(ConfigCommand::Default) => print(&config::default_config_file()),
        Command::MockOpenai(args) => mock_openai::run(args, print),
        Command::LoadTest(args) => return load_test::run(args, print),
        Command::Healthcheck { role, url } => {
            let url = if let Some(url) = url {
                url
            } else {
                let address = load_config(role, common, Vec::new())?.health_address();
                let address = app::reachable_address(address);
                format!("http://{address}/health/ready")
            };
            healthcheck::run(&url)
        }
    };
    result.map(|()| ExitCode::SUCCESS)
}

impl ListenArgs {
    /// Returns the flags that were given, as keys of this section of the configuration.
    fn flags(self, section: &str) -> Vec<Flag> {
        let host = self
            .host
            .map(|v| new_flag("--host", &format!("{section}.host"), v));
        let port = self
            .port
            .map(|v| new_flag("--port", &format!("{section}.port"), v));
        host.into_iter().chain(port).collect()
    }
}

fn new_flag(flag: &str, key: &str, value: impl Into<String>) -> Flag {
    Flag {
        flag: flag.to_owned(),
        key: key.to_owned(),
        value: value.into(),
    }
}

/// Returns the flags that `--data-dir` stands for. A data directory on the command line is used
/// even if EPHEMERAL is set.
fn data_dir_flags(folder: String) -> [Flag; 2] {
    [
        new_flag("--data-dir", "embedded.data_dir", folder),
        new_flag("--data-dir", "embedded.ephemeral", "false"),
    ]
}

/// Loads the configuration of a role from the configuration file, the environment, the common
/// options and `role_flags`.
fn load_config(
    role: Role,
    common: CommonArgs,
    role_flags: Vec<Flag>,
) -> Result<Config, ConfigErrors> {
    let set_options = common.set.into_iter();
    let mut flags: Vec<Flag> = set_options
        .map(|(key, value)| new_flag("--set", &key, value))
        .collect();
    flags.extend(
        common
            .log_level
            .map(|level| new_flag("--log-level", "log.level", level)),
    );
    flags.extend(role_flags);
    Config::load(role, &Sources::from_process(common.config, flags))
}

fn run_role(role: Role, common: CommonArgs, flags: Vec<Flag>) -> anyhow::Result<()> {
    let config = load_config(role, common, flags)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime can't be started")?
        .block_on(app::run(role, config))
}

fn run_token(common: CommonArgs, command: TokenCommand) -> anyhow::Result<()> {
    let config = load_config(Role::Gateway, common, Vec::new())?;
    let parse_user = |text: &str| {
        UserId::parse(text).map_err(|_| {
            anyhow::anyhow!("a userid is 1 to 128 characters of A-Z a-z 0-9 . _ : @ | + -")
        })
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime can't be started")?;
    match command {
        TokenCommand::Issue { userid } => {
            let token = runtime.block_on(token::issue(&config, &parse_user(&userid)?))?;
            print(&format!("{token}\n"))
        }
        TokenCommand::Verify { userid, token } => {
            let token = if token == "-" {
                let mut line = String::new();
                std::io::stdin()
                    .lock()
                    .take(16 << 10)
                    .read_to_string(&mut line)?;
                line.trim().to_owned()
            } else {
                token
            };
            let valid_token =
                runtime.block_on(token::verify(&config, &parse_user(&userid)?, &token))?;
            if !valid_token.is_revocation_checked {
                eprintln!(
                    "warning: revocation was not checked: set REDIS_URL or REDIS_HOST to check it"
                );
            }
            print(&format!(
                "valid for {} s\n",
                valid_token.expires_in.as_secs()
            ))
        }
        TokenCommand::Revoke { userid } => {
            runtime.block_on(token::revoke(&config, &parse_user(&userid)?))?;
            print("revoked\n")
        }
    }
}

/// Starts a runtime with two threads for `doctor` and `dlq`, which mostly wait for servers.
fn start_small_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the runtime can't be started")
}

fn run_doctor(common: &CommonArgs, arguments: &doctor::Arguments) -> anyhow::Result<()> {
    let data_dir = arguments.data_dir.clone().into_iter();
    let data_dir_flags: Vec<Flag> = data_dir.flat_map(data_dir_flags).collect();
    let mut loaded = doctor::LoadedConfigs {
        valid: Vec::new(),
        invalid: Vec::new(),
    };
    let roles = match arguments.role {
        Some(role) => vec![role],
        None if !data_dir_flags.is_empty() => vec![Role::AllInOne],
        // The addresses of Kafka and Redis are settings that all roles share. So the first valid
        // configuration of any role shows whether they are set.
        None => {
            let mut roles = Role::ALL.iter();
            let config = roles.find_map(|role| load_config(*role, common.clone(), Vec::new()).ok());
            if config.is_some_and(|config| !config.has_kafka_or_redis_address()) {
                vec![Role::AllInOne]
            } else {
                vec![Role::Gateway, Role::AiWorker, Role::Relay]
            }
        }
    };
    for role in roles {
        let flags = match role {
            Role::AllInOne => data_dir_flags.clone(),
            _ => Vec::new(),
        };
        match load_config(role, common.clone(), flags) {
            Ok(config) => loaded.valid.push(config),
            Err(errors) => loaded.invalid.push((role, errors)),
        }
    }
    let runtime = start_small_runtime()?;
    let result = runtime.block_on(doctor::run(arguments, loaded));
    // Checks that have timed out can still block threads of the runtime. The process does not wait
    // for these threads for more than a second.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn run_dlq(common: CommonArgs, arguments: dlq::Arguments) -> anyhow::Result<()> {
    let folder = arguments.data_dir.as_ref();
    let flags: Vec<Flag> = folder
        .map(|folder| folder.display().to_string())
        .into_iter()
        .flat_map(data_dir_flags)
        .collect();
    let location = if let Some(url) = arguments.url.clone() {
        dlq::Location::Running(load_config(Role::AllInOne, common, flags)?, url)
    } else {
        let worker_config = load_config(Role::AiWorker, common.clone(), Vec::new())?;
        if folder.is_none() && worker_config.has_kafka_or_redis_address() {
            app::validate(&worker_config)?;
            dlq::Location::Kafka(worker_config)
        } else {
            dlq::Location::Folder(load_config(Role::AllInOne, common, flags)?)
        }
    };
    start_small_runtime()?.block_on(dlq::run(arguments, location))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
