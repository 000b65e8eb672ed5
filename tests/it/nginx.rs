//! The shipped nginx configuration, run by a real nginx in front of real gateways.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::support::browser::Browser;
use crate::support::classic::ClassicClient;
use crate::support::model::Script;
use crate::support::process::{ChatmeshProcess, free_port};
use crate::support::stack::Stack;
use crate::support::v1::{Transcript, V1Client};
use crate::support::{TEST_TIMEOUT, http, wait_until};

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/nginx.conf");
/// The token of all clients, which the logs must not contain.
const TOKEN: &str = "very-secret-token";

/// A running nginx; killed when dropped.
pub(crate) struct Nginx {
    pub(crate) port: u16,
    dir: TempDir,
    child: Child,
}

/// Debian installs nginx in a directory that is not in every user's path.
fn nginx_command() -> Command {
    let sbin = Path::new("/usr/sbin/nginx");
    Command::new(if sbin.exists() {
        sbin
    } else {
        "nginx".as_ref()
    })
}

/// Writes the shipped file with this test's addresses and folder, and otherwise unchanged.
fn write_config(dir: &Path, port: u16, gateways: [u16; 2]) -> PathBuf {
    let mut text = std::fs::read_to_string(SHIPPED).unwrap();
    let folder = dir.display();
    let replacements = [
        // This is replaced first, because the folder itself may be below /tmp.
        (" /tmp/", format!(" {folder}/")),
        ("listen 8080 ", format!("listen 127.0.0.1:{port} ")),
        ("gateway-1:8000", format!("127.0.0.1:{}", gateways[0])),
        ("gateway-2:8000", format!("127.0.0.1:{}", gateways[1])),
        ("/dev/stdout", format!("{folder}/access.log")),
        ("/dev/stderr", format!("{folder}/error.log")),
    ];
    for (shipped, replacement) in replacements {
        assert!(text.contains(shipped), "{shipped} is not in {SHIPPED}");
        text = text.replace(shipped, &replacement);
    }
    let file = dir.join("nginx.conf");
    std::fs::write(&file, text).unwrap();
    file
}

impl Nginx {
    /// Checks the configuration by `nginx -t` and starts on it.
    pub(crate) async fn start(gateways: [u16; 2]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let file = write_config(dir.path(), port, gateways);
        let add_arguments = |command: &mut Command| {
            command.arg("-p").arg(dir.path()).arg("-c").arg(&file);
            command.arg("-e").arg(dir.path().join("error.log"));
        };
        let mut check = nginx_command();
        add_arguments(&mut check);
        let output = check
            .arg("-t")
            .output()
            .expect("run nginx (tests/run installs it)");
        let messages = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "nginx -t: {messages}");
        assert!(!messages.contains("[warn]"), "nginx -t: {messages}");

