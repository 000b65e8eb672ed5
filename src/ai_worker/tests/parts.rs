//! Tests of answers in parts: how they are published, and what terminal record and history contain.

use serde_json::{Value, json};

use super::fake_fanout::CallContent;
use super::*;
use crate::ai_worker::provider::{PartDelta, PartKey};
use crate::protocol::parts::{MAX_PARTS, PartKind, PartMeta};

/// A piece with a name: of a tool call or of data.
fn send_named(key: PartKey, name: &str, text: &str) -> Step {
    Step::Send(PartDelta {
        meta: Some(PartMeta {
            name: Some(name.to_owned()),
            ..PartMeta::default()
        }),
        ..PartDelta::new(key, text)
    })
}

fn send_source(url: &str) -> Step {
    Step::Send(PartDelta {
        meta: Some(PartMeta {
            url: Some(url.to_owned()),
            title: Some("A title".to_owned()),
            ..PartMeta::default()
        }),
        ..PartDelta::new(PartKey::Source, "")
    })
}

/// Asks one question and returns the terminal record of the answer.
async fn terminal_of(system: &TestSystem) -> Value {
    let _worker = system.start();
    system.ask("alice", "hello");
    system.wait_until_committed(1).await;
    system.terminals()[0].clone()
}

/// The kinds of the parts that were opened.
fn opened_kinds(system: &TestSystem) -> Vec<PartKind> {
    let calls = system.fanout.stream_calls().into_iter();
    let kinds = calls.filter_map(|call| match call.content {
        CallContent::Open(kind, _) => Some(kind),
        _ => None,
    });
    kinds.collect()
}

