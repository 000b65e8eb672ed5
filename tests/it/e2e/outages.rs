//! Outages of Kafka and Redis under load, with and without a loss of data; and roles that start
//! before their backends.

use std::time::Duration;

use super::load::{Load, LoadPlan, assert_accepted_ended_once};
use crate::support::classic::ClassicClient;
use crate::support::model::{Script, ScriptedModel};
use crate::support::process::ChatmeshProcess;
use crate::support::stack::{MESSAGES, Stack};
use crate::support::{TEST_TIMEOUT, http, wait_until};

const PLAN: LoadPlan = LoadPlan {
    users: 30,
    messages_per_user: 20,
    send_interval: Duration::from_millis(700),
    limit: Duration::from_secs(120),
    quiet_period: Duration::from_secs(12),
};

/// One process of each role and its backends.
struct RunningSystem {
    gateway: ChatmeshProcess,
    worker: ChatmeshProcess,
    relay: ChatmeshProcess,
    // Dropped last, because the roles must stop before their backends.
    stack: Stack,
}

impl RunningSystem {
    async fn start() -> Self {
        let model = ScriptedModel::start_with(|request| {
            Script::echo(request)
                .chunk_interval(Duration::from_millis(15))
                .into()
        })
        .await;
        let stack = Stack::start_with(model).await;
        Self {
            gateway: stack.gateway("server_1").start().await,
            worker: stack.worker("worker_1").start().await,
            relay: stack.relay("relay_1").start().await,
            stack,
        }
    }

    async fn start_load(&self) -> Load {
        let load = Load::start(&[self.gateway.port()], PLAN).await;
        self.wait_for_progress().await;
        load
    }

    /// Waits until more than [`LoadPlan::users`] further messages reach the model.
    async fn wait_for_progress(&self) {
        let previous_requests = self.stack.model.request_count();
        wait_until("more messages reach the model", TEST_TIMEOUT, || async {
            self.stack.model.request_count() > previous_requests + PLAN.users
        })
        .await;
    }

    async fn wait_unready(&self) {
        wait_until("every role is unready", TEST_TIMEOUT, || async {
            let roles = [&self.gateway, &self.worker, &self.relay];
            for role in roles {
                if role.is_ready().await {
                    return false;
                }
            }
            true
        })
        .await;
    }

    async fn wait_ready(&mut self) {
        for role in [&mut self.gateway, &mut self.worker, &mut self.relay] {
            role.wait_ready(TEST_TIMEOUT).await;
        }
    }

    async fn assert_nothing_lost(mut self, load: Load) {
        let all_frames = load.finish().await;
        let message_count = PLAN.users * PLAN.messages_per_user;
        let kafka = self.stack.kafka_client();
        let records = kafka
            .read(MESSAGES, 2 * message_count, Duration::from_secs(5))
            .await;
        assert_accepted_ended_once(&all_frames, &records, PLAN.messages_per_user);
        self.wait_ready().await;
        // The system has recovered without being restarted, and answers new messages.
        let mut client = ClassicClient::open(self.gateway.port(), "afterwards").await;
        assert_eq!(
            client.send_and_wait("hello").await["content"],
            "echo: hello"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_emptied_under_load_loses_no_answer() {
    let running = RunningSystem::start().await;
    let load = running.start_load().await;
    running.stack.redis.flush_all();
    running.wait_for_progress().await;
    running.stack.redis.flush_all();
    running.assert_nothing_lost(load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_restarted_with_its_data_under_load_loses_no_answer() {
    let mut running = RunningSystem::start().await;
    let load = running.start_load().await;
    running.stack.redis.kill();
    running.wait_unready().await;
    running.stack.redis.restart().await;
    running.wait_ready().await;
    running.assert_nothing_lost(load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_restarted_empty_under_load_loses_no_answer() {
    let mut running = RunningSystem::start().await;
    let load = running.start_load().await;
    running.stack.redis.restart_empty().await;
    running.wait_ready().await;
    running.assert_nothing_lost(load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_paused_under_load_loses_no_answer() {
    let mut running = RunningSystem::start().await;
    let load = running.start_load().await;
    running.stack.redis.pause();
    running.wait_unready().await;
    running.stack.redis.resume();
    running.wait_ready().await;
    running.assert_nothing_lost(load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_killed_and_restarted_under_load_loses_no_answer() {
    let mut running = RunningSystem::start().await;
    let load = running.start_load().await;
    running.stack.kafka.kill();
    running.wait_unready().await;
    running.stack.kafka.spawn_and_wait().await;
    running.wait_ready().await;
    running.assert_nothing_lost(load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn role_started_before_its_backends_is_unready_until_they_start() {
    let mut stack = Stack::prepare(ScriptedModel::start().await).await;
    let mut gateway = stack.gateway("server_1").spawn();
    let mut worker = stack.worker("worker_1").spawn();
    let mut relay = stack.relay("relay_1").spawn();
    for role in [&gateway, &worker, &relay] {
        wait_until(
            "the role is alive and names its missing backends",
            TEST_TIMEOUT,
            || async {
                let ready_url = role.url("/health/ready");
                let Ok(reply) = http::try_call(reqwest::Method::GET, &ready_url, &[]).await else {
                    return false;
                };
                let body = reply.body.to_lowercase();
                reply.status == 503 && (body.contains("kafka") || body.contains("redis"))
            },
        )
        .await;
        assert_eq!(http::get(&role.url("/health/live")).await.status, 200);
        role.wait_for_log("waiting for kafka", TEST_TIMEOUT).await;
        role.wait_for_log("waiting for redis", TEST_TIMEOUT).await;
    }
    stack.redis.restart().await;
    for role in [&gateway, &worker, &relay] {
        wait_until("only Kafka is missing", TEST_TIMEOUT, || async {
            let reply = http::get(&role.url("/health/ready")).await;
            let body = reply.body.to_lowercase();
            reply.status == 503 && body.contains("kafka") && !body.contains("redis")
        })
        .await;
    }
    stack.kafka.spawn_and_wait().await;
    for role in [&mut gateway, &mut worker, &mut relay] {
        role.wait_ready(TEST_TIMEOUT).await;
    }
    let mut client = ClassicClient::open(gateway.port(), "alice").await;
    assert_eq!(
        client.send_and_wait("hello").await["content"],
        "echo: hello"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn role_waiting_for_its_backends_exits_on_sigterm() {
    let stack = Stack::prepare(ScriptedModel::start().await).await;
    for spec in [
        stack.gateway("server_1"),
        stack.worker("worker_1"),
        stack.relay("relay_1"),
    ] {
        let mut role = spec.spawn();
        wait_until("the role is alive", TEST_TIMEOUT, || async {
            let url = role.url("/health/live");
            http::try_call(reqwest::Method::GET, &url, &[])
                .await
                .is_ok()
        })
        .await;
        role.drain().await;
    }
}
