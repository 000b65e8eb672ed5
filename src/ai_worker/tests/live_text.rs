//! Tests of how often live text is published, and that publishing never delays reading the model.

use super::fake_fanout::CallContent;
use super::*;

/// Number of tokens of the long answer.
const TOKEN_COUNT: usize = 4000;

/// A script that sends a token every 10 ms.
fn long_answer() -> Vec<Step> {
    let token = [send_text("word "), wait_ms(10)];
    let mut steps: Vec<Step> = std::iter::repeat_n(token, TOKEN_COUNT).flatten().collect();
    steps.push(Step::Finish);
    steps
}

#[tokio::test(start_paused = true)]
async fn a_long_answer_makes_at_most_40_calls_per_second_and_one_record() {
    let system = TestSystem::new([long_answer()]);
    let _worker = system.start();
    system.ask("alice", "hello");
    system.wait_until_committed(1).await;
    assert_eq!(system.terminals().len(), 1);
    assert_eq!(
        system.terminals()[0]["content"],
        "word ".repeat(TOKEN_COUNT)
    );
    let calls = system.fanout.stream_calls();
    let first_sent = system.script.sent_at.lock().unwrap()[0];
    assert_eq!(
        calls[0].at, first_sent,
        "the first token is published at once"
    );
    assert_eq!(
        system.fanout.pieces()[0],
        (1, 0, 0, "word ".to_owned()),
        "the first token opens the first part"
    );
    for (index, call) in calls.iter().enumerate() {
        let within_a_second = calls[index..]
            .iter()
            .take_while(|later| later.at < call.at + Duration::from_secs(1));
        let count = within_a_second.count();
        assert!(count <= 40, "{count} calls within a second");
    }
    assert!(calls.len() > 1000, "the text grows visibly");
    let pieces = system.fanout.pieces();
    let published: String = pieces.into_iter().map(|(.., text)| text).collect();
    assert!("word ".repeat(TOKEN_COUNT).starts_with(&published));
}

#[tokio::test(start_paused = true)]
async fn reading_the_model_never_waits_for_the_fan_out() {
    let system = TestSystem::new([long_answer()]);
    system.fanout.stream_gate.close();
    let _worker = system.start();
    system.ask("alice", "hello");
    system.wait_until_committed(1).await;
    let sent = system.script.sent_at.lock().unwrap();
    assert_eq!(sent.len(), TOKEN_COUNT);
    let took = sent[TOKEN_COUNT - 1] - sent[0];
    let expected = Duration::from_millis(10) * (TOKEN_COUNT as u32 - 1);
    assert!(
        took <= expected + Duration::from_millis(TOKEN_COUNT as u64),
        "{took:?}"
    );
    assert_eq!(
        system.terminals()[0]["content"],
        "word ".repeat(TOKEN_COUNT)
    );
    assert!(system.fanout.stream_calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_message_without_streaming_only_renews_the_lease() {
    let system = TestSystem::new([long_answer()]);
    let _worker = system.start();
    let value = r#"{"content":"hello","userid":"alice"}"#;
    system.topics.append(MESSAGES, FakeTopics::record(value));
    system.wait_until_committed(1).await;
    let calls = system.fanout.stream_calls();
    assert!((38..=48).contains(&calls.len()), "{}", calls.len());
    let renewal = CallContent::Renew {
        parts: 0,
        last_length: 0,
    };
    assert!(calls.iter().all(|call| call.content == renewal));
}
