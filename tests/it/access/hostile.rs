//! Userids and other identifiers that have a meaning in a store, a log or a shell are refused by
//! every route.

use super::*;
use crate::support::classic::ClassicClient;

fn hostile_names() -> Vec<String> {
    let mut names: Vec<String> = [
        "*",
        "?",
        "[a-z]*",
        "user:*",
        "{}",
        "{a}",
        "a{b}c",
        "{user:alice}",
        "a b",
        " alice",
        "alice ",
        "a\r\nSET x y\r\n",
        "a\nb",
        "a\tb",
        "a\0",
        "\0",
        "../alice",
        "..\\alice",
        "a/b",
        "%2e%2e%2f",
        "a%00",
        "\u{e9}lise",
        "alic\u{435}",
        "\u{1f600}",
        "\u{202e}ecila",
        "'",
        "\"",
        "a,b",
        "a;b",
        "<b>",
        "$(id)",
        "`id`",
        "a&b=c",
        "a#b",
        "",
    ]
    .map(str::to_owned)
    .to_vec();
    names.extend(["a".repeat(129), "a".repeat(3000), "\u{e9}".repeat(128)]);
    names
}

/// Every route refuses a hostile userid, even with valid credentials.
pub(super) async fn userids_are_refused_everywhere(system: &AccessSystem) {
    for name in hostile_names() {
        let user = url_encoded(&name);
        let token = token_for(&name);
        let own_token = Some(&*token);
        let admin_key = Some(ADMIN_KEY);
        for (method, path, bearer) in [
            (Method::POST, "/token?", admin_key),
            (Method::DELETE, "/token?", admin_key),
            (Method::GET, "/conversations?", own_token),
            (Method::DELETE, "/conversations?", own_token),
            (Method::GET, "/conversations/default/messages?", own_token),
            (Method::DELETE, "/conversations/default?", own_token),
        ] {
            let path = format!("{path}userid={user}");
            let status = system.status(method.clone(), &path, bearer).await;
            assert_eq!(status, 400, "{method} {path} as {name:?}");
        }
        // Without the parameter, the subject of the token is refused.
        let status = system
            .status(Method::GET, "/conversations", own_token)
            .await;
        assert!([400, 401].contains(&status), "{status} for {name:?}");
        let path = format!("/ws?token={token}&userid={user}");
        let refused = ClassicClient::connect_with(system.port(0), &path, &[], &name).await;
        assert_eq!(refused.unwrap_err().status, 400, "{name:?}");
        let refused = V1Client::new(&name)
            .upgrade(system.port(0), &path, &[])
            .await;
        assert_eq!(refused.unwrap_err().status, 400, "{name:?} on chatmesh.v1");
    }
}

/// Every route and frame refuses a hostile conversation or message id, and nothing is stored.
pub(super) async fn other_identifiers_are_refused_everywhere(system: &AccessSystem) {
    let user = unique_name("careful");
    let mut device = system.device(0, &user).await;
    let token = device.token.clone();
    let text = unique_name("kept");
    device.send_and_wait("m-1", &text).await;
    for name in hostile_names() {
        let segment = url_encoded(&name).replace('+', "%20");
        for (method, path) in [
            (Method::DELETE, format!("/conversations/{segment}")),
            (Method::GET, format!("/conversations/{segment}/messages")),
            (
                Method::GET,
                format!(
                    "/conversations/default/messages?before={}",
                    url_encoded(&name)
                ),
            ),
            (
                Method::GET,
                format!("/conversations?after={}", url_encoded(&name)),
            ),
        ] {
            let status = system.status(method.clone(), &path, Some(&token)).await;
            assert!([400, 404].contains(&status), "{status}: {method} {path}");
        }
        for frame in [
            json!({"type": "message", "id": name, "content": "x"}),
            json!({"type": "message", "id": "m-2", "content": "x", "conversation_id": name}),
            json!({"type": "message", "id": "m-2", "content": "x", "userid": name}),
            json!({"type": "cancel", "id": name}),
            json!({"type": "cancel", "message_id": name}),
        ] {
            device.send_text(&frame.to_string()).await;
            let answer = device.next_frame().await;
            assert_eq!(answer["code"], "invalid_message", "{frame}: {answer}");
        }
        let path = format!(
            "/ws?token={token}&userid={user}&since={}",
            url_encoded(&name)
        );
        let mut other = V1Client::new(&user);
        match other.upgrade(system.port(0), &path, &[]).await {
            Err(refused) => assert_eq!(refused.status, 400, "{name:?}"),
            Ok(()) => assert!(name.is_empty(), "since={name:?} was accepted"),
        }
    }
    let turns = system.history(&user, &token, "default").await;
    assert_eq!(turns, [(text.clone(), format!("echo: {text}"))]);
}
