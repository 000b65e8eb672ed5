//! The history over HTTP.

use std::sync::Arc;

use reqwest::Method;

use crate::support::http::try_call;
use crate::support::model::Script;
use crate::support::unique;
use crate::support::v1::Device;
use crate::support::world::{A_WHILE, History, Turn, World};

fn questions(turns: &[Turn]) -> Vec<&str> {
    turns
        .iter()
        .map(|turn| turn.question.as_deref().unwrap_or(""))
        .collect()
}

pub(super) async fn conversations_are_listed_and_paged(world: Arc<World>) {
    let user = unique("history");
    let mut device = Device::open(world.port(0), &user).await;
    let history = History::new(world.port(1), &user);
    assert!(history.conversations().await.is_empty());
    let mut asked = Vec::new();
    for n in 0..7 {
        let prompt = unique("turn");
        device.ask(&format!("m-{n}"), &prompt).await;
        asked.push(prompt);
    }
    device.say_in("second", "s-1", "in the second").await;
    device.end_of("s-1").await;
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
    // Nobody else's.
    let other = History::new(world.port(0), &unique("history"));
    assert!(other.conversations().await.is_empty());
    let url = world.gateways[0].url(&format!("/conversations?userid={user}"));
    let reply = try_call(Method::GET, &url, &[]).await.unwrap();
    assert_eq!(reply.status, 401, "{}", reply.body);
    assert_eq!(reply.json()["type"], "error");
}

pub(super) async fn a_failed_turn_is_in_the_history_and_marked(world: Arc<World>) {
    let user = unique("history");
    let prompt = unique("fails");
    let refused = crate::support::model::Answer::error(400, "invalid_request_error", "no");
    world.model().next_for(&prompt, refused);
    let mut device = Device::open(world.port(0), &user).await;
    let end = device.ask("m-1", &prompt).await;
    assert_eq!(end["type"], "error");
    let turns = History::new(world.port(1), &user).turns("default").await;
    assert_eq!(questions(&turns), [prompt.as_str()]);
    assert_eq!(turns[0].status, "failed");
    let next = unique("next");
    device.ask("m-2", &next).await;
    let context = world.model().asked_for(&next).remove(0).messages();
    assert!(
        context.iter().all(|(_, text)| *text != prompt),
        "{context:?}"
    );
}

pub(super) async fn a_deleted_conversation_is_gone_and_the_others_stay(world: Arc<World>) {
    let user = unique("history");
    let mut away = Device::open(world.port(1), &user).await;
    away.drop_connection();
    let mut device = Device::open(world.port(0), &user).await;
    let history = History::new(world.port(0), &user);
    device.say_in("secret", "s-1", "forget this").await;
    device.end_of("s-1").await;
    device.say_in("kept", "k-1", "keep this").await;
    device.end_of("k-1").await;
    let status = history.delete("secret").await;
    assert!([200, 204].contains(&status), "{status}");
    assert_eq!(history.conversations().await, ["kept"]);
    let reply = history.page("kept", None, 10).await;
    assert_eq!(questions(&reply), ["keep this"]);
    // It is in nobody's mailbox any more.
    away.connect(world.port(1)).await;
    if away.transcript.reloads() == 1 {
        away.until_ended(&["k-1"]).await;
    }
    away.expect_silence(A_WHILE).await;
    assert!(away.transcript.get("s-1").is_none());
    // Not even by its id, and the model knows nothing of it.
    device.say_in("secret", "s-2", "what did I say?").await;
    device.end_of("s-2").await;
    let context = world.model().asked_for("what did I say?");
    let of_user: Vec<_> = context
        .iter()
        .flat_map(crate::support::model::Asked::messages)
        .collect();
    assert!(
        of_user
            .iter()
            .all(|(_, text)| !text.contains("forget this")),
        "{of_user:?}"
    );
    assert_eq!(history.conversations().await, ["secret", "kept"]);
}

pub(super) async fn deleting_everything_also_stops_what_is_in_flight(world: Arc<World>) {
    let user = unique("history");
    let (early, growing, waiting) = (unique("early"), unique("growing"), unique("waiting"));
    let endless = Script::new().role().text("a secret answer ").hang();
    world.model().next_for(&growing, endless);
    let mut device = Device::open(world.port(0), &user).await;
    let mut phone = Device::open(world.port(1), &user).await;
    let history = History::new(world.port(1), &user);
    device.ask("m-0", &early).await;
    device.say("m-1", &growing).await;
    device.until_text("m-1", "secret").await;
    device.say("m-2", &waiting).await;
    device.until_accepted("m-2").await;
    let status = history.delete_all().await;
    assert!([200, 204].contains(&status), "{status}");
    for socket in [&mut device, &mut phone] {
        socket.until_ended(&["m-1", "m-2"]).await;
        assert_eq!(socket.shown("m-1").ended(), Some("cancelled"));
        assert_eq!(socket.shown("m-2").ended(), Some("cancelled"));
    }
    assert_eq!(world.model().count_for(&waiting), 0);
    device.expect_silence(A_WHILE).await;
    assert!(history.conversations().await.is_empty(), "it came back");
    assert!(history.turns("default").await.is_empty());
    // A device that was there before sees that there is nothing.
    let mut late = Device::open(world.port(0), &user).await;
    assert_eq!(late.frames[0]["pending"], serde_json::json!([]));
    late.expect_silence(A_WHILE).await;
    let next = unique("next");
    device.ask("m-3", &next).await;
    let context = world.model().asked_for(&next).remove(0).messages();
    let knows = |text: &String| {
        [&early, &growing]
            .iter()
            .any(|prompt| text.contains(*prompt))
    };
    assert!(!context.iter().any(|(_, text)| knows(text)), "{context:?}");
}
