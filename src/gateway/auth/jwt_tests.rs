use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

// Keys of these tests and of nothing else.
const RSA: &[u8] = include_bytes!("testkeys/rsa.pem");
const RSA_PUBLIC: &str = include_str!("testkeys/rsa.pub.pem");
const EC: &[u8] = include_bytes!("testkeys/ec.pem");
const EC_PUBLIC: &str = include_str!("testkeys/ec.pub.pem");
const ED: &[u8] = include_bytes!("testkeys/ed.pem");
const ED_PUBLIC: &str = include_str!("testkeys/ed.pub.pem");
const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn alice() -> UserId {
    UserId::parse("alice").unwrap()
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

fn good() -> Value {
    json!({"sub": "alice", "exp": now() + 60})
}

fn settings(keys: JwtKeys) -> JwtSettings {
    JwtSettings {
        keys,
        audience: Vec::new(),
        issuer: Vec::new(),
    }
}

fn by_secret() -> JwtSettings {
    settings(JwtKeys::Secret(SECRET.into()))
}

fn signed(algorithm: Algorithm, kid: Option<&str>, key: &EncodingKey, claims: &Value) -> String {
    let header = Header {
        kid: kid.map(str::to_owned),
        ..Header::new(algorithm)
    };
    encode(&header, claims, key).unwrap()
}

fn hmac(claims: &Value) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    signed(Algorithm::HS256, None, &key, claims)
}

async fn verify(settings: &JwtSettings, token: &str) -> Result<VerifiedToken, TokenError> {
    let verifier = JwtVerifier::new(settings).unwrap();
    verifier.verify(token, &alice()).await
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    std::fs::File::create(&path)
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    (folder, path)
}

