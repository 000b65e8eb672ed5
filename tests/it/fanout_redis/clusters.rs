//! Groups of Redis servers that a test may stop and reconfigure: sentinel and cluster.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::thread::JoinHandle;

use tempfile::TempDir;

use crate::support::process::free_port;
use crate::support::redis_server::{RedisServer, send_command, wait_for_redis};

/// A master, its replica, and a single sentinel that declares a master down after a second.
pub(crate) struct Sentinel {
    pub(crate) master: Option<RedisServer>,
    pub(crate) replica: RedisServer,
    sentinel: RedisServer,
    _dir: TempDir,
}

impl Sentinel {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let create_dir = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let master = RedisServer::start(free_port(), &create_dir("master"), &[]);
        let master_address = format!("127.0.0.1 {}", master.port);
        let replica = RedisServer::start(
            free_port(),
            &create_dir("replica"),
            &["--replicaof", "127.0.0.1", &master.port.to_string()],
        );
        wait_for_redis("the replica is synchronized", || {
            send_command(replica.port, "INFO replication")
                .is_some_and(|info| info.contains("master_link_status:up"))
        });
        let port = free_port();
        let path = create_dir("sentinel").join("sentinel.conf");
        std::fs::write(
            &path,
            format!(
                "port {port}\nbind 127.0.0.1\nsentinel monitor chatmesh {master_address} 1\n\
                 sentinel down-after-milliseconds chatmesh 1000\n\
                 sentinel failover-timeout chatmesh 5000\n"
            ),
        )
        .unwrap();
        let sentinel = RedisServer::start_sentinel(port, &path);
        wait_for_redis("sentinel knows the replica", || {
            send_command(port, "SENTINEL MASTER chatmesh")
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

/// A cluster of two masters with half of the slots each.
pub(crate) struct Cluster {
    pub(crate) nodes: [RedisServer; 2],
    _dir: TempDir,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bus_ports = [free_port(), free_port()];
        let nodes = [0, 1].map(|number| {
            let path = dir.path().join(number.to_string());
            std::fs::create_dir(&path).unwrap();
            let bus_port = bus_ports[number].to_string();
            let options = ["--cluster-enabled", "yes", "--cluster-port", &bus_port];
            RedisServer::start(free_port(), &path, &options)
        });
        for (node, slots) in nodes.iter().zip(["0 8191", "8192 16383"]) {
            send_command(node.port, &format!("CLUSTER ADDSLOTSRANGE {slots}")).unwrap();
        }
        send_command(nodes[1].port, "CLUSTER SET-CONFIG-EPOCH 2").unwrap();
        let meet = format!("CLUSTER MEET 127.0.0.1 {} {}", nodes[1].port, bus_ports[1]);
        send_command(nodes[0].port, &meet).unwrap();
        wait_for_redis("the cluster is complete", || {
            nodes.iter().all(|node| {
                send_command(node.port, "CLUSTER INFO").is_some_and(|info| {
                    info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:2")
                })
            })
        });
        Self { nodes, _dir: dir }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis-cluster://127.0.0.1:{}", self.nodes[0].port)
    }

    /// The node that owns a slot unless it was moved.
    pub(crate) fn first_owner(slot: u16) -> usize {
        usize::from(slot > 8191)
    }

    /// Moves the slot of a key to the other node. The slot must be empty, and never moved before.
    pub(crate) fn move_slot_of(&self, key: &str) {
        let slot = send_command(self.nodes[0].port, &format!("CLUSTER KEYSLOT {key}")).unwrap();
        let slot = slot.trim().trim_start_matches(':').parse().unwrap();
        SlotMigration::start(self, slot, Self::first_owner(slot)).complete();
    }
}

/// A slot that migrates from one node of a cluster to the other.
pub(crate) struct SlotMigration {
    slot: u16,
    source_port: u16,
    target_port: u16,
    target_id: String,
}

impl SlotMigration {
    /// Announces the migration to both nodes. From then on, the source asks clients to go to the
    /// target for keys that it does not have.
    pub(crate) fn start(cluster: &Cluster, slot: u16, source: usize) -> Self {
        let (source_port, target_port) =
            (cluster.nodes[source].port, cluster.nodes[1 - source].port);
        let node_id = |port: u16| {
            let reply = send_command(port, "CLUSTER MYID").unwrap();
            reply.lines().nth(1).unwrap().to_owned()
        };
        let migration = Self {
            slot,
            source_port,
            target_port,
            target_id: node_id(target_port),
        };
        migration.set_slot(target_port, &format!("IMPORTING {}", node_id(source_port)));
        migration.set_slot(source_port, &format!("MIGRATING {}", migration.target_id));
        migration
    }

    fn set_slot(&self, port: u16, change: &str) {
        let command = format!("CLUSTER SETSLOT {} {change}", self.slot);
        let reply = send_command(port, &command).unwrap();
        assert!(reply.starts_with("+OK"), "{reply}");
    }

    /// Moves at most `count` keys. Returns false if the source has no more keys.
    pub(crate) fn move_keys(&self, count: usize) -> bool {
        let command = format!("CLUSTER GETKEYSINSLOT {} {count}", self.slot);
        let reply = send_command(self.source_port, &command).unwrap();
        let keys: Vec<_> = reply.lines().filter(|line| line.starts_with('{')).collect();
        for key in &keys {
            let command = format!("MIGRATE 127.0.0.1 {} {key} 0 5000", self.target_port);
            let reply = send_command(self.source_port, &command).unwrap();
            // A key that has expired since is no longer there.
            assert!(reply == "+OK" || reply == "+NOKEY", "{key}: {reply}");
        }
        !keys.is_empty()
    }

    /// Number of keys of the slot that the source and the target have.
    pub(crate) fn key_counts(&self) -> [usize; 2] {
        [self.source_port, self.target_port].map(|port| {
            let command = format!("CLUSTER COUNTKEYSINSLOT {}", self.slot);
            let reply = send_command(port, &command).unwrap();
            reply.trim_start_matches(':').parse().unwrap()
        })
    }

    /// Sends a command to the source, and returns its reply.
    pub(crate) fn send_to_source(&self, command: &str) -> String {
        send_command(self.source_port, command).unwrap()
    }

    /// Sends a command to the target as a client does that the source has asked to do so.
    pub(crate) fn send_to_target_asking(&self, command: &str) -> String {
        let mut connection = TcpStream::connect(("127.0.0.1", self.target_port)).unwrap();
        let commands = format!("ASKING\r\n{command}\r\n");
        connection.write_all(commands.as_bytes()).unwrap();
        let mut replies = BufReader::new(connection).lines();
        assert_eq!(replies.next().unwrap().unwrap(), "+OK");
        replies.next().unwrap().unwrap()
    }

    /// Makes the target the owner of the slot.
    pub(crate) fn complete(self) {
        for port in [self.target_port, self.source_port] {
            self.set_slot(port, &format!("NODE {}", self.target_id));
        }
    }
}

/// Records the commands that a server executes for its clients.
pub(crate) struct Monitor {
    connection: TcpStream,
    reader: JoinHandle<Vec<String>>,
    port: u16,
}

impl Monitor {
    pub(crate) fn start(port: u16) -> Self {
        let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
        connection.write_all(b"MONITOR\r\n").unwrap();
        let mut lines = BufReader::new(connection.try_clone().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "+OK");
        let reader = std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .take_while(|line| !line.contains(END_OF_MONITOR))
                .filter_map(|line| {
                    // `+1700000000.1 [0 127.0.0.1:1000] "GET" "key"`; calls of scripts have `lua`
                    // in place of the address.
                    let (client, command) = line.split_once("] ")?;
                    (!client.ends_with("lua")).then(|| command.to_owned())
                })
                .collect()
        });
        Self {
            connection,
            reader,
            port,
        }
    }

    /// Returns the commands so far, with quoted arguments.
    pub(crate) fn stop(self) -> Vec<String> {
        send_command(self.port, &format!("ECHO {END_OF_MONITOR}")).unwrap();
        let commands = self.reader.join().unwrap();
        drop(self.connection);
        commands
    }
}

/// Argument of the command that ends the recording of a [`Monitor`].
const END_OF_MONITOR: &str = "end-of-monitor";
