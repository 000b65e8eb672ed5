//! Clients that read slower than the gateway sends, or not at all.

use std::sync::Arc;
use std::time::Duration;

use super::numbered_words;
use crate::support::model::Script;
use crate::support::system::TestSystem;
use crate::support::v1::{Transcript, V1Client};
use crate::support::{unique_name, wait_until};

/// Number of answers. All of them together exceed the kernel's buffers for a client that does not
/// read (up to 4 MiB).
const ANSWERS: usize = 24;
/// Number of chunks of an answer before its last one.
const PIECES: usize = 57;

pub(super) async fn slow_readers_get_snapshots_and_stalled_ones_are_closed(
    system: Arc<TestSystem>,
) {
    let user = unique_name("slow");
    let mut watcher = V1Client::open(system.port(0), &user).await;
    let mut slow = V1Client::new(&user).with_small_receive_buffer();
    let mut stalled = V1Client::new(&user).with_small_receive_buffer();
    slow.connect(system.port(0)).await;
    stalled.connect(system.port(0)).await;
    let filler = numbered_words("x", 800);
    // The condition compares lengths, because searching megabytes of text at every frame would
    // delay the test.
    let min_length = PIECES * filler.len();
    let has_all_pieces =
        |t: &Transcript| t.messages().filter(|m| m.text.len() > min_length).count() == ANSWERS;
    let ids: Vec<String> = (0..ANSWERS).map(|n| format!("m-{n}")).collect();
    for id in &ids {
        let prompt = unique_name("flood");
        let mut script = Script::new().role();
        for piece in 0..PIECES {
            script = script.token(&format!("p{piece} {filler}"));
            script = script.wait(Duration::from_millis(20));
        }
        script = script.wait(Duration::from_secs(6)).token("the end");
        system
            .model()
            .queue_answer(&prompt, script.finish("stop").usage().done());
        watcher.send_message_in(id, id, &prompt).await;
    }
    watcher
        .wait_for("all answers lack only their last chunk", has_all_pieces)
        .await;
    let in_flight = watcher
        .transcript
        .messages()
        .filter(|m| m.terminal.is_none())
        .count();
    assert!(in_flight > 0, "all answers have ended");
    let all_ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    slow.wait_for_terminal_frames(&all_ids).await;
    assert!(slow.is_connected(), "the slow reader was disconnected");
    let snapshots: usize = slow.transcript.messages().map(|m| m.snapshots).sum();
    assert!(
        snapshots > 0,
        "the slow reader received no snapshot, so this test did not test catching up"
    );
    watcher.wait_for_terminal_frames(&all_ids).await;
    assert_eq!(slow.transcript.outcomes(), watcher.transcript.outcomes());
    for id in &ids {
        assert!(slow.message(id).text.ends_with("the end"), "{id}");
    }

    let gateway = &system.gateways[0];
    wait_until(
        "the stalled reader is closed",
        Duration::from_secs(40),
        || async {
            gateway.log().contains("slow_consumer")
                || has_counted_slow_consumer(&gateway.url("/metrics")).await
        },
    )
    .await;
    let code = stalled.expect_close().await;
    // The close frame is behind the unread data in the kernel, and the gateway waits only a limited
    // time for its delivery.
    assert!([Some(4409), None].contains(&code), "{code:?}");
    let welcome = stalled.connect(system.port(1)).await;
    assert_eq!(welcome["recovered"], true, "{welcome}");
    stalled.wait_for_terminal_frames(&all_ids).await;
    assert_eq!(stalled.transcript.outcomes(), watcher.transcript.outcomes());
}

/// Whether a metric with the label `slow_consumer` is above zero.
async fn has_counted_slow_consumer(url: &str) -> bool {
    let metrics = crate::support::http::get(url).await.body;
    metrics
        .lines()
        .any(|line| line.contains("slow_consumer") && !line.ends_with(" 0"))
}
