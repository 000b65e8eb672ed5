//! A private Redis cluster of three nodes without replicas.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::process::free_port;
use super::redis::APPEND_ONLY;
use super::redis_server::{RedisServer, send_command};
use super::{TEST_TIMEOUT, wait_until};

/// The nodes of the cluster, with append-only files. Drop kills them.
pub(crate) struct RedisCluster {
    nodes: Vec<Node>,
}

struct Node {
    port: u16,
    dir: TempDir,
    server: Option<RedisServer>,
}

impl Node {
    /// Starts the node with the data of its append-only file.
    async fn start(&mut self) {
        let (port, dir) = (self.port, self.dir.path().to_owned());
        let mut options = APPEND_ONLY.to_vec();
        options.extend(["--cluster-enabled", "yes", "--cluster-node-timeout", "3000"]);
        let start = move || RedisServer::start(port, &dir, &options);
        let server = tokio::task::spawn_blocking(start).await;
        self.server = Some(server.expect("a started node of the cluster"));
    }
}

impl RedisCluster {
    pub(crate) async fn start() -> Self {
        let mut nodes = Vec::new();
        while nodes.len() < 3 {
            let port = free_port();
            // The cluster bus of a node listens on the port number that is higher by 10,000.
            if TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok() {
                let dir = tempfile::tempdir().expect("a temporary folder");
                nodes.push(Node {
                    port,
                    dir,
                    server: None,
                });
            }
        }
        let mut cluster = Self { nodes };
        cluster.start_nodes().await;
        let addresses = cluster
            .nodes
            .iter()
            .map(|node| format!("127.0.0.1:{}", node.port));
        let output = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(addresses)
            .arg("--cluster-yes")
            .stdin(Stdio::null())
            .output()
            .expect("run redis-cli");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        cluster.wait_ready().await;
        cluster
    }

    async fn start_nodes(&mut self) {
        for node in &mut self.nodes {
            node.start().await;
        }
    }

    /// Waits until every node knows the other nodes and reports that all slots are served.
    async fn wait_ready(&self) {
        wait_until(
            "every node reports a complete cluster",
            TEST_TIMEOUT,
            || async {
                self.nodes.iter().all(|node| {
                    send_command(node.port, "CLUSTER INFO").is_some_and(|info| {
                        info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
                    })
                })
            },
        )
        .await;
    }

    pub(crate) fn url(&self) -> String {
        format!(
            "redis-cluster://127.0.0.1:{}?node=127.0.0.1:{}&node=127.0.0.1:{}",
            self.nodes[0].port, self.nodes[1].port, self.nodes[2].port
        )
    }

    /// Deletes every key.
    pub(crate) fn flush_all(&self) {
        for node in &self.nodes {
            let reply = send_command(node.port, "FLUSHALL");
            assert_eq!(reply.as_deref(), Some("+OK"));
        }
    }

    /// Closes every connection that subscribes to channels.
    pub(crate) fn kill_subscribers(&self) {
        for node in &self.nodes {
            let _ = send_command(node.port, "CLIENT KILL TYPE pubsub");
        }
    }

    /// Kills all nodes and restarts them with the data of their append-only files.
    pub(crate) async fn restart(&mut self) {
        for node in &mut self.nodes {
            node.server = None;
        }
        self.start_nodes().await;
        self.wait_ready().await;
    }

    /// Sends SIGSTOP to every node.
    pub(crate) fn pause(&self) {
        self.servers().for_each(RedisServer::pause);
    }

    /// Sends SIGCONT to every node.
    pub(crate) fn resume(&self) {
        self.servers().for_each(RedisServer::resume);
    }

    fn servers(&self) -> impl Iterator<Item = &RedisServer> {
        self.nodes.iter().filter_map(|node| node.server.as_ref())
    }
}
