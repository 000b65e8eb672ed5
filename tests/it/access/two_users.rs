//! Isolation (I8): through no route does a user see or change what belongs to another.

use std::time::Duration;

use super::*;
use crate::support::classic::{ClassicClient, ClientEvent};
use crate::support::model::Script;

/// Valid userids that resemble Alice's as closely as possible.
fn similar_userids(alice: &str) -> Vec<String> {
    vec![
        format!("user:{alice}"),
        format!("{alice}:live"),
        format!("{alice}|"),
        format!("{alice}@x+y"),
        alice.to_uppercase(),
    ]
}

async fn connect_classic(system: &AccessSystem, n: usize, user: &str) -> ClassicClient {
    let path = format!("/ws?userid={}", url_encoded(user));
    let bearer = format!("Bearer {}", system.token(user).await);
    let headers = [("authorization", bearer.as_str())];
    let client = ClassicClient::connect_with(system.port(n), &path, &headers, user).await;
    client.unwrap_or_else(|refused| panic!("{user}: {refused:?}"))
}

/// Tries every operation of a client on Alice's data, as another user.
async fn attack(system: &AccessSystem, alice: &Alice, user: &str) {
    let mut device = system.device(1, user).await;
    let token = device.token.clone();

    // A token is refused for any other user.
    let (own_userid, alice_userid) = (url_encoded(user), url_encoded(&alice.user));
    for (userid, bearer) in [(&own_userid, &alice.token), (&alice_userid, &token)] {
        for (method, path) in [
            (Method::GET, "/conversations?"),
            (Method::DELETE, "/conversations?"),
            (Method::GET, "/conversations/private/messages?"),
            (Method::DELETE, "/conversations/private?"),
        ] {
            let path = format!("{path}userid={userid}");
            let status = system.status(method, &path, Some(bearer)).await;
            assert_eq!(status, 403, "{path} by {user}");
        }
        let path = format!("/ws?userid={userid}&token={bearer}");
        let refused = ClassicClient::connect_with(system.port(0), &path, &[], user).await;
        assert_eq!(refused.unwrap_err().status, 403);
        let mut rejected = V1Client::new(user);
        rejected.upgrade(system.port(0), &path, &[]).await.unwrap();
        assert!(matches!(
            rejected.next_event(TEST_TIMEOUT).await,
            ClientEvent::Closed(Some(4403))
        ));
    }
    // A user's token is not the operator's key.
    for method in [Method::POST, Method::DELETE] {
        let path = format!("/token?userid={alice_userid}");
        for bearer in [None, Some(&*token), Some(&*alice.token)] {
            let status = system.status(method.clone(), &path, bearer).await;
            assert_eq!(status, 401);
        }
    }

    // The ids of Alice's messages name the attacker's own ones, and her `message_id`s are unknown.
    let own_text = unique_name("mine");
    device.send_message_in("private", "a-1", &own_text).await;
    let terminal_frame = device.wait_for_terminal_frame("a-1").await;
    assert_eq!(terminal_frame["content"], format!("echo: {own_text}"));
    let prompt = system.model.requests_for(&own_text).remove(0).messages();
    assert!(
        prompt.iter().all(|(_, text)| !text.contains(&alice.mark)),
        "{prompt:?}"
    );
    for cancel in [
        json!({"type": "cancel", "message_id": alice.in_progress}),
        json!({"type": "cancel", "message_id": alice.answered}),
        json!({"type": "cancel", "id": "a-2"}),
    ] {
        device.send_text(&cancel.to_string()).await;
        let result = device.wait_for_type("cancel_result").await;
        assert_eq!(result["result"], "unknown", "{cancel}: {result}");
    }
    let turns = system.history(user, &token, "private").await;
    assert_eq!(turns, [(own_text.clone(), format!("echo: {own_text}"))]);
    let path = format!(
        "/conversations/private/messages?userid={own_userid}&before={}",
        alice.answered
    );
    assert_eq!(system.status(Method::GET, &path, Some(&token)).await, 404);

    // Resuming from Alice's position reveals none of her data.
    let mut resuming = V1Client::new(user);
    resuming.token.clone_from(&token);
    resuming.transcript.position.clone_from(&alice.position);
    let welcome = resuming.connect(system.port(0)).await;
    assert_eq!(welcome["pending"], json!([]), "{welcome}");
    while let ClientEvent::Frame(frame) = resuming.next_event(Duration::from_millis(300)).await {
        assert!(!frame.to_string().contains(&alice.mark), "{frame}");
    }
    drop(resuming);

    // Deleting all conversations deletes the attacker's only.
    let path = format!("/conversations?userid={own_userid}");
    assert_eq!(
        system.status(Method::DELETE, &path, Some(&token)).await,
        204
    );
    assert!(system.history(user, &token, "private").await.is_empty());
    system.revoke(user).await;
    let path = format!("/conversations?userid={own_userid}");
    assert_eq!(system.status(Method::GET, &path, Some(&token)).await, 401);
}

