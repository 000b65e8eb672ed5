//! Two users through every route: what one has, the other neither sees nor changes (I8).

use std::time::Duration;

use super::*;
use crate::support::classic::{ClassicClient, ClientEvent};
use crate::support::model::Script;

/// Userids that are taken, and lie as near to Alice's as can be.
fn neighbours(alice: &str) -> Vec<String> {
    vec![
        format!("user:{alice}"),
        format!("{alice}:live"),
        format!("{alice}|"),
        format!("{alice}@x+y"),
        alice.to_uppercase(),
    ]
}

async fn classic(ground: &Ground, n: usize, user: &str) -> ClassicClient {
    let path = format!("/ws?userid={}", encoded(user));
    let bearer = format!("Bearer {}", ground.token(user).await);
    let headers = [("authorization", bearer.as_str())];
    let client = ClassicClient::connect_with(ground.port(n), &path, &headers, user).await;
    client.unwrap_or_else(|refused| panic!("{user}: {refused:?}"))
}

/// One neighbour does to Alice's things whatever a client can do.
async fn meddle(ground: &Ground, alice: &Alice, user: &str) {
    let mut device = ground.device(1, user).await;
    let token = device.token.clone();

    // Her token is not theirs, nor theirs hers.
    let (own, hers) = (encoded(user), encoded(&alice.user));
    for (userid, bearer) in [(&own, &alice.token), (&hers, &token)] {
        for (method, path) in [
            (Method::GET, "/conversations?"),
            (Method::DELETE, "/conversations?"),
            (Method::GET, "/conversations/private/messages?"),
            (Method::DELETE, "/conversations/private?"),
        ] {
            let path = format!("{path}userid={userid}");
            let status = ground.status(method, &path, Some(bearer)).await;
            assert_eq!(status, 403, "{path} by {user}");
        }
        let path = format!("/ws?userid={userid}&token={bearer}");
        let refused = ClassicClient::connect_with(ground.port(0), &path, &[], user).await;
        assert_eq!(refused.unwrap_err().status, 403);
        let mut turned_away = V1Client::new(user);
        turned_away
            .upgrade(ground.port(0), &path, &[])
            .await
            .unwrap();
        assert!(matches!(
            turned_away.next_event(TEST_TIMEOUT).await,
            ClientEvent::Closed(Some(4403))
        ));
    }
    // A user's token is not the operator's key.
    for method in [Method::POST, Method::DELETE] {
        let path = format!("/token?userid={hers}");
        for bearer in [None, Some(&*token), Some(&*alice.token)] {
            let status = ground.status(method.clone(), &path, bearer).await;
            assert_eq!(status, 401);
        }
    }

    // The same names mean other things, and hers can't be named.
    let mine = unique_name("mine");
    device.send_message_in("private", "a-1", &mine).await;
    let end = device.wait_for_end("a-1").await;
    assert_eq!(end["content"], format!("echo: {mine}"));
    let asked = ground.model.requests_for(&mine).remove(0).messages();
    assert!(
        asked.iter().all(|(_, text)| !text.contains(&alice.mark)),
        "{asked:?}"
    );
    for cancel in [
        json!({"type": "cancel", "message_id": alice.growing}),
        json!({"type": "cancel", "message_id": alice.ended}),
        json!({"type": "cancel", "id": "a-2"}),
    ] {
        device.send_text(&cancel.to_string()).await;
        let told = device.wait_for_type("cancel_result").await;
        assert_eq!(told["result"], "unknown", "{cancel}: {told}");
    }
    let turns = ground.history(user, &token, "private").await;
    assert_eq!(turns, [(mine.clone(), format!("echo: {mine}"))]);
    let path = format!(
        "/conversations/private/messages?userid={own}&before={}",
        alice.ended
    );
    assert_eq!(ground.status(Method::GET, &path, Some(&token)).await, 404);

    // Her position says nothing to them.
    let mut late = V1Client::new(user);
    late.token.clone_from(&token);
    late.transcript.position.clone_from(&alice.position);
    let welcome = late.connect(ground.port(0)).await;
    assert_eq!(welcome["pending"], json!([]), "{welcome}");
    while let ClientEvent::Frame(frame) = late.next_event(Duration::from_millis(300)).await {
        assert!(!frame.to_string().contains(&alice.mark), "{frame}");
    }
    drop(late);

    // Forgetting everything is forgetting one's own.
    let path = format!("/conversations?userid={own}");
    assert_eq!(
        ground.status(Method::DELETE, &path, Some(&token)).await,
        204
    );
    assert!(ground.history(user, &token, "private").await.is_empty());
    ground.revoke(user).await;
    let path = format!("/conversations?userid={own}");
    assert_eq!(ground.status(Method::GET, &path, Some(&token)).await, 401);
}

