//! Servers of a test's own, which it may stop and empty.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub(crate) use crate::support::process::free_port;

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
        // Not `redis-sentinel`, which is a package of its own.
        let arguments = [path.display().to_string(), "--sentinel".into()];
        let sentinel = start("redis-server", &arguments, port);
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

/// Two masters of a cluster, each with half of the slots.
pub(crate) struct Cluster {
    pub(crate) nodes: [Server; 2],
    _dir: TempDir,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bus = [free_port(), free_port()];
        let nodes = [0, 1].map(|number| {
            let path = dir.path().join(number.to_string());
            std::fs::create_dir(&path).unwrap();
            let bus = bus[number].to_string();
            let more = ["--cluster-enabled", "yes", "--cluster-port", &bus];
            redis(free_port(), &path, &more)
        });
        for (node, slots) in nodes.iter().zip(["0 8191", "8192 16383"]) {
            ask(node.port, &format!("CLUSTER ADDSLOTSRANGE {slots}")).unwrap();
        }
        ask(nodes[1].port, "CLUSTER SET-CONFIG-EPOCH 2").unwrap();
        let meet = format!("CLUSTER MEET 127.0.0.1 {} {}", nodes[1].port, bus[1]);
        ask(nodes[0].port, &meet).unwrap();
        wait_until("the cluster is whole", || {
            nodes.iter().all(|node| {
                ask(node.port, "CLUSTER INFO").is_some_and(|info| {
                    info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:2")
                })
            })
        });
        Self { nodes, _dir: dir }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis-cluster://127.0.0.1:{}", self.nodes[0].port)
    }

    /// Gives the slot of this key, which must be empty, to the other node.
    pub(crate) fn move_slot_of(&self, key: &str) {
        let slot = ask(self.nodes[0].port, &format!("CLUSTER KEYSLOT {key}")).unwrap();
        let slot: u16 = slot.trim().trim_start_matches(':').parse().unwrap();
        let ids = [0, 1].map(|number: usize| {
            let answer = ask(self.nodes[number].port, "CLUSTER MYID").unwrap();
            answer.lines().nth(1).unwrap().to_owned()
        });
        let from = usize::from(slot > 8191);
        let (source, target) = (self.nodes[from].port, self.nodes[1 - from].port);
        let (source_id, target_id) = (&ids[from], &ids[1 - from]);
        for (port, step) in [
            (target, format!("IMPORTING {source_id}")),
            (source, format!("MIGRATING {target_id}")),
            (target, format!("NODE {target_id}")),
            (source, format!("NODE {target_id}")),
        ] {
            let answer = ask(port, &format!("CLUSTER SETSLOT {slot} {step}")).unwrap();
            assert!(answer.starts_with("+OK"), "{answer}");
        }
    }
}
