//! The built executable as a child process. Its environment has only the variables of the test, and
//! its output is in a file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

use super::{TEST_TIMEOUT, http};

/// Returns a loopback port without a listener. The ports lie below the range that the kernel
/// assigns to outgoing connections, so no such connection can occupy one before its server starts.
/// No two calls in this process return the same port.
pub(crate) fn free_port() -> u16 {
    static NEXT_INDEX: AtomicU32 = AtomicU32::new(0);
    const FIRST_PORT: u32 = 10_000;
    const PORT_COUNT: u32 = 6_000;
    loop {
        let index = NEXT_INDEX.fetch_add(1, Ordering::Relaxed);
        let port = (FIRST_PORT + (std::process::id() * 37 + index) % PORT_COUNT) as u16;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Sends a signal (`TERM`, `KILL`, `STOP`, `CONT`) to a process that the test started.
pub(crate) fn signal(pid: u32, name: &str) {
    let status = Command::new("sh")
        .args(["-c", &format!("kill -{name} {pid}")])
        .stderr(Stdio::null())
        .status();
    assert!(status.is_ok(), "sh could not be run");
}

/// Polls for the exit of a child. Returns `None` if it still runs after `limit`.
pub(crate) async fn wait_exit(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("poll a child") {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The command line, environment and working folder of a process. A process can be started from it
/// any number of times, each time in the same folder.
#[derive(Debug, Clone)]
pub(crate) struct ProcessSpec {
    name: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    port: Option<u16>,
    max_descriptors: Option<u32>,
    dir: Arc<TempDir>,
}

impl ProcessSpec {
    /// The command `chatmesh ARGS…` in a new working folder, which is also its home.
    pub(crate) fn new(args: &[&str]) -> Self {
        Self {
            name: (*args.first().unwrap_or(&"chatmesh")).to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: Vec::new(),
            port: None,
            max_descriptors: None,
            dir: Arc::new(tempfile::tempdir().expect("a temporary folder")),
        }
    }

    fn with_metrics_port(args: &[&str]) -> Self {
        Self::new(args).on_other_metrics_port()
    }

    /// A gateway on a free loopback port that accepts any token.
    pub(crate) fn gateway() -> Self {
        Self::new(&["gateway", "--host", "127.0.0.1"])
            .on_free_port()
            .env("AUTH_MODE", "open")
    }

    /// A worker with its health and metrics on a free port.
    pub(crate) fn ai_worker() -> Self {
        Self::with_metrics_port(&["ai-worker"])
    }

    /// A relay with its health and metrics on a free port.
    pub(crate) fn relay() -> Self {
        Self::with_metrics_port(&["relay"])
    }

    /// Moves health and metrics to another free port, so that a second process can run beside one
    /// that has the same specification.
    pub(crate) fn on_other_metrics_port(mut self) -> Self {
        let port = free_port();
        self.port = Some(port);
        self.env("METRICS_PORT", &port.to_string())
    }

    /// All roles in one process, in memory only.
    pub(crate) fn ephemeral() -> Self {
        Self::new(&["all-in-one", "--ephemeral"]).on_free_port()
    }

    /// All roles in one process, with a data directory below [`ProcessSpec::dir`].
    pub(crate) fn durable() -> Self {
        let spec = Self::new(&["all-in-one"]).on_free_port();
        let data = spec.dir().join("data");
        spec.arg("--data-dir").arg(&data.display().to_string())
    }

    /// Serves on a free port, and switches off the limits per user. Most tests send more than these
    /// allow, and the tests of the limits set them again.
    pub(crate) fn on_free_port(mut self) -> Self {
        let port = free_port();
        self.port = Some(port);
        self.arg("--port")
            .arg(&port.to_string())
            .env("USER_RATE_LIMIT_MAX_REQUESTS", "0")
            .env("USER_MAX_PENDING", "0")
            .env("USER_MAX_CONNECTIONS", "0")
    }

    pub(crate) fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Sets a variable and replaces its earlier value.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.retain(|(existing, _)| existing != name);
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Limits the number of file descriptors (`ulimit -n`).
    pub(crate) fn max_descriptors(mut self, limit: u32) -> Self {
        self.max_descriptors = Some(limit);
        self
    }

    /// Sets the name that log files and failures use.
    pub(crate) fn with_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// The working folder of the process, which is also its home.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port.expect("a command that serves a port")
    }

    /// The command to run, with an empty standard input. If the environment has `TEST_CHATMESH`,
    /// that executable is run instead of the built one.
    pub(crate) fn command(&self) -> Command {
        let program = std::env::var_os("TEST_CHATMESH");
        let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_chatmesh").into());
        let mut command = match self.max_descriptors {
            None => Command::new(program),
            Some(limit) => {
                let mut shell = Command::new("sh");
                let script = format!("ulimit -n {limit} && exec \"$0\" \"$@\"");
                shell.args(["-c", &script]).arg(program);
                shell
            }
        };
        command
            .args(&self.args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.path())
            .env("RUST_BACKTRACE", "1")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    /// Starts the process and returns at once.
    pub(crate) fn spawn(&self) -> ChatmeshProcess {
        let log = self
            .dir
            .path()
            .join(format!("{}.log", super::unique_name(&self.name)));
        let log_file = File::create(&log).expect("a log file");
        let child = self
            .command()
            .stdout(
                log_file
                    .try_clone()
                    .expect("a second handle of the log file"),
            )
            .stderr(log_file)
            .spawn()
            .expect("start chatmesh");
        ChatmeshProcess {
            child,
            log,
            spec: self.clone(),
        }
    }

    /// Starts the process and waits until it reports that it is ready.
    pub(crate) async fn start(&self) -> ChatmeshProcess {
        let mut process = self.spawn();
        process.wait_ready(TEST_TIMEOUT).await;
        process
    }

    /// Runs the process until it exits. Returns the exit code, standard output and standard error.
    pub(crate) fn run(&self) -> (Option<i32>, String, String) {
        let output = self.command().output().expect("start chatmesh");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }
}

/// A running chatmesh process. Drop kills it. If the test panics, drop also prints the last lines
/// of its log.
#[derive(Debug)]
pub(crate) struct ChatmeshProcess {
    child: Child,
    log: PathBuf,
    spec: ProcessSpec,
}

impl ChatmeshProcess {
    pub(crate) fn port(&self) -> u16 {
        self.spec.port()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The specification from which the process was started.
    pub(crate) fn spec(&self) -> &ProcessSpec {
        &self.spec
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port())
    }

    /// The standard output and standard error of the process so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub(crate) async fn is_ready(&self) -> bool {
        http::try_call(reqwest::Method::GET, &self.url("/health/ready"), &[])
            .await
            .is_ok_and(|reply| reply.status == 200)
    }

    /// Waits until `/health/ready` reports that the process is ready. Panics if the process exits
    /// first.
    pub(crate) async fn wait_ready(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while !self.is_ready().await {
            let exit = self.child.try_wait().expect("wait for chatmesh");
            assert!(exit.is_none(), "{} exited: {exit:?}", self.spec.name);
            assert!(
                Instant::now() < deadline,
                "{} is not ready within {limit:?}",
                self.spec.name
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the output of the process contains `text`.
    pub(crate) async fn wait_for_log(&self, text: &str, limit: Duration) {
        let description = format!("{text:?} in the log of {}", self.spec.name);
        super::wait_until(&description, limit, || async { self.log().contains(text) }).await;
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        signal(self.child.id(), "TERM");
    }

    /// Sends SIGKILL and waits for the exit.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("kill chatmesh");
        self.child.wait().expect("wait for chatmesh");
    }

    /// Sends SIGSTOP.
    pub(crate) fn pause(&self) {
        signal(self.child.id(), "STOP");
    }

    /// Sends SIGCONT.
    pub(crate) fn resume(&self) {
        signal(self.child.id(), "CONT");
    }

    pub(crate) async fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        match wait_exit(&mut self.child, limit).await {
            Some(status) => status,
            None => panic!("{} did not exit within {limit:?}", self.spec.name),
        }
    }

    /// Sends SIGTERM, waits for the exit, and checks that the exit code is 0.
    pub(crate) async fn drain(&mut self) {
        self.terminate();
        let status = self.wait_exit(TEST_TIMEOUT).await;
        assert_eq!(
            status.code(),
            Some(0),
            "{} did not exit with code 0",
            self.spec.name
        );
    }
}

impl Drop for ChatmeshProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let first_printed = lines.len().saturating_sub(60);
            eprintln!("--- the last lines of {} ---", self.spec.name);
            for line in &lines[first_printed..] {
                eprintln!("{line}");
            }
        }
    }
}
