//! Crashes, takeovers, two workers at once, a fan-out that lost its data.

use std::sync::atomic::Ordering;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_redelivered_message_is_answered_from_its_outcome() {
    let rig = Rig::new([answer("paid once")]);
    *rig.topics.stuck.lock().unwrap() = Some(ENDS.into());
    let worker = rig.start();
    rig.ask("alice", "hello");
    rig.until("kept", || rig.journal() == ["kept"]).await;
    worker.crash().await;
    *rig.topics.stuck.lock().unwrap() = None;

    let other = rig.beside([]);
    let _worker = other.start();
    rig.until_committed(1).await;
    assert_eq!(rig.ends()[0]["content"], "paid once");
    assert_eq!((rig.ends().len(), other.script.calls()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn two_workers_at_once_pay_once_and_say_the_same() {
    let rig = Rig::new([vec![say("from"), wait_ms(7000), say(" one"), Step::Finish]]);
    let other = rig.beside([]);
    let _workers = (rig.start(), other.start());
    rig.ask("alice", "hello");
    rig.until("both have ended it", || rig.ends().len() == 2)
        .await;
    assert_eq!(rig.script.calls() + other.script.calls(), 1);
    assert_eq!(rig.ends()[0], rig.ends()[1]);
    assert_eq!(rig.ends()[0]["content"], "from one");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_in_mid_answer_is_followed_by_another_attempt() {
    let rig = Rig::new([vec![say("half"), Step::Hang]]);
    let worker = rig.start();
    rig.ask("alice", "hello");
    pass(Duration::from_millis(500)).await;
    worker.crash().await;
    let other = rig.beside([answer("whole")]);
    let _worker = other.start();
    rig.until_committed(1).await;
    assert_eq!(rig.fanout.deltas(), [(1, 0, "half".to_owned())]);
    assert_eq!(other.fanout.deltas(), [(2, 0, "whole".to_owned())]);
    assert_eq!(rig.ends()[0]["content"], "whole");
    assert_eq!(rig.ends()[0]["attempt"], 2);
    let at_once: Vec<_> = rig.script.closed();
    assert_eq!(at_once.len(), 1, "the dead worker's connection is closed");
}

/// One that is stalled with its whole answer written, and another that takes over meanwhile.
async fn stalled(other_takes_ms: u64) -> (Rig, Rig, [Worker; 2]) {
    let rig = Rig::new([vec![wait_ms(10_000), say("mine"), Step::Finish]]);
    rig.fanout.live_gate.close();
    let first = rig.start();
    rig.ask("alice", "hello");
    pass(Duration::from_secs(4)).await;
    let other = rig.beside([vec![wait_ms(other_takes_ms), say("theirs"), Step::Finish]]);
    let second = other.start();
    rig.until("both have ended it", || rig.ends().len() == 2)
        .await;
    (rig, other, [first, second])
}

#[tokio::test(start_paused = true)]
async fn s13_a_worker_that_wakes_after_another_ended_its_message_says_the_same() {
    let (rig, other, _workers) = stalled(1000).await;
    assert_eq!(rig.ends()[0]["content"], "theirs");
    assert_eq!(rig.ends()[0], rig.ends()[1]);
    assert_eq!((rig.script.calls(), other.script.calls()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn s13_fenced_at_keep_while_the_other_still_writes() {
    let (rig, other, _workers) = stalled(20_000).await;
    assert_eq!(rig.ends()[0]["content"], "theirs");
    assert_eq!(rig.ends()[0], rig.ends()[1]);
    assert_eq!((rig.script.calls(), other.script.calls()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn fenced_at_keep_by_one_that_died_keeps_the_answer_that_is_there() {
    let rig = Rig::new([vec![wait_ms(10_000), say("mine"), Step::Finish]]);
    rig.fanout.live_gate.close();
    let _worker = rig.start();
    rig.ask("alice", "hello");
    pass(Duration::from_secs(4)).await;
    let other = rig.beside([vec![Step::Hang]]);
    let dies = other.start();
    pass(Duration::from_millis(5500)).await;
    dies.crash().await;
    rig.until_committed(1).await;
    assert_eq!(rig.ends()[0]["content"], "mine");
    assert_eq!(rig.ends()[0]["attempt"], 3);
    assert_eq!(rig.script.calls(), 1, "it was paid already");
}

#[tokio::test(start_paused = true)]
async fn s5_a_lost_text_is_sent_again_whole_under_a_higher_number() {
    let rig = Rig::new([vec![
        say("one"),
        wait_ms(100),
        say(" two"),
        wait_ms(100),
        say(" three"),
        wait_ms(100),
        say(" four"),
        Step::Finish,
    ]]);
    let _worker = rig.start();
    rig.ask("alice", "hello");
    pass(Duration::from_millis(150)).await;
    rig.fanout.lose_all();
    rig.until_committed(1).await;
    let deltas = rig.fanout.deltas();
    assert_eq!(deltas[0], (1, 0, "one".to_owned()));
    assert_eq!(deltas[1], (1, 1, " two".to_owned()));
    assert_eq!(deltas[2], (2, 0, "one two three".to_owned()));
    assert_eq!(rig.script.calls(), 1);
    assert_eq!(rig.ends()[0]["content"], "one two three four");
    assert_eq!(rig.ends()[0]["attempt"], 2);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_ends_while_it_is_begun_again_is_not_paid_twice() {
    let rig = Rig::new([vec![
        say("one"),
        wait_ms(100),
        say(" two"),
        wait_ms(100),
        Step::Finish,
    ]]);
    let _worker = rig.start();
    rig.ask("alice", "hello");
    pass(Duration::from_millis(50)).await;
    rig.fanout.lose_all();
    // `begin` is carried out, and its answer late.
    rig.fanout.begun_gate.close();
    rig.until("begun again", || {
        rig.fanout.begins.load(Ordering::SeqCst) == 2
    })
    .await;
    pass(Duration::from_millis(500)).await;
    rig.fanout.begun_gate.open();
    rig.until_committed(1).await;
    assert_eq!(rig.script.calls(), 1);
    assert_eq!(rig.ends()[0]["content"], "one two");
}

#[tokio::test(start_paused = true)]
async fn what_another_has_taken_over_is_not_paid_again_after_a_failure() {
    let rig = Rig::new([vec![wait_ms(4500), Step::Break]]);
    rig.fanout.live_gate.close();
    let _first = rig.start();
    rig.ask("alice", "hello");
    pass(Duration::from_secs(4)).await;
    let other = rig.beside([answer("theirs")]);
    let _second = other.start();
    rig.until("the other has ended it", || rig.ends().len() == 1)
        .await;
    // It fails, would be tried again, and hears nothing yet of who has it.
    pass(Duration::from_secs(3)).await;
    rig.fanout.live_gate.open();
    rig.until("both have ended it", || rig.ends().len() == 2)
        .await;
    assert_eq!((rig.script.calls(), other.script.calls()), (1, 1));
    assert_eq!(rig.ends()[0], rig.ends()[1]);
}
