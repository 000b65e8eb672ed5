//! The command line: subcommands and flags, and the exit code (0 done, 1 failed, 2 used or
//! configured wrongly; a load test has more, which its help lists).
#![expect(
    clippy::print_stderr,
    reason = "errors of the command line are for its user; everything else is logged"
)]

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::app;
use crate::config::{self, Config, ConfigErrors, Flag, Role, Sources};
use crate::protocol::ids::UserId;
use crate::tools::{Misused, chat, dlq, doctor, load_test, mock_openai, print, token};

const EXAMPLES: &str = "\
Examples:
  chatmesh all-in-one                        everything in one process, nothing to install
  chatmesh chat                              talk to it, in another terminal
  echo hi | chatmesh chat                    only the answer on standard output
  chatmesh gateway --port 8000               one role of a deployment on Kafka and Redis
  chatmesh ai-worker --set model.name=gpt-4o-mini
  chatmesh config show relay                 what a relay would run with, and why
  chatmesh config default > chatmesh.toml    the commented configuration file

Every key can be set in a file (--config, CHATMESH_CONFIG), in .env or the environment, and by
--set; the later one wins.";

const CHAT: &str = "\
At the prompt: Enter sends, Alt-Enter begins another line, pasted lines are one message, Ctrl-C stops
an answer, and at the prompt it leaves.

Where standard input is no terminal, all of it is one question. Where standard output is none, the
answer is printed when it is whole, as it is; a terminal gets it as it grows, without control
characters. What happens to the connection is told on standard error.

Exit codes: 0 answered, 1 failed or stopped, 2 used wrongly.";

/// Carries AI conversations between clients and models, and loses nothing.
#[derive(Debug, Parser)]
#[command(name = "chatmesh", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Args)]
struct Common {
    /// Configuration file (TOML).
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Least level that is logged, or a filter.
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Set any key, by its name in the file or its variable. May be repeated.
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve clients' connections.
    Gateway(Listen),
    /// Answer messages with the model.
    AiWorker(Listen),
    /// Bring answers to the gateways.
    Relay(Listen),
    /// All three in one process, with a log of its own: no Kafka, no Redis.
    AllInOne {
        #[command(flatten)]
        listen: Listen,
        /// Where messages and conversations are kept.
        #[arg(long, value_name = "FOLDER", conflicts_with = "ephemeral")]
        data_dir: Option<String>,
        /// Keep everything in memory only.
        #[arg(long)]
        ephemeral: bool,
    },
    /// Talk to a server in this terminal, or ask one question through a pipe.
    #[command(after_help = CHAT)]
    Chat(chat::ChatArgs),
    /// Make, look at and revoke users' tokens, with a gateway's configuration.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Look at dead letters, replay or drop them: in Kafka where its or Redis's address is set,
    /// otherwise in all-in-one's data directory.
    Dlq(dlq::Arguments),
    /// Check all that a deployment stands on, and say what to do. Exit code 0: no problem, 1:
    /// problems, 2: the configuration can't be used.
    Doctor(doctor::Arguments),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print what makes a shell complete this command line.
    Completions {
        /// For this shell.
        shell: clap_complete::Shell,
    },
    /// Connect many clients, and say what they see.
    LoadTest(load_test::LoadArgs),
    /// Serve OpenAI's API without a model, for load tests and demos.
    MockOpenai(mock_openai::MockArgs),
    /// Exit code 0 if the local role is ready, else 1; for containers.
    ///
    /// It asks at the address that is configured (PORT of a gateway and all-in-one, METRICS_PORT
    /// of a worker and a relay), or at --url.
    Healthcheck {
        /// Whose configured address is asked.
        #[arg(default_value = "gateway")]
        role: Role,
        /// Ask here instead (http:// only), as http://127.0.0.1:8000/health/ready.
        #[arg(long)]
        url: Option<String>,
    },
}

#[derive(Debug, Args)]
struct Listen {
    /// Address to listen on (a worker's and a relay's health and metrics).
    #[arg(long)]
    host: Option<String>,
    /// Port to listen on; 0 takes a free one.
    #[arg(long)]
    port: Option<String>,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Print a token for a user: a signed one, or the one that Redis holds, or a new one there.
    Issue {
        /// Whose.
        userid: String,
    },
    /// Exit code 0 if a token is good, else 1.
    Verify {
        /// Whose.
        userid: String,
        /// The token; - reads it from standard input, so that it stays out of the shell's history.
        #[arg(default_value = "-")]
        token: String,
    },
    /// End a user's tokens, and close what they have opened.
    Revoke {
        /// Whose.
        userid: String,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print what is in effect, with each value's source; secrets are hidden.
    Show {
        /// For this role.
        #[arg(default_value = "all-in-one")]
        role: Role,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Only check; says nothing but what is wrong.
    Check {
        /// For this role.
        #[arg(default_value = "all-in-one")]
        role: Role,
    },
    /// Print the configuration file with every key, its default and what it does.
    Default,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("needs KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

/// What the arguments ask for, carried out.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" too, with exit code 0.
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            return error.print().map_or(ExitCode::FAILURE, |()| code.into());
        }
    };
    match carry_out(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            let configured = error.downcast_ref::<ConfigErrors>().is_some()
                || error.downcast_ref::<app::Unusable>().is_some()
                || error.downcast_ref::<Misused>().is_some();
            let no_test = error.downcast_ref::<load_test::TestNotStarted>().is_some();
            ExitCode::from(if configured {
                2
            } else if no_test {
                load_test::TestNotStarted::EXIT_CODE
            } else {
                1
            })
        }
    }
}

