//! A Redis cluster of a test's own, of three nodes without replicas.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::process::{free_port, signal};
use super::redis::inline;
use super::{SOON, eventually};

/// Three nodes; killed when dropped.
pub(crate) struct RedisCluster {
    nodes: Vec<Node>,
}

struct Node {
    port: u16,
    dir: TempDir,
    child: Option<Child>,
}

impl Node {
    fn start(&mut self) {
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string()])
            .args(["--appendonly", "yes", "--appendfsync", "everysec"])
            .args(["--save", "", "--cluster-enabled", "yes"])
            .args(["--cluster-node-timeout", "3000"])
            .arg("--dir")
            .arg(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start redis-server (tests/run installs it)");
        self.child = Some(child);
    }

    fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill9();
    }
}

impl RedisCluster {
    pub(crate) async fn start() -> Self {
        let mut nodes = Vec::new();
        while nodes.len() < 3 {
            let port = free_port();
            // The nodes talk to each other 10,000 above.
            if TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok() {
                let dir = tempfile::tempdir().expect("a temporary folder");
                nodes.push(Node {
                    port,
                    dir,
                    child: None,
                });
            }
        }
        let mut cluster = Self { nodes };
        cluster.run().await;
        let addresses = cluster
            .nodes
            .iter()
            .map(|node| format!("127.0.0.1:{}", node.port));
        let made = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(addresses)
            .arg("--cluster-yes")
            .stdin(Stdio::null())
            .output()
            .expect("run redis-cli");
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stdout)
        );
        cluster.ready().await;
        cluster
    }

    async fn run(&mut self) {
        for node in &mut self.nodes {
            node.start();
        }
        for node in &self.nodes {
            eventually("a node of the cluster answers", SOON, || async {
                inline(node.port, "PING").as_deref() == Some("+PONG")
            })
            .await;
        }
    }

    /// Every node serves its slots. A key of each node's slots is asked for at each.
    async fn ready(&self) {
        eventually("the cluster is one", SOON, || async {
            self.nodes.iter().all(|node| {
                let output = Command::new("redis-cli")
                    .args(["-p", &node.port.to_string(), "cluster", "info"])
                    .output()
                    .expect("run redis-cli");
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                said.contains("cluster_state:ok") && said.contains("cluster_known_nodes:3")
            })
        })
        .await;
    }

    pub(crate) fn url(&self) -> String {
        format!(
            "redis-cluster://127.0.0.1:{}?node=127.0.0.1:{}&node=127.0.0.1:{}",
            self.nodes[0].port, self.nodes[1].port, self.nodes[2].port
        )
    }

    /// Removes every key.
    pub(crate) fn flush_all(&self) {
        for node in &self.nodes {
            assert_eq!(inline(node.port, "FLUSHALL").as_deref(), Some("+OK"));
        }
    }

    /// Closes every connection that listens to channels.
    pub(crate) fn kill_subscribers(&self) {
        for node in &self.nodes {
            let _ = inline(node.port, "CLIENT KILL TYPE pubsub");
        }
    }

    /// All nodes crash and come back with what they had written.
    pub(crate) async fn restart(&mut self) {
        for node in &mut self.nodes {
            node.kill9();
        }
        self.run().await;
        self.ready().await;
    }

    /// Freezes every node.
    pub(crate) fn freeze(&self) {
        self.signal("STOP");
    }

    /// Lets them go on.
    pub(crate) fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        for child in self.nodes.iter().filter_map(|node| node.child.as_ref()) {
            signal(child.id(), name);
        }
    }
}

/// A pause in which the servers write what they have to their files.
pub(crate) const WRITTEN: Duration = Duration::from_millis(1200);
