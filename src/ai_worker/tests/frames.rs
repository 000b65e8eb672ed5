//! What the live road costs, and whom it never holds up.

use super::*;

const TOKENS: usize = 4000;

fn long() -> Vec<Step> {
    let token = [say("word "), wait_ms(10)];
    let mut steps: Vec<Step> = std::iter::repeat_n(token, TOKENS).flatten().collect();
    steps.push(Step::Finish);
    steps
}

#[tokio::test(start_paused = true)]
async fn a_long_answer_costs_at_most_40_live_frames_a_second_and_one_record() {
    let rig = Rig::new([long()]);
    let _worker = rig.start();
    rig.ask("alice", "hello");
    rig.until_committed(1).await;
    assert_eq!(rig.ends().len(), 1);
    assert_eq!(rig.ends()[0]["content"], "word ".repeat(TOKENS));
    let written = rig.fanout.written.lock().unwrap();
    let first_said = rig.script.said.lock().unwrap()[0];
    assert_eq!(written[0].at, first_said, "the first token leaves at once");
    assert_eq!(written[0].delta, Some((0, "word ".to_owned())));
    for (index, call) in written.iter().enumerate() {
        let within = written[index..]
            .iter()
            .take_while(|later| later.at < call.at + Duration::from_secs(1));
        let count = within.count();
        assert!(count <= 40, "{count} calls within a second");
    }
    assert!(written.len() > 1000, "but a person sees it grow");
    let all: String = written
        .iter()
        .filter_map(|call| Some(call.delta.clone()?.1))
        .collect();
    assert!("word ".repeat(TOKENS).starts_with(&all));
}

#[tokio::test(start_paused = true)]
async fn reading_the_model_never_waits_for_the_fan_out() {
    let rig = Rig::new([long()]);
    rig.fanout.live_gate.close();
    let _worker = rig.start();
    rig.ask("alice", "hello");
    rig.until_committed(1).await;
    let said = rig.script.said.lock().unwrap();
    assert_eq!(said.len(), TOKENS);
    let took = said[TOKENS - 1] - said[0];
    let paced = Duration::from_millis(10) * (TOKENS as u32 - 1);
    assert!(
        took <= paced + Duration::from_millis(TOKENS as u64),
        "{took:?}"
    );
    assert_eq!(rig.ends()[0]["content"], "word ".repeat(TOKENS));
    assert!(rig.fanout.written.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_question_that_nobody_watches_costs_renewals_only() {
    let rig = Rig::new([long()]);
    let _worker = rig.start();
    let value = r#"{"content":"hello","userid":"alice"}"#;
    rig.topics.put(QUESTIONS, Topics::value(value));
    rig.until_committed(1).await;
    let written = rig.fanout.written.lock().unwrap();
    assert!((38..=48).contains(&written.len()), "{}", written.len());
    assert!(written.iter().all(|call| call.delta.is_none()));
}
