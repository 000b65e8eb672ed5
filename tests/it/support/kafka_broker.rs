//! Private Kafka brokers, for tests that stop or break them. Other tests use the shared broker. No
//! other test code starts a broker.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use chatmesh::config::settings::KafkaSettings;
use tempfile::TempDir;

pub(crate) use crate::settings::kafka_settings;

use super::kafka_client::{KafkaClient, metadata_within};
use super::process::{free_port, signal};

/// Limit for the start of a broker. Generous, because the machine may be busy.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A broker that is its own controller, on free loopback ports and with a folder of its own. Drop
/// kills it.
pub(crate) struct KafkaBroker {
    folder: TempDir,
    port: u16,
    process: Option<Child>,
}

impl KafkaBroker {
    /// Formats the folder of a broker and chooses its address, without starting it. `settings` are
    /// lines of `server.properties` that override the defaults.
    pub(crate) fn prepare(settings: &str) -> Self {
        Self::prepare_on("", "", "", settings)
    }

    /// Like [`KafkaBroker::prepare`], with additional listeners. `settings` has three lines: a text
    /// to append to `listeners`, a text to append to `advertised.listeners`, and the complete value
    /// of `listener.security.protocol.map`.
    pub(crate) fn prepare_with_listeners(settings: &str) -> Self {
        let mut lines = settings.lines();
        let mut next_line = || lines.next().expect("three lines");
        let (listeners, advertised, protocols) = (next_line(), next_line(), next_line());
        let protocols = format!("listener.security.protocol.map={protocols}");
        Self::prepare_on(listeners, advertised, &protocols, "")
    }

    fn prepare_on(listeners: &str, advertised: &str, protocols: &str, settings: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (port, controller) = (free_port(), free_port());
        let data = folder.path().join("data");
        let mut properties = format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{listeners}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}{advertised}\n\
             {protocols}\n\
             controller.listener.names=CONTROLLER\n\
             inter.broker.listener.name=PLAINTEXT\n\
             log.dirs={}\n\
             offsets.topic.replication.factor=1\n\
             offsets.topic.num.partitions=4\n\
             transaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\n\
             group.initial.rebalance.delay.ms=0\n\
             num.partitions=4\n\
             broker.session.timeout.ms=3000\n\
             broker.heartbeat.interval.ms=500\n",
            data.display()
        );
        writeln!(properties, "{settings}").unwrap();
        std::fs::write(folder.path().join("server.properties"), properties).unwrap();
        let broker = Self {
            folder,
            port,
            process: None,
        };
        let output = broker
            .java("kafka.tools.StorageTool")
            .args(["format", "-t", &cluster_id(), "-c"])
            .arg(broker.folder.path().join("server.properties"))
            .output()
            .expect("java runs (install a JRE of 17 or newer)");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        broker
    }

    /// Starts a broker and waits until it answers.
    pub(crate) async fn start() -> Self {
        let mut broker = Self::prepare("");
        broker.spawn_and_wait().await;
        broker
    }

    /// Starts the process, for the first time or again, and waits until it answers.
    pub(crate) async fn spawn_and_wait(&mut self) {
        self.spawn();
        self.wait_ready().await;
    }

    /// Starts the process without waiting.
    pub(crate) fn spawn(&mut self) {
        assert!(self.process.is_none(), "the broker is already running");
        let log_file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("broker.log"))
            .expect("a log file");
        let process = self
            .java("kafka.Kafka")
            .arg(self.folder.path().join("server.properties"))
            .stdout(log_file.try_clone().expect("a log file"))
            .stderr(log_file)
            .spawn()
            .expect("java runs");
        self.process = Some(process);
    }

    /// Waits until a client receives metadata from the broker.
    pub(crate) async fn wait_ready(&mut self) {
        let address = self.address();
        let wait = tokio::task::spawn_blocking(move || metadata_within(&address, START_TIMEOUT));
        let is_ready = wait.await.expect("the wait for the broker");
        assert!(is_ready, "the broker does not answer\n{}", self.log());
    }

    /// `host:port` of the broker.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The settings of a chatmesh client of this broker.
    pub(crate) fn client_settings(&self) -> KafkaSettings {
        kafka_settings(&self.address(), &[])
    }

    /// A client that does not use chatmesh's code.
    pub(crate) fn kafka_client(&self) -> KafkaClient {
        KafkaClient::new(&self.address())
    }

    /// Sends SIGKILL and waits for the exit.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("kill");
            process.wait().expect("wait");
        }
    }

    /// Sends SIGTERM and waits for the exit.
    pub(crate) fn terminate(&mut self) {
        self.signal("TERM");
        if let Some(mut process) = self.process.take() {
            process.wait().expect("wait");
        }
    }

    /// Sends SIGSTOP. The connections stay open, but the broker answers nothing.
    pub(crate) fn pause(&self) {
        self.signal("STOP");
    }

    /// Sends SIGCONT.
    pub(crate) fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let process = self.process.as_ref().expect("the broker runs");
        signal(process.id(), name);
    }

    fn java(&self, class: &str) -> Command {
        let mut java = Command::new("java");
        // The broker of a test runs for seconds, so optimizing its code costs more time than it
        // saves.
        java.args([
            "-XX:TieredStopAtLevel=1",
            "-XX:+UseSerialGC",
            "-Xmx512m",
            "-cp",
        ])
        .arg(jar_folder().join("*"))
        .arg(class)
        .current_dir(self.folder.path())
        .stdin(Stdio::null());
        java
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("broker.log")).unwrap_or_default()
    }
}

impl Drop for KafkaBroker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The folder of the jar files of Kafka.
fn jar_folder() -> PathBuf {
    let folder = std::env::var_os("TEST_KAFKA_JARS").map_or_else(
        || {
            let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
                || PathBuf::from(std::env::var_os("HOME").expect("HOME")).join(".cache"),
                PathBuf::from,
            );
            cache.join("chatmesh").join("kafka-4.1.1")
        },
        PathBuf::from,
    );
    assert!(
        folder.is_dir(),
        "no Kafka in {}: use tests/run",
        folder.display()
    );
    folder
}

/// A cluster id: 16 random bytes in URL-safe base64 without padding.
fn cluster_id() -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    // The first bit is zero, so the id does not begin with a dash, which would be parsed as an
    // option.
    let bits = uuid::Uuid::new_v4().as_u128() >> 1;
    (0..22)
        .map(|index| {
            let shift = 122 - 6 * index;
            let six_bits = if shift >= 0 {
                bits >> shift
            } else {
                bits << -shift
            };
            char::from(LETTERS[usize::try_from(six_bits & 63).unwrap()])
        })
        .collect()
}
