//! Signed tokens end to end: refused, revoked, and whose history they open.

use super::*;
use crate::support::classic::{ClassicClient, ClientEvent};

async fn classic(ground: &Ground, n: usize, user: &str, token: &str) -> Result<ClassicClient, u16> {
    let client = ClassicClient::connect(ground.port(n), token, user).await;
    client.map_err(|refused| refused.status)
}

/// The close code by which `chatmesh.v1` refuses a token; `None` where it is taken.
async fn refused(ground: &Ground, n: usize, user: &str, token: &str) -> Option<u16> {
    let mut device = V1Client::new(user);
    let path = format!("/ws?userid={user}&token={token}");
    device.upgrade(ground.port(n), &path, &[]).await.unwrap();
    match device.next_event(TEST_TIMEOUT).await {
        ClientEvent::Frame(frame) => {
            assert_eq!(frame["type"], "welcome");
            None
        }
        ClientEvent::Closed(code) => Some(code.expect("a close frame")),
        ClientEvent::TimedOut => panic!("neither taken nor refused"),
    }
}

/// Revoked at one gateway; the sockets at the other are closed, and the old tokens open nothing.
pub(super) async fn one_revocation_ends_all_of_a_users_sockets(ground: &Ground) {
    let (user, other) = (unique_name("revoked"), unique_name("stays"));
    let mut staying = ground.device(1, &other).await;
    let mut devices = vec![ground.device(0, &user).await, ground.device(1, &user).await];
    let token = ground.token(&user).await;
    let mut classics = vec![
        classic(ground, 0, &user, &token).await.unwrap(),
        classic(ground, 1, &user, &token).await.unwrap(),
    ];
    // Once they are answered they have all subscribed.
    for client in &mut classics {
        client.send_text("?").await;
        assert_eq!(client.next_frame().await["code"], "invalid_message");
    }
    let undated = made(&json!({"sub": user, "exp": now() + 600}));
    assert_eq!(refused(ground, 1, &user, &undated).await, None);
    ground.revoke(&user).await;
    for device in &mut devices {
        assert_eq!(device.expect_close().await, Some(4401));
    }
    for client in &mut classics {
        assert_eq!(client.expect_close().await, Some(4401));
    }
    let path = format!("/conversations?userid={user}");
    for old in [&token, &devices[0].token, &undated] {
        for n in 0..2 {
            assert_eq!(refused(ground, n, &user, old).await, Some(4401));
            assert_eq!(classic(ground, n, &user, old).await.err(), Some(401));
        }
        assert_eq!(ground.status(Method::GET, &path, Some(old)).await, 401);
    }
    // A new one does, on all gateways; and nobody else was concerned.
    let new = ground.token(&user).await;
    for n in 0..2 {
        assert_eq!(refused(ground, n, &user, &new).await, None);
    }
    assert_eq!(ground.status(Method::GET, &path, Some(&new)).await, 200);
    assert!(staying.is_connected());
    assert_eq!(
        staying.send_and_wait("m-1", "still here").await["type"],
        "response"
    );
}

pub(super) async fn each_refusal_has_its_code_on_both_protocols(ground: &Ground) {
    let user = unique_name("refused");
    let good = json!({"sub": user, "exp": now() + 600});
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        made(&claims)
    };
    let without = |name: &str| {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().remove(name);
        made(&claims)
    };
    let signature_cut = made(&good).rsplit_once('.').unwrap().0.to_owned() + ".";
    let unsigned = {
        // {"alg":"none"}
        let claims = made(&good).split('.').nth(1).unwrap().to_owned();
        format!("eyJhbGciOiJub25lIn0.{claims}.")
    };
    for (token, status, code) in [
        (with("sub", json!("somebody-else")), 403, 4403),
        (with("exp", json!(now() - 60)), 401, 4401),
        (with("nbf", json!(now() + 120)), 401, 4401),
        (without("exp"), 401, 4401),
        (without("sub"), 401, 4401),
        (signature_cut, 401, 4401),
        (unsigned, 401, 4401),
        ("any-token".to_owned(), 401, 4401),
    ] {
        assert_eq!(
            refused(ground, 0, &user, &token).await,
            Some(code),
            "{token}"
        );
        assert_eq!(classic(ground, 1, &user, &token).await.err(), Some(status));
        let path = format!("/conversations?userid={user}");
        let reply = ground.call(Method::GET, &path, Some(&token)).await;
        assert_eq!(reply.status, status, "{token}");
        assert_eq!(reply.json()["code"], "unauthorized");
    }
    // It ends with its token, which has 30 seconds of skew.
    let short = with("exp", json!(now() - 28));
    let mut device = V1Client::new(&user);
    device.token = short;
    device.connect(ground.port(0)).await;
    assert_eq!(device.expect_close().await, Some(4401));
}

/// Without `userid=` a signed token's history is its subject's.
pub(super) async fn the_history_is_the_tokens_subjects(ground: &Ground) {
    let user = unique_name("subject");
    let mut device = ground.device(0, &user).await;
    let text = unique_name("said");
    device.send_and_wait("m-1", &text).await;
    let (token, other) = (
        device.token.clone(),
        ground.token(&unique_name("other")).await,
    );
    let listed = ground
        .call(Method::GET, "/conversations", Some(&token))
        .await;
    let entry = &listed.json()["conversations"][0];
    assert_eq!(entry["conversation_id"], "default", "{}", listed.body);
    let path = "/conversations/default/messages";
    let page = ground.call(Method::GET, path, Some(&token)).await;
    assert!(page.body.contains(&text), "{}", page.body);
    let theirs = ground.call(Method::GET, path, Some(&other)).await;
    assert!(!theirs.body.contains(&text), "{}", theirs.body);
    for bearer in [None, Some("any-token"), Some(ADMIN_KEY)] {
        let status = ground.status(Method::GET, path, bearer).await;
        assert!([400, 401].contains(&status), "{status}");
    }
    let status = ground
        .status(Method::DELETE, "/conversations", Some(&other))
        .await;
    assert_eq!(status, 204);
    assert_eq!(ground.history(&user, &token, "default").await.len(), 1);
    let status = ground
        .status(Method::DELETE, "/conversations/default", Some(&token))
        .await;
    assert_eq!(status, 204);
    assert!(ground.history(&user, &token, "default").await.is_empty());
}
