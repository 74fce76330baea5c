//! What every store has to do, rule by rule, and what the SQLite store, which has files, has to do besides.
//!
//! A rule is a function over a [`Bench`], which opens and reopens a store and checks after every verb
//! that the counters equal the rows and that the logs are dense. [`contract!`] lists the rules once; a
//! store joins with one line.

mod batches;
pub(crate) mod bench;
mod blocked;
mod claims;
mod disk;
mod keys;
mod lists;
mod logs;
pub(crate) mod meddled;
mod open;
mod payloads;
mod places;
mod purges;
mod reopen;
mod retries;
mod submits;
mod tail;
mod tenants;
mod times;
mod turns;
mod uniques;

pub(crate) use bench::connect;

/// Runs every rule on a store: `contract!(name: backend)`.
macro_rules! contract {
    ($store:ident: $backend:expr) => {
        contract!($store: $backend;
            submits::what_was_submitted_is_found_again,
            submits::a_refused_change_fails_alone,
            submits::an_id_that_is_taken_fails_its_group_alone,
            submits::replies_stand_in_the_order_of_the_entries,
            submits::a_group_sees_what_its_earlier_entries_did,
            submits::a_cancel_that_changes_nothing_stores_nothing,
            submits::a_life_from_submit_to_result_is_stored_step_by_step,
            submits::another_tenant_sees_and_changes_nothing,
            submits::two_tenants_may_have_a_job_of_the_same_id,
            keys::the_same_key_and_request_give_the_same_job,
            keys::the_same_key_with_another_request_is_refused,
            keys::a_key_used_twice_in_one_group_makes_one_job,
            keys::a_key_belongs_to_its_tenant,
            keys::a_key_is_free_again_once_its_job_is_purged,
            keys::keys_are_compared_byte_by_byte,
            places::a_batch_is_stored_whole_or_not_at_all,
            places::items_of_a_batch_see_each_other,
            places::a_check_answers_as_a_submit_would_and_stores_nothing,
            places::a_place_belongs_to_all_of_its_jobs_that_are_not_over,
            places::a_place_is_taken_within_one_group,
            places::room_moves_with_every_change_of_a_group,
            places::a_handed_over_job_needs_room_only_where_it_waits,
            places::a_retry_needs_room_and_an_attempts_own_does_not,
            claims::claims_go_by_priority_then_time_then_id,
            claims::lanes_do_not_touch_each_other,
            claims::a_claim_takes_no_more_than_its_places,
            claims::what_the_group_touched_is_not_claimed_from_its_lane,
            claims::a_handed_over_job_is_claimed_in_the_commit_that_stores_it,
            claims::a_claim_brings_input_and_checkpoint,
            claims::a_retry_waits_behind_what_was_there_before_it,
            claims::several_claimants_share_a_lane_each_on_its_own_terms,
            payloads::payloads_come_back_byte_by_byte,
            payloads::a_mebibyte_goes_in_and_out,
            payloads::labels_keys_and_errors_keep_every_character,
            payloads::output_and_log_lines_keep_every_character,
            payloads::a_checkpoint_takes_the_place_of_the_one_before,
            times::due_jobs_come_earliest_first_and_say_what_is_next,
            times::ended_leases_are_found_and_others_are_not,
            times::a_lease_renewed_after_the_look_is_not_lost,
            blocked::as_many_run_with_a_key_as_may_and_the_next_goes_on_in_order,
            blocked::a_key_belongs_to_its_tenant_and_queue,
            blocked::whoever_makes_room_lets_one_go_on_whatever_its_end,
            blocked::a_type_that_nobody_claims_does_not_hold_up_another,
            blocked::what_arrives_does_not_overtake_what_waits,
            blocked::what_arrives_later_does_not_overtake_what_was_let_go_on,
            blocked::what_arrives_as_the_last_one_ends_is_not_left_behind,
            blocked::a_line_of_a_full_key_does_not_hold_up_its_lane,
            blocked::lines_are_read_one_after_another,
            blocked::whatever_happens_no_more_run_and_nobody_is_left_behind,
            lists::a_list_is_newest_first_in_pages,
            lists::filters_hold_together,
            lists::pages_together_are_what_a_look_at_every_job_gives,
            lists::a_job_that_is_there_throughout_is_listed_once,
            lists::a_list_looks_at_no_more_jobs_than_it_may,
            logs::a_log_is_read_from_any_place,
            logs::a_log_is_read_within_limits_of_events_and_bytes,
            logs::a_log_without_its_front_is_read_from_what_is_left,
            logs::a_log_stays_dense_across_segments,
            tenants::positions_order_the_events_of_all_jobs,
            tenants::parts_of_a_tenants_log_go_on_where_the_one_before_ended,
            tenants::what_was_purged_is_noted_by_position,
            tenants::jobs_are_scanned_by_id_in_parts_of_any_size,
            tenants::a_scan_answers_what_its_filter_admits,
            purges::only_what_is_finished_is_purged,
            purges::a_purged_job_leaves_nothing_behind,
            purges::the_front_of_a_log_goes_and_its_last_event_stays,
            times::a_job_with_a_start_time_waits_for_it,
            times::deadlines_of_waiting_jobs_are_found,
            times::a_job_whose_time_is_over_is_not_claimed,
            tenants::a_log_is_read_on_behind_a_hole,
            tenants::every_purge_is_counted,
            times::what_is_over_is_found_when_it_need_not_be_kept,
            times::fronts_of_logs_are_found_until_they_have_gone,
            times::silent_attempts_are_found,
            batches::a_batch_is_answered_in_its_order,
            batches::a_batch_sent_again_gives_the_same_jobs,
            batches::a_key_twice_in_a_batch_makes_one_job,
            batches::a_batch_with_a_bad_item_stores_nothing,
            batches::what_finds_no_room_is_refused,
            uniques::a_taken_place_is_answered_as_was_asked,
            uniques::a_waiting_job_is_replaced,
            uniques::a_running_job_is_cancelled_or_left_in_peace,
            uniques::a_place_is_free_after_the_end_and_its_window,
            uniques::a_place_belongs_to_its_tenant_and_type,
            uniques::a_key_comes_before_a_place,
            turns::one_job_of_a_key_runs_and_the_next_follows_in_turn,
            turns::a_key_is_of_its_tenant_and_queue_and_may_have_a_limit,
            turns::room_is_made_however_a_job_goes,
            turns::who_waits_can_be_cancelled_and_makes_no_room,
            turns::keys_are_counted_after_a_crash,
            turns::a_long_line_of_one_key_is_passed,
            turns::a_place_in_a_lane_is_counted,
            purges::a_long_log_goes_in_parts_and_its_job_at_once,
            purges::what_has_no_room_in_a_transaction_is_left_for_the_next,
            purges::the_front_of_a_long_log_goes_in_parts,
            retries::a_retry_is_the_same_job_but_for_what_was_its_own,
            retries::a_job_is_retried_once_and_asking_again_answers_the_same,
            retries::only_what_is_over_without_a_result_is_retried,
            retries::a_job_whose_retry_was_removed_is_not_retried_again,
            retries::a_retry_finds_room_among_what_waits_or_changes_nothing,
            reopen::what_was_answered_outlives_a_crash,
            reopen::what_was_answered_outlives_a_close,
            reopen::a_second_store_is_told_that_the_first_is_open,
            reopen::a_closed_store_stores_nothing,
            reopen::the_secret_is_kept,
            reopen::what_is_claimed_out_of_a_long_queue_has_its_own_input,
        );
    };
    ($store:ident: $backend:expr; $($room:ident::$rule:ident),* $(,)?) => {
        mod $store {
            use super::*;
            $(
                #[tokio::test]
                async fn $rule() {
                    $room::$rule(bench::Bench::new($backend).await).await;
                }
            )*
        }
    };
}

contract!(sqlite: bench::Sqlite::new());
contract!(memory: pacenote::store::memory::Memory::new());
