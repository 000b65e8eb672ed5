//! Signed tokens: how they are issued, the parts of a request that may carry one, and expiry.

use std::time::{SystemTime, UNIX_EPOCH};

use chatmesh::config::settings::{JwtKeys, JwtSettings};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::json;

use super::*;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn signed_settings() -> GatewaySettings {
    GatewaySettings {
        auth: AuthMode::Jwt,
        jwt: Some(JwtSettings {
            keys: JwtKeys::Secret(SECRET.into()),
            audience: Vec::new(),
            issuer: Vec::new(),
        }),
        token_endpoint: TokenEndpoint::Open,
        ..settings()
    }
}

/// A token that expires after `lifetime_seconds`.
fn token(user: &str, lifetime_seconds: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let exp = i64::try_from(now.as_secs()).unwrap() + lifetime_seconds;
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let claims = json!({"sub": user, "exp": exp});
    encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap()
}

#[tokio::test]
async fn signed_token_is_accepted_in_query_header_and_subprotocol() {
    let gateway = start(signed_settings()).await;
    let (status, _, body) = gateway.http("POST /token?userid=alice HTTP/1.1").await;
    assert_eq!(status, 200, "{body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    let token_text = body["token"].as_str().unwrap();
    let query = format!("?userid=alice&token={token_text}");
    while gateway.try_upgrade(&query, &[]).await.0 == 503 {}
    let (alice, bearer) = ("?userid=alice", format!("Bearer {token_text}"));
    let subprotocol = format!("bearer.{token_text}");
    assert_eq!(gateway.try_upgrade(&query, &[]).await.0, 101);
    let header = [("authorization", bearer.as_str())];
    assert_eq!(gateway.try_upgrade(alice, &header).await.0, 101);
    assert_eq!(gateway.try_upgrade("?userid=bob", &header).await.0, 403);
    assert_eq!(gateway.try_upgrade(alice, &[]).await.0, 401);
    let expired_query = format!("?userid=alice&token={}", token("alice", -60));
    assert_eq!(gateway.try_upgrade(&expired_query, &[]).await.0, 401);
    // The client library rejects a response without a subprotocol, so the request is sent by hand.
    let mut stream = TcpStream::connect(gateway.addr).await.unwrap();
    let request = format!(
        "GET /ws{alice} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {subprotocol}\r\nConnection: Upgrade\r\n\r\n",
        gateway.addr
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let byte = timeout(TEST_TIMEOUT, stream.read_u8())
            .await
            .unwrap()
            .unwrap();
        head.push(char::from(byte.to_ascii_lowercase()));
    }
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(!head.contains("sec-websocket-protocol"), "{head}");
    assert!(!head.contains(&token_text.to_ascii_lowercase()), "{head}");
}

#[tokio::test]
async fn connection_is_closed_when_its_signed_token_expires() {
    let gateway = start(signed_settings()).await;
    // Thirty seconds of clock skew are tolerated, so this token is valid for three more seconds.
    let query = format!("?userid=alice&token={}", token("alice", -27));
    let mut client = loop {
        match gateway.upgrade(&query, &[]).await {
            Ok(client) => break client,
            Err((503, _)) => tokio::task::yield_now().await,
            Err(refusal) => panic!("{refusal:?}"),
        }
    };
    assert_eq!(client.close_code().await, 4401);
}

#[tokio::test]
async fn token_endpoint_does_not_exist_without_a_signing_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    let public_key =
        r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    std::fs::write(&path, format!(r#"{{"keys":[{public_key}]}}"#)).unwrap();
    let gateway = start(GatewaySettings {
        jwt: Some(JwtSettings {
            keys: JwtKeys::JwksFile(path),
            audience: Vec::new(),
            issuer: Vec::new(),
        }),
        ..signed_settings()
    })
    .await;
    let (status, _, _) = gateway.http("POST /token?userid=alice HTTP/1.1").await;
    assert_eq!(status, 404);
}