fn carry_out(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { common, command } = cli;
    let done = match command {
        Command::Gateway(listen) => start(Role::Gateway, common, listen.flags("server")),
        Command::AiWorker(listen) => start(Role::AiWorker, common, listen.flags("metrics")),
        Command::Relay(listen) => start(Role::Relay, common, listen.flags("metrics")),
        Command::AllInOne {
            listen,
            data_dir,
            ephemeral,
        } => {
            let mut flags = listen.flags("server");
            flags.extend(data_dir.into_iter().flat_map(in_folder));
            if ephemeral {
                flags.push(flag("--ephemeral", "embedded.ephemeral", "true"));
            }
            start(Role::AllInOne, common, flags)
        }
        Command::Chat(args) => chat::run(args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "chatmesh", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Command::Token(command) => tokens(common, command),
        Command::Doctor(arguments) => examine(&common, &arguments),
        Command::Dlq(arguments) => dead_letters(common, arguments),
        Command::Config(ConfigCommand::Show { role, json }) => {
            let config = load(role, common, Vec::new())?;
            print(&if json {
                config.show_json()
            } else {
                config.show_text()
            })
        }
        Command::Config(ConfigCommand::Check { role }) => {
            let config = load(role, common, Vec::new())?;
            app::validate(&config)?;
            for notice in config.notices() {
                eprintln!("warning: {notice}");
            }
            Ok(())
        }
        Command::Config(ConfigCommand::Default) => print(&config::default_file()),
        Command::MockOpenai(args) => mock_openai::run(args, print),
        Command::LoadTest(args) => return load_test::run(args, print),
        Command::Healthcheck { role, url } => healthcheck(role, common, url),
    };
    done.map(|()| ExitCode::SUCCESS)
}

impl Listen {
    fn flags(self, section: &str) -> Vec<Flag> {
        let host = self
            .host
            .map(|v| flag("--host", &format!("{section}.host"), v));
        let port = self
            .port
            .map(|v| flag("--port", &format!("{section}.port"), v));
        host.into_iter().chain(port).collect()
    }
}

fn flag(flag: &str, key: &str, value: impl Into<String>) -> Flag {
    Flag {
        flag: flag.to_owned(),
        key: key.to_owned(),
        value: value.into(),
    }
}

/// Who names a folder means it to be used, whatever EPHEMERAL says.
fn in_folder(folder: String) -> [Flag; 2] {
    [
        flag("--data-dir", "embedded.data_dir", folder),
        flag("--data-dir", "embedded.ephemeral", "false"),
    ]
}

fn load(role: Role, common: Common, named: Vec<Flag>) -> Result<Config, ConfigErrors> {
    let set = common.set.into_iter();
    let mut flags: Vec<Flag> = set.map(|(key, value)| flag("--set", &key, value)).collect();
    flags.extend(
        common
            .log_level
            .map(|level| flag("--log-level", "log.level", level)),
    );
    flags.extend(named);
    Config::load(role, &Sources::of_process(common.config, flags))
}

fn start(role: Role, common: Common, flags: Vec<Flag>) -> anyhow::Result<()> {
    let config = load(role, common, flags)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime can't be started")?
        .block_on(app::run(role, config))
}

fn tokens(common: Common, command: TokenCommand) -> anyhow::Result<()> {
    let config = load(Role::Gateway, common, Vec::new())?;
    let user = |text: &str| {
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
            let token = runtime.block_on(token::issue(&config, &user(&userid)?))?;
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
            let good = runtime.block_on(token::verify(&config, &user(&userid)?, &token))?;
            if !good.looked_up {
                eprintln!(
                    "whether it was revoked was not looked up: REDIS_URL and REDIS_HOST are not set"
                );
            }
            print(&format!("good for {} s\n", good.left.as_secs()))
        }
        TokenCommand::Revoke { userid } => {
            runtime.block_on(token::revoke(&config, &user(&userid)?))?;
            print("revoked\n")
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the runtime can't be started")
}

fn examine(common: &Common, arguments: &doctor::Arguments) -> anyhow::Result<()> {
    let folder = arguments.data_dir.clone().into_iter().flat_map(in_folder);
    let folder: Vec<Flag> = folder.collect();
    let mut loaded = doctor::Loaded {
        configs: Vec::new(),
        wrong: Vec::new(),
    };
    let roles = match arguments.role {
        Some(role) => vec![role],
        None if !folder.is_empty() => vec![Role::AllInOne],
        // What says where the servers are is read alike for every role; one may be wrong.
        None => {
            let mut any = Role::ALL.iter();
            let any = any.find_map(|role| load(*role, common.clone(), Vec::new()).ok());
            if any.is_some_and(|config| !config.names_servers()) {
                vec![Role::AllInOne]
            } else {
                vec![Role::Gateway, Role::AiWorker, Role::Relay]
            }
        }
    };
    for role in roles {
        let flags = match role {
            Role::AllInOne => folder.clone(),
            _ => Vec::new(),
        };
        match load(role, common.clone(), flags) {
            Ok(config) => loaded.configs.push(config),
            Err(errors) => loaded.wrong.push((role, errors)),
        }
    }
    let runtime = runtime()?;
    let result = runtime.block_on(doctor::run(arguments, loaded));
    // What still asks a server that does not answer is not waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn dead_letters(common: Common, arguments: dlq::Arguments) -> anyhow::Result<()> {
    let folder = arguments.data_dir.as_ref();
    let flags: Vec<Flag> = folder
        .map(|folder| folder.display().to_string())
        .into_iter()
        .flat_map(in_folder)
        .collect();
    let place = if let Some(url) = arguments.url.clone() {
        dlq::Location::Running(load(Role::AllInOne, common, flags)?, url)
    } else {
        let scaled = load(Role::AiWorker, common.clone(), Vec::new())?;
        if folder.is_none() && scaled.names_servers() {
            app::validate(&scaled)?;
            dlq::Location::Kafka(scaled)
        } else {
            dlq::Location::Folder(load(Role::AllInOne, common, flags)?)
        }
    };
    runtime()?.block_on(dlq::run(arguments, place))
}

/// All of a health check, connecting included.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(5);

fn healthcheck(role: Role, common: Common, url: Option<String>) -> anyhow::Result<()> {
    let url = if let Some(url) = url {
        url
    } else {
        let address = reachable(load(role, common, Vec::new())?.health_listen());
        format!("http://{address}/health/ready")
    };
    let (status, body) = get(&url).with_context(|| format!("{url} does not answer"))?;
    anyhow::ensure!(status == 200, "not ready: {url} answered {status}: {body}");
    Ok(())
}

/// Where a process that listens here is reached from its own machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// One GET over plain HTTP. By hand, since the client library insists on certificates that a
/// small image may not have, also where none are needed.
fn get(url: &str) -> anyhow::Result<(u16, String)> {
    let url = url::Url::parse(url).context("not a URL")?;
    anyhow::ensure!(url.scheme() == "http", "only http:// is known here");
    let host = url.host_str().context("the URL has no host")?;
    let authority = &url[url::Position::BeforeHost..url::Position::AfterPort];
    let port = url.port_or_known_default().unwrap_or(80);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let deadline = Instant::now() + HEALTHCHECK_TIMEOUT;
    let left = || {
        let left = deadline.saturating_duration_since(Instant::now());
        anyhow::ensure!(!left.is_zero(), "no answer in time");
        Ok(left)
    };
    let mut failure = anyhow::anyhow!("the host has no address");
    for address in (bare, port).to_socket_addrs()? {
        let mut stream = match TcpStream::connect_timeout(&address, left()?) {
            Ok(stream) => stream,
            Err(error) => {
                failure = error.into();
                continue;
            }
        };
        stream.set_write_timeout(Some(left()?))?;
        let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
        let head =
            format!("GET {target} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        // The body is for people: a readiness answer is far below this.
        while answer.len() < 64 * 1024 {
            stream.set_read_timeout(Some(left()?))?;
            match stream.read(&mut chunk)? {
                0 => break,
                read => answer.extend_from_slice(&chunk[..read]),
            }
        }
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5));
        let status = status.and_then(|status| status.parse().ok());
        return Ok((status.context("the answer is not HTTP")?, body.to_owned()));
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_process_on_every_address_is_asked_on_loopback() {
        let asked = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(asked("0.0.0.0:8002"), "127.0.0.1:8002");
        assert_eq!(asked("[::]:1"), "[::1]:1");
        assert_eq!(asked("10.1.2.3:1"), "10.1.2.3:1");
    }
}
