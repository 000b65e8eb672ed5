//! Processes of `redis-server`, and commands to them without a client library. No other test code
//! starts `redis-server`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::process::signal;

/// Limit for the start of a server. Generous, because the machine may be busy.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A `redis-server` process on a loopback port. Drop kills it.
#[derive(Debug)]
pub(crate) struct RedisServer {
    pub(crate) port: u16,
    child: Child,
}

impl RedisServer {
    /// Starts a server with its data in `dir`, and waits until it answers. `options` are the last
    /// arguments of the command line, so they override the defaults.
    pub(crate) fn start(port: u16, dir: &Path, options: &[&str]) -> Self {
        let port_text = port.to_string();
        let dir = dir.display().to_string();
        let mut arguments = vec!["--bind", "127.0.0.1", "--port", &port_text, "--dir", &dir];
        arguments.extend(["--save", ""]);
        arguments.extend(options);
        Self::start_with_arguments(port, &arguments)
    }

    /// Starts a sentinel, which stores its state in its configuration file.
    pub(crate) fn start_sentinel(port: u16, configuration: &Path) -> Self {
        // The server has a sentinel mode. The command `redis-sentinel` is a separate package.
        let configuration = configuration.display().to_string();
        Self::start_with_arguments(port, &[&configuration, "--sentinel"])
    }

    fn start_with_arguments(port: u16, arguments: &[&str]) -> Self {
        let child = Command::new("redis-server")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("redis-server: {e} (tests/run installs it)"));
        let server = Self { port, child };
        wait_for_redis("redis answers", || {
            send_command(port, "PING").is_some_and(|reply| reply == "+PONG")
        });
        server
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGSTOP. The connections stay open, but the server answers nothing.
    pub(crate) fn pause(&self) {
        signal(self.pid(), "STOP");
    }

    /// Sends SIGCONT.
    pub(crate) fn resume(&self) {
        signal(self.pid(), "CONT");
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends one inline command. Returns the first 4 KiB of the reply without the trailing line end, or
/// `None` if the server does not answer.
pub(crate) fn send_command(port: u16, command: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(format!("{command}\r\n").as_bytes()).ok()?;
    let mut reply = [0; 4096];
    let length = stream.read(&mut reply).ok()?;
    let reply = String::from_utf8_lossy(&reply[..length]);
    Some(reply.trim_end().to_owned())
}

/// Blocks until `condition` holds. Panics with `description` after the limit for the start of a
/// server.
pub(crate) fn wait_for_redis(description: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(
            started.elapsed() < START_TIMEOUT,
            "not within {START_TIMEOUT:?}: {description}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
