//! The built executable as a child process, with a clean environment and its output kept.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

use super::{SOON, http};

/// A loopback port that nothing listens on. They lie below the range that the kernel gives to
/// outgoing connections, so that none of those can take one before its server is up, and no two
/// calls in this process return the same.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 6_000;
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = (FIRST + (std::process::id() * 37 + n) % COUNT) as u16;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Sends a signal (`TERM`, `KILL`, `STOP`, `CONT`) to a process that this one started.
pub(crate) fn signal(pid: u32, name: &str) {
    let status = Command::new("sh")
        .args(["-c", &format!("kill -{name} {pid}")])
        .stderr(Stdio::null())
        .status();
    assert!(status.is_ok(), "sh could not be run");
}

/// Polls for the end of a child.
pub(crate) async fn wait_exit(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How a process is to be started; can be started again and again, on the same folder.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    name: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    port: Option<u16>,
    descriptors: Option<u32>,
    dir: Arc<TempDir>,
}

impl Spec {
    /// `chatmesh ARGS…`, in a new folder that is also its home.
    pub(crate) fn new(args: &[&str]) -> Self {
        Self {
            name: (*args.first().unwrap_or(&"chatmesh")).to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: Vec::new(),
            port: None,
            descriptors: None,
            dir: Arc::new(tempfile::tempdir().expect("a temporary folder")),
        }
    }

    fn with_port_flag(args: &[&str]) -> Self {
        // Without the limits of a user: tests send more, and those of the limits set them.
        Self::new(args).with_port()
    }

    fn with_metrics_port(args: &[&str]) -> Self {
        let port = free_port();
        let mut spec = Self::new(args).env("METRICS_PORT", &port.to_string());
        spec.port = Some(port);
        spec
    }

    /// A gateway on a free loopback port, with tokens of any form.
    pub(crate) fn gateway() -> Self {
        Self::with_port_flag(&["gateway", "--host", "127.0.0.1"]).env("AUTH_MODE", "open")
    }

    /// A worker with its health and metrics on a free port.
    pub(crate) fn ai_worker() -> Self {
        Self::with_metrics_port(&["ai-worker"])
    }

    /// A relay with its health and metrics on a free port.
    pub(crate) fn relay() -> Self {
        Self::with_metrics_port(&["relay"])
    }

    /// The same with its health and metrics on another free port.
    pub(crate) fn other_metrics_port(mut self) -> Self {
        let port = free_port();
        self.port = Some(port);
        self.env("METRICS_PORT", &port.to_string())
    }

    /// Everything in one process, in memory only.
    pub(crate) fn ephemeral() -> Self {
        Self::with_port_flag(&["all-in-one", "--ephemeral"])
    }

    /// Everything in one process, on a durable folder below [`Spec::dir`].
    pub(crate) fn durable() -> Self {
        let spec = Self::with_port_flag(&["all-in-one"]);
        let data = spec.dir().join("data");
        spec.arg("--data-dir").arg(&data.display().to_string())
    }

    /// On a free port, without the limits of a user.
    pub(crate) fn with_port(mut self) -> Self {
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

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.env.retain(|(known, _)| known != name);
        self
    }

    /// With so few file descriptors (`ulimit -n`).
    pub(crate) fn descriptors(mut self, most: u32) -> Self {
        self.descriptors = Some(most);
        self
    }

    /// What logs and failures call it.
    pub(crate) fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Its working folder and home.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port.expect("this command serves no port")
    }

    /// What would be run, with nothing on its standard input.
    pub(crate) fn command(&self) -> Command {
        // Another build of it, where the environment names one.
        let program = std::env::var_os("TEST_CHATMESH");
        let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_chatmesh").into());
        let mut command = match self.descriptors {
            None => Command::new(program),
            Some(most) => {
                let mut shell = Command::new("sh");
                let limited = format!("ulimit -n {most} && exec \"$0\" \"$@\"");
                shell.args(["-c", &limited]).arg(program);
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

    /// Starts it and returns at once.
    pub(crate) fn spawn(&self) -> Chatmesh {
        let log = self
            .dir
            .path()
            .join(format!("{}.log", super::unique(&self.name)));
        let out = File::create(&log).expect("a log file");
        let child = self
            .command()
            .stdout(out.try_clone().expect("a second handle of the log file"))
            .stderr(out)
            .spawn()
            .expect("start chatmesh");
        Chatmesh {
            child,
            log,
            spec: self.clone(),
        }
    }

    /// Starts it and waits until it says that it is ready.
    pub(crate) async fn start(&self) -> Chatmesh {
        let mut process = self.spawn();
        process.ready(SOON).await;
        process
    }

    /// Runs it to its end: exit code, standard output, standard error.
    pub(crate) fn run(&self) -> (Option<i32>, String, String) {
        let output = self.command().output().expect("start chatmesh");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }
}

/// A running chatmesh; killed when dropped. When the test fails, its last lines are shown.
#[derive(Debug)]
pub(crate) struct Chatmesh {
    child: Child,
    log: PathBuf,
    spec: Spec,
}

impl Chatmesh {
    pub(crate) fn port(&self) -> u16 {
        self.spec.port()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it was started.
    pub(crate) fn spec(&self) -> &Spec {
        &self.spec
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port())
    }

    /// What it printed so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub(crate) async fn is_ready(&self) -> bool {
        http::try_call(reqwest::Method::GET, &self.url("/health/ready"), &[])
            .await
            .is_ok_and(|reply| reply.status == 200)
    }

    /// Waits for `/health/ready`, and fails when the process ends before that.
    pub(crate) async fn ready(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while !self.is_ready().await {
            let ended = self.child.try_wait().expect("wait for chatmesh");
            assert!(ended.is_none(), "{} ended: {ended:?}", self.spec.name);
            assert!(
                Instant::now() < deadline,
                "{} is not ready within {limit:?}",
                self.spec.name
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until its output holds `text`.
    pub(crate) async fn says(&self, text: &str, limit: Duration) {
        let what = format!("{} says {text:?}", self.spec.name);
        super::eventually(&what, limit, || async { self.log().contains(text) }).await;
    }

    pub(crate) fn term(&self) {
        signal(self.child.id(), "TERM");
    }

    /// Ends it as a crash would, and waits until it is gone.
    pub(crate) fn kill9(&mut self) {
        self.child.kill().expect("kill chatmesh");
        self.child.wait().expect("wait for chatmesh");
    }

    /// Freezes it (SIGSTOP).
    pub(crate) fn stop(&self) {
        signal(self.child.id(), "STOP");
    }

    /// Lets it go on (SIGCONT).
    pub(crate) fn cont(&self) {
        signal(self.child.id(), "CONT");
    }

    pub(crate) async fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        match wait_exit(&mut self.child, limit).await {
            Some(status) => status,
            None => panic!("{} did not end within {limit:?}", self.spec.name),
        }
    }

    /// SIGTERM; it must end by itself, in order, with exit code 0.
    pub(crate) async fn drain(&mut self) {
        self.term();
        let status = self.wait_exit(SOON).await;
        assert_eq!(status.code(), Some(0), "{} ended badly", self.spec.name);
    }
}

impl Drop for Chatmesh {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines.len().saturating_sub(60);
            eprintln!("--- the last lines of {} ---", self.spec.name);
            for line in &lines[last..] {
                eprintln!("{line}");
            }
        }
    }
}
