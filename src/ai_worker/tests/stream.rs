//! Tests of how the worker publishes an answer's stream while calls to the fan-out fail, text is
//! lost, or the worker may have lost its lease.

use std::sync::atomic::Ordering;

use super::fake_fanout::{CallContent, Fault};
use super::*;
use crate::ai_worker::provider::PartKey;

/// Asks one question and waits for the end of its answer.
async fn answer_question(system: &TestSystem) {
    let _worker = system.start();
    system.ask("alice", "hello");
    system.wait_until_committed(1).await;
}

/// The contents of all calls.
fn contents(system: &TestSystem) -> Vec<CallContent> {
    let calls = system.fanout.stream_calls().into_iter();
    calls.map(|call| call.content).collect()
}

/// A script that sends a token every 40 ms for this number of seconds.
fn steady_answer(seconds: usize) -> Vec<Step> {
    let token = [send_text("word "), wait_ms(40)];
    let mut steps: Vec<Step> = std::iter::repeat_n(token, seconds * 25).flatten().collect();
    steps.push(Step::Finish);
    steps
}

#[tokio::test(start_paused = true)]
async fn a_piece_that_fails_is_repeated_unchanged_before_the_next_one() {
    for fault in [Fault::Refused, Fault::ResponseLost] {
        let system = TestSystem::new([vec![
            send_reasoning("a"),
            wait_ms(300),
            send_reasoning("b"),
            wait_ms(40),
            send_reasoning("c"),
            send_text("d"),
            wait_ms(300),
            Step::Finish,
        ]]);
        let fail_next = |count| {
            let faults = std::iter::repeat_n(fault, count);
            system.fanout.faults.lock().unwrap().extend(faults);
        };
        fail_next(2);
        let _worker = system.start();
        system.ask("alice", "hello");
        sleep(Duration::from_millis(250)).await;
        fail_next(1);
        system.wait_until_committed(1).await;
        let calls = system.fanout.stream_calls();
        let calls: Vec<_> = calls
            .iter()
            .filter(|call| call.content.piece().is_some())
            .collect();
        let texts: Vec<_> = calls
            .iter()
            .map(|call| {
                (
                    call.content.piece().unwrap().text.as_str(),
                    call.is_confirmed,
                )
            })
            .collect();
        let expected = [
            ("a", false),
            ("a", false),
            ("a", true),
            ("b", false),
            ("b", true),
            ("c", true),
            ("d", true),
        ];
        assert_eq!(texts, expected, "{fault:?}");
        for pair in calls.windows(2).filter(|pair| !pair[0].is_confirmed) {
            assert_eq!(pair[0].content, pair[1].content, "{fault:?}");
            let pause = pair[1].at - pair[0].at;
            assert!(pause >= Duration::from_millis(100), "{pause:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_opening_whose_response_is_lost_is_confirmed_after_a_renewal_in_between() {
    let system = TestSystem::new([vec![
        send_reasoning("a"),
        wait_ms(950),
        send_text("b"),
        wait_ms(1000),
        send_text("c"),
        wait_ms(1000),
        Step::Finish,
    ]]);
    let _worker = system.start();
    system.ask("alice", "hello");
    sleep(Duration::from_millis(500)).await;
    // The lease is renewed before the opening of the second part is repeated.
    system
        .fanout
        .faults
        .lock()
        .unwrap()
        .push_back(Fault::ResponseLost);
    system.wait_until_committed(1).await;
    let calls = contents(&system);
    let openings = calls
        .iter()
        .filter(|call| matches!(call, CallContent::Open(..)));
    assert_eq!(openings.count(), 3, "{calls:?}");
    let texts: Vec<_> = system
        .fanout
        .pieces()
        .into_iter()
        .map(|piece| piece.3)
        .collect();
    assert_eq!(texts, ["a", "b", "c"]);
    assert_eq!(system.terminals()[0]["attempt"], 1);
}

#[tokio::test(start_paused = true)]
async fn fewer_pieces_than_expected_lead_to_a_renewal_which_decides() {
    for fault in [Fault::NoPieces, Fault::OnePiece] {
        let system = TestSystem::new([vec![
            send_text("a"),
            wait_ms(40),
            send_text("b"),
            wait_ms(40),
            send_text("c"),
            wait_ms(80),
            Step::Finish,
        ]]);
        let _worker = system.start();
        system.ask("alice", "hello");
        sleep(Duration::from_millis(20)).await;
        system.fanout.faults.lock().unwrap().push_back(fault);
        system.wait_until_committed(1).await;
        // Nothing was lost, so the answer goes on in the same attempt.
        let calls = system.fanout.stream_calls();
        assert_eq!(calls[1].content.piece().unwrap().text, "b");
        let renewal = CallContent::Renew {
            parts: 1,
            last_length: 1,
        };
        assert_eq!(calls[2].content, renewal);
        assert_eq!(calls[2].at, calls[1].at);
        let texts: Vec<_> = system
            .fanout
            .pieces()
            .into_iter()
            .map(|piece| piece.3)
            .collect();
        assert_eq!(texts.concat(), "abc", "{fault:?}");
        assert_eq!(system.terminals()[0]["attempt"], 1);
        assert!(calls.len() <= 5, "{calls:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn lost_parts_are_all_opened_again_in_a_new_stream() {
    let system = TestSystem::new([vec![
        send_reasoning("hm"),
        wait_ms(40),
        send_reasoning("!"),
        send(PartKey::Source, ""),
        send_text("one"),
        wait_ms(100),
        send_text(" two"),
        wait_ms(100),
        Step::Finish,
    ]]);
    let _worker = system.start();
    system.ask("alice", "hello");
    sleep(Duration::from_millis(100)).await;
    system.fanout.lose_all();
    system.wait_until_committed(1).await;
    let pieces = system.fanout.pieces();
    let lost: Vec<_> = pieces.iter().filter(|piece| piece.0 == 1).collect();
    assert_eq!(lost.len(), 4);
    let again: Vec<_> = pieces.into_iter().filter(|piece| piece.0 == 2).collect();
    let expected = [
        (2, 0, 0, "hm!".to_owned()),
        (2, 1, 0, String::new()),
        (2, 2, 0, "one two".to_owned()),
    ];
    assert_eq!(again, expected);
    let calls = system.fanout.stream_calls();
    let append = calls
        .iter()
        .position(|call| call.attempt == 1 && !call.is_confirmed)
        .unwrap();
    // The append returns 0, and only the renewal that follows at once decides.
    assert!(matches!(calls[append].content, CallContent::Append(_)));
    let renewal = CallContent::Renew {
        parts: 3,
        last_length: 3,
    };
    assert_eq!(calls[append + 1].content, renewal);
    assert_eq!(system.terminals()[0]["content"], "one two");
    assert_eq!(system.terminals()[0]["attempt"], 2);
    assert_eq!(system.script.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn loss_is_noticed_while_the_model_is_silent() {
    let system = TestSystem::new([vec![
        send_reasoning("hm"),
        wait_ms(5000),
        send_text("hi"),
        wait_ms(100),
        Step::Finish,
    ]]);
    let _worker = system.start();
    system.ask("alice", "hello");
    sleep(Duration::from_millis(100)).await;
    system.fanout.lose_all();
    sleep(Duration::from_secs(1)).await;
    let expected = [(1, 0, 0, "hm".to_owned()), (2, 0, 0, "hm".to_owned())];
    assert_eq!(system.fanout.pieces(), expected);
    system.wait_until_committed(1).await;
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_renewed_every_second_while_text_flows() {
    let system = TestSystem::new([steady_answer(5)]);
    answer_question(&system).await;
    let renewals = system.fanout.renewals();
    assert!((4..=6).contains(&renewals.len()), "{}", renewals.len());
    let first = system.script.sent_at.lock().unwrap()[0];
    for (earlier, later) in [first].iter().chain(&renewals).zip(&renewals) {
        let interval = *later - *earlier;
        assert!(interval <= Duration::from_millis(1010), "{interval:?}");
    }
    let calls = contents(&system);
    let renewal = calls.iter().rev().find(|call| call.piece().is_none());
    let Some(CallContent::Renew { parts, last_length }) = renewal else {
        panic!("{renewal:?}")
    };
    assert_eq!(*parts, 1);
    assert!(*last_length > 300, "{last_length}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_when_the_last_renewal_is_two_seconds_old() {
    let system = TestSystem::new([steady_answer(6)]);
    system.fanout.renewing_fails.store(true, Ordering::SeqCst);
    let _worker = system.start();
    let started = Instant::now();
    system.ask("alice", "hello");
    sleep(Duration::from_millis(2600)).await;
    let last_piece = |system: &TestSystem| {
        let calls = system.fanout.stream_calls();
        let mut pieces = calls
            .iter()
            .rev()
            .filter(|call| call.content.piece().is_some());
        pieces.next().unwrap().at
    };
    let silence = last_piece(&system) - started;
    let expected = Duration::from_millis(1900)..Duration::from_millis(2010);
    assert!(expected.contains(&silence), "{silence:?}");
    // The lease has not expired, so the worker continues after the next renewal.
    system.fanout.renewing_fails.store(false, Ordering::SeqCst);
    system.wait_until_committed(1).await;
    assert!(last_piece(&system) - started > Duration::from_secs(5));
    let calls = system.fanout.stream_calls();
    let renewed = calls
        .iter()
        .position(|call| call.is_confirmed && matches!(call.content, CallContent::Renew { .. }));
    assert!(calls[renewed.unwrap() + 1].content.piece().is_some());
    assert_eq!(system.terminals()[0]["attempt"], 1);
    let texts: Vec<_> = system
        .fanout
        .pieces()
        .into_iter()
        .map(|piece| piece.3)
        .collect();
    assert!("word ".repeat(150).starts_with(&texts.concat()));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_was_paused_renews_before_it_sends() {
    let system = TestSystem::new([vec![
        send_text("a"),
        wait_ms(2500),
        send_text("b"),
        wait_ms(100),
        Step::Finish,
    ]]);
    let _worker = system.start();
    system.ask("alice", "hello");
    sleep(Duration::from_millis(50)).await;
    // All timers fire at the same time, as in a process that was stopped and continues.
    tokio::time::advance(Duration::from_millis(2600)).await;
    system.wait_until_committed(1).await;
    let calls = contents(&system);
    assert_eq!(calls[0].piece().unwrap().text, "a");
    assert!(calls[1].piece().is_none(), "{calls:?}");
    let next = calls[1..].iter().find_map(CallContent::piece);
    assert_eq!(next.unwrap().text, "b");
}

#[tokio::test(start_paused = true)]
async fn a_stale_append_after_a_takeover_is_not_shown_and_ends_the_worker() {
    let mut steps = vec![
        send_text("mine"),
        wait_ms(100),
        send_text(" late"),
        wait_ms(40),
    ];
    steps.extend(steady_answer(20));
    let system = TestSystem::new([steps]);
    let _first = system.start();
    system.ask("alice", "hello");
    sleep(Duration::from_millis(50)).await;
    system.fanout.stream_gate.close();
    sleep(Duration::from_secs(4)).await;
    let other = system.second_process([vec![send_text("theirs"), wait_ms(3000), Step::Finish]]);
    let _second = other.start();
    other
        .wait_until("the takeover", || !other.fanout.pieces().is_empty())
        .await;
    system.fanout.stream_gate.open();
    system
        .wait_until("both terminal records", || system.terminals().len() == 2)
        .await;
    let late: Vec<_> = contents(&system).into_iter().skip(1).collect();
    assert_eq!(late.len(), 2, "{late:?}");
    assert_eq!(late[0].piece().unwrap().text, " late");
    assert!(late[1].piece().is_none());
    assert_eq!(system.terminals()[0]["content"], "theirs");
    assert_eq!(system.terminals()[0], system.terminals()[1]);
    assert_eq!(system.script.closed_at().len(), 1);
}
