//! A process is killed, paused or loses data during an answer.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::{MAILBOX_FRAMES, numbered_words};
use crate::support::classic::ClassicClient;
use crate::support::history::HistoryClient;
use crate::support::lossy_redis::LossyRedis;
use crate::support::model::Script;
use crate::support::system::{Backend, TestSystem};
use crate::support::v1::{Transcript, V1Client};
use crate::support::{QUIET_PERIOD, TEST_TIMEOUT, unique_name, wait_until};

const PACE: Duration = Duration::from_millis(80);

/// A user with a message that has ended, an answer in flight, and a device that disconnected before both.
struct AnswerInFlight {
    user: String,
    prompt: String,
    text: String,
    device: V1Client,
    away: V1Client,
}

impl AnswerInFlight {
    async fn start(system: &TestSystem, count: usize) -> Self {
        let user = unique_name("fault");
        let prompt = unique_name("growing");
        let text = numbered_words("grown", count);
        system
            .model()
            .queue_answer(&prompt, Script::complete(&text).chunk_interval(PACE));
        let mut away = V1Client::open(system.port(1), &user).await;
        away.drop_connection();
        let mut device = V1Client::open(system.port(0), &user).await;
        device.send_and_wait("m-0", &unique_name("before")).await;
        device.send_message("m-1", &prompt).await;
        device.wait_for_text("m-1", "grown4 ").await;
        Self {
            user,
            prompt,
            text,
            device,
            away,
        }
    }

    /// Checks that all devices and the history end with the right text.
    async fn assert_delivered(mut self, system: &TestSystem) {
        let ports = system.ports();
        let messages = [("m-1", self.prompt.as_str())];
        self.device.reconnect_until_ended(&ports, &messages).await;
        let shown = self.device.message("m-1");
        assert_eq!(shown.outcome_type(), Some("response"), "{shown:?}");
        assert_eq!(shown.text, self.text);
        let calls = system.model().request_count_for(&self.prompt);
        assert!(calls <= 2, "{calls} model calls");
        let history = HistoryClient::new(system.port(1), &self.user);
        let message_id = self.device.transcript.message_id("m-1").unwrap().to_owned();
        let turn = history
            .turn("default", &message_id)
            .await
            .expect("in the history");
        assert_eq!(turn.answer, self.text);
        // The disconnected device recovers what it missed, or is told to reload.
        let before = self.away.transcript.reloads();
        self.away.connect_with_retries(&[system.port(1)]).await;
        if self.away.transcript.reloads() == before {
            self.away.wait_for_terminal_frames(&["m-0", "m-1"]).await;
            assert_eq!(self.away.message("m-1").text, self.text);
        }
        // Both devices continue.
        let next = unique_name("afterwards");
        self.device.send_message("m-2", &next).await;
        for device in [&mut self.device, &mut self.away] {
            let end = device.wait_for_terminal_frame("m-2").await;
            assert_eq!(end["content"], format!("echo: {next}"));
        }
        // Frames that the relay delivers again are sent to no one twice.
        self.device.expect_no_frame(QUIET_PERIOD).await;
    }
}

pub(super) async fn redis_is_emptied(system: &mut TestSystem) {
    let answer = AnswerInFlight::start(system, 50).await;
    system.flush_redis();
    answer.assert_delivered(system).await;
}

pub(super) async fn redis_is_restarted(system: &mut TestSystem) {
    let answer = AnswerInFlight::start(system, 60).await;
    system.restart_redis().await;
    answer.assert_delivered(system).await;
}

pub(super) async fn gateway_is_killed(system: &mut TestSystem) {
    let answer = AnswerInFlight::start(system, 50).await;
    system.gateways[0].kill();
    let spec = system.gateways[0].spec().clone();
    system.gateways[0] = spec.start().await;
    answer.assert_delivered(system).await;
}

