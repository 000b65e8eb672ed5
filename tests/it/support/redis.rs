//! A Redis of a test's own, to be killed, emptied and frozen; and plain access to any Redis.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fred::interfaces::ClientLike;
use tempfile::TempDir;

use super::process::{free_port, signal};
use super::{SOON, eventually};

/// A private `redis-server`; killed when dropped.
#[derive(Debug)]
pub(crate) struct PrivateRedis {
    port: u16,
    dir: TempDir,
    child: Option<Child>,
}

impl PrivateRedis {
    /// Starts one that keeps its data in an append-only file.
    pub(crate) async fn start() -> Self {
        let mut redis = Self::not_started();
        redis.restart().await;
        redis
    }

    /// Its address is known, but nothing is there yet; [`PrivateRedis::restart`] starts it.
    pub(crate) fn not_started() -> Self {
        Self {
            port: free_port(),
            dir: tempfile::tempdir().expect("a temporary folder"),
            child: None,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Starts it on the data that it had.
    pub(crate) async fn restart(&mut self) {
        self.kill9();
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string()])
            .args(["--appendonly", "yes", "--appendfsync", "everysec"])
            .args(["--save", ""])
            .arg("--dir")
            .arg(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start redis-server (tests/run installs it)");
        self.child = Some(child);
        eventually("a private Redis answers", SOON, || async { self.answers() }).await;
    }

    /// Starts it with nothing, as a server that lost its disk.
    pub(crate) async fn restart_empty(&mut self) {
        self.kill9();
        for entry in std::fs::read_dir(self.dir.path()).expect("the data's folder") {
            let path = entry.expect("an entry of the data's folder").path();
            if path.is_dir() {
                std::fs::remove_dir_all(path).expect("remove data");
            } else {
                std::fs::remove_file(path).expect("remove data");
            }
        }
        self.restart().await;
    }

    /// Ends it as a crash would. What it had written to its file stays.
    pub(crate) fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Freezes it (SIGSTOP): connections stay open and nothing answers.
    pub(crate) fn freeze(&self) {
        if let Some(child) = &self.child {
            signal(child.id(), "STOP");
        }
    }

    /// Lets it go on (SIGCONT).
    pub(crate) fn thaw(&self) {
        if let Some(child) = &self.child {
            signal(child.id(), "CONT");
        }
    }

    /// Removes every key.
    pub(crate) fn flush_all(&self) {
        assert_eq!(self.inline("FLUSHALL").as_deref(), Some("+OK"));
    }

    /// Closes every connection that listens to channels.
    pub(crate) fn kill_subscribers(&self) {
        let _ = self.inline("CLIENT KILL TYPE pubsub");
    }

    fn answers(&self) -> bool {
        self.inline("PING").as_deref() == Some("+PONG")
    }

    /// A command that must be answered by OK.
    pub(crate) fn ok(&self, command: &str) {
        assert_eq!(self.inline(command).as_deref(), Some("+OK"), "{command}");
    }

    fn inline(&self, command: &str) -> Option<String> {
        inline(self.port, command)
    }
}

/// How many keys it has.
pub(crate) fn keys(port: u16) -> usize {
    let said = inline(port, "DBSIZE").unwrap_or_default();
    said.trim_start_matches(':')
        .parse()
        .unwrap_or_else(|_| panic!("DBSIZE: {said}"))
}

/// A command without a client library; the first line of its answer.
pub(super) fn inline(port: u16, command: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(format!("{command}\r\n").as_bytes()).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    Some(line.trim_end().to_owned())
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        self.kill9();
    }
}

fn plain_config(url: &str) -> fred::types::config::Config {
    fred::types::config::Config::from_url(url).expect("a Redis URL")
}

/// A connected client without any of chatmesh's code.
pub(crate) async fn plain_client(url: &str) -> fred::clients::Client {
    let client = fred::clients::Client::new(plain_config(url), None, None, None);
    client.init().await.expect("connect to Redis");
    client
}

/// What the original gateway does: subscribes to `user:{userid}` by plain pub/sub. Every payload
/// comes out of the channel in order.
pub(crate) async fn subscribe(
    url: &str,
    channel: &str,
) -> (
    fred::clients::SubscriberClient,
    tokio::sync::mpsc::UnboundedReceiver<String>,
) {
    use fred::interfaces::{EventInterface, PubsubInterface};
    let performance = fred::types::config::PerformanceConfig {
        // The default of 32 loses what a busy test does not read at once.
        broadcast_channel_capacity: 65_536,
        ..Default::default()
    };
    let client =
        fred::clients::SubscriberClient::new(plain_config(url), Some(performance), None, None);
    client.init().await.expect("connect to Redis");
    let mut messages = client.message_rx();
    client.subscribe(channel).await.expect("subscribe");
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok(message) = messages.recv().await {
            let text = message.value.convert::<String>().expect("text");
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    (client, receiver)
}
