//! Servers of a test's own, which it may stop and empty.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A process that ends with the test.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Sends one inline command and returns what comes first.
pub(crate) fn ask(port: u16, command: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(format!("{command}\r\n").as_bytes()).ok()?;
    let mut answer = [0; 4096];
    let length = stream.read(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer[..length]).into_owned())
}

pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "not so: {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn start(program: &str, arguments: &[String], port: u16) -> Server {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; run the tests by tests/run"));
    let server = Server { child, port };
    wait_until("redis answers", || {
        ask(port, "PING").is_some_and(|answer| answer.starts_with("+PONG"))
    });
    server
}

/// A Redis on `port` with its data in `dir`.
pub(crate) fn redis(port: u16, dir: &Path, more: &[&str]) -> Server {
    let mut arguments: Vec<String> = ["--port", &port.to_string(), "--bind", "127.0.0.1"]
        .iter()
        .map(ToString::to_string)
        .collect();
    arguments.extend(["--dir".into(), dir.display().to_string()]);
    arguments.extend(["--save".into(), String::new()]);
    arguments.extend(more.iter().map(ToString::to_string));
    start("redis-server", &arguments, port)
}

/// A master, its replica, and a sentinel that decides alone after a second.
pub(crate) struct Sentinel {
    pub(crate) master: Option<Server>,
    pub(crate) replica: Server,
    sentinel: Server,
    _dir: TempDir,
}

impl Sentinel {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let master = redis(free_port(), &place("master"), &[]);
        let of_master = format!("127.0.0.1 {}", master.port);
        let replica = redis(
            free_port(),
            &place("replica"),
            &["--replicaof", "127.0.0.1", &master.port.to_string()],
        );
        wait_until("the replica follows", || {
            ask(replica.port, "INFO replication")
                .is_some_and(|info| info.contains("master_link_status:up"))
        });
        let port = free_port();
        let path = place("sentinel").join("sentinel.conf");
        std::fs::write(
            &path,
            format!(
                "port {port}\nbind 127.0.0.1\nsentinel monitor chatmesh {of_master} 1\n\
                 sentinel down-after-milliseconds chatmesh 1000\n\
                 sentinel failover-timeout chatmesh 5000\n"
            ),
        )
        .unwrap();
        let sentinel = start("redis-sentinel", &[path.display().to_string()], port);
        wait_until("sentinel knows the replica", || {
            ask(port, "SENTINEL MASTER chatmesh")
                .is_some_and(|state| state.contains("num-slaves\r\n$1\r\n1"))
        });
        Self {
            master: Some(master),
            replica,
            sentinel,
            _dir: dir,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!(
            "redis-sentinel://127.0.0.1:{}?sentinelServiceName=chatmesh",
            self.sentinel.port
        )
    }
}