pub(super) async fn relay_is_killed(system: &mut TestSystem) {
    let answer = AnswerInFlight::start(system, 40).await;
    system.relays[0].kill();
    let spec = system.relays[0].spec().clone();
    system.relays[0] = spec.start().await;
    answer.assert_delivered(system).await;
}

/// Queues two answers for a prompt whose texts differ, so that a mix would be detected. Returns the
/// second text.
fn queue_two_attempts(system: &TestSystem, prompt: &str, first: Script) -> String {
    let whole = numbered_words("second", 60);
    system.model().queue_answer(prompt, first);
    system
        .model()
        .queue_answer(prompt, Script::complete(&whole).chunk_interval(PACE));
    whole
}

pub(super) async fn killed_worker_is_replaced_and_the_text_restarts(system: &mut TestSystem) {
    let prompt = unique_name("killed");
    let first = Script::complete(&numbered_words("first", 400)).chunk_interval(PACE);
    let whole = queue_two_attempts(system, &prompt, first);
    let mut device = V1Client::open(system.port(0), &unique_name("fault")).await;
    device.send_message("m-1", &prompt).await;
    device.wait_for_text("m-1", "first4 ").await;
    let worker = system.worker_index_for(&prompt);
    system.workers[worker].kill();
    let restarted = |t: &Transcript| t.get("m-1").is_some_and(|m| m.restarts == 1);
    device.wait_for("the text restarts", restarted).await;
    assert_eq!(device.message("m-1").text, "");
    device.wait_for_text("m-1", "second0 ").await;
    let begun = device
        .frames
        .iter()
        .rev()
        .find(|frame| frame["type"] == "delta")
        .unwrap();
    assert_eq!(begun["attempt"], 2, "{begun}");
    let end = device.wait_for_terminal_frame("m-1").await;
    assert_eq!(end["content"], whole.as_str());
    assert_eq!(end["attempt"], 2);
    assert_eq!(device.message("m-1").accepted.len(), 1);
    let spec = system.workers[worker].spec().clone();
    system.workers[worker] = spec.start().await;
}

pub(super) async fn worker_paused_past_its_session_is_fenced(system: &mut TestSystem) {
    let prompt = unique_name("asleep");
    let first =
        Script::complete(&numbered_words("first", 4000)).chunk_interval(Duration::from_millis(20));
    let whole = queue_two_attempts(system, &prompt, first);
    let user = unique_name("fault");
    let mut device = V1Client::open(system.port(0), &user).await;
    let mut phone = V1Client::open(system.port(1), &user).await;
    device.send_message("m-1", &prompt).await;
    device.wait_for_text("m-1", "first4 ").await;
    let worker = system.worker_index_for(&prompt);
    system.workers[worker].pause();
    // After its lease and its session another worker takes over.
    device.wait_for_text("m-1", "second4 ").await;
    assert!(
        !device.message("m-1").text.contains("first"),
        "the texts are mixed"
    );
    // It resumes with buffered text of the old call, and believes that it owns the message.
    system.workers[worker].resume();
    wait_until("the old request is closed", TEST_TIMEOUT, || async {
        system.model().aborted_prompts().contains(&prompt)
    })
    .await;
    for socket in [&mut device, &mut phone] {
        let end = socket.wait_for_terminal_frame("m-1").await;
        assert_eq!(end["content"], whole.as_str());
        assert_eq!(socket.message("m-1").restarts, 1);
        assert_eq!(socket.transcript.stray_frames, 0);
        socket.expect_no_frame(QUIET_PERIOD).await;
    }
    let turns = HistoryClient::new(system.port(0), &user)
        .turns("default")
        .await;
    assert_eq!(turns.len(), 1, "{turns:?}");
    assert_eq!(turns[0].answer, whole);
    assert_eq!(system.model().request_count_for(&prompt), 2);
}

