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

use crate::support::world::{Backend, Scenario, World, one_after_another, side_by_side};
use crate::{faults, scenarios};

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

/// The bounds that scenarios count on.
const FAULTY: &[(&str, &str)] = &[("MAILBOX_FRAMES", "6")];
const SLOW: &[(&str, &str)] = &[
    ("OUTBOUND_QUEUE_BYTES", "65536"),
    ("MAILBOX_BYTES", "33554432"),
];

macro_rules! on {
    ($backend:ident, $name:ident) => {
        mod $name {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn calm_scenarios() {
                let world = Arc::new(World::start(Backend::$backend, &[]).await);
                side_by_side(world.clone(), calm()).await;
                side_by_side(world, heavy()).await;
            }
        }
    };
}

on!(Embedded, on_embedded);
on!(Redis, on_redis);
on!(Cluster, on_a_redis_cluster);

async fn faults_on(backend: Backend) {
    let world = World::start(backend, FAULTY).await;
    let faults = faults![
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
    ];
    one_after_another(world, faults).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_on_redis() {
    faults_on(Backend::Redis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_on_a_redis_cluster() {
    faults_on(Backend::Cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_on_embedded() {
    let world = World::start(Backend::Embedded, FAULTY).await;
    let faults = faults![
        faults::everything_is_killed_and_the_text_begins_anew,
        faults::a_trimmed_mailbox_says_so_and_the_history_is_whole,
        faults::positions_of_another_epoch_are_worth_nothing,
    ];
    one_after_another(world, faults).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_on_embedded() {
    let world = World::start(Backend::Embedded, SLOW).await;
    let slow = scenarios![slow::slow_readers_get_snapshots_and_dead_ones_are_closed];
    side_by_side(Arc::new(world), slow).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_on_redis() {
    let world = World::start(Backend::Redis, SLOW).await;
    let slow = scenarios![slow::slow_readers_get_snapshots_and_dead_ones_are_closed];
    side_by_side(Arc::new(world), slow).await;
}
