//! What must hold whatever bytes come from the network: one function for each kind of input, for
//! the fuzzer and for the property tests (`tests/it/parsers.rs`). Each panics when it does not hold.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use chatmesh::config::settings::{JwtKeys, JwtSettings};
use chatmesh::gateway::JwtVerifier;
use chatmesh::protocol::frame::{Published, parse_classic};
use chatmesh::protocol::ids::{ClientMessageId, ConversationId, MessageId, UserId};
use chatmesh::protocol::log_record::Record;
use chatmesh::protocol::position::Position;
use chatmesh::protocol::record::{Question, QuestionRecord, Terminal, header};
use chatmesh::protocol::trace_context::TraceContext;
use chatmesh::protocol::v1::{self, ClientFrame};
use futures_util::FutureExt as _;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

/// Characters that a message of these tests may have.
const LIMIT: usize = 60;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn alice() -> UserId {
    UserId::parse("alice").expect("a userid")
}

fn is_identifier(text: &str, most: usize) -> bool {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"._:@|+-".contains(&byte);
    (1..=most).contains(&text.len()) && text.bytes().all(safe)
}

fn assert_is_content(content: &str) {
    assert!(content.chars().count() <= LIMIT);
    assert!(!content.trim().is_empty() && !content.contains('\0'));
}

/// Every string in a text's JSON that is long enough to be told from our own words.
fn assert_quotes_nothing(said: &str, frame: &str) {
    assert!(said.starts_with("Invalid message"), "{said}");
    assert!(said.len() < 200, "{said}");
    if let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(frame) {
        for text in fields.values().filter_map(Value::as_str) {
            assert!(
                text.len() < 40 || !said.contains(text),
                "{said:?} quotes {text:?}"
            );
        }
    }
}

