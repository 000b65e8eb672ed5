//! The history routes over HTTP.

use std::sync::Arc;

use reqwest::Method;

use crate::support::history::{HistoryClient, HistoryTurn};
use crate::support::http::try_call;
use crate::support::model::Script;
use crate::support::system::TestSystem;
use crate::support::v1::V1Client;
use crate::support::{QUIET_PERIOD, unique_name};

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
    let mut asked = Vec::new();
    for n in 0..7 {
        let prompt = unique_name("turn");
        device.send_and_wait(&format!("m-{n}"), &prompt).await;
        asked.push(prompt);
    }
    device
        .send_message_in("second", "s-1", "in the second")
        .await;
    device.wait_for_terminal_frame("s-1").await;
    assert_eq!(
        history.conversations().await,
        ["second", "default"],
        "the newest first"
    );

    let all = history.turns("default").await;
    let newest_first: Vec<&str> = asked.iter().rev().map(String::as_str).collect();
    assert_eq!(questions(&all), newest_first);
    for (turn, prompt) in all.iter().zip(&newest_first) {
        assert_eq!(turn.answer, format!("echo: {prompt}"));
        assert_eq!(turn.status, "answered");
    }
    let mut paged = Vec::new();
    let mut before: Option<String> = None;
    loop {
        let page = history.page("default", before.as_deref(), 3).await;
        assert!(page.len() <= 3);
        let Some(oldest) = page.last() else {
            break;
        };
        before = Some(oldest.message_id.clone());
        paged.extend(page);
    }
    assert_eq!(paged, all);
    // Another user has no history, and a request without a token none at all.
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
    let refused = crate::support::model::Answer::error(400, "invalid_request_error", "no");
    system.model().queue_answer(&prompt, refused);
    let mut device = V1Client::open(system.port(0), &user).await;
    let end = device.send_and_wait("m-1", &prompt).await;
    assert_eq!(end["type"], "error");
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
    let mut away = V1Client::open(system.port(1), &user).await;
    away.drop_connection();
    let mut device = V1Client::open(system.port(0), &user).await;
    let history = HistoryClient::new(system.port(0), &user);
    device.send_message_in("secret", "s-1", "forget this").await;
    device.wait_for_terminal_frame("s-1").await;
    device.send_message_in("kept", "k-1", "keep this").await;
    device.wait_for_terminal_frame("k-1").await;
    let status = history.delete("secret").await;
    assert!([200, 204].contains(&status), "{status}");
    assert_eq!(history.conversations().await, ["kept"]);
    let reply = history.page("kept", None, 10).await;
    assert_eq!(questions(&reply), ["keep this"]);
    // It is in no mailbox any more.
    away.connect(system.port(1)).await;
    if away.transcript.reloads() == 1 {
        away.wait_for_terminal_frames(&["k-1"]).await;
    }
    away.expect_no_frame(QUIET_PERIOD).await;
    assert!(away.transcript.get("s-1").is_none());
    // The model's context does not contain it either.
    device
        .send_message_in("secret", "s-2", "what did I say?")
        .await;
    device.wait_for_terminal_frame("s-2").await;
    let context = system.model().requests_for("what did I say?");
    let of_user: Vec<_> = context
        .iter()
        .flat_map(crate::support::model::ModelRequest::messages)
        .collect();
    assert!(
        of_user
            .iter()
            .all(|(_, text)| !text.contains("forget this")),
        "{of_user:?}"
    );
    assert_eq!(history.conversations().await, ["secret", "kept"]);
}

pub(super) async fn deleting_everything_stops_answers_in_flight(system: Arc<TestSystem>) {
    let user = unique_name("history");
    let (early, growing, waiting) = (
        unique_name("early"),
        unique_name("growing"),
        unique_name("waiting"),
    );
    let endless = Script::new().role().text("a secret answer ").hang();
    system.model().queue_answer(&growing, endless);
    let mut device = V1Client::open(system.port(0), &user).await;
    let mut phone = V1Client::open(system.port(1), &user).await;
    let history = HistoryClient::new(system.port(1), &user);
    device.send_and_wait("m-0", &early).await;
    device.send_message("m-1", &growing).await;
    device.wait_for_text("m-1", "secret").await;
    device.send_message("m-2", &waiting).await;
    device.wait_for_accepted("m-2").await;
    let status = history.delete_all().await;
    assert!([200, 204].contains(&status), "{status}");
    for socket in [&mut device, &mut phone] {
        socket.wait_for_terminal_frames(&["m-1", "m-2"]).await;
        assert_eq!(socket.message("m-1").outcome_type(), Some("cancelled"));
        assert_eq!(socket.message("m-2").outcome_type(), Some("cancelled"));
    }
    assert_eq!(system.model().request_count_for(&waiting), 0);
    device.expect_no_frame(QUIET_PERIOD).await;
    assert!(
        history.conversations().await.is_empty(),
        "the deleted history reappeared"
    );
    assert!(history.turns("default").await.is_empty());
    // A new device finds nothing pending.
    let mut late = V1Client::open(system.port(0), &user).await;
    assert_eq!(late.frames[0]["pending"], serde_json::json!([]));
    late.expect_no_frame(QUIET_PERIOD).await;
    let next = unique_name("next");
    device.send_and_wait("m-3", &next).await;
    let context = system.model().requests_for(&next).remove(0).messages();
    let knows = |text: &String| {
        [&early, &growing]
            .iter()
            .any(|prompt| text.contains(*prompt))
    };
    assert!(!context.iter().any(|(_, text)| knows(text)), "{context:?}");
}
