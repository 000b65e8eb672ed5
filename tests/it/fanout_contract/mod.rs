//! What every fan-out must do, whatever it is made of: one suite, run over each implementation by
//! `fanout_contract!`. S1 to S15 are the interleavings of `docs/scenarios.md`.

mod answers;
mod case;
mod feeds;
mod forgetting;
mod histories;
mod limits;
mod mailboxes;

pub(crate) use answers::*;
pub(crate) use case::{Backend, Case, attempt, kept, outcome};
pub(crate) use feeds::*;
pub(crate) use forgetting::*;
pub(crate) use histories::*;
pub(crate) use limits::*;
pub(crate) use mailboxes::*;

/// Makes a test of every part of the contract. `$backend` is an async expression that gives a
/// [`Backend`]; it is evaluated for each test.
#[macro_export]
macro_rules! fanout_contract {
    ($backend:expr) => {
        $crate::fanout_contract! { @each $backend;
            s1_a_repeated_deliver_before_the_rewind_is_lost,
            s2_the_answer_that_was_seen_first_wins,
            s3_a_rewind_brings_back_what_was_rolled_back,
            a_look_tells_what_a_rewind_has_brought_from_what_is_new,
            s4_after_data_loss_the_text_begins_anew,
            s4_what_is_published_after_data_loss_begins_at_its_first_piece,
            s5_a_stale_piece_is_refused_after_beginning_again,
            s6_a_repeated_begin_keeps_attempt_and_text,
            s7_a_rebuilt_outcome_spares_the_model,
            s8_a_resent_message_is_told_what_is_known,
            s8_a_resend_while_the_frame_is_under_way_is_told_the_same_end,
            s9_a_socket_that_dies_in_its_replay_misses_nothing,
            s10_a_lost_publish_is_found_by_reading,
            s11_a_counter_made_anew_has_another_id,
            s12_a_mailbox_rebuilt_from_the_middle_does_not_pretend,
            s13_a_worker_that_wakes_up_gets_the_other_ones_outcome,
            s14_cancel_before_begin,
            s14_cancel_while_it_streams,
            s14_cancel_between_last_piece_and_keep,
            s14_cancel_after_the_end,
            s15_two_gateways_admit_one_message,
            a_lease_keeps_others_out_until_it_runs_out,
            live_tells_fenced_lost_and_expected_apart,
            keep_without_anything_in_flight_stores,
            keep_of_another_attempt_is_fenced,
            repeats_of_every_call_change_nothing,
            an_empty_mailbox_has_a_good_position,
            a_mailbox_made_by_deliver_begins_at_its_first_frame,
            a_mailbox_is_bounded_in_frames,
            a_mailbox_is_bounded_in_bytes,
            a_mailbox_is_bounded_in_age,
            positions_of_other_sequences_are_not_recovered,
            a_mailbox_is_read_in_pages,
            a_mailbox_rebuilt_from_the_middle_is_read_from_its_oldest,
            a_topic_made_anew_begins_a_new_mailbox,
            the_ends_in_sixteen_other_partitions_are_remembered,
            delivered_ends_outlive_the_mailbox,
            a_message_delivered_elsewhere_still_moves_the_end,
            pending_is_listed_until_delivered,
            the_context_has_each_turn_once_in_order_without_failures,
            the_context_is_bounded_in_number_and_age,
            a_history_that_the_worker_knows_is_not_brought_again_and_any_other_is,
            what_was_forgotten_while_an_answer_was_written_is_not_what_grew,
            the_delivered_answer_is_what_history_says,
            tokens_are_issued_once_and_run_out,
            hostile_userids_touch_nobody_else,
            a_message_rate_is_one_budget_for_all_gateways,
            a_message_rate_comes_back_with_time,
            messages_that_wait_are_bounded,
            conversations_are_bounded,
            conversations_that_only_wait_are_counted_too,
            tokens_of_the_day_are_counted_once,
            a_revocation_is_remembered_told_and_removes_the_token,
            a_marker_is_there_once_set,
            frames_arrive_in_order_and_numbered_over_both_channels,
            a_rewind_stays_off_the_terminal_channel,
            a_subscription_ends,
            a_reader_that_falls_behind_gets_a_gap,
            accepted_is_published_until_the_message_has_ended,
            a_cancel_is_told_to_who_writes,
            the_text_is_shown_until_it_is_delivered,
            takings_count_owners_and_not_their_repeats,
            the_history_is_paged_from_the_newest_back,
            conversations_are_listed_by_their_newest_turn,
            a_forgotten_conversation_leaves_nothing,
            forgetting_everything_spares_other_users,
            forgetting_raises_no_floor,
            what_is_forgotten_while_it_streams_ends_once_and_is_not_kept,
            what_is_forgotten_before_its_taking_is_never_answered,
            what_is_forgotten_between_keep_and_deliver_is_told_and_not_kept,
            a_rewind_brings_nothing_forgotten_back,
            a_forgotten_message_resent_is_never_answered_again,
            what_fell_out_of_the_history_is_forgotten_too,
            much_is_forgotten_as_a_whole,
            a_conversation_begins_anew_after_it_was_forgotten,
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
