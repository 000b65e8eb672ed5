//! Tests of cancels: how soon they close the model call, and that the outcome is `cancelled`.

use std::sync::atomic::Ordering;

use super::*;
use crate::fanout::FeedEvent;

/// Cancels a message `delay_ms` after its model call started. Returns the milliseconds until the
/// call was closed.
async fn cancel_after(system: &TestSystem, delay_ms: u64) -> u128 {
    let _worker = system.start();
    let id = system.ask("alice", "hello");
    system
        .wait_until("the model call", || system.script.calls() == 1)
        .await;
    sleep(Duration::from_millis(delay_ms)).await;
    let cancelled_at = Instant::now();
    system.fanout.cancel(&user("alice"), &id).await.unwrap();
    system
        .wait_until("the closed call", || !system.script.closed_at().is_empty())
        .await;
    let closed_after_ms = (system.script.closed_at()[0] - cancelled_at).as_millis();
    system.wait_until_committed(1).await;
    let terminals = system.terminals();
    assert_eq!(terminals.len(), 1);
    assert_eq!(terminals[0]["code"], "cancelled");
    closed_after_ms
}

#[tokio::test(start_paused = true)]
async fn a_cancel_before_the_first_token_closes_the_model_call_at_once() {
    let system = TestSystem::new([vec![Step::Hang]]);
    assert_eq!(cancel_after(&system, 420).await, 0);
    system
        .wait_until("the end of the subscription", || {
            system.fanout.subscriptions.changes().len() == 2
        })
        .await;
    assert_eq!(system.fanout.subscriptions.changes(), ["+alice", "-alice"]);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_during_the_stream_keeps_the_text_so_far() {
    let system = TestSystem::new([vec![send_text("Once upon"), Step::Hang]]);
    assert_eq!(cancel_after(&system, 777).await, 0);
    assert_eq!(system.terminals()[0]["content"], "Once upon");
}

#[tokio::test(start_paused = true)]
async fn a_cancel_before_the_subscription_is_detected_when_it_is_confirmed() {
    let system = TestSystem::new([vec![Step::Hang]]);
    assert!(cancel_after(&system, 50).await <= 160);
}

#[tokio::test(start_paused = true)]
async fn a_gap_in_the_feed_makes_answers_check_for_cancels() {
    let system = TestSystem::new([vec![Step::Hang]]);
    let _worker = system.start();
    let id = system.ask("alice", "hello");
    system
        .wait_until("the subscription", || {
            !system.fanout.subscriptions.changes().is_empty()
        })
        .await;
    sleep(Duration::from_millis(300)).await;
    // The cancel is made through another process, so this worker never receives its frame.
    system
        .fanout
        .second_process()
        .cancel(&user("alice"), &id)
        .await
        .unwrap();
    let started = Instant::now();
    system.fanout.subscriptions.send(FeedEvent::Gap);
    system
        .wait_until("the closed call", || !system.script.closed_at().is_empty())
        .await;
    assert!(elapsed_ms(started) <= 1, "{}", elapsed_ms(started));
    system.wait_until_committed(1).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_feed_a_cancel_is_detected_by_the_next_lease_renewal() {
    let system = TestSystem::new([vec![Step::Hang]]);
    system
        .fanout
        .subscriptions
        .opening_fails
        .store(true, Ordering::SeqCst);
    let closed_after_ms = cancel_after(&system, 1500).await;
    assert!((400..=1000).contains(&closed_after_ms), "{closed_after_ms}");
}

#[tokio::test(start_paused = true)]
async fn a_hanging_subscription_delays_no_answer() {
    let system = TestSystem::new([vec![wait_ms(1000), send_text("hi"), Step::Finish]]);
    system
        .fanout
        .subscriptions
        .subscribing_hangs
        .store(true, Ordering::SeqCst);
    let _worker = system.start();
    let started = Instant::now();
    system.ask("alice", "hello");
    system.wait_until_committed(1).await;
    assert!(elapsed_ms(started) <= 1002, "{}", elapsed_ms(started));
}

#[tokio::test(start_paused = true)]
async fn short_answers_do_not_subscribe_and_two_long_ones_share_a_subscription() {
    let slow = || vec![wait_ms(900), send_text("hi"), Step::Finish];
    let system = TestSystem::new([answer("quick"), slow(), slow()]);
    let _worker = system.start();
    system.ask("alice", "hello");
    system.wait_until_committed(1).await;
    sleep(Duration::from_secs(2)).await;
    assert!(system.fanout.subscriptions.changes().is_empty());
    for conversation in ["a", "b"] {
        let value =
            format!(r#"{{"content":"x","userid":"alice","conversation_id":"{conversation}"}}"#);
        system.topics.append(MESSAGES, FakeTopics::record(&value));
        sleep(Duration::from_millis(300)).await;
    }
    system.wait_until_committed(3).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(system.fanout.subscriptions.changes(), ["+alice", "-alice"]);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_between_two_model_calls_prevents_the_second() {
    let system = TestSystem::new([vec![wait_ms(250), Step::Break]]);
    let _worker = system.start();
    let id = system.ask("alice", "hello");
    system
        .wait_until("the failed call", || !system.script.closed_at().is_empty())
        .await;
    // The cancel is made during the backoff before the second call, which is at least 250 ms.
    sleep(Duration::from_millis(50)).await;
    let started = Instant::now();
    system.fanout.cancel(&user("alice"), &id).await.unwrap();
    system.wait_until_committed(1).await;
    assert!(elapsed_ms(started) <= 1);
    assert_eq!(system.script.calls(), 1);
    assert_eq!(system.terminals()[0]["code"], "cancelled");
}

#[tokio::test(start_paused = true)]
async fn a_message_cancelled_while_it_waits_is_never_sent_to_the_model() {
    let mut system = TestSystem::new([vec![wait_ms(5000), send_text("first"), Step::Finish]]);
    system.settings.pipeline.max_workers = 1;
    let _worker = system.start();
    system.ask("alice", "first");
    let queued = system.ask("alice", "second");
    let without_slot = system.ask("bob", "third");
    sleep(Duration::from_secs(1)).await;
    system.fanout.cancel(&user("alice"), &queued).await.unwrap();
    system
        .fanout
        .cancel(&user("bob"), &without_slot)
        .await
        .unwrap();
    system.wait_until_committed(3).await;
    assert_eq!(system.script.calls(), 1);
    let mut codes: Vec<_> = system
        .terminals()
        .iter()
        .map(|terminal| terminal["code"].to_string())
        .collect();
    codes.sort();
    assert_eq!(codes, ["\"cancelled\"", "\"cancelled\"", "null"]);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_while_the_fan_out_lost_its_data_keeps_the_text_so_far() {
    let system = TestSystem::new([vec![send_text("Once upon"), Step::Hang]]);
    let _worker = system.start();
    let id = system.ask("alice", "hello");
    system
        .wait_until("published text", || !system.fanout.pieces().is_empty())
        .await;
    system.fanout.begin_gate.close();
    system.fanout.lose_all();
    system
        .wait_until("another begin", || {
            system.fanout.begins.load(Ordering::SeqCst) == 2
        })
        .await;
    // The cancel mark is set before the fan-out executes the second `begin`.
    let other = system.fanout.second_process();
    other.cancel(&user("alice"), &id).await.unwrap();
    system.fanout.begin_gate.open();
    system.wait_until_committed(1).await;
    assert_eq!(system.terminals()[0]["code"], "cancelled");
    assert_eq!(system.terminals()[0]["content"], "Once upon");
}
