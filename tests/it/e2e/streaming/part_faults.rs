//! Answers of several parts, while Redis loses data, a worker is paused, or no relay runs; and the
//! setting `REASONING`, which needs other processes.

use std::time::Duration;

use serde_json::Value;

use super::parts::assert_next_prompt_has_only_text;
use crate::support::history::HistoryClient;
use crate::support::kafka_client::KafkaRecord;
use crate::support::model::AnswerScript;
use crate::support::parts::finished_parts_field;
use crate::support::redis::subscribe;
use crate::support::stack::RESPONSES;
use crate::support::system::{Backend, TestSystem};
use crate::support::tcp_proxy::{ProxyMode, TcpProxy};
use crate::support::v1::{Transcript, V1Client};
use crate::support::{QUIET_PERIOD, TEST_TIMEOUT, unique_name, wait_until};

/// Pause between two chunks of a scripted answer.
const CHUNK_INTERVAL: Duration = Duration::from_millis(60);

pub(super) async fn reasoning_is_shown_kept_or_dropped(system: &mut TestSystem) {
    // One worker remains, so that it answers all messages.
    if system.backend != Backend::Embedded {
        system.workers[1].drain().await;
    }
    for setting in ["keep", "drop", "show"] {
        let worker = match system.backend {
            Backend::Embedded => &mut system.gateways[0],
            _ => &mut system.workers[0],
        };
        worker.drain().await;
        let spec = worker.spec().clone().env("REASONING", setting);
        *worker = spec.start().await;
        assert_reasoning_setting(system, setting).await;
    }
    if system.backend != Backend::Embedded {
        let spec = system.workers[1].spec().clone();
        system.workers[1] = spec.start().await;
    }
}

/// Checks what devices, the record, the history and the next prompt have of an answer.
async fn assert_reasoning_setting(system: &TestSystem, setting: &str) {
    let user = unique_name("reasoning");
    let prompt = unique_name(setting);
    let answer = AnswerScript::of_every_kind(setting, 3);
    let script = answer.complete().chunk_interval(Duration::from_millis(20));
    system.model().queue_answer(&prompt, script);
    let parts = if setting == "drop" {
        answer.parts_without_reasoning()
    } else {
        answer.parts.clone()
    };
    let mut device = V1Client::open(system.port(0), &user).await;
    let terminal = device.send_and_wait("m-1", &prompt).await;
    assert_eq!(device.message("m-1").parts(), parts, "{setting}");
    let finished = finished_parts_field(&parts, setting == "keep");
    assert_eq!(terminal["parts"], finished, "{setting}");
    let message_id = device.transcript.message_id("m-1").unwrap().to_owned();
    if system.backend != Backend::Embedded {
        let limit = Duration::from_secs(3);
        let kafka = system.kafka_client();
        let records = kafka.read(RESPONSES, usize::MAX, limit).await;
        let values: Vec<Value> = records.iter().map(KafkaRecord::json).collect();
        let record = values
            .iter()
            .find(|value| value["message_id"] == *message_id);
        assert_eq!(record.unwrap()["parts"], finished, "{setting}");
    }
    let history = HistoryClient::new(system.port(1), &user);
    let turn = history.turn("default", &message_id).await.unwrap();
    assert_eq!(turn.parts, finished, "{setting}");
    assert_eq!(turn.answer, answer.content(), "{setting}");
    assert_next_prompt_has_only_text(system, &mut device, &answer).await;
}

/// A user with an answer in flight, and the user's devices.
struct PartedAnswer {
    user: String,
    prompt: String,
    answer: AnswerScript,
    devices: Vec<V1Client>,
}

