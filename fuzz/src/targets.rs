//! Checks of all parsers of untrusted input, one function per kind of input. The fuzzer and the
//! property tests (`tests/it/parsers.rs`) call them. A function panics if a check fails.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use chatmesh::config::settings::{JwtKeys, JwtSettings};
use chatmesh::gateway::JwtVerifier;
use chatmesh::protocol::classic;
use chatmesh::protocol::ids::{ClientMessageId, ConversationId, MessageId, UserId};
use chatmesh::protocol::log_record::Record;
use chatmesh::protocol::position::Position;
use chatmesh::protocol::published::PublishedFrame;
use chatmesh::protocol::record::{Question, QuestionRecord, TerminalRecord, header};
use chatmesh::protocol::trace_context::TraceContext;
use chatmesh::protocol::v1::{self, ClientFrame};
use futures_util::FutureExt as _;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

/// Maximum number of characters of a message, instead of the setting `MAX_CONTENT_CHARS`.
const MAX_CONTENT_CHARS: usize = 60;

/// Key that signs tokens.
const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn alice() -> UserId {
    UserId::parse("alice").expect("a userid")
}

/// Whether the text has 1 to `max_length` characters, all of which are allowed in identifiers.
fn is_identifier(text: &str, max_length: usize) -> bool {
    let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"._:@|+-".contains(&byte);
    (1..=max_length).contains(&text.len()) && text.bytes().all(is_safe)
}

fn assert_valid_content(content: &str) {
    assert!(content.chars().count() <= MAX_CONTENT_CHARS);
    assert!(!content.trim().is_empty() && !content.contains('\0'));
}

/// Asserts that the text of a rejection is short and contains no long string of the rejected frame.
fn assert_no_quote(text: &str, frame: &str) {
    assert!(text.starts_with("Invalid message"), "{text}");
    assert!(text.len() < 200, "{text}");
    if let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(frame) {
        for value in fields.values().filter_map(Value::as_str) {
            assert!(
                value.len() < 40 || !text.contains(value),
                "{text:?} quotes {value:?}"
            );
        }
    }
}

/// Checks that a client's frame is either accepted within its limits or rejected, and that an
/// accepted frame is the same after encoding and parsing it again.
pub fn client_frames(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let user = alice();
    match classic::parse_message(text, &user, MAX_CONTENT_CHARS) {
        Ok(content) => {
            assert_valid_content(&content);
            let again = json!({"type": "message", "content": content}).to_string();
            assert_eq!(
                classic::parse_message(&again, &user, MAX_CONTENT_CHARS),
                Ok(content)
            );
        }
        Err(rejection) => assert_no_quote(&rejection.text, text),
    }
    let frame = match v1::parse_client_frame(text, &user, MAX_CONTENT_CHARS) {
        Ok(frame) => frame,
        Err(rejected) => return assert_no_quote(&rejected.rejection.text, text),
    };
    let again = match &frame {
        ClientFrame::Message {
            id,
            content,
            conversation,
            interrupt,
            trace,
        } => {
            assert_valid_content(content);
            assert!(is_identifier(id.as_str(), 64) && is_identifier(conversation.as_str(), 64));
            json!({"type": "message", "id": id, "content": content,
                "conversation_id": conversation, "interrupt": interrupt,
                "traceparent": trace.as_ref().map(TraceContext::traceparent),
                "tracestate": trace.as_ref().and_then(TraceContext::tracestate)})
        }
        ClientFrame::Cancel {
            message_id,
            id: Some(id),
        } => {
            // The message id is derived from the connection's user, so that a client can't name
            // another user's message.
            assert_eq!(*message_id, MessageId::from_client_id(&user, id));
            json!({"type": "cancel", "id": id})
        }
        ClientFrame::Cancel {
            message_id,
            id: None,
        } => {
            assert!(is_identifier(message_id.as_str(), 64));
            json!({"type": "cancel", "message_id": message_id})
        }
        ClientFrame::Ping => json!({"type": "ping"}),
    };
    assert_eq!(
        v1::parse_client_frame(&again.to_string(), &user, MAX_CONTENT_CHARS),
        Ok(frame)
    );
}

