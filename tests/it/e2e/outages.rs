//! Kafka or Redis goes away under load, comes back, comes back empty, or is not there yet.

use std::time::Duration;

use super::load::{Load, Plan, assert_accepted_ended_once};
use crate::support::client::Classic;
use crate::support::model::{Script, ScriptedModel};
use crate::support::process::Chatmesh;
use crate::support::stack::{MESSAGES, Stack};
use crate::support::{SOON, eventually, http};

const PLAN: Plan = Plan {
    users: 30,
    messages: 20,
    pace: Duration::from_millis(700),
    limit: Duration::from_secs(120),
    quiet: Duration::from_secs(12),
};

struct Running {
    gateway: Chatmesh,
    worker: Chatmesh,
    relay: Chatmesh,
    // Last, so that it goes after the roles.
    stack: Stack,
}

impl Running {
    async fn start() -> Self {
        let model = ScriptedModel::start_with(|asked| {
            Script::echo(asked).paced(Duration::from_millis(15)).into()
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

    async fn load(&self) -> Load {
        let load = Load::start(&[self.gateway.port()], PLAN).await;
        self.goes_on().await;
        load
    }

    /// Some more messages reach the model.
    async fn goes_on(&self) {
        let mark = self.stack.model.count();
        eventually("the load goes on", SOON, || async {
            self.stack.model.count() > mark + PLAN.users
        })
        .await;
    }

    async fn unready(&self) {
        eventually("every role is unready", SOON, || async {
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

    async fn ready(&mut self) {
        for role in [&mut self.gateway, &mut self.worker, &mut self.relay] {
            role.ready(SOON).await;
        }
    }

    async fn check(mut self, load: Load) {
        let outcomes = load.finish().await;
        let count = PLAN.users * PLAN.messages;
        let plain = self.stack.plain();
        let records = plain
            .read(MESSAGES, 2 * count, Duration::from_secs(5))
            .await;
        assert_accepted_ended_once(&outcomes, &records, PLAN.messages);
        self.ready().await;
        // And it still works, without anybody's help.
        let mut client = Classic::open(self.gateway.port(), "afterwards").await;
        assert_eq!(client.ask("hello").await["content"], "echo: hello");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_emptied_under_load_loses_no_answer() {
    let running = Running::start().await;
    let load = running.load().await;
    running.stack.redis.flush_all();
    running.goes_on().await;
    running.stack.redis.flush_all();
    running.check(load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_restarted_with_its_data_under_load_loses_no_answer() {
    let mut running = Running::start().await;
    let load = running.load().await;
    running.stack.redis.kill9();
    running.unready().await;
    running.stack.redis.restart().await;
    running.ready().await;
    running.check(load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_restarted_empty_under_load_loses_no_answer() {
    let mut running = Running::start().await;
    let load = running.load().await;
    running.stack.redis.restart_empty().await;
    running.ready().await;
    running.check(load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_frozen_under_load_loses_no_answer() {
    let mut running = Running::start().await;
    let load = running.load().await;
    running.stack.redis.freeze();
    running.unready().await;
    running.stack.redis.thaw();
    running.ready().await;
    running.check(load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_killed_and_restarted_under_load_loses_no_answer() {
    let mut running = Running::start().await;
    let load = running.load().await;
    running.stack.kafka.kill();
    running.unready().await;
    running.stack.kafka.run().await;
    running.ready().await;
    running.check(load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_started_before_their_backends_wait_say_for_what_and_go_on() {
    let mut stack = Stack::not_started(ScriptedModel::start().await).await;
    let mut gateway = stack.gateway("server_1").spawn();
    let mut worker = stack.worker("worker_1").spawn();
    let mut relay = stack.relay("relay_1").spawn();
    for role in [&gateway, &worker, &relay] {
        eventually("it is alive, and says for what it waits", SOON, || async {
            let ready = role.url("/health/ready");
            let Ok(reply) = http::try_call(reqwest::Method::GET, &ready, &[]).await else {
                return false;
            };
            let said = reply.body.to_lowercase();
            reply.status == 503 && (said.contains("kafka") || said.contains("redis"))
        })
        .await;
        assert_eq!(http::get(&role.url("/health/live")).await.status, 200);
        role.says("waiting for kafka", SOON).await;
        role.says("waiting for redis", SOON).await;
    }
    stack.redis.restart().await;
    for role in [&gateway, &worker, &relay] {
        eventually("it waits for Kafka alone", SOON, || async {
            let reply = http::get(&role.url("/health/ready")).await;
            let said = reply.body.to_lowercase();
            reply.status == 503 && said.contains("kafka") && !said.contains("redis")
        })
        .await;
    }
    stack.kafka.run().await;
    for role in [&mut gateway, &mut worker, &mut relay] {
        role.ready(SOON).await;
    }
    let mut client = Classic::open(gateway.port(), "alice").await;
    assert_eq!(client.ask("hello").await["content"], "echo: hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_still_waits_for_its_backends_ends_on_sigterm() {
    let stack = Stack::not_started(ScriptedModel::start().await).await;
    for spec in [
        stack.gateway("server_1"),
        stack.worker("w"),
        stack.relay("r"),
    ] {
        let mut role = spec.spawn();
        eventually("it is alive", SOON, || async {
            let url = role.url("/health/live");
            http::try_call(reqwest::Method::GET, &url, &[])
                .await
                .is_ok()
        })
        .await;
        role.drain().await;
    }
}
