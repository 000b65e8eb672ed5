//! Compares the records that the code writes and reads with the schemas of the documented topics.

use chatmesh::protocol::error_code::ErrorCode;
use chatmesh::protocol::ids::{ClientMessageId, ConversationId, MessageId, UserId};
use chatmesh::protocol::log_record::Record;
use chatmesh::protocol::record::{Question, QuestionRecord, TerminalKind, TerminalRecord, Usage};
use serde_json::Value;

use super::Document;

/// The message of a channel, with this name in the document.
fn channel_message<'a>(document: &'a Document, channel: &str, name: &str) -> &'a Value {
    let message = &document.root["channels"][channel]["messages"][name];
    let message = document.resolve(message);
    assert!(
        message["payload"].is_object(),
        "{channel} has no message with this name and a payload"
    );
    message
}

/// A record with this value.
fn record(value: &Value) -> Record {
    Record {
        topic: "incoming_messages".into(),
        partition: 0,
        offset: 0,
        timestamp_ms: 0,
        key: None,
        value: value.to_string().into_bytes().into(),
        null_value: false,
        headers: Vec::new(),
    }
}

#[test]
fn written_records_match_their_schemas() {
    let document = Document::asyncapi();
    let user = UserId::parse("user123").unwrap();
    let id = ClientMessageId::parse("1").unwrap();
    let question_record = QuestionRecord {
        v: 1,
        kind: "message",
        content: "Hello",
        userid: &user,
        timestamp: "2024-01-01T12:00:00Z".into(),
        server_id: "server_1",
        correlation_id: "c-1",
        message_id: &MessageId::from_client_id(&user, &id),
        id: Some(&id),
        conversation_id: &ConversationId::default_conversation(),
        stream: true,
    };
    let message = channel_message(&document, "incomingMessages", "questionRecord");
    let question_record = serde_json::to_value(&question_record).unwrap();
    document.assert_valid(&message["payload"], &question_record, "a question record");

    let question = Question::parse(&record(&question_record)).unwrap();
    let response = TerminalRecord {
        content: Some("Hello!".into()),
        processing_time_ms: Some(12),
        finish_reason: Some("stop".into()),
        model: Some("m".into()),
        usage: Some(Usage::default()),
        attempt: Some(1),
        ..TerminalRecord::new(&question, TerminalKind::Response)
    };
    let message = channel_message(&document, "responses", "terminalRecord");
    for terminal in [
        response,
        TerminalRecord::failure(&question, ErrorCode::ProviderFailed),
    ] {
        let terminal: Value = serde_json::from_str(&terminal.to_json()).unwrap();
        document.assert_valid(&message["payload"], &terminal, "a terminal record");
    }
}

#[test]
fn documented_records_can_be_decoded() {
    let document = Document::asyncapi();
    let examples = |channel, name| {
        let message = channel_message(&document, channel, name);
        let examples = message["examples"].as_array().unwrap();
        assert!(!examples.is_empty(), "{channel}: {name} has no example");
        examples.iter().map(|example| &example["payload"])
    };
    for example in examples("incomingMessages", "questionRecord") {
        let question = Question::parse(&record(example)).unwrap();
        assert_eq!(*question.content, *example["content"].as_str().unwrap());
    }
    for (channel, name) in [
        ("responses", "terminalRecord"),
        ("user", "publishedTerminalFrame"),
    ] {
        for example in examples(channel, name) {
            TerminalRecord::parse(example.to_string().as_bytes()).unwrap();
        }
    }
}
