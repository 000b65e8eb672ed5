//! Reconnecting: at every point of an answer the resulting transcript is the same.

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

const PACE: Duration = Duration::from_millis(45);

/// The exchange that is repeated: two messages, streamed one after another. Returns id, prompt and
/// answer of each.
fn exchange() -> [(&'static str, String, String); 2] {
    [
        ("m-1", unique_name("one"), numbered_words("alpha", 9)),
        ("m-2", unique_name("two"), numbered_words("beta", 5)),
    ]
}

/// Runs the exchange, and drops the connection after each of these counts of frames. Each connection
/// goes to another gateway than the one before. Returns the transcript and the number of frames.
async fn run_exchange(system: &TestSystem, cuts: &[usize]) -> (Transcript, usize) {
    let user = unique_name("resume");
    let exchange = exchange();
    for (_, prompt, text) in &exchange {
        system
            .model()
            .queue_answer(prompt, Script::complete(text).chunk_interval(PACE));
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
                // The exchange has fewer frames.
                ClientEvent::TimedOut => break,
                ClientEvent::Closed(code) => panic!("{user} was closed: {code:?}"),
            }
        }
        device.drop_connection();
        let ports = [system.port(n + 1)];
        device.connect_with_retries(&ports).await;
        for (id, prompt) in &messages {
            let known = device.transcript.get(id);
            if known.is_none_or(|m| !m.is_accepted() && m.terminal.is_none()) {
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
        let ends = device.transcript.outcomes();
        assert_eq!(ends.get(*id), Some(&expected), "{user} after {cuts:?}");
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
        "only the first connection had no position: {cuts:?}"
    );
    assert_eq!(device.transcript.stray_frames, 0, "{cuts:?}");
    (device.transcript, frames)
}

pub(super) async fn resuming_after_any_frame_gives_the_same_transcript(system: Arc<TestSystem>) {
    let (whole, frames) = run_exchange(&system, &[]).await;
    assert!(frames > 10, "only {frames} frames");
    // Every single cut, and some combinations of two to four.
    let mut plans: Vec<Vec<usize>> = (0..=frames).map(|cut| vec![cut]).collect();
    let mut runner = TestRunner::deterministic();
    let several = proptest::collection::vec(0..frames / 2, 2..=4);
    for _ in 0..20 {
        plans.push(several.new_tree(&mut runner).expect("a plan").current());
    }
    for some in plans.chunks(14) {
        let played = join_all(some.iter().map(|cuts| run_exchange(&system, cuts))).await;
        for ((transcript, _), cuts) in played.iter().zip(some) {
            assert_eq!(
                transcript.outcomes(),
                whole.outcomes(),
                "cut after {cuts:?}"
            );
        }
    }
}

pub(super) async fn client_changes_gateways_during_an_answer(system: Arc<TestSystem>) {
    let user = unique_name("hop");
    let prompt = unique_name("long");
    let text = numbered_words("hop", 80);
    system
        .model()
        .queue_answer(&prompt, Script::complete(&text).chunk_interval(PACE));
    let mut device = V1Client::open(system.port(0), &user).await;
    device.send_message("m-1", &prompt).await;
    device.wait_for_accepted("m-1").await;
    let mut hops = 0;
    while device.transcript.outcomes().is_empty() {
        for _ in 0..4 {
            if device.transcript.outcomes().is_empty() {
                device.next_frame().await;
            }
        }
        if device.transcript.outcomes().is_empty() {
            hops += 1;
            device.drop_connection();
            let welcome = device.connect(system.port(hops)).await;
            assert_eq!(welcome["recovered"], true, "{welcome}");
        }
    }
    assert!(hops > 3, "{hops} hops");
    let shown = device.message("m-1");
    assert_eq!(shown.text, text);
    assert_eq!(shown.restarts, 0);
    assert_eq!(device.transcript.stray_frames, 0);
    assert_eq!(system.model().request_count_for(&prompt), 1);
}

pub(super) async fn missed_frames_are_replayed_in_order(system: Arc<TestSystem>) {
    const COUNT: usize = 40;
    let user = unique_name("missed");
    let long = "long ".repeat(2000);
    let mut away = V1Client::open(system.port(0), &user).await;
    let mut at_work = V1Client::open(system.port(1), &user).await;
    away.drop_connection();
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
        at_work.send_and_wait(id, &prompt).await;
    }
    // A socket that closes between `welcome` and the replay loses nothing (S9).
    for n in 0..3 {
        let welcome = away.connect(system.port(n)).await;
        assert_eq!(welcome["recovered"], true, "{welcome}");
        assert_eq!(away.frames.len(), 1);
        away.drop_connection();
    }
    let welcome = away.connect(system.port(1)).await;
    assert_eq!(
        welcome["position"].as_str(),
        away.transcript.position.as_deref()
    );
    let all: Vec<&str> = ids.iter().map(String::as_str).collect();
    away.wait_for_terminal_frames(&all).await;
    assert_eq!(away.transcript.outcome_order("default"), ids);
    assert_eq!(away.transcript.outcomes(), at_work.transcript.outcomes());
    away.expect_no_frame(QUIET_PERIOD).await;
    // With the last position nothing is sent again.
    away.drop_connection();
    let welcome = away.connect(system.port(0)).await;
    assert_eq!(welcome["recovered"], true, "{welcome}");
    away.expect_no_frame(QUIET_PERIOD).await;
}

pub(super) async fn unknown_position_is_not_recovered(system: Arc<TestSystem>) {
    let user = unique_name("foreign");
    let mut device = V1Client::open(system.port(0), &user).await;
    device.send_and_wait("m-1", &unique_name("one")).await;
    let good = device.transcript.position.clone().unwrap();
    let (epoch, _) = good.rsplit_once('.').unwrap();
    for foreign in ["another~0~1.3".to_owned(), format!("{epoch}.999999")] {
        let mut other = V1Client::new(&user);
        other.transcript.position = Some(foreign.clone());
        let welcome = other.connect(system.port(1)).await;
        assert_eq!(welcome["recovered"], false, "{foreign}: {welcome}");
        assert_eq!(other.transcript.reloads(), 1);
        if foreign.ends_with("999999") {
            // Records that the mailbox lost may be rebuilt; frames below its position are not sent.
            continue;
        }
        // The client is served from here on.
        let end = other
            .send_and_wait(&unique_name("id"), &unique_name("two"))
            .await;
        assert_eq!(end["type"], "response", "{end}");
    }
    // A position in an invalid form is refused or not recovered.
    let mut other = V1Client::new(&user);
    other.transcript.position = Some("no-position".to_owned());
    match other.try_connect(system.port(0)).await {
        Ok(welcome) => assert_eq!(welcome["recovered"], false, "{welcome}"),
        Err(refused) => assert_eq!(refused.status, 400, "{refused:?}"),
    }
    // A client without a position recovers nothing.
    let mut new = V1Client::new(&user);
    let welcome = new.connect(system.port(0)).await;
    assert_eq!(welcome["recovered"], false, "{welcome}");
    new.expect_no_frame(QUIET_PERIOD).await;
}
