//! Groups of Redis servers that a test may stop and reconfigure: sentinel and cluster.

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

    /// Moves the slot of a key to the other node. The slot must be empty.
    pub(crate) fn move_slot_of(&self, key: &str) {
        let slot = send_command(self.nodes[0].port, &format!("CLUSTER KEYSLOT {key}")).unwrap();
        let slot: u16 = slot.trim().trim_start_matches(':').parse().unwrap();
        let node_ids = [0, 1].map(|number: usize| {
            let reply = send_command(self.nodes[number].port, "CLUSTER MYID").unwrap();
            reply.lines().nth(1).unwrap().to_owned()
        });
        let source_index = usize::from(slot > 8191);
        let (source, target) = (
            self.nodes[source_index].port,
            self.nodes[1 - source_index].port,
        );
        let (source_id, target_id) = (&node_ids[source_index], &node_ids[1 - source_index]);
        for (port, change) in [
            (target, format!("IMPORTING {source_id}")),
            (source, format!("MIGRATING {target_id}")),
            (target, format!("NODE {target_id}")),
            (source, format!("NODE {target_id}")),
        ] {
            let reply = send_command(port, &format!("CLUSTER SETSLOT {slot} {change}")).unwrap();
            assert!(reply.starts_with("+OK"), "{reply}");
        }
    }
}
