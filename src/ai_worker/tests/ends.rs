//! How messages end: whole, broken off, too old, too long, too late, as dead letters.

use super::double::EPOCH_MS;
use super::*;

fn broken() -> Vec<Step> {
    vec![say("half"), wait_ms(100), Step::Break]
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_is_followed_by_another_attempt_from_index_0() {
    let rig = Rig::new([broken(), answer("whole")]);
    let _worker = rig.start();
    rig.ask("alice", "hello");
    rig.until_committed(1).await;
    assert_eq!(
        rig.fanout.deltas(),
        [(1, 0, "half".to_owned()), (2, 0, "whole".to_owned())]
    );
    assert_eq!(rig.ends()[0]["content"], "whole");
    assert!(rig.topics.values(DEAD).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_stays_broken_is_asked_so_often_and_then_a_dead_letter_is_written() {
    let rig = Rig::new([broken(), vec![Step::Break], broken()]);
    let _worker = rig.start();
    rig.ask("alice", "hello");
    rig.until_committed(1).await;
    assert_eq!(rig.script.calls(), 3);
    assert_eq!(rig.ends()[0]["code"], "provider_failed");
    assert_eq!(rig.journal(), ["kept", ENDS, DEAD, "offset"]);
}

#[tokio::test(start_paused = true)]
async fn a_crash_before_the_dead_letter_loses_no_dead_letter() {
    let rig = Rig::new([broken(), broken(), broken()]);
    *rig.topics.stuck.lock().unwrap() = Some(DEAD.into());
    let worker = rig.start();
    rig.ask("alice", "hello");
    rig.until("told", || rig.ends().len() == 1).await;
    pass(Duration::from_millis(100)).await;
    worker.crash().await;
    *rig.topics.stuck.lock().unwrap() = None;
    let other = rig.beside([]);
    let _worker = other.start();
    rig.until_committed(1).await;
    assert_eq!(rig.topics.values(DEAD).len(), 1);
    assert_eq!(rig.topics.values(DEAD)[0]["content"], "hello");
}

#[tokio::test(start_paused = true)]
async fn a_redelivered_message_that_was_answered_is_no_dead_letter() {
    let rig = Rig::new([answer("hi")]);
    *rig.topics.stuck.lock().unwrap() = Some(ENDS.into());
    let worker = rig.start();
    rig.ask("alice", "hello");
    rig.until("kept", || rig.journal() == ["kept"]).await;
    worker.crash().await;
    *rig.topics.stuck.lock().unwrap() = None;
    let _worker = rig.beside([]).start();
    rig.until_committed(1).await;
    assert!(rig.topics.values(DEAD).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_message_that_waited_too_long_is_expired_and_not_asked() {
    let rig = Rig::new([]);
    *rig.topics.timestamp_ms.lock().unwrap() = EPOCH_MS - 13 * 3600 * 1000;
    let _worker = rig.start();
    rig.ask("alice", "hello");
    rig.until_committed(1).await;
    assert_eq!(rig.ends()[0]["code"], "expired");
    assert!(rig.topics.values(DEAD).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_too_long_answer_ends_where_its_record_is_still_producible() {
    // Each of them takes twice its bytes as JSON.
    let mut rig = Rig::new([vec![say(&"\"\n".repeat(3000)), say("more"), Step::Hang]]);
    rig.settings.max_answer_bytes = 10_000;
    let _worker = rig.start();
    rig.ask("alice", "hello");
    rig.until_committed(1).await;
    let end = &rig.ends()[0];
    assert_eq!(end["finish_reason"], "length");
    assert_eq!(end["type"], "response");
    assert_eq!(end["content"], "\"\n".repeat(2500));
    assert!(end["content"].to_string().len() <= 10_002);
    assert_eq!(rig.script.closed().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_an_answer_that_never_comes() {
    let rig = Rig::new([vec![say("well"), Step::Hang]]);
    let _worker = rig.start();
    let begun = Instant::now();
    rig.ask("alice", "hello");
    rig.until_committed(1).await;
    assert!(
        (300_000..300_100).contains(&since(begun)),
        "{}",
        since(begun)
    );
    assert_eq!(rig.ends()[0]["code"], "provider_timeout");
    assert_eq!(rig.script.closed().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_fan_out_that_is_away_does_not_count_against_the_deadline() {
    let rig = Rig::new([answer("late, but there")]);
    *rig.fanout.context_away_until.lock().unwrap() =
        Some(Instant::now() + Duration::from_secs(400));
    let _worker = rig.start();
    rig.ask("alice", "hello");
    rig.until_committed(1).await;
    assert_eq!(rig.ends()[0]["content"], "late, but there");
}

#[tokio::test(start_paused = true)]
async fn each_earlier_turn_is_in_the_prompt_once_also_for_what_was_queued() {
    let first = vec![wait_ms(2000), say("a1"), Step::Finish];
    let rig = Rig::new([first, broken(), answer("a2")]);
    let worker = rig.start();
    rig.ask("alice", "q1");
    rig.ask("alice", "q2");
    rig.until_committed(2).await;
    worker.crash().await;
    // Crash and redelivery: the third is kept, and not produced.
    *rig.topics.stuck.lock().unwrap() = Some(ENDS.into());
    let second = rig.beside([answer("a3")]);
    let worker = second.start();
    rig.ask("alice", "q3");
    rig.ask("alice", "q4");
    rig.until("kept", || {
        rig.journal().iter().filter(|s| *s == "kept").count() == 3
    })
    .await;
    worker.crash().await;
    *rig.topics.stuck.lock().unwrap() = None;
    let third = rig.beside([answer("a4")]);
    let _worker = third.start();
    rig.until_committed(4).await;
    let requests = rig.script.requests.lock().unwrap().clone();
    assert_eq!(requests[0], ["q1"]);
    assert_eq!(requests[1], ["q1", "a1", "q2"]);
    assert_eq!(requests[2], ["q1", "a1", "q2"]);
    let requests = third.script.requests.lock().unwrap().clone();
    assert_eq!(requests, [["q1", "a1", "q2", "a2", "q3", "a3", "q4"]]);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_panics_the_worker_ends_as_a_dead_letter_and_its_user_is_told() {
    let rig = Rig::new([
        vec![Step::Panic],
        vec![Step::Panic],
        vec![Step::Panic],
        answer("the next"),
    ]);
    let _worker = rig.start();
    rig.ask("alice", "hello");
    rig.ask("alice", "and now?");
    rig.until_committed(2).await;
    assert_eq!(rig.ends()[0]["code"], "internal");
    assert_eq!(rig.ends()[1]["content"], "the next");
    assert_eq!(rig.topics.values(DEAD).len(), 1);
    assert_eq!(rig.journal()[..4], ["kept", ENDS, DEAD, "offset"]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_a_dead_letter_and_holds_up_nobody() {
    let rig = Rig::new([answer("hi")]);
    let _worker = rig.start();
    rig.topics.put(QUESTIONS, Topics::value("not JSON"));
    rig.ask("alice", "hello");
    rig.until_committed(2).await;
    assert_eq!(rig.topics.values(DEAD).len(), 1);
    assert_eq!(rig.ends().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_worker_remembers_is_what_the_history_says() {
    let rig = Rig::new(["a1", "a2", "a3", "a5", "a6"].map(answer));
    let worker = rig.start();
    let user = user("alice");
    let mut asked = 0;
    let ask = async |rig: &Rig, number: i64| {
        rig.ask("alice", &format!("q{number}"));
        rig.until_committed(number).await;
    };
    for _ in 0..3 {
        asked += 1;
        ask(&rig, asked).await;
    }
    // Another worker has the conversation for a while, and then it is forgotten.
    worker.crash().await;
    let other = rig.beside([answer("a4")]);
    let elsewhere = other.start();
    ask(&rig, 4).await;
    elsewhere.crash().await;
    let _worker = rig.start();
    ask(&rig, 5).await;
    rig.fanout.forget(&user, None).await.unwrap();
    ask(&rig, 6).await;
    let requests = rig.script.requests.lock().unwrap().clone();
    assert_eq!(requests[2], ["q1", "a1", "q2", "a2", "q3"]);
    let five = ["q1", "a1", "q2", "a2", "q3", "a3", "q4", "a4", "q5"];
    assert_eq!(requests[3], five);
    assert_eq!(requests[4], ["q6"]);
}