/// Builds a record from fuzz input. The first byte says which parts are present. The other bytes
/// are split at 0xff, which no UTF-8 text contains, into value, key and header values.
fn record(data: &[u8]) -> Record {
    let (flags, content) = data.split_first().unwrap_or((&0, &[]));
    let mut parts = content
        .split(|byte| *byte == 0xff)
        .map(Bytes::copy_from_slice);
    let value = parts.next().unwrap_or_default();
    let mut part = |bit: u8| parts.next().filter(|_| flags & bit != 0);
    let key = part(1);
    let names = [
        (2, header::MESSAGE_ID),
        (4, header::CORRELATION_ID),
        (8, header::TRACEPARENT),
        (16, header::MESSAGE_ID),
    ];
    Record {
        topic: "incoming_messages".into(),
        partition: 3,
        offset: 42,
        timestamp_ms: 1_700_000_000_000,
        key,
        null_value: flags & 128 != 0,
        value,
        headers: names
            .into_iter()
            .filter_map(|(bit, name)| Some((name.to_owned(), part(bit)?)))
            .collect(),
    }
}

/// Whether a value begins like a JSON object.
fn is_object(value: &[u8]) -> bool {
    value.trim_ascii_start().first() == Some(&b'{')
}

/// Checks that a record of either topic is decoded or rejected, that a decoded record is the same
/// after encoding and decoding it again, and that the text of a rejection is short.
pub fn records(data: &[u8]) {
    let record = record(data);
    // Worker and relay read the key of a record that can't be decoded, to notify its user.
    let _ = record.key.as_deref().map(std::str::from_utf8);
    for name in [
        header::MESSAGE_ID,
        header::CORRELATION_ID,
        header::TRACEPARENT,
    ] {
        let is_present = record.headers.iter().any(|(header, _)| header == name);
        assert!(is_present || record.header_text(name).is_none());
    }
    match Question::parse(&record) {
        Ok(question) => check_question_round_trip(&record, &question),
        Err(unreadable) => assert!(unreadable.to_string().len() < 160, "{unreadable}"),
    }
    match TerminalRecord::parse(&record.value) {
        Ok(terminal) => {
            assert!(is_object(&record.value), "an array is not a record");
            let written = terminal.to_json();
            let again =
                TerminalRecord::parse(written.as_bytes()).expect("an encoded record is decoded");
            // The encoded forms are compared, because `n` and `n_id` are decoded and never encoded.
            assert_eq!(again.to_json(), written);
            assert!(is_identifier(terminal.userid.as_str(), 128));
        }
        Err(unreadable) => assert!(unreadable.to_string().len() < 160, "{unreadable}"),
    }
}

/// Checks that a decoded question is valid, and the same after encoding and decoding it again.
fn check_question_round_trip(record: &Record, question: &Question) {
    assert!(is_object(&record.value), "an array is not a record");
    assert!(is_identifier(question.user.as_str(), 128));
    assert!(is_identifier(question.message_id.as_str(), 64));
    assert!(is_identifier(question.conversation.as_str(), 64));
    assert!(!question.correlation_id.is_empty());
    // A redelivered record gets the same message id, even if the record contains none.
    let redelivered = Question::parse(record).expect("the record was decoded before");
    assert_eq!(redelivered.message_id, question.message_id);
    let written = QuestionRecord {
        v: 1,
        kind: "message",
        content: &question.content,
        userid: &question.user,
        timestamp: String::new(),
        server_id: "server_1",
        correlation_id: &question.correlation_id,
        message_id: &question.message_id,
        id: question.id.as_ref(),
        conversation_id: &question.conversation,
        stream: question.stream,
    };
    let value = serde_json::to_vec(&written).expect("the record is JSON");
    let again = Record {
        value: value.into(),
        ..record.clone()
    };
    let again = Question::parse(&again).expect("an encoded record is decoded");
    let fields = |question: &Question| {
        let question = question.clone();
        (
            (question.message_id, question.id, question.user),
            (question.conversation, question.content, question.stream),
            question.correlation_id,
        )
    };
    assert_eq!(fields(&again), fields(question));
}

#[derive(Deserialize)]
struct EncodedFrame {
    r#type: String,
    userid: Option<String>,
    #[serde(flatten)]
    other_fields: std::collections::BTreeMap<String, Value>,
}