/// `text` as a part of a token.
fn part(text: &str) -> String {
    let key = EncodingKey::from_secret(b"x");
    let claims: Value = serde_json::from_str(text).unwrap();
    let token = encode(&Header::default(), &claims, &key).unwrap();
    token.split('.').nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn a_token_of_ours_opens_for_its_user_until_it_ends_and_no_longer() {
    let settings = by_secret();
    let token = issue(&settings, &alice(), Duration::from_secs(60)).unwrap();
    let verified = verify(&settings, &token).await.unwrap();
    let left = verified
        .expires_at
        .duration_since(SystemTime::now())
        .unwrap();
    assert!(left > Duration::from_secs(80) && left <= Duration::from_secs(90));
    assert!(verified.issued_ms.unwrap().abs_diff(now() * 1000) < 5_000);
    let verifier = JwtVerifier::new(&settings).unwrap();
    let bob = UserId::parse("bob").unwrap();
    assert_eq!(
        verifier.verify(&token, &bob).await,
        Err(TokenError::WrongUser)
    );
    for (claims, taken) in [
        (good(), true),
        // Within what clocks may differ.
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
        // It would be newer than every revocation until then.
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
        let result = verify(&settings, &hmac(&claims)).await;
        assert_eq!(result.is_ok(), taken, "{claims}: {result:?}");
    }
}

#[tokio::test]
async fn audience_and_issuer_are_demanded_where_they_are_set() {
    let strict = JwtSettings {
        audience: vec!["chat".into(), "other".into()],
        issuer: vec!["https://id.example".into()],
        ..by_secret()
    };
    let full =
        |aud: Value, iss: &str| json!({"sub": "alice", "exp": now() + 60, "aud": aud, "iss": iss});
    let ours = issue(&strict, &alice(), Duration::from_secs(60)).unwrap();
    assert!(verify(&strict, &ours).await.is_ok());
    for (claims, taken) in [
        (full(json!("chat"), "https://id.example"), true),
        (full(json!(["x", "other"]), "https://id.example"), true),
        (full(json!("mail"), "https://id.example"), false),
        (full(json!("chat"), "https://id.example.evil"), false),
        (good(), false),
    ] {
        let result = verify(&strict, &hmac(&claims)).await;
        assert_eq!(result.is_ok(), taken, "{claims}: {result:?}");
    }
    // Where none is set, a token that names one is as good.
    let claims = full(json!("chat"), "anybody");
    assert!(verify(&by_secret(), &hmac(&claims)).await.is_ok());
}

#[tokio::test]
async fn each_kind_of_key_takes_its_own_algorithm_only() {
    let signers = [
        (Algorithm::RS256, EncodingKey::from_rsa_pem(RSA).unwrap()),
        (Algorithm::ES256, EncodingKey::from_ec_pem(EC).unwrap()),
        (Algorithm::EdDSA, EncodingKey::from_ed_pem(ED).unwrap()),
        (
            Algorithm::HS256,
            EncodingKey::from_secret(SECRET.as_bytes()),
        ),
        (Algorithm::RS512, EncodingKey::from_rsa_pem(RSA).unwrap()),
        (Algorithm::PS256, EncodingKey::from_rsa_pem(RSA).unwrap()),
        (
            Algorithm::HS512,
            EncodingKey::from_secret(SECRET.as_bytes()),
        ),
    ];
    let verifiers = [RSA_PUBLIC, EC_PUBLIC, ED_PUBLIC].map(|pem| {
        let (_folder, path) = file(pem);
        JwtVerifier::new(&settings(JwtKeys::PublicKeyFile(path))).unwrap()
    });
    let by_secret = JwtVerifier::new(&by_secret()).unwrap();
    let verifiers: Vec<_> = verifiers.iter().chain([&by_secret]).collect();
    for (i, (algorithm, key)) in signers.iter().enumerate() {
        let token = signed(*algorithm, None, key, &good());
        for (j, verifier) in verifiers.iter().enumerate() {
            let result = verifier.verify(&token, &alice()).await;
            assert_eq!(result.is_ok(), i == j, "{algorithm:?} at {j}: {result:?}");
        }
    }
}

#[tokio::test]
async fn no_token_gets_by_with_none_or_a_public_key_as_secret() {
    let claims = part(&good().to_string());
    let mut forged = Vec::new();
    for alg in ["none", "None", "NONE", ""] {
        let header = part(&json!({"alg": alg, "typ": "JWT"}).to_string());
        forged.push(format!("{header}.{claims}."));
        forged.push(format!("{header}.{claims}"));
    }
    // The public key is known to everybody: an HMAC made with it proves nothing.
    for pem in [RSA_PUBLIC, EC_PUBLIC, ED_PUBLIC] {
        for secret in [pem, pem.trim()] {
            let key = EncodingKey::from_secret(secret.as_bytes());
            forged.push(signed(Algorithm::HS256, None, &key, &good()));
        }
    }
    let real = hmac(&good());
    let (message, signature) = real.rsplit_once('.').unwrap();
    let header = message.split('.').next().unwrap();
    forged.push(format!("{message}."));
    forged.push(message.to_owned());
    let other = part(&json!({"sub": "alice", "exp": now() + 9999}).to_string());
    forged.push(format!("{header}.{other}.{signature}"));
    forged.push(format!("{real}.{signature}"));
    forged.extend(["", ".", "..", "...", "a.b.c", "é.é.é"].map(str::to_owned));
    forged.push("a".repeat(1 << 20));
    let mut verifiers = vec![JwtVerifier::new(&by_secret()).unwrap()];
    for pem in [RSA_PUBLIC, EC_PUBLIC, ED_PUBLIC] {
        let (_folder, path) = file(pem);
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
async fn a_critical_extension_that_is_not_understood_is_refused() {
    let header = Header {
        crit: Some(vec!["exp".into()]),
        ..Header::new(Algorithm::HS256)
    };
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let token = encode(&header, &good(), &key).unwrap();
    assert!(verify(&by_secret(), &token).await.is_err());
}

fn jwk(pem: &EncodingKey, algorithm: Algorithm, kid: &str) -> Value {
    let mut jwk = Jwk::from_encoding_key(pem, algorithm).unwrap();
    jwk.common.key_id = Some(kid.to_owned());
    serde_json::to_value(jwk).unwrap()
}

#[tokio::test]
async fn a_set_gives_the_key_that_a_token_names_and_no_secret_counts() {
    let rsa = EncodingKey::from_rsa_pem(RSA).unwrap();
    let ec = EncodingKey::from_ec_pem(EC).unwrap();
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
    let (_folder, path) = file(&set.to_string());
    let verifier = JwtVerifier::new(&settings(JwtKeys::JwksFile(path))).unwrap();
    for (algorithm, kid, key, taken) in [
        (Algorithm::RS256, Some("r"), &rsa, true),
        (Algorithm::ES256, Some("e"), &ec, true),
        (Algorithm::ES256, None, &ec, true),
        (Algorithm::RS256, Some("e"), &rsa, false),
        (Algorithm::RS256, Some("enc"), &rsa, false),
        (Algorithm::RS256, Some("unknown"), &rsa, false),
        (Algorithm::HS256, Some("s"), &secret, false),
        (Algorithm::HS256, None, &secret, false),
    ] {
        let token = signed(algorithm, kid, key, &good());
        let result = verifier.verify(&token, &alice()).await;
        assert_eq!(result.is_ok(), taken, "{algorithm:?} {kid:?}: {result:?}");
    }
}

/// Answers with what the channel holds; counts how often it was asked.
async fn set_server(set: tokio::sync::watch::Receiver<String>) -> (url::Url, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
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
    (url.parse().unwrap(), asked)
}

#[tokio::test]
async fn keys_are_rotated_without_a_restart_and_strangers_can_not_make_us_ask_often() {
    let rsa = EncodingKey::from_rsa_pem(RSA).unwrap();
    let ec = EncodingKey::from_ec_pem(EC).unwrap();
    let old = jwk(&rsa, Algorithm::RS256, "old");
    let new = jwk(&ec, Algorithm::ES256, "new");
    let (sender, set) = tokio::sync::watch::channel(String::new());
    let (url, asked) = set_server(set).await;
    let verifier = JwtVerifier::new(&settings(JwtKeys::JwksUrl(url))).unwrap();
    let by_old = signed(Algorithm::RS256, Some("old"), &rsa, &good());
    let by_new = signed(Algorithm::ES256, Some("new"), &ec, &good());
    // The set is away: neither taken nor judged.
    let denied = verifier.verify(&by_old, &alice()).await;
    assert_eq!(denied, Err(TokenError::KeysUnavailable));
    sender.send_replace(json!({"keys": [old]}).to_string());
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(2)).await;
    tokio::time::resume();
    assert!(verifier.verify(&by_old, &alice()).await.is_ok());
    // The first unknown key is looked for at once, whenever the set was read, then none for a
    // minute.
    let before = asked.load(Ordering::SeqCst) + 1;
    for _ in 0..20 {
        assert!(verifier.verify(&by_new, &alice()).await.is_err());
    }
    assert_eq!(asked.load(Ordering::SeqCst), before);
    sender.send_replace(json!({"keys": [old, new]}).to_string());
    assert!(verifier.verify(&by_new, &alice()).await.is_err());
    assert_eq!(asked.load(Ordering::SeqCst), before);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    assert!(verifier.verify(&by_new, &alice()).await.is_ok());
    assert!(verifier.verify(&by_old, &alice()).await.is_ok());
    assert_eq!(asked.load(Ordering::SeqCst), before + 1);
    // The old one is taken from the set: no longer good once the set was read again. While it
    // can't be read, the keys stay.
    sender.send_replace(String::new());
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(301)).await;
    tokio::time::resume();
    assert!(verifier.verify(&by_old, &alice()).await.is_ok());
    assert_eq!(asked.load(Ordering::SeqCst), before + 2);
    sender.send_replace(json!({"keys": [new]}).to_string());
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    assert!(verifier.verify(&by_old, &alice()).await.is_err());
    assert!(verifier.verify(&by_new, &alice()).await.is_ok());
}

#[tokio::test]
async fn a_key_listed_just_after_the_start_is_found_at_once() {
    let rsa = EncodingKey::from_rsa_pem(RSA).unwrap();
    let ec = EncodingKey::from_ec_pem(EC).unwrap();
    let old = jwk(&rsa, Algorithm::RS256, "old");
    let new = jwk(&ec, Algorithm::ES256, "new");
    let (sender, set) = tokio::sync::watch::channel(json!({"keys": [old]}).to_string());
    let (url, asked) = set_server(set).await;
    let verifier = JwtVerifier::new(&settings(JwtKeys::JwksUrl(url))).unwrap();
    verifier.prefetch_keys();
    let by_old = signed(Algorithm::RS256, Some("old"), &rsa, &good());
    assert!(verifier.verify(&by_old, &alice()).await.is_ok());
    assert_eq!(asked.load(Ordering::SeqCst), 1, "who comes meanwhile waits");
    sender.send_replace(json!({"keys": [old, new]}).to_string());
    let by_new = signed(Algorithm::ES256, Some("new"), &ec, &good());
    assert!(verifier.verify(&by_new, &alice()).await.is_ok());
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn who_names_an_unknown_key_and_leaves_does_not_stop_the_search_for_it() {
    let rsa = EncodingKey::from_rsa_pem(RSA).unwrap();
    let set = json!({"keys": [jwk(&rsa, Algorithm::RS256, "new")]}).to_string();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let (asked, was_asked) = tokio::sync::oneshot::channel();
    let (answer, may_answer) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 4096];
        let _ = stream.read(&mut head).await;
        asked.send(()).unwrap();
        may_answer.await.unwrap();
        let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length:";
        let answer = format!("{head} {}\r\n\r\n{set}", set.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let keys = JwtKeys::JwksUrl(url.parse().unwrap());
    let verifier = JwtVerifier::new(&settings(keys)).unwrap();
    let evil = signed(Algorithm::RS256, Some("evil"), &rsa, &good());
    {
        let user = alice();
        let verifying = verifier.verify(&evil, &user);
        tokio::select! {
            _ = verifying => panic!("there is no answer yet"),
            it = was_asked => it.unwrap(),
        }
    }
    // The stranger is gone; there is one answer only, and whoever comes gets it.
    answer.send(()).unwrap();
    let token = signed(Algorithm::RS256, Some("new"), &rsa, &good());
    let verified = verifier.verify(&token, &alice()).await;
    assert!(verified.is_ok(), "{verified:?}");
}

#[tokio::test]
async fn what_is_wrong_with_a_set_behind_a_url_is_told() {
    let (sender, set) = tokio::sync::watch::channel(String::new());
    let (url, _) = set_server(set).await;
    let verifier = JwtVerifier::new(&settings(JwtKeys::JwksUrl(url))).unwrap();
    let rsa = EncodingKey::from_rsa_pem(RSA).unwrap();
    let good = json!({"keys": [jwk(&rsa, Algorithm::RS256, "r")]}).to_string();
    for (answer, said) in [
        ("", "500"),
        ("[]", "no JSON Web Key Set"),
        (r#"{"keys":[]}"#, "no key at all"),
        (r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#, "`kty: oct`"),
    ] {
        sender.send_replace(answer.to_owned());
        let error = verifier.check_keys().await.unwrap_err();
        assert!(error.contains(said), "{error}");
    }
    sender.send_replace(good);
    assert_eq!(verifier.check_keys().await, Ok(1));
}

#[test]
fn a_file_without_a_usable_key_is_told_at_the_start() {
    let (_folder, path) = file("no key");
    let error = |keys| {
        let made = JwtVerifier::new(&settings(keys));
        made.err().unwrap().to_string()
    };
    assert!(error(JwtKeys::PublicKeyFile(path.clone())).contains("no public key"));
    assert!(error(JwtKeys::JwksFile(path)).contains("no JSON Web Key Set"));
    let (_folder, path) = file(r#"{"keys":[]}"#);
    assert!(error(JwtKeys::JwksFile(path)).contains("lists no key"));
    let (_folder, path) = file(r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#);
    assert!(error(JwtKeys::JwksFile(path)).contains("`kty: oct`"));
    let missing = error(JwtKeys::PublicKeyFile("/nowhere/key.pem".into()));
    assert!(
        missing.contains("/nowhere/key.pem can't be read"),
        "{missing}"
    );
}
