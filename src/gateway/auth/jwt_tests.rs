use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use jsonwebtoken::jwk::Jwk;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

// These keys are used in tests only.
const RSA_PRIVATE_KEY: &[u8] = include_bytes!("testkeys/rsa.pem");
const RSA_PUBLIC_KEY: &str = include_str!("testkeys/rsa.pub.pem");
const EC_PRIVATE_KEY: &[u8] = include_bytes!("testkeys/ec.pem");
const EC_PUBLIC_KEY: &str = include_str!("testkeys/ec.pub.pem");
const ED25519_PRIVATE_KEY: &[u8] = include_bytes!("testkeys/ed.pem");
const ED25519_PUBLIC_KEY: &str = include_str!("testkeys/ed.pub.pem");
const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn alice() -> UserId {
    UserId::parse("alice").unwrap()
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

fn valid_claims() -> Value {
    json!({"sub": "alice", "exp": now() + 60})
}

fn settings(keys: JwtKeys) -> JwtSettings {
    JwtSettings {
        keys,
        audience: Vec::new(),
        issuer: Vec::new(),
    }
}

fn secret_settings() -> JwtSettings {
    settings(JwtKeys::Secret(SECRET.into()))
}

fn sign(algorithm: Algorithm, kid: Option<&str>, key: &EncodingKey, claims: &Value) -> String {
    let header = Header {
        kid: kid.map(str::to_owned),
        ..Header::new(algorithm)
    };
    encode(&header, claims, key).unwrap()
}

fn sign_with_secret(claims: &Value) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    sign(Algorithm::HS256, None, &key, claims)
}

async fn verify(settings: &JwtSettings, token: &str) -> Result<VerifiedToken, TokenError> {
    let verifier = JwtVerifier::new(settings).unwrap();
    verifier.verify(token, &alice()).await
}

fn key_file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    std::fs::File::create(&path)
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    (folder, path)
}