pub(super) async fn drained_gateway_sends_its_clients_to_another(system: &mut TestSystem) {
    const COUNT: usize = 8;
    let text = numbered_words("drained", 50);
    let mut devices = Vec::new();
    for _ in 0..COUNT {
        let prompt = unique_name("drained");
        system
            .model()
            .queue_answer(&prompt, Script::complete(&text).chunk_interval(PACE));
        let mut device = V1Client::open(system.port(0), &unique_name("fault")).await;
        device.send_message("m-1", &prompt).await;
        devices.push((device, prompt));
    }
    for (device, _) in &mut devices {
        device.wait_for_text("m-1", "drained1 ").await;
    }
    let other = [system.port(1)];
    system.gateways[0].terminate();
    let reconnects = devices.iter_mut().map(|(device, prompt)| async {
        assert_eq!(device.expect_close().await, Some(1001));
        let closing = device.frames.last().unwrap().clone();
        assert_eq!(closing["type"], "closing", "{closing}");
        let pause = closing["retry_after_ms"].as_u64().unwrap();
        tokio::time::sleep(Duration::from_millis(pause.min(3000))).await;
        device
            .reconnect_until_ended(&other, &[("m-1", prompt.as_str())])
            .await;
        assert_eq!(device.message("m-1").text, text);
        assert_eq!(device.message("m-1").restarts, 0);
        assert_eq!(device.transcript.reloads(), 1, "its position was recovered");
        assert_eq!(system.model().request_count_for(prompt), 1);
    });
    join_all(reconnects).await;
    let status = system.gateways[0].wait_exit(TEST_TIMEOUT).await;
    assert_eq!(status.code(), Some(0));
    let spec = system.gateways[0].spec().clone();
    system.gateways[0] = spec.start().await;
}

pub(super) async fn lost_publish_of_an_outcome_is_detected(system: &mut TestSystem) {
    // While subscriptions break again and again, published frames are lost.
    let user = unique_name("fault");
    let prompt = unique_name("broken");
    let text = numbered_words("broken", 30);
    system
        .model()
        .queue_answer(&prompt, Script::complete(&text).chunk_interval(PACE));
    let mut device = V1Client::open(system.port(0), &user).await;
    let mut classic = ClassicClient::open(system.port(1), &user).await;
    device.send_message("m-1", &prompt).await;
    device.wait_for_text("m-1", "broken9 ").await;
    let began = Instant::now();
    while began.elapsed() < PACE * 25 {
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
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );

    if system.backend != Backend::Redis {
        return;
    }
    // If only the outcome is lost, no later frame reveals the gap.
    let proxy = LossyRedis::start(system.stack().redis.port()).await;
    let spec = system
        .gateway("server_3")
        .env("REDIS_PORT", &proxy.port().to_string());
    let behind = spec.start().await;
    let mut watcher = V1Client::new(&user);
    // A gateway refuses clients until it has subscribed again.
    watcher.connect_with_retries(&[system.port(0)]).await;
    let mut device = V1Client::new(&user);
    device.connect_with_retries(&[behind.port()]).await;
    let mut classic = ClassicClient::open(behind.port(), &user).await;
    let prompt = unique_name("lost");
    let script = Script::complete("it is here").chunk_interval(Duration::from_millis(300));
    system.model().queue_answer(&prompt, script);
    device.send_message("m-2", &prompt).await;
    device.wait_for_text("m-2", "it").await;
    proxy.drop_channel(&format!("user:{user}"));
    watcher.wait_for_terminal_frames(&["m-2"]).await;
    let ended = Instant::now();
    assert_eq!(
        device.wait_for_terminal_frame("m-2").await["content"],
        "it is here"
    );
    assert_eq!(classic.next_frame().await["content"], "it is here");
    assert!(
        proxy.dropped_count() > 0,
        "no message was dropped, so this test shows nothing"
    );
    let took = ended.elapsed();
    assert!(took < Duration::from_secs(7), "found after {took:?}");
}