/// Checks the type and the user of an encoded frame, and returns the names of its other fields.
fn checked_field_names(text: &str, kinds: &[&str]) -> BTreeSet<String> {
    serde_json::from_str::<IgnoredAny>(text).expect("a frame is JSON");
    let frame: EncodedFrame = serde_json::from_str(text).expect("a frame is an object");
    // A delta names no user.
    let user = (frame.r#type != "delta").then_some("alice");
    assert_eq!(frame.userid.as_deref(), user, "{text}");
    assert!(kinds.contains(&&*frame.r#type), "{text}");
    frame.other_fields.into_keys().collect()
}

/// Checks that a published frame is encoded for both protocols without internal fields, and for the
/// user of the channel.
pub fn published(data: &[u8]) {
    let Ok(frame) = PublishedFrame::parse(data) else {
        return;
    };
    let user = alice();
    if let Some(text) = classic::encode_published(&frame, &user) {
        assert!(frame.is_terminal());
        let fields = checked_field_names(&text, &["response", "error"]);
        for hidden in ["n", "n_id", "origin", "position", "usage", "v"] {
            assert!(!fields.contains(hidden), "{text}");
        }
    }
    if let Some(text) = v1::encode_published(&frame, &user) {
        let kinds = [
            "response",
            "error",
            "cancelled",
            "accepted",
            "delta",
            "restarted",
        ];
        let fields = checked_field_names(&text, &kinds);
        for hidden in ["n", "n_id", "origin", "v"] {
            assert!(!fields.contains(hidden), "{text}");
        }
    }
    if let Some(position) = &frame.position {
        positions(position.as_bytes());
    }
    // The record that the relay decodes has the same format, so decoding must not panic either.
    let _ = TerminalRecord::parse(data);
}

/// Checks that positions and identifiers, which clients send in URLs, contain only safe characters.
pub fn positions(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(position) = text.parse::<Position>() {
        assert!(text.len() <= 200 && position.offset >= 0);
        let written = position.to_string();
        assert!(
            written
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_~.".contains(&byte))
        );
        assert_eq!(written.parse(), Ok(position));
    }
    assert_eq!(UserId::parse(text).is_ok(), is_identifier(text, 128));
    assert_eq!(ConversationId::parse(text).is_ok(), is_identifier(text, 64));
    assert_eq!(
        ClientMessageId::parse(text).is_ok(),
        is_identifier(text, 64)
    );
    assert_eq!(MessageId::parse(text).is_ok(), is_identifier(text, 64));
}

/// Encodes base64url without padding.
fn base64(data: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in data.chunks(3) {
        let byte = |n: usize| u32::from(chunk.get(n).copied().unwrap_or(0));
        let bits = (byte(0) << 16) | (byte(1) << 8) | byte(2);
        for digit in 0..=chunk.len() {
            let index = (bits >> (18 - 6 * digit)) & 63;
            text.push(char::from(DIGITS[index as usize]));
        }
    }
    text
}

/// Returns the time since the Unix epoch in seconds.
fn now_seconds() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("a clock").as_secs_f64()
}

/// Returns a token with this header, these claims and a valid signature.
fn signed_token(header: &[u8], claims: &[u8]) -> String {
    let text = format!("{}.{}", base64(header), base64(claims));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = jsonwebtoken::crypto::sign(text.as_bytes(), &key, Algorithm::HS256);
    format!("{text}.{}", signature.expect("a signature"))
}

/// Checks that a token is valid only if it is signed with the key's algorithm and its claims are
/// valid. The input is used as a token, as signed claims, and as a signed header.
pub fn tokens(data: &[u8]) {
    static VERIFIER: OnceLock<JwtVerifier> = OnceLock::new();
    let verifier = VERIFIER.get_or_init(|| {
        let settings = JwtSettings {
            keys: JwtKeys::Secret(SECRET.into()),
            audience: Vec::new(),
            issuer: Vec::new(),
        };
        JwtVerifier::new(&settings).expect("the secret is valid")
    });
    let verify = |token: &str| {
        let verified = verifier.verify(token, &alice()).now_or_never();
        verified.expect("verifying with a secret never waits")
    };
    if let Ok(text) = std::str::from_utf8(data) {
        assert!(
            verify(text).is_err(),
            "accepted without a signature: {text}"
        );
    }
    let token = signed_token(br#"{"alg":"HS256"}"#, data);
    if let Ok(verified) = verify(&token) {
        // Claims that the verifier ignores may contain bytes that are not UTF-8.
        let claims = String::from_utf8_lossy(data);
        let claims: Value = serde_json::from_str(&claims).expect("claims are JSON");
        assert_eq!(claims["sub"], "alice");
        let exp = claims["exp"].as_f64().expect("exp is a number");
        assert!(exp + 31.0 >= now_seconds(), "{claims}");
        assert!(verified.expires_at >= SystemTime::now() - std::time::Duration::from_secs(1));
    }
    let claims = json!({"sub": "alice", "exp": now_seconds() as u64 + 3600}).to_string();
    if verify(&signed_token(data, claims.as_bytes())).is_ok() {
        let header = String::from_utf8_lossy(data);
        let header: Value = serde_json::from_str(&header).expect("a header is JSON");
        assert_eq!(header["alg"], "HS256");
    }
}