struct Alice {
    user: String,
    token: String,
    /// In each of her texts.
    mark: String,
    /// The `message_id` of what is being answered, and of what was.
    growing: String,
    ended: String,
    position: Option<String>,
}

pub(super) async fn nobody_sees_or_changes_what_is_anothers(ground: &Ground) {
    let user = unique_name("alice");
    let mark = unique_name("mark");
    let (first, second) = (format!("{mark} first"), format!("{mark} second"));
    let growing = Script::new().role().text(&format!("{mark} grows ")).hang();
    ground.model.queue_answer(&second, growing);

    // All who are near are there, on both protocols and all gateways, before anything happens.
    let mut bystanders = Vec::new();
    let mut classics = Vec::new();
    for near in neighbours(&user) {
        bystanders.push(ground.device(0, &near).await);
        classics.push(classic(ground, 1, &near).await);
    }
    let mut hers = classic(ground, 0, &user).await;
    let mut device = ground.device(1, &user).await;
    device.send_message_in("private", "a-1", &first).await;
    let end = device.wait_for_end("a-1").await;
    assert_eq!(hers.next_frame().await["content"], end["content"]);
    device.send_message_in("private", "a-2", &second).await;
    device.wait_for_text("a-2", "grows").await;
    let alice = Alice {
        token: device.token.clone(),
        growing: device.transcript.message_id("a-2").unwrap().to_owned(),
        ended: end["message_id"].as_str().unwrap().to_owned(),
        position: device.transcript.position.clone(),
        user: user.clone(),
        mark: mark.clone(),
    };
    for (bystander, other) in bystanders.iter_mut().zip(&mut classics) {
        let event = bystander.next_event(Duration::from_millis(100)).await;
        let got = matches!(event, ClientEvent::Frame(_));
        assert!(!got, "{} got {event:?}", bystander.user);
        other.expect_no_frame(Duration::from_millis(100)).await;
    }
    let around = neighbours(&user);
    let meddling = around.iter().map(|near| meddle(ground, &alice, near));
    futures_util::future::join_all(meddling).await;
    for (mut bystander, mut other) in bystanders.into_iter().zip(classics) {
        // They were told of their own, and put out with their own tokens.
        assert_eq!(bystander.expect_close().await, Some(4401));
        assert!(
            bystander
                .frames
                .iter()
                .all(|it| !it.to_string().contains(&mark))
        );
        assert_eq!(other.expect_close().await, Some(4401));
    }

    // She was not: it is still being written, and everything is there.
    assert_eq!(ground.model.request_count_for(&second), 1);
    assert_eq!(device.message("a-2").outcome_type(), None);
    device.cancel("a-2").await;
    device.wait_for_ends(&["a-2"]).await;
    assert_eq!(device.message("a-2").outcome_type(), Some("cancelled"));
    let turns = ground.history(&user, &alice.token, "private").await;
    let questions: Vec<&String> = turns.iter().map(|(question, _)| question).collect();
    assert_eq!(questions, [&second, &first]);
    while let ClientEvent::Frame(frame) = device.next_event(QUIET_PERIOD).await {
        // Of her own cancel; it may come after the end.
        assert_eq!(frame["type"], "cancel_result", "{frame}");
    }
    ground.assert_unprinted(&[
        ("a message or an answer", &mark),
        ("a token", &alice.token),
        ("the admin key", ADMIN_KEY),
        ("the secret", SECRET),
    ]);
}

async fn everything_on(ground: Ground) {
    hostile::userids_are_refused_everywhere(&ground).await;
    hostile::other_identifiers_are_refused_everywhere(&ground).await;
    nobody_sees_or_changes_what_is_anothers(&ground).await;
    revoked::one_revocation_ends_all_of_a_users_sockets(&ground).await;
    revoked::each_refusal_has_its_code_on_both_protocols(&ground).await;
    revoked::the_history_is_the_tokens_subjects(&ground).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_apart_on_embedded() {
    everything_on(Ground::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_apart_on_kafka_and_redis() {
    everything_on(Ground::scaled_out().await).await;
}
