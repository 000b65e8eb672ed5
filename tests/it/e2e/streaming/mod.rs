//! The `chatmesh.v1` protocol end to end: the same scenarios on every backend.

mod closes;
mod devices;
mod faults;
mod history;
mod resume;
mod rows;
mod slow;

use std::fmt::Write as _;
use std::sync::Arc;

use crate::support::scenario::{
    FaultScenario, Scenario, assert_none_failed, run_concurrently, run_sequentially,
};
use crate::support::system::{Backend, TestSystem};
use crate::{fault_scenarios, scenarios};

/// `name0 name1 …`
fn words(name: &str, count: usize) -> String {
    (0..count).fold(String::new(), |mut text, n| {
        let _ = write!(text, "{name}{n} ");
        text
    })
}

fn calm() -> Vec<(&'static str, Scenario)> {
    scenarios![
        rows::an_answer_is_accepted_streamed_and_ended_once,
        rows::the_first_token_leaves_at_once,
        rows::many_tokens_cost_few_frames,
        rows::ping_is_answered_by_pong,
        rows::what_is_no_message_is_refused_and_the_socket_lives_on,
        rows::a_failure_is_a_terminal_error,
        rows::a_provider_that_breaks_off_restarts_the_text,
        rows::a_cancel_never_claims_what_did_not_happen,
        devices::all_devices_see_the_same_also_who_joins_in_mid_answer,
        devices::classic_clients_see_only_response_and_error,
        devices::cancel_from_another_device_while_it_is_written,
        devices::cancel_before_the_model_is_asked,
        devices::interrupt_cancels_what_is_pending_before_it,
        devices::the_same_id_through_two_gateways_at_once_is_one_message,
        devices::an_id_resent_after_the_end_brings_the_stored_answer,
        devices::a_conversation_takes_turns_and_others_run_beside_it,
        history::conversations_are_listed_and_paged,
        history::a_failed_turn_is_in_the_history_and_marked,
        history::a_deleted_conversation_is_gone_and_the_others_stay,
        history::deleting_everything_also_stops_what_is_in_flight,
        resume::a_client_hops_between_gateways_in_mid_answer,
        resume::what_was_missed_is_replayed_in_order_however_much_it_is,
        resume::a_position_of_nobody_is_said_to_be_worth_nothing,
    ]
}

/// They load the machine: beside others those would measure them.
fn heavy() -> Vec<(&'static str, Scenario)> {
    scenarios![resume::resuming_at_every_cut_gives_the_same_transcript]
}

/// They break things: one at a time.
fn breaking(backend: Backend) -> Vec<(&'static str, FaultScenario)> {
    if backend == Backend::Embedded {
        return fault_scenarios![
            faults::everything_is_killed_and_the_text_begins_anew,
            faults::a_trimmed_mailbox_says_so_and_the_history_is_whole,
            faults::positions_of_another_epoch_are_worth_nothing,
        ];
    }
    fault_scenarios![
        faults::redis_is_emptied,
        faults::redis_is_restarted,
        faults::a_gateway_is_killed,
        faults::a_relay_is_killed,
        faults::a_worker_is_killed_and_another_begins_anew,
        faults::a_worker_sleeps_past_its_session_and_is_fenced,
        faults::a_drained_gateway_sends_its_clients_to_another,
        faults::a_lost_publish_of_an_end_is_found,
        faults::a_trimmed_mailbox_says_so_and_the_history_is_whole,
        faults::positions_of_another_epoch_are_worth_nothing,
    ]
}

/// Small enough to be trimmed by a test, and more than any other scenario has.
const MAILBOX_FRAMES: usize = 48;

/// In one system, since starting it takes longer than most of them.
async fn everything_on(backend: Backend) {
    let frames = MAILBOX_FRAMES.to_string();
    let system = TestSystem::start(backend, &[("MAILBOX_FRAMES", &frames)]).await;
    let system = Arc::new(system);
    let mut failed = run_concurrently(&system, calm()).await;
    failed.extend(run_concurrently(&system, heavy()).await);
    let system = Arc::into_inner(system).expect("all scenarios are over");
    failed.extend(run_sequentially(system, breaking(backend)).await);
    assert_none_failed(&failed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_scenario_on_embedded() {
    everything_on(Backend::Embedded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_scenario_on_redis() {
    everything_on(Backend::Redis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_scenario_on_a_redis_cluster() {
    everything_on(Backend::Cluster).await;
}

async fn slow_readers_on(backend: Backend) {
    let bounds = [
        ("OUTBOUND_QUEUE_BYTES", "65536"),
        ("MAILBOX_BYTES", "33554432"),
    ];
    let system = Arc::new(TestSystem::start(backend, &bounds).await);
    let slow = scenarios![slow::slow_readers_get_snapshots_and_dead_ones_are_closed];
    assert_none_failed(&run_concurrently(&system, slow).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_on_embedded() {
    slow_readers_on(Backend::Embedded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_on_redis() {
    slow_readers_on(Backend::Redis).await;
}
