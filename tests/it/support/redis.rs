//! A private Redis that a test can kill, empty and pause; and Redis clients that do not use
//! chatmesh's code.

use fred::interfaces::ClientLike;
use tempfile::TempDir;

use super::process::free_port;
use super::redis_server::{RedisServer, send_command};

/// Options of a server that recovers its data after a crash: an append-only file that is synced
/// every second.
pub(super) const APPEND_ONLY: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "everysec"];

/// The Redis of one test, with an append-only file. Drop kills it.
#[derive(Debug)]
pub(crate) struct PrivateRedis {
    port: u16,
    dir: TempDir,
    server: Option<RedisServer>,
}

impl PrivateRedis {
    pub(crate) async fn start() -> Self {
        let mut redis = Self::prepare();
        redis.restart().await;
        redis
    }

    /// Chooses the address without starting a server; [`PrivateRedis::restart`] starts it.
    pub(crate) fn prepare() -> Self {
        Self {
            port: free_port(),
            dir: tempfile::tempdir().expect("a temporary folder"),
            server: None,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn pid(&self) -> u32 {
        self.server.as_ref().expect("a running server").pid()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Starts the server on the data of its append-only file. A running server is killed first.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        let (port, dir) = (self.port, self.dir.path().to_owned());
        let start = move || RedisServer::start(port, &dir, &APPEND_ONLY);
        let server = tokio::task::spawn_blocking(start).await;
        self.server = Some(server.expect("a started Redis"));
    }

    /// Starts the server without data, like one whose disk was lost.
    pub(crate) async fn restart_empty(&mut self) {
        self.kill();
        for entry in std::fs::read_dir(self.dir.path()).expect("the data folder") {
            let path = entry.expect("an entry of the data folder").path();
            if path.is_dir() {
                std::fs::remove_dir_all(path).expect("remove data");
            } else {
                std::fs::remove_file(path).expect("remove data");
            }
        }
        self.restart().await;
    }

    /// Sends SIGKILL. The append-only file remains.
    pub(crate) fn kill(&mut self) {
        self.server = None;
    }

    /// Sends SIGSTOP. The connections stay open, but the server answers nothing.
    pub(crate) fn pause(&self) {
        if let Some(server) = &self.server {
            server.pause();
        }
    }

    /// Sends SIGCONT.
    pub(crate) fn resume(&self) {
        if let Some(server) = &self.server {
            server.resume();
        }
    }

    /// Deletes every key.
    pub(crate) fn flush_all(&self) {
        self.expect_ok("FLUSHALL");
    }

    /// Closes every connection that subscribes to channels.
    pub(crate) fn kill_subscribers(&self) {
        let _ = send_command(self.port, "CLIENT KILL TYPE pubsub");
    }

    /// Sends a command and panics unless the reply is OK.
    pub(crate) fn expect_ok(&self, command: &str) {
        let reply = send_command(self.port, command);
        assert_eq!(reply.as_deref(), Some("+OK"), "{command}");
    }
}

/// The number of keys of a server.
pub(crate) fn key_count(port: u16) -> usize {
    let reply = send_command(port, "DBSIZE").unwrap_or_default();
    reply
        .trim_start_matches(':')
        .parse()
        .unwrap_or_else(|_| panic!("DBSIZE: {reply}"))
}

fn client_config(url: &str) -> fred::types::config::Config {
    fred::types::config::Config::from_url(url).expect("a Redis URL")
}

/// Connects a client that does not use chatmesh's code.
pub(crate) async fn redis_client(url: &str) -> fred::clients::Client {
    let client = fred::clients::Client::new(client_config(url), None, None, None);
    client.init().await.expect("connect to Redis");
    client
}

/// Subscribes to a channel by plain pub/sub, as the original gateway does. Returns the client
/// that holds the connection, and a receiver of the payloads in order.
pub(crate) async fn subscribe(
    url: &str,
    channel: &str,
) -> (
    fred::clients::SubscriberClient,
    tokio::sync::mpsc::UnboundedReceiver<String>,
) {
    use fred::interfaces::{EventInterface, PubsubInterface};
    let performance = fred::types::config::PerformanceConfig {
        // With the default capacity of 32, a busy test would lose messages that it does not read
        // at once.
        broadcast_channel_capacity: 65_536,
        ..Default::default()
    };
    let client =
        fred::clients::SubscriberClient::new(client_config(url), Some(performance), None, None);
    client.init().await.expect("connect to Redis");
    let mut messages = client.message_rx();
    client.subscribe(channel).await.expect("subscribe");
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok(message) = messages.recv().await {
            let text = message.value.convert::<String>().expect("a text");
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    (client, receiver)
}