/// The user whose data the others try to access.
struct Alice {
    user: String,
    token: String,
    /// A word that each of Alice's texts contains.
    mark: String,
    /// The `message_id` of the message that is being answered.
    in_progress: String,
    /// The `message_id` of the answered message.
    answered: String,
    position: Option<String>,
}

pub(super) async fn no_user_sees_or_changes_data_of_another(system: &AccessSystem) {
    let user = unique_name("alice");
    let mark = unique_name("mark");
    let (first, second) = (format!("{mark} first"), format!("{mark} second"));
    let unfinished = Script::new().role().text(&format!("{mark} grows ")).hang();
    system.model.queue_answer(&second, unfinished);

    // Users with similar ids are connected on both protocols and all gateways from the start.
    let mut v1_clients = Vec::new();
    let mut classic_clients = Vec::new();
    for similar in similar_userids(&user) {
        v1_clients.push(system.device(0, &similar).await);
        classic_clients.push(connect_classic(system, 1, &similar).await);
    }
    let mut alice_classic = connect_classic(system, 0, &user).await;
    let mut device = system.device(1, &user).await;
    device.send_message_in("private", "a-1", &first).await;
    let terminal_frame = device.wait_for_terminal_frame("a-1").await;
    assert_eq!(
        alice_classic.next_frame().await["content"],
        terminal_frame["content"]
    );
    device.send_message_in("private", "a-2", &second).await;
    device.wait_for_text("a-2", "grows").await;
    let alice = Alice {
        token: device.token.clone(),
        in_progress: device.transcript.message_id("a-2").unwrap().to_owned(),
        answered: terminal_frame["message_id"].as_str().unwrap().to_owned(),
        position: device.transcript.position.clone(),
        user: user.clone(),
        mark: mark.clone(),
    };
    for (v1_client, classic_client) in v1_clients.iter_mut().zip(&mut classic_clients) {
        let event = v1_client.next_event(Duration::from_millis(100)).await;
        let received_frame = matches!(event, ClientEvent::Frame(_));
        assert!(!received_frame, "{} received {event:?}", v1_client.user);
        classic_client
            .expect_no_frame(Duration::from_millis(100))
            .await;
    }
    let attackers = similar_userids(&user);
    let attacks = attackers.iter().map(|name| attack(system, &alice, name));
    futures_util::future::join_all(attacks).await;
    for (mut v1_client, mut classic_client) in v1_clients.into_iter().zip(classic_clients) {
        // Each client received only frames of its own user, and was closed by the revocation of its
        // own token.
        assert_eq!(v1_client.expect_close().await, Some(4401));
        assert!(
            v1_client
                .frames
                .iter()
                .all(|frame| !frame.to_string().contains(&mark))
        );
        assert_eq!(classic_client.expect_close().await, Some(4401));
    }

    // Alice is not affected: her answer is still in progress, and her history is complete.
    assert_eq!(system.model.request_count_for(&second), 1);
    assert_eq!(device.message("a-2").outcome_type(), None);
    device.cancel("a-2").await;
    device.wait_for_terminal_frames(&["a-2"]).await;
    assert_eq!(device.message("a-2").outcome_type(), Some("cancelled"));
    let turns = system.history(&user, &alice.token, "private").await;
    let questions: Vec<&String> = turns.iter().map(|(question, _)| question).collect();
    assert_eq!(questions, [&second, &first]);
    while let ClientEvent::Frame(frame) = device.next_event(QUIET_PERIOD).await {
        // The result of her own cancel may arrive after the terminal frame.
        assert_eq!(frame["type"], "cancel_result", "{frame}");
    }
    system.assert_not_logged(&[
        ("a message or an answer", &mark),
        ("a token", &alice.token),
        ("the admin key", ADMIN_KEY),
        ("the secret", SECRET),
    ]);
}

async fn test_access(system: AccessSystem) {
    hostile::userids_are_refused_everywhere(&system).await;
    hostile::other_identifiers_are_refused_everywhere(&system).await;
    no_user_sees_or_changes_data_of_another(&system).await;
    revoked::one_revocation_closes_all_connections_of_the_user(&system).await;
    revoked::each_refusal_has_its_code_on_both_protocols(&system).await;
    revoked::history_is_that_of_the_token_subject(&system).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_isolated_on_embedded_engines() {
    test_access(AccessSystem::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_isolated_on_kafka_and_redis() {
    test_access(AccessSystem::scaled_out().await).await;
}