impl PartedAnswer {
    /// Sends a message from a device at one gateway, with another device at the other gateway.
    /// Waits until the last part of the answer so far is of this kind and contains `text`.
    async fn start(system: &TestSystem, interval: Duration, kind: &str, text: &str) -> Self {
        let (user, prompt) = (unique_name("parts"), unique_name("fault"));
        let answer = AnswerScript::of_every_kind("once", 12);
        let script = answer.complete().chunk_interval(interval);
        system.model().queue_answer(&prompt, script);
        let mut devices = vec![
            V1Client::open(system.port(0), &user).await,
            V1Client::open(system.port(1), &user).await,
        ];
        devices[0].send_message("m-1", &prompt).await;
        for device in &mut devices {
            device.wait_for_part("m-1", kind, text).await;
        }
        Self {
            user,
            prompt,
            answer,
            devices,
        }
    }

    /// Adds a device that connects now, while the answer is in flight.
    async fn join(&mut self, system: &TestSystem) {
        let mut device = V1Client::new(&self.user);
        device.connect_with_retries(&system.ports()).await;
        self.devices.push(device);
    }

    /// Checks that all devices and the history end with exactly the parts of the one model call.
    async fn assert_whole(mut self, system: &TestSystem) {
        let messages = [("m-1", self.prompt.as_str())];
        for device in &mut self.devices {
            let ports = system.ports();
            device.reconnect_until_ended(&ports, &messages).await;
            assert_eq!(device.message("m-1").parts(), self.answer.parts);
            assert_eq!(device.transcript.stray_frames, 0);
        }
        let transcript = &self.devices[0].transcript;
        let message_id = transcript.message_id("m-1").unwrap().to_owned();
        let history = HistoryClient::new(system.port(1), &self.user);
        let turn = history.turn("default", &message_id).await.unwrap();
        let expected = finished_parts_field(&self.answer.parts, false);
        assert_eq!((turn.answer, turn.parts), (self.answer.content(), expected));
        assert_eq!(system.model().request_count_for(&self.prompt), 1);
    }

    /// Starts answers of which each has reached another part.
    async fn start_in_each_part(system: &TestSystem) -> [Self; 3] {
        // The slower an answer is, the fewer of its parts are there when the last one is ready.
        let interval = Duration::from_millis;
        let (first, second, third) = tokio::join!(
            Self::start(system, interval(180), "reasoning", "thought8"),
            Self::start(system, interval(110), "text", "first2"),
            Self::start(system, interval(60), "tool_call", "a1"),
        );
        [first, second, third]
    }
}

pub(super) async fn emptied_redis_mixes_no_parts(system: &mut TestSystem) {
    let mut answers = PartedAnswer::start_in_each_part(system).await;
    system.flush_redis();
    for answer in &mut answers {
        answer.join(system).await;
    }
    for answer in answers {
        answer.assert_whole(system).await;
    }
}

pub(super) async fn restarted_redis_mixes_no_parts(system: &mut TestSystem) {
    let mut answers = PartedAnswer::start_in_each_part(system).await;
    system.restart_redis().await;
    for answer in &mut answers {
        answer.join(system).await;
    }
    for answer in answers {
        answer.assert_whole(system).await;
    }
}

/// Starts a worker whose connection to Redis passes through a proxy, in place of the first worker.
async fn start_worker_behind_proxy(system: &mut TestSystem) -> TcpProxy {
    let proxy = TcpProxy::start(system.stack().redis.port()).await;
    system.workers[0].drain().await;
    let spec = system.workers[0].spec().clone();
    let spec = spec.env("REDIS_PORT", &proxy.port().to_string());
    system.workers[0] = spec.start().await;
    proxy
}

