//! During an answer, a process is killed, paused or drained, or Redis loses data or messages.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::{MAILBOX_FRAMES, numbered_words};
use crate::support::classic::ClassicClient;
use crate::support::history::HistoryClient;
use crate::support::lossy_redis::LossyRedis;
use crate::support::model::{AnswerScript, Script};
use crate::support::parts::{are_same, finished_parts_field};
use crate::support::system::{Backend, TestSystem};
use crate::support::v1::{Transcript, V1Client};
use crate::support::{QUIET_PERIOD, TEST_TIMEOUT, unique_name, wait_until};

/// Pause between two chunks of a scripted answer.
const CHUNK_INTERVAL: Duration = Duration::from_millis(80);

/// A user with an ended message, an answer in flight, and a device that disconnected before both
/// messages were sent.
struct AnswerInFlight {
    user: String,
    prompt: String,
    answer: AnswerScript,
    device: V1Client,
    offline: V1Client,
}

impl AnswerInFlight {
    /// Sends both messages. The answer in flight has `word_count` words.
    async fn start(system: &TestSystem, word_count: usize) -> Self {
        let user = unique_name("fault");
        let prompt = unique_name("growing");
        let answer = AnswerScript::new()
            .reasoning("some thoughts ")
            .tool_calls(&[("search", r#"{"words": "some words"}"#)])
            .text(&numbered_words("grown", word_count))
            .source("https://source.test/", "A source");
        let script = answer.complete().chunk_interval(CHUNK_INTERVAL);
        system.model().queue_answer(&prompt, script);
        let mut offline = V1Client::open(system.port(1), &user).await;
        offline.drop_connection();
        let mut device = V1Client::open(system.port(0), &user).await;
        device.send_and_wait("m-0", &unique_name("before")).await;
        device.send_message("m-1", &prompt).await;
        device.wait_for_text("m-1", "grown4 ").await;
        Self {
            user,
            prompt,
            answer,
            device,
            offline,
        }
    }

    /// Checks that both devices and the history end with the complete parts.
    async fn assert_delivered(mut self, system: &TestSystem) {
        let ports = system.ports();
        let messages = [("m-1", self.prompt.as_str())];
        self.device.reconnect_until_ended(&ports, &messages).await;
        let message = self.device.message("m-1");
        assert_eq!(message.outcome_type(), Some("response"), "{message:?}");
        assert!(are_same(message.parts(), &self.answer.parts), "{message:?}");
        let model_calls = system.model().request_count_for(&self.prompt);
        assert!(model_calls <= 2, "{model_calls} model calls");
        let history = HistoryClient::new(system.port(1), &self.user);
        let message_id = self.device.transcript.message_id("m-1").unwrap().to_owned();
        let turn = history
            .turn("default", &message_id)
            .await
            .expect("a turn in the history");
        assert_eq!(turn.answer, self.answer.content());
        let expected = finished_parts_field(&self.answer.parts, false);
        assert_eq!(turn.parts, expected);
        // The offline device receives the frames that it missed, or a `welcome` with
        // `recovered: false`.
        let reloads = self.offline.transcript.reloads();
        self.offline.connect_with_retries(&[system.port(1)]).await;
        if self.offline.transcript.reloads() == reloads {
            self.offline.wait_for_terminal_frames(&["m-0", "m-1"]).await;
            let message = self.offline.message("m-1");
            assert!(are_same(message.parts(), &self.answer.parts), "{message:?}");
        }
        // Both devices still receive new answers.
        let next = unique_name("afterwards");
        self.device.send_message("m-2", &next).await;
        for device in [&mut self.device, &mut self.offline] {
            let terminal = device.wait_for_terminal_frame("m-2").await;
            assert_eq!(terminal["content"], format!("echo: {next}"));
        }
        // If the relay delivers frames again, the gateway does not send them again.
        self.device.expect_no_frame(QUIET_PERIOD).await;
    }
}

pub(super) async fn emptied_redis_loses_no_answer(system: &mut TestSystem) {
    let answer = AnswerInFlight::start(system, 50).await;
    system.flush_redis();
    answer.assert_delivered(system).await;
}

pub(super) async fn restarted_redis_loses_no_answer(system: &mut TestSystem) {
    let answer = AnswerInFlight::start(system, 60).await;
    system.restart_redis().await;
    answer.assert_delivered(system).await;
}

pub(super) async fn killed_gateway_loses_no_answer(system: &mut TestSystem) {
    let answer = AnswerInFlight::start(system, 50).await;
    system.gateways[0].kill();
    let spec = system.gateways[0].spec().clone();
    system.gateways[0] = spec.start().await;
    answer.assert_delivered(system).await;
}

pub(super) async fn killed_relay_loses_no_answer(system: &mut TestSystem) {
    let answer = AnswerInFlight::start(system, 40).await;
    system.relays[0].kill();
    let spec = system.relays[0].spec().clone();
    system.relays[0] = spec.start().await;
    answer.assert_delivered(system).await;
}

/// Queues two answers for a prompt. Their texts differ, so that a test detects a mixture of both.
/// Returns the text of the second one.
fn queue_two_attempts(system: &TestSystem, prompt: &str, first: Script) -> String {
    let second_text = numbered_words("second", 60);
    system.model().queue_answer(prompt, first);
    system.model().queue_answer(
        prompt,
        Script::complete(&second_text).chunk_interval(CHUNK_INTERVAL),
    );
    second_text
}

pub(super) async fn killed_worker_is_replaced_and_the_text_restarts(system: &mut TestSystem) {
    let prompt = unique_name("killed");
    let first = Script::complete(&numbered_words("first", 400)).chunk_interval(CHUNK_INTERVAL);
    let second_text = queue_two_attempts(system, &prompt, first);
    let mut device = V1Client::open(system.port(0), &unique_name("fault")).await;
    device.send_message("m-1", &prompt).await;
    device.wait_for_text("m-1", "first4 ").await;
    let worker = system.worker_index_for(&prompt);
    system.workers[worker].kill();
    let has_restarted = |t: &Transcript| t.get("m-1").is_some_and(|m| m.restarts == 1);
    device.wait_for("the text restarts", has_restarted).await;
    assert_eq!(device.message("m-1").text, "");
    device.wait_for_text("m-1", "second0 ").await;
    let last_delta = device
        .frames
        .iter()
        .rev()
        .find(|frame| frame["type"] == "delta")
        .unwrap();
    assert_eq!(last_delta["attempt"], 2, "{last_delta}");
    let terminal = device.wait_for_terminal_frame("m-1").await;
    assert_eq!(terminal["content"], second_text.as_str());
    assert_eq!(terminal["attempt"], 2);
    assert_eq!(device.message("m-1").accepted.len(), 1);
    let spec = system.workers[worker].spec().clone();
    system.workers[worker] = spec.start().await;
}

pub(super) async fn worker_paused_past_its_session_is_fenced(system: &mut TestSystem) {
    let prompt = unique_name("paused");
    let first = AnswerScript::new()
        .reasoning("first thoughts ")
        .text(&numbered_words("first", 4000));
    let first = first.complete().chunk_interval(Duration::from_millis(20));
    let second_text = queue_two_attempts(system, &prompt, first);
    let user = unique_name("fault");
    let mut device = V1Client::open(system.port(0), &user).await;
    let mut phone = V1Client::open(system.port(1), &user).await;
    device.send_message("m-1", &prompt).await;
    device.wait_for_text("m-1", "first4 ").await;
    let worker = system.worker_index_for(&prompt);
    system.workers[worker].pause();
    // Another worker takes over after the lease and the session of the paused worker have expired.
    device.wait_for_text("m-1", "second4 ").await;
    assert_eq!(
        device.message("m-1").kinds(),
        ["text"],
        "parts of the first call remain"
    );
    assert!(
        !device.message("m-1").text.contains("first"),
        "the texts are mixed"
    );
    // The paused worker resumes with buffered text of its model call, and does not know that it has
    // lost the lease.
    system.workers[worker].resume();
    wait_until(
        "the request of the fenced worker is closed",
        TEST_TIMEOUT,
        || async { system.model().aborted_prompts().contains(&prompt) },
    )
    .await;
    for socket in [&mut device, &mut phone] {
        let terminal = socket.wait_for_terminal_frame("m-1").await;
        assert_eq!(terminal["content"], second_text.as_str());
        assert_eq!(socket.message("m-1").restarts, 1);
        assert_eq!(socket.transcript.stray_frames, 0);
        socket.expect_no_frame(QUIET_PERIOD).await;
    }
    let turns = HistoryClient::new(system.port(0), &user)
        .turns("default")
        .await;
    assert_eq!(turns.len(), 1, "{turns:?}");
    assert_eq!(turns[0].answer, second_text);
    assert_eq!(system.model().request_count_for(&prompt), 2);
}

pub(super) async fn drained_gateway_sends_its_clients_to_another(system: &mut TestSystem) {
    const COUNT: usize = 8;
    let text = numbered_words("drained", 50);
    let mut devices = Vec::new();
    for _ in 0..COUNT {
        let prompt = unique_name("drained");
        system.model().queue_answer(
            &prompt,
            Script::complete(&text).chunk_interval(CHUNK_INTERVAL),
        );
        let mut device = V1Client::open(system.port(0), &unique_name("fault")).await;
        device.send_message("m-1", &prompt).await;
        devices.push((device, prompt));
    }
    for (device, _) in &mut devices {
        device.wait_for_text("m-1", "drained1 ").await;
    }
    let other_port = [system.port(1)];
    system.gateways[0].terminate();
    let reconnects = devices.iter_mut().map(|(device, prompt)| async {
        assert_eq!(device.expect_close().await, Some(1001));
        let closing = device.frames.last().unwrap().clone();
        assert_eq!(closing["type"], "closing", "{closing}");
        let retry_after_ms = closing["retry_after_ms"].as_u64().unwrap();
        tokio::time::sleep(Duration::from_millis(retry_after_ms.min(3000))).await;
        device
            .reconnect_until_ended(&other_port, &[("m-1", prompt.as_str())])
            .await;
        assert_eq!(device.message("m-1").text, text);
        assert_eq!(device.message("m-1").restarts, 0);
        assert_eq!(
            device.transcript.reloads(),
            1,
            "the position was not recovered"
        );
        assert_eq!(system.model().request_count_for(prompt), 1);
    });
    join_all(reconnects).await;
    let status = system.gateways[0].wait_exit(TEST_TIMEOUT).await;
    assert_eq!(status.code(), Some(0));
    let spec = system.gateways[0].spec().clone();
    system.gateways[0] = spec.start().await;
}

pub(super) async fn lost_publish_of_an_outcome_is_detected(system: &mut TestSystem) {
    // The subscriptions are broken repeatedly, so published frames are lost.
    let user = unique_name("fault");
    let prompt = unique_name("broken");
    let text = numbered_words("broken", 30);
    system.model().queue_answer(
        &prompt,
        Script::complete(&text).chunk_interval(CHUNK_INTERVAL),
    );
    let mut device = V1Client::open(system.port(0), &user).await;
    let mut classic = ClassicClient::open(system.port(1), &user).await;
    device.send_message("m-1", &prompt).await;
    device.wait_for_text("m-1", "broken9 ").await;
    let started = Instant::now();
    while started.elapsed() < CHUNK_INTERVAL * 25 {
        match &system.stack().cluster {
            Some(cluster) => cluster.kill_subscribers(),
            None => system.stack().redis.kill_subscribers(),
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(
        device.wait_for_terminal_frame("m-1").await["content"],
        text.as_str()
    );
    assert_eq!(classic.next_frame().await["content"], text.as_str());
    assert!(
        started.elapsed() < Duration::from_secs(15),
        "the outcome arrived only after {:?}",
        started.elapsed()
    );

    if system.backend != Backend::Redis {
        return;
    }
    // Here only the terminal frame is lost, so no later frame reveals the gap.
    let proxy = LossyRedis::start(system.stack().redis.port()).await;
    let spec = system
        .gateway("server_3")
        .env("REDIS_PORT", &proxy.port().to_string());
    let lossy_gateway = spec.start().await;
    let mut watcher = V1Client::new(&user);
    // A gateway refuses clients until it has subscribed again.
    watcher.connect_with_retries(&[system.port(0)]).await;
    let mut device = V1Client::new(&user);
    device.connect_with_retries(&[lossy_gateway.port()]).await;
    let mut classic = ClassicClient::open(lossy_gateway.port(), &user).await;
    let prompt = unique_name("lost");
    let script = Script::complete("it is here").chunk_interval(Duration::from_millis(300));
    system.model().queue_answer(&prompt, script);
    device.send_message("m-2", &prompt).await;
    device.wait_for_text("m-2", "it").await;
    proxy.drop_channel(&format!("user:{user}"));
    watcher.wait_for_terminal_frames(&["m-2"]).await;
    let ended_at = Instant::now();
    assert_eq!(
        device.wait_for_terminal_frame("m-2").await["content"],
        "it is here"
    );
    assert_eq!(classic.next_frame().await["content"], "it is here");
    assert!(
        proxy.dropped_count() > 0,
        "the proxy dropped no message, so this test did not test a loss"
    );
    let elapsed = ended_at.elapsed();
    assert!(
        elapsed < Duration::from_secs(7),
        "delivered after {elapsed:?}"
    );
}

pub(super) async fn trimmed_mailbox_is_reported_and_the_history_is_complete(
    system: &mut TestSystem,
) {
    let user = unique_name("fault");
    let mut offline = V1Client::open(system.port(1), &user).await;
    offline.drop_connection();
    let mut device = V1Client::open(system.port(0), &user).await;
    let mut prompts = Vec::new();
    let mut position_in_mailbox = None;
    for n in 0..MAILBOX_FRAMES + 2 {
        let prompt = unique_name("trimmed");
        device.send_and_wait(&format!("m-{n}"), &prompt).await;
        prompts.push(prompt);
        if n == MAILBOX_FRAMES - 1 {
            position_in_mailbox = device.transcript.position.clone();
        }
    }
    let welcome = offline.connect(system.port(1)).await;
    assert_eq!(welcome["recovered"], false, "{welcome}");
    offline.expect_no_frame(QUIET_PERIOD).await;
    let turns = HistoryClient::new(system.port(1), &user)
        .turns("default")
        .await;
    let questions: Vec<_> = turns
        .iter()
        .rev()
        .filter_map(|turn| turn.question.clone())
        .collect();
    assert_eq!(questions, prompts);
    // The position of that `welcome` is recovered: every later frame is replayed.
    offline.drop_connection();
    device.send_and_wait("last", &unique_name("after")).await;
    let welcome = offline.connect(system.port(0)).await;
    assert_eq!(welcome["recovered"], true, "{welcome}");
    offline.wait_for_terminal_frames(&["last"]).await;
    // A client whose position is in the mailbox receives the later frames.
    let mut recent = V1Client::new(&user);
    recent.transcript.position = position_in_mailbox;
    let welcome = recent.connect(system.port(1)).await;
    assert_eq!(welcome["recovered"], true, "{welcome}");
    recent
        .wait_for_terminal_frames(&["m-48", "m-49", "last"])
        .await;
    recent.expect_no_frame(QUIET_PERIOD).await;
}

/// The relays are restarted with another `LOG_EPOCH`, as after `responses` was recreated.
pub(super) async fn position_of_another_epoch_is_not_recovered(system: &mut TestSystem) {
    let user = unique_name("fault");
    let mut offline = V1Client::open(system.port(0), &user).await;
    let (before, after) = (unique_name("before"), unique_name("after"));
    offline.send_and_wait("m-1", &before).await;
    offline.drop_connection();
    let mut online = V1Client::open(system.port(0), &user).await;
    if system.backend == Backend::Embedded {
        system.gateways[0].drain().await;
        let spec = system.gateways[0].spec().clone().env("LOG_EPOCH", "1");
        system.gateways[0] = spec.start().await;
        online.connect(system.port(0)).await;
    } else {
        for relay in &mut system.relays {
            relay.drain().await;
            let spec = relay.spec().clone().env("LOG_EPOCH", "1");
            *relay = spec.start().await;
        }
    }
    online.send_and_wait("m-2", &after).await;
    let welcome = offline.connect(system.port(1)).await;
    assert_eq!(welcome["recovered"], false, "{welcome}");
    let turns = HistoryClient::new(system.port(1), &user)
        .turns("default")
        .await;
    let questions: Vec<_> = turns
        .iter()
        .rev()
        .filter_map(|turn| turn.question.clone())
        .collect();
    assert_eq!(questions, [before, after]);
    let terminal = offline.send_and_wait("m-3", &unique_name("third")).await;
    assert_eq!(terminal["type"], "response", "{terminal}");
    online.wait_for_terminal_frames(&["m-3"]).await;
    for device in [&mut offline, &mut online] {
        device.expect_no_frame(QUIET_PERIOD).await;
    }
}

/// The process with all roles is killed and restarted with its data directory.
pub(super) async fn killed_process_restarts_the_text(system: &mut TestSystem) {
    let prompt = unique_name("killed");
    let first = Script::complete(&numbered_words("first", 400)).chunk_interval(CHUNK_INTERVAL);
    let second_text = queue_two_attempts(system, &prompt, first);
    let mut device = V1Client::open(system.port(0), &unique_name("fault")).await;
    let first_terminal = device.send_and_wait("m-0", &unique_name("done")).await;
    device.send_message("m-1", &prompt).await;
    device.wait_for_text("m-1", "first4 ").await;
    system.gateways[0].kill();
    assert_eq!(device.expect_close().await, None);
    let spec = system.gateways[0].spec().clone();
    system.gateways[0] = spec.start().await;
    let welcome = device.connect(system.port(0)).await;
    assert_eq!(welcome["recovered"], true, "{welcome}");
    let terminal = device.wait_for_terminal_frame("m-1").await;
    assert_eq!(terminal["content"], second_text.as_str());
    // A resend of the first message returns its stored outcome.
    device.send_message("m-0", "whatever").await;
    let has_repeated_outcome =
        |t: &Transcript| t.get("m-0").is_some_and(|m| m.repeated_outcomes == 1);
    device
        .wait_for("the stored answer arrives", has_repeated_outcome)
        .await;
    assert_eq!(device.frames.last(), Some(&first_terminal));
}
