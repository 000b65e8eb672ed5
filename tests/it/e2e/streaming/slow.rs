//! Clients that read slower than the gateway sends, or not at all.

use std::sync::Arc;
use std::time::Duration;

use super::numbered_words;
use crate::support::model::AnswerScript;
use crate::support::system::TestSystem;
use crate::support::v1::{Transcript, V1Client};
use crate::support::{unique_name, wait_until};

/// Number of answers. All of them together exceed the kernel's buffers for a client that does not
/// read (up to 4 MiB).
const ANSWERS: usize = 24;
/// Number of chunks of each of the three long parts of an answer.
const PIECES: usize = 19;

/// An answer with reasoning, a tool call and text, each of which grows in [`PIECES`] pieces. The
/// order of the parts depends on `n`, so that a slow client falls behind in each of them.
fn long_answer(n: usize) -> AnswerScript {
    let filler = numbered_words("x", 800).replace(' ', "_");
    let pieces = |name: &str| -> String {
        let pieces = (0..PIECES).map(|piece| format!("{name}{piece}_𝄞{filler} "));
        pieces.collect()
    };
    let arguments = format!("{{\"call\":\"{}\"}}", pieces("c"));
    let mut answer = AnswerScript::new();
    for part in 0..3 {
        answer = match (n + part) % 3 {
            0 => answer.reasoning(&pieces("r")),
            1 => answer.tool_calls(&[("search", &arguments)]),
            _ => answer.text(&pieces("t")),
        };
    }
    answer.refusal("the end")
}

pub(super) async fn slow_readers_get_combined_deltas_and_stalled_ones_are_closed(
    system: Arc<TestSystem>,
) {
    let user = unique_name("slow");
    let mut watcher = V1Client::open(system.port(0), &user).await;
    let mut slow = V1Client::new(&user).with_small_receive_buffer();
    let mut stalled = V1Client::new(&user).with_small_receive_buffer();
    slow.connect(system.port(0)).await;
    stalled.connect(system.port(0)).await;
    let ids: Vec<String> = (0..ANSWERS).map(|n| format!("m-{n}")).collect();
    let answers: Vec<AnswerScript> = (0..ANSWERS).map(long_answer).collect();
    for (id, answer) in ids.iter().zip(&answers) {
        let prompt = unique_name("flood");
        let script = answer.complete_with_pause(Duration::from_secs(6));
        system
            .model()
            .queue_answer(&prompt, script.chunk_interval(Duration::from_millis(20)));
        watcher.send_message_in(id, id, &prompt).await;
    }
    // The last part has two pieces, and the pause is between them.
    let lacks_last_piece = |t: &Transcript| {
        let messages = t.messages().filter(|m| m.ends_with_part("refusal", "the "));
        messages.count() == ANSWERS
    };
    watcher
        .wait_for(
            "all answers lack at most their last chunk",
            lacks_last_piece,
        )
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
    watcher.wait_for_terminal_frames(&all_ids).await;
    for (id, answer) in ids.iter().zip(&answers) {
        for device in [&slow, &watcher] {
            // A message of an assertion on the parts would be megabytes long.
            let message = device.message(id);
            assert!(message.parts() == answer.parts, "{id} at {}", device.user);
            assert_eq!(message.repeating_snapshots, 0, "{id} at {}", device.user);
        }
    }
    let gateway = &system.gateways[0];
    // Each of the three connections catches up once at its start.
    let catch_ups = count_catch_ups(&gateway.url("/metrics")).await;
    assert!(catch_ups > 3, "no connection fell behind");
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

/// How often connections of a gateway have read what they lacked.
async fn count_catch_ups(url: &str) -> u64 {
    let metrics = crate::support::http::get(url).await.body;
    let mut lines = metrics.lines();
    let line = lines.find(|line| line.starts_with("websocket_catch_ups_total"));
    let value = line.and_then(|line| line.rsplit(' ').next());
    value.map_or(0, |value| value.parse().unwrap())
}
