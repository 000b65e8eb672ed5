//! The `chatmesh.v1` protocol end to end. The same scenarios run on every backend.

mod closes;
mod devices;
mod faults;
mod frames;
mod history;
mod part_faults;
mod parts;
mod resume;
mod slow;

use std::fmt::Write as _;
use std::sync::Arc;

use crate::support::scenario::{
    FaultScenario, Scenario, assert_none_failed, run_concurrently, run_sequentially,
};
use crate::support::system::{Backend, TestSystem};
use crate::{fault_scenarios, scenarios};

/// Returns `count` words: `name0 name1 … `.
fn numbered_words(name: &str, count: usize) -> String {
    (0..count).fold(String::new(), |mut text, n| {
        let _ = write!(text, "{name}{n} ");
        text
    })
}

/// Scenarios that can run at the same time.
fn concurrent_scenarios() -> Vec<(&'static str, Scenario)> {
    scenarios![
        frames::message_is_accepted_streamed_and_ended_once,
        frames::ping_is_answered_by_pong,
        frames::invalid_frame_is_refused_and_the_socket_stays_open,
        frames::failure_is_a_terminal_error,
        frames::interrupted_provider_restarts_the_text,
        frames::cancel_of_an_unknown_or_ended_message_is_reported,
        devices::all_devices_show_the_same_answer_even_if_they_join_late,
        devices::classic_client_receives_only_response_and_error,
        devices::cancel_before_the_model_call_prevents_it,
        devices::interrupt_cancels_earlier_pending_messages,
        devices::same_id_through_two_gateways_is_one_message,
        devices::id_resent_after_the_outcome_returns_the_stored_answer,
        devices::messages_of_a_conversation_run_in_order_beside_other_conversations,
        parts::every_kind_is_streamed_ended_and_stored,
        parts::device_that_joins_or_hops_in_any_part_shows_whole_parts,
        history::conversations_are_listed_and_paged,
        history::failed_turn_is_marked_in_the_history,
        history::deleted_conversation_disappears_and_others_remain,
        history::deleting_everything_stops_answers_in_flight,
        resume::client_changes_gateways_during_an_answer,
        resume::missed_frames_are_replayed_in_order,
        resume::unknown_position_is_not_recovered,
    ]
}

/// Scenarios that run one at a time, because they load the machine or assert an upper bound on
/// time.
fn exclusive_scenarios() -> Vec<(&'static str, Scenario)> {
    scenarios![
        resume::resuming_after_any_frame_gives_the_same_transcript,
        frames::first_token_is_sent_without_delay,
        frames::many_tokens_are_batched_into_few_frames,
        devices::cancel_from_another_device_stops_a_running_answer,
    ]
}

/// Scenarios that stop or break a part of the system. They run one at a time.
fn fault_scenarios_for(backend: Backend) -> Vec<(&'static str, FaultScenario)> {
    if backend == Backend::Embedded {
        return fault_scenarios![
            faults::killed_process_restarts_the_text,
            part_faults::reasoning_is_shown_kept_or_dropped,
            faults::trimmed_mailbox_is_reported_and_the_history_is_complete,
            faults::position_of_another_epoch_is_not_recovered,
        ];
    }
    fault_scenarios![
        faults::emptied_redis_loses_no_answer,
        faults::restarted_redis_loses_no_answer,
        faults::killed_gateway_loses_no_answer,
        faults::killed_relay_loses_no_answer,
        faults::killed_worker_is_replaced_and_the_text_restarts,
        faults::worker_paused_past_its_session_is_fenced,
        faults::drained_gateway_sends_its_clients_to_another,
        faults::lost_publish_of_an_outcome_is_detected,
        part_faults::reasoning_is_shown_kept_or_dropped,
        part_faults::emptied_redis_mixes_no_parts,
        part_faults::restarted_redis_mixes_no_parts,
        part_faults::late_delta_of_a_paused_worker_is_shown_nowhere,
        part_faults::device_that_joins_after_the_end_and_before_the_delivery_shows_the_parts,
        faults::trimmed_mailbox_is_reported_and_the_history_is_complete,
        faults::position_of_another_epoch_is_not_recovered,
    ]
}

/// Capacity of the mailbox. Small, so that a scenario can overflow it, but sufficient for the other
/// scenarios.
const MAILBOX_FRAMES: usize = 48;

/// Runs all scenarios on one system, because starting the system takes longer than most scenarios.
async fn run_all_scenarios_on(backend: Backend) {
    let mailbox_frames = MAILBOX_FRAMES.to_string();
    let system = TestSystem::start(backend, &[("MAILBOX_FRAMES", &mailbox_frames)]).await;
    let system = Arc::new(system);
    let mut failures = run_concurrently(&system, concurrent_scenarios()).await;
    for scenario in exclusive_scenarios() {
        failures.extend(run_concurrently(&system, vec![scenario]).await);
    }
    let system = Arc::into_inner(system).expect("no scenario still uses the system");
    failures.extend(run_sequentially(system, fault_scenarios_for(backend)).await);
    assert_none_failed(&failures);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_scenario_passes_on_embedded() {
    run_all_scenarios_on(Backend::Embedded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_scenario_passes_on_redis() {
    run_all_scenarios_on(Backend::Redis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_scenario_passes_on_a_redis_cluster() {
    run_all_scenarios_on(Backend::Cluster).await;
}

async fn run_slow_readers_on(backend: Backend) {
    let bounds = [
        ("OUTBOUND_QUEUE_BYTES", "65536"),
        ("MAILBOX_BYTES", "33554432"),
    ];
    let system = Arc::new(TestSystem::start(backend, &bounds).await);
    let scenarios = scenarios![slow::slow_readers_get_combined_deltas_and_stalled_ones_are_closed];
    assert_none_failed(&run_concurrently(&system, scenarios).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_catch_up_on_embedded() {
    run_slow_readers_on(Backend::Embedded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_catch_up_on_redis() {
    run_slow_readers_on(Backend::Redis).await;
}
