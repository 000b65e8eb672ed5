//! Tests of the outcomes of messages (answered, failed, expired, cut, timed out) and of dead
//! letters.

use super::fake_fanout::START_MS;
use super::*;

/// A script whose stream fails after a piece of text.
fn broken_answer() -> Vec<Step> {
    vec![send_text("half"), wait_ms(100), Step::Break]
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_is_followed_by_another_attempt_with_a_new_stream() {
    let system = TestSystem::new([broken_answer(), answer("whole")]);
    let _worker = system.start();
    system.ask("alice", "hello");
    system.wait_until_committed(1).await;
    assert_eq!(
        system.fanout.pieces(),
        [(1, 0, 0, "half".to_owned()), (2, 0, 0, "whole".to_owned())]
    );
    assert_eq!(system.terminals()[0]["content"], "whole");
    assert!(system.topics.values(DEAD_LETTERS).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_failing_provider_is_called_max_attempts_times_before_the_dead_letter() {
    let system = TestSystem::new([broken_answer(), vec![Step::Break], broken_answer()]);
    let _worker = system.start();
    system.ask("alice", "hello");
    system.wait_until_committed(1).await;
    assert_eq!(system.script.calls(), 3);
    assert_eq!(system.terminals()[0]["code"], "provider_failed");
    assert_eq!(
        system.journal(),
        ["kept", RESPONSES, DEAD_LETTERS, "offset"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_crash_before_the_dead_letter_loses_no_dead_letter() {
    let system = TestSystem::new([broken_answer(), broken_answer(), broken_answer()]);
    *system.topics.unacknowledged_topic.lock().unwrap() = Some(DEAD_LETTERS.into());
    let worker = system.start();
    system.ask("alice", "hello");
    system
        .wait_until("the terminal record", || system.terminals().len() == 1)
        .await;
    sleep(Duration::from_millis(100)).await;
    worker.crash().await;
    *system.topics.unacknowledged_topic.lock().unwrap() = None;
    let other = system.second_process([]);
    let _worker = other.start();
    system.wait_until_committed(1).await;
    assert_eq!(system.topics.values(DEAD_LETTERS).len(), 1);
    assert_eq!(system.topics.values(DEAD_LETTERS)[0]["content"], "hello");
}

#[tokio::test(start_paused = true)]
async fn a_redelivered_answered_message_becomes_no_dead_letter() {
    let system = TestSystem::new([answer("hi")]);
    *system.topics.unacknowledged_topic.lock().unwrap() = Some(RESPONSES.into());
    let worker = system.start();
    system.ask("alice", "hello");
    system
        .wait_until("kept", || system.journal() == ["kept"])
        .await;
    worker.crash().await;
    *system.topics.unacknowledged_topic.lock().unwrap() = None;
    let _worker = system.second_process([]).start();
    system.wait_until_committed(1).await;
    assert!(system.topics.values(DEAD_LETTERS).is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_expired_message_is_not_sent_to_the_model() {
    let system = TestSystem::new([]);
    *system.topics.timestamp_ms.lock().unwrap() = START_MS - 13 * 3600 * 1000;
    let _worker = system.start();
    system.ask("alice", "hello");
    system.wait_until_committed(1).await;
    assert_eq!(system.terminals()[0]["code"], "expired");
    assert!(system.topics.values(DEAD_LETTERS).is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_overlong_answer_is_cut_so_that_its_record_can_be_appended() {
    // Each character of the text occupies two bytes in JSON, and the part itself 68 bytes.
    let mut system = TestSystem::new([vec![
        send_text(&"\"\n".repeat(3000)),
        send_text("more"),
        Step::Hang,
    ]]);
    system.settings.max_answer_bytes = 10_068;
    let _worker = system.start();
    system.ask("alice", "hello");
    system.wait_until_committed(1).await;
    let end = &system.terminals()[0];
    assert_eq!(end["finish_reason"], "length");
    assert_eq!(end["type"], "response");
    assert_eq!(end["content"], "\"\n".repeat(2500));
    assert!(end["content"].to_string().len() <= 10_002);
    assert_eq!(system.script.closed_at().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_message_deadline_ends_a_hanging_answer() {
    let system = TestSystem::new([vec![send_text("partial"), Step::Hang]]);
    let _worker = system.start();
    let started = Instant::now();
    system.ask("alice", "hello");
    system.wait_until_committed(1).await;
    assert!(
        (300_000..300_100).contains(&elapsed_ms(started)),
        "{}",
        elapsed_ms(started)
    );
    assert_eq!(system.terminals()[0]["code"], "provider_timeout");
    assert_eq!(system.script.closed_at().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_unavailable_fan_out_does_not_count_against_the_deadline() {
    let system = TestSystem::new([answer("late answer")]);
    *system.fanout.context_unavailable_until.lock().unwrap() =
        Some(Instant::now() + Duration::from_secs(400));
    let _worker = system.start();
    system.ask("alice", "hello");
    system.wait_until_committed(1).await;
    assert_eq!(system.terminals()[0]["content"], "late answer");
}

#[tokio::test(start_paused = true)]
async fn each_earlier_turn_is_in_the_prompt_once_despite_queueing_and_redelivery() {
    let first = vec![wait_ms(2000), send_text("a1"), Step::Finish];
    let system = TestSystem::new([first, broken_answer(), answer("a2")]);
    let worker = system.start();
    system.ask("alice", "q1");
    system.ask("alice", "q2");
    system.wait_until_committed(2).await;
    worker.crash().await;
    // The third answer is kept, but the worker crashes before it appends the terminal record.
    *system.topics.unacknowledged_topic.lock().unwrap() = Some(RESPONSES.into());
    let second = system.second_process([answer("a3")]);
    let worker = second.start();
    system.ask("alice", "q3");
    system.ask("alice", "q4");
    system
        .wait_until("kept", || {
            system.journal().iter().filter(|s| *s == "kept").count() == 3
        })
        .await;
    worker.crash().await;
    *system.topics.unacknowledged_topic.lock().unwrap() = None;
    let third = system.second_process([answer("a4")]);
    let _worker = third.start();
    system.wait_until_committed(4).await;
    let requests = system.script.requests.lock().unwrap().clone();
    assert_eq!(requests[0], ["q1"]);
    assert_eq!(requests[1], ["q1", "a1", "q2"]);
    assert_eq!(requests[2], ["q1", "a1", "q2"]);
    let requests = third.script.requests.lock().unwrap().clone();
    assert_eq!(requests, [["q1", "a1", "q2", "a2", "q3", "a3", "q4"]]);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_panics_the_worker_becomes_a_dead_letter_and_its_user_gets_an_error() {
    let system = TestSystem::new([
        vec![Step::Panic],
        vec![Step::Panic],
        vec![Step::Panic],
        answer("the next"),
    ]);
    let _worker = system.start();
    system.ask("alice", "hello");
    system.ask("alice", "and now?");
    system.wait_until_committed(2).await;
    assert_eq!(system.terminals()[0]["code"], "internal");
    assert_eq!(system.terminals()[1]["content"], "the next");
    assert_eq!(system.topics.values(DEAD_LETTERS).len(), 1);
    assert_eq!(
        system.journal()[..4],
        ["kept", RESPONSES, DEAD_LETTERS, "offset"]
    );
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_record_becomes_a_dead_letter_and_blocks_no_other() {
    let system = TestSystem::new([answer("hi")]);
    let _worker = system.start();
    system
        .topics
        .append(MESSAGES, FakeTopics::record("not JSON"));
    system.ask("alice", "hello");
    system.wait_until_committed(2).await;
    assert_eq!(system.topics.values(DEAD_LETTERS).len(), 1);
    assert_eq!(system.terminals().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_cached_context_equals_the_stored_history() {
    let system = TestSystem::new(["a1", "a2", "a3", "a5", "a6"].map(answer));
    let worker = system.start();
    let user = user("alice");
    let ask = async |system: &TestSystem, number: i64| {
        system.ask("alice", &format!("q{number}"));
        system.wait_until_committed(number).await;
    };
    for number in 1..=3 {
        ask(&system, number).await;
    }
    // Another worker answers one message of the conversation, then the conversation is forgotten.
    worker.crash().await;
    let other = system.second_process([answer("a4")]);
    let other_worker = other.start();
    ask(&system, 4).await;
    other_worker.crash().await;
    let _worker = system.start();
    ask(&system, 5).await;
    system.fanout.forget(&user, None).await.unwrap();
    ask(&system, 6).await;
    let requests = system.script.requests.lock().unwrap().clone();
    assert_eq!(requests[2], ["q1", "a1", "q2", "a2", "q3"]);
    let fifth = ["q1", "a1", "q2", "a2", "q3", "a3", "q4", "a4", "q5"];
    assert_eq!(requests[3], fifth);
    assert_eq!(requests[4], ["q6"]);
}
