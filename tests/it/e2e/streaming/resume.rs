//! Reconnecting. At whatever point of an answer a client reconnects, its transcript is the same in
//! the end.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::numbered_words;
use crate::support::classic::ClientEvent;
use crate::support::model::Script;
use crate::support::system::TestSystem;
use crate::support::v1::{Transcript, V1Client};
use crate::support::{QUIET_PERIOD, unique_name};

/// Pause between two chunks of a scripted answer.
const CHUNK_INTERVAL: Duration = Duration::from_millis(45);

/// An exchange of two messages, whose answers are streamed one after the other. Returns id, prompt
/// and answer of each.
fn exchange() -> [(&'static str, String, String); 2] {
    [
        ("m-1", unique_name("one"), numbered_words("alpha", 9)),
        ("m-2", unique_name("two"), numbered_words("beta", 5)),
    ]
}

/// Runs the exchange. For each cut, the client receives that many frames, drops the connection and
/// reconnects to the other gateway. Returns the transcript and the number of frames.
async fn run_exchange(system: &TestSystem, cuts: &[usize]) -> (Transcript, usize) {
    let user = unique_name("resume");
    let exchange = exchange();
    for (_, prompt, text) in &exchange {
        system.model().queue_answer(
            prompt,
            Script::complete(text).chunk_interval(CHUNK_INTERVAL),
        );
    }
    let messages: Vec<(&str, &str)> = exchange
        .iter()
        .map(|(id, prompt, _)| (*id, prompt.as_str()))
        .collect();
    let mut device = V1Client::open(system.port(0), &user).await;
    for (id, prompt) in &messages {
        device.send_message(id, prompt).await;
    }
    let mut frames = 0;
    for (n, cut) in cuts.iter().enumerate() {
        for _ in 0..*cut {
            match device.next_event(Duration::from_secs(4)).await {
                ClientEvent::Frame(_) => frames += 1,
                // The exchange had no further frame before this cut.
                ClientEvent::TimedOut => break,
                ClientEvent::Closed(code) => panic!("{user} was closed: {code:?}"),
            }
        }
        device.drop_connection();
        let ports = [system.port(n + 1)];
        device.connect_with_retries(&ports).await;
        for (id, prompt) in &messages {
            let message = device.transcript.get(id);
            if message.is_none_or(|m| !m.is_accepted() && m.terminal.is_none()) {
                device.send_message(id, prompt).await;
            }
        }
    }
    while device.transcript.outcomes().len() < messages.len() {
        device.next_frame().await;
        frames += 1;
    }
    for (id, prompt, text) in &exchange {
        let expected = ("response".to_owned(), text.clone());
        let outcomes = device.transcript.outcomes();
        assert_eq!(outcomes.get(*id), Some(&expected), "{user} after {cuts:?}");
        assert_eq!(
            system.model().request_count_for(prompt),
            1,
            "{user} after {cuts:?}: the model was called twice"
        );
    }
    assert_eq!(
        device.transcript.outcome_order("default"),
        ["m-1", "m-2"],
        "{cuts:?}"
    );
    assert_eq!(
        device.transcript.reloads(),
        1,
        "a connection with a position was not recovered: {cuts:?}"
    );
    assert_eq!(device.transcript.stray_frames, 0, "{cuts:?}");
    (device.transcript, frames)
}

pub(super) async fn resuming_after_any_frame_gives_the_same_transcript(system: Arc<TestSystem>) {
    let (uninterrupted, frames) = run_exchange(&system, &[]).await;
    assert!(frames > 10, "only {frames} frames");
    // Cut after every number of frames, and at some combinations of two to four cuts.
    let mut cut_lists: Vec<Vec<usize>> = (0..=frames).map(|cut| vec![cut]).collect();
    let mut runner = TestRunner::deterministic();
    let cut_list_strategy = proptest::collection::vec(0..frames / 2, 2..=4);
    for _ in 0..20 {
        let cuts = cut_list_strategy.new_tree(&mut runner);
        cut_lists.push(cuts.expect("a list of cuts").current());
    }
    for batch in cut_lists.chunks(14) {
        let results = join_all(batch.iter().map(|cuts| run_exchange(&system, cuts))).await;
        for ((transcript, _), cuts) in results.iter().zip(batch) {
            assert_eq!(
                transcript.outcomes(),
                uninterrupted.outcomes(),
                "the connection was cut after {cuts:?} frames"
            );
        }
    }
}

pub(super) async fn client_changes_gateways_during_an_answer(system: Arc<TestSystem>) {
    let user = unique_name("reconnect");
    let prompt = unique_name("long");
    let text = numbered_words("word", 80);
    system.model().queue_answer(
        &prompt,
        Script::complete(&text).chunk_interval(CHUNK_INTERVAL),
    );
    let mut device = V1Client::open(system.port(0), &user).await;
    device.send_message("m-1", &prompt).await;
    device.wait_for_accepted("m-1").await;
    let mut reconnects = 0;
    while device.transcript.outcomes().is_empty() {
        for _ in 0..4 {
            if device.transcript.outcomes().is_empty() {
                device.next_frame().await;
            }
        }
        if device.transcript.outcomes().is_empty() {
            reconnects += 1;
            device.drop_connection();
            let welcome = device.connect(system.port(reconnects)).await;
            assert_eq!(welcome["recovered"], true, "{welcome}");
        }
    }
    assert!(reconnects > 3, "{reconnects} reconnects");
    let message = device.message("m-1");
    assert_eq!(message.text, text);
    assert_eq!(message.restarts, 0);
    assert_eq!(device.transcript.stray_frames, 0);
    assert_eq!(system.model().request_count_for(&prompt), 1);
}

pub(super) async fn missed_frames_are_replayed_in_order(system: Arc<TestSystem>) {
    const COUNT: usize = 40;
    let user = unique_name("missed");
    let long = "long ".repeat(2000);
    let mut offline = V1Client::open(system.port(0), &user).await;
    let mut online = V1Client::open(system.port(1), &user).await;
    offline.drop_connection();
    let ids: Vec<String> = (0..COUNT).map(|n| format!("m-{n}")).collect();
    for id in &ids {
        let prompt = unique_name("missed");
        let script = Script::new()
            .role()
            .token(&long)
            .token(id)
            .finish("stop")
            .usage()
            .done();
        system.model().queue_answer(&prompt, script);
        online.send_and_wait(id, &prompt).await;
    }
    // A connection that closes between `welcome` and the replay loses no frame (S9).
    for n in 0..3 {
        let welcome = offline.connect(system.port(n)).await;
        assert_eq!(welcome["recovered"], true, "{welcome}");
        assert_eq!(offline.frames.len(), 1);
        offline.drop_connection();
    }
    let welcome = offline.connect(system.port(1)).await;
    assert_eq!(
        welcome["position"].as_str(),
        offline.transcript.position.as_deref()
    );
    let all_ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    offline.wait_for_terminal_frames(&all_ids).await;
    assert_eq!(offline.transcript.outcome_order("default"), ids);
    assert_eq!(offline.transcript.outcomes(), online.transcript.outcomes());
    offline.expect_no_frame(QUIET_PERIOD).await;
    // A client that reconnects with its last position receives no frame again.
    offline.drop_connection();
    let welcome = offline.connect(system.port(0)).await;
    assert_eq!(welcome["recovered"], true, "{welcome}");
    offline.expect_no_frame(QUIET_PERIOD).await;
}

pub(super) async fn unknown_position_is_not_recovered(system: Arc<TestSystem>) {
    let user = unique_name("unknown");
    let mut device = V1Client::open(system.port(0), &user).await;
    device.send_and_wait("m-1", &unique_name("one")).await;
    let valid = device.transcript.position.clone().unwrap();
    let (epoch, _) = valid.rsplit_once('.').unwrap();
    for unknown in ["another~0~1.3".to_owned(), format!("{epoch}.999999")] {
        let mut other = V1Client::new(&user);
        other.transcript.position = Some(unknown.clone());
        let welcome = other.connect(system.port(1)).await;
        assert_eq!(welcome["recovered"], false, "{unknown}: {welcome}");
        assert_eq!(other.transcript.reloads(), 1);
        if unknown.ends_with("999999") {
            // The mailbox may have lost the records up to this position. The gateway sends no frame
            // below the position, so this client would not receive a new answer.
            continue;
        }
        // The client still receives new answers.
        let terminal = other
            .send_and_wait(&unique_name("id"), &unique_name("two"))
            .await;
        assert_eq!(terminal["type"], "response", "{terminal}");
    }
    // A position that cannot be parsed is refused or not recovered.
    let mut other = V1Client::new(&user);
    other.transcript.position = Some("no-position".to_owned());
    match other.try_connect(system.port(0)).await {
        Ok(welcome) => assert_eq!(welcome["recovered"], false, "{welcome}"),
        Err(refused) => assert_eq!(refused.status, 400, "{refused:?}"),
    }
    // A client without a position recovers nothing.
    let mut first_time = V1Client::new(&user);
    let welcome = first_time.connect(system.port(0)).await;
    assert_eq!(welcome["recovered"], false, "{welcome}");
    first_time.expect_no_frame(QUIET_PERIOD).await;
}