        let mut run = nginx_command();
        add_arguments(&mut run);
        let child = run
            .args(["-g", "daemon off;"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let nginx = Self { port, dir, child };
        wait_until("nginx answers", TEST_TIMEOUT, || async {
            http::try_call(reqwest::Method::GET, &nginx.url("/health/live"), &[])
                .await
                .is_ok_and(|reply| reply.status == 200)
        })
        .await;
        nginx
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    /// Connects through nginx, which must always find a gateway.
    async fn open(&self, user: &str) -> ClassicClient {
        ClassicClient::connect(self.port, TOKEN, user)
            .await
            .unwrap_or_else(|refused| panic!("{user} was refused: {refused:?}"))
    }

    fn assert_no_token_in_the_logs(&self) {
        let access = self.log("access.log");
        assert!(access.contains(r#""path":"/ws""#), "{access}");
        for line in access.lines() {
            serde_json::from_str::<serde_json::Value>(line)
                .unwrap_or_else(|error| panic!("not JSON ({error}): {line}"));
        }
        for log in [access, self.log("error.log")] {
            assert!(!log.contains(TOKEN), "{log}");
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // SIGTERM also stops nginx's worker processes.
        crate::support::process::signal(self.child.id(), "TERM");
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!(
                "--- nginx ---\n{}{}",
                self.log("error.log"),
                self.log("access.log")
            );
        }
    }
}

/// The number of open connections of a gateway, by its metric.
async fn connection_count(gateway: &ChatmeshProcess) -> usize {
    let text = http::get(&gateway.url("/metrics")).await.body;
    text.lines()
        .find_map(|line| line.strip_prefix("websocket_connections_active{"))
        .and_then(|rest| rest.rsplit(' ').next()?.parse().ok())
        .unwrap_or(0)
}

/// Number of `chatmesh.v1` clients that `start_load` starts.
const V1_CLIENTS: usize = 20;
const MESSAGE_IDS: [&str; 3] = ["1", "2", "3"];

/// Starts clients that each send three messages and reconnect until all are answered. Returns once
/// the model has received half as many calls as there are clients.
async fn start_load(stack: &Stack, nginx: &Nginx) -> Vec<JoinHandle<(V1Client, usize)>> {
    let prompt = |n: usize, id: &str| format!("load {n} {id}");
    let mut clients = Vec::new();
    for n in 0..V1_CLIENTS {
        let prompts = MESSAGE_IDS.map(|id| prompt(n, id));
        for text in &prompts {
            let slow = Script::complete(&format!("answer to {text} in some words"));
            stack
                .model
                .queue_answer(text, slow.chunk_interval(Duration::from_millis(150)));
        }
        let mut v1_client = V1Client::new(&format!("loaded{n}"));
        TOKEN.clone_into(&mut v1_client.token);
        v1_client.connect(nginx.port).await;
        let port = nginx.port;
        clients.push(tokio::spawn(async move {
            // All messages are in one conversation, so they are answered one after the other, and
            // some answers have not started when the gateway stops.
            for (id, text) in MESSAGE_IDS.iter().zip(&prompts) {
                v1_client.send_message(id, text).await;
            }
            let mut close_count = 0;
            let all_ended = |transcript: &Transcript| {
                let ended = |id| transcript.get(id).is_some_and(|m| m.terminal.is_some());
                MESSAGE_IDS.into_iter().all(ended)
            };
            if !v1_client.wait_for_or_close("all answers", all_ended).await {
                assert_eq!(v1_client.close_code, Some(1001), "{}", v1_client.user);
                close_count += 1;
                let texts = prompts.iter().map(String::as_str);
                let messages: Vec<(&str, &str)> = MESSAGE_IDS.into_iter().zip(texts).collect();
                v1_client.reconnect_until_ended(&[port], &messages).await;
            }
            (v1_client, close_count)
        }));
    }
    wait_until("answers are in progress", TEST_TIMEOUT, || async {
        stack.model.request_count() >= V1_CLIENTS / 2
    })
    .await;
    clients
}

/// Asserts that every message has one complete answer and one model call, and that the clients of
/// the stopped gateway reconnected.
async fn assert_all_answered_once(stack: &Stack, load: Vec<JoinHandle<(V1Client, usize)>>) {
    let mut reconnected = 0;
    for (n, task) in load.into_iter().enumerate() {
        let (v1_client, close_count) = task.await.unwrap();
        reconnected += close_count;
        for id in MESSAGE_IDS {
            let message = v1_client.message(id);
            assert_eq!(
                message.outcome_type(),
                Some("response"),
                "{}",
                v1_client.user
            );
            assert_eq!(
                message.text,
                format!("answer to load {n} {id} in some words")
            );
            assert_eq!(stack.model.request_count_for(&format!("load {n} {id}")), 1);
        }
        // The first `welcome` has nothing to recover; the one after the stop recovers everything.
        assert_eq!(
            v1_client.transcript.reloads(),
            1,
            "{} had to reload",
            v1_client.user
        );
    }
    assert!(
        reconnected >= V1_CLIENTS / 4,
        "about half of {V1_CLIENTS} were on the gateway that stopped, {reconnected} reconnected"
    );
}

async fn assert_answered(client: &mut ClassicClient, text: &str) {
    let answer = client.send_and_wait(text).await;
    assert_eq!(answer["type"], "response", "{answer}");
    assert!(answer.to_string().contains(text), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_balanced_and_no_token_is_logged() {
    // Half of the connections use `chatmesh.v1`, the other half the classic protocol.
    const CONNECTIONS: usize = 1000;
    // Several connections are opened at the same time, so that the processes of nginx must share
    // their counts.
    const CONCURRENT: usize = 20;
    let stack = Stack::start().await;
    let gateway_1 = stack.gateway("server_1").start().await;
    let gateway_2 = stack.gateway("server_2").start().await;
    let _worker = stack.worker("worker_1").start().await;
    let _relay = stack.relay("relay_1").start().await;
    let nginx = Nginx::start([gateway_1.port(), gateway_2.port()]).await;

    let (mut clients, mut v1_clients) = (Vec::new(), Vec::new());
    for batch_start in (0..CONNECTIONS / 2).step_by(CONCURRENT) {
        let numbers = batch_start..(batch_start + CONCURRENT).min(CONNECTIONS / 2);
        let classic = numbers.clone().map(|n| {
            let nginx = &nginx;
            async move { nginx.open(&format!("user{n}")).await }
        });
        clients.extend(futures_util::future::join_all(classic).await);
        let v1 = numbers.map(|n| {
            let port = nginx.port;
            async move {
                let mut v1_client = V1Client::new(&format!("device{n}"));
                TOKEN.clone_into(&mut v1_client.token);
                v1_client.connect(port).await;
                v1_client
            }
        });
        v1_clients.extend(futures_util::future::join_all(v1).await);
    }
    let (connections_1, connections_2) = (
        connection_count(&gateway_1).await,
        connection_count(&gateway_2).await,
    );
    assert_eq!(connections_1 + connections_2, CONNECTIONS);
    assert!(
        connections_1.abs_diff(connections_2) <= CONNECTIONS / 20,
        "{connections_1} and {connections_2}"
    );
    let last = CONNECTIONS / 2 - 1;
    for n in [0, 1, last] {
        assert_answered(&mut clients[n], &format!("hello {n}")).await;
        let answer = v1_clients[n]
            .send_and_wait("1", &format!("hello device {n}"))
            .await;
        assert_eq!(answer["content"], format!("echo: hello device {n}"));
    }
    // Clients that sent nothing have received nothing: their first frame belongs to this message.
    let silent = last / 2;
    assert_answered(&mut clients[silent], "first message").await;
    v1_clients[silent].send_message("1", "first message").await;
    let first_frame = v1_clients[silent].next_frame().await;
    assert_eq!(first_frame["id"], "1", "{first_frame}");
    assert_eq!(
        connection_count(&gateway_1).await + connection_count(&gateway_2).await,
        CONNECTIONS
    );

    let health = http::get(&nginx.url(&format!("/health?token={TOKEN}"))).await;
    assert_eq!(health.status, 200);
    assert_eq!(health.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(health.header("x-frame-options"), Some("DENY"));
    assert_eq!(health.header("referrer-policy"), Some("no-referrer"));
    assert_eq!(health.header("server"), Some("nginx"));
    for path in ["/", "/test-ui.html", "/chatmesh.js"] {
        let file = http::get(&nginx.url(path)).await;
        assert_eq!(file.status, 200, "{path}");
        let policies = file.headers.get_all("content-security-policy");
        let policies: Vec<_> = policies.iter().collect();
        assert_eq!(policies.len(), 1, "{policies:?}");
        let policy = policies[0].to_str().unwrap();
        let sockets = format!("ws://127.0.0.1:{}", nginx.port);
        assert!(policy.contains("default-src 'none'"), "{policy}");
        assert!(policy.contains(&sockets), "{policy}");
        for name in ["x-content-type-options", "referrer-policy", "etag"] {
            assert_eq!(file.headers.get_all(name).iter().count(), 1, "{name}");
        }
        let etag = file.header("etag").unwrap();
        let if_none_match = [("if-none-match", etag)];
        let cached = http::try_call(reqwest::Method::GET, &nginx.url(path), &if_none_match).await;
        assert_eq!(
            cached.unwrap().status,
            304,
            "both gateways have the same etag"
        );
    }
    for path in ["/metrics", "/metrics/"] {
        assert_eq!(http::get(&nginx.url(path)).await.status, 404);
    }
    let refused = ClassicClient::connect(nginx.port, "", "alice")
        .await
        .unwrap_err();
    assert_eq!(refused.status, 401, "{refused:?}");
    let long_token = "x".repeat(40_000);
    let refused = ClassicClient::connect(nginx.port, &long_token, "alice")
        .await
        .unwrap_err();
    assert_eq!(refused.status, 414, "{refused:?}");
    nginx.assert_no_token_in_the_logs();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_stopped_or_killed_gateway_reconnect_to_the_other_one() {
    const CONNECTIONS: usize = 40;
    let stack = Stack::start().await;
    let gateway_1_spec = stack.gateway("server_1");
    let mut gateway_1 = gateway_1_spec.start().await;
    let mut gateway_2 = stack.gateway("server_2").start().await;
    let _worker = stack.worker("worker_1").start().await;
    let _relay = stack.relay("relay_1").start().await;
    let nginx = Nginx::start([gateway_1.port(), gateway_2.port()]).await;

    let mut clients = Vec::new();
    for n in 0..CONNECTIONS {
        clients.push(nginx.open(&format!("user{n}")).await);
    }
    assert_eq!(connection_count(&gateway_1).await, CONNECTIONS / 2);
    let load = start_load(&stack, &nginx).await;

    // A draining gateway closes its connections with 1001, and nginx routes the clients to the
    // other one.
    gateway_1.drain().await;
    let mut closed_clients = 0;
    for (n, client) in clients.iter_mut().enumerate() {
        if let crate::support::classic::ClientEvent::Closed(code) =
            client.next_event(Duration::from_millis(50)).await
        {
            assert_eq!(code, Some(1001), "user{n}");
            closed_clients += 1;
            *client = nginx.open(&format!("user{n}")).await;
        }
    }
    assert_eq!(closed_clients, CONNECTIONS / 2);
    assert_all_answered_once(&stack, load).await;
    for (n, client) in clients.iter_mut().enumerate() {
        assert_answered(client, &format!("after a stop {n}")).await;
    }
    wait_until(
        "all clients are on the second gateway",
        TEST_TIMEOUT,
        || async { connection_count(&gateway_2).await == CONNECTIONS },
    )
    .await;

    // All connections are on the second gateway, which is killed.
    let gateway_1 = gateway_1_spec.start().await;
    wait_until(
        "the first gateway accepts clients again",
        TEST_TIMEOUT,
        || async {
            ClassicClient::connect(gateway_1.port(), TOKEN, "early")
                .await
                .is_ok()
        },
    )
    .await;
    gateway_2.kill();
    for (n, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.expect_close().await, None, "user{n}");
        *client = nginx.open(&format!("user{n}")).await;
    }
    for (n, client) in clients.iter_mut().enumerate() {
        assert_answered(client, &format!("after a kill {n}")).await;
    }
    wait_until(
        "all clients are on the first gateway",
        TEST_TIMEOUT,
        || async { connection_count(&gateway_1).await == CONNECTIONS },
    )
    .await;
    // nginx logs a connection when it ends.
    for client in clients {
        client.close().await;
    }
    let both_upstreams = format!(
        "127.0.0.1:{}, 127.0.0.1:{}",
        gateway_2.port(),
        gateway_1.port()
    );
    wait_until("nginx logs the second attempt", TEST_TIMEOUT, || async {
        nginx.log("access.log").contains(&both_upstreams)
    })
    .await;
    nginx.assert_no_token_in_the_logs();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chat_page_continues_an_answer_when_its_gateway_is_killed() {
    let stack = Stack::start().await;
    let mut gateway_1 = stack.gateway("server_1").start().await;
    let mut gateway_2 = stack.gateway("server_2").start().await;
    let _worker = stack.worker("worker_1").start().await;
    let _relay = stack.relay("relay_1").start().await;
    let nginx = Nginx::start([gateway_1.port(), gateway_2.port()]).await;
    let words: Vec<String> = (1..=150).map(|n| format!("word{n}")).collect();
    let text = words.join(" ");
    let slow_answer = Script::complete(&text).chunk_interval(Duration::from_millis(20));
    stack.model.queue_answer("count", slow_answer);

    let browser = Browser::start().await;
    browser.open(&nginx.url("/")).await;
    let connected = "document.getElementById('connection').dataset.state === 'open'";
    browser.wait_for(connected).await;
    browser.write("#message-input", "count\u{e007}").await;
    let answer_text = "(document.querySelector('.answer')?.innerText ?? '')";
    browser
        .wait_for(&format!("{answer_text}.includes('word10 ')"))
        .await;
    let active_gateway = if connection_count(&gateway_1).await == 1 {
        &mut gateway_1
    } else {
        &mut gateway_2
    };
    assert_eq!(connection_count(active_gateway).await, 1);
    active_gateway.kill();
    browser
        .wait_for(&format!("{answer_text}.includes('word150')"))
        .await;
    browser
        .wait_for("document.querySelector('.turn[aria-busy=false]')")
        .await;
    browser.wait_for(connected).await;
    assert_eq!(browser.text(answer_text).await.trim(), text);
    assert_eq!(
        stack.model.request_count_for("count"),
        1,
        "the model must be called once"
    );
}
