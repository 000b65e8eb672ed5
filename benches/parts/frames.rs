//! Benchmarks of parsing and serializing frames and records.

use std::hint::black_box;

use chatmesh::protocol::classic;
use chatmesh::protocol::ids::{ConversationId, MessageId, UserId};
use chatmesh::protocol::published::PublishedFrame;
use chatmesh::protocol::record::{QuestionRecord, TerminalRecord};
use chatmesh::protocol::v1;
use criterion::{Criterion, Throughput};

const CONTENT: &str = "Tell me, in a few sentences and without any \\\"jargon\\\", what a log is \
    good for, and why somebody would want to read it again from an earlier place.";

/// Returns an answer of about 600 characters as the relay publishes it. `n` makes its ids and its
/// position unique.
pub(crate) fn published_answer(user: &str, n: u64) -> String {
    let content = "A log keeps what happened, in order, \\u2013 and nothing else.\\n".repeat(10);
    let id = uuid::Uuid::from_u128(u128::from(n));
    format!(
        r#"{{"v":1,"type":"response","content":"{content}","userid":"{user}","timestamp":"2026-11-02T12:00:00Z","processing_time_ms":812,"correlation_id":"0192f0c1-{n}","message_id":"{id}","id":"{n}","conversation_id":"default","finish_reason":"stop","model":"mock","usage":{{"prompt_tokens":40,"completion_tokens":140,"total_tokens":180}},"attempt":1,"position":"ep.0.{n}","n":{n},"n_id":"f00d"}}"#
    )
}

pub(crate) fn run_benchmarks(criterion: &mut Criterion) {
    let user = UserId::parse("user123").unwrap();
    let mut group = criterion.benchmark_group("frames");

    let classic = format!(r#"{{"type":"message","content":"{CONTENT}","userid":"user123"}}"#);
    group.throughput(Throughput::Bytes(classic.len() as u64));
    group.bench_function("parse a classic message", |bencher| {
        bencher.iter(|| classic::parse_message(black_box(&classic), &user, 8000).unwrap());
    });

    let v1 = format!(
        r#"{{"type":"message","id":"m-17","conversation_id":"work","content":"{CONTENT}"}}"#
    );
    group.throughput(Throughput::Bytes(v1.len() as u64));
    group.bench_function("parse a chatmesh.v1 message", |bencher| {
        bencher.iter(|| v1::parse_client_frame(black_box(&v1), &user, 8000).unwrap());
    });

    let message_id = MessageId::random();
    let conversation_id = ConversationId::default_conversation();
    group.bench_function("serialize a question record", |bencher| {
        bencher.iter(|| {
            let record = QuestionRecord {
                v: 1,
                kind: "message",
                content: black_box(CONTENT),
                userid: &user,
                timestamp: "2026-11-02T12:00:00Z".to_owned(),
                server_id: "server_1",
                correlation_id: "0192f0c1-17",
                message_id: &message_id,
                id: None,
                conversation_id: &conversation_id,
                stream: true,
            };
            serde_json::to_vec(&record).unwrap()
        });
    });

    let published = published_answer("user123", 17);
    group.throughput(Throughput::Bytes(published.len() as u64));
    group.bench_function("parse and serialize an answer record", |bencher| {
        bencher.iter(|| {
            TerminalRecord::parse(black_box(published.as_bytes()))
                .unwrap()
                .to_json()
        });
    });
    group.bench_function("published answer to classic frame", |bencher| {
        bencher.iter(|| {
            let frame = PublishedFrame::parse(black_box(published.as_bytes())).unwrap();
            classic::encode_published(&frame, &user).unwrap()
        });
    });
    group.bench_function("published answer to chatmesh.v1 frame", |bencher| {
        bencher.iter(|| {
            let frame = PublishedFrame::parse(black_box(published.as_bytes())).unwrap();
            v1::encode_published(&frame, &user).unwrap()
        });
    });

    let delta = r#"{"type":"delta","userid":"user123","message_id":"0192f0c1-0000-7000-8000-000000000001","id":"17","conversation_id":"default","attempt":1,"index":12,"content":"a few words more ","n":931,"n_id":"f00d"}"#;
    group.throughput(Throughput::Bytes(delta.len() as u64));
    group.bench_function("published delta to chatmesh.v1 frame", |bencher| {
        bencher.iter(|| {
            let frame = PublishedFrame::parse(black_box(delta.as_bytes())).unwrap();
            v1::encode_published(&frame, &user).unwrap()
        });
    });
    group.finish();
}