#[tokio::test(start_paused = true)]
async fn all_kinds_are_published_in_order_and_recorded() {
    let system = TestSystem::new([vec![
        send_reasoning("Hm"),
        send_reasoning(" 👋"),
        wait_ms(50),
        send_text("Look"),
        send_named(PartKey::ToolCall(0), "f", "{\"x\":"),
        send_named(PartKey::ToolCall(1), "g", "{"),
        send_text(" here"),
        wait_ms(50),
        send(PartKey::ToolCall(0), "1}"),
        send(PartKey::ToolCall(1), "}"),
        send_source("https://a.example"),
        send_named(PartKey::Data, "chart", "[1]"),
        send(PartKey::Refusal, "No."),
        wait_ms(50),
        Step::Finish,
    ]]);
    let terminal = terminal_of(&system).await;
    let source = json!({"url": "https://a.example", "title": "A title"});
    let parts = json!([
        {"kind": "reasoning", "length": 5},
        {"kind": "text", "length": 4},
        {"kind": "tool_call", "meta": {"name": "f"}, "content": "{\"x\":1}"},
        {"kind": "tool_call", "meta": {"name": "g"}, "content": "{}"},
        {"kind": "text", "length": 5},
        {"kind": "source", "meta": source, "content": ""},
        {"kind": "data", "meta": {"name": "chart"}, "content": "[1]"},
        {"kind": "refusal", "length": 3},
    ]);
    assert_eq!(terminal["parts"], parts);
    assert_eq!(terminal["content"], "Look hereNo.");
    assert_eq!(terminal["finish_reason"], "stop");
    let kinds = [
        PartKind::Reasoning,
        PartKind::Text,
        PartKind::ToolCall,
        PartKind::ToolCall,
        PartKind::Text,
        PartKind::Source,
        PartKind::Data,
        PartKind::Refusal,
    ];
    assert_eq!(opened_kinds(&system), kinds);
    let outcomes = system.fanout.kept_outcomes.lock().unwrap().clone();
    let turn = &outcomes[0].turn;
    assert_eq!(turn.answer, "Look hereNo.");
    let turn_parts: Value = serde_json::from_str(turn.parts.as_deref().unwrap()).unwrap();
    assert_eq!(turn_parts, parts);
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_one_text_part_and_an_empty_answer_have_no_parts() {
    for steps in [answer("hi"), vec![Step::Finish]] {
        let system = TestSystem::new([steps]);
        let terminal = terminal_of(&system).await;
        assert_eq!(terminal.get("parts"), None);
        let outcomes = system.fanout.kept_outcomes.lock().unwrap().clone();
        assert_eq!(outcomes[0].turn.parts, None);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_a_refusal_is_a_response() {
    let system = TestSystem::new([vec![send(PartKey::Refusal, "I can't."), Step::Finish]]);
    let terminal = terminal_of(&system).await;
    assert_eq!(terminal["type"], "response");
    assert_eq!(terminal["content"], "I can't.");
    assert_eq!(terminal["parts"], json!([{"kind": "refusal", "length": 8}]));
}

#[tokio::test(start_paused = true)]
async fn reasoning_setting_decides_what_is_published_and_recorded() {
    let steps = || {
        vec![
            send_reasoning("Hm👋"),
            send_text("hi"),
            wait_ms(9),
            Step::Finish,
        ]
    };
    let kinds = [PartKind::Reasoning, PartKind::Text];
    let length = json!({"kind": "reasoning", "length": 4});
    let content = json!({"kind": "reasoning", "length": 4, "content": "Hm👋"});
    for (reasoning, published, recorded) in [
        (Reasoning::Show, &kinds[..], Some(length)),
        (Reasoning::Keep, &kinds[..], Some(content)),
        (Reasoning::Drop, &kinds[1..], None),
    ] {
        let mut system = TestSystem::new([steps()]);
        system.settings.reasoning = reasoning;
        let terminal = terminal_of(&system).await;
        assert_eq!(opened_kinds(&system), published, "{reasoning:?}");
        assert_eq!(terminal["content"], "hi");
        assert_eq!(terminal["parts"].get(0), recorded.as_ref(), "{reasoning:?}");
        let text = json!({"kind": "text", "length": 2});
        assert_eq!(
            terminal["parts"].get(1),
            recorded.map(|_| text).as_ref(),
            "{reasoning:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn reasoning_is_not_in_the_next_prompt() {
    let first = vec![send_reasoning("Hm"), send_text("a1"), Step::Finish];
    let mut system = TestSystem::new([first, answer("a2")]);
    system.settings.reasoning = Reasoning::Keep;
    let _worker = system.start();
    system.ask("alice", "q1");
    system.ask("alice", "q2");
    system.wait_until_committed(2).await;
    let requests = system.script.requests.lock().unwrap().clone();
    assert_eq!(requests[1], ["q1", "a1", "q2"]);
}

#[tokio::test(start_paused = true)]
async fn endless_reasoning_ends_the_answer_at_its_limit() {
    let steps = std::iter::repeat_n(send_reasoning("0123456789"), 1000);
    let mut system = TestSystem::new([steps.chain([Step::Hang]).collect()]);
    system.settings.max_answer_bytes = 5000;
    let terminal = terminal_of(&system).await;
    assert_eq!(terminal["type"], "response");
    assert_eq!(terminal["finish_reason"], "length");
    assert_eq!(terminal["content"], "");
    // The part itself costs 64 bytes and its kind.
    let length = 5000 - 64 - "reasoning".len();
    assert_eq!(
        terminal["parts"],
        json!([{"kind": "reasoning", "length": length}])
    );
}

#[tokio::test(start_paused = true)]
async fn the_257th_part_ends_the_answer_by_its_length() {
    let sources = (0..MAX_PARTS).map(|number| send_source(&format!("https://{number}.example")));
    let steps = [send_text("a")]
        .into_iter()
        .chain(sources)
        .chain([Step::Hang]);
    let system = TestSystem::new([steps.collect()]);
    let terminal = terminal_of(&system).await;
    assert_eq!(terminal["finish_reason"], "length");
    let parts = terminal["parts"].as_array().unwrap();
    assert_eq!(parts.len(), MAX_PARTS);
    assert_eq!(parts[255]["meta"]["url"], "https://254.example");
}

#[tokio::test(start_paused = true)]
async fn offsets_count_utf_16_code_units_and_cut_no_character() {
    let system = TestSystem::new([vec![
        send_text("👋"),
        wait_ms(40),
        send_text("👨‍👩‍👧e"),
        send_text("\u{301}"),
        wait_ms(40),
        send_text("."),
        wait_ms(40),
        Step::Finish,
    ]]);
    terminal_of(&system).await;
    let pieces = [
        (1, 0, 0, "👋".to_owned()),
        (1, 0, 2, "👨‍👩‍👧e\u{301}".to_owned()),
        (1, 0, 12, ".".to_owned()),
    ];
    assert_eq!(system.fanout.pieces(), pieces);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_during_reasoning_keeps_the_parts_so_far() {
    let steps = vec![
        send_reasoning("Hm"),
        wait_ms(50),
        send_reasoning("m"),
        Step::Hang,
    ];
    let mut system = TestSystem::new([steps]);
    system.settings.reasoning = Reasoning::Keep;
    let _worker = system.start();
    let id = system.ask("alice", "hello");
    sleep(Duration::from_millis(500)).await;
    system.fanout.cancel(&user("alice"), &id).await.unwrap();
    system.wait_until_committed(1).await;
    let terminal = &system.terminals()[0];
    assert_eq!(terminal["code"], "cancelled");
    assert_eq!(terminal["content"], "");
    assert_eq!(
        terminal["parts"],
        json!([{"kind": "reasoning", "length": 3, "content": "Hmm"}])
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_after_reasoning_is_retried_in_a_new_attempt() {
    let failing = || vec![send_reasoning("Hm"), wait_ms(100), Step::Break];
    let system = TestSystem::new([failing(), answer("whole")]);
    let terminal = terminal_of(&system).await;
    assert_eq!(terminal["attempt"], 2);
    assert_eq!(
        system.fanout.pieces(),
        [(1, 0, 0, "Hm".to_owned()), (2, 0, 0, "whole".to_owned())]
    );
    // Reasoning that is discarded is no part, so the retry belongs to the same attempt.
    let mut system = TestSystem::new([failing(), answer("whole")]);
    system.settings.reasoning = Reasoning::Drop;
    let terminal = terminal_of(&system).await;
    assert_eq!(terminal["attempt"], 1);
    assert_eq!(system.fanout.pieces(), [(1, 0, 0, "whole".to_owned())]);
}

/// The text of the reasoning that was published.
fn published_reasoning(system: &TestSystem) -> String {
    let pieces = system.fanout.pieces().into_iter();
    let texts = pieces.filter_map(|(_, part, _, text)| (part == 0).then_some(text));
    texts.collect()
}

#[tokio::test(start_paused = true)]
async fn reasoning_is_published_whole_before_the_answer_ends() {
    let whole: Vec<Step> = vec![
        send_reasoning("The reasoning begins"),
        wait_ms(10),
        send_reasoning(" and ends."),
    ];
    let with_text = [send_text("It is four."), Step::Finish];
    for end in [vec![Step::Finish], with_text.to_vec()] {
        let system = TestSystem::new([[whole.clone(), end].concat()]);
        terminal_of(&system).await;
        assert_eq!(
            published_reasoning(&system),
            "The reasoning begins and ends."
        );
    }
    // The text of other kinds is in the terminal record, so the answer does not wait for it.
    let system = TestSystem::new([vec![send_text("a"), send_text("b"), Step::Finish]]);
    system.fanout.stream_gate.close();
    let started = Instant::now();
    terminal_of(&system).await;
    assert!(started.elapsed() < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn reasoning_cut_by_the_limit_is_published_up_to_the_limit() {
    let steps = std::iter::repeat_n(send_reasoning("0123456789"), 1000);
    let mut system = TestSystem::new([steps.collect()]);
    system.settings.max_answer_bytes = 5000;
    let terminal = terminal_of(&system).await;
    let length = terminal["parts"][0]["length"].as_u64().unwrap();
    assert_eq!(published_reasoning(&system).len() as u64, length);
}

#[tokio::test(start_paused = true)]
async fn answer_waits_for_its_reasoning_only_for_a_limited_time() {
    let steps = vec![send_reasoning("Hm"), send_text("hi"), Step::Finish];
    let system = TestSystem::new([steps]);
    system.fanout.stream_gate.close();
    let started = Instant::now();
    let terminal = terminal_of(&system).await;
    assert_eq!(terminal["content"], "hi");
    assert!(started.elapsed() < Duration::from_millis(700));
    assert_eq!(published_reasoning(&system), "");
}