pub(super) async fn trimmed_mailbox_is_reported_and_the_history_is_complete(
    system: &mut TestSystem,
) {
    let user = unique_name("fault");
    let mut away = V1Client::open(system.port(1), &user).await;
    away.drop_connection();
    let mut device = V1Client::open(system.port(0), &user).await;
    let mut asked = Vec::new();
    let mut half = None;
    for n in 0..MAILBOX_FRAMES + 2 {
        let prompt = unique_name("trimmed");
        device.send_and_wait(&format!("m-{n}"), &prompt).await;
        asked.push(prompt);
        if n == MAILBOX_FRAMES - 1 {
            half = device.transcript.position.clone();
        }
    }
    let welcome = away.connect(system.port(1)).await;
    assert_eq!(welcome["recovered"], false, "{welcome}");
    away.expect_no_frame(QUIET_PERIOD).await;
    let turns = HistoryClient::new(system.port(1), &user)
        .turns("default")
        .await;
    let questions: Vec<_> = turns
        .iter()
        .rev()
        .filter_map(|turn| turn.question.clone())
        .collect();
    assert_eq!(questions, asked);
    // From the position of that `welcome` on everything is recovered.
    away.drop_connection();
    device.send_and_wait("last", &unique_name("after")).await;
    let welcome = away.connect(system.port(0)).await;
    assert_eq!(welcome["recovered"], true, "{welcome}");
    away.wait_for_terminal_frames(&["last"]).await;
    // Frames that the mailbox still has are replayed.
    let mut recent = V1Client::new(&user);
    recent.transcript.position = half;
    let welcome = recent.connect(system.port(1)).await;
    assert_eq!(welcome["recovered"], true, "{welcome}");
    recent
        .wait_for_terminal_frames(&["m-48", "m-49", "last"])
        .await;
    recent.expect_no_frame(QUIET_PERIOD).await;
}

/// The operator recreated `responses` and changed `LOG_EPOCH`.
pub(super) async fn position_of_another_epoch_is_not_recovered(system: &mut TestSystem) {
    let user = unique_name("fault");
    let mut away = V1Client::open(system.port(0), &user).await;
    let (before, after) = (unique_name("before"), unique_name("after"));
    away.send_and_wait("m-1", &before).await;
    away.drop_connection();
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
    let welcome = away.connect(system.port(1)).await;
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
    let end = away.send_and_wait("m-3", &unique_name("third")).await;
    assert_eq!(end["type"], "response", "{end}");
    online.wait_for_terminal_frames(&["m-3"]).await;
    for device in [&mut away, &mut online] {
        device.expect_no_frame(QUIET_PERIOD).await;
    }
}

/// The process with all roles is killed and restarted on its folder.
pub(super) async fn killed_process_restarts_the_text(system: &mut TestSystem) {
    let prompt = unique_name("killed");
    let first = Script::complete(&numbered_words("first", 400)).chunk_interval(PACE);
    let whole = queue_two_attempts(system, &prompt, first);
    let mut device = V1Client::open(system.port(0), &unique_name("fault")).await;
    let done = device.send_and_wait("m-0", &unique_name("done")).await;
    device.send_message("m-1", &prompt).await;
    device.wait_for_text("m-1", "first4 ").await;
    system.gateways[0].kill();
    assert_eq!(device.expect_close().await, None);
    let spec = system.gateways[0].spec().clone();
    system.gateways[0] = spec.start().await;
    let welcome = device.connect(system.port(0)).await;
    assert_eq!(welcome["recovered"], true, "{welcome}");
    let end = device.wait_for_terminal_frame("m-1").await;
    assert_eq!(end["content"], whole.as_str());
    // The outcome of the first message is unchanged.
    device.send_message("m-0", "whatever").await;
    let again = |t: &Transcript| t.get("m-0").is_some_and(|m| m.repeated_outcomes == 1);
    device.wait_for("the stored answer arrives", again).await;
    assert_eq!(device.frames.last(), Some(&done));
}
