//! The contract of every fan-out: one test suite that `fanout_contract!` runs over each
//! implementation. S1 to S15 are the scenarios of `docs/consistency.md`.

mod answers;
mod case;
mod feeds;
mod forgetting;
mod histories;
mod limits;
mod mailboxes;
mod receiver;
mod resume;
mod streams;
mod writer;

pub(crate) use answers::*;
pub(crate) use case::{
    Backend, Case, attempt_number, ended_outcome, is_confirmed, piece, stored_outcome, texts,
};
pub(crate) use feeds::*;
pub(crate) use forgetting::*;
pub(crate) use histories::*;
pub(crate) use limits::*;
pub(crate) use mailboxes::*;
pub(crate) use receiver::{Receiver, received_parts};
pub(crate) use resume::*;
pub(crate) use streams::*;
pub(crate) use writer::StreamWriter;

/// Declares one test for each rule of the contract. `$backend` is an async expression that returns
/// a [`Backend`]; it is evaluated for each test.
#[macro_export]
macro_rules! fanout_contract {
    ($backend:expr) => {
        $crate::fanout_contract! { @each $backend;
            scenario_1_deliver_repeated_before_the_rewind_reports_data_loss,
            scenario_2_first_delivered_answer_wins,
            scenario_3_rewind_restores_rolled_back_frames,
            read_reports_up_to_where_a_rewind_rebuilt_the_mailbox,
            scenario_4_text_starts_over_after_data_loss,
            scenario_4_text_after_data_loss_is_another_stream,
            scenario_5_stale_text_is_ignored_after_a_new_begin,
            scenario_6_repeated_begin_keeps_attempt_and_text,
            scenario_7_rebuilt_outcome_makes_a_model_call_unnecessary,
            scenario_8_resent_message_gets_its_known_outcome,
            scenario_8_message_resent_while_its_frame_is_in_transit_gets_the_same_outcome,
            scenario_9_connection_lost_during_its_replay_misses_nothing,
            scenario_10_lost_publication_is_found_by_a_read,
            scenario_11_recreated_counter_has_another_id,
            scenario_12_mailbox_rebuilt_from_the_middle_is_not_recovered_before_its_start,
            scenario_13_stalled_worker_gets_the_outcome_of_its_successor,
            scenario_14_cancel_before_begin,
            scenario_14_cancel_while_streaming,
            scenario_14_cancel_between_the_last_delta_and_keep,
            scenario_14_cancel_after_the_outcome,
            scenario_15_message_admitted_by_two_gateways_is_answered_once,
            lease_excludes_other_owners_until_it_expires,
            only_a_renewal_extends_the_lease,
            outcome_precedes_cancel_loss_and_fence,
            repeated_pieces_change_nothing_that_readers_see,
            repeats_after_a_join_change_nothing_that_readers_see,
            append_to_a_stream_that_does_not_exist_creates_nothing,
            renewal_reports_text_that_is_missing,
            joined_pieces_are_the_same_answer,
            begin_deliver_and_forget_delete_a_stream_and_keep_does_not,
            openings_are_numbered_and_later_deltas_published_verbatim,
            stalled_worker_writes_only_to_its_own_stream,
            answer_in_flight_expires_after_its_last_renewal,
            reader_that_joins_at_any_moment_ends_with_the_same_parts,
            keep_without_an_answer_in_flight_stores_the_outcome,
            keep_of_another_attempt_is_fenced,
            repeated_calls_change_nothing,
            empty_mailbox_has_a_valid_position,
            mailbox_created_by_deliver_starts_at_its_first_frame,
            mailbox_is_bounded_in_frames,
            mailbox_is_bounded_in_bytes,
            mailbox_is_bounded_in_age,
            positions_of_other_epochs_are_not_recovered,
            mailbox_is_read_in_pages,
            mailbox_rebuilt_from_the_middle_can_be_read_from_its_oldest_frame,
            recreated_topic_starts_an_empty_mailbox,
            ends_in_sixteen_other_partitions_are_remembered,
            delivered_outcomes_outlive_the_mailbox,
            message_delivered_elsewhere_still_advances_the_end,
            message_is_pending_until_its_delivery,
            context_has_each_turn_once_in_order_without_failed_ones,
            context_is_bounded_in_number_and_age,
            begin_returns_the_history_unless_the_known_version_is_current,
            keep_after_forget_reports_no_append,
            history_has_the_delivered_answer,
            tokens_are_issued_once_and_expire,
            hostile_user_ids_do_not_affect_other_users,
            message_rate_is_one_budget_for_all_gateways,
            message_rate_recovers_with_time,
            pending_messages_are_limited,
            conversations_are_limited,
            conversations_with_only_pending_messages_count,
            daily_tokens_are_counted_once,
            revocation_is_recorded_published_and_removes_the_token,
            marker_exists_once_set,
            frames_arrive_in_order_and_numbered_across_both_channels,
            rewind_publishes_on_the_live_channel_only,
            unsubscribed_channel_delivers_nothing_more,
            slow_reader_gets_a_gap,
            accepted_is_published_until_the_message_has_an_outcome,
            cancel_notifies_the_worker,
            text_in_flight_is_returned_until_the_delivery,
            delivery_count_counts_owners_and_not_their_repeats,
            history_is_paged_from_the_newest_turn,
            conversations_are_listed_by_their_newest_turn,
            forgotten_conversation_leaves_nothing,
            forgetting_everything_spares_other_users,
            forgetting_does_not_raise_the_floor,
            message_forgotten_while_streaming_ends_once_and_is_not_stored,
            message_forgotten_before_begin_is_never_answered,
            message_forgotten_between_keep_and_deliver_is_published_and_not_stored,
            rewind_restores_nothing_forgotten,
            forgotten_message_is_never_answered_when_resent,
            messages_trimmed_from_the_history_are_forgotten_too,
            large_history_is_forgotten_completely,
            forgotten_conversation_can_be_started_again,
        }
    };
    (@each $backend:expr; $($name:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let backend = $backend.await;
                $crate::fanout_contract::$name(&backend).await;
            }
        )*
    };
}
