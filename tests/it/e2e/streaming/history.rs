//! The HTTP routes of the history.

use std::sync::Arc;

use reqwest::Method;

use crate::support::history::{HistoryClient, HistoryTurn};
use crate::support::http::try_call;
use crate::support::model::Script;
use crate::support::system::TestSystem;
use crate::support::v1::V1Client;
use crate::support::{QUIET_PERIOD, unique_name};

/// The question of each turn.
fn questions(turns: &[HistoryTurn]) -> Vec<&str> {
    turns
        .iter()
        .map(|turn| turn.question.as_deref().unwrap_or(""))
        .collect()
}

pub(super) async fn conversations_are_listed_and_paged(system: Arc<TestSystem>) {
    let user = unique_name("history");
    let mut device = V1Client::open(system.port(0), &user).await;
    let history = HistoryClient::new(system.port(1), &user);
    assert!(history.conversations().await.is_empty());
    let mut prompts = Vec::new();
    for n in 0..7 {
        let prompt = unique_name("turn");
        device.send_and_wait(&format!("m-{n}"), &prompt).await;
        prompts.push(prompt);
    }
    device
        .send_message_in("second", "s-1", "in the second")
        .await;
    device.wait_for_terminal_frame("s-1").await;
    assert_eq!(
        history.conversations().await,
        ["second", "default"],
        "expected the newest conversation first"
    );

    let all_turns = history.turns("default").await;
    let newest_first: Vec<&str> = prompts.iter().rev().map(String::as_str).collect();
    assert_eq!(questions(&all_turns), newest_first);
    for (turn, prompt) in all_turns.iter().zip(&newest_first) {
        assert_eq!(turn.answer, format!("echo: {prompt}"));
        assert_eq!(turn.status, "answered");
    }
    let mut paged_turns = Vec::new();
    let mut before: Option<String> = None;
    loop {
        let page = history.page("default", before.as_deref(), 3).await;
        assert!(page.len() <= 3);
        let Some(oldest) = page.last() else {
            break;
        };
        before = Some(oldest.message_id.clone());
        paged_turns.extend(page);
    }
    assert_eq!(paged_turns, all_turns);
    // Another user has an empty history, and a request without a token is refused.
    let other = HistoryClient::new(system.port(0), &unique_name("history"));
    assert!(other.conversations().await.is_empty());
    let url = system.gateways[0].url(&format!("/conversations?userid={user}"));
    let reply = try_call(Method::GET, &url, &[]).await.unwrap();
    assert_eq!(reply.status, 401, "{}", reply.body);
    assert_eq!(reply.json()["type"], "error");
}

pub(super) async fn failed_turn_is_marked_in_the_history(system: Arc<TestSystem>) {
    let user = unique_name("history");
    let prompt = unique_name("fails");
    let refusal = crate::support::model::Answer::error(400, "invalid_request_error", "no");
    system.model().queue_answer(&prompt, refusal);
    let mut device = V1Client::open(system.port(0), &user).await;
    let terminal = device.send_and_wait("m-1", &prompt).await;
    assert_eq!(terminal["type"], "error");
    let turns = HistoryClient::new(system.port(1), &user)
        .turns("default")
        .await;
    assert_eq!(questions(&turns), [prompt.as_str()]);
    assert_eq!(turns[0].status, "failed");
    let next = unique_name("next");
    device.send_and_wait("m-2", &next).await;
    let context = system.model().requests_for(&next).remove(0).messages();
    assert!(
        context.iter().all(|(_, text)| *text != prompt),
        "{context:?}"
    );
}

pub(super) async fn deleted_conversation_disappears_and_others_remain(system: Arc<TestSystem>) {
    let user = unique_name("history");
    let mut offline = V1Client::open(system.port(1), &user).await;
    offline.drop_connection();
    let mut device = V1Client::open(system.port(0), &user).await;
    let history = HistoryClient::new(system.port(0), &user);
    device.send_message_in("secret", "s-1", "forget this").await;
    device.wait_for_terminal_frame("s-1").await;
    device.send_message_in("kept", "k-1", "keep this").await;
    device.wait_for_terminal_frame("k-1").await;
    let status = history.delete("secret").await;
    assert!([200, 204].contains(&status), "{status}");
    assert_eq!(history.conversations().await, ["kept"]);
    let turns = history.page("kept", None, 10).await;
    assert_eq!(questions(&turns), ["keep this"]);
    // The mailbox does not have the deleted message either, so a device that was offline does not
    // receive it.
    offline.connect(system.port(1)).await;
    if offline.transcript.reloads() == 1 {
        offline.wait_for_terminal_frames(&["k-1"]).await;
    }
    offline.expect_no_frame(QUIET_PERIOD).await;
    assert!(offline.transcript.get("s-1").is_none());
    // The context of the next request to the model does not have the deleted turn.
    device
        .send_message_in("secret", "s-2", "what did I say?")
        .await;
    device.wait_for_terminal_frame("s-2").await;
    let requests = system.model().requests_for("what did I say?");
    let context: Vec<_> = requests
        .iter()
        .flat_map(crate::support::model::ModelRequest::messages)
        .collect();
    assert!(
        context
            .iter()
            .all(|(_, text)| !text.contains("forget this")),
        "{context:?}"
    );
    assert_eq!(history.conversations().await, ["secret", "kept"]);
}

pub(super) async fn deleting_everything_stops_answers_in_flight(system: Arc<TestSystem>) {
    let user = unique_name("history");
    let (ended, streaming, waiting) = (
        unique_name("ended"),
        unique_name("streaming"),
        unique_name("waiting"),
    );
    let endless_answer = Script::new().role().text("a secret answer ").hang();
    system.model().queue_answer(&streaming, endless_answer);
    let mut device = V1Client::open(system.port(0), &user).await;
    let mut phone = V1Client::open(system.port(1), &user).await;
    let history = HistoryClient::new(system.port(1), &user);
    device.send_and_wait("m-0", &ended).await;
    device.send_message("m-1", &streaming).await;
    device.wait_for_text("m-1", "secret").await;
    device.send_message("m-2", &waiting).await;
    device.wait_for_accepted("m-2").await;
    let status = history.delete_all().await;
    assert!([200, 204].contains(&status), "{status}");
    for client in [&mut device, &mut phone] {
        client.wait_for_terminal_frames(&["m-1", "m-2"]).await;
        assert_eq!(client.message("m-1").outcome_type(), Some("cancelled"));
        assert_eq!(client.message("m-2").outcome_type(), Some("cancelled"));
    }
    assert_eq!(system.model().request_count_for(&waiting), 0);
    device.expect_no_frame(QUIET_PERIOD).await;
    assert!(
        history.conversations().await.is_empty(),
        "a deleted conversation reappeared"
    );
    assert!(history.turns("default").await.is_empty());
    // A new device receives no pending message.
    let mut late = V1Client::open(system.port(0), &user).await;
    assert_eq!(late.frames[0]["pending"], serde_json::json!([]));
    late.expect_no_frame(QUIET_PERIOD).await;
    let next = unique_name("next");
    device.send_and_wait("m-3", &next).await;
    let context = system.model().requests_for(&next).remove(0).messages();
    let has_deleted_prompt = |text: &String| {
        [&ended, &streaming]
            .iter()
            .any(|prompt| text.contains(*prompt))
    };
    assert!(
        !context.iter().any(|(_, text)| has_deleted_prompt(text)),
        "{context:?}"
    );
}
