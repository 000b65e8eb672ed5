//! Tests of crashes, takeovers, concurrent workers, and a fan-out that has lost its data.

use std::sync::atomic::Ordering;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_redelivered_message_is_answered_from_its_stored_outcome() {
    let system = TestSystem::new([answer("only answer")]);
    *system.topics.unacknowledged_topic.lock().unwrap() = Some(RESPONSES.into());
    let worker = system.start();
    system.ask("alice", "hello");
    system
        .wait_until("kept", || system.journal() == ["kept"])
        .await;
    worker.crash().await;
    *system.topics.unacknowledged_topic.lock().unwrap() = None;

    let other = system.second_process([]);
    let _worker = other.start();
    system.wait_until_committed(1).await;
    assert_eq!(system.terminals()[0]["content"], "only answer");
    assert_eq!((system.terminals().len(), other.script.calls()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn two_concurrent_workers_make_one_model_call_and_publish_the_same_answer() {
    let system = TestSystem::new([vec![
        send_text("from"),
        wait_ms(7000),
        send_text(" one"),
        Step::Finish,
    ]]);
    let other = system.second_process([]);
    let _workers = (system.start(), other.start());
    system.ask("alice", "hello");
    system
        .wait_until("both terminal records", || system.terminals().len() == 2)
        .await;
    assert_eq!(system.script.calls() + other.script.calls(), 1);
    assert_eq!(system.terminals()[0], system.terminals()[1]);
    assert_eq!(system.terminals()[0]["content"], "from one");
}

#[tokio::test(start_paused = true)]
async fn a_crash_during_an_answer_is_followed_by_another_attempt() {
    let system = TestSystem::new([vec![send_text("half"), Step::Hang]]);
    let worker = system.start();
    system.ask("alice", "hello");
    sleep(Duration::from_millis(500)).await;
    worker.crash().await;
    let other = system.second_process([answer("whole")]);
    let _worker = other.start();
    system.wait_until_committed(1).await;
    assert_eq!(system.fanout.pieces(), [(1, 0, 0, "half".to_owned())]);
    assert_eq!(other.fanout.pieces(), [(2, 0, 0, "whole".to_owned())]);
    assert_eq!(system.terminals()[0]["content"], "whole");
    assert_eq!(system.terminals()[0]["attempt"], 2);
    let closed = system.script.closed_at();
    assert_eq!(closed.len(), 1, "the crashed worker's connection is closed");
}

/// Starts a worker whose stream calls hang, so that its lease expires, and 4 s later another
/// worker, which takes the message over and whose model answers after `other_takes_ms`. Returns
/// once both workers have appended a terminal record.
async fn takeover_of_stalled_worker(other_takes_ms: u64) -> (TestSystem, TestSystem, [Worker; 2]) {
    let system = TestSystem::new([vec![wait_ms(10_000), send_text("mine"), Step::Finish]]);
    system.fanout.stream_gate.close();
    let first = system.start();
    system.ask("alice", "hello");
    sleep(Duration::from_secs(4)).await;
    let other = system.second_process([vec![
        wait_ms(other_takes_ms),
        send_text("theirs"),
        Step::Finish,
    ]]);
    let second = other.start();
    system
        .wait_until("both terminal records", || system.terminals().len() == 2)
        .await;
    (system, other, [first, second])
}

// This is scenario S13 of docs/consistency.md.
#[tokio::test(start_paused = true)]
async fn a_worker_that_resumes_after_a_takeover_publishes_the_stored_outcome() {
    let (system, other, _workers) = takeover_of_stalled_worker(1000).await;
    assert_eq!(system.terminals()[0]["content"], "theirs");
    assert_eq!(system.terminals()[0], system.terminals()[1]);
    assert_eq!((system.script.calls(), other.script.calls()), (1, 1));
}

// This is scenario S13 of docs/consistency.md.
#[tokio::test(start_paused = true)]
async fn a_worker_is_fenced_at_keep_while_the_other_still_answers() {
    let (system, other, _workers) = takeover_of_stalled_worker(20_000).await;
    assert_eq!(system.terminals()[0]["content"], "theirs");
    assert_eq!(system.terminals()[0], system.terminals()[1]);
    assert_eq!((system.script.calls(), other.script.calls()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_answer_fenced_by_a_crashed_worker_is_kept_without_another_call() {
    let system = TestSystem::new([vec![wait_ms(10_000), send_text("mine"), Step::Finish]]);
    system.fanout.stream_gate.close();
    let _worker = system.start();
    system.ask("alice", "hello");
    sleep(Duration::from_secs(4)).await;
    let other = system.second_process([vec![Step::Hang]]);
    let crashing = other.start();
    sleep(Duration::from_millis(5500)).await;
    crashing.crash().await;
    system.wait_until_committed(1).await;
    assert_eq!(system.terminals()[0]["content"], "mine");
    assert_eq!(system.terminals()[0]["attempt"], 3);
    assert_eq!(system.script.calls(), 1, "the answer was generated before");
}

// This is scenario S5 of docs/consistency.md.
#[tokio::test(start_paused = true)]
async fn text_lost_by_the_fan_out_is_published_again_under_a_higher_attempt() {
    let system = TestSystem::new([vec![
        send_text("one"),
        wait_ms(100),
        send_text(" two"),
        wait_ms(100),
        send_text(" three"),
        wait_ms(100),
        send_text(" four"),
        Step::Finish,
    ]]);
    let _worker = system.start();
    system.ask("alice", "hello");
    sleep(Duration::from_millis(150)).await;
    system.fanout.lose_all();
    system.wait_until_committed(1).await;
    let pieces = system.fanout.pieces();
    assert_eq!(pieces[0], (1, 0, 0, "one".to_owned()));
    assert_eq!(pieces[1], (1, 0, 3, " two".to_owned()));
    assert_eq!(pieces[2], (2, 0, 0, "one two three".to_owned()));
    assert_eq!(system.script.calls(), 1);
    assert_eq!(system.terminals()[0]["content"], "one two three four");
    assert_eq!(system.terminals()[0]["attempt"], 2);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_ends_during_another_begin_makes_one_model_call() {
    let system = TestSystem::new([vec![
        send_text("one"),
        wait_ms(100),
        send_text(" two"),
        wait_ms(100),
        Step::Finish,
    ]]);
    let _worker = system.start();
    system.ask("alice", "hello");
    sleep(Duration::from_millis(50)).await;
    system.fanout.lose_all();
    // The fan-out executes the second `begin`, but its response is delayed.
    system.fanout.begin_response_gate.close();
    system
        .wait_until("another begin", || {
            system.fanout.begins.load(Ordering::SeqCst) == 2
        })
        .await;
    sleep(Duration::from_millis(500)).await;
    system.fanout.begin_response_gate.open();
    system.wait_until_committed(1).await;
    assert_eq!(system.script.calls(), 1);
    assert_eq!(system.terminals()[0]["content"], "one two");
}

#[tokio::test(start_paused = true)]
async fn a_failed_call_is_not_retried_after_another_worker_took_over() {
    let system = TestSystem::new([vec![wait_ms(4500), Step::Break]]);
    system.fanout.stream_gate.close();
    let _first = system.start();
    system.ask("alice", "hello");
    sleep(Duration::from_secs(4)).await;
    let other = system.second_process([answer("theirs")]);
    let _second = other.start();
    system
        .wait_until("the other's terminal record", || {
            system.terminals().len() == 1
        })
        .await;
    // The first worker's call has failed, and the worker would retry it, because it does not know
    // of the takeover yet.
    sleep(Duration::from_secs(3)).await;
    system.fanout.stream_gate.open();
    system
        .wait_until("both terminal records", || system.terminals().len() == 2)
        .await;
    assert_eq!((system.script.calls(), other.script.calls()), (1, 1));
    assert_eq!(system.terminals()[0], system.terminals()[1]);
}