/// A client's frame is taken or refused, within its bounds, and what is taken can be said again.
pub fn client_frames(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let user = alice();
    match parse_classic(text, &user, LIMIT) {
        Ok(content) => {
            assert_is_content(&content);
            let again = json!({"type": "message", "content": content}).to_string();
            assert_eq!(parse_classic(&again, &user, LIMIT), Ok(content));
        }
        Err(refused) => assert_quotes_nothing(&refused.text, text),
    }
    let frame = match v1::parse(text, &user, LIMIT) {
        Ok(frame) => frame,
        Err(refused) => return assert_quotes_nothing(&refused.refused.text, text),
    };
    let again = match &frame {
        ClientFrame::Message {
            id,
            content,
            conversation,
            interrupt,
            trace,
        } => {
            assert_is_content(content);
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
            // Whose id it is decides which message: nobody can name another user's so.
            assert_eq!(*message_id, MessageId::of_client(&user, id));
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
    assert_eq!(v1::parse(&again.to_string(), &user, LIMIT), Ok(frame));
}

/// A record as Kafka could hand it out: the first byte says what of it there is, the rest is cut at
/// 0xff (which no text has) into value, key and the headers' values.
fn record(data: &[u8]) -> Record {
    let (has, rest) = data.split_first().unwrap_or((&0, &[]));
    let mut parts = rest.split(|byte| *byte == 0xff).map(Bytes::copy_from_slice);
    let value = parts.next().unwrap_or_default();
    let mut part = |bit: u8| parts.next().filter(|_| has & bit != 0);
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
        null_value: has & 128 != 0,
        value,
        headers: names
            .into_iter()
            .filter_map(|(bit, name)| Some((name.to_owned(), part(bit)?)))
            .collect(),
    }
}

fn is_object(value: &[u8]) -> bool {
    value.trim_ascii_start().first() == Some(&b'{')
}

/// A record of either topic is read or not; what is read can be written and read again; and the
/// words about an unreadable one hold nothing of it.
pub fn records(data: &[u8]) {
    let record = record(data);
    // By which the user of an unreadable record is told.
    let _ = record.key.as_deref().map(std::str::from_utf8);
    for name in [
        header::MESSAGE_ID,
        header::CORRELATION_ID,
        header::TRACEPARENT,
    ] {
        let there = record.headers.iter().any(|(known, _)| known == name);
        assert!(there || record.header_text(name).is_none());
    }
    match Question::parse(&record) {
        Ok(question) => question_round_trip(&record, &question),
        Err(unreadable) => assert!(unreadable.to_string().len() < 160, "{unreadable}"),
    }
    match Terminal::parse(&record.value) {
        Ok(terminal) => {
            assert!(is_object(&record.value), "an array is no record");
            let written = terminal.to_json();
            let again = Terminal::parse(written.as_bytes()).expect("what was written is read");
            // `n` and its id are read of published frames, and never written.
            assert_eq!(again.to_json(), written);
            assert!(is_identifier(terminal.userid.as_str(), 128));
        }
        Err(unreadable) => assert!(unreadable.to_string().len() < 160, "{unreadable}"),
    }
}

fn question_round_trip(record: &Record, question: &Question) {
    assert!(is_object(&record.value), "an array is no record");
    assert!(is_identifier(question.user.as_str(), 128));
    assert!(is_identifier(question.message_id.as_str(), 64));
    assert!(is_identifier(question.conversation.as_str(), 64));
    assert!(!question.correlation_id.is_empty());
    // Reading it again is the same message, also where the record names none.
    let twice = Question::parse(record).expect("it was read before");
    assert_eq!(twice.message_id, question.message_id);
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
    let value = serde_json::to_vec(&written).expect("it is JSON");
    let again = Record {
        value: value.into(),
        ..record.clone()
    };
    let again = Question::parse(&again).expect("what was written is read");
    let all = |question: &Question| {
        let question = question.clone();
        (
            (question.message_id, question.id, question.user),
            (question.conversation, question.content, question.stream),
            question.correlation_id,
        )
    };
    assert_eq!(all(&again), all(question));
}

#[derive(Deserialize)]
struct Told {
    r#type: String,
    userid: String,
    #[serde(flatten)]
    rest: std::collections::BTreeMap<String, Value>,
}

fn told(text: &str, kinds: &[&str]) -> BTreeSet<String> {
    serde_json::from_str::<IgnoredAny>(text).expect("a frame is JSON");
    let told: Told = serde_json::from_str(text).expect("a frame is an object");
    assert_eq!(told.userid, "alice", "{text}");
    assert!(kinds.contains(&&*told.r#type), "{text}");
    told.rest.into_keys().collect()
}

/// A frame of the fan-out becomes what clients may see, for the user whose channel it came by, and
/// never breaks a gateway.
pub fn published(data: &[u8]) {
    let Ok(frame) = Published::parse(data) else {
        return;
    };
    let user = alice();
    if let Some(text) = frame.to_classic(&user) {
        assert!(frame.is_terminal());
        let fields = told(&text, &["response", "error"]);
        for hidden in ["n", "n_id", "origin", "position", "usage", "v"] {
            assert!(!fields.contains(hidden), "{text}");
        }
    }
    if let Some(text) = v1::of_published(&frame, &user) {
        let kinds = [
            "response",
            "error",
            "cancelled",
            "accepted",
            "delta",
            "restarted",
        ];
        let fields = told(&text, &kinds);
        for hidden in ["n", "n_id", "origin", "v"] {
            assert!(!fields.contains(hidden), "{text}");
        }
    }
    if let Some(position) = &frame.position {
        positions(position.as_bytes());
    }
    // What a relay publishes it has read as a record.
    let _ = Terminal::parse(data);
}

/// A position, and the identifiers that come in URLs beside it.
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

/// base64url without padding.
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

fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("a clock").as_secs_f64()
}

/// A token with this header and these claims, really signed.
fn signed(header: &[u8], claims: &[u8]) -> String {
    let text = format!("{}.{}", base64(header), base64(claims));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = jsonwebtoken::crypto::sign(text.as_bytes(), &key, Algorithm::HS256);
    format!("{text}.{}", signature.expect("a signature"))
}

/// A token opens the door only where it is signed, by the algorithm of the key, and its claims are
/// good; the bytes are tried as a token, as signed claims, and as a signed header.
pub fn tokens(data: &[u8]) {
    static VERIFIER: OnceLock<JwtVerifier> = OnceLock::new();
    let verifier = VERIFIER.get_or_init(|| {
        let settings = JwtSettings {
            keys: JwtKeys::Secret(SECRET.into()),
            audience: Vec::new(),
            issuer: Vec::new(),
        };
        JwtVerifier::new(&settings).expect("a secret is good")
    });
    let verify = |token: &str| {
        let verified = verifier.verify(token, &alice()).now_or_never();
        verified.expect("a secret is not waited for")
    };
    if let Ok(text) = std::str::from_utf8(data) {
        assert!(verify(text).is_err(), "nobody signed it: {text}");
    }
    let token = signed(br#"{"alg":"HS256"}"#, data);
    if let Ok(verified) = verify(&token) {
        // In what nobody reads of it, not every byte has to be UTF-8.
        let claims = String::from_utf8_lossy(data);
        let claims: Value = serde_json::from_str(&claims).expect("claims are JSON");
        assert_eq!(claims["sub"], "alice");
        let exp = claims["exp"].as_f64().expect("exp is a number");
        assert!(exp + 31.0 >= now(), "{claims}");
        assert!(verified.expires_at >= SystemTime::now() - std::time::Duration::from_secs(1));
    }
    let claims = json!({"sub": "alice", "exp": now() as u64 + 3600}).to_string();
    if verify(&signed(data, claims.as_bytes())).is_ok() {
        let header = String::from_utf8_lossy(data);
        let header: Value = serde_json::from_str(&header).expect("a header is JSON");
        assert_eq!(header["alg"], "HS256");
    }
}
