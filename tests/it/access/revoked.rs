//! Signed tokens end to end: refusal, revocation, and access to the history.

use super::*;
use crate::support::classic::{ClassicClient, ClientEvent};

async fn connect_classic(
    system: &AccessSystem,
    n: usize,
    user: &str,
    token: &str,
) -> Result<ClassicClient, u16> {
    let client = ClassicClient::connect(system.port(n), token, user).await;
    client.map_err(|refused| refused.status)
}

/// The close code with which `chatmesh.v1` refuses a token; `None` if it is accepted.
async fn refusal_code(system: &AccessSystem, n: usize, user: &str, token: &str) -> Option<u16> {
    let mut device = V1Client::new(user);
    let path = format!("/ws?userid={user}&token={token}");
    device.upgrade(system.port(n), &path, &[]).await.unwrap();
    match device.next_event(TEST_TIMEOUT).await {
        ClientEvent::Frame(frame) => {
            assert_eq!(frame["type"], "welcome");
            None
        }
        ClientEvent::Closed(code) => Some(code.expect("a close frame")),
        ClientEvent::TimedOut => panic!("the token was neither accepted nor refused"),
    }
}

/// A revocation at one gateway closes the connections at both and invalidates the earlier tokens.
pub(super) async fn one_revocation_closes_all_connections_of_the_user(system: &AccessSystem) {
    let (user, other) = (unique_name("revoked"), unique_name("stays"));
    let mut staying = system.device(1, &other).await;
    let mut devices = vec![system.device(0, &user).await, system.device(1, &user).await];
    let token = system.token(&user).await;
    let mut classics = vec![
        connect_classic(system, 0, &user, &token).await.unwrap(),
        connect_classic(system, 1, &user, &token).await.unwrap(),
    ];
    // A reply shows that the connection has subscribed.
    for client in &mut classics {
        client.send_text("?").await;
        assert_eq!(client.next_frame().await["code"], "invalid_message");
    }
    let without_iat = sign_claims(&json!({"sub": user, "exp": now_seconds() + 600}));
    assert_eq!(refusal_code(system, 1, &user, &without_iat).await, None);
    system.revoke(&user).await;
    for device in &mut devices {
        assert_eq!(device.expect_close().await, Some(4401));
    }
    for client in &mut classics {
        assert_eq!(client.expect_close().await, Some(4401));
    }
    let path = format!("/conversations?userid={user}");
    for earlier_token in [&token, &devices[0].token, &without_iat] {
        for n in 0..2 {
            assert_eq!(
                refusal_code(system, n, &user, earlier_token).await,
                Some(4401)
            );
            assert_eq!(
                connect_classic(system, n, &user, earlier_token).await.err(),
                Some(401)
            );
        }
        assert_eq!(
            system.status(Method::GET, &path, Some(earlier_token)).await,
            401
        );
    }
    // A new token is accepted by all gateways, and other users are not affected.
    let new_token = system.token(&user).await;
    for n in 0..2 {
        assert_eq!(refusal_code(system, n, &user, &new_token).await, None);
    }
    assert_eq!(
        system.status(Method::GET, &path, Some(&new_token)).await,
        200
    );
    assert!(staying.is_connected());
    assert_eq!(
        staying.send_and_wait("m-1", "still here").await["type"],
        "response"
    );
}

pub(super) async fn each_refusal_has_its_code_on_both_protocols(system: &AccessSystem) {
    let user = unique_name("refused");
    let valid_claims = json!({"sub": user, "exp": now_seconds() + 600});
    let with_claim = |name: &str, value: Value| {
        let mut claims = valid_claims.clone();
        claims[name] = value;
        sign_claims(&claims)
    };
    let without_claim = |name: &str| {
        let mut claims = valid_claims.clone();
        claims.as_object_mut().unwrap().remove(name);
        sign_claims(&claims)
    };
    let without_signature = sign_claims(&valid_claims)
        .rsplit_once('.')
        .unwrap()
        .0
        .to_owned()
        + ".";
    let unsigned = {
        // The first part of the token decodes to `{"alg":"none"}`.
        let claims = sign_claims(&valid_claims)
            .split('.')
            .nth(1)
            .unwrap()
            .to_owned();
        format!("eyJhbGciOiJub25lIn0.{claims}.")
    };
    for (token, status, code) in [
        (with_claim("sub", json!("somebody-else")), 403, 4403),
        (with_claim("exp", json!(now_seconds() - 60)), 401, 4401),
        (with_claim("nbf", json!(now_seconds() + 120)), 401, 4401),
        (without_claim("exp"), 401, 4401),
        (without_claim("sub"), 401, 4401),
        (without_signature, 401, 4401),
        (unsigned, 401, 4401),
        ("any-token".to_owned(), 401, 4401),
    ] {
        assert_eq!(
            refusal_code(system, 0, &user, &token).await,
            Some(code),
            "{token}"
        );
        assert_eq!(
            connect_classic(system, 1, &user, &token).await.err(),
            Some(status)
        );
        let path = format!("/conversations?userid={user}");
        let reply = system.call(Method::GET, &path, Some(&token)).await;
        assert_eq!(reply.status, status, "{token}");
        assert_eq!(reply.json()["code"], "unauthorized");
    }
    // A connection is closed 30 seconds after its token expires, because that much clock skew is
    // tolerated. This token expired 28 seconds ago.
    let expiring = with_claim("exp", json!(now_seconds() - 28));
    let mut device = V1Client::new(&user);
    device.token = expiring;
    device.connect(system.port(0)).await;
    assert_eq!(device.expect_close().await, Some(4401));
}

/// Without `userid`, the history is that of the token's subject.
pub(super) async fn history_is_that_of_the_token_subject(system: &AccessSystem) {
    let user = unique_name("subject");
    let mut device = system.device(0, &user).await;
    let text = unique_name("text");
    device.send_and_wait("m-1", &text).await;
    let (token, other_token) = (
        device.token.clone(),
        system.token(&unique_name("other")).await,
    );
    let listed = system
        .call(Method::GET, "/conversations", Some(&token))
        .await;
    let entry = &listed.json()["conversations"][0];
    assert_eq!(entry["conversation_id"], "default", "{}", listed.body);
    let path = "/conversations/default/messages";
    let page = system.call(Method::GET, path, Some(&token)).await;
    assert!(page.body.contains(&text), "{}", page.body);
    let other_page = system.call(Method::GET, path, Some(&other_token)).await;
    assert!(!other_page.body.contains(&text), "{}", other_page.body);
    for bearer in [None, Some("any-token"), Some(ADMIN_KEY)] {
        let status = system.status(Method::GET, path, bearer).await;
        assert!([400, 401].contains(&status), "{status}");
    }
    let status = system
        .status(Method::DELETE, "/conversations", Some(&other_token))
        .await;
    assert_eq!(status, 204);
    assert_eq!(system.history(&user, &token, "default").await.len(), 1);
    let status = system
        .status(Method::DELETE, "/conversations/default", Some(&token))
        .await;
    assert_eq!(status, 204);
    assert!(system.history(&user, &token, "default").await.is_empty());
}