/// Encodes JSON as one part of a token.
fn encode_part(text: &str) -> String {
    let key = EncodingKey::from_secret(b"x");
    let claims: Value = serde_json::from_str(text).unwrap();
    let token = encode(&Header::default(), &claims, &key).unwrap();
    token.split('.').nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn token_is_valid_for_its_user_until_it_expires() {
    let settings = secret_settings();
    let token = issue(&settings, &alice(), Duration::from_secs(60)).unwrap();
    let verified = verify(&settings, &token).await.unwrap();
    let left = verified
        .expires_at
        .duration_since(SystemTime::now())
        .unwrap();
    assert!(left > Duration::from_secs(80) && left <= Duration::from_secs(90));
    assert!(verified.issued_at_ms.unwrap().abs_diff(now() * 1000) < 5_000);
    let verifier = JwtVerifier::new(&settings).unwrap();
    let bob = UserId::parse("bob").unwrap();
    assert_eq!(
        verifier.verify(&token, &bob).await,
        Err(TokenError::WrongUser)
    );
    for (claims, expected) in [
        (valid_claims(), true),
        // `exp` is in the past by less than the tolerated clock skew.
        (json!({"sub": "alice", "exp": now() - 20}), true),
        (json!({"sub": "alice", "exp": now() - 40}), false),
        (
            json!({"sub": "alice", "exp": now() + 60, "nbf": now() + 20}),
            true,
        ),
        (
            json!({"sub": "alice", "exp": now() + 60, "nbf": now() + 90}),
            false,
        ),
        (
            json!({"sub": "alice", "exp": now() + 9999, "iat": now() + 20}),
            true,
        ),
        // An `iat` in the future is refused: a revocation before that time would not end the token.
        (
            json!({"sub": "alice", "exp": now() + 9999, "iat": now() + 90}),
            false,
        ),
        (
            json!({"sub": "alice", "exp": now() + 9999, "iat": 1e300}),
            false,
        ),
        (json!({"sub": "alice"}), false),
        (json!({"sub": "alice", "exp": "tomorrow"}), false),
        (json!({"sub": "alice", "exp": -1}), false),
        (json!({"sub": "alice", "exp": 1e12}), true),
        (json!({"sub": "alice", "exp": 1e300}), false),
        (json!({"exp": now() + 60}), false),
        (json!({"sub": 1, "exp": now() + 60}), false),
        (json!({"sub": ["alice"], "exp": now() + 60}), false),
        (json!([1]), false),
    ] {
        let result = verify(&settings, &sign_with_secret(&claims)).await;
        assert_eq!(result.is_ok(), expected, "{claims}: {result:?}");
    }
}

#[tokio::test]
async fn audience_and_issuer_are_required_if_configured() {
    let strict = JwtSettings {
        audience: vec!["chat".into(), "other".into()],
        issuer: vec!["https://id.example".into()],
        ..secret_settings()
    };
    let claims_with =
        |aud: Value, iss: &str| json!({"sub": "alice", "exp": now() + 60, "aud": aud, "iss": iss});
    let issued = issue(&strict, &alice(), Duration::from_secs(60)).unwrap();
    assert!(verify(&strict, &issued).await.is_ok());
    for (claims, expected) in [
        (claims_with(json!("chat"), "https://id.example"), true),
        (
            claims_with(json!(["x", "other"]), "https://id.example"),
            true,
        ),
        (claims_with(json!("mail"), "https://id.example"), false),
        (claims_with(json!("chat"), "https://id.example.evil"), false),
        (valid_claims(), false),
    ] {
        let result = verify(&strict, &sign_with_secret(&claims)).await;
        assert_eq!(result.is_ok(), expected, "{claims}: {result:?}");
    }
    // Without a configured audience and issuer, the token's `aud` and `iss` are ignored.
    let claims = claims_with(json!("chat"), "anybody");
    assert!(
        verify(&secret_settings(), &sign_with_secret(&claims))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn each_key_verifies_its_own_algorithm_only() {
    let signers = [
        (
            Algorithm::RS256,
            EncodingKey::from_rsa_pem(RSA_PRIVATE_KEY).unwrap(),
        ),
        (
            Algorithm::ES256,
            EncodingKey::from_ec_pem(EC_PRIVATE_KEY).unwrap(),
        ),
        (
            Algorithm::EdDSA,
            EncodingKey::from_ed_pem(ED25519_PRIVATE_KEY).unwrap(),
        ),
        (
            Algorithm::HS256,
            EncodingKey::from_secret(SECRET.as_bytes()),
        ),
        (
            Algorithm::RS512,
            EncodingKey::from_rsa_pem(RSA_PRIVATE_KEY).unwrap(),
        ),
        (
            Algorithm::PS256,
            EncodingKey::from_rsa_pem(RSA_PRIVATE_KEY).unwrap(),
        ),
        (
            Algorithm::HS512,
            EncodingKey::from_secret(SECRET.as_bytes()),
        ),
    ];
    let verifiers = [RSA_PUBLIC_KEY, EC_PUBLIC_KEY, ED25519_PUBLIC_KEY].map(|pem| {
        let (_folder, path) = key_file(pem);
        JwtVerifier::new(&settings(JwtKeys::PublicKeyFile(path))).unwrap()
    });
    let secret_verifier = JwtVerifier::new(&secret_settings()).unwrap();
    let verifiers: Vec<_> = verifiers.iter().chain([&secret_verifier]).collect();
    for (i, (algorithm, key)) in signers.iter().enumerate() {
        let token = sign(*algorithm, None, key, &valid_claims());
        for (j, verifier) in verifiers.iter().enumerate() {
            let result = verifier.verify(&token, &alice()).await;
            assert_eq!(result.is_ok(), i == j, "{algorithm:?} at {j}: {result:?}");
        }
    }
}

#[tokio::test]
async fn forged_tokens_are_refused() {
    let claims = encode_part(&valid_claims().to_string());
    let mut forged = Vec::new();
    for alg in ["none", "None", "NONE", ""] {
        let header = encode_part(&json!({"alg": alg, "typ": "JWT"}).to_string());
        forged.push(format!("{header}.{claims}."));
        forged.push(format!("{header}.{claims}"));
    }
    // Everybody knows the public key, so a token whose HMAC secret is that key must be refused.
    for pem in [RSA_PUBLIC_KEY, EC_PUBLIC_KEY, ED25519_PUBLIC_KEY] {
        for secret in [pem, pem.trim()] {
            let key = EncodingKey::from_secret(secret.as_bytes());
            forged.push(sign(Algorithm::HS256, None, &key, &valid_claims()));
        }
    }
    let real = sign_with_secret(&valid_claims());
    let (message, signature) = real.rsplit_once('.').unwrap();
    let header = message.split('.').next().unwrap();
    forged.push(format!("{message}."));
    forged.push(message.to_owned());
    let later_expiry = encode_part(&json!({"sub": "alice", "exp": now() + 9999}).to_string());
    forged.push(format!("{header}.{later_expiry}.{signature}"));
    forged.push(format!("{real}.{signature}"));
    forged.extend(["", ".", "..", "...", "a.b.c", "é.é.é"].map(str::to_owned));
    forged.push("a".repeat(1 << 20));
    let mut verifiers = vec![JwtVerifier::new(&secret_settings()).unwrap()];
    for pem in [RSA_PUBLIC_KEY, EC_PUBLIC_KEY, ED25519_PUBLIC_KEY] {
        let (_folder, path) = key_file(pem);
        verifiers.push(JwtVerifier::new(&settings(JwtKeys::PublicKeyFile(path))).unwrap());
    }
    for verifier in verifiers {
        for token in &forged {
            let result = verifier.verify(token, &alice()).await;
            assert!(
                matches!(result, Err(TokenError::Invalid(_))),
                "{token}: {result:?}"
            );
        }
    }
}

#[tokio::test]
async fn unsupported_critical_extension_is_refused() {
    let header = Header {
        crit: Some(vec!["exp".into()]),
        ..Header::new(Algorithm::HS256)
    };
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let token = encode(&header, &valid_claims(), &key).unwrap();
    assert!(verify(&secret_settings(), &token).await.is_err());
}

fn jwk(pem: &EncodingKey, algorithm: Algorithm, kid: &str) -> Value {
    let mut jwk = Jwk::from_encoding_key(pem, algorithm).unwrap();
    jwk.common.key_id = Some(kid.to_owned());
    serde_json::to_value(jwk).unwrap()
}

#[tokio::test]
async fn key_set_selects_by_kid_and_ignores_secrets() {
    let rsa = EncodingKey::from_rsa_pem(RSA_PRIVATE_KEY).unwrap();
    let ec = EncodingKey::from_ec_pem(EC_PRIVATE_KEY).unwrap();
    let secret = EncodingKey::from_secret(SECRET.as_bytes());
    let mut encrypting = jwk(&rsa, Algorithm::RS256, "enc");
    encrypting["use"] = "enc".into();
    let set = json!({"keys": [
        jwk(&rsa, Algorithm::RS256, "r"),
        jwk(&ec, Algorithm::ES256, "e"),
        encrypting,
        {"kty": "oct", "kid": "s", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"},
        {"kty": "unknown"},
        7,
    ]});
    let (_folder, path) = key_file(&set.to_string());
    let verifier = JwtVerifier::new(&settings(JwtKeys::JwksFile(path))).unwrap();
    for (algorithm, kid, key, expected) in [
        (Algorithm::RS256, Some("r"), &rsa, true),
        (Algorithm::ES256, Some("e"), &ec, true),
        (Algorithm::ES256, None, &ec, true),
        (Algorithm::RS256, Some("e"), &rsa, false),
        (Algorithm::RS256, Some("enc"), &rsa, false),
        (Algorithm::RS256, Some("unknown"), &rsa, false),
        (Algorithm::HS256, Some("s"), &secret, false),
        (Algorithm::HS256, None, &secret, false),
    ] {
        let token = sign(algorithm, kid, key, &valid_claims());
        let result = verifier.verify(&token, &alice()).await;
        assert_eq!(
            result.is_ok(),
            expected,
            "{algorithm:?} {kid:?}: {result:?}"
        );
    }
}

/// Starts a server that answers each request with the key set in the channel, or with 500 while the
/// text in the channel is empty. Returns the server's URL and the number of requests so far.
async fn key_set_server(set: tokio::sync::watch::Receiver<String>) -> (url::Url, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            count.fetch_add(1, Ordering::SeqCst);
            let body = set.borrow().clone();
            let status = if body.is_empty() {
                "500 Down"
            } else {
                "200 OK"
            };
            let answer = format!(
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (url.parse().unwrap(), requests)
}

#[tokio::test]
async fn keys_rotate_without_restart_and_unknown_keys_rarely_cause_fetches() {
    let rsa = EncodingKey::from_rsa_pem(RSA_PRIVATE_KEY).unwrap();
    let ec = EncodingKey::from_ec_pem(EC_PRIVATE_KEY).unwrap();
    let old = jwk(&rsa, Algorithm::RS256, "old");
    let new = jwk(&ec, Algorithm::ES256, "new");
    let (sender, set) = tokio::sync::watch::channel(String::new());
    let (url, requests) = key_set_server(set).await;
    let verifier = JwtVerifier::new(&settings(JwtKeys::JwksUrl(url))).unwrap();
    let old_key_token = sign(Algorithm::RS256, Some("old"), &rsa, &valid_claims());
    let new_key_token = sign(Algorithm::ES256, Some("new"), &ec, &valid_claims());
    // No fetch has succeeded, so the gateway can't know whether the token is valid.
    let result = verifier.verify(&old_key_token, &alice()).await;
    assert_eq!(result, Err(TokenError::KeysUnavailable));
    sender.send_replace(json!({"keys": [old]}).to_string());
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(2)).await;
    tokio::time::resume();
    assert!(verifier.verify(&old_key_token, &alice()).await.is_ok());
    // The first token with an unknown key causes a fetch at once. For a minute, no other token with
    // an unknown key causes a fetch.
    let before = requests.load(Ordering::SeqCst) + 1;
    for _ in 0..20 {
        assert!(verifier.verify(&new_key_token, &alice()).await.is_err());
    }
    assert_eq!(requests.load(Ordering::SeqCst), before);
    sender.send_replace(json!({"keys": [old, new]}).to_string());
    assert!(verifier.verify(&new_key_token, &alice()).await.is_err());
    assert_eq!(requests.load(Ordering::SeqCst), before);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    assert!(verifier.verify(&new_key_token, &alice()).await.is_ok());
    assert!(verifier.verify(&old_key_token, &alice()).await.is_ok());
    assert_eq!(requests.load(Ordering::SeqCst), before + 1);
    // A failed fetch keeps the previous keys. The next successful fetch replaces them: then the old
    // key, which the set no longer lists, is invalid.
    sender.send_replace(String::new());
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(301)).await;
    tokio::time::resume();
    assert!(verifier.verify(&old_key_token, &alice()).await.is_ok());
    assert_eq!(requests.load(Ordering::SeqCst), before + 2);
    sender.send_replace(json!({"keys": [new]}).to_string());
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    assert!(verifier.verify(&old_key_token, &alice()).await.is_err());
    assert!(verifier.verify(&new_key_token, &alice()).await.is_ok());
}

#[tokio::test]
async fn key_added_just_after_the_start_is_found_at_once() {
    let rsa = EncodingKey::from_rsa_pem(RSA_PRIVATE_KEY).unwrap();
    let ec = EncodingKey::from_ec_pem(EC_PRIVATE_KEY).unwrap();
    let old = jwk(&rsa, Algorithm::RS256, "old");
    let new = jwk(&ec, Algorithm::ES256, "new");
    let (sender, set) = tokio::sync::watch::channel(json!({"keys": [old]}).to_string());
    let (url, requests) = key_set_server(set).await;
    let verifier = JwtVerifier::new(&settings(JwtKeys::JwksUrl(url))).unwrap();
    verifier.prefetch_keys();
    let old_key_token = sign(Algorithm::RS256, Some("old"), &rsa, &valid_claims());
    assert!(verifier.verify(&old_key_token, &alice()).await.is_ok());
    assert_eq!(
        requests.load(Ordering::SeqCst),
        1,
        "the request waits for the prefetch"
    );
    sender.send_replace(json!({"keys": [old, new]}).to_string());
    let new_key_token = sign(Algorithm::ES256, Some("new"), &ec, &valid_claims());
    assert!(verifier.verify(&new_key_token, &alice()).await.is_ok());
    assert_eq!(requests.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn cancelled_request_does_not_cancel_the_fetch_it_started() {
    let rsa = EncodingKey::from_rsa_pem(RSA_PRIVATE_KEY).unwrap();
    let set = json!({"keys": [jwk(&rsa, Algorithm::RS256, "new")]}).to_string();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let (requested, was_requested) = tokio::sync::oneshot::channel();
    let (answer, may_answer) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 4096];
        let _ = stream.read(&mut head).await;
        requested.send(()).unwrap();
        may_answer.await.unwrap();
        let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length:";
        let answer = format!("{head} {}\r\n\r\n{set}", set.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let keys = JwtKeys::JwksUrl(url.parse().unwrap());
    let verifier = JwtVerifier::new(&settings(keys)).unwrap();
    let unknown = sign(Algorithm::RS256, Some("unknown"), &rsa, &valid_claims());
    {
        let user = alice();
        let verifying = verifier.verify(&unknown, &user);
        tokio::select! {
            _ = verifying => panic!("no key set was served yet"),
            request = was_requested => request.unwrap(),
        }
    }
    // The server answers only one request, so the second verification succeeds only if the fetch of
    // the cancelled request goes on.
    answer.send(()).unwrap();
    let token = sign(Algorithm::RS256, Some("new"), &rsa, &valid_claims());
    let verified = verifier.verify(&token, &alice()).await;
    assert!(verified.is_ok(), "{verified:?}");
}

#[tokio::test]
async fn problem_of_a_key_set_behind_a_url_is_reported() {
    let (sender, set) = tokio::sync::watch::channel(String::new());
    let (url, _) = key_set_server(set).await;
    let verifier = JwtVerifier::new(&settings(JwtKeys::JwksUrl(url))).unwrap();
    let rsa = EncodingKey::from_rsa_pem(RSA_PRIVATE_KEY).unwrap();
    let usable = json!({"keys": [jwk(&rsa, Algorithm::RS256, "r")]}).to_string();
    for (body, expected) in [
        ("", "500"),
        ("[]", "no JSON Web Key Set"),
        (r#"{"keys":[]}"#, "no key at all"),
        (r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#, "`kty: oct`"),
    ] {
        sender.send_replace(body.to_owned());
        let error = verifier.check_keys().await.unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    sender.send_replace(usable);
    assert_eq!(verifier.check_keys().await, Ok(1));
}

#[test]
fn file_without_a_usable_key_is_reported_at_the_start() {
    let (_folder, path) = key_file("no key");
    let error = |keys| {
        let verifier = JwtVerifier::new(&settings(keys));
        verifier.err().unwrap().to_string()
    };
    assert!(error(JwtKeys::PublicKeyFile(path.clone())).contains("no public key"));
    assert!(error(JwtKeys::JwksFile(path)).contains("no JSON Web Key Set"));
    let (_folder, path) = key_file(r#"{"keys":[]}"#);
    assert!(error(JwtKeys::JwksFile(path)).contains("lists no key"));
    let (_folder, path) = key_file(r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#);
    assert!(error(JwtKeys::JwksFile(path)).contains("`kty: oct`"));
    let missing = error(JwtKeys::PublicKeyFile("/nowhere/key.pem".into()));
    assert!(
        missing.contains("/nowhere/key.pem can't be read"),
        "{missing}"
    );
}
