//! Cancels: how soon they stop what costs money, and that they end the message as cancelled.

use std::sync::atomic::Ordering;

use super::*;
use crate::fanout::FeedEvent;

async fn cancelled_after(rig: &Rig, begin_ms: u64) -> u128 {
    let _worker = rig.start();
    let id = rig.ask("alice", "hello");
    rig.until("asked", || rig.script.calls() == 1).await;
    pass(Duration::from_millis(begin_ms)).await;
    let cancelled = Instant::now();
    rig.fanout.cancel(&user("alice"), &id).await.unwrap();
    rig.until("closed", || !rig.script.closed().is_empty())
        .await;
    let time = (rig.script.closed()[0] - cancelled).as_millis();
    rig.until_committed(1).await;
    let ends = rig.ends();
    assert_eq!(ends.len(), 1);
    assert_eq!(ends[0]["code"], "cancelled");
    time
}

#[tokio::test(start_paused = true)]
async fn a_cancel_before_the_first_token_closes_the_call_at_once() {
    let rig = Rig::new([vec![Step::Hang]]);
    assert_eq!(cancelled_after(&rig, 420).await, 0);
    rig.until("unsubscribed", || rig.fanout.ears.said().len() == 2)
        .await;
    assert_eq!(rig.fanout.ears.said(), ["+alice", "-alice"]);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_while_it_streams_keeps_what_was_said() {
    let rig = Rig::new([vec![say("Once upon"), Step::Hang]]);
    assert_eq!(cancelled_after(&rig, 777).await, 0);
    assert_eq!(rig.ends()[0]["content"], "Once upon");
}

#[tokio::test(start_paused = true)]
async fn a_cancel_before_the_subscription_is_found_when_it_is_confirmed() {
    let rig = Rig::new([vec![Step::Hang]]);
    assert!(cancelled_after(&rig, 50).await <= 160);
}

#[tokio::test(start_paused = true)]
async fn a_gap_makes_answers_look() {
    let rig = Rig::new([vec![Step::Hang]]);
    let _worker = rig.start();
    let id = rig.ask("alice", "hello");
    rig.until("subscribed", || !rig.fanout.ears.said().is_empty())
        .await;
    pass(Duration::from_millis(300)).await;
    // Its frame is lost.
    rig.fanout
        .beside()
        .cancel(&user("alice"), &id)
        .await
        .unwrap();
    let begun = Instant::now();
    rig.fanout.ears.tell(FeedEvent::Gap);
    rig.until("closed", || !rig.script.closed().is_empty())
        .await;
    assert!(since(begun) <= 1, "{}", since(begun));
    rig.until_committed(1).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_feed_a_cancel_is_found_by_the_next_renewal() {
    let rig = Rig::new([vec![Step::Hang]]);
    rig.fanout.ears.deaf.store(true, Ordering::SeqCst);
    let time = cancelled_after(&rig, 1500).await;
    assert!((400..=1000).contains(&time), "{time}");
}

#[tokio::test(start_paused = true)]
async fn a_subscription_that_hangs_delays_no_answer() {
    let rig = Rig::new([vec![wait_ms(1000), say("hi"), Step::Finish]]);
    rig.fanout.ears.slow.store(true, Ordering::SeqCst);
    let _worker = rig.start();
    let begun = Instant::now();
    rig.ask("alice", "hello");
    rig.until_committed(1).await;
    assert!(since(begun) <= 1002, "{}", since(begun));
}

#[tokio::test(start_paused = true)]
async fn a_short_answer_subscribes_to_nothing_and_two_long_ones_once() {
    let slow = || vec![wait_ms(900), say("hi"), Step::Finish];
    let rig = Rig::new([answer("quick"), slow(), slow()]);
    let _worker = rig.start();
    rig.ask("alice", "hello");
    rig.until_committed(1).await;
    pass(Duration::from_secs(2)).await;
    assert!(rig.fanout.ears.said().is_empty());
    for conversation in ["a", "b"] {
        let value =
            format!(r#"{{"content":"x","userid":"alice","conversation_id":"{conversation}"}}"#);
        rig.topics.put(QUESTIONS, Topics::value(&value));
        pass(Duration::from_millis(300)).await;
    }
    rig.until_committed(3).await;
    pass(Duration::from_secs(1)).await;
    assert_eq!(rig.fanout.ears.said(), ["+alice", "-alice"]);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_between_two_attempts_makes_no_further_one() {
    let rig = Rig::new([vec![wait_ms(250), Step::Break]]);
    let _worker = rig.start();
    let id = rig.ask("alice", "hello");
    rig.until("broken", || !rig.script.closed().is_empty())
        .await;
    // Some backoff, which is at least 250 ms.
    pass(Duration::from_millis(50)).await;
    let begun = Instant::now();
    rig.fanout.cancel(&user("alice"), &id).await.unwrap();
    rig.until_committed(1).await;
    assert!(since(begun) <= 1);
    assert_eq!(rig.script.calls(), 1);
    assert_eq!(rig.ends()[0]["code"], "cancelled");
}

#[tokio::test(start_paused = true)]
async fn what_waits_in_its_lane_or_for_a_slot_is_cancelled_unasked() {
    let mut rig = Rig::new([vec![wait_ms(5000), say("first"), Step::Finish]]);
    rig.settings.pipeline.max_workers = 1;
    let _worker = rig.start();
    rig.ask("alice", "first");
    let behind = rig.ask("alice", "second");
    let slotless = rig.ask("bob", "third");
    pass(Duration::from_secs(1)).await;
    rig.fanout.cancel(&user("alice"), &behind).await.unwrap();
    rig.fanout.cancel(&user("bob"), &slotless).await.unwrap();
    rig.until_committed(3).await;
    assert_eq!(rig.script.calls(), 1);
    let mut codes: Vec<_> = rig
        .ends()
        .iter()
        .map(|end| end["code"].to_string())
        .collect();
    codes.sort();
    assert_eq!(codes, ["\"cancelled\"", "\"cancelled\"", "null"]);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_that_meets_a_lost_fan_out_keeps_what_was_said() {
    let rig = Rig::new([vec![say("Once upon"), Step::Hang]]);
    let _worker = rig.start();
    let id = rig.ask("alice", "hello");
    rig.until("written", || !rig.fanout.deltas().is_empty())
        .await;
    rig.fanout.begin_gate.close();
    rig.fanout.lose_all();
    rig.until("begun again", || {
        rig.fanout.begins.load(Ordering::SeqCst) == 2
    })
    .await;
    // The mark is there before the message is taken again.
    let other = rig.fanout.beside();
    other.cancel(&user("alice"), &id).await.unwrap();
    rig.fanout.begin_gate.open();
    rig.until_committed(1).await;
    assert_eq!(rig.ends()[0]["code"], "cancelled");
    assert_eq!(rig.ends()[0]["content"], "Once upon");
}