/// The worker is stopped while a delta of it is on its way to Redis. The delta arrives after
/// another worker has taken over the message.
pub(super) async fn late_delta_of_a_paused_worker_is_shown_nowhere(system: &mut TestSystem) {
    if system.backend != Backend::Redis {
        // The proxy stands before one Redis.
        return;
    }
    let proxy = start_worker_behind_proxy(system).await;
    let second = AnswerScript::of_every_kind("second", 14);
    let (user, prompt, mut devices) = loop {
        let (user, prompt) = (unique_name("late"), unique_name("late"));
        let first = AnswerScript::of_every_kind("first", 400);
        let first = first.complete().chunk_interval(Duration::from_millis(20));
        system.model().queue_answer(&prompt, first);
        let script = second.complete().chunk_interval(CHUNK_INTERVAL);
        system.model().queue_answer(&prompt, script);
        let mut devices = [
            V1Client::open(system.port(0), &user).await,
            V1Client::open(system.port(1), &user).await,
        ];
        devices[0].send_message("m-1", &prompt).await;
        for device in &mut devices {
            device.wait_for_part("m-1", "reasoning", "thought9").await;
        }
        if system.worker_index_for(&prompt) == 0 {
            break (user, prompt, devices);
        }
        devices[0].cancel("m-1").await;
        devices[0].wait_for_terminal_frames(&["m-1"]).await;
    };
    let live_channel = format!("{{user:{user}}}:live");
    let (_subscriber, mut published) = subscribe(&system.stack().redis.url(), &live_channel).await;
    // The command that appends a piece.
    proxy.stall_at("RPUSHX").await;
    system.workers[0].pause();
    // The other worker takes over after the lease and the session have expired.
    for device in &mut devices {
        device
            .wait_for_part("m-1", "reasoning", "second-thought2")
            .await;
    }
    proxy.set_mode(ProxyMode::Forward);
    for device in &mut devices {
        device.wait_for_part("m-1", "text", "second-first2").await;
        let text = format!("{:?}", device.message("m-1").parts());
        assert!(!text.contains("first-"), "the parts are mixed: {text}");
    }
    system.workers[0].resume();
    for device in &mut devices {
        device.wait_for_terminal_frames(&["m-1"]).await;
        let message = device.message("m-1");
        assert_eq!(message.parts(), second.parts);
        assert_eq!(message.restarts, 1);
        device.expect_no_frame(QUIET_PERIOD).await;
    }
    let mut has_restarted = false;
    let mut late_deltas = 0;
    while let Ok(frame) = published.try_recv() {
        let frame: Value = serde_json::from_str(&frame).unwrap();
        has_restarted |= frame["type"] == "restarted";
        late_deltas += usize::from(has_restarted && frame["attempt"] == 1);
    }
    assert!(
        late_deltas > 0,
        "no late delta was published, so this test did not test one"
    );
    wait_until(
        "the request of the fenced worker is closed",
        TEST_TIMEOUT,
        || async { system.model().aborted_prompts().contains(&prompt) },
    )
    .await;
    assert_eq!(system.model().request_count_for(&prompt), 2);
    system.workers[0].drain().await;
    let redis_port = system.stack().redis.port().to_string();
    let spec = system.workers[0]
        .spec()
        .clone()
        .env("REDIS_PORT", &redis_port);
    system.workers[0] = spec.start().await;
}

pub(super) async fn device_that_joins_after_the_end_and_before_the_delivery_shows_the_parts(
    system: &mut TestSystem,
) {
    let mut answer = PartedAnswer::start(system, CHUNK_INTERVAL, "text", "first3").await;
    for relay in &mut system.relays {
        relay.drain().await;
    }
    let limit = Duration::from_secs(3);
    let kafka = system.kafka_client();
    wait_until("the outcome is in the log", TEST_TIMEOUT, || async {
        let records = kafka.read(RESPONSES, usize::MAX, limit).await;
        records
            .iter()
            .any(|record| record.json()["userid"] == *answer.user)
    })
    .await;
    answer.join(system).await;
    let late = answer.devices.last_mut().expect("the late device");
    let parts = &answer.answer.parts;
    let has_all_parts = |t: &Transcript| {
        t.get("m-1")
            .is_some_and(|message| message.parts() == *parts)
    };
    late.wait_for("the late device shows all parts", has_all_parts)
        .await;
    let message = late.message("m-1");
    assert_eq!((message.snapshots, message.deltas), (1, 0));
    assert_eq!(message.outcome_type(), None);
    late.expect_no_frame(QUIET_PERIOD).await;
    for relay in &mut system.relays {
        let spec = relay.spec().clone();
        *relay = spec.start().await;
    }
    answer.assert_whole(system).await;
}
